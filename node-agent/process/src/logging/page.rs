//! `/v1/logging` of an administration server.

use std::time::Duration;

use http::{Method, StatusCode};
use serde_json::json;

use super::control::{Change, control};
use crate::http_server::{Reply, json};

/// Longest query, bytes.
const MAX_QUERY: usize = 2048;

/// Answers `GET` with the level, and `PUT` with `?level=LEVEL` and maybe `&for=DURATION` after it has been changed.
/// Whoever may ask may change it: the caller has made sure that it is an administrator.
pub fn page(method: &Method, query: Option<&str>) -> Reply {
    let Some(control) = control() else {
        return problem(StatusCode::SERVICE_UNAVAILABLE, "no_log", "there is no log");
    };
    match *method {
        Method::GET => json(StatusCode::OK, &control.get()),
        Method::PUT => match change(query.unwrap_or_default()) {
            Ok(change) => match control.set(&change) {
                Ok(state) => json(StatusCode::OK, &state),
                Err(error) => problem(StatusCode::BAD_REQUEST, error.reason(), &error.to_string()),
            },
            Err(error) => problem(StatusCode::BAD_REQUEST, "log_query_invalid", &error),
        },
        _ => problem(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "GET or PUT",
        ),
    }
}

fn problem(status: StatusCode, reason: &str, error: &str) -> Reply {
    json(status, &json!({"reason": reason, "error": error}))
}

fn change(query: &str) -> Result<Change, String> {
    if query.len() > MAX_QUERY {
        return Err("the query is too long".to_owned());
    }
    let (mut level, mut lasts) = (None, None);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = decoded(value).ok_or("the query is not percent-encoded as it should be")?;
        match name {
            "level" => level = Some(value),
            "for" => lasts = Some(duration(&value)?),
            _ => return Err(format!("{name:?}: the query is level=LEVEL[&for=DURATION]")),
        }
    }
    let level = level.ok_or("level=LEVEL is missing")?;
    Ok(Change { level, lasts })
}

fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digit = |byte: u8| char::from(byte).to_digit(16);
                let value = digit(rest.next()?)? * 16 + digit(rest.next()?)?;
                u8::try_from(value).ok()?
            }
            b'+' => b' ',
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}

/// `90s`, `10m`, `2h` or `1d`; a number alone is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => {
            return Err(format!(
                "{text:?} is no duration, as 90s, 10m, 2h or 1d are"
            ));
        }
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|number| number.checked_mul(unit))
        .map(Duration::from_secs)
        .ok_or_else(|| format!("{text:?} is no duration, as 90s, 10m, 2h or 1d are"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::change;

    #[test]
    fn queries_are_read() {
        let read = change("level=info%2Ckarst_waypoint%3Ddebug&for=10m").expect("valid");
        assert_eq!(read.level, "info,karst_waypoint=debug");
        assert_eq!(read.lasts, Some(Duration::from_secs(600)));
        let read = change("level=info,karst_waypoint=debug").expect("valid");
        assert_eq!(read.level, "info,karst_waypoint=debug");
        assert_eq!(read.lasts, None);
        for bad in [
            "",
            "for=1m",
            "level=info&for=",
            "level=info&for=1y",
            "level=info&for=-1s",
            "level=%zz",
            "level=%f",
            "level=info&more=1",
            "level=info&for=99999999999999999999d",
        ] {
            assert!(change(bad).is_err(), "{bad}");
        }
    }
}

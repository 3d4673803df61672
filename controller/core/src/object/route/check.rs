//! Checks of single values. They are as strict as those of the proxies: what passes here is not refused
//! there, where it would take all rules of its route with it.

use regex::RegexBuilder;

use super::{Place, Unusable};
use crate::token::is_name;

/// Size of a compiled regular expression in bytes.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Nesting of groups in a regular expression.
const MAX_REGEX_NESTING: u32 = 50;

/// Length of a value that is matched, in bytes (Gateway API).
const MAX_VALUE_BYTES: usize = 4096;

/// Headers that belong to a connection, or say where a message ends (RFC 9110 7.6.1, 8.6).
pub(crate) const PROTECTED_HEADERS: [&str; 9] = [
    "connection",
    "content-length",
    "http2-settings",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A regular expression in the syntax, and within the limits, of the proxies.
pub(super) fn regex(place: Place<'_>, field: &str, pattern: &str) -> Result<(), Unusable> {
    length(place, field, pattern)?;
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX_BYTES)
            .nest_limit(MAX_REGEX_NESTING)
            .build()
    };
    let anchored = format!(r"\A(?:{pattern})\z");
    build(pattern)
        .and_then(|_| build(&anchored))
        .map(|_| ())
        .map_err(|error| {
            let error = error.to_string();
            // The last line says what is wrong; those before it draw where.
            let said = error.lines().last().unwrap_or_default().trim();
            let said = said.strip_prefix("error: ").unwrap_or(said);
            let problem = format!(
                "is {:?}, which is no usable regular expression: {said}",
                shown(pattern)
            );
            let hint = "write it in RE2 syntax, without look-around and back-references";
            place.unsupported(field, problem, hint)
        })
}

/// A text that is compared with.
pub(super) fn length(place: Place<'_>, field: &str, text: &str) -> Result<(), Unusable> {
    if text.len() <= MAX_VALUE_BYTES {
        return Ok(());
    }
    let problem = format!("is {} bytes long", text.len());
    Err(place.unsupported(field, problem, format!("use at most {MAX_VALUE_BYTES}")))
}

/// The name of a header (RFC 9110 5.6.2).
pub(super) fn header_name(place: Place<'_>, field: &str, name: &str) -> Result<(), Unusable> {
    if is_name(name) {
        return Ok(());
    }
    let problem = format!("is {:?}, which is no name of a header", shown(name));
    Err(place.unsupported(field, problem, "use letters, digits and '-'"))
}

/// The name of a header that may be changed.
pub(super) fn changed_header(place: Place<'_>, field: &str, name: &str) -> Result<(), Unusable> {
    header_name(place, field, name)?;
    let lower = name.to_ascii_lowercase();
    if PROTECTED_HEADERS.contains(&lower.as_str()) {
        let problem =
            format!("is {name:?}, which belongs to the connection and not to the message");
        return Err(place.unsupported(field, problem, "leave that header to the proxies"));
    }
    Ok(())
}

/// The value of a header (RFC 9110 5.5).
pub(super) fn header_value(place: Place<'_>, field: &str, value: &str) -> Result<(), Unusable> {
    length(place, field, value)?;
    if value
        .bytes()
        .all(|byte| byte == b'\t' || (byte >= 0x20 && byte != 0x7f))
    {
        return Ok(());
    }
    let problem = "has characters that no value of a header may have";
    Err(place.unsupported(field, problem, "use visible characters and spaces"))
}

/// A method (RFC 9110 9.1).
pub(super) fn method(place: Place<'_>, field: &str, method: &str) -> Result<(), Unusable> {
    if is_name(method) {
        return Ok(());
    }
    let problem = format!("is {:?}, which is no method", shown(method));
    Err(place.unsupported(field, problem, "use one like GET"))
}

/// A host name without wildcard.
pub(super) fn hostname(place: Place<'_>, field: &str, name: &str) -> Result<(), Unusable> {
    let label = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= 253 && name.split('.').all(label) {
        return Ok(());
    }
    let problem = format!("is {:?}, which is no host name", shown(name));
    Err(place.unsupported(
        field,
        problem,
        "write a host name without port and wildcard",
    ))
}

/// As much of a text as goes into a message.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

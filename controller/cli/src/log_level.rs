//! `karst log-level`: the level of the log of an agent or of a waypoint.

use std::fmt::Write as _;

use http::Method;
use serde_json::Value;

use crate::admin::Source;
use crate::args::LogLevel;
use crate::cluster;
use crate::failure::Failure;

/// Shows or sets the level; returns what to print.
///
/// # Errors
/// Nobody answers, or the level is refused.
pub fn run(args: &LogLevel) -> Result<String, Failure> {
    let (method, path) = request(args);
    let source = match args.waypoint {
        Some(address) => Source::Waypoint(address.to_string()),
        None => Source::find(&args.place, &args.kubernetes)?,
    };
    let state = cluster::run(source.document(method, &path))?;
    Ok(text(args, &state))
}

fn request(args: &LogLevel) -> (Method, String) {
    let Some(level) = &args.level else {
        return (Method::GET, "/v1/logging".to_owned());
    };
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("level", level);
    if let Some(lasts) = &args.lasts {
        query.append_pair("for", lasts);
    }
    (Method::PUT, format!("/v1/logging?{}", query.finish()))
}

fn text(args: &LogLevel, state: &Value) -> String {
    if args.output.pretty {
        return format!("{state:#}\n");
    }
    if args.output.json {
        return format!("{state}\n");
    }
    let mut text = state["level"].as_str().unwrap_or_default().to_owned();
    if let Some(left) = state["seconds_left"].as_u64() {
        let default = state["default_level"].as_str().unwrap_or_default();
        // A String takes all that is written to it.
        let _ = write!(text, ", for {left} s more; then {default}");
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::{request, text};
    use crate::args::{Cli, Command, LogLevel};

    fn parse(args: &[&str]) -> LogLevel {
        let args = ["karst", "log-level"].iter().chain(args);
        match Cli::try_parse_from(args).expect("parses").command {
            Command::LogLevel(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_request_says_what_is_wanted() {
        let (method, path) = request(&parse(&[]));
        assert_eq!((method.as_str(), path.as_str()), ("GET", "/v1/logging"));
        let (method, path) = request(&parse(&["info,karst=debug", "--for", "10m"]));
        assert_eq!(method, "PUT");
        assert_eq!(path, "/v1/logging?level=info%2Ckarst%3Ddebug&for=10m");
        for wrong in [&["--for", "10m"][..], &["--waypoint", "web"]] {
            let args = ["karst", "log-level"].iter().chain(wrong);
            assert!(Cli::try_parse_from(args).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_level_is_shown_with_its_end() {
        let state = json!({"level": "debug", "default_level": "info", "seconds_left": 599});
        assert_eq!(
            text(&parse(&[]), &state),
            "debug, for 599 s more; then info\n"
        );
        let state = json!({"level": "info", "default_level": "info", "seconds_left": null});
        assert_eq!(text(&parse(&[]), &state), "info\n");
        assert_eq!(text(&parse(&["-j"]), &state), format!("{state}\n"));
    }
}

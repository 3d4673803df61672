//! Levels of the log, as users write them.

use tracing_subscriber::EnvFilter;

/// Longest level, bytes.
const MAX_BYTES: usize = 512;

/// Libraries that log headers, frames or handshakes at `debug` and `trace`. Headers carry tokens, of ours and of users'.
const HELD: [&str; 9] = [
    "h2",
    "hyper",
    "hyper_util",
    "tonic",
    "tower",
    "rustls",
    "tokio_rustls",
    "kube_client",
    "tungstenite",
];

/// What is no level, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{level:?} is no log level: {problem}")]
pub struct BadLevel {
    level: String,
    problem: String,
}

/// The filter that a level stands for: `LEVEL` and `MODULE=LEVEL`, separated by commas.
///
/// A word that is no level is refused, where the library would take it for the name of a module and turn all others
/// off.
///
/// # Errors
/// What is wrong with it.
pub(super) fn filter(level: &str) -> Result<EnvFilter, BadLevel> {
    let bad = |problem: &str| BadLevel {
        level: level.chars().take(80).collect(),
        problem: problem.to_owned(),
    };
    if level.len() > MAX_BYTES {
        return Err(bad("it is too long"));
    }
    let parts = level
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty());
    let mut taken = Vec::new();
    let mut all_others = "error".to_owned();
    for part in parts {
        let (module, word) = match part.split_once('=') {
            Some((module, word)) => (Some(module), word),
            None => (None, part),
        };
        let word = word.to_ascii_lowercase();
        if !["off", "error", "warn", "info", "debug", "trace"].contains(&word.as_str()) {
            return Err(bad(
                "it must be off, error, warn, info, debug or trace, or MODULE=LEVEL; several are separated by commas",
            ));
        }
        taken.push(part);
        let Some(module) = module else {
            all_others = word;
            continue;
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
        if module.is_empty() || !module.chars().all(is_plain) {
            return Err(bad(
                "the name of a module has letters, digits, _ and :: only",
            ));
        }
        let library = module.split("::").next().unwrap_or_default();
        if HELD.contains(&library) {
            return Err(bad(
                "the level of libraries that log what they send is fixed, because there may be tokens in it",
            ));
        }
    }
    if taken.is_empty() {
        return Err(bad("it is empty"));
    }
    let mut filter =
        EnvFilter::try_new(taken.join(",")).map_err(|error| bad(&error.to_string()))?;
    for library in HELD {
        // More specific than any level without a module, and never more than that. Kube's client reports each failed
        // attempt as an error, of which the controller says once that something fails.
        let most = match (library, all_others.as_str()) {
            ("kube_client", _) | (_, "off") => "off",
            (_, "error") => "error",
            _ => "warn",
        };
        let directive = format!("{library}={most}");
        filter = filter.add_directive(directive.parse().map_err(|_| bad("a library's level"))?);
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn levels_and_modules_are_taken() {
        for good in [
            "info",
            "INFO",
            "off",
            "warn,karst_waypoint=debug",
            " info , karst_node_agent::proxy=trace ",
        ] {
            assert!(filter(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn what_is_no_level_is_refused() {
        let long = "info,".repeat(200);
        for bad in [
            "",
            ",",
            "inof",
            "debgu,info",
            "karst",
            "karst_waypoint=loud",
            "=debug",
            "a=b=c",
            "[span]=debug",
            "h2=trace",
            "info,rustls::client=debug",
            &long,
        ] {
            let error = filter(bad).expect_err(bad).to_string();
            assert!(error.contains("is no log level: "), "{error}");
            assert!(error.len() < 400, "{error}");
        }
    }

    #[test]
    fn libraries_that_may_log_tokens_stay_quiet() {
        let text = filter("trace").expect("valid").to_string();
        for part in ["h2=warn", "rustls=warn", "tonic=warn", "trace"] {
            assert!(text.split(',').any(|one| one == part), "{part} in {text}");
        }
        let text = filter("off").expect("valid").to_string();
        assert!(
            text.contains("h2=off"),
            "never louder than all others: {text}"
        );
    }
}

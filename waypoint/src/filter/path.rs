//! Changes of paths.

use std::fmt::Write as _;

use karst_api::waypoint as wire;

use super::FilterContext;
use crate::config::ConfigError;

/// Length of a replacement in bytes. The Gateway API allows 1024.
const MAX_REPLACEMENT_BYTES: usize = 4096;

/// A change of a path.
pub enum PathChange {
    /// It is replaced; begins with a slash.
    Full(String),
    /// The prefix that matched is replaced; empty, or begins with a slash and does not end with one.
    Prefix(String),
}

impl PathChange {
    pub(super) fn new(wire: &wire::PathModifier) -> Result<Self, ConfigError> {
        match &wire.kind {
            Some(wire::path_modifier::Kind::Full(path)) => match encoded("full", path)? {
                path if path.is_empty() => Ok(Self::Full("/".to_owned())),
                path => Ok(Self::Full(path)),
            },
            Some(wire::path_modifier::Kind::Prefix(prefix)) => {
                let mut prefix = encoded("prefix", prefix)?;
                if prefix.ends_with('/') {
                    prefix.pop();
                }
                Ok(Self::Prefix(prefix))
            }
            None => Err(ConfigError::new(
                "kind",
                "is missing, or not known to this version",
            )),
        }
    }

    /// The new path.
    ///
    /// The table at `ReplacePrefixMatch` in the Gateway API decides about slashes: those at the end of prefix and
    /// replacement do not count, that at the end of the request's path stays.
    pub(super) fn apply(&self, context: &FilterContext<'_>) -> String {
        let replacement = match self {
            Self::Full(path) => return path.clone(),
            Self::Prefix(replacement) => replacement,
        };
        let prefix = context.prefix.unwrap_or(context.path);
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let rest = context.path.strip_prefix(prefix).unwrap_or_default();
        let mut path = String::with_capacity(replacement.len() + rest.len() + 1);
        path.push_str(replacement);
        path.push_str(rest);
        if path.is_empty() {
            path.push('/');
        }
        path
    }
}

/// A path as it may stand in a request: with a slash in front unless it is empty, and with everything escaped
/// that would end the path or is not allowed in it (RFC 3986 3.3). Escapes that are there stay.
fn encoded(field: &str, path: &str) -> Result<String, ConfigError> {
    if path.len() > MAX_REPLACEMENT_BYTES {
        let problem = format!(
            "is {} bytes long, at most {MAX_REPLACEMENT_BYTES} are allowed",
            path.len()
        );
        return Err(ConfigError::new(field, problem));
    }
    let mut out = String::with_capacity(path.len() + 1);
    if !path.is_empty() && !path.starts_with('/') {
        out.push('/');
    }
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(char::from(byte)),
            b'-' | b'.' | b'_' | b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+'
            | b',' | b';' | b'=' | b':' | b'@' | b'/' | b'%' => out.push(char::from(byte)),
            other => {
                // Writing to a string does not fail.
                let _ = write!(out, "%{other:02X}");
            }
        }
    }
    Ok(out)
}

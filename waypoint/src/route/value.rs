//! Conditions on headers and query parameters.

use std::borrow::Cow;

use http::HeaderName;
use http::header::{COOKIE, HOST};
use karst_api::waypoint as wire;
use regex::bytes::{Regex, RegexBuilder};

use super::RequestHead;
use crate::config::ConfigError;

/// Size of a compiled regular expression in bytes. Ordinary ones take a few KiB; counted repetitions of large
/// character classes take megabytes and are refused.
const MAX_REGEX_BYTES: usize = 1 << 20;

/// Memory in bytes that one expression may use to remember what it has matched, for each thread.
const MAX_REGEX_CACHE_BYTES: usize = 1 << 20;

/// Nesting of groups in a regular expression: far above what anybody reads, far below any stack.
const MAX_REGEX_NESTING: u32 = 50;

/// Length of a regular expression in bytes: that of the longest value of a match in the Gateway API.
const MAX_PATTERN_BYTES: usize = 4096;

/// Compiles an expression that must match the whole text.
pub(super) fn anchored(field: &str, pattern: &str) -> Result<Regex, ConfigError> {
    if pattern.len() > MAX_PATTERN_BYTES {
        let problem = format!(
            "is {} bytes long, at most {MAX_PATTERN_BYTES} are allowed",
            pattern.len()
        );
        return Err(ConfigError::new(field, problem));
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_CACHE_BYTES)
            .nest_limit(MAX_REGEX_NESTING)
            .build()
            .map_err(|error| {
                let problem = format!("is not a regular expression that can be used: {error}");
                ConfigError::new(field, problem)
            })
    };
    // Alone first: `a)|(b` would be well-formed inside of the group, and mean something else.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z"))
}

/// What a value must be.
pub(super) enum ValueRule {
    Exact(Box<[u8]>),
    Regex(Regex),
}

impl ValueRule {
    fn new(kind: Option<&wire::value_match::Kind>) -> Result<Self, ConfigError> {
        match kind {
            Some(wire::value_match::Kind::Exact(value)) => Ok(Self::Exact(value.as_bytes().into())),
            Some(wire::value_match::Kind::Regex(pattern)) => {
                anchored("regex", pattern).map(Self::Regex)
            }
            None => Err(ConfigError::new(
                "kind",
                "is neither exact nor a regular expression",
            )),
        }
    }

    fn matches(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(expected) => **expected == *value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// A condition on a header.
pub(super) struct HeaderMatch {
    pub(super) name: HeaderName,
    rule: ValueRule,
}

impl HeaderMatch {
    pub(super) fn new(wire: &wire::ValueMatch) -> Result<Self, ConfigError> {
        let name = HeaderName::from_bytes(wire.name.as_bytes()).map_err(|_| {
            ConfigError::new(
                "name",
                format!("is {:?}, which is no name of a header", wire.name),
            )
        })?;
        let rule = ValueRule::new(wire.kind.as_ref())?;
        Ok(Self { name, rule })
    }

    /// Several lines of a header are one value, joined by commas (RFC 9110 5.2; cookies: RFC 9113 8.2.3).
    pub(super) fn matches(&self, request: &RequestHead<'_>) -> bool {
        let mut values = request.headers.get_all(&self.name).iter();
        let Some(first) = values.next() else {
            // HTTP/2 has the host in `:authority` instead.
            return self.name == HOST
                && !request.host.is_empty()
                && self.rule.matches(request.host.as_bytes());
        };
        let Some(second) = values.next() else {
            return self.rule.matches(first.as_bytes());
        };
        let separator: &[u8] = if self.name == COOKIE { b"; " } else { b"," };
        let mut joined = first.as_bytes().to_vec();
        for value in std::iter::once(second).chain(values) {
            joined.extend_from_slice(separator);
            joined.extend_from_slice(value.as_bytes());
        }
        self.rule.matches(&joined)
    }
}

/// A condition on a query parameter.
pub(super) struct QueryMatch {
    pub(super) name: Box<str>,
    rule: ValueRule,
}

impl QueryMatch {
    pub(super) fn new(wire: &wire::ValueMatch) -> Result<Self, ConfigError> {
        if wire.name.is_empty() {
            return Err(ConfigError::new("name", "is empty"));
        }
        let rule = ValueRule::new(wire.kind.as_ref())?;
        let name = wire.name.as_str().into();
        Ok(Self { name, rule })
    }

    /// The first parameter of the name counts, as the Gateway API recommends. Names and values are decoded as
    /// HTML forms encode them (WHATWG URL, `application/x-www-form-urlencoded`), because so do applications.
    pub(super) fn matches(&self, query: Option<&str>) -> bool {
        let pairs = query.unwrap_or_default().split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.as_bytes(), value.as_bytes())
        });
        for (name, value) in pairs {
            if *decoded(name) == *self.name.as_bytes() {
                return self.rule.matches(&decoded(value));
            }
        }
        false
    }
}

/// Decodes `%XX` and `+`; what is no valid escape stays as it is.
fn decoded(text: &[u8]) -> Cow<'_, [u8]> {
    if !text.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        return Cow::Borrowed(text);
    }
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => out.push(b' '),
            b'%' => match after {
                [high, low, after @ ..] if let Some(byte) = hex(*high, *low) => {
                    out.push(byte);
                    rest = after;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
    }
    Cow::Owned(out)
}

fn hex(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn queries_are_decoded_as_forms_are() {
        for (text, expected) in [
            ("plain", "plain"),
            ("a+b", "a b"),
            ("a%2Bb", "a+b"),
            ("%e4%BD%a0", "你"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%41", "%zzA"),
            ("%%41", "%A"),
            ("", ""),
        ] {
            assert_eq!(*decoded(text.as_bytes()), *expected.as_bytes(), "{text}");
        }
    }
}

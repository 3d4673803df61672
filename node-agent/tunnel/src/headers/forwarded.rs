//! The `forwarded` header (RFC 7239) with the source application's address.

use std::net::SocketAddr;

use http::HeaderValue;

/// Who is connecting, as the source node says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarded {
    /// The application's address and port in its pod.
    pub client: SocketAddr,
    /// The service host the application asked for; empty when it asked for an address.
    pub host: String,
}

impl Forwarded {
    /// Reads `for="ip:port"` and `host=name` of the first element; `None` without an address.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        // Neither of our values may hold a comma, so that the first one ends the element.
        let element = text.split(',').next()?;
        let mut client = None;
        let mut host = String::new();
        for pair in element.split(';') {
            let Some((key, value)) = pair.trim().split_once('=') else {
                continue;
            };
            let value = unquote(value);
            if key.eq_ignore_ascii_case("for") && client.is_none() {
                client = value.parse().ok();
            } else if key.eq_ignore_ascii_case("host") && host.is_empty() && is_host(value) {
                value.clone_into(&mut host);
            }
        }
        client.map(|client| Self { client, host })
    }

    /// The header's value.
    #[must_use]
    pub fn to_value(&self) -> Option<HeaderValue> {
        let mut text = format!("for=\"{}\"", self.client);
        if is_host(&self.host) {
            text.push_str(";host=");
            text.push_str(&self.host);
        }
        HeaderValue::try_from(text).ok()
    }
}

fn unquote(value: &str) -> &str {
    value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .unwrap_or(value)
}

fn is_host(value: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    !value.is_empty() && value.len() <= 253 && value.bytes().all(allowed)
}

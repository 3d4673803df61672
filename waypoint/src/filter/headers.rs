//! Changes of headers.

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::request;
use karst_api::waypoint as wire;

use super::Unusable;
use super::rewrite::Host;
use crate::config::{ConfigError, at_most};

/// Headers in one list of a change. The Gateway API allows 16.
const MAX_HEADERS: usize = 64;

/// Length of a value in bytes. The Gateway API allows 4096.
const MAX_VALUE_BYTES: usize = 16 * 1024;

/// What belongs to a connection or frames a message (RFC 9110 7.6.1, 8.6): to change it would change where a
/// message ends, or what a peer on the way believes about the connection.
const PROTECTED: [&str; 9] = [
    "connection",
    "content-length",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Changes of headers: first what is removed, then what is set, then what is added.
pub struct HeaderChanges {
    remove: Box<[HeaderName]>,
    set: Box<[(HeaderName, HeaderValue)]>,
    add: Box<[(HeaderName, HeaderValue)]>,
    /// A new host; it is more than a header.
    host: Option<Host>,
}

impl HeaderChanges {
    pub(super) fn of_request(wire: &wire::HeaderModifier) -> Result<Self, ConfigError> {
        let mut changes = Self::of_response(wire)?;
        let is_host = |(name, _): &(HeaderName, HeaderValue)| *name == HOST;
        if changes.remove.contains(&HOST) {
            return Err(ConfigError::new(
                "remove",
                "has \"host\", which a request must have",
            ));
        }
        if changes.add.iter().any(is_host) {
            let problem = "has \"host\", of which a request has exactly one; use set";
            return Err(ConfigError::new("add", problem));
        }
        if let Some(host) = wire
            .set
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("host"))
        {
            changes.host = Some(Host::new("set", &host.value)?);
            changes.set = Vec::from(changes.set)
                .into_iter()
                .filter(|header| !is_host(header))
                .collect();
        }
        Ok(changes)
    }

    pub(super) fn of_response(wire: &wire::HeaderModifier) -> Result<Self, ConfigError> {
        at_most("remove", wire.remove.len(), MAX_HEADERS)?;
        let removed = wire.remove.iter().enumerate();
        Ok(Self {
            remove: removed
                .map(|(index, header)| {
                    name(header).map_err(|error| error.within(format_args!("remove[{index}]")))
                })
                .collect::<Result<_, _>>()?,
            set: headers("set", &wire.set)?,
            add: headers("add", &wire.add)?,
            host: None,
        })
    }

    pub(super) fn apply_request(&self, parts: &mut request::Parts) -> Result<(), Unusable> {
        self.apply(&mut parts.headers);
        match &self.host {
            Some(host) => host.apply(parts),
            None => Ok(()),
        }
    }

    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        // A map that is full (32,768 entries) stays as it is; no message that size gets here.
        for (name, value) in &self.set {
            let _ = headers.try_insert(name, value.clone());
        }
        for (name, value) in &self.add {
            let _ = headers.try_append(name, value.clone());
        }
    }
}

fn headers(
    field: &str,
    wire: &[wire::Header],
) -> Result<Box<[(HeaderName, HeaderValue)]>, ConfigError> {
    at_most(field, wire.len(), MAX_HEADERS)?;
    let header = |(index, header): (usize, &wire::Header)| {
        let at = |error: ConfigError| error.within(format_args!("{field}[{index}]"));
        let name = name(&header.name).map_err(at)?;
        let value = value(&header.value).map_err(at)?;
        Ok((name, value))
    };
    wire.iter().enumerate().map(header).collect()
}

/// Whether a header belongs to a connection or frames a message, so that nobody may change it.
pub(crate) fn is_protected(name: &HeaderName) -> bool {
    PROTECTED.contains(&name.as_str())
}

fn name(text: &str) -> Result<HeaderName, ConfigError> {
    let name = HeaderName::from_bytes(text.as_bytes()).map_err(|_| {
        ConfigError::new("name", format!("is {text:?}, which is no name of a header"))
    })?;
    if is_protected(&name) {
        let problem =
            format!("is {text:?}, which belongs to the connection and not to the message");
        return Err(ConfigError::new("name", problem));
    }
    Ok(name)
}

fn value(text: &str) -> Result<HeaderValue, ConfigError> {
    if text.len() > MAX_VALUE_BYTES {
        let problem = format!(
            "is {} bytes long, at most {MAX_VALUE_BYTES} are allowed",
            text.len()
        );
        return Err(ConfigError::new("value", problem));
    }
    HeaderValue::from_str(text)
        .map_err(|_| ConfigError::new("value", "has characters that no value of a header may have"))
}

//! A record as a line of text or JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use crate::args::AccessLogFormat;
use crate::time;

/// Longest text of a field, bytes; what is beyond is cut off. Peers choose some of them.
const MAX_TEXT: usize = 2048;

/// A line: its message and its fields, in the order in which they were added.
#[derive(Debug)]
pub struct Line {
    message: &'static str,
    failed: bool,
    fields: Vec<(&'static str, Value)>,
}

#[derive(Debug)]
enum Value {
    Text(String),
    Number(u64),
}

impl Value {
    fn into_json(self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Number(number) => number.into(),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) if text.chars().all(plain) => f.write_str(text),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

impl Line {
    /// A line without fields.
    #[must_use]
    pub fn new(message: &'static str) -> Self {
        Self {
            message,
            failed: false,
            fields: Vec::with_capacity(28),
        }
    }

    /// A field with a text; none if it is empty.
    pub fn text(&mut self, name: &'static str, value: impl AsRef<str>) {
        let value = value.as_ref();
        if value.is_empty() {
            return;
        }
        let end = value.floor_char_boundary(MAX_TEXT);
        self.fields
            .push((name, Value::Text(value[..end].to_owned())));
    }

    /// A field with a text that may not be known.
    pub fn known(&mut self, name: &'static str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// A field with a number.
    pub fn number(&mut self, name: &'static str, value: u64) {
        self.fields.push((name, Value::Number(value)));
    }

    /// A field with an address; none if it is not known.
    pub fn address(&mut self, name: &'static str, address: impl Into<Option<SocketAddr>>) {
        self.known(name, address.into().map(|address| address.to_string()));
    }

    /// A field with whole milliseconds.
    pub fn duration(&mut self, name: &'static str, duration: Duration) {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.number(name, millis);
    }

    /// The last fields: why it failed, which makes it a line of level `error`, and the details.
    #[must_use]
    pub fn ended(mut self, reason: Option<&str>, error: Option<&str>) -> Self {
        self.failed = reason.is_some();
        self.known("reason", reason);
        self.known("error", error);
        self
    }

    /// Writes the line to the end of `buffer`.
    pub fn append_to(self, buffer: &mut String, when: SystemTime, format: AccessLogFormat) {
        let level = if self.failed { "error" } else { "info" };
        let message = self.message;
        if format == AccessLogFormat::Json {
            let mut object = serde_json::Map::new();
            object.insert("time".to_owned(), time::rfc3339(when).into());
            object.insert("level".to_owned(), level.into());
            object.insert("target".to_owned(), "access".into());
            object.insert("message".to_owned(), message.into());
            for (name, value) in self.fields {
                object.insert(name.to_owned(), value.into_json());
            }
            buffer.push_str(&serde_json::Value::Object(object).to_string());
        } else {
            // Writing to a String cannot fail.
            let _ = write!(buffer, "{} {level} access {message}", time::rfc3339(when));
            for (name, value) in self.fields {
                let _ = write!(buffer, " {name}={value}");
            }
        }
        buffer.push('\n');
    }
}

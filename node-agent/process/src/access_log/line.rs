//! A record as a line of text or JSON, written as it is read: a busy proxy writes one for each request.

use std::fmt::Display;
use std::io::Write as _;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, SystemTime};

use super::Record;
use crate::args::AccessLogFormat;
use crate::time;

/// Longest text of a field, bytes; what is beyond is cut off. Peers choose some of them.
const MAX_TEXT: usize = 2048;

/// A line that is being written: its fields stand in the order in which they are added.
#[derive(Debug)]
pub struct Line<'a> {
    buffer: &'a mut Vec<u8>,
    format: AccessLogFormat,
}

/// Writes the line of a record to the end of `buffer`.
pub fn append(
    buffer: &mut Vec<u8>,
    when: SystemTime,
    record: &impl Record,
    format: AccessLogFormat,
) {
    let level = match record.reason() {
        Some(_) => "error",
        None => "info",
    };
    let message = record.message();
    let [before, after, and, end] = match format {
        AccessLogFormat::Json => [
            r#"{"time":""#,
            r#"","level":""#,
            r#"","target":"access","message":""#,
            "\"",
        ],
        _ => ["", " ", " access ", ""],
    };
    buffer.extend_from_slice(before.as_bytes());
    buffer.extend_from_slice(&time::rfc3339(when));
    for part in [after, level, and, message, end] {
        buffer.extend_from_slice(part.as_bytes());
    }
    let mut line = Line { buffer, format };
    record.fields(&mut line);
    line.known("reason", record.reason());
    line.known("error", record.error());
    if format == AccessLogFormat::Json {
        buffer.push(b'}');
    }
    buffer.push(b'\n');
}

/// Writes a record to the end of `buffer` as an event of the tap: a line of JSON whose fields are named as those of the
/// log, after the time and those of `head`.
pub fn append_event<'a>(
    buffer: &mut Vec<u8>,
    when: SystemTime,
    head: impl IntoIterator<Item = (&'static str, &'a str)>,
    record: &impl Record,
) {
    buffer.extend_from_slice(br#"{"time":""#);
    buffer.extend_from_slice(&time::rfc3339(when));
    buffer.push(b'"');
    let format = AccessLogFormat::Json;
    let mut line = Line { buffer, format };
    for (name, value) in head {
        line.text(name, value);
    }
    record.fields(&mut line);
    line.known("reason", record.reason());
    line.known("error", record.error());
    buffer.extend_from_slice(b"}\n");
}

impl Line<'_> {
    /// A field with a text; none if it is empty.
    pub fn text(&mut self, name: &'static str, value: impl AsRef<str>) {
        let value = value.as_ref();
        if value.is_empty() {
            return;
        }
        let value = &value[..value.floor_char_boundary(MAX_TEXT)];
        self.name(name);
        // Nearly all texts stand in the line as they are, and looking at all bytes at once is quicker than escaping.
        let all = |plain: fn(u8) -> bool| value.bytes().fold(true, |all, byte| all & plain(byte));
        if self.format == AccessLogFormat::Json {
            if all(|byte| (byte >= b' ') & (byte != b'"') & (byte != b'\\')) {
                self.buffer.push(b'"');
                self.buffer.extend_from_slice(value.as_bytes());
                self.buffer.push(b'"');
            } else {
                let _ = serde_json::to_writer(&mut *self.buffer, value);
            }
        } else if all(|byte| byte.is_ascii_graphic() & !matches!(byte, b'"' | b'=' | b'\\')) {
            self.buffer.extend_from_slice(value.as_bytes());
        } else {
            let _ = write!(self.buffer, "{value:?}");
        }
    }

    /// A field with a text that may not be known.
    pub fn known(&mut self, name: &'static str, value: Option<impl AsRef<str>>) {
        if let Some(value) = value {
            self.text(name, value);
        }
    }

    /// A field with a number.
    pub fn number(&mut self, name: &'static str, value: u64) {
        self.name(name);
        let mut digits = itoa::Buffer::new();
        self.buffer
            .extend_from_slice(digits.format(value).as_bytes());
    }

    /// A field with an address; none if it is not known.
    pub fn address(&mut self, name: &'static str, address: impl Into<Option<SocketAddr>>) {
        match address.into() {
            Some(SocketAddr::V4(address)) => self.v4(name, address),
            Some(address) => self.plain(name, address),
            None => {}
        }
    }

    /// A field with whole milliseconds.
    pub fn duration(&mut self, name: &'static str, duration: Duration) {
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        self.number(name, millis);
    }

    /// As [`Self::plain`] writes it, without the machinery of formatting: a line has several.
    fn v4(&mut self, name: &'static str, address: SocketAddrV4) {
        self.name(name);
        let quote: &[u8] = match self.format {
            AccessLogFormat::Json => b"\"",
            _ => b"",
        };
        let mut digits = itoa::Buffer::new();
        let mut before = quote;
        for octet in address.ip().octets() {
            self.buffer.extend_from_slice(before);
            let octet = digits.format(octet).as_bytes();
            self.buffer.extend_from_slice(octet);
            before = b".";
        }
        self.buffer.push(b':');
        let port = digits.format(address.port()).as_bytes();
        self.buffer.extend_from_slice(port);
        self.buffer.extend_from_slice(quote);
    }

    /// What no peer chose and what needs no quotes: no spaces, no `"`, `=` or `\`.
    fn plain(&mut self, name: &'static str, value: impl Display) {
        self.name(name);
        let _ = match self.format {
            AccessLogFormat::Json => write!(self.buffer, "\"{value}\""),
            _ => write!(self.buffer, "{value}"),
        };
    }

    fn name(&mut self, name: &'static str) {
        let (before, after) = match self.format {
            AccessLogFormat::Json => (&b",\""[..], &b"\":"[..]),
            _ => (&b" "[..], &b"="[..]),
        };
        for part in [before, name.as_bytes(), after] {
            self.buffer.extend_from_slice(part);
        }
    }
}

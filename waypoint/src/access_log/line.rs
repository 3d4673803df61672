//! A record as a line of text or JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use super::{ConnectionRecord, Destination, EndpointRecord, RequestRecord};
use crate::args::AccessLogFormat;
use crate::client::Client;
use crate::reason::Reason;
use crate::time;

/// Longest value of a field that a peer chose, bytes; what is beyond is cut off.
const MAX_VALUE: usize = 2048;

/// A line: its message, its reason and its fields.
pub(super) struct Line {
    message: &'static str,
    failed: bool,
    fields: Vec<(&'static str, Value)>,
}

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
    fn new(message: &'static str, reason: Option<Reason>) -> Self {
        Self {
            message,
            failed: reason.is_some(),
            fields: Vec::with_capacity(28),
        }
    }

    fn text(&mut self, name: &'static str, value: impl AsRef<str>) {
        let value = value.as_ref();
        if value.is_empty() {
            return;
        }
        let end = value.floor_char_boundary(MAX_VALUE);
        self.fields
            .push((name, Value::Text(value[..end].to_owned())));
    }

    fn number(&mut self, name: &'static str, value: u64) {
        self.fields.push((name, Value::Number(value)));
    }

    fn address(&mut self, name: &'static str, address: SocketAddr) {
        self.text(name, address.to_string());
    }

    fn client(&mut self, client: &Client) {
        self.address("src.addr", client.address);
        if let Some(workload) = &client.workload {
            self.text("src.workload", &workload.name);
            self.text("src.namespace", &workload.namespace);
        }
        if let Some(identity) = &client.identity {
            self.text("src.identity", identity.as_str());
        }
    }

    fn destination(
        &mut self,
        destination: Option<&Destination>,
        endpoint: Option<&EndpointRecord>,
    ) {
        if let Some(destination) = destination {
            self.text("dst.service", &destination.hostname);
            self.number("dst.service_port", u64::from(destination.port));
        }
        if let Some(endpoint) = endpoint {
            self.address("dst.addr", endpoint.address);
            self.text("dst.workload", &endpoint.uid);
            if let Some(identity) = &endpoint.identity {
                self.text("dst.identity", identity.as_str());
            }
        }
    }

    fn duration(&mut self, name: &'static str, duration: Duration) {
        self.number(
            name,
            u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
        );
    }

    fn end(&mut self, reason: Option<Reason>, error: Option<&String>) {
        if let Some(reason) = reason {
            self.text("reason", reason.as_str());
        }
        if let Some(error) = error {
            self.text("error", error);
        }
    }
}

/// The line of a request.
pub(super) fn request(record: &RequestRecord) -> Line {
    let mut line = Line::new("request complete", record.reason);
    line.client(&record.client);
    line.destination(record.destination.as_deref(), record.endpoint.as_ref());
    line.text("reporter", record.reporter.as_str());
    line.text("protocol", record.protocol.as_str());
    line.text("version", format!("{:?}", record.version));
    line.text("method", record.method.as_str());
    line.text("authority", &record.authority);
    line.text("path", &record.path);
    line.text("listener", record.listener.as_deref().unwrap_or_default());
    line.text("route", record.route.as_deref().unwrap_or_default());
    line.number("status", u64::from(record.status));
    if let Some(status) = record.grpc_status {
        line.number("grpc_status", u64::from(status));
    }
    line.number("bytes_sent", record.bytes_sent);
    line.number("bytes_recv", record.bytes_received);
    line.duration("duration_ms", record.duration);
    if let Some(head) = record.response_head {
        line.duration("response_head_ms", head);
    }
    line.number("attempts", u64::from(record.attempts));
    line.text(
        "request_id",
        record.request_id.as_deref().unwrap_or_default(),
    );
    line.end(record.reason, record.error.as_ref());
    line
}

/// The line of a connection.
pub(super) fn connection(record: &ConnectionRecord) -> Line {
    let mut line = Line::new("connection complete", record.reason);
    line.client(&record.client);
    line.destination(record.destination.as_deref(), record.endpoint.as_ref());
    line.text("reporter", record.reporter.as_str());
    line.text("protocol", "tcp");
    line.text("target", &record.target);
    line.text("sni", record.sni.as_deref().unwrap_or_default());
    line.text("listener", record.listener.as_deref().unwrap_or_default());
    line.number("bytes_sent", record.bytes_sent);
    line.number("bytes_recv", record.bytes_received);
    line.duration("duration_ms", record.duration);
    if let Some(tls) = &record.tls {
        line.text("tls_version", &tls.version);
        line.text("tls_cipher", &tls.cipher);
    }
    line.end(record.reason, record.error.as_ref());
    line
}

/// Writes a line to `buffer`.
pub(super) fn append(buffer: &mut String, when: SystemTime, line: Line, format: AccessLogFormat) {
    let level = if line.failed { "error" } else { "info" };
    let message = line.message;
    if format == AccessLogFormat::Json {
        let mut object = serde_json::Map::new();
        object.insert("time".to_owned(), time::rfc3339(when).into());
        object.insert("level".to_owned(), level.into());
        object.insert("target".to_owned(), "access".into());
        object.insert("message".to_owned(), message.into());
        for (name, value) in line.fields {
            object.insert(name.to_owned(), value.into_json());
        }
        buffer.push_str(&serde_json::Value::Object(object).to_string());
    } else {
        // Writing to a String cannot fail.
        let _ = write!(buffer, "{} {level} access {message}", time::rfc3339(when));
        for (name, value) in line.fields {
            let _ = write!(buffer, " {name}={value}");
        }
    }
    buffer.push('\n');
}

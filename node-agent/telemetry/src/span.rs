//! Spans, and what OTLP calls them.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource as WireResource;
use opentelemetry_proto::tonic::trace::v1::span::Link;
use opentelemetry_proto::tonic::trace::v1::{
    self as otlp, ResourceSpans, ScopeSpans, Status, status,
};

/// Longest text of an attribute, bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// `SpanFlags`: the trace is sampled.
const SAMPLED: u32 = 1;

/// Whose span it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Of who answers.
    Server,
    /// Of who asks.
    Client,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
}

/// A span that has ended.
#[derive(Clone, Debug)]
pub struct Span {
    /// The trace.
    pub trace_id: u128,
    /// The span.
    pub span_id: u64,
    /// Its parent; `None` where the trace begins.
    pub parent: Option<u64>,
    /// Trace and span that it has to do with besides.
    pub link: Option<(u128, u64)>,
    /// `tracestate`, as it came.
    pub state: String,
    /// Whose it is.
    pub kind: SpanKind,
    /// What was done, of few values.
    pub name: String,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// Names by OpenTelemetry's conventions, and values.
    pub attributes: Vec<(Cow<'static, str>, Value)>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Span {
    /// Adds a text, as much of it as fits.
    pub fn text(&mut self, name: &'static str, text: impl AsRef<str>) {
        let text = text.as_ref();
        let text = text[..text.floor_char_boundary(MAX_TEXT_BYTES)].to_owned();
        self.attributes.push((name.into(), Value::Text(text)));
    }

    /// Adds a text that may not be there.
    pub fn known(&mut self, name: &'static str, text: Option<impl AsRef<str>>) {
        if let Some(text) = text {
            self.text(name, text);
        }
    }

    /// Adds a number.
    pub fn number(&mut self, name: &'static str, number: u64) {
        let number = i64::try_from(number).unwrap_or(i64::MAX);
        self.attributes.push((name.into(), Value::Number(number)));
    }

    /// Adds what a Telemetry resource asks for.
    pub fn tags(&mut self, tags: Vec<(Arc<str>, String)>) {
        let tags = tags.into_iter();
        let tags = tags.map(|(name, value)| (name.to_string().into(), Value::Text(value)));
        self.attributes.extend(tags);
    }

    fn into_wire(self) -> otlp::Span {
        let nanos = |time: SystemTime| {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        let started = nanos(self.started);
        let took = u64::try_from(self.duration.as_nanos()).unwrap_or(u64::MAX);
        let attributes = self.attributes.into_iter();
        let links = self.link.into_iter();
        otlp::Span {
            trace_id: self.trace_id.to_be_bytes().to_vec(),
            span_id: self.span_id.to_be_bytes().to_vec(),
            parent_span_id: self
                .parent
                .map_or_else(Vec::new, |id| id.to_be_bytes().to_vec()),
            trace_state: self.state,
            flags: SAMPLED,
            name: self.name,
            kind: match self.kind {
                SpanKind::Server => otlp::span::SpanKind::Server.into(),
                SpanKind::Client => otlp::span::SpanKind::Client.into(),
            },
            start_time_unix_nano: started,
            end_time_unix_nano: started.saturating_add(took),
            attributes: attributes
                .map(|(name, value)| key_value(&name, value))
                .collect(),
            links: links
                .map(|(trace_id, span_id)| Link {
                    trace_id: trace_id.to_be_bytes().to_vec(),
                    span_id: span_id.to_be_bytes().to_vec(),
                    ..Link::default()
                })
                .collect(),
            status: self.error.map(|message| Status {
                message,
                code: status::StatusCode::Error.into(),
            }),
            ..otlp::Span::default()
        }
    }
}

/// Who reports.
#[derive(Clone, Debug, Default)]
pub struct Resource {
    attributes: Vec<(&'static str, String)>,
}

impl Resource {
    /// One of a service of that name.
    #[must_use]
    pub fn new(service: impl Into<String>) -> Self {
        Self {
            attributes: vec![("service.name", service.into())],
        }
    }

    /// Adds an attribute, unless it is empty.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        let value = value.into();
        if !value.is_empty() {
            self.attributes.push((name, value));
        }
        self
    }

    /// A request for a collector.
    #[must_use]
    pub fn request(&self, spans: Vec<Span>) -> ExportTraceServiceRequest {
        let attributes = self.attributes.iter();
        let attributes =
            attributes.map(|(name, value)| key_value(name, Value::Text(value.clone())));
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(WireResource {
                    attributes: attributes.collect(),
                    ..WireResource::default()
                }),
                scope_spans: vec![ScopeSpans {
                    scope: Some(InstrumentationScope {
                        name: "karst".to_owned(),
                        version: env!("CARGO_PKG_VERSION").to_owned(),
                        ..InstrumentationScope::default()
                    }),
                    spans: spans.into_iter().map(Span::into_wire).collect(),
                    schema_url: String::new(),
                }],
                schema_url: String::new(),
            }],
        }
    }
}

fn key_value(name: &str, value: Value) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue {
            value: Some(match value {
                Value::Text(text) => any_value::Value::StringValue(text),
                Value::Number(number) => any_value::Value::IntValue(number),
            }),
        }),
        ..KeyValue::default()
    }
}

/// An id of a span, never 0.
#[must_use]
pub fn new_span_id() -> u64 {
    rand::random::<u64>() | 1
}

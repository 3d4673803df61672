//! The HTTP client's own spans: made before a request, sent on as W3C's `traceparent`, and exported by OTLP.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use tonic::transport::Endpoint;

/// The limit of connecting to a collector, and of its answer.
const COLLECTOR_LIMIT: Duration = Duration::from_secs(10);

/// The header that carries a span to whoever is asked.
pub const TRACEPARENT: &str = "traceparent";

/// The span of one request, which begins a trace.
pub struct ClientSpan {
    trace_id: u128,
    span_id: u64,
    method: String,
    started: SystemTime,
}

impl ClientSpan {
    /// Begins now.
    pub fn begin(method: &str) -> Self {
        Self {
            // Zero is no id.
            trace_id: rand::random::<u128>() | 1,
            span_id: rand::random::<u64>() | 1,
            method: method.to_owned(),
            started: SystemTime::now(),
        }
    }

    /// What goes with the request: sampled.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace_id, self.span_id)
    }

    /// Ends now, with an answer.
    pub fn end(self, status: u16) -> Result<Span> {
        Ok(Span {
            trace_id: self.trace_id.to_be_bytes().to_vec(),
            span_id: self.span_id.to_be_bytes().to_vec(),
            flags: 1,
            start_time_unix_nano: nanoseconds(self.started)?,
            end_time_unix_nano: nanoseconds(SystemTime::now())?,
            kind: SpanKind::Client.into(),
            attributes: vec![
                attribute(
                    "http.request.method",
                    Value::StringValue(self.method.clone()),
                ),
                attribute("http.response.status_code", Value::IntValue(status.into())),
            ],
            name: self.method,
            ..Span::default()
        })
    }
}

/// Sends spans to the collector at `host:port` and waits until it has taken them.
pub async fn export(collector: &str, spans: Vec<Span>) -> Result<()> {
    let service = Value::StringValue("karst-testapp".to_owned());
    let request = ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans {
            resource: Some(Resource {
                attributes: vec![attribute("service.name", service)],
                ..Resource::default()
            }),
            scope_spans: vec![ScopeSpans {
                spans,
                ..ScopeSpans::default()
            }],
            ..ResourceSpans::default()
        }],
    };
    let endpoint = Endpoint::from_shared(format!("http://{collector}"))
        .with_context(|| format!("{collector} is no collector's address"))?
        .connect_timeout(COLLECTOR_LIMIT)
        .timeout(COLLECTOR_LIMIT);
    let channel = endpoint
        .connect()
        .await
        .with_context(|| format!("connecting to the collector {collector}"))?;
    let answer = TraceServiceClient::new(channel)
        .export(request)
        .await
        .with_context(|| format!("exporting spans to {collector}"))?;
    let rejected = answer.into_inner().partial_success.unwrap_or_default();
    ensure!(
        rejected.rejected_spans == 0,
        "the collector did not take {} spans: {}",
        rejected.rejected_spans,
        rejected.error_message
    );
    Ok(())
}

fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue {
        key: name.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

fn nanoseconds(time: SystemTime) -> Result<u64> {
    let since = time.duration_since(UNIX_EPOCH)?;
    u64::try_from(since.as_nanos()).context("the clock is beyond what a span can say")
}

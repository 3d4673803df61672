//! A record as a span, by OpenTelemetry's conventions; what they have no name for has that of the access log.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Version};
use karst_identity::SpiffeId;
use karst_telemetry::settings::Tracing;
use karst_telemetry::span::{Span, SpanKind};

use super::Observed;
use crate::access_log::{ConnectionRecord, Destination, EndpointRecord, RequestRecord, Spoken};
use crate::authz::Denial;
use crate::client::Client;
use crate::reason::Reason;

/// Everything of a span that requests and connections have in common.
struct Common<'a> {
    client: &'a Client,
    destination: Option<&'a Destination>,
    endpoint: Option<&'a EndpointRecord>,
    reason: Option<Reason>,
    denial: Option<&'a Denial>,
    duration: Duration,
    bytes: (u64, u64),
}

impl Observed {
    /// The span of a request, if its trace is sampled.
    #[must_use]
    pub fn request_span(&self, record: &RequestRecord) -> Option<(&Arc<Tracing>, Span)> {
        let method = known_method(&record.method);
        let name = || match &record.route {
            Some(route) => format!("{method} {route}"),
            None => method.to_owned(),
        };
        let common = Common {
            client: &record.client,
            destination: record.destination.as_deref(),
            endpoint: record.endpoint.as_ref(),
            reason: record.reason,
            denial: record.denial.as_ref(),
            duration: record.duration,
            bytes: (record.bytes_received, record.bytes_sent),
        };
        let (tracing, mut span) = self.span(name, &common)?;
        span.text("http.request.method", method);
        span.text("url.scheme", record.scheme);
        // The query may hold secrets.
        span.text("url.path", record.uri.path());
        span.text(
            "server.address",
            String::from_utf8_lossy(record.authority.as_bytes()),
        );
        span.text(
            "network.protocol.version",
            match record.version {
                Version::HTTP_10 => "1.0",
                Version::HTTP_2 => "2",
                _ => "1.1",
            },
        );
        span.known("karst.route", record.route.as_ref());
        if record.status != 0 {
            span.number("http.response.status_code", u64::from(record.status));
        }
        if record.protocol == Spoken::Grpc {
            span.text("rpc.system", "grpc");
            if let Some(status) = record.grpc_status {
                span.number("rpc.grpc.status_code", u64::from(status));
            }
        }
        if record.attempts > 1 {
            span.number("http.request.resend_count", u64::from(record.attempts - 1));
        }
        if record.status >= 500 && span.error.is_none() {
            span.error = Some(format!("status {}", record.status));
        }
        span.tags(tracing.tags(&self.kept));
        Some((tracing, span))
    }

    /// The span of a connection, if its trace is sampled.
    #[must_use]
    pub fn connection_span(&self, record: &ConnectionRecord) -> Option<(&Arc<Tracing>, Span)> {
        let common = Common {
            client: &record.client,
            destination: record.destination.as_deref(),
            endpoint: record.endpoint.as_ref(),
            reason: record.reason,
            denial: record.denial.as_ref(),
            duration: record.duration,
            bytes: (record.bytes_received, record.bytes_sent),
        };
        let (tracing, mut span) = self.span(|| "tcp".to_owned(), &common)?;
        span.known("tls.client.server_name", record.sni.as_ref());
        span.tags(tracing.tags(&self.kept));
        Some((tracing, span))
    }

    fn span(
        &self,
        name: impl FnOnce() -> String,
        common: &Common<'_>,
    ) -> Option<(&Arc<Tracing>, Span)> {
        let tracing = self.reporting.tracing()?;
        let trace = self.trace.as_ref().filter(|trace| trace.own.is_sampled())?;
        let mut span = Span {
            trace_id: trace.own.trace_id(),
            span_id: trace.own.span_id(),
            parent: trace.parent,
            link: trace.link,
            state: trace.state.clone(),
            kind: SpanKind::Server,
            name: name(),
            started: trace.started,
            duration: common.duration,
            attributes: Vec::with_capacity(24),
            error: common.reason.map(|reason| reason.as_str().to_owned()),
        };
        let client = common.client;
        span.text("network.transport", "tcp");
        span.text("client.address", client.address.ip().to_string());
        span.number("client.port", u64::from(client.address.port()));
        if let Some(workload) = &client.workload {
            span.text("src.workload", &workload.name);
            span.text("src.namespace", &workload.namespace);
        }
        let identity = client.identity.as_ref();
        span.known("src.identity", identity.map(SpiffeId::as_str));
        if let Some(destination) = common.destination {
            span.text("dst.service", &destination.hostname);
            span.number("dst.service_port", u64::from(destination.port));
        }
        if let Some(endpoint) = common.endpoint {
            span.text("network.peer.address", endpoint.address.ip().to_string());
            span.number("network.peer.port", u64::from(endpoint.address.port()));
            let (namespace, name) = endpoint.namespaced_name();
            span.text("dst.workload", name);
            span.text("dst.namespace", namespace);
            if let Some(workload) = &endpoint.workload {
                span.text("dst.app", &workload.service);
                span.text("dst.version", &workload.version);
            }
        }
        span.known("reason", common.reason.map(Reason::as_str));
        span.known("error.type", common.reason.map(Reason::as_str));
        span.known("policy.name", common.denial.map(|denial| &*denial.policy));
        span.number("bytes_recv", common.bytes.0);
        span.number("bytes_sent", common.bytes.1);
        Some((tracing, span))
    }
}

/// A method as conventions want it: the unknown ones are one, since clients make them up.
fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::CONNECT => "CONNECT",
        Method::PATCH => "PATCH",
        Method::TRACE => "TRACE",
        _ => "HTTP",
    }
}

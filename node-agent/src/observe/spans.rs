//! A record as a span, by OpenTelemetry's conventions; what they have no name for has that of the access log.

use std::sync::Arc;

use karst_identity::SpiffeId;
use karst_telemetry::settings::{Kept, Tracing};
use karst_telemetry::span::{Span, SpanKind};

use super::Observed;
use crate::access_log::Record;
use crate::proxy::Direction;
use crate::reason::Reason;

impl Observed {
    /// The span of a connection, if its trace is sampled.
    pub fn span(&self, record: &Record) -> Option<(&Arc<Tracing>, Span)> {
        let tracing = self.reporting.tracing()?;
        let trace = self.trace.as_ref().filter(|trace| trace.own.is_sampled())?;
        let mut span = Span {
            trace_id: trace.own.trace_id(),
            span_id: trace.own.span_id(),
            parent: trace.parent,
            link: None,
            state: String::new(),
            kind: match record.direction {
                Direction::Outbound => SpanKind::Client,
                Direction::Inbound => SpanKind::Server,
            },
            name: format!("tcp {}", record.direction.as_str()),
            started: trace.started,
            duration: record.duration,
            attributes: Vec::with_capacity(20),
            error: record.reason.map(|reason| reason.as_str().to_owned()),
        };
        let (source, destination) = (&record.source, &record.destination);
        span.text("network.transport", "tcp");
        if let Some(address) = source.addr {
            span.text("client.address", address.ip().to_string());
            span.number("client.port", address.port().into());
        }
        if let Some(address) = destination.addr {
            span.text("server.address", address.ip().to_string());
            span.number("server.port", address.port().into());
        }
        if let Some(workload) = &source.workload {
            span.text("src.workload", &workload.name);
            span.text("src.namespace", &workload.namespace);
        }
        span.known(
            "src.identity",
            source.identity.as_ref().map(SpiffeId::as_str),
        );
        let service = record.service.as_ref();
        span.known("dst.service", service.map(|service| &service.spec.hostname));
        if let Some(workload) = &destination.workload {
            span.text("dst.workload", &workload.name);
            span.text("dst.namespace", &workload.namespace);
        }
        let identity = destination.identity.as_ref();
        span.known("dst.identity", identity.map(SpiffeId::as_str));
        span.text("direction", record.direction.as_str());
        span.text("connection_security_policy", record.security.as_str());
        span.known("reason", record.reason.map(Reason::as_str));
        span.known("error.type", record.reason.map(Reason::as_str));
        let denial = record.denial.as_ref();
        span.known("policy.name", denial.map(|denial| denial.policy_name()));
        span.number("bytes_recv", record.bytes_recv);
        span.number("bytes_sent", record.bytes_sent);
        // Connections have no headers.
        span.tags(tracing.tags(&Kept::default()));
        Some((tracing, span))
    }
}

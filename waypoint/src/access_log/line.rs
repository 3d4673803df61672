//! A record as a line.

use std::borrow::Cow;

use http::{HeaderValue, Version};
use karst_identity::SpiffeId;
use karst_process::access_log::Line;

use super::{ConnectionRecord, Destination, EndpointRecord, RequestRecord};
use crate::authn::Verified;
use crate::authz::Denial;
use crate::client::Client;
use crate::observe::Observed;

/// The fields of a request.
pub(super) fn request(line: &mut Line<'_>, record: &RequestRecord) {
    client(line, &record.client);
    destination(
        line,
        record.destination.as_deref(),
        record.endpoint.as_ref(),
    );
    line.text("reporter", record.reporter.as_str());
    line.text("protocol", record.protocol.as_str());
    line.text("version", version(record.version));
    line.text("method", record.method.as_str());
    line.text("authority", text(&record.authority));
    line.text("path", record.uri.path());
    line.known("listener", record.listener.as_ref());
    line.known("route", record.route.as_ref());
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
    line.known(
        "request_principal",
        record.token.as_deref().and_then(Verified::principal),
    );
    denial(line, record.denial.as_ref());
    line.known("audit.policy.name", record.audited.as_ref());
    if let Some(check) = &record.check {
        line.text("custom.provider", &check.provider);
        line.text("custom.result", check.result.as_str());
    }
    line.number("attempts", u64::from(record.attempts));
    line.known("request_id", record.request_id.as_ref().map(text));
    trace(line, record.observed.as_deref());
}

/// The fields of a connection.
pub(super) fn connection(line: &mut Line<'_>, record: &ConnectionRecord) {
    client(line, &record.client);
    destination(
        line,
        record.destination.as_deref(),
        record.endpoint.as_ref(),
    );
    line.text("reporter", record.reporter.as_str());
    line.text("protocol", "tcp");
    line.text("target", &record.target);
    line.known("sni", record.sni.as_ref());
    line.known("listener", record.listener.as_ref());
    line.number("bytes_sent", record.bytes_sent);
    line.number("bytes_recv", record.bytes_received);
    line.duration("duration_ms", record.duration);
    denial(line, record.denial.as_ref());
    if let Some(tls) = &record.tls {
        line.text("tls_version", &tls.version);
        line.text("tls_cipher", &tls.cipher);
    }
    trace(line, record.observed.as_deref());
}

fn trace(line: &mut Line<'_>, observed: Option<&Observed>) {
    if let Some(trace) = observed.and_then(Observed::context) {
        line.text("trace_id", format!("{:032x}", trace.trace_id()));
        line.text("span_id", format!("{:016x}", trace.span_id()));
    }
}

fn denial(line: &mut Line<'_>, denial: Option<&Denial>) {
    let Some(denial) = denial else {
        return;
    };
    line.text("policy.name", &denial.policy);
    if let Some(rule) = denial.rule {
        line.number("policy.rule", u64::from(rule));
    }
}

fn text(value: &HeaderValue) -> Cow<'_, str> {
    String::from_utf8_lossy(value.as_bytes())
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

fn client(line: &mut Line<'_>, client: &Client) {
    line.address("src.addr", client.address);
    if let Some(workload) = &client.workload {
        line.text("src.workload", &workload.name);
        line.text("src.namespace", &workload.namespace);
    }
    line.known(
        "src.identity",
        client.identity.as_ref().map(SpiffeId::as_str),
    );
}

fn destination(
    line: &mut Line<'_>,
    destination: Option<&Destination>,
    endpoint: Option<&EndpointRecord>,
) {
    if let Some(destination) = destination {
        line.text("dst.service", &destination.hostname);
        line.number("dst.service_port", u64::from(destination.port));
    }
    if let Some(endpoint) = endpoint {
        line.address("dst.addr", endpoint.address);
        let (namespace, name) = endpoint.namespaced_name();
        line.text("dst.workload", name);
        line.text("dst.namespace", namespace);
        if let Some(workload) = &endpoint.workload {
            line.text("dst.app", &workload.service);
            line.text("dst.version", &workload.version);
        }
        line.known(
            "dst.identity",
            endpoint.identity.as_ref().map(SpiffeId::as_str),
        );
    }
}

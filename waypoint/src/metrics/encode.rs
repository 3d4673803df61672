//! The metrics as a scrape shows them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use karst_process::metrics::histogram::Histogram;
use karst_process::metrics::{Out, gauge};
use karst_telemetry::metrics::TelemetryCollector;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::Metrics;
use super::traffic::{ConnectionCounts, Detail, RequestCounts, Traffic};

/// A registry with what the data plane counts. More may be registered.
#[must_use]
pub fn registry(metrics: &Arc<Metrics>) -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(&metrics.traffic)));
    registry.register_collector(Box::new(Arc::clone(&metrics.checks)));
    let telemetry = TelemetryCollector(Arc::clone(&metrics.telemetry));
    registry.register_collector(Box::new(telemetry));
    registry.register_collector(Box::new(Counters(Arc::clone(metrics))));
    registry
}

#[derive(Debug)]
struct Counters(Arc<Metrics>);

impl Collector for Counters {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out::new(encoder);
        let metrics = &self.0;
        out.build("karst-waypoint", env!("CARGO_PKG_VERSION"))?;
        metrics.handshakes.encode(&mut out)?;
        let help = "Connections open now, by where they came to";
        let connections = [
            (vec![("side", "mesh")], metrics.mesh_connections.get()),
            (vec![("side", "gateway")], metrics.gateway_connections.get()),
        ];
        out.gauges("karst_waypoint_connections", help, connections)?;
        let help = "Connections taken";
        out.counter("karst_waypoint_accepted", help, metrics.connections.get())?;
        let help = "Requests under way";
        out.gauge(
            "karst_waypoint_requests",
            help,
            metrics.requests_active.get(),
        )?;
        let help = "Connections, streams and requests refused, by reason";
        let refusals = metrics.refusals.read();
        let refusals = refusals
            .iter()
            .map(|(reason, count)| (vec![("reason", *reason)], *count));
        out.counters("karst_waypoint_refusals", help, refusals)?;
        let help = "Requests and connections that a policy has refused, logged or, on trial, would have refused or allowed";
        let policies = metrics.policies.read();
        let policies = policies.iter().map(|(policy, outcome, count)| {
            let labels = vec![("policy", &**policy), ("outcome", outcome.as_str())];
            (labels, *count)
        });
        out.counters("karst_waypoint_policy_decisions", help, policies)?;
        let help = "Retries of requests, by whether the budget allowed them";
        let retries = [
            (vec![("result", "sent")], metrics.retries.get()),
            (vec![("result", "denied")], metrics.retries_denied.get()),
        ];
        out.counters("karst_waypoint_retries", help, retries)?;
        let help = "Requests mirrored";
        out.counter("karst_waypoint_mirrors", help, metrics.mirrors.get())?;
        let help = "Ports of the gateway that could not be opened";
        out.gauge(
            "karst_waypoint_ports_failed",
            help,
            metrics.ports_failed.get(),
        )?;
        let help = "Accepts that failed for lack of file descriptors or memory";
        out.counter("karst_accept_failures", help, metrics.accept_failures.get())?;
        let help = "Certificates issued to this proxy";
        out.counter(
            "karst_certificates_issued",
            help,
            metrics.certificates_issued.get(),
        )?;
        let help = "Certificate requests that failed";
        out.counter(
            "karst_certificates_failed",
            help,
            metrics.certificates_failed.get(),
        )?;
        let help = "Combinations of labels that Istio's metrics have now";
        let series = gauge(metrics.traffic.len());
        out.gauge("karst_waypoint_series", help, series)?;
        let help =
            "Combinations of labels counted without their client because there were too many";
        let folded = metrics.traffic.folded();
        out.counter("karst_waypoint_series_folded", help, folded)
    }
}

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;

fn borrowed<'l>(labels: &'l Labels<'_>) -> Vec<(&'l str, &'l str)> {
    labels
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect()
}

impl Collector for Traffic {
    fn encode(&self, encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut out = Out::new(encoder);
        let series = self.snapshot();
        let (mut requests, mut connections) = (Vec::new(), Vec::new());
        for one in &series {
            let labels = one.key.labels();
            match &one.detail {
                Detail::Requests(counts) => requests.push((labels, one.key.is_grpc(), &**counts)),
                Detail::Connections(counts) => connections.push((labels, counts)),
            }
        }
        self::requests(&mut out, &requests)?;
        self::connections(&mut out, &connections)
    }
}

/// Labels, whether it is gRPC, and counts.
type Requests<'a> = (Labels<'a>, bool, &'a RequestCounts);

fn requests(out: &mut Out<'_>, series: &[Requests<'_>]) -> fmt::Result {
    let all = series.iter();
    let counts = all.map(|(labels, _, counts)| (borrowed(labels), counts.duration.count()));
    out.counters("istio_requests", "Requests", counts)?;
    type Messages = fn(&RequestCounts) -> &AtomicU64;
    let messages: [(&str, &str, Messages); 2] = [
        (
            "istio_request_messages",
            "Messages that clients have sent by gRPC",
            |c| &c.request_messages,
        ),
        (
            "istio_response_messages",
            "Messages that endpoints have sent by gRPC",
            |c| &c.response_messages,
        ),
    ];
    for (name, help, get) in messages {
        let grpc = series.iter().filter(|(_, is_grpc, _)| *is_grpc);
        let values =
            grpc.map(|(labels, _, counts)| (borrowed(labels), get(counts).load(Ordering::Relaxed)));
        out.counters(name, help, values)?;
    }
    let durations = series.iter();
    let durations = durations.map(|(labels, _, counts)| (borrowed(labels), counts.duration.read()));
    let help = "Time from a request's head to the end of its response";
    out.traced_histograms("istio_request_duration_milliseconds", help, durations)?;
    type Get = fn(&RequestCounts) -> &Histogram;
    let histograms: [(&str, &str, Get); 2] = [
        ("istio_request_bytes", "Bytes of requests' bodies", |c| {
            &c.request_bytes
        }),
        ("istio_response_bytes", "Bytes of responses' bodies", |c| {
            &c.response_bytes
        }),
    ];
    for (name, help, get) in histograms {
        let all = series.iter();
        let values = all.map(|(labels, _, counts)| (borrowed(labels), get(counts).read()));
        out.histograms(name, help, values)?;
    }
    Ok(())
}

fn connections(out: &mut Out<'_>, series: &[(Labels<'_>, &ConnectionCounts)]) -> fmt::Result {
    type Get = fn(&ConnectionCounts) -> &AtomicU64;
    let counters: [(&str, &str, Get); 4] = [
        (
            "istio_tcp_connections_opened",
            "Connections established or tried",
            |c| &c.opened,
        ),
        (
            "istio_tcp_connections_closed",
            "Connections that ended or failed",
            |c| &c.closed,
        ),
        (
            "istio_tcp_received_bytes",
            "Bytes received from clients",
            |c| &c.received,
        ),
        ("istio_tcp_sent_bytes", "Bytes sent to clients", |c| &c.sent),
    ];
    for (name, help, get) in counters {
        let all = series.iter();
        let values =
            all.map(|(labels, counts)| (borrowed(labels), get(counts).load(Ordering::Relaxed)));
        out.counters(name, help, values)?;
    }
    Ok(())
}

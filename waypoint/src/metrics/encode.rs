//! The metrics as a scrape shows them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use karst_process::metrics::histogram::Histogram;
use karst_process::metrics::{Out, gauge};
use karst_telemetry::metrics::TelemetryCollector;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::Metrics;
use super::traffic::{ConnectionCounts, Detail, RequestCounts, Series, Traffic};

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

type Labelled<'a> = (Vec<(&'static str, Cow<'a, str>)>, &'a Series);

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let series = self.snapshot();
        let labelled: Vec<Labelled<'_>> = series.iter().map(|s| (s.key.labels(), &**s)).collect();
        requests(&mut encoder, &labelled)?;
        connections(&mut encoder, &labelled)
    }
}

fn requests(encoder: &mut DescriptorEncoder, series: &[Labelled<'_>]) -> fmt::Result {
    let series: Vec<_> = series
        .iter()
        .filter_map(|(labels, series)| match &series.detail {
            Detail::Requests(counts) => Some((labels, *series, &**counts)),
            Detail::Connections(_) => None,
        })
        .collect();
    let help = "Requests";
    let mut metric =
        encoder.encode_descriptor("istio_requests", help, None, MetricType::Counter)?;
    for &(labels, _, counts) in &series {
        let requests = counts.duration.read().count;
        metric
            .encode_family(labels)?
            .encode_counter::<NoLabelSet, _, u64>(&requests, None)?;
    }
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
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, _, counts) in series.iter().filter(|(_, series, _)| series.key.is_grpc()) {
            let count = get(counts).load(Ordering::Relaxed);
            metric
                .encode_family(*labels)?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
    }
    type Get = fn(&RequestCounts) -> &Histogram;
    let histograms: [(&str, &str, Get); 3] = [
        (
            "istio_request_duration_milliseconds",
            "Time from a request's head to the end of its response",
            |c| &c.duration,
        ),
        ("istio_request_bytes", "Bytes of requests' bodies", |c| {
            &c.request_bytes
        }),
        ("istio_response_bytes", "Bytes of responses' bodies", |c| {
            &c.response_bytes
        }),
    ];
    for (name, help, get) in histograms {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for &(labels, _, counts) in &series {
            let reading = get(counts).read();
            metric
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(
                    reading.sum,
                    reading.count,
                    &reading.buckets,
                    None,
                )?;
        }
    }
    Ok(())
}

fn connections(encoder: &mut DescriptorEncoder, series: &[Labelled<'_>]) -> fmt::Result {
    type Get = fn(&ConnectionCounts) -> u64;
    let counters: [(&str, &str, Get); 4] = [
        (
            "istio_tcp_connections_opened",
            "Connections established or tried",
            |c| c.opened.load(Ordering::Relaxed),
        ),
        (
            "istio_tcp_connections_closed",
            "Connections that ended or failed",
            |c| c.closed.load(Ordering::Relaxed),
        ),
        (
            "istio_tcp_received_bytes",
            "Bytes received from clients",
            |c| c.received.load(Ordering::Relaxed),
        ),
        ("istio_tcp_sent_bytes", "Bytes sent to clients", |c| {
            c.sent.load(Ordering::Relaxed)
        }),
    ];
    for (name, help, get) in counters {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, series) in series {
            if let Detail::Connections(counts) = &series.detail {
                metric
                    .encode_family(labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&get(counts), None)?;
            }
        }
    }
    Ok(())
}

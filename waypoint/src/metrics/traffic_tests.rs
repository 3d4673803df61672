use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use http::header::HeaderMap;
use karst_api::telemetry as wire;
use karst_identity::SpiffeId;
use karst_process::metrics::{Format, text};
use karst_telemetry::settings::Reporting;

use super::{GONE_TICKS, MAX_SERIES, SILENT_TICKS, Traffic, TrafficCache};
use crate::access_log::{ConnectionRecord, Destination, EndpointRecord, Reporter, RequestRecord};
use crate::client::Client;
use crate::metrics::{Metrics, encode};
use crate::observe::Observed;
use crate::reason::Reason;
use crate::workload::WorkloadLabels;

fn client(account: &str) -> Client {
    let identity = SpiffeId::new("t", "a", account).expect("valid");
    Client::new("10.0.0.1:4000".parse().expect("address"), Some(identity))
}

fn request(account: &str) -> RequestRecord {
    let mut record = RequestRecord::new(Reporter::Waypoint, client(account));
    record.status = 200;
    record.duration = Duration::from_millis(7);
    record.destination = Some(Arc::new(Destination {
        namespace: Arc::from("shop"),
        name: Arc::from("front"),
        hostname: Arc::from("front.shop.svc.cluster.local"),
        port: 80,
    }));
    record
}

fn line(text: &str, name: &str) -> String {
    let found = text.lines().find(|line| line.starts_with(name));
    found
        .unwrap_or_else(|| panic!("{name} in {text}"))
        .to_owned()
}

#[test]
fn a_request_has_istios_labels() {
    let metrics = Arc::new(Metrics::default());
    metrics.request_finished(&request("cart"));
    let mut failed = request("cart");
    failed.status = 503;
    failed.reason = Some(Reason::Other("no_endpoints"));
    metrics.request_finished(&failed);
    let text = text(&encode::registry(&metrics)).expect("encodes");
    let good = line(&text, "istio_requests_total{");
    for label in [
        r#"reporter="waypoint""#,
        r#"source_principal="spiffe://t/ns/a/sa/cart""#,
        r#"destination_service="front.shop.svc.cluster.local""#,
        r#"connection_security_policy="mutual_tls""#,
    ] {
        assert!(good.contains(label), "{label} in {good}");
    }
    assert!(text.contains(r#"response_flags="UH""#), "{text}");
    assert!(text.contains(r#"response_code="503""#), "{text}");
    assert!(
        text.contains(r#"_bucket{le="+Inf""#),
        "quantiles need it: {text}"
    );
    let sum = line(&text, "istio_request_duration_milliseconds_sum{");
    assert!(sum.ends_with(" 7.0"), "{sum}");
    let last = text
        .lines()
        .filter(|line| line.starts_with("istio_request_duration_milliseconds_bucket{"))
        .find(|line| line.contains(r#"le="10.0""#) && line.contains(r#"response_code="200""#));
    assert!(last.is_some_and(|line| line.ends_with(" 1")), "{text}");
}

#[test]
fn a_connection_is_open_until_it_is_dropped() {
    let metrics = Arc::new(Metrics::default());
    let mut cache = TrafficCache::new(Arc::clone(&metrics.traffic));
    let record = ConnectionRecord::new(Reporter::Gateway, client("cart"), String::new());
    let mut open = cache.opened(&record);
    open.total(10, 20);
    open.total(15, 20);
    let read = || text(&encode::registry(&metrics)).expect("encodes");
    let text = read();
    assert!(line(&text, "istio_tcp_connections_closed_total{").ends_with(" 0"));
    assert!(line(&text, "istio_tcp_received_bytes_total{").ends_with(" 15"));
    drop(open);
    assert!(line(&read(), "istio_tcp_connections_closed_total{").ends_with(" 1"));
}

fn version(version: &str) -> Arc<WorkloadLabels> {
    Arc::new(WorkloadLabels {
        name: format!("front-{version}"),
        namespace: "shop".to_owned(),
        service: "front".to_owned(),
        version: version.to_owned(),
        cluster: "Kubernetes".to_owned(),
    })
}

fn request_to(workload: &Arc<WorkloadLabels>) -> RequestRecord {
    let mut record = request("cart");
    record.endpoint = Some(EndpointRecord {
        uid: "Kubernetes//Pod/shop/front-0".into(),
        address: "10.0.0.2:8080".parse().expect("address"),
        identity: SpiffeId::new("t", "shop", "front").ok(),
        workload: Some(Arc::clone(workload)),
    });
    record
}

#[test]
fn the_destination_is_the_endpoint_that_was_chosen() {
    let metrics = Arc::new(Metrics::default());
    metrics.request_finished(&request_to(&version("v1")));
    metrics.request_finished(&request_to(&version("v2")));
    let mut plain = request_to(&version("v3"));
    plain.endpoint.as_mut().expect("is there").identity = None;
    metrics.request_finished(&plain);
    let text = text(&encode::registry(&metrics)).expect("encodes");
    let of = |version: &str| {
        let label = format!("destination_workload=\"front-{version}\"");
        let mut lines = text.lines();
        let found =
            lines.find(|line| line.starts_with("istio_requests_total") && line.contains(&label));
        found.unwrap_or_else(|| panic!("{label} in {text}"))
    };
    for label in [
        r#"destination_canonical_service="front""#,
        r#"destination_canonical_revision="v2""#,
        r#"destination_workload_namespace="shop""#,
        r#"destination_principal="spiffe://t/ns/shop/sa/front""#,
        r#"destination_app="front""#,
        r#"destination_version="v2""#,
        r#"destination_cluster="Kubernetes""#,
    ] {
        assert!(of("v2").contains(label), "{label} in {}", of("v2"));
    }
    assert!(
        of("v2").ends_with(" 1") && of("v1").ends_with(" 1"),
        "{text}"
    );
    for label in [
        r#"destination_principal="unknown""#,
        r#"destination_workload_namespace="shop""#,
    ] {
        assert!(of("v3").contains(label), "{label} in {}", of("v3"));
    }
}

#[test]
fn a_series_ends_with_the_workload_it_names() {
    let traffic = Arc::<Traffic>::default();
    let mut cache = TrafficCache::new(Arc::clone(&traffic));
    let stays = HashSet::from([version("v1")]);
    cache.request(&request_to(&version("v1")));
    cache.request(&request_to(&version("v2")));
    cache.request(&request("cart"));
    let mut connection = ConnectionRecord::new(Reporter::Waypoint, client("cart"), String::new());
    connection.endpoint = request_to(&version("v2")).endpoint;
    let open = cache.opened(&connection);
    for _ in 0..GONE_TICKS {
        assert_eq!(
            traffic.expire(&stays),
            0,
            "its last values are to be scraped"
        );
    }
    assert_eq!(traffic.expire(&stays), 1);
    assert_eq!(traffic.len(), 3, "a connection is still open");
    drop(open);
    assert_eq!(traffic.expire(&stays), 1);
    for _ in GONE_TICKS + 2..SILENT_TICKS {
        assert_eq!(traffic.expire(&stays), 0);
    }
}

#[test]
fn silent_series_go_and_come_back() {
    let traffic = Arc::<Traffic>::default();
    let mut cache = TrafficCache::new(Arc::clone(&traffic));
    cache.request(&request("cart"));
    for _ in 0..SILENT_TICKS {
        assert_eq!(traffic.expire(&HashSet::new()), 0);
    }
    assert_eq!(traffic.expire(&HashSet::new()), 1);
    assert!(traffic.is_empty());
    // The cache still has it, and must not count where nobody looks.
    cache.request(&request("cart"));
    assert_eq!(traffic.len(), 1);
}

#[test]
fn clients_do_not_make_series_without_end() {
    let traffic = Arc::<Traffic>::default();
    let mut cache = TrafficCache::new(Arc::clone(&traffic));
    for number in 0..MAX_SERIES + 100 {
        cache.request(&request(&format!("c{number}")));
    }
    assert_eq!(traffic.len(), MAX_SERIES + 1);
    assert_eq!(traffic.folded(), 100);
}

/// What is observed of a request with this `traceparent`, where no trace begins at the proxy itself.
fn observed(traceparent: &str) -> Option<Box<Observed>> {
    let (reporting, problem) = Reporting::read(&wire::Reporting {
        tracing: Some(wire::Tracing {
            collector: "obs/otel/4317".to_owned(),
            ..wire::Tracing::default()
        }),
        ..wire::Reporting::default()
    });
    assert_eq!(problem, None);
    let mut headers = HeaderMap::new();
    headers.insert("traceparent", traceparent.parse().expect("value"));
    Some(Observed::request(&Arc::new(reporting), &headers, None))
}

/// A request of a trace, and the id of its own span.
fn traced(trace: u128, flags: &str, millis: u64) -> (RequestRecord, u64) {
    let mut record = request("cart");
    record.duration = Duration::from_millis(millis);
    record.observed = observed(&format!("00-{trace:032x}-b7ad6b7169203331-{flags}"));
    let own = record.observed.as_ref().and_then(|it| it.context());
    let span = own.expect("a trace").span_id();
    (record, span)
}

/// The buckets of `istio_request_duration_milliseconds` with their exemplars, of the series with these labels.
fn durations(text: &str, label: &str) -> Vec<(String, String, String)> {
    let start = r#"istio_request_duration_milliseconds_bucket{le=""#;
    let lines = text.lines().filter(|line| line.contains(label));
    let buckets = lines.filter_map(|line| line.strip_prefix(start));
    let parts = |line: &str| {
        let (le, line) = line.split_once('"').expect("a bound");
        let (_, count) = line.split_once("} ").expect("labels");
        let (count, exemplar) = count.split_once(" # ").unwrap_or((count, ""));
        (le.to_owned(), count.to_owned(), exemplar.to_owned())
    };
    buckets.map(parts).collect()
}

fn bucket(text: &str, label: &str, le: &str) -> (String, String) {
    let all = durations(text, label);
    assert_eq!(all.len(), 20, "{label} in {text}");
    let found = all.into_iter().find(|(bound, _, _)| bound == le);
    let (_, count, exemplar) = found.expect("the bound is there");
    (count, exemplar)
}

const GOOD: &str = r#"response_code="200""#;

#[test]
fn sampled_requests_are_exemplars_of_how_long_they_took() {
    let metrics = Arc::new(Metrics::default());
    let (first, _) = traced(0xa, "01", 7);
    let (second, span) = traced(0xb, "01", 8);
    let (unsampled, _) = traced(0xc, "00", 9);
    let (other, other_span) = traced(0xd, "01", 40);
    let (longest, longest_span) = traced(0xe, "01", 4_000_000);
    let (mut failed, failed_span) = traced(0xf, "01", 7);
    failed.status = 503;
    let plain = request("cart");
    for record in [
        &first, &second, &unsampled, &plain, &other, &longest, &failed,
    ] {
        metrics.request_finished(record);
    }
    let text = text(&encode::registry(&metrics)).expect("encodes");
    let labels =
        |trace: u128, span: u64| format!("{{trace_id=\"{trace:032x}\",span_id=\"{span:016x}\"}} ");
    // The last sampled one is it, and what is not sampled does not take its place.
    let (count, exemplar) = bucket(&text, GOOD, "10.0");
    assert_eq!(count, "4");
    let start = format!("{}8.0 ", labels(0xb, span));
    assert!(exemplar.starts_with(&start), "{exemplar}");
    let (count, exemplar) = bucket(&text, GOOD, "50.0");
    assert_eq!(count, "5");
    let start = format!("{}40.0 ", labels(0xd, other_span));
    assert!(exemplar.starts_with(&start), "{exemplar}");
    let (count, exemplar) = bucket(&text, GOOD, "+Inf");
    assert_eq!(count, "6");
    let start = format!("{}4000000.0 ", labels(0xe, longest_span));
    assert!(exemplar.starts_with(&start), "{exemplar}");
    let all = durations(&text, GOOD);
    assert_eq!(all.iter().filter(|it| !it.2.is_empty()).count(), 3);
    // Another series has its own.
    let (count, exemplar) = bucket(&text, r#"response_code="503""#, "10.0");
    assert_eq!(count, "1");
    let start = format!("{}7.0 ", labels(0xf, failed_span));
    assert!(exemplar.starts_with(&start), "{exemplar}");
    // Nothing else has any, and who does not ask for OpenMetrics gets none.
    assert_eq!(text.matches("trace_id").count(), 4, "{text}");
    assert!(!text.contains("__"), "{text}");
    let plain = Format::Text.of(text);
    assert!(!plain.contains("trace_id"), "{plain}");
    assert_eq!(bucket(&plain, GOOD, "10.0").0, "4");
}

#[test]
fn exemplars_go_with_their_series() {
    let metrics = Arc::new(Metrics::default());
    let mut cache = TrafficCache::new(Arc::clone(&metrics.traffic));
    let (record, span) = traced(0xa, "01", 7);
    cache.request(&record);
    let read = || text(&encode::registry(&metrics)).expect("encodes");
    assert!(read().contains(&format!("span_id=\"{span:016x}\"")));
    for _ in 0..=SILENT_TICKS {
        metrics.traffic.expire(&HashSet::new());
    }
    assert!(metrics.traffic.is_empty());
    assert!(!read().contains("span_id"));
    // The series comes back without what it had.
    cache.request(&request("cart"));
    let text = read();
    assert_eq!(bucket(&text, GOOD, "10.0"), ("1".to_owned(), String::new()));
    let (record, span) = traced(0xb, "01", 7);
    cache.request(&record);
    let (count, exemplar) = bucket(&read(), GOOD, "10.0");
    assert_eq!(count, "2");
    assert!(exemplar.contains(&format!("{span:016x}")), "{exemplar}");
}

/// What a span was made of is what the exemplar names.
#[test]
fn an_exemplar_is_of_the_span_that_is_exported() {
    for (flags, is_sampled) in [("01", true), ("00", false)] {
        let (record, span) = traced(0xa, flags, 7);
        let observed = record.observed.as_ref().expect("observed");
        let exported = observed.request_span(&record).map(|(_, span)| span);
        assert_eq!(exported.is_some(), is_sampled);
        let sampled = observed.sampled();
        assert_eq!(
            exported.map(|it| (it.trace_id, it.span_id)),
            sampled.map(|it| (it.trace_id(), it.span_id()))
        );
        assert_eq!(sampled.is_some_and(|it| it.span_id() == span), is_sampled);
    }
}

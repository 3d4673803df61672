use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashSet;
use karst_identity::SpiffeId;
use karst_process::metrics::text;

use super::{GONE_TICKS, MAX_SERIES, SILENT_TICKS, Traffic, TrafficCache};
use crate::access_log::{ConnectionRecord, Destination, EndpointRecord, Reporter, RequestRecord};
use crate::client::Client;
use crate::metrics::{Metrics, encode};
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

use std::sync::Arc;
use std::time::Duration;

use karst_identity::SpiffeId;
use karst_process::metrics::text;

use super::{MAX_SERIES, SILENT_TICKS, Traffic, TrafficCache};
use crate::access_log::{ConnectionRecord, Destination, Reporter, RequestRecord};
use crate::client::Client;
use crate::metrics::{Metrics, encode};
use crate::reason::Reason;

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

#[test]
fn silent_series_go_and_come_back() {
    let traffic = Arc::<Traffic>::default();
    let mut cache = TrafficCache::new(Arc::clone(&traffic));
    cache.request(&request("cart"));
    for _ in 0..SILENT_TICKS {
        assert_eq!(traffic.expire(), 0);
    }
    assert_eq!(traffic.expire(), 1);
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

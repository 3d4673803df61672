use std::sync::Arc;
use std::time::Instant;

use karst_identity::SpiffeId;
use prometheus_client::registry::Registry;

use super::{MAX_SERIES, Parties, Reporter, Security, SeriesCache, TrafficMetrics, uids};
use crate::reason::ResponseFlag;
use crate::state::workload::Workload;

fn workload(name: &str) -> Workload {
    Workload {
        uid: Arc::from(name),
        workload_name: Arc::from(name),
        namespace: Arc::from("ns"),
        canonical_name: Arc::from("app"),
        identity: SpiffeId::new("cluster.local", "ns", name).ok(),
        ..Workload::default()
    }
}

fn parties<'a>(source: &'a Workload, destination: &'a Workload) -> Parties<'a> {
    Parties {
        reporter: Reporter::Source,
        security: Security::MutualTls,
        source: Some(source),
        source_identity: source.identity.as_ref(),
        destination: Some(destination),
        destination_identity: destination.identity.as_ref(),
        service: None,
    }
}

fn scrape(metrics: &Arc<TrafficMetrics>) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Arc::clone(metrics)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("encodes");
    text
}

#[test]
fn same_parties_share_a_series_across_workers_and_revisions() {
    let metrics = Arc::new(TrafficMetrics::default());
    let (mut one, mut two) = (
        SeriesCache::new(metrics.clone()),
        SeriesCache::new(metrics.clone()),
    );
    let (a, b) = (workload("a"), workload("b"));
    let series = one.get(&parties(&a, &b));
    assert!(Arc::ptr_eq(&series, &two.get(&parties(&a, &b))));
    // Same labels, new revision: an update of a workload does not split its series.
    let newer = workload("a");
    assert!(Arc::ptr_eq(&series, &one.get(&parties(&newer, &b))));
    let plain = Parties {
        security: Security::Unknown,
        ..parties(&a, &b)
    };
    assert!(!Arc::ptr_eq(&series, &one.get(&plain)));
}

#[test]
fn identity_of_an_unknown_peer_is_a_label() {
    let metrics = Arc::new(TrafficMetrics::default());
    let mut cache = SeriesCache::new(metrics.clone());
    let b = workload("b");
    let id = SpiffeId::new("cluster.local", "elsewhere", "sa").expect("id");
    let other = SpiffeId::new("cluster.local", "elsewhere", "sb").expect("id");
    let from = |id| Parties {
        source: None,
        source_identity: Some(id),
        ..parties(&b, &b)
    };
    let first = cache.get(&from(&id));
    assert!(!Arc::ptr_eq(&first, &cache.get(&from(&other))));
    first.opened();
    let text = scrape(&metrics);
    assert!(
        text.contains("source_principal=\"spiffe://cluster.local/ns/elsewhere/sa/sa\""),
        "{text}"
    );
    assert!(
        text.contains("source_workload_namespace=\"elsewhere\""),
        "{text}"
    );
}

#[test]
fn scrape_has_istio_names_and_all_labels() {
    let metrics = Arc::new(TrafficMetrics::default());
    let (a, b) = (workload("a"), workload("b"));
    let series = SeriesCache::new(metrics.clone()).get(&parties(&a, &b));
    series.opened();
    series.bytes(10, 20);
    series.closed(Instant::now());
    series.failed(ResponseFlag::Deny);
    let text = scrape(&metrics);
    let line = |start: &str| {
        text.lines()
            .find(|l| l.starts_with(start))
            .unwrap_or_else(|| panic!("{start} in {text}"))
    };
    assert!(line("istio_tcp_connections_opened_total{").ends_with(" 1"));
    assert!(line("istio_tcp_connections_closed_total{").ends_with(" 1"));
    assert!(line("istio_tcp_received_bytes_total{").ends_with(" 10"));
    assert!(line("istio_tcp_sent_bytes_total{").ends_with(" 20"));
    let failed = line("istio_tcp_connections_failed_total{");
    assert!(
        failed.contains("response_flags=\"DENY\"") && failed.ends_with(" 1"),
        "{failed}"
    );
    let opened = line("istio_tcp_connections_opened_total{");
    assert_eq!(opened.matches("=\"").count(), 27, "{opened}");
    for label in [
        "reporter=\"source\"",
        "connection_security_policy=\"mutual_tls\"",
        "source_zone=\"unknown\"",
    ] {
        assert!(opened.contains(label), "{label} in {opened}");
    }
}

#[test]
fn series_expire_with_their_workload_but_not_while_live_or_fresh() {
    let metrics = Arc::new(TrafficMetrics::default());
    let (a, b) = (workload("a"), workload("b"));
    let series = SeriesCache::new(metrics.clone()).get(&parties(&a, &b));
    series.opened();
    let forget_b = |uid: &str| uid != "b";
    let fresh = super::now_ms();
    let late = fresh + 600_000;
    assert_eq!(metrics.expire_at(late, forget_b), 0, "live");
    series.closed(Instant::now());
    assert_eq!(metrics.expire_at(fresh, forget_b), 0, "fresh");
    assert_eq!(metrics.expire_at(late, |_| true), 0, "both exist");
    assert_eq!(uids(&metrics).len(), 2);
    assert_eq!(metrics.expire_at(late, forget_b), 1);
    assert!(uids(&metrics).is_empty());
}

#[test]
fn beyond_the_limit_far_ends_are_left_out() {
    let metrics = Arc::new(TrafficMetrics::default());
    let mut cache = SeriesCache::new(metrics.clone());
    let here = workload("here");
    for number in 0..MAX_SERIES + 50 {
        let mut there = workload(&format!("w{number}"));
        there.revision = number as u64 + 1;
        cache.get(&parties(&here, &there)).opened();
    }
    assert_eq!(metrics.len(), MAX_SERIES + 1);
    assert_eq!(metrics.folded(), 50);
    let text = scrape(&metrics);
    let opened: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("istio_tcp_connections_opened_total{"))
        .collect();
    assert_eq!(opened.len(), MAX_SERIES + 1);
    let folded: Vec<_> = opened.iter().filter(|line| !line.ends_with(" 1")).collect();
    assert_eq!(folded.len(), 1, "{folded:?}");
    for label in [
        "source_workload=\"here\"",
        "destination_workload=\"unknown\"",
    ] {
        assert!(folded[0].contains(label), "{label} in {}", folded[0]);
    }
    assert!(folded[0].ends_with(" 50"), "{}", folded[0]);
    assert!(text.contains("\nkarst_tcp_series_folded_total 50\n"));
    // One that is there goes on being counted in full.
    let mut first = workload("w0");
    first.revision = 1;
    assert_eq!(
        cache
            .get(&parties(&here, &first))
            .opened
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
}

//! What a real Prometheus gets of agents, waypoint and controller: the standard series of Istio with their labels,
//! histograms, and our own.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use karst_harness::until;
use karst_lab_tests::prometheus::{Prometheus, lint};
use karst_lab_tests::shop::Shop;
use serde_json::Value;

static SHOP: LazyLock<Result<Shop>> = LazyLock::new(|| Shop::open("met"));

fn shop() -> Result<&'static Shop> {
    SHOP.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// Where the waypoint serves its metrics.
fn waypoint(shop: &Shop) -> Result<String> {
    shop.world.at("shop/waypoint", 15020)
}

/// A node has one port for a Prometheus, and one test at a time has it.
static PORT: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    // A test that failed has let go of its own.
    PORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A Prometheus on node1, which scrapes its agent, the waypoint and the controller.
fn watch_near(shop: &Shop) -> Result<Prometheus<'_>> {
    let lab = &shop.world.lab;
    let agent = ("agent", "127.0.0.1:15020".to_owned());
    let waypoint = ("waypoint", waypoint(shop)?);
    let controller = ("controller", lab.controller_metrics_address());
    Prometheus::start(lab, "node1", &[agent, waypoint, controller])
}

/// One on node2, which scrapes its agent.
fn watch_far(shop: &Shop) -> Result<Prometheus<'_>> {
    let agent = ("agent", "127.0.0.1:15020".to_owned());
    Prometheus::start(&shop.world.lab, "node2", &[agent])
}

/// Labels that Istio's dashboards and Kiali select and group by.
const STANDARD: &[&str] = &[
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_flags",
    "connection_security_policy",
];

fn has_standard_labels(series: &Value) -> Result<()> {
    for label in STANDARD {
        let value = series["metric"][*label].as_str().unwrap_or_default();
        ensure!(!value.is_empty(), "{label} in {series}");
    }
    Ok(())
}

#[test]
fn a_real_prometheus_gets_the_standard_series() -> Result<()> {
    let shop = shop()?;
    let world = &shop.world;
    let _alone = alone();
    let (near, far) = (watch_near(shop)?, watch_far(shop)?);
    let mesh = |more: &str| {
        format!(
            "connection_security_policy=\"mutual_tls\",source_workload=\"client\",source_workload_namespace=\"mesh\",\
             source_principal=\"spiffe://cluster.local/ns/mesh/sa/client\",destination_workload=\"server\",\
             destination_workload_namespace=\"mesh\",destination_app=\"server\",\
             destination_principal=\"spiffe://cluster.local/ns/mesh/sa/server\",request_protocol=\"tcp\"{more}"
        )
    };
    let server = world.at("mesh/server", 7000)?;
    for _ in 0..20 {
        world.app_ok("mesh/client", &["connect", &server])?;
    }
    let page = world.at("mesh/server", 8080)?;
    world.app_ok("mesh/client", &["http", &page])?;
    for _ in 0..10 {
        shop.get("web:80", &[])?;
    }
    let mut counted = Vec::new();
    for (prometheus, reporter) in [(&near, "source"), (&far, "destination")] {
        for name in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
        ] {
            let labels = mesh(&format!(",response_flags=\"-\",reporter=\"{reporter}\""));
            let series = format!("{name}{{{labels}}}");
            counted.push(prometheus.until_value(&series, |value| value >= 20.0)?);
            for one in prometheus.query(&series)? {
                has_standard_labels(&one)?;
            }
        }
        let labels = mesh(&format!(",reporter=\"{reporter}\""));
        for name in [
            "istio_tcp_sent_bytes_total",
            "istio_tcp_received_bytes_total",
        ] {
            prometheus.until_value(&format!("{name}{{{labels}}}"), |value| value > 0.0)?;
        }
        // A histogram of ours, as a dashboard asks it.
        let direction = match reporter {
            "source" => "outbound",
            _ => "inbound",
        };
        for name in [
            "karst_connection_setup_seconds",
            "karst_connection_duration_seconds",
        ] {
            let quantile = format!(
                "histogram_quantile(0.99, sum by (le) ({name}_bucket{{direction=\"{direction}\"}}))"
            );
            prometheus.until_value(&quantile, |value| value > 0.0 && value < 60.0)?;
        }
        prometheus.until_value(
            "karst_bpf_map_entries / karst_bpf_map_max_entries",
            |fill| fill > 0.0 && fill < 1.0,
        )?;
        prometheus.until_value("karst_xds_connected", |value| value >= 1.0)?;
        let left = "min(karst_certificate_not_after_timestamp_seconds - time())";
        prometheus.until_value(left, |left| left > 0.0 && left <= 25.0 * 3600.0)?;
        let age = "max(time() - karst_certificate_not_before_timestamp_seconds)";
        prometheus.until_value(age, |age| (0.0..3600.0).contains(&age))?;
    }
    ensure!(
        counted.iter().all(|count| (20.0..60.0).contains(count)),
        "20 connections and no more than a few beside: {counted:?}"
    );
    near.until_value(
        "karst_tunnel_handshakes_total{job=\"agent\",side=\"client\",result=\"ok\"}",
        |value| value >= 1.0,
    )?;
    near.until_value("karst_tunnel_pool_connections{job=\"agent\"}", |value| {
        value >= 1.0
    })?;
    near.no_scrape_fails()?;
    far.no_scrape_fails()
}

#[test]
fn requests_through_a_waypoint_have_istios_labels_and_histograms() -> Result<()> {
    let shop = shop()?;
    let _alone = alone();
    let near = watch_near(shop)?;
    for _ in 0..30 {
        shop.get("web:80", &[])?;
    }
    let labels = "reporter=\"waypoint\",source_workload=\"client\",source_workload_namespace=\"shop\",\
                  source_principal=\"spiffe://cluster.local/ns/shop/sa/client\",\
                  destination_service=\"web.shop.svc.cluster.local\",destination_service_name=\"web\",\
                  destination_service_namespace=\"shop\",request_protocol=\"http\",response_code=\"200\",\
                  connection_security_policy=\"mutual_tls\"";
    let series = format!("istio_requests_total{{{labels}}}");
    near.until_value(&series, |value| value >= 30.0)?;
    for one in near.query(&series)? {
        has_standard_labels(&one)?;
        ensure!(one["metric"].get("grpc_response_status").is_none(), "{one}");
    }
    for histogram in [
        "istio_request_duration_milliseconds",
        "istio_request_bytes",
        "istio_response_bytes",
    ] {
        near.until_value(&format!("{histogram}_count{{{labels}}}"), |value| {
            value >= 30.0
        })?;
    }
    let quantile = format!(
        "histogram_quantile(0.5, sum by (le) (istio_request_duration_milliseconds_bucket{{{labels}}}))"
    );
    near.until_value(&quantile, |value| value > 0.0 && value < 10_000.0)?;
    // The agent in front of it sees a tunnel to the waypoint.
    near.until_value(
        "istio_tcp_connections_opened_total{job=\"agent\",source_workload=\"client\",source_workload_namespace=\"shop\",destination_workload=\"waypoint\"}",
        |value| value >= 1.0,
    )?;
    near.until_value(
        "karst_tunnel_handshakes_total{job=\"waypoint\",side=\"server\",result=\"ok\"}",
        |value| value >= 1.0,
    )?;
    near.no_scrape_fails()
}

#[test]
fn what_is_refused_is_counted_by_policy_and_reason() -> Result<()> {
    let shop = shop()?;
    let world = &shop.world;
    let _alone = alone();
    let (near, far) = (watch_near(shop)?, watch_far(shop)?);
    let server = world.at("mesh/server", 7001)?;
    world.lab.apply(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: shut, namespace: mesh}\n\
         spec: {action: DENY, rules: [{to: [{operation: {ports: [\"7001\"]}}]}]}\n---\n",
    )?;
    let denied = "karst_policy_denials_total{policy=\"mesh/shut\",mode=\"enforced\"}";
    until("the policy to refuse", Duration::from_secs(20), || {
        world.app("mesh/client", &["connect", &server])?;
        far.value(denied).map(drop)
    })?;
    far.until_value("karst_refusals_total{reason=\"policy_denied\"}", |value| {
        value >= 1.0
    })?;
    for (prometheus, reporter) in [(&near, "source"), (&far, "destination")] {
        let failed = format!(
            "istio_tcp_connections_failed_total{{reporter=\"{reporter}\",destination_workload=\"server\",response_flags!=\"-\"}}"
        );
        prometheus.until_value(&failed, |value| value >= 1.0)?;
    }
    // The controller has timed how long the policy took to be in force.
    let took = "histogram_quantile(0.99, sum by (le) (karst_controller_xds_propagation_seconds_bucket{type=\"authorization\"}))";
    near.until_value(took, |value| value > 0.0 && value <= 60.0)?;
    near.no_scrape_fails()
}

/// Histograms that Istio names in milliseconds, which Prometheus advises against, and one of ours that was named
/// like them.
const IN_MILLISECONDS: &[&str] = &[
    "istio_request_duration_milliseconds",
    "karst_waypoint_check_duration_milliseconds",
];

#[test]
fn promtool_finds_no_fault_with_any_scrape() -> Result<()> {
    let shop = shop()?;
    let lab = &shop.world.lab;
    shop.get("web:80", &[])?;
    let scrape = |url: &str, accept: &str| -> Result<String> {
        let accept = format!("Accept: {accept}");
        let argv = ["curl", "-sS", "--max-time", "10", "-i", "-H", &accept, url];
        let output = lab.node_exec("node1", &argv)?;
        Ok(String::from_utf8(output.stdout)?.replace('\r', ""))
    };
    let controller = lab.controller_metrics_address();
    for address in ["127.0.0.1:15020", &waypoint(shop)?, &controller] {
        let url = format!("http://{address}/metrics");
        let text = scrape(&url, "text/plain;version=0.0.4")?;
        let (head, body) = text.split_once("\n\n").unwrap_or_default();
        ensure!(head.contains("text/plain; version=0.0.4"), "{head}");
        let said: BTreeSet<String> = lint(body)?
            .into_iter()
            .filter(|line| !IN_MILLISECONDS.iter().any(|name| line.starts_with(name)))
            .collect();
        ensure!(said.is_empty(), "{address}: {said:#?}");
        let open = scrape(&url, "application/openmetrics-text;version=1.0.0")?;
        ensure!(
            open.contains("application/openmetrics-text; version=1.0.0"),
            "{address}"
        );
        ensure!(open.ends_with("# EOF\n"), "{address}");
    }
    Ok(())
}

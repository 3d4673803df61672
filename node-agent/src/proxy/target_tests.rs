use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use karst_datapath::netns::Netns;
use karst_identity::SpiffeId;

use super::{Destination, Target, destination, target};
use crate::pod::{Pod, PodSpec};
use crate::reason::Reason;
use crate::state::MeshState;
use crate::state::service::{HealthPolicy, LoadBalancingMode, ServiceSpec};
use crate::state::store::{Change, Store};
use crate::state::workload::{Health, Locality, Protocol, ServiceMembership, Via, Workload};

fn pod() -> Pod {
    let spec = PodSpec {
        uid: Arc::from("u"),
        namespace: Arc::from("ns"),
        name: Arc::from("client"),
        workload_uid: Arc::from("c//Pod/ns/client"),
        identity: SpiffeId::new("cluster.local", "ns", "client").expect("id"),
        addresses: vec!["10.0.0.1".parse().expect("ip")],
    };
    Pod::new(
        spec,
        Netns::open(Path::new("/proc/self/ns/net")).expect("netns"),
    )
}

fn workload(name: &str, ip: &str) -> Workload {
    Workload {
        uid: Arc::from(name),
        identity: SpiffeId::new("cluster.local", "ns", name).ok(),
        addresses: vec![ip.parse().expect("ip")],
        protocol: Protocol::Hbone,
        services: vec![ServiceMembership {
            service: Arc::from("ns/svc"),
            ports: vec![(80, 8080)],
        }],
        ..Workload::default()
    }
}

fn service() -> ServiceSpec {
    ServiceSpec {
        key: Arc::from("ns/svc"),
        name: Arc::from("svc"),
        namespace: Arc::from("ns"),
        hostname: Arc::from("svc"),
        vips: vec!["10.96.0.1".parse().expect("ip")],
        ports: vec![(80, 0)],
        via: Via::Direct,
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Any,
        health_policy: HealthPolicy::OnlyHealthy,
    }
}

fn find(changes: Vec<Change>, original: &str, tried: &[Arc<str>]) -> Result<Target, Reason> {
    let state = Arc::new(MeshState::default());
    Store::new(Arc::clone(&state), Locality::default()).apply(changes);
    let original: SocketAddr = original.parse().expect("address");
    let found = destination(&state, &pod(), original).map_err(|r| r.reason)?;
    target(&found, original, tried).map_err(|r| r.reason)
}

fn server() -> Vec<Change> {
    vec![
        Change::Workload(workload("server", "10.0.0.2")),
        Change::Service(service()),
    ]
}

#[test]
fn workload_keeps_the_port_and_goes_by_its_tunnel() {
    let t = find(server(), "10.0.0.2:9000", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.2:9000");
    assert_eq!(
        t.hbone_addr().expect("tunnel").to_string(),
        "10.0.0.2:15008"
    );
}

#[test]
fn service_port_becomes_the_target_port() {
    let t = find(server(), "10.96.0.1:80", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.2:8080");
    let t = find(server(), "[::ffff:10.96.0.1]:80", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.2:8080");
}

#[test]
fn refusals_have_their_reason() {
    let refused = |changes, original: &str| find(changes, original, &[]).expect_err("refused");
    assert_eq!(
        refused(server(), "10.96.0.1:81"),
        Reason::ServicePortUnknown
    );
    assert_eq!(
        refused(vec![Change::Service(service())], "10.96.0.1:80"),
        Reason::NoHealthyUpstream
    );
    let sick = Workload {
        health: Health::Unhealthy,
        ..workload("server", "10.0.0.2")
    };
    let changes = vec![Change::Workload(sick), Change::Service(service())];
    assert_eq!(refused(changes, "10.96.0.1:80"), Reason::NoHealthyUpstream);
    let behind = Workload {
        via: Via::Waypoint,
        ..workload("server", "10.0.0.2")
    };
    assert_eq!(
        refused(vec![Change::Workload(behind)], "10.0.0.2:80"),
        Reason::WaypointUnsupported
    );
    let far = Workload {
        via: Via::NetworkGateway,
        ..workload("server", "10.0.0.2")
    };
    assert_eq!(
        refused(vec![Change::Workload(far)], "10.0.0.2:80"),
        Reason::NetworkUnsupported
    );
    let spec = ServiceSpec {
        via: Via::Waypoint,
        ..service()
    };
    assert_eq!(
        refused(vec![Change::Service(spec)], "10.96.0.1:80"),
        Reason::WaypointUnsupported
    );
    for own in [
        "127.0.0.1:15001",
        "10.0.0.1:15008",
        "[::1]:15006",
        "[::ffff:127.0.0.1]:15001",
    ] {
        assert_eq!(refused(server(), own), Reason::SelfCall, "{own}");
    }
}

#[test]
fn unknown_addresses_are_external() {
    let t = find(server(), "203.0.113.1:15008", &[]).expect("target");
    assert!(t.workload.is_none() && t.protocol == Protocol::Tcp);
    assert_eq!(t.address.to_string(), "203.0.113.1:15008");
}

#[test]
fn passthrough_services_are_dialled_as_asked() {
    let spec = ServiceSpec {
        mode: LoadBalancingMode::Passthrough,
        ..service()
    };
    let changes = vec![
        Change::Workload(workload("server", "10.0.0.2")),
        Change::Service(spec),
    ];
    let t = find(changes, "10.96.0.1:80", &[]).expect("target");
    assert_eq!(t.address.to_string(), "10.96.0.1:80");
}

#[test]
fn retry_takes_another_endpoint_or_none() {
    let mut changes = server();
    changes.push(Change::Workload(workload("other", "10.0.0.3")));
    let t = find(changes, "10.96.0.1:80", &[Arc::from("server")]).expect("target");
    assert_eq!(t.address.to_string(), "10.0.0.3:8080");
    let error = find(server(), "10.96.0.1:80", &[Arc::from("server")]).expect_err("refused");
    assert_eq!(error, Reason::NoHealthyUpstream);
    // A workload that was asked for by address is tried again itself.
    let t = find(server(), "10.0.0.2:80", &[Arc::from("server")]).expect("target");
    assert!(matches!(t.workload, Some(w) if &*w.uid == "server"));
}

#[test]
fn destination_tells_services_from_workloads() {
    let state = Arc::new(MeshState::default());
    Store::new(Arc::clone(&state), Locality::default()).apply(server());
    let kind = |text: &str| destination(&state, &pod(), text.parse().expect("address"));
    assert!(matches!(kind("10.96.0.1:80"), Ok(Destination::Service(_))));
    assert!(matches!(kind("10.0.0.2:80"), Ok(Destination::Workload(_))));
    assert!(matches!(kind("192.0.2.1:80"), Ok(Destination::External)));
}

//! The store and the state together: what a connection finds after a push.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use karst_identity::SpiffeId;

use super::service::{HealthPolicy, LoadBalancingMode, Scope, ServiceSpec};
use super::store::{Change, Store};
use super::workload::{Locality, ServiceMembership, Via, Workload};
use super::{Address, MeshState};

fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn workload(name: &str, address: &str) -> Workload {
    Workload {
        uid: Arc::from(format!("c//Pod/ns/{name}")),
        name: Arc::from(name),
        namespace: Arc::from("ns"),
        identity: SpiffeId::new("cluster.local", "ns", name).ok(),
        addresses: vec![ip(address)],
        services: Arc::from([ServiceMembership {
            service: Arc::from("ns/svc"),
            ports: vec![(80, 8080)],
        }]),
        ..Workload::default()
    }
}

fn service(vip: &str) -> ServiceSpec {
    ServiceSpec {
        key: Arc::from("ns/svc"),
        name: Arc::from("svc"),
        namespace: Arc::from("ns"),
        hostname: Arc::from("svc"),
        vips: vec![ip(vip)],
        ports: vec![(80, 0)],
        via: Via::Direct,
        routing_preference: Vec::new(),
        mode: LoadBalancingMode::Any,
        health_policy: HealthPolicy::OnlyHealthy,
        outside: None,
    }
}

fn fixture() -> (Arc<MeshState>, Store) {
    let state = Arc::new(MeshState::default());
    let local = Locality {
        node: Arc::from("n1"),
        ..Locality::default()
    };
    (Arc::clone(&state), Store::new(state, local))
}

fn uid_at(state: &MeshState, address: &str) -> Option<String> {
    state.workload_at(ip(address)).map(|w| w.uid.to_string())
}

fn endpoints(state: &MeshState, vip: &str) -> Vec<String> {
    match state.lookup(ip(vip)) {
        Some(Address::Service(s)) => s.ports[&80]
            .iter()
            .map(|e| e.workload.name.to_string())
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn endpoints_follow_workloads_in_any_order_of_arrival() {
    let (state, mut store) = fixture();
    store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    assert!(state.lookup(ip("10.96.0.1")).is_none());
    store.apply(vec![Change::Service(service("10.96.0.1"))]);
    assert_eq!(endpoints(&state, "10.96.0.1"), ["a"]);
    store.apply(vec![Change::Workload(workload("b", "10.0.0.2"))]);
    assert_eq!(endpoints(&state, "10.96.0.1").len(), 2);
    store.apply(vec![Change::Removed(Arc::from("c//Pod/ns/a"))]);
    assert_eq!(endpoints(&state, "10.96.0.1"), ["b"]);
}

#[test]
fn service_moves_its_vip_and_goes_away() {
    let (state, mut store) = fixture();
    store.apply(vec![Change::Service(service("10.96.0.1"))]);
    store.apply(vec![Change::Service(service("10.96.0.2"))]);
    assert!(state.lookup(ip("10.96.0.1")).is_none());
    assert!(state.lookup(ip("10.96.0.2")).is_some());
    store.apply(vec![Change::Removed(Arc::from("ns/svc"))]);
    assert!(state.lookup(ip("10.96.0.2")).is_none());
    assert!(state.service("ns/svc").is_none());
}

#[test]
fn reused_address_belongs_to_the_newest_and_falls_back() {
    let (state, mut store) = fixture();
    store.apply(vec![Change::Workload(workload("old", "10.0.0.1"))]);
    // The new pod arrives before the old one is removed.
    store.apply(vec![Change::Workload(workload("new", "10.0.0.1"))]);
    assert_eq!(uid_at(&state, "10.0.0.1").as_deref(), Some("c//Pod/ns/new"));
    let effect = store.apply(vec![Change::Removed(Arc::from("c//Pod/ns/old"))]);
    assert_eq!(effect.retired, [Arc::from("c//Pod/ns/old")]);
    assert_eq!(uid_at(&state, "10.0.0.1").as_deref(), Some("c//Pod/ns/new"));
    store.apply(vec![Change::Removed(Arc::from("c//Pod/ns/new"))]);
    assert_eq!(uid_at(&state, "10.0.0.1"), None);
}

#[test]
fn same_name_with_another_identity_retires_its_tunnels() {
    let (_, mut store) = fixture();
    store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    let effect = store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    assert!(
        effect.retired.is_empty(),
        "an unchanged workload keeps its tunnels"
    );
    let other = SpiffeId::new("cluster.local", "ns", "other").ok();
    let changed = Workload {
        identity: other,
        ..workload("a", "10.0.0.1")
    };
    assert_eq!(
        store.apply(vec![Change::Workload(changed)]).retired.len(),
        1
    );
}

#[test]
fn host_network_and_foreign_network_addresses_are_not_indexed() {
    let (state, mut store) = fixture();
    let host = Workload {
        host_network: true,
        ..workload("host", "192.0.2.1")
    };
    let locality = Locality {
        network: Arc::from("other"),
        ..Locality::default()
    };
    let foreign = Workload {
        locality: Arc::new(locality),
        ..workload("foreign", "10.0.0.9")
    };
    store.apply(vec![Change::Workload(host), Change::Workload(foreign)]);
    assert!(state.lookup(ip("192.0.2.1")).is_none());
    assert!(state.lookup(ip("10.0.0.9")).is_none());
    assert!(state.workload("c//Pod/ns/host").is_some());
}

#[test]
fn v4_mapped_addresses_find_the_workload() {
    let (state, mut store) = fixture();
    store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    assert!(state.workload_at(ip("::ffff:10.0.0.1")).is_some());
}

#[test]
fn locality_learned_later_reorders_endpoints() {
    let (state, mut store) = fixture();
    let zone = |zone: &str, node: &str| Locality {
        zone: Arc::from(zone),
        node: Arc::from(node),
        ..Locality::default()
    };
    let far = Workload {
        locality: Arc::new(zone("y", "n2")),
        ..workload("far", "10.0.0.2")
    };
    let near = Workload {
        locality: Arc::new(zone("z", "n3")),
        ..workload("near", "10.0.0.3")
    };
    let spec = ServiceSpec {
        mode: LoadBalancingMode::Strict,
        routing_preference: vec![Scope::Zone],
        ..service("10.96.0.1")
    };
    store.apply(vec![
        Change::Workload(far),
        Change::Workload(near),
        Change::Service(spec),
    ]);
    assert!(endpoints(&state, "10.96.0.1").is_empty());
    let mut local = Workload {
        locality: Arc::new(zone("z", "n1")),
        ..workload("local", "10.0.0.1")
    };
    local.services = Arc::default();
    store.apply(vec![Change::Workload(local)]);
    assert_eq!(endpoints(&state, "10.96.0.1"), ["near"]);
}

#[test]
fn load_and_failures_survive_updates() {
    let (state, mut store) = fixture();
    store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    let before = state.workload_at(ip("10.0.0.1")).expect("workload");
    before.stats.failed(u64::MAX / 2);
    store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    let after = state.workload_at(ip("10.0.0.1")).expect("workload");
    assert_ne!(before.revision, after.revision);
    assert!(after.stats.is_ejected(u64::MAX / 2));
}

#[tokio::test]
async fn readiness_is_waited_for_and_bounded() {
    let state = Arc::new(MeshState::default());
    assert!(!state.ready_within(Duration::from_millis(1)).await);
    let waiter = tokio::spawn({
        let state = Arc::clone(&state);
        async move { state.wait_ready().await }
    });
    state.set_ready();
    assert!(waiter.await.expect("joined"));
    assert!(state.wait_ready().await);
}

#[tokio::test]
async fn a_workload_is_waited_for() {
    let (state, mut store) = fixture();
    let uid = "c//Pod/ns/a";
    let none = state.workload_within(uid, Duration::from_millis(1)).await;
    assert!(none.is_none());
    let waiter = tokio::spawn({
        let state = Arc::clone(&state);
        async move { state.wait_for_workload(uid).await }
    });
    store.apply(vec![Change::Workload(workload("b", "10.0.0.2"))]);
    tokio::task::yield_now().await;
    store.apply(vec![Change::Workload(workload("a", "10.0.0.1"))]);
    assert!(waiter.await.expect("joined").is_some());
}

/// An endpoint of a ServiceEntry has no node, as a pod that is not scheduled yet; it is none all the same.
#[test]
fn an_endpoint_outside_has_no_policies() {
    let (_, mut store) = fixture();
    let no_node = workload("new", "10.0.0.9");
    assert!(
        store
            .apply(vec![Change::Workload(no_node)])
            .policies_changed
    );
    let endpoint = Workload {
        uid: Arc::from("c/networking.istio.io/ServiceEntry/ns/api/192.0.2.1"),
        ..workload("api", "192.0.2.1")
    };
    let effect = store.apply(vec![Change::Workload(endpoint)]);
    assert!(!effect.policies_changed);
}

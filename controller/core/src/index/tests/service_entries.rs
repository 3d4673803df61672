//! ServiceEntries and where pods may connect to.

use karst_api::{
    node::{EgressMode, MAX_OUTSIDE_ENDPOINTS, OutsideService},
    workload::{Workload, load_balancing::Mode, service::Visibility},
};
use serde_json::{Value, json};

use super::support::{Mesh, merged, namespace, object, pod, service};
use crate::index::service_entries::COMPARED;
use crate::{Changes, ConditionStatus, Egress, Index, Kind, MeshConfig, ObjectKey, StatusContent};

const API: &str = "shop/api.example.com";

/// An entry of namespace `shop` for 192.0.2.1:443.
pub(super) fn entry(name: &str, over: Value) -> Value {
    merged(
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
        "metadata": {"name": name, "namespace": "shop", "generation": 2,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": {"hosts": ["api.example.com"], "addresses": ["192.0.2.1"],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]}}),
        over,
    )
}

/// The same with two endpoints.
pub(super) fn with_endpoints(name: &str) -> Value {
    entry(
        name,
        json!({"spec": {"resolution": "STATIC", "endpoints": [
        {"address": "198.51.100.1"}, {"address": "198.51.100.2", "ports": {"tls": 8443}}]}}),
    )
}

fn older(value: Value) -> Value {
    merged(
        value,
        json!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}}),
    )
}

fn more(mesh: &Mesh, name: &str) -> OutsideService {
    OutsideService::of(&mesh.service(name).unwrap())
        .unwrap()
        .unwrap()
}

/// Conditions as `Type=Status Reason: message`.
fn said(mesh: &Mesh, namespace: &str, name: &str) -> Vec<String> {
    let key = ObjectKey {
        kind: Kind::ServiceEntry,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    let status = mesh.0.status(&key).unwrap();
    assert_eq!(status.generation, 2);
    let StatusContent::Conditions(conditions) = status.content else {
        panic!("{status:?}")
    };
    let shown = conditions.iter().map(|one| {
        let holds = one.status == ConditionStatus::True;
        format!("{}={holds} {}: {}", one.kind, one.reason, one.message)
    });
    shown.collect()
}

fn endpoint(mesh: &Mesh, ip: &str) -> Option<Workload> {
    mesh.workload_of(&format!(
        "Kubernetes/networking.istio.io/ServiceEntry/shop/api/{ip}"
    ))
}

#[test]
fn an_entry_becomes_a_service() {
    let mut mesh = Mesh::new([namespace(None)]);
    let changes = mesh.apply(entry(
        "api",
        json!({"spec": {"addresses": ["192.0.2.1", "2001:db8::/32"]}}),
    ));
    assert_eq!(changes.addresses, [API.to_owned()].into());
    let service = mesh.service(API).unwrap();
    assert_eq!(
        (service.name.as_str(), service.namespace.as_str()),
        ("api", "shop")
    );
    let lengths: Vec<_> = service.addresses.iter().map(|one| one.length).collect();
    assert_eq!(lengths, [None, Some(32)]);
    assert_eq!(service.load_balancing.unwrap().mode(), Mode::Passthrough);
    assert_eq!(service.visibility, i32::from(Visibility::Public));
    assert_eq!(
        (service.ports[0].service_port, service.ports[0].target_port),
        (443, 443)
    );
    let more = more(&mesh, API);
    assert_eq!((more.entry.as_str(), more.created), ("api", 1_767_312_000));
    assert!(more.namespaces.is_empty());
    // A range is found by nobody who asks for an address.
    let found: Vec<_> = mesh
        .0
        .aliased("/192.0.2.1")
        .map(|it| it.name.clone())
        .collect();
    assert_eq!(found, [API]);
    assert_eq!(mesh.0.aliased("/2001:db8::").count(), 0);
    assert_eq!(
        said(&mesh, "shop", "api"),
        ["Accepted=true Accepted: Pods of all namespaces may connect to 2 addresses"]
    );
    // As it was: nothing is announced.
    let again = mesh.apply(entry(
        "api",
        json!({"spec": {"addresses": ["192.0.2.1", "2001:db8::/32"]}}),
    ));
    assert_eq!(again, Changes::default());
    let gone = mesh.delete(entry("api", json!({})));
    assert_eq!(gone.addresses, [API.to_owned()].into());
    assert!(mesh.service(API).is_none());
    assert_eq!(gone.statuses.len(), 1);
    assert_eq!(mesh.0.object_count(Kind::ServiceEntry), 0);
}

#[test]
fn endpoints_become_workloads_outside_of_the_mesh() {
    let mut mesh = Mesh::new([namespace(Some("ambient")), with_endpoints("api")]);
    let service = mesh.service(API).unwrap();
    assert!(service.load_balancing.is_none());
    for (ip, port) in [("198.51.100.1", 443), ("198.51.100.2", 8443)] {
        let workload = endpoint(&mesh, ip).unwrap();
        assert_eq!(workload.tunnel_protocol, 0, "plain");
        assert!(workload.service_account.is_empty());
        assert_eq!(workload.services[API].ports[0].target_port, port);
    }
    mesh.apply(entry("api", json!({})));
    assert!(endpoint(&mesh, "198.51.100.1").is_none());
}

#[test]
fn whose_it_is_goes_with_the_service() {
    for (export_to, expected) in [
        (json!([".", "client"]), &["client", "shop"][..]),
        (json!(["."]), &["shop"]),
        // Not for its own namespace, nor for any.
        (json!(["client"]), &["client"]),
        (json!(["~"]), &[]),
    ] {
        let mesh = Mesh::new([entry("api", json!({"spec": {"exportTo": export_to}}))]);
        let service = mesh.service(API).unwrap();
        assert_eq!(service.visibility, i32::from(Visibility::Namespace));
        assert_eq!(more(&mesh, API).namespaces, expected);
    }
}

#[test]
fn what_is_not_taken_opens_nothing() {
    for (over, reason, field) in [
        (
            json!({"spec": {"location": "MESH_INTERNAL"}}),
            "UnsupportedValue",
            "spec.location",
        ),
        (
            json!({"spec": {"addresses": ["nonsense"]}}),
            "Invalid",
            "spec.addresses[0]",
        ),
        (
            json!({"spec": {"hosts": ["web.shop.svc.cluster.local"]}}),
            "Conflicted",
            "own Services",
        ),
    ] {
        let mut mesh = Mesh::new([service(json!({})), entry("api", json!({}))]);
        mesh.apply(entry("api", over.clone()));
        assert!(mesh.service(API).is_none(), "{over}");
        let said = said(&mesh, "shop", "api");
        assert!(
            said[0].starts_with(&format!("Accepted=false {reason}")),
            "{said:?}"
        );
        assert!(said[0].contains(field), "{said:?}");
        // The cluster's Service of that name stays what it is.
        let web = mesh.service(super::support::WEB).unwrap();
        assert_eq!(OutsideService::of(&web).unwrap(), None);
    }
}

#[test]
fn the_oldest_of_one_name_counts() {
    let other = entry("other", json!({"spec": {"addresses": ["192.0.2.2"]}}));
    let mut mesh = Mesh::new([entry("api", json!({})), other.clone()]);
    assert_eq!(
        more(&mesh, API).entry,
        "api",
        "by name where the age is equal"
    );
    let said_of_other = &said(&mesh, "shop", "other")[0];
    assert!(said_of_other.starts_with("Accepted=false Conflicted: ServiceEntry shop/api is older"));
    mesh.apply(older(other));
    assert_eq!(more(&mesh, API).entry, "other");
    assert!(said(&mesh, "shop", "api")[0].starts_with("Accepted=false Conflicted"));
    mesh.delete(entry("other", json!({})));
    assert_eq!(more(&mesh, API).entry, "api");
    assert!(said(&mesh, "shop", "api")[0].starts_with("Accepted=true"));
}

#[test]
fn one_address_of_two_entries() {
    let rival = |over: Value| {
        let spec = json!({"spec": {"hosts": ["b.example.com"]}});
        entry("b", merged(spec, over))
    };
    let conflict = "karst.dev/FullyEnforced=false Conflicted: 192.0.2.1, port 443, is also that of ServiceEntry shop/api, which is older and counts";
    for (over, conflicts) in [
        (json!({}), true),
        (json!({"spec": {"exportTo": ["client"]}}), true),
        (json!({"spec": {"exportTo": ["~"]}}), false),
        (
            json!({"spec": {"ports": [{"number": 80, "name": "http"}]}}),
            false,
        ),
        (json!({"spec": {"addresses": ["192.0.2.0/24"]}}), false),
    ] {
        let mesh = Mesh::new([entry("api", json!({})), rival(over.clone())]);
        let said = said(&mesh, "shop", "b");
        assert!(said[0].starts_with("Accepted=true"), "{said:?}");
        assert_eq!(
            said.get(1).is_some_and(|one| one == conflict),
            conflicts,
            "{over} {said:?}"
        );
        assert!(mesh.service("shop/b.example.com").is_some());
    }
}

#[test]
fn what_the_cluster_has_itself_counts() {
    let mut mesh = Mesh::new([
        namespace(None),
        entry(
            "api",
            json!({"spec": {"addresses": ["10.96.0.10", "10.0.1.1"]}}),
        ),
    ]);
    let conflicted = |mesh: &Mesh| {
        let said = said(mesh, "shop", "api");
        said.get(1).cloned().unwrap_or_default()
    };
    assert_eq!(conflicted(&mesh), "");
    let changes = mesh.apply(service(json!({})));
    assert_eq!(changes.statuses.len(), 1);
    let expected = "10.96.0.10 is that of shop/web.shop.svc.cluster.local, which counts";
    assert!(
        conflicted(&mesh).contains(expected),
        "{}",
        conflicted(&mesh)
    );
    mesh.apply(pod("a", "10.0.1.1", json!({})));
    assert!(conflicted(&mesh).contains("10.0.1.1 is that of Kubernetes//Pod/shop/a"));
    mesh.delete(service(json!({})));
    mesh.delete(pod("a", "10.0.1.1", json!({})));
    assert_eq!(conflicted(&mesh), "");
}

#[test]
fn all_endpoints_together_have_a_limit() {
    let with = |at: usize, count: usize| {
        let endpoints: Vec<Value> = (0..count)
            .map(|n| json!({"address": format!("198.{}.{}.{}", 18 + at % 2, n / 256, n % 256)}))
            .collect();
        entry(
            &format!("e{at:02}"),
            json!({"spec": {"hosts": [format!("h{at}.example.com")], "resolution": "STATIC",
                "endpoints": endpoints}}),
        )
    };
    let mut mesh = Mesh::new([]);
    let whole = MAX_OUTSIDE_ENDPOINTS / 1024;
    for at in 0..whole {
        mesh.0.stage(object(with(at, 1024))).unwrap();
    }
    mesh.apply(with(whole, 1));
    let last = |at: usize| said(&mesh, "shop", &format!("e{at:02}"));
    assert!(last(whole - 1)[0].starts_with("Accepted=true"));
    let refused = last(whole);
    assert!(
        refused[0]
            .starts_with("Accepted=false TooMany: Older entries leave no room for its endpoints"),
        "{refused:?}"
    );
    let name = format!("shop/h{whole}.example.com");
    assert!(mesh.service(&name).is_none());
    // What needs none is taken.
    mesh.apply(entry("z", json!({"spec": {"hosts": ["z.example.com"]}})));
    assert!(said(&mesh, "shop", "z")[0].starts_with("Accepted=true"));
}

/// Nobody is told that a pod has the address of an endpoint, which is no conflict: nothing is worked out.
#[test]
fn the_address_of_an_endpoint_concerns_no_status() {
    let mut mesh = Mesh::new([namespace(None), with_endpoints("api")]);
    mesh.0
        .stage(object(pod("a", "198.51.100.1", json!({}))))
        .unwrap();
    assert!(!mesh.0.entries.is_dirty());
    mesh.0
        .stage(object(pod("b", "192.0.2.1", json!({}))))
        .unwrap();
    assert!(mesh.0.entries.is_dirty());
}

/// A port that two entries share is one of all their common blocks.
#[test]
fn entries_that_share_many_blocks_are_compared_once() {
    let blocks =
        |count: usize| -> Vec<String> { (0..count).map(|n| format!("192.0.{n}.1")).collect() };
    let ports = |first: usize| -> Vec<Value> {
        (0..256)
            .map(|n| json!({"number": first + n, "name": format!("p{n}")}))
            .collect()
    };
    let one = |at: usize, first: usize| {
        entry(
            &format!("e{at:03}"),
            json!({"spec": {"hosts": [format!("h{at}.example.com")], "addresses": blocks(256),
                "ports": ports(first)}}),
        )
    };
    const OTHERS: usize = 20;
    let mut mesh = Mesh::new([]);
    for at in 0..OTHERS {
        mesh.0.stage(object(one(at, 1 + 256 * at))).unwrap();
    }
    COMPARED.set(0);
    // It shares its first port with the newest of the others.
    mesh.apply(one(OTHERS, 256 * OTHERS));
    assert_eq!(COMPARED.get(), (OTHERS + 1) * OTHERS / 2, "each pair once");
    let said = &said(&mesh, "shop", "e020")[1];
    let expected = "192.0.0.1, port 5120, is also that of ServiceEntry shop/e019";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn a_node_keeps_its_address() {
    let mut mesh = Mesh::new([
        namespace(None),
        entry("api", json!({"spec": {"addresses": ["172.30.0.1"]}})),
    ]);
    let on_host = |name: &str, over: Value| {
        let host = json!({"spec": {"hostNetwork": true}});
        pod(name, "172.30.0.1", merged(host, over))
    };
    let ended = || on_host("b", json!({"status": {"phase": "Succeeded"}}));
    let expected =
        "karst.dev/FullyEnforced=false Conflicted: 172.30.0.1 is that of a node, which counts";
    let has_conflict = |mesh: &Mesh| {
        said(mesh, "shop", "api")
            .get(1)
            .is_some_and(|it| it == expected)
    };
    assert!(!has_conflict(&mesh));
    mesh.apply(on_host("a", json!({})));
    assert!(has_conflict(&mesh), "{:?}", said(&mesh, "shop", "api"));
    mesh.apply(on_host("b", json!({})));
    mesh.delete(on_host("a", json!({})));
    assert!(has_conflict(&mesh), "another pod uses it");
    mesh.apply(ended());
    assert!(!has_conflict(&mesh), "{:?}", said(&mesh, "shop", "api"));
}

fn labelled(value: &str) -> Value {
    merged(
        namespace(Some("ambient")),
        json!({"metadata": {"labels": {"karst.dev/egress": value}}}),
    )
}

#[test]
fn a_namespace_says_where_its_pods_may_connect_to() {
    let mode = |mesh: &Mesh| mesh.node_pod("node-1", "a").unwrap().egress_mode();
    let mut mesh = Mesh::new([namespace(Some("ambient")), pod("a", "10.0.1.1", json!({}))]);
    assert_eq!(mode(&mesh), EgressMode::AllowAny);
    for (value, expected) in [
        ("REGISTRY_ONLY", EgressMode::RegistryOnly),
        ("ALLOW_ANY", EgressMode::AllowAny),
        // A mistake closes.
        ("registry_only", EgressMode::RegistryOnly),
        ("", EgressMode::RegistryOnly),
    ] {
        let changes = mesh.apply(labelled(value));
        let now = mode(&mesh);
        assert_eq!(now, expected, "{value}");
        let told = changes.node_pods.len();
        assert!(told <= 1 && changes.addresses.is_empty(), "{changes:?}");
        let findings = object(labelled(value)).findings;
        let is_known = ["REGISTRY_ONLY", "ALLOW_ANY"].contains(&value);
        assert_eq!(findings.is_empty(), is_known, "{value}");
    }
    let changes = mesh.apply(namespace(Some("ambient")));
    assert_eq!(changes.node_pods.len(), 1, "the change is announced");
    assert_eq!(mode(&mesh), EgressMode::AllowAny);
}

#[test]
fn the_mesh_has_a_default() {
    let config = MeshConfig {
        egress_default: Egress::RegistryOnly,
        ..MeshConfig::default()
    };
    let mut mesh = Mesh(Index::new(config));
    mesh.apply(pod("a", "10.0.1.1", json!({})));
    let mode = |mesh: &Mesh| mesh.node_pod("node-1", "a").unwrap().egress_mode();
    assert_eq!(
        mode(&mesh),
        EgressMode::RegistryOnly,
        "without its namespace too"
    );
    mesh.apply(labelled("ALLOW_ANY"));
    assert_eq!(mode(&mesh), EgressMode::AllowAny);
    mesh.delete(labelled("ALLOW_ANY"));
    assert_eq!(mode(&mesh), EgressMode::RegistryOnly);
}

//! Backends: endpoints, how they are reached, and what a change touches.

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use super::{
    support::{Mesh, node, pod, service, slice},
    support_l7::{WEB_80, gateway, http_route, name},
};
use crate::{Changes, ProxyKind};

fn uids(backend: &wire::Backend) -> Vec<(&str, i32)> {
    let endpoints = backend.endpoints.iter();
    endpoints
        .map(|each| (each.uid.rsplit('/').next().unwrap(), each.health))
        .collect()
}

fn touched(changes: &Changes) -> Vec<&str> {
    changes
        .proxies
        .iter()
        .map(|change| change.name.as_str())
        .collect()
}

const HEALTHY: i32 = wire::Health::Healthy as i32;
const DRAINING: i32 = wire::Health::Draining as i32;

#[test]
fn endpoints_say_how_they_are_reached() {
    let out = json!({"metadata": {"labels": {"karst.dev/dataplane-mode": "none"}}});
    let mesh = Mesh::bound([
        node("node-1", "z1"),
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.2", out),
    ]);
    let backend = mesh.backend();
    assert_eq!(
        (
            backend.namespace.as_str(),
            backend.service.as_str(),
            backend.port
        ),
        ("shop", "web", 80)
    );
    assert_eq!(backend.protocol(), wire::Protocol::Http1);
    assert_eq!(backend.invalid, "");
    let [a, b] = <[_; 2]>::try_from(backend.endpoints).unwrap();
    assert_eq!(
        (a.uid.as_str(), a.address.as_slice(), a.port),
        ("Kubernetes//Pod/shop/a", &[10, 0, 1, 1][..], 8080)
    );
    assert_eq!(
        (a.tunnel(), a.identity.as_str()),
        (wire::Tunnel::Hbone, "spiffe://cluster.local/ns/shop/sa/web")
    );
    assert_eq!((a.node.as_str(), a.authority.as_str()), ("node-1", ""));
    assert_eq!(
        a.locality,
        Some(wire::Locality {
            region: "r".into(),
            zone: "z1".into()
        })
    );
    assert_eq!((b.tunnel(), b.identity.as_str()), (wire::Tunnel::None, ""));
}

#[test]
fn only_those_who_serve_are_endpoints() {
    let unready = json!({"status": {"conditions": null}});
    let ending = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}});
    let mut mesh = Mesh::bound([
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.2", unready),
        pod("c", "10.0.1.3", ending),
        pod("d", "10.0.1.4", json!({"status": {"phase": "Failed"}})),
    ]);
    assert_eq!(uids(&mesh.backend()), [("a", HEALTHY), ("c", DRAINING)]);
    mesh.apply(service(json!({"spec": {"publishNotReadyAddresses": true}})));
    assert_eq!(
        uids(&mesh.backend()),
        [("a", HEALTHY), ("b", HEALTHY), ("c", DRAINING)]
    );
}

#[test]
fn a_named_port_is_looked_up_in_each_pod() {
    let named = json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "http"}]}});
    let containers = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9000}]}]}});
    let none = json!({"spec": {"containers": [{"name": "c"}]}});
    let mesh = Mesh::bound([
        service(named),
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.2", containers),
        pod("c", "10.0.1.3", none),
    ]);
    let ports: Vec<u32> = mesh
        .backend()
        .endpoints
        .iter()
        .map(|each| each.port)
        .collect();
    assert_eq!(ports, [8080, 9000]);
}

#[test]
fn endpoints_of_slices_are_reached_plainly() {
    let endpoints = json!([
        {"addresses": ["192.0.2.1"], "nodeName": "node-1"},
        {"addresses": ["192.0.2.2"], "conditions": {"ready": false}},
        {"addresses": ["192.0.2.3"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.0.1.1"]},
    ]);
    let mesh = Mesh::bound([
        service(json!({"spec": {"selector": null}})),
        slice("s", json!({"endpoints": endpoints})),
        pod("a", "10.0.1.1", json!({})),
    ]);
    let backend = mesh.backend();
    assert_eq!(
        uids(&backend),
        [
            ("a", HEALTHY),
            ("192.0.2.1", HEALTHY),
            ("192.0.2.3", DRAINING)
        ]
    );
    assert!(backend.endpoints.iter().all(|each| each.port == 9090));
    assert_eq!(backend.endpoints[0].tunnel(), wire::Tunnel::Hbone);
    assert_eq!(backend.endpoints[1].tunnel(), wire::Tunnel::None);
}

/// An endpoint's name with what it is a part of: workload, canonical service and revision.
fn parts(backend: &wire::Backend) -> Vec<(&str, &str, &str, &str)> {
    let endpoints = backend.endpoints.iter();
    endpoints
        .map(|each| {
            let place = usize::try_from(each.workload).unwrap();
            let workload = &backend.workloads[place - 1];
            assert_eq!(
                (workload.namespace.as_str(), workload.cluster.as_str()),
                ("shop", "Kubernetes")
            );
            (
                each.uid.rsplit('/').next().unwrap(),
                workload.name.as_str(),
                workload.canonical_name.as_str(),
                workload.canonical_revision.as_str(),
            )
        })
        .collect()
}

#[test]
fn endpoints_say_what_they_are_parts_of_and_share_it() {
    let part = |version: &str| {
        json!({"metadata": {
            "labels": {"version": version, "pod-template-hash": "5d4f8"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-5d4f8", "controller": true,
                "apiVersion": "apps/v1", "uid": "u"}]}})
    };
    let mut mesh = Mesh::bound([
        pod("a", "10.0.1.1", part("v1")),
        pod("b", "10.0.1.2", part("v2")),
        pod("c", "10.0.1.3", part("v1")),
    ]);
    let backend = mesh.backend();
    assert_eq!(
        parts(&backend),
        [
            ("a", "web", "web", "v1"),
            ("b", "web", "web", "v2"),
            ("c", "web", "web", "v1")
        ]
    );
    assert_eq!(backend.workloads.len(), 2);
    let changes = mesh.apply(pod("b", "10.0.1.2", part("v1")));
    assert!(touched(&changes).contains(&WEB_80), "{changes:?}");
    assert_eq!(mesh.backend().workloads.len(), 1);
}

#[test]
fn endpoints_of_slices_are_parts_of_their_slice() {
    let mesh = Mesh::bound([
        service(json!({"spec": {"selector": null}})),
        slice("s", json!({"endpoints": [{"addresses": ["192.0.2.1"]}]})),
    ]);
    assert_eq!(
        parts(&mesh.backend()),
        [("192.0.2.1", "s", "web", "latest")]
    );
}

#[test]
fn of_two_addresses_that_of_the_services_family_is_taken() {
    let both = json!({"status": {"podIPs": [{"ip": "10.0.1.1"}, {"ip": "fd00::1"}]}});
    let mut mesh = Mesh::bound([pod("a", "10.0.1.1", both)]);
    assert_eq!(mesh.backend().endpoints[0].address.len(), 4);
    mesh.apply(service(json!({"spec": {"clusterIP": "fd00::10"}})));
    assert_eq!(mesh.backend().endpoints[0].address.len(), 16);
}

#[test]
fn a_pod_touches_the_backends_that_have_it() {
    let other = service(
        json!({"metadata": {"name": "other"}, "spec": {"clusterIP": "10.96.0.11",
        "selector": {"app": "db"}}}),
    );
    let mut mesh = Mesh::bound([other, pod("a", "10.0.1.1", json!({}))]);
    let changes = mesh.apply(pod("b", "10.0.1.2", json!({})));
    assert_eq!(
        touched(&changes),
        ["workload/Kubernetes//Pod/shop/b", WEB_80]
    );
    let changes = mesh.apply(pod(
        "b",
        "10.0.1.2",
        json!({"status": {"conditions": null}}),
    ));
    assert_eq!(touched(&changes), [WEB_80]);
    let db = json!({"metadata": {"labels": {"app": "db"}}});
    let changes = mesh.apply(pod("c", "10.0.1.3", db));
    let expected = [
        "workload/Kubernetes//Pod/shop/c",
        "shop/other.shop.svc.cluster.local/80",
    ];
    assert_eq!(touched(&changes), expected);
    assert!(changes.statuses.is_empty());
    let nothing = mesh.apply(pod("a", "10.0.1.1", json!({})));
    assert_eq!(nothing, Changes::default());
}

#[test]
fn a_node_that_moves_touches_the_backends_of_its_pods() {
    let mut mesh = Mesh::bound([node("node-1", "z1"), pod("a", "10.0.1.1", json!({}))]);
    let changes = mesh.apply(node("node-1", "z2"));
    assert!(touched(&changes).contains(&WEB_80), "{changes:?}");
    let zone = mesh.backend().endpoints[0].locality.clone().unwrap().zone;
    assert_eq!(zone, "z2");
}

/// The Service `next` is behind another waypoint than the Service `web`, whose route sends to it.
fn chained(over: Value) -> [Value; 5] {
    let labels = json!({"gateway.networking.k8s.io/gateway-name": "wq",
        "gateway.networking.k8s.io/gateway-class-name": "karst-waypoint", "app": null});
    [
        service(super::support::merged(
            json!({"metadata": {"name": "next", "labels": {"karst.dev/use-waypoint": "wq"}},
                "spec": {"clusterIP": "10.96.0.20", "selector": {"app": "next"}}}),
            over,
        )),
        gateway(json!({"metadata": {"name": "wq"}})),
        service(
            json!({"metadata": {"name": "wq"}, "spec": {"clusterIP": "10.96.0.21",
            "selector": {"app": null, "gateway.networking.k8s.io/gateway-name": "wq"},
            "ports": [{"name": "mesh", "port": 15008}]}}),
        ),
        pod(
            "wq-1",
            "10.0.9.8",
            json!({"metadata": {"labels": labels}, "spec": {"serviceAccountName": "wq"}}),
        ),
        pod(
            "n",
            "10.0.1.5",
            json!({"metadata": {"labels": {"app": "next"}}}),
        ),
    ]
}

const NEXT: &str = "shop/next.shop.svc.cluster.local/80";

#[test]
fn a_service_behind_another_waypoint_is_reached_through_it() {
    let route = http_route(json!([{"backendRefs": [{"name": "next", "port": 80}]}]));
    let mut mesh = Mesh::bound(chained(json!({})).into_iter().chain([route]));
    let next = |mesh: &Mesh| -> wire::Backend { mesh.resource(ProxyKind::Backend, NEXT).unwrap() };
    let backend = next(&mesh);
    assert_eq!(uids(&backend), [("wq-1", HEALTHY)]);
    let endpoint = &backend.endpoints[0];
    assert_eq!(endpoint.authority, "10.96.0.20:80");
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/wq");
    assert_eq!(
        (endpoint.tunnel(), endpoint.port),
        (wire::Tunnel::Hbone, 80)
    );
    // That waypoint itself goes on to the pods.
    let own = mesh
        .0
        .proxy_resource(&name("shop", "wq"), ProxyKind::Backend, NEXT)
        .unwrap();
    let own: wire::Backend = prost::Message::decode(own.bytes.as_slice()).unwrap();
    assert_eq!(uids(&own), [("n", HEALTHY)]);
    // A waypoint without pods, or one that is gone, leaves nowhere to go.
    mesh.delete(pod("wq-1", "10.0.9.8", json!({})));
    assert_eq!(uids(&next(&mesh)), []);
    mesh.delete(gateway(json!({"metadata": {"name": "wq"}})));
    assert_eq!(uids(&next(&mesh)), []);
}

#[test]
fn a_service_that_opted_out_is_reached_directly_without_its_waypoint() {
    let off = json!({"metadata": {"labels": {"karst.dev/waypoint-enforcement": "disabled"}}});
    let route = http_route(json!([{"backendRefs": [{"name": "next", "port": 80}]}]));
    let mut mesh = Mesh::bound(chained(off).into_iter().chain([route]));
    let next = |mesh: &Mesh| -> wire::Backend { mesh.resource(ProxyKind::Backend, NEXT).unwrap() };
    assert_eq!(uids(&next(&mesh)), [("wq-1", HEALTHY)]);
    mesh.delete(gateway(json!({"metadata": {"name": "wq"}})));
    assert_eq!(uids(&next(&mesh)), [("n", HEALTHY)]);
}

#[test]
fn a_proxy_holds_what_it_needs_and_no_more() {
    let other = service(
        json!({"metadata": {"name": "other", "labels": {"karst.dev/use-waypoint": "none"}},
        "spec": {"clusterIP": "10.96.0.11"}}),
    );
    let route = http_route(json!([{"backendRefs": [{"name": "other", "port": 80}]}]));
    let mut mesh = Mesh::bound([other.clone()]);
    assert_eq!(mesh.resources(ProxyKind::Backend), [WEB_80]);
    mesh.apply(route.clone());
    let both = ["shop/other.shop.svc.cluster.local/80", WEB_80];
    assert_eq!(mesh.resources(ProxyKind::Backend), both);
    mesh.delete(route);
    assert_eq!(mesh.resources(ProxyKind::Backend), [WEB_80]);
    let changes = mesh.delete(gateway(json!({})));
    let listener = format!("service/{WEB_80}");
    assert_eq!(touched(&changes), [listener.as_str(), WEB_80]);
    assert_eq!(mesh.resources(ProxyKind::Backend), [""; 0]);
}

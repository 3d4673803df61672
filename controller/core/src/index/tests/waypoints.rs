//! Waypoints: who is behind one, when, and what source and destination are told.

use karst_api::{
    node::WaypointRequirement,
    waypoint::{self as wire, listener::Frontend},
    workload::{TunnelProtocol, gateway_address::Destination},
};
use serde_json::{Value, json};

use super::{
    support::{Mesh, WEB, merged, namespace, pod, service, slice},
    support_l7::{
        bound_namespace, gateway, gateway_pod, gateway_service, http_route, name, other_namespace,
        short, waypoint,
    },
};
use crate::ProxyKind;

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/wp";

/// What sources are told of the Service `web`.
fn told(mesh: &Mesh) -> Option<String> {
    let waypoint = mesh.service(WEB).unwrap().waypoint?;
    assert_eq!(waypoint.hbone_mtls_port, 15008);
    match waypoint.destination.unwrap() {
        Destination::Hostname(it) => Some(format!("{}/{}", it.namespace, it.hostname)),
        other => panic!("{other:?}"),
    }
}

fn requirements(mesh: &Mesh, pod: &str) -> Vec<WaypointRequirement> {
    mesh.node_pod("node-1", pod).unwrap().waypoints
}

fn only_requirement(mesh: &Mesh) -> WaypointRequirement {
    let [only] = <[_; 1]>::try_from(requirements(mesh, "a")).unwrap();
    only
}

fn a() -> Value {
    pod("a", "10.0.1.1", json!({}))
}

fn labelled(labels: Value) -> Value {
    service(json!({"metadata": {"labels": labels}}))
}

fn through() -> Option<String> {
    Some("shop/wp.shop.svc.cluster.local".to_owned())
}

#[test]
fn a_waypoint_in_force_is_told_to_everybody() {
    let mesh = Mesh::bound([a()]);
    assert_eq!(told(&mesh), through());
    assert_eq!(
        requirements(&mesh, "a"),
        [WaypointRequirement {
            ports: vec![8080],
            identities: vec![IDENTITY.into()],
            required: true
        }]
    );
    assert!(mesh.workload("a").unwrap().waypoint.is_some());
    let frontend = mesh.frontend().unwrap();
    assert_eq!(
        (
            frontend.namespace.as_str(),
            frontend.name.as_str(),
            frontend.port
        ),
        ("shop", "web", 80)
    );
    assert_eq!(frontend.hostname, "web.shop.svc.cluster.local");
    assert_eq!(frontend.addresses, [vec![10, 96, 0, 10]]);
    assert_eq!(frontend.protocol(), wire::Protocol::Http1);
    assert_eq!(frontend.backend, "shop/web.shop.svc.cluster.local/80");
}

#[test]
fn the_most_specific_label_counts() {
    let use_waypoint = |value: &str| json!({"karst.dev/use-waypoint": value});
    for (namespace, own, expected) in [
        (namespace(Some("ambient")), json!({}), None),
        (namespace(Some("ambient")), use_waypoint("wp"), through()),
        (
            namespace(Some("ambient")),
            json!({"istio.io/use-waypoint": "wp"}),
            through(),
        ),
        (bound_namespace(), json!({}), through()),
        (bound_namespace(), use_waypoint("none"), None),
        (
            bound_namespace(),
            json!({"istio.io/use-waypoint": "none"}),
            None,
        ),
        (
            bound_namespace(),
            json!({"karst.dev/use-waypoint": "wp", "istio.io/use-waypoint": "none"}),
            through(),
        ),
    ] {
        let objects = [namespace, labelled(own.clone()), a()];
        let mesh = Mesh::new(objects.into_iter().chain(waypoint()));
        assert_eq!(told(&mesh), expected, "{own}");
        assert_eq!(
            requirements(&mesh, "a").len(),
            usize::from(expected.is_some()),
            "{own}"
        );
        assert_eq!(mesh.frontend().is_some(), expected.is_some(), "{own}");
    }
}

#[test]
fn nothing_to_do_skips_the_hop() {
    let ports = |ports: Value| service(json!({"spec": {"ports": ports}}));
    let tcp =
        json!([{"name": "tcp-db", "port": 80}, {"name": "x", "port": 443, "appProtocol": "https"}]);
    let mut mesh = Mesh::bound([ports(tcp.clone()), a()]);
    assert_eq!(told(&mesh), None);
    assert_eq!(requirements(&mesh, "a"), []);
    assert_eq!(mesh.resources(ProxyKind::Listener), [""; 0]);
    for needed in [
        json!([{"name": "tcp-db", "port": 80}, {"name": "web", "port": 81}]),
        json!([{"port": 80}]),
        json!([{"name": "tcp-db", "port": 80, "appProtocol": "grpc"}]),
    ] {
        mesh.apply(ports(needed.clone()));
        assert_eq!(told(&mesh), through(), "{needed}");
    }
    mesh.apply(ports(tcp));
    assert_eq!(told(&mesh), None);
    // A route of any kind, or a policy, is something to do.
    let route = super::support_l7::route("TCPRoute", "t", json!({}));
    mesh.apply(route.clone());
    assert_eq!(told(&mesh), through());
    mesh.delete(route);
    assert_eq!(told(&mesh), None);
    let policy = super::traffic_policies::policy("p", json!({}));
    mesh.apply(policy.clone());
    assert_eq!(told(&mesh), through());
    mesh.delete(policy);
    assert_eq!(told(&mesh), None);
}

#[test]
fn a_waypoint_that_is_missing_fails_closed() {
    let mut mesh = Mesh::new([
        bound_namespace(),
        service(json!({})),
        a(),
        http_route(json!([])),
    ]);
    assert_eq!(told(&mesh), through());
    let refused = WaypointRequirement {
        ports: vec![8080],
        identities: Vec::new(),
        required: true,
    };
    assert_eq!(requirements(&mesh, "a"), [refused]);
    let bound = mesh.condition("karst.dev/WaypointBound");
    assert_eq!(short(&bound), "karst.dev/WaypointBound=False/NoWaypoint");
    assert!(bound.message.contains("shop/wp"), "{}", bound.message);

    mesh.apply(gateway(json!({})));
    assert_eq!(only_requirement(&mesh).identities, [IDENTITY]);
    let bound = short(&mesh.condition("karst.dev/WaypointBound"));
    assert_eq!(bound, "karst.dev/WaypointBound=False/WaypointNotReady");
    mesh.apply(gateway_service(json!({})));
    mesh.apply(gateway_pod(json!({"status": {"conditions": null}})));
    assert_eq!(short(&mesh.condition("karst.dev/WaypointBound")), bound);
    mesh.apply(gateway_pod(json!({})));
    let bound = short(&mesh.condition("karst.dev/WaypointBound"));
    assert_eq!(bound, "karst.dev/WaypointBound=True/WaypointBound");

    mesh.delete(gateway(json!({})));
    assert_eq!(only_requirement(&mesh).identities, [""; 0]);
    assert_eq!(told(&mesh), through());
    assert_eq!(mesh.resources(ProxyKind::Listener), [""; 0]);
}

#[test]
fn without_a_label_there_is_no_waypoint() {
    let mesh = Mesh::new([
        namespace(Some("ambient")),
        service(json!({})),
        http_route(json!([])),
    ]);
    let bound = mesh.condition("karst.dev/WaypointBound");
    assert_eq!(short(&bound), "karst.dev/WaypointBound=False/NoWaypoint");
    assert!(bound.message.contains("label"), "{}", bound.message);
}

#[test]
fn enforcement_can_be_switched_off() {
    let off = json!({"karst.dev/waypoint-enforcement": "disabled"});
    let mut mesh = Mesh::bound([labelled(off.clone()), a()]);
    assert_eq!(told(&mesh), through());
    let believed = only_requirement(&mesh);
    assert_eq!(
        (believed.identities.as_slice(), believed.required),
        (&[IDENTITY.to_owned()][..], false)
    );
    assert_eq!(mesh.workload("a").unwrap().waypoint, None);
    // A waypoint that is not ready is passed over, and so is one that is not there.
    mesh.apply(gateway_pod(json!({"status": {"conditions": null}})));
    assert_eq!((told(&mesh), requirements(&mesh, "a")), (None, Vec::new()));
    mesh.delete(gateway(json!({})));
    assert_eq!((told(&mesh), requirements(&mesh, "a")), (None, Vec::new()));

    let namespace = merged(bound_namespace(), json!({"metadata": {"labels": off}}));
    let on = json!({"karst.dev/waypoint-enforcement": "enabled"});
    let mut mesh = Mesh::bound([namespace, a()]);
    assert!(!only_requirement(&mesh).required);
    mesh.apply(labelled(on));
    assert!(only_requirement(&mesh).required);
}

#[test]
fn a_waypoint_is_for_what_it_says() {
    let is_for =
        |what: &str| gateway(json!({"metadata": {"labels": {"karst.dev/waypoint-for": what}}}));
    let mut mesh = Mesh::bound([a()]);
    for (what, services, workloads) in [
        ("service", true, false),
        ("workload", false, true),
        ("all", true, true),
        ("none", false, false),
    ] {
        mesh.apply(is_for(what));
        assert_eq!(told(&mesh).is_some(), services, "{what}");
        assert_eq!(
            mesh.workload("a").unwrap().waypoint.is_some(),
            services || workloads,
            "{what}"
        );
        let all_ports = requirements(&mesh, "a")
            .iter()
            .any(|each| each.ports.is_empty());
        assert_eq!(all_ports, workloads, "{what}");
        let listener = mesh.resources(ProxyKind::Listener);
        let listener = listener.iter().any(|name| name.starts_with("workload/"));
        assert_eq!(listener, services || workloads, "{what}");
    }
}

#[test]
fn a_workload_is_reached_by_its_own_address() {
    let mut mesh = Mesh::bound([a()]);
    let listener = "workload/Kubernetes//Pod/shop/a";
    let frontend = |mesh: &Mesh| {
        let listener: wire::Listener = mesh.resource(ProxyKind::Listener, listener)?;
        match listener.frontend.unwrap() {
            Frontend::Workload(it) => Some(it),
            other => panic!("{other:?}"),
        }
    };
    let found = frontend(&mesh).unwrap();
    assert_eq!(found.addresses, [vec![10, 0, 1, 1]]);
    let endpoint = found.endpoint.unwrap();
    assert_eq!(endpoint.tunnel(), wire::Tunnel::Hbone);
    assert_eq!(endpoint.identity, "spiffe://cluster.local/ns/shop/sa/web");
    let workload = found.workload.unwrap();
    assert_eq!(
        (workload.name.as_str(), workload.canonical_name.as_str()),
        ("a", "web")
    );
    assert_eq!(
        found.ports,
        [wire::WorkloadPort {
            port: 8080,
            protocol: wire::Protocol::Http1.into()
        }]
    );
    mesh.apply(pod("a", "10.0.1.7", json!({})));
    assert_eq!(frontend(&mesh).unwrap().addresses, [vec![10, 0, 1, 7]]);
    mesh.delete(a());
    assert_eq!(frontend(&mesh), None);
}

#[test]
fn two_services_of_a_pod_trust_both_waypoints() {
    let other = service(
        json!({"metadata": {"name": "other", "labels": {"karst.dev/use-waypoint": "wq"}},
        "spec": {"clusterIP": "10.96.0.11", "ports": [{"name": "http", "port": 80, "targetPort": 9000}]}}),
    );
    let second = gateway(json!({"metadata": {"name": "wq"}}));
    let mesh = Mesh::bound([other, second, a()]);
    let required = only_requirement(&mesh);
    assert_eq!(required.ports, [8080, 9000]);
    assert_eq!(
        required.identities,
        [IDENTITY, "spiffe://cluster.local/ns/shop/sa/wq"]
    );
    assert!(required.required);
}

#[test]
fn a_pod_outside_of_the_mesh_requires_nothing() {
    let out = json!({"metadata": {"labels": {"karst.dev/dataplane-mode": "none"}}});
    let mesh = Mesh::bound([pod("a", "10.0.1.1", out)]);
    assert_eq!(requirements(&mesh, "a"), []);
    assert_eq!(mesh.workload("a").unwrap().waypoint, None);
}

#[test]
fn proxies_are_never_captured() {
    let ambient = json!({"metadata": {"labels": {"karst.dev/dataplane-mode": "ambient"}}});
    let mesh = Mesh::bound([gateway_pod(ambient)]);
    let node_pod = mesh.node_pod("node-1", "wp-1").unwrap();
    assert_eq!(
        node_pod.dataplane_mode(),
        karst_api::node::DataplaneMode::None
    );
    assert_eq!(node_pod.waypoints, []);
    assert_eq!(mesh.tunnel("wp-1"), TunnelProtocol::Hbone);
    // Its Service is behind no waypoint, though all of its namespace are.
    let own = mesh.service("shop/wp.shop.svc.cluster.local").unwrap();
    assert_eq!(own.waypoint, None);
    assert_eq!(mesh.workload("wp-1").unwrap().waypoint, None);
}

#[test]
fn labels_alone_make_no_proxy() {
    let mesh = Mesh::bound([gateway_pod(
        json!({"spec": {"serviceAccountName": "thief"}}),
    )]);
    let node_pod = mesh.node_pod("node-1", "wp-1").unwrap();
    assert_eq!(
        node_pod.dataplane_mode(),
        karst_api::node::DataplaneMode::Ambient
    );
    let gateway_class = json!({"metadata": {"labels": {
        "gateway.networking.k8s.io/gateway-class-name": "foreign"}}});
    let mesh = Mesh::bound([gateway_pod(gateway_class)]);
    let node_pod = mesh.node_pod("node-1", "wp-1").unwrap();
    assert_eq!(
        node_pod.dataplane_mode(),
        karst_api::node::DataplaneMode::Ambient
    );
}

#[test]
fn accounts_belong_to_gateways_of_our_classes() {
    let foreign =
        gateway(json!({"metadata": {"name": "foreign"}, "spec": {"gatewayClassName": "x"}}));
    let mesh = Mesh::bound([foreign]);
    assert_eq!(
        mesh.0.gateways_of_account("shop", "wp"),
        [name("shop", "wp")]
    );
    assert_eq!(mesh.0.gateways_of_account("shop", "foreign"), []);
    assert_eq!(mesh.0.gateways_of_account("other", "wp"), []);
}

#[test]
fn another_namespaces_waypoint_must_let_one_in() {
    let labels =
        json!({"karst.dev/use-waypoint": "wp", "karst.dev/use-waypoint-namespace": "shop"});
    let theirs = merged(
        labelled(labels),
        json!({"metadata": {"namespace": "client"}}),
    );
    let route = merged(
        http_route(json!([])),
        json!({"metadata": {"namespace": "client"}}),
    );
    let allowed = |namespaces: Value| {
        gateway(
            json!({"spec": {"listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE",
            "allowedRoutes": {"namespaces": namespaces}}]}}),
        )
    };
    let team = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "client",
        "labels": {"team": "a"}}});
    let selector =
        |team: &str| json!({"from": "Selector", "selector": {"matchLabels": {"team": team}}});
    let mut mesh = Mesh::bound([other_namespace("client"), theirs, route]);
    let listener = "service/client/web.client.svc.cluster.local/80";
    let bound = |mesh: &Mesh| {
        let key = crate::ObjectKey {
            namespace: "client".to_owned(),
            ..super::support_l7::key(crate::Kind::HttpRoute, "r")
        };
        let said = mesh.said(&key).pop().unwrap();
        let served = mesh
            .resources(ProxyKind::Listener)
            .iter()
            .any(|name| name == listener);
        let sources = mesh
            .service("client/web.client.svc.cluster.local")
            .unwrap()
            .waypoint;
        assert!(sources.is_some(), "fails closed");
        (said, served)
    };
    let refused = (
        "karst.dev/WaypointBound=False/WaypointNotPermitted".to_owned(),
        false,
    );
    let taken = (
        "karst.dev/WaypointBound=True/WaypointBound".to_owned(),
        true,
    );
    assert_eq!(bound(&mesh), refused);
    mesh.apply(allowed(json!({"from": "All"})));
    assert_eq!(bound(&mesh), taken);
    mesh.apply(allowed(selector("a")));
    assert_eq!(bound(&mesh), refused);
    mesh.apply(team);
    assert_eq!(bound(&mesh), taken);
    mesh.apply(allowed(selector("b")));
    assert_eq!(bound(&mesh), refused);
}

#[test]
fn pods_of_a_service_without_selector_are_behind_its_waypoint() {
    let plain = service(json!({"spec": {"selector": null}}));
    let named = json!([{"addresses": ["10.0.1.1"], "targetRef": {"kind": "Pod", "name": "a"}}]);
    let mut mesh = Mesh::bound([plain, slice("s", json!({"endpoints": named})), a()]);
    assert_eq!(only_requirement(&mesh).ports, [9090]);
    mesh.delete(slice("s", json!({})));
    assert_eq!(requirements(&mesh, "a"), []);
}

#[test]
fn a_pod_that_names_a_missing_waypoint_is_not_reached_without_it() {
    let labels = json!({"metadata": {"labels": {"karst.dev/use-waypoint": "gone"}}});
    let objects = [namespace(Some("ambient")), pod("a", "10.0.1.1", labels)];
    let mesh = Mesh::new(objects);
    let refused = WaypointRequirement {
        ports: Vec::new(),
        identities: Vec::new(),
        required: true,
    };
    assert_eq!(requirements(&mesh, "a"), [refused]);
    assert!(mesh.workload("a").unwrap().waypoint.is_some());
}

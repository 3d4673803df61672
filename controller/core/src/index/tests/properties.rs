//! Whatever comes in whatever order, the index ends where a fresh one does, and has announced all of it.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    authorization_policies::authorization,
    peer_authentications::peer,
    service_entries::{entry, with_endpoints},
    support::{Mesh, merged, node, pod, service, slice},
    support_l7::{
        bound_namespace, gateway, gateway_api, gateway_pod, gateway_service, grant,
        other_namespace, route,
    },
    telemetry::{collector, config, off, otel, target, telemetry},
    traffic_policies::policy,
};
use crate::{Changes, GatewayName, Kind, ProxyKind};

/// Everything that can be asked of an index: what is asked for, and the answer.
type Answers = BTreeMap<String, String>;

const PROXY_KINDS: [ProxyKind; 4] = [
    ProxyKind::Listener,
    ProxyKind::Route,
    ProxyKind::Backend,
    ProxyKind::TlsSecret,
];

fn gateways() -> Vec<GatewayName> {
    ["wp", "wq", "edge"]
        .map(|name| GatewayName::new("shop", name))
        .to_vec()
}

/// A Gateway of class karst.
fn edge(over: Value) -> Value {
    let spec = json!({"gatewayClassName": "karst",
        "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]});
    merged(gateway_api("Gateway", "edge", spec), over)
}

/// For pods with the label `app: web`.
fn web_only(spec: Value) -> Value {
    merged(spec, json!({"selector": {"matchLabels": {"app": "web"}}}))
}

fn older(value: Value) -> Value {
    merged(
        value,
        json!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}}),
    )
}

/// Objects, each in several versions.
fn pool() -> Vec<Vec<Value>> {
    let web = |over: Value| service(over);
    let elsewhere = |value: Value| {
        merged(
            value,
            json!({"metadata": {"namespace": "client"}, "spec": {"parentRefs":
            [{"group": "", "kind": "Service", "name": "web", "namespace": "shop"}],
            "rules": [{"backendRefs": [{"name": "web", "namespace": "shop", "port": 80}]}]}}),
        )
    };
    let label = |key: &str, value: &str| json!({"metadata": {"labels": {key: value}}});
    vec![
        vec![
            bound_namespace(),
            merged(bound_namespace(), label("karst.dev/use-waypoint", "wq")),
            merged(
                bound_namespace(),
                label("karst.dev/waypoint-enforcement", "disabled"),
            ),
            merged(
                bound_namespace(),
                label("karst.dev/egress", "REGISTRY_ONLY"),
            ),
        ],
        vec![
            other_namespace("client"),
            merged(other_namespace("client"), label("team", "a")),
        ],
        vec![node("node-1", "z1"), node("node-1", "z2")],
        vec![
            gateway(json!({})),
            gateway(label("karst.dev/waypoint-for", "all")),
            gateway(label("karst.dev/waypoint-for", "workload")),
        ],
        vec![gateway(json!({"metadata": {"name": "wq"}}))],
        vec![
            gateway_service(json!({})),
            gateway_service(json!({"spec": {"clusterIP": null}})),
        ],
        vec![
            gateway_pod(json!({})),
            gateway_pod(json!({"status": {"conditions": null}})),
        ],
        vec![
            web(json!({})),
            web(label("karst.dev/use-waypoint", "none")),
            web(json!({"spec": {"ports": [{"name": "tcp", "port": 80}]}})),
            web(json!({"spec": {"selector": null}})),
            web(json!({"spec": {"clusterIP": "10.96.0.13", "ports":
                [{"name": "http", "port": 80}, {"name": "grpc", "port": 81}]}})),
        ],
        vec![
            web(json!({"metadata": {"name": "v2"}, "spec": {"clusterIP": "10.96.0.12"}})),
            web(
                json!({"metadata": {"name": "v2", "labels": {"karst.dev/use-waypoint": "wq"}},
                "spec": {"clusterIP": "10.96.0.12", "selector": {"app": "db"}}}),
            ),
        ],
        vec![
            pod("a", "10.0.1.1", json!({})),
            pod("a", "10.0.1.2", json!({"status": {"conditions": null}})),
            pod(
                "a",
                "10.0.1.1",
                json!({"metadata": {"labels": {"app": "db"}}}),
            ),
        ],
        vec![
            pod(
                "b",
                "10.0.1.3",
                json!({"spec": {"serviceAccountName": "other"}}),
            ),
            pod(
                "b",
                "10.0.1.3",
                json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            ),
        ],
        vec![
            slice(
                "s",
                json!({"endpoints": [{"addresses": ["10.0.1.1"]}, {"addresses": ["192.0.2.1"]}]}),
            ),
            slice(
                "s",
                json!({"endpoints": [{"addresses": ["10.0.1.3"], "targetRef": {"kind": "Pod", "name": "b"}}]}),
            ),
        ],
        vec![
            route("HTTPRoute", "r", json!({})),
            route(
                "HTTPRoute",
                "r",
                json!({"spec": {"rules": [{"backendRefs": [
                {"name": "web", "port": 80, "weight": 95}, {"name": "v2", "port": 80, "weight": 5}]}]}}),
            ),
            route(
                "HTTPRoute",
                "r",
                json!({"spec": {"parentRefs":
                [{"group": "", "kind": "Service", "name": "v2"}]}}),
            ),
        ],
        vec![
            route(
                "GRPCRoute",
                "g",
                json!({"spec": {"parentRefs":
            [{"group": "", "kind": "Service", "name": "web", "port": 81}]}}),
            ),
            route("GRPCRoute", "g", json!({})),
        ],
        vec![route("TCPRoute", "t", json!({}))],
        vec![elsewhere(route("HTTPRoute", "c", json!({})))],
        vec![grant("client"), grant("nobody")],
        vec![
            policy("p", json!({})),
            policy(
                "p",
                json!({"targetRefs":
            [{"group": "", "kind": "Service", "name": "v2"}]}),
            ),
        ],
        vec![policy(
            "q",
            json!({"loadBalancing": {"algorithm": "Random"}}),
        )],
        vec![
            edge(json!({})),
            edge(
                json!({"spec": {"listeners": [{"name": "http", "port": 8080, "protocol": "HTTP"}]}}),
            ),
        ],
        vec![
            route(
                "HTTPRoute",
                "e",
                json!({"spec": {"parentRefs": [{"name": "edge"}]}}),
            ),
            route(
                "HTTPRoute",
                "e",
                json!({"spec": {"parentRefs":
                [{"name": "edge"}, {"group": "", "kind": "Service", "name": "v2"}]}}),
            ),
        ],
        vec![
            authorization("shop", "z", json!({"rules": [{}]})),
            authorization("shop", "z", web_only(json!({"rules": [{}]}))),
            authorization(
                "shop",
                "z",
                web_only(json!({"action": "DENY", "rules": [{}]})),
            ),
            authorization("shop", "z", json!({"action": "AUDIT"})),
            authorization(
                "shop",
                "z",
                json!({"selector": {"matchLabels": {"app": "db"}}}),
            ),
        ],
        vec![
            authorization("karst-system", "mesh", web_only(json!({}))),
            authorization("karst-system", "mesh", json!({})),
        ],
        vec![
            peer("shop", "own", json!({"mtls": {"mode": "STRICT"}})),
            peer("shop", "own", json!({"mtls": {"mode": "PERMISSIVE"}})),
            peer("shop", "own", json!({})),
        ],
        vec![
            peer(
                "shop",
                "ports",
                web_only(json!({"portLevelMtls": {"80": {"mode": "PERMISSIVE"}}})),
            ),
            peer(
                "shop",
                "ports",
                web_only(json!({"mtls": {"mode": "PERMISSIVE"},
                "portLevelMtls": {"80": {"mode": "STRICT"}}})),
            ),
            peer(
                "shop",
                "ports",
                json!({"selector": {"matchLabels": {"app": "db"}},
                "mtls": {"mode": "STRICT"}}),
            ),
        ],
        vec![
            peer(
                "shop",
                "rival",
                web_only(json!({"mtls": {"mode": "STRICT"}})),
            ),
            older(peer(
                "shop",
                "rival",
                web_only(json!({"mtls": {"mode": "DISABLE"}})),
            )),
            older(peer("shop", "rival", json!({"mtls": {"mode": "STRICT"}}))),
        ],
        vec![
            peer("karst-system", "mesh", json!({"mtls": {"mode": "STRICT"}})),
            peer(
                "karst-system",
                "mesh",
                json!({"mtls": {"mode": "PERMISSIVE"}}),
            ),
        ],
        vec![
            entry("api", json!({})),
            with_endpoints("api"),
            // Addresses that a Service and a pod may have, too.
            entry(
                "api",
                json!({"spec": {"addresses": ["10.96.0.13", "10.0.1.1"]}}),
            ),
            entry("api", json!({"spec": {"location": "MESH_INTERNAL"}})),
        ],
        vec![
            older(entry("same", json!({}))),
            entry("same", json!({"spec": {"exportTo": ["."]}})),
            entry("same", json!({"spec": {"hosts": ["b.example.com"]}})),
        ],
        vec![gateway_api(
            "GatewayClass",
            "karst-waypoint",
            json!({"controllerName": "karst.dev/waypoint-controller"}),
        )],
        vec![
            telemetry("karst-system", "mesh", traced()),
            telemetry("karst-system", "mesh", off("SERVER")),
            telemetry("karst-system", "mesh", web_only(off("CLIENT"))),
        ],
        vec![
            telemetry("shop", "t", target("Service", "web", traced())),
            telemetry("shop", "t", target("Gateway", "wp", off("SERVER"))),
            telemetry("shop", "t", web_only(traced())),
            telemetry("shop", "t", off("SERVER")),
        ],
        vec![
            older(telemetry("shop", "u", web_only(off("SERVER")))),
            older(telemetry("shop", "u", target("Service", "web", json!({})))),
            telemetry("shop", "u", sampled()),
        ],
        vec![collector()],
    ]
}

/// Spans go to the only provider there is.
fn traced() -> Value {
    json!({"tracing": [{"providers": [{"name": "otel"}]}]})
}

fn sampled() -> Value {
    json!({"tracing": [{"randomSamplingPercentage": 7}]})
}

/// A mesh with a provider for spans.
fn mesh(objects: impl IntoIterator<Item = Value>) -> Mesh {
    let mut mesh = Mesh::new([]);
    config(&mut mesh, json!({"extensionProviders": [otel("otel")]}));
    for value in objects {
        mesh.apply(value);
    }
    mesh
}

/// All that the index holds.
fn answers(mesh: &Mesh) -> Answers {
    let mut all = Answers::new();
    for rendered in mesh.0.addresses() {
        all.insert(
            format!("address {}", rendered.name),
            rendered.version.clone(),
        );
    }
    for rendered in mesh.0.authorizations() {
        let name = format!("policy {}", rendered.name);
        all.insert(name, rendered.version.clone());
    }
    for rendered in mesh.0.node_pods("node-1") {
        all.insert(format!("pod {}", rendered.name), rendered.version.clone());
    }
    for gateway in gateways() {
        for kind in PROXY_KINDS {
            for rendered in mesh.0.proxy_resources(&gateway, kind) {
                let name = format!("{gateway} {kind:?} {}", rendered.name);
                all.insert(name, rendered.version.clone());
            }
        }
        if let Some(wanted) = mesh.0.proxy_wanted(&gateway) {
            all.insert(format!("wanted {gateway}"), format!("{wanted:?}"));
        }
    }
    for versions in pool() {
        let key = super::support::object(versions[0].clone()).key;
        if let Some(status) = mesh.0.status(&key) {
            all.insert(format!("status {key}"), format!("{status:?}"));
        }
    }
    all
}

/// Looks up what is announced, as those do who serve it.
fn follow(mesh: &Mesh, changes: &Changes, known: &mut Answers) {
    let mut set = |name: String, value: Option<String>| match value {
        Some(value) => {
            known.insert(name, value);
        }
        None => {
            known.remove(&name);
        }
    };
    for name in &changes.addresses {
        set(
            format!("address {name}"),
            mesh.0.address(name).map(|it| it.version.clone()),
        );
    }
    for name in &changes.authorizations {
        set(
            format!("policy {name}"),
            mesh.0.authorization(name).map(|it| it.version.clone()),
        );
    }
    for (node, name) in &changes.node_pods {
        assert_eq!(node, "node-1");
        set(
            format!("pod {name}"),
            mesh.0.node_pod(node, name).map(|it| it.version.clone()),
        );
    }
    for change in &changes.proxies {
        let found = mesh
            .0
            .proxy_resource(&change.gateway, change.kind, &change.name);
        let name = format!("{} {:?} {}", change.gateway, change.kind, change.name);
        set(name, found.map(|it| it.version.clone()));
    }
    for key in &changes.statuses {
        set(
            format!("status {key}"),
            mesh.0.status(key).map(|it| format!("{it:?}")),
        );
    }
    for gateway in &changes.workloads_wanted {
        let wanted = mesh.0.proxy_wanted(gateway);
        set(
            format!("wanted {gateway}"),
            wanted.map(|it| format!("{it:?}")),
        );
    }
}

/// A step: which object, in which version, or none.
fn steps() -> impl Strategy<Value = Vec<(usize, Option<usize>)>> {
    let step = (0..pool().len(), prop::option::weighted(0.75, 0..8_usize));
    prop::collection::vec(step, 1..60)
}

fn is_namespace(value: &Value) -> bool {
    super::support::object(value.clone()).key.kind == Kind::Namespace
}

fn check(steps: &[(usize, Option<usize>)]) {
    let pool = pool();
    let mut mesh = mesh([pool[0][0].clone()]);
    let mut known = answers(&mesh);
    let mut held: BTreeMap<usize, Value> = BTreeMap::from([(0, pool[0][0].clone())]);
    for (index, version) in steps {
        let versions = &pool[*index];
        let changes = match version {
            Some(version) => {
                let value = versions[version % versions.len()].clone();
                held.insert(*index, value.clone());
                mesh.apply(value)
            }
            // The namespace's mode decides, when a pod is first seen, how it is reached.
            None if is_namespace(&versions[0]) => continue,
            None => {
                held.remove(index);
                mesh.delete(versions[0].clone())
            }
        };
        follow(&mesh, &changes, &mut known);
    }
    let now = answers(&mesh);
    assert_eq!(known, now, "something was not announced");
    let fresh = self::mesh(held.into_values());
    assert_eq!(now, answers(&fresh), "a fresh index ends elsewhere");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn every_order_ends_in_the_same(steps in steps()) {
        check(&steps);
    }
}

/// The Service of a waypoint has no address, so that the waypoint is not ready before nor after, but selects its pods.
#[test]
fn the_service_of_a_waypoint_changes_what_is_behind_it() {
    let (route, waypoint, web, proxy, other, v2, its_service) = (12, 3, 7, 6, 4, 8, 5);
    check(&[
        (route, Some(2)),
        (waypoint, Some(0)),
        (web, Some(3)),
        (proxy, Some(0)),
        (other, Some(0)),
        (v2, Some(1)),
        (its_service, Some(1)),
    ]);
}

#[test]
fn everything_at_once_is_as_one_by_one() {
    let values: Vec<Value> = pool()
        .into_iter()
        .map(|versions| versions[0].clone())
        .collect();
    let one_by_one = mesh(values.clone());
    let mut at_once = mesh([]);
    for value in values.into_iter() {
        at_once.0.stage(super::support::object(value)).unwrap();
    }
    let mut known = Answers::new();
    let changes = at_once.0.flush();
    follow(&at_once, &changes, &mut known);
    assert_eq!(answers(&at_once), answers(&one_by_one));
    assert!(
        known
            .keys()
            .any(|name| name.starts_with("shop/wp Listener "))
    );
}

#[test]
fn nothing_stays_behind() {
    let values: Vec<Value> = pool()
        .into_iter()
        .map(|versions| versions[0].clone())
        .collect();
    let mut mesh = Mesh::new(values.clone());
    assert!(answers(&mesh).len() > 20);
    for value in values {
        mesh.delete(value);
    }
    assert_eq!(answers(&mesh), Answers::new());
}

//! RequestAuthentications: who is served them, and what is said of them.

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use super::{
    support::{Mesh, namespace, service},
    support_l7::{gateway, key, short},
};
use crate::{Kind, ProxyKind};

const KEYS: &str = r#"{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"}]}"#;
const KIND: ProxyKind = ProxyKind::RequestAuthentication;

fn authentication(namespace: &str, name: &str, spec: Value) -> Value {
    let mut whole = json!({"jwtRules": [{"issuer": "https://i", "jwks": KEYS}]});
    let fields = whole.as_object_mut().unwrap();
    fields.extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": name, "namespace": namespace, "generation": 2,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": whole})
}

fn target(kind: &str, name: &str) -> Value {
    let group = if kind == "Service" {
        ""
    } else {
        "gateway.networking.k8s.io"
    };
    json!({"targetRefs": [{"group": group, "kind": kind, "name": name}]})
}

fn attached(mesh: &Mesh) -> String {
    mesh.frontend()
        .map_or("none".to_owned(), |it| it.authentications.join(" "))
}

fn said(mesh: &Mesh, name: &str) -> (Vec<String>, String) {
    let conditions = mesh.conditions(&key(Kind::RequestAuthentication, name));
    let messages: Vec<_> = conditions.iter().map(|it| it.message.as_str()).collect();
    (conditions.iter().map(short).collect(), messages.join(" / "))
}

#[test]
fn a_waypoint_has_those_of_what_it_serves() {
    let mut mesh = Mesh::bound([]);
    let class = || target("GatewayClass", "karst-waypoint");
    for (namespace, name, refs) in [
        ("shop", "service", target("Service", "web")),
        ("shop", "whole", target("Gateway", "wp")),
        ("karst-system", "all", class()),
        ("other", "service", target("Service", "web")),
        ("shop", "class", class()),
        ("shop", "nobody", json!({})),
    ] {
        mesh.apply(authentication(namespace, name, refs));
    }
    let all = "karst-system/all shop/service shop/whole";
    assert_eq!(attached(&mesh), all);
    assert_eq!(mesh.resources(KIND).join(" "), all);
    mesh.delete(authentication("shop", "service", json!({})));
    mesh.delete(authentication("karst-system", "all", json!({})));
    assert_eq!(attached(&mesh), "shop/whole");
    assert_eq!(mesh.resources(KIND), ["shop/whole"]);
}

#[test]
fn a_token_is_reason_enough_for_a_waypoint() {
    let tcp = json!({"spec": {"ports": [{"name": "db", "port": 80, "appProtocol": "tcp"}]}});
    let mut mesh = Mesh::bound([service(tcp)]);
    assert_eq!(attached(&mesh), "none");
    mesh.apply(authentication("shop", "p", target("Service", "web")));
    assert_eq!(attached(&mesh), "shop/p");
}

#[test]
fn a_mistake_leaves_the_former_version_in_force() {
    let mut mesh = Mesh::bound([authentication("shop", "p", target("Service", "web"))]);
    let rules = |mesh: &Mesh| {
        let message: wire::RequestAuthentication = mesh.resource(KIND, "shop/p").unwrap();
        assert!(!message.unusable);
        message.rules
    };
    let good = rules(&mesh);
    let mut bad = target("Service", "web");
    bad["jwtRules"] = json!([{"issuer": "https://other", "jwks": "{}"}]);
    mesh.apply(authentication("shop", "p", bad.clone()));
    assert_eq!(rules(&mesh), good);
    let (conditions, message) = said(&mesh, "p");
    assert_eq!(conditions[0], "Accepted=False/Invalid");
    assert!(
        message.contains("spec.jwtRules[0].jwks") && message.contains("stays in force"),
        "{message}"
    );
    // Without a former version its tokens are refused.
    mesh.delete(authentication("shop", "p", json!({})));
    mesh.apply(authentication("shop", "p", bad));
    let rule = &rules(&mesh)[0];
    assert_eq!(rule.issuer, "https://other");
    assert_eq!(rule.keys, Some(wire::token_rule::Keys::Unusable(true)));
    assert!(said(&mesh, "p").1.contains("take no token"));
}

#[test]
fn the_status_says_who_checks_tokens() {
    let mut mesh = Mesh::bound([]);
    let mut after = |spec: Value| {
        mesh.apply(authentication("shop", "p", spec));
        said(&mesh, "p")
    };
    let bound = [
        "Accepted=True/Accepted",
        "karst.dev/WaypointBound=True/WaypointBound",
    ];
    assert_eq!(after(target("Service", "web")).0, bound);
    assert_eq!(after(target("Gateway", "wp")).0, bound);
    assert_eq!(
        after(target("Service", "gone")).0,
        ["Accepted=False/TargetNotFound"]
    );
    let (conditions, message) = after(json!({"selector": {"matchLabels": {"app": "web"}}}));
    assert_eq!(conditions, ["Accepted=False/UnsupportedValue"]);
    assert!(
        message.contains("spec.selector") && message.contains("spec.targetRefs"),
        "{message}"
    );
    assert_eq!(after(json!({})).0, ["Accepted=False/UnsupportedValue"]);
    assert_eq!(after(target("Service", "web")).0, bound);
}

#[test]
fn the_status_follows_the_waypoint() {
    let own = authentication("shop", "p", target("Service", "web"));
    let mut mesh = Mesh::new([namespace(Some("ambient")), service(json!({})), own]);
    let unbound = "karst.dev/WaypointBound=False/NoWaypoint";
    assert_eq!(said(&mesh, "p").0, ["Accepted=True/Accepted", unbound]);
    mesh.apply(super::support_l7::bound_namespace());
    mesh.apply(gateway(json!({})));
    let not_ready = "karst.dev/WaypointBound=False/WaypointNotReady";
    assert_eq!(said(&mesh, "p").0[1], not_ready);
}

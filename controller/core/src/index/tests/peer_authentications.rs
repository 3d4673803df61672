//! PeerAuthentications: who must list what, and what that refuses.

use karst_api::security::{Action, Match, Scope};
use serde_json::{Value, json};

use super::{
    authorization_policies::{announced, shop},
    support::{Mesh, merged, pod, uid},
};
use crate::{Changes, Kind, Object};

const STRICT: &str = "karst-system/istio_converted_static_strict";

pub(super) fn peer(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": name, "namespace": namespace, "generation": 3,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec})
}

fn mode(mode: &str) -> Value {
    json!({"mtls": {"mode": mode}})
}

/// For pods `app: web`, with modes for ports.
fn web(mode: &str, ports: Value) -> Value {
    let ports = ports.as_object().unwrap().iter();
    let ports: serde_json::Map<String, Value> = ports
        .map(|(port, mode)| (port.clone(), json!({"mode": mode})))
        .collect();
    let mut spec = json!({"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": mode}});
    if !ports.is_empty() {
        spec["portLevelMtls"] = json!(ports);
    }
    spec
}

/// What a resource refuses, in one line.
fn refused(mesh: &Mesh, name: &str) -> String {
    let policy = mesh.policy(name).unwrap();
    assert_eq!(
        (policy.scope(), policy.action()),
        (Scope::WorkloadSelector, Action::Deny)
    );
    assert_eq!(policy.rules.len(), 1);
    let shown = |one: &Match| {
        let mut words = Vec::new();
        if !one.not_principals.is_empty() {
            words.push("plain".to_owned());
        }
        words.extend(
            one.destination_ports
                .iter()
                .map(|port| format!("at {port}")),
        );
        words.extend(
            one.not_destination_ports
                .iter()
                .map(|port| format!("not at {port}")),
        );
        words.join(" ")
    };
    let clauses = policy.rules[0].clauses.iter();
    let clauses = clauses.map(|clause| {
        assert_eq!(clause.matches.len(), 1);
        shown(&clause.matches[0])
    });
    clauses.collect::<Vec<_>>().join(" and ")
}

/// What the pod `a` (`app: web`) and the pod `db` list, under policies of mesh, namespace and pods.
fn check(mesh_mode: &str, namespace_mode: &str, pods: Option<(&str, Value)>, a: &str, db: &str) {
    let mut mesh = shop();
    for (namespace, value) in [("karst-system", mesh_mode), ("shop", namespace_mode)] {
        if !value.is_empty() {
            mesh.apply(peer(namespace, "default", mode(value)));
        }
    }
    let shown = format!("{mesh_mode} {namespace_mode} {pods:?}");
    if let Some((value, ports)) = pods {
        mesh.apply(peer("shop", "p", web(value, ports)));
    }
    let found = |name: &str| match mesh.listed(name).as_str() {
        "" => String::new(),
        STRICT => "plain".to_owned(),
        other => refused(&mesh, other),
    };
    assert_eq!(
        (found("a").as_str(), found("db").as_str()),
        (a, db),
        "{shown}"
    );
}

#[test]
fn each_level_counts_before_the_one_above() {
    let none = || json!({});
    check("", "", None, "", "");
    check("PERMISSIVE", "", None, "", "");
    check("STRICT", "", None, "plain", "plain");
    check("UNSET", "", None, "", "");
    check("DISABLE", "", None, "", "");
    check("STRICT", "PERMISSIVE", None, "", "");
    check("STRICT", "DISABLE", None, "", "");
    check("STRICT", "UNSET", None, "plain", "plain");
    check("PERMISSIVE", "STRICT", None, "plain", "plain");
    check("", "STRICT", None, "plain", "plain");
    check("", "", Some(("STRICT", none())), "plain", "");
    check("STRICT", "", Some(("PERMISSIVE", none())), "", "plain");
    check("STRICT", "", Some(("DISABLE", none())), "", "plain");
    check("STRICT", "", Some(("UNSET", none())), "plain", "plain");
    check("STRICT", "PERMISSIVE", Some(("UNSET", none())), "", "");
    check(
        "STRICT",
        "PERMISSIVE",
        Some(("STRICT", none())),
        "plain",
        "",
    );
    check(
        "PERMISSIVE",
        "STRICT",
        Some(("UNSET", none())),
        "plain",
        "plain",
    );
}

#[test]
fn ports_are_exceptions_from_what_holds_for_the_rest() {
    let one = |mode: &str| json!({"80": mode});
    check(
        "",
        "",
        Some(("STRICT", one("PERMISSIVE"))),
        "plain and not at 80",
        "",
    );
    check(
        "",
        "",
        Some(("STRICT", one("DISABLE"))),
        "plain and not at 80",
        "",
    );
    check("", "", Some(("STRICT", one("STRICT"))), "plain", "");
    check("", "", Some(("STRICT", one("UNSET"))), "plain", "");
    check(
        "",
        "",
        Some(("PERMISSIVE", one("STRICT"))),
        "plain at 80",
        "",
    );
    check("", "", Some(("DISABLE", one("STRICT"))), "plain at 80", "");
    check("", "", Some(("PERMISSIVE", one("PERMISSIVE"))), "", "");
    check("", "", Some(("UNSET", one("STRICT"))), "plain at 80", "");
    check("", "", Some(("UNSET", one("PERMISSIVE"))), "", "");
    check(
        "STRICT",
        "",
        Some(("UNSET", one("PERMISSIVE"))),
        "plain and not at 80",
        "plain",
    );
    check(
        "STRICT",
        "",
        Some(("UNSET", one("DISABLE"))),
        "plain and not at 80",
        "plain",
    );
    check(
        "STRICT",
        "",
        Some(("UNSET", one("STRICT"))),
        "plain",
        "plain",
    );
    check(
        "STRICT",
        "PERMISSIVE",
        Some(("UNSET", one("STRICT"))),
        "plain at 80",
        "",
    );
    check(
        "PERMISSIVE",
        "STRICT",
        Some(("UNSET", one("PERMISSIVE"))),
        "plain and not at 80",
        "plain",
    );
    check(
        "STRICT",
        "",
        Some(("PERMISSIVE", one("STRICT"))),
        "plain at 80",
        "plain",
    );
    let two = json!({"80": "STRICT", "90": "STRICT", "91": "PERMISSIVE"});
    check(
        "",
        "",
        Some(("PERMISSIVE", two.clone())),
        "plain at 80 at 90",
        "",
    );
    check("", "", Some(("STRICT", two)), "plain and not at 91", "");
}

#[test]
fn a_strict_mesh_is_strict_for_every_workload_of_it() {
    let mut mesh = shop();
    let changes = mesh.apply(peer("karst-system", "default", mode("STRICT")));
    for name in ["a", "b", "db", "e"] {
        assert_eq!(mesh.listed(name), STRICT, "{name}");
    }
    assert_eq!(mesh.listed("out"), "", "nobody would enforce it");
    assert_eq!(announced(&changes).len(), 5, "{changes:?}");
    assert_eq!(refused(&mesh, STRICT), "plain");
    mesh.apply(pod("late", "10.0.1.9", json!({})));
    assert_eq!(mesh.listed("late"), STRICT);
    mesh.delete(peer("karst-system", "default", json!({})));
    assert_eq!(mesh.listed("e"), "");
    assert!(mesh.policy(STRICT).is_none());
}

#[test]
fn a_selector_in_the_root_namespace_is_for_that_alone() {
    let mut mesh = shop();
    let changes = mesh.apply(peer("karst-system", "p", web("STRICT", json!({}))));
    assert_eq!(announced(&changes), [STRICT]);
    assert_eq!(mesh.listed("a"), "");
    let (_, message) = mesh.policy_said(Kind::PeerAuthentication, "karst-system", "p");
    assert!(
        message.contains("of namespace karst-system") && message.contains("no other"),
        "{message}"
    );
}

#[test]
fn the_oldest_counts_and_then_the_name() {
    let dated = |name: &str, year: &str, spec: Value| {
        let created = json!({"metadata": {"creationTimestamp": format!("{year}-01-01T00:00:00Z")}});
        merged(peer("shop", name, spec), created)
    };
    let mut mesh = shop();
    mesh.apply(dated("b", "2026", mode("STRICT")));
    mesh.apply(dated("a", "2026", mode("PERMISSIVE")));
    assert_eq!(mesh.listed("db"), "", "a comes before b");
    let said = |mesh: &Mesh, name: &str| {
        mesh.policy_said(Kind::PeerAuthentication, "shop", name).0[0].clone()
    };
    assert_eq!(said(&mesh, "b"), "Accepted=False/Conflicted");
    assert_eq!(said(&mesh, "a"), "Accepted=True/Accepted");
    let changes = mesh.apply(dated("b", "2025", mode("STRICT")));
    assert_eq!(mesh.listed("db"), STRICT);
    assert_eq!(changes.statuses.len(), 2);
    assert_eq!(said(&mesh, "a"), "Accepted=False/Conflicted");
    mesh.apply(dated("y", "2024", web("PERMISSIVE", json!({}))));
    mesh.apply(dated("x", "2025", web("STRICT", json!({}))));
    assert_eq!(mesh.listed("a"), "");
    assert_eq!(said(&mesh, "x"), "Accepted=False/Conflicted");
    mesh.delete(dated("y", "2024", json!({})));
    assert_eq!(said(&mesh, "x"), "Accepted=True/Accepted");
    assert_eq!(mesh.listed("a"), STRICT);
}

#[test]
fn a_change_touches_what_it_changes() {
    let mut mesh = shop();
    mesh.apply(peer("shop", "p", web("UNSET", json!({"80": "PERMISSIVE"}))));
    let converted = "shop/converted_peer_authentication_p";
    assert!(
        mesh.policy(converted).is_none(),
        "80 is no exception so far"
    );
    let (a, b, db) = (uid("a"), uid("b"), uid("db"));
    let changes = mesh.apply(peer("shop", "default", mode("STRICT")));
    assert_eq!(announced(&changes), [a.as_str(), &b, &db, converted]);
    let same = mesh.apply(peer("shop", "default", mode("STRICT")));
    assert_eq!(same, Changes::default());
    let changes = mesh.apply(peer("karst-system", "default", mode("STRICT")));
    assert_eq!(announced(&changes), ["Kubernetes//Pod/other/e"]);
    let changes = mesh.delete(peer("shop", "p", json!({})));
    assert_eq!(announced(&changes), [a.as_str(), &b, converted]);
    assert_eq!(mesh.listed("a"), STRICT);
    let changes = mesh.delete(peer("shop", "default", json!({})));
    assert_eq!(
        announced(&changes),
        Vec::<&str>::new(),
        "the mesh is strict as well"
    );
    assert_eq!(mesh.0.object_count(Kind::PeerAuthentication), 1);
}

#[test]
fn disable_is_permissive_and_says_so() {
    let mut mesh = shop();
    mesh.apply(peer("shop", "p", mode("DISABLE")));
    let (conditions, message) = mesh.policy_said(Kind::PeerAuthentication, "shop", "p");
    assert_eq!(
        conditions,
        [
            "Accepted=True/Accepted",
            "karst.dev/FullyEnforced=False/UnsupportedValue"
        ]
    );
    assert!(
        message.contains("spec.mtls.mode") && message.contains("PERMISSIVE"),
        "{message}"
    );
}

#[test]
fn a_mistake_is_strict_unless_something_was_right_before() {
    for (spec, field) in [
        (mode("strict"), "spec.mtls.mode"),
        (json!({"mtls": {"mode": 5}}), "spec.mtls.mode"),
        (json!({"mtls": {"modes": "STRICT"}}), "spec.mtls.modes"),
        (json!({"mtls": "STRICT"}), "spec.mtls"),
        (json!({"mutualTls": {}}), "spec.mutualTls"),
        (json!(5), "spec"),
        (
            json!({"portLevelMtls": {"80": {"mode": "PERMISSIVE"}}}),
            "spec.portLevelMtls",
        ),
        (
            web("PERMISSIVE", json!({"0": "PERMISSIVE"})),
            "spec.portLevelMtls[0]",
        ),
        (
            web("PERMISSIVE", json!({"http": "STRICT"})),
            "spec.portLevelMtls[http]",
        ),
        (
            web("PERMISSIVE", json!({"80": "MAYBE"})),
            "spec.portLevelMtls[80].mode",
        ),
        (
            json!({"selector": {"matchLabels": {"app": 1}}}),
            "spec.selector.matchLabels[\"app\"]",
        ),
    ] {
        let value = peer("shop", "p", spec);
        let object = Object::from_value(value.clone()).unwrap().unwrap();
        assert_eq!(object.findings[0].field, field);
        let mut mesh = shop();
        mesh.apply(value.clone());
        assert_eq!(mesh.listed("a"), STRICT, "{value}");
        let (conditions, message) = mesh.policy_said(Kind::PeerAuthentication, "shop", "p");
        assert_eq!(conditions[0], "Accepted=False/Invalid");
        assert!(
            message.contains(field) && message.contains("STRICT"),
            "{message}"
        );
        let mut mesh = shop();
        mesh.apply(peer("shop", "p", mode("PERMISSIVE")));
        mesh.apply(value);
        assert_eq!(mesh.listed("a"), "", "the last one without mistakes stays");
    }
}

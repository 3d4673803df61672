//! AuthorizationPolicies with targets: who is served them, and what is said of them.

use karst_api::waypoint::{self as wire, Attribute, attribute_value::Kind as ValueKind};
use serde_json::{Value, json};

use super::{
    authorization_policies::authorization,
    support::{Mesh, namespace, service},
    support_l7::{gateway, key, short},
};
use crate::{Kind, ProxyKind};

fn targeting(refs: Value, spec: Value) -> Value {
    let mut whole = json!({"targetRefs": refs, "rules": [{}]});
    if let (Some(fields), Some(over)) = (whole.as_object_mut(), spec.as_object()) {
        fields.extend(over.clone());
    }
    whole
}

fn web() -> Value {
    json!([{"group": "", "kind": "Service", "name": "web"}])
}

fn class() -> Value {
    json!([{"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "karst-waypoint"}])
}

fn wp() -> Value {
    json!([{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"}])
}

/// Names of policies of the Service `web` at its waypoint.
fn attached(mesh: &Mesh) -> String {
    mesh.frontend()
        .map_or("none".to_owned(), |it| it.policies.join(" "))
}

fn conditions(mesh: &Mesh, name: &str) -> (Vec<String>, String) {
    let conditions = mesh.conditions(&key(Kind::AuthorizationPolicy, name));
    let messages: Vec<_> = conditions.iter().map(|it| it.message.as_str()).collect();
    (conditions.iter().map(short).collect(), messages.join(" / "))
}

#[test]
fn a_waypoint_has_the_policies_of_what_it_serves() {
    let mut mesh = Mesh::bound([]);
    assert_eq!(attached(&mesh), "");
    mesh.apply(authorization(
        "shop",
        "service",
        targeting(web(), json!({})),
    ));
    mesh.apply(authorization("shop", "whole", targeting(wp(), json!({}))));
    mesh.apply(authorization(
        "karst-system",
        "all",
        targeting(class(), json!({})),
    ));
    mesh.apply(authorization(
        "other",
        "service",
        targeting(web(), json!({})),
    ));
    mesh.apply(authorization(
        "shop",
        "class",
        targeting(class(), json!({})),
    ));
    let all = "karst-system/all shop/service shop/whole";
    assert_eq!(attached(&mesh), all);
    let resources = mesh.resources(ProxyKind::AuthorizationPolicy);
    assert_eq!(resources.join(" "), all);
    assert!(mesh.policy("shop/service").is_none(), "not for node agents");
    mesh.delete(authorization("shop", "service", json!({})));
    mesh.delete(authorization("shop", "whole", json!({})));
    assert_eq!(attached(&mesh), "karst-system/all");
    let resources = mesh.resources(ProxyKind::AuthorizationPolicy);
    assert_eq!(resources, ["karst-system/all"]);
}

#[test]
fn a_policy_is_reason_enough_for_a_waypoint() {
    let tcp = json!({"spec": {"ports": [{"name": "db", "port": 80, "appProtocol": "tcp"}]}});
    let mut mesh = Mesh::bound([service(tcp)]);
    assert_eq!(attached(&mesh), "none");
    mesh.apply(authorization("shop", "p", targeting(web(), json!({}))));
    assert_eq!(attached(&mesh), "shop/p");
}

#[test]
fn rules_are_taken_over() {
    let spec = json!({"action": "DENY", "rules": [{
        "from": [{"source": {"serviceAccounts": ["cart"], "notIpBlocks": ["10.0.0.0/8"]}}],
        "to": [{"operation": {"hosts": ["*.example.com"], "paths": ["/a/{*}", "/b*"], "notMethods": ["GET"],
            "ports": ["80"]}}],
        "when": [{"key": "request.headers[X-Team]", "values": ["*"]},
            {"key": "request.auth.claims[a][b]", "notValues": ["x"]}],
    }]});
    let mesh = Mesh::bound([authorization("shop", "p", targeting(web(), spec))]);
    let kind = ProxyKind::AuthorizationPolicy;
    let policy: wire::AuthorizationPolicy = mesh.resource(kind, "shop/p").unwrap();
    assert_eq!(policy.name, "shop/p");
    assert_eq!(policy.action(), wire::PolicyAction::ActionDeny);
    let [rule] = policy.rules.as_slice() else {
        panic!("{policy:?}");
    };
    let shown = |matches: &[wire::AttributeMatch]| {
        let one = |it: &wire::AttributeMatch| {
            let text = |values: &[wire::AttributeValue]| {
                let values = values
                    .iter()
                    .map(|value| match value.kind.as_ref().unwrap() {
                        ValueKind::Exact(text) => text.clone(),
                        ValueKind::Prefix(text) => format!("{text}*"),
                        ValueKind::Suffix(text) => format!("*{text}"),
                        ValueKind::Present(_) => "*".to_owned(),
                        ValueKind::PathTemplate(text) => format!("template {text}"),
                        ValueKind::IpBlock(block) => {
                            format!("{:?}/{}", block.address, block.length)
                        }
                        ValueKind::Port(port) => port.to_string(),
                    });
                values.collect::<Vec<_>>().join("|")
            };
            let not = if it.values.is_empty() { "!" } else { "" };
            let values = [text(&it.values), text(&it.not_values)].concat();
            format!("{:?}{}={not}{values}", it.attribute(), it.key)
        };
        matches.iter().map(one).collect::<Vec<_>>()
    };
    let mut from = shown(&rule.from[0].matches);
    from.sort();
    assert_eq!(
        from,
        [
            "SourceIp=![10, 0, 0, 0]/8",
            "SourceServiceAccount=shop/cart"
        ]
    );
    let mut to = shown(&rule.to[0].matches);
    to.sort();
    let expected = [
        "DestinationPort=80",
        "Host=*.example.com",
        "Method=!GET",
        "Path=template /a/{*}|/b*",
    ];
    assert_eq!(to, expected);
    assert_eq!(shown(&rule.when), ["HeaderX-Team=*", "RequestClaima][b=!x"]);
    assert_eq!(
        Attribute::try_from(rule.when[0].attribute),
        Ok(Attribute::Header)
    );
}

#[test]
fn what_is_not_known_allows_nothing_and_refuses_more() {
    let rules = json!([
        {"from": [{"source": {"trustDomains": ["x"]}}]},
        {"to": [{"operation": {"paths": ["/{*}.txt"]}}]},
        {"to": [{"operation": {"methods": ["GET"]}}]},
    ]);
    let kind = ProxyKind::AuthorizationPolicy;
    let rules_of = |action: &str| {
        let spec = json!({"action": action, "rules": rules.clone()});
        let mesh = Mesh::bound([authorization("shop", "p", targeting(web(), spec))]);
        let policy: wire::AuthorizationPolicy = mesh.resource(kind, "shop/p").unwrap();
        let rules = policy.rules.iter();
        let rules: Vec<_> = rules
            .map(|it| (it.index, it.from.len() + it.to.len()))
            .collect();
        (rules, conditions(&mesh, "p").0)
    };
    let (rules, said) = rules_of("ALLOW");
    assert_eq!(rules, [(2, 1)]);
    assert_eq!(said[0], "Accepted=False/Invalid");
    let (rules, said) = rules_of("DENY");
    assert_eq!(rules, [(0, 0), (1, 0), (2, 1)]);
    assert_eq!(said[2], "karst.dev/FullyEnforced=False/UnsupportedValue");
    assert_eq!(rules_of("AUDIT").0, [(2, 1)]);
    assert_eq!(rules_of("CUSTOM").0.len(), 3);
}

#[test]
fn the_status_says_who_enforces() {
    let mut mesh = Mesh::bound([]);
    let mut said = |refs: Value| {
        mesh.apply(authorization("shop", "p", targeting(refs, json!({}))));
        conditions(&mesh, "p")
    };
    let bound = [
        "Accepted=True/Accepted",
        "karst.dev/WaypointBound=True/WaypointBound",
    ];
    let (conditions, message) = said(web());
    assert_eq!(conditions, bound);
    assert!(
        message.contains("Service shop/web at waypoint shop/wp"),
        "{message}"
    );
    assert_eq!(said(wp()).0, bound);
    let (conditions, message) = said(json!([{"kind": "Service", "name": "gone"}]));
    assert_eq!(conditions, ["Accepted=False/TargetNotFound"]);
    assert!(message.contains("no Service gone"), "{message}");
    let entry = json!([{"group": "networking.istio.io", "kind": "ServiceEntry", "name": "x"}]);
    assert_eq!(said(entry).0, ["Accepted=False/UnsupportedValue"]);
    assert_eq!(said(class()).0, ["Accepted=False/UnsupportedValue"]);
    assert_eq!(
        said(json!([{"kind": "Service"}])).0,
        ["Accepted=False/Invalid"]
    );
}

#[test]
fn a_service_without_a_waypoint_has_nobody_to_enforce() {
    let own = authorization("shop", "p", targeting(web(), json!({})));
    let mut mesh = Mesh::new([namespace(Some("ambient")), service(json!({})), own]);
    let (said, message) = conditions(&mesh, "p");
    let unbound = "karst.dev/WaypointBound=False/NoWaypoint";
    assert_eq!(said, ["Accepted=True/Accepted", unbound]);
    assert!(message.contains("nobody enforces"), "{message}");
    // The namespace gets one, first by its label and then by the Gateway.
    mesh.apply(super::support_l7::bound_namespace());
    assert_eq!(conditions(&mesh, "p").0[1], unbound);
    mesh.apply(gateway(json!({})));
    let not_ready = "karst.dev/WaypointBound=False/WaypointNotReady";
    assert_eq!(conditions(&mesh, "p").0[1], not_ready);
}

#[test]
fn a_policy_without_targets_any_more_is_for_node_agents() {
    let mut mesh = Mesh::bound([authorization("shop", "p", targeting(web(), json!({})))]);
    assert_eq!(attached(&mesh), "shop/p");
    mesh.apply(authorization("shop", "p", json!({"rules": [{}]})));
    assert_eq!(attached(&mesh), "");
    assert!(mesh.policy("shop/p").is_some());
    assert_eq!(conditions(&mesh, "p").0, ["Accepted=True/Accepted"]);
}

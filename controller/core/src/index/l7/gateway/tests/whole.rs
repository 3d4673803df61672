//! From objects to the resources of a gateway's proxy, by the ways that callers have.

use karst_api::waypoint as wire;
use prost::Message;
use serde_json::{Value, json};

use super::support::{Edge, config_map, gateway, https, pem, route, secret, service};
use crate::{
    Changes, GatewayName, Kind, ObjectKey, ProxyKind, StatusContent, index::tests::support::merged,
};

const BACKEND: &str = "shop/web.shop.svc.cluster.local/80";

fn name() -> GatewayName {
    GatewayName::new("shop", "edge")
}

fn names(edge: &Edge, kind: ProxyKind) -> Vec<String> {
    let gateway = name();
    let resources = edge.0.proxy_resources(&gateway, kind);
    resources.map(|rendered| rendered.name.clone()).collect()
}

fn decode<M: Message + Default>(edge: &Edge, kind: ProxyKind, resource: &str) -> M {
    let rendered = edge.0.proxy_resource(&name(), kind, resource).unwrap();
    M::decode(rendered.bytes.as_slice()).unwrap()
}

fn backend(edge: &Edge) -> wire::Backend {
    decode(edge, ProxyKind::Backend, BACKEND)
}

fn policy() -> Value {
    json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
        "metadata": {"name": "p", "namespace": "shop", "generation": 4},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "validation": {"hostname": "web.example.com", "caCertificateRefs": [
                {"group": "", "kind": "ConfigMap", "name": "ca"}]}}})
}

/// Gateway, certificate, route and Service, whose port is declared as TLS.
fn edge() -> Edge {
    let ports = json!([{"name": "https", "port": 80}]);
    Edge::new([
        secret("cert", 0),
        gateway("edge", json!([https(json!({}))])),
        route("HTTPRoute", "r", json!({"name": "edge"})),
        service("web", json!({"spec": {"ports": ports}})),
    ])
}

/// Names of Gateways in the status of the policy, with `Accepted` of each.
fn ancestors(edge: &Edge) -> Vec<(Value, &'static str)> {
    let key = ObjectKey {
        kind: Kind::BackendTlsPolicy,
        namespace: "shop".to_owned(),
        name: "p".to_owned(),
    };
    let StatusContent::Ancestors(found) = edge.0.status(&key).unwrap().content else {
        panic!("a policy has ancestors")
    };
    let found = found.into_iter();
    found
        .map(|each| (each.ancestor_ref["name"].clone(), each.conditions[0].reason))
        .collect()
}

fn changed(changes: &Changes, kind: ProxyKind, resource: &str) -> bool {
    let mut proxies = changes.proxies.iter();
    proxies.any(|change| change.gateway == name() && change.kind == kind && change.name == resource)
}

#[test]
fn a_gateway_is_served_its_listeners_routes_backends_and_secrets() {
    let edge = edge();
    assert_eq!(names(&edge, ProxyKind::Listener), ["socket/443"]);
    assert_eq!(names(&edge, ProxyKind::Route), ["HTTPRoute/shop/r"]);
    assert_eq!(names(&edge, ProxyKind::Backend), [BACKEND]);
    assert_eq!(names(&edge, ProxyKind::TlsSecret), ["Secret/shop/cert"]);
    assert_eq!(backend(&edge).protocol(), wire::Protocol::Tls);
}

#[test]
fn a_policy_puts_tls_between_proxy_and_application_or_stops_all() {
    let mut edge = edge();
    let changes = edge.apply(policy());
    assert!(changed(&changes, ProxyKind::Backend, BACKEND));
    assert_eq!(backend(&edge).invalid, "InvalidCACertificateRef");
    assert_eq!(ancestors(&edge), [(json!("edge"), "NoValidCACertificate")]);

    let changes = edge.apply(config_map("ca", &pem(0).certificate));
    assert!(changed(&changes, ProxyKind::TlsSecret, "ConfigMap/shop/ca"));
    let found = backend(&edge);
    assert_eq!(found.invalid, "");
    assert_eq!(found.tls.unwrap().authorities, ["ConfigMap/shop/ca"]);
    assert_eq!(found.protocol, i32::from(wire::Protocol::Undeclared));
    assert_eq!(ancestors(&edge), [(json!("edge"), "Accepted")]);

    edge.delete(config_map("ca", ""));
    assert_eq!(backend(&edge).invalid, "InvalidCACertificateRef");
    edge.delete(policy());
    let found = backend(&edge);
    assert_eq!((found.invalid.as_str(), found.tls), ("", None));
}

#[test]
fn the_status_of_a_policy_follows_who_sends_to_the_service() {
    let mut edge = edge();
    edge.apply(config_map("ca", &pem(0).certificate));
    edge.apply(policy());
    assert_eq!(ancestors(&edge).len(), 1);
    let changes = edge.delete(route("HTTPRoute", "r", json!({})));
    assert!(ancestors(&edge).is_empty());
    let mut statuses = changes.statuses.iter();
    assert!(statuses.any(|key| key.kind == Kind::BackendTlsPolicy));
    edge.apply(route("HTTPRoute", "r", json!({"name": "edge"})));
    assert_eq!(ancestors(&edge).len(), 1);
    edge.delete(gateway("edge", json!([])));
    assert!(ancestors(&edge).is_empty());
}

#[test]
fn a_renewed_certificate_is_sent_and_nothing_else() {
    let mut edge = edge();
    let changes = edge.apply(secret("cert", 1));
    assert!(changed(&changes, ProxyKind::TlsSecret, "Secret/shop/cert"));
    assert_eq!(changes.proxies.len(), 1);
    let found: wire::TlsSecret = decode(&edge, ProxyKind::TlsSecret, "Secret/shop/cert");
    assert_eq!(found.certificate_chain, pem(1).certificate);
    edge.delete(secret("cert", 1));
    assert!(names(&edge, ProxyKind::TlsSecret).is_empty());
    assert!(names(&edge, ProxyKind::Listener).is_empty());
}

#[test]
fn the_certificate_towards_backends_is_sent_once_there_is_a_policy() {
    let mut edge = edge();
    let tls = json!({"spec": {"tls": {"backend": {"clientCertificateRef": {"name": "own"}}}}});
    edge.apply(config_map("ca", &pem(0).certificate));
    edge.apply(policy());
    edge.apply(merged(gateway("edge", json!([https(json!({}))])), tls));
    assert_eq!(backend(&edge).invalid, "InvalidClientCertificateRef");
    edge.apply(secret("own", 1));
    let found = backend(&edge);
    assert_eq!(found.invalid, "");
    assert_eq!(found.tls.unwrap().client_certificate, "Secret/shop/own");
    assert!(names(&edge, ProxyKind::TlsSecret).contains(&"Secret/shop/own".to_owned()));
}

//! BackendTLSPolicies.

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use super::support::{Edge, GENERATION, config_map, gateway, http, pem, secret, service};
use crate::{
    AncestorStatus, GatewayName, Kind, ObjectKey, StatusContent,
    index::{
        NsName,
        l7::tls::BackendTls,
        tests::support::{error, merged},
    },
};

fn policy(name: &str, over: Value) -> Value {
    let base = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
        "metadata": {"name": name, "namespace": "shop", "generation": GENERATION},
        "spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "api"}],
            "validation": {"hostname": "api.example.com", "caCertificateRefs": [
                {"group": "", "kind": "ConfigMap", "name": "ca"}]}}});
    merged(base, over)
}

fn age(second: u32) -> Value {
    json!({"metadata": {"creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")}})
}

fn section(name: &str) -> Value {
    json!({"spec": {"targetRefs": [
        {"group": "", "kind": "Service", "name": "api", "sectionName": name}]}})
}

fn validation(over: Value) -> Value {
    json!({"spec": {"validation": over}})
}

/// The Service `api` with the ports `https-1` and `https-2`, a Gateway that sends to it, authorities.
fn edge(objects: impl IntoIterator<Item = Value>) -> Edge {
    let ports = json!([{"name": "https-1", "port": 443}, {"name": "https-2", "port": 8443}]);
    let fixed = [
        service("api", json!({"spec": {"ports": ports}})),
        gateway("web", json!([http(json!({}))])),
        config_map("ca", &pem(0).certificate),
    ];
    let mut edge = Edge::new(fixed);
    let users = [GatewayName::new("shop", "web")].into();
    edge.0
        .l7
        .backend_users
        .insert(NsName::new("shop", "api"), users);
    for value in objects {
        // As when the proxy sends there already: nothing else is looked at.
        let object = crate::index::tests::support::object(value);
        edge.0.stage(object).unwrap();
    }
    edge
}

fn ancestors(edge: &Edge, name: &str) -> Vec<AncestorStatus> {
    let key = ObjectKey {
        kind: Kind::BackendTlsPolicy,
        namespace: "shop".to_owned(),
        name: name.to_owned(),
    };
    let status = edge.0.backend_tls_status(&key).unwrap();
    assert_eq!(status.generation, GENERATION);
    match status.content {
        StatusContent::Ancestors(ancestors) => ancestors,
        other => panic!("{other:?}"),
    }
}

/// `Accepted` and `ResolvedRefs` of a policy at the Gateway.
fn conditions(edge: &Edge, name: &str) -> [String; 2] {
    let ancestors = ancestors(edge, name);
    assert_eq!(ancestors.len(), 1);
    let expected = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway",
        "namespace": "shop", "name": "web"});
    assert_eq!(ancestors[0].ancestor_ref, expected);
    assert_eq!(ancestors[0].controller, "karst.dev/gateway-controller");
    ["Accepted", "ResolvedRefs"].map(|kind| {
        let found = ancestors[0]
            .conditions
            .iter()
            .find(|each| each.kind == kind)
            .unwrap();
        format!("{} {}", found.status.as_str(), found.reason)
    })
}

/// TLS towards port `https-1` or `https-2` of the Service.
fn tls(edge: &Edge, port: usize) -> BackendTls {
    let service = NsName::new("shop", "api");
    let port = edge.0.services[&service].ports[port].clone();
    let gateway = GatewayName::new("shop", "web");
    edge.0.backend_tls(&gateway, &service, &port)
}

fn hostname(tls: BackendTls) -> String {
    match tls {
        BackendTls::Tls(tls, _) => tls.hostname,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_policy_says_whom_to_trust_and_what_name_to_ask_for() {
    let names = json!({"subjectAltNames": [{"type": "Hostname", "hostname": "x.com"},
        {"type": "URI", "uri": "spiffe://a/ns/b"}]});
    let edge = edge([policy("p", validation(names))]);
    assert_eq!(
        conditions(&edge, "p"),
        ["True Accepted", "True ResolvedRefs"]
    );
    let BackendTls::Tls(found, secrets) = tls(&edge, 0) else {
        panic!("there is a policy")
    };
    assert_eq!(found.hostname, "api.example.com");
    assert_eq!(found.authorities, ["ConfigMap/shop/ca"]);
    assert!(!found.system_authorities && found.client_certificate.is_empty());
    assert_eq!(
        secrets.into_iter().collect::<Vec<_>>(),
        ["ConfigMap/shop/ca"]
    );
    let names: Vec<_> = found
        .subject_alt_names
        .into_iter()
        .filter_map(|name| name.kind)
        .collect();
    let expected = [
        wire::subject_alt_name::Kind::Hostname("x.com".to_owned()),
        wire::subject_alt_name::Kind::Uri("spiffe://a/ns/b".to_owned()),
    ];
    assert_eq!(names, expected);
}

#[test]
fn without_a_policy_there_is_no_tls() {
    assert_eq!(tls(&edge([]), 0), BackendTls::None);
    let other =
        json!({"spec": {"targetRefs": [{"group": "", "kind": "Service", "name": "other"}]}});
    assert_eq!(tls(&edge([policy("p", other)]), 0), BackendTls::None);
}

/// What becomes of a policy whose authorities cannot be used.
fn check_invalid(over: Value, accepted: &str, resolved: &str, reason: &'static str) {
    let edge = edge([
        policy("p", validation(over.clone())),
        config_map("garbage", "Hello world"),
    ]);
    assert_eq!(conditions(&edge, "p"), [accepted, resolved], "{over}");
    assert_eq!(tls(&edge, 0), BackendTls::Invalid(reason), "{over}");
}

#[test]
fn without_authorities_nothing_is_sent() {
    let references = |reference: Value| json!({"caCertificateRefs": [reference]});
    let (no, bad) = ("False NoValidCACertificate", "InvalidCACertificateRef");
    let unresolved = "False InvalidCACertificateRef";
    let map = |name: &str| references(json!({"group": "", "kind": "ConfigMap", "name": name}));
    check_invalid(map("missing"), no, unresolved, bad);
    check_invalid(map("garbage"), no, unresolved, bad);
    let kind = references(json!({"group": "x.io", "kind": "Odd", "name": "ca"}));
    check_invalid(kind, no, "False InvalidKind", "InvalidKind");
    let known = json!({"caCertificateRefs": null, "wellKnownCACertificates": "example.com/own"});
    check_invalid(known, "False Invalid", "True ResolvedRefs", "Invalid");
    let nothing = json!({"caCertificateRefs": null});
    check_invalid(nothing, "False Invalid", "True ResolvedRefs", "Invalid");
    let both = json!({"wellKnownCACertificates": "System"});
    check_invalid(both, "False Invalid", "True ResolvedRefs", "Invalid");
}

#[test]
fn authorities_may_be_those_of_the_system_or_in_a_secret() {
    let system = json!({"caCertificateRefs": null, "wellKnownCACertificates": "System"});
    let with_system = edge([policy("p", validation(system))]);
    assert_eq!(
        conditions(&with_system, "p"),
        ["True Accepted", "True ResolvedRefs"]
    );
    assert!(matches!(tls(&with_system, 0), BackendTls::Tls(tls, _) if tls.system_authorities));

    let mut value = secret("ca-secret", 0);
    value["stringData"]["ca.crt"] = json!(pem(1).certificate);
    let reference = json!({"caCertificateRefs": [{"kind": "Secret", "name": "ca-secret"}]});
    let with_secret = edge([value, policy("p", validation(reference))]);
    assert!(matches!(tls(&with_secret, 0),
        BackendTls::Tls(tls, _) if tls.authorities == ["SecretAuthorities/shop/ca-secret"]));
}

#[test]
fn one_usable_authority_of_several_is_trusted() {
    let references = json!({"caCertificateRefs": [
        {"group": "", "kind": "ConfigMap", "name": "missing"},
        {"group": "", "kind": "ConfigMap", "name": "ca"}]});
    let edge = edge([policy("p", validation(references))]);
    assert_eq!(
        conditions(&edge, "p"),
        ["True Accepted", "False InvalidCACertificateRef"]
    );
    assert!(matches!(tls(&edge, 0),
        BackendTls::Tls(tls, _) if tls.authorities == ["ConfigMap/shop/ca"]));
}

fn with_hostname(name: &str, hostname: &str, over: Value) -> Value {
    merged(
        policy(name, validation(json!({"hostname": hostname}))),
        over,
    )
}

#[test]
fn of_two_policies_for_the_same_the_older_is_in_force() {
    let (yes, no) = ("True Accepted", "False Conflicted");
    let whole = edge([
        with_hostname("a", "a.com", age(2)),
        with_hostname("b", "b.com", age(1)),
    ]);
    assert_eq!(conditions(&whole, "a")[0], no);
    assert_eq!(conditions(&whole, "b")[0], yes);
    assert_eq!(hostname(tls(&whole, 0)), "b.com");

    let same_age = edge([
        with_hostname("b", "b.com", age(1)),
        with_hostname("a", "a.com", age(1)),
    ]);
    assert_eq!(hostname(tls(&same_age, 0)), "a.com");

    let ports = edge([
        with_hostname("a", "a.com", merged(age(1), section("https-1"))),
        with_hostname("b", "b.com", merged(age(2), section("https-1"))),
    ]);
    assert_eq!(conditions(&ports, "a")[0], yes);
    assert_eq!(conditions(&ports, "b")[0], no);
    assert_eq!(hostname(tls(&ports, 0)), "a.com");
    assert_eq!(tls(&ports, 1), BackendTls::None);
}

#[test]
fn a_policy_for_a_port_comes_before_one_for_the_service() {
    let edge = edge([
        with_hostname("whole", "whole.com", age(1)),
        with_hostname("port", "port.com", merged(age(2), section("https-1"))),
    ]);
    for name in ["whole", "port"] {
        assert_eq!(conditions(&edge, name)[0], "True Accepted");
    }
    assert_eq!(hostname(tls(&edge, 0)), "port.com");
    assert_eq!(hostname(tls(&edge, 1)), "whole.com");
}

#[test]
fn an_older_policy_that_is_invalid_does_not_give_way() {
    let bad = json!({"spec": {"validation": {"caCertificateRefs": [
        {"group": "", "kind": "ConfigMap", "name": "missing"}]}}});
    let edge = edge([
        with_hostname("old", "old.com", merged(age(1), bad)),
        with_hostname("new", "new.com", age(2)),
    ]);
    assert_eq!(
        tls(&edge, 0),
        BackendTls::Invalid("InvalidCACertificateRef")
    );
}

#[test]
fn a_gateway_shows_its_certificate_to_backends() {
    let with = |name: &str| {
        let tls = json!({"spec": {"tls": {"backend": {"clientCertificateRef": {"name": name}}}}});
        merged(gateway("web", json!([http(json!({}))])), tls)
    };
    let mut good = edge([secret("own", 1), with("own"), policy("p", json!({}))]);
    good.0.refresh_view(&GatewayName::new("shop", "web"));
    let BackendTls::Tls(found, secrets) = tls(&good, 0) else {
        panic!("there is a policy")
    };
    assert_eq!(found.client_certificate, "Secret/shop/own");
    assert!(secrets.contains("Secret/shop/own"));

    let mut bad = edge([with("missing"), policy("p", json!({}))]);
    bad.0.refresh_view(&GatewayName::new("shop", "web"));
    assert_eq!(
        tls(&bad, 0),
        BackendTls::Invalid("InvalidClientCertificateRef")
    );
}

#[test]
fn a_target_that_is_not_there_is_reported() {
    let target = |target: Value| json!({"spec": {"targetRefs": [target]}});
    for reference in [
        json!({"group": "", "kind": "Service", "name": "missing"}),
        json!({"group": "", "kind": "Pod", "name": "api"}),
    ] {
        let edge = edge([policy("p", target(reference.clone()))]);
        let found = ancestors(&edge, "p");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].ancestor_ref, reference);
        assert_eq!(found[0].conditions[0].reason, "TargetNotFound");
    }
    let edge = edge([policy("p", section("none"))]);
    let found = ancestors(&edge, "p");
    assert_eq!(found[1].conditions[0].reason, "TargetNotFound");
    assert_eq!(found[1].ancestor_ref["sectionName"], "none");
}

#[test]
fn what_cannot_be_a_policy_is_refused_by_the_name_of_its_field() {
    let field = |over: Value| error(policy("p", validation(over))).field;
    assert_eq!(field(json!({"hostname": ""})), "spec.validation.hostname");
    assert_eq!(
        field(json!({"hostname": "*.a.com"})),
        "spec.validation.hostname"
    );
    assert_eq!(
        field(json!({"hostname": "10.0.0.1"})),
        "spec.validation.hostname"
    );
    let names = |name: Value| json!({"subjectAltNames": [name]});
    assert_eq!(
        field(names(json!({"type": "Odd"}))),
        "spec.validation.subjectAltNames[0].type"
    );
    assert_eq!(
        field(names(json!({"type": "URI", "uri": "x"}))),
        "spec.validation.subjectAltNames[0].uri"
    );
    assert_eq!(
        field(names(json!({"type": "Hostname"}))),
        "spec.validation.subjectAltNames[0].hostname"
    );
}

//! Certificates, authorities, and who may use them.

use serde_json::{Value, json};

use super::support::{Edge, config_map, gateway, grant, http, https, pem, secret, tls};
use crate::{
    Kind,
    index::tests::support::{merged, object},
    object::Body,
};

const GATEWAY: Kind = Kind::Gateway;

/// `ResolvedRefs` of an HTTPS listener with that reference to a certificate.
fn check_certificate(reference: Value, objects: Vec<Value>, expected: &str) {
    let listener = https(json!({"tls": {"certificateRefs": [reference]}}));
    let edge = Edge::new(
        objects
            .into_iter()
            .chain([gateway("web", json!([listener]))]),
    );
    assert_eq!(
        edge.of_listener("web", "https", "ResolvedRefs"),
        expected,
        "{reference}"
    );
    assert_eq!(
        edge.of_listener("web", "https", "Accepted"),
        "True Accepted"
    );
    let resolved = expected.starts_with("True");
    let programmed = if resolved {
        "True Programmed"
    } else {
        "False Invalid"
    };
    assert_eq!(edge.of_listener("web", "https", "Programmed"), programmed);
    assert_eq!(edge.served("web", "https").is_some(), resolved);
    assert_eq!(edge.kinds("web", "https"), ["HTTPRoute", "GRPCRoute"]);
}

fn malformed(certificate: &str, key: &str) -> Value {
    merged(
        secret("cert", 0),
        json!({"stringData": {"tls.crt": certificate, "tls.key": key}}),
    )
}

#[test]
fn certificates_must_be_there_and_usable() {
    let bad = "False InvalidCertificateRef";
    let cert = || json!({"name": "cert"});
    check_certificate(cert(), vec![secret("cert", 0)], "True ResolvedRefs");
    check_certificate(cert(), vec![], bad);
    check_certificate(
        json!({"group": "example.com", "name": "cert"}),
        vec![secret("cert", 0)],
        bad,
    );
    check_certificate(
        json!({"kind": "Odd", "name": "cert"}),
        vec![secret("cert", 0)],
        bad,
    );
    check_certificate(
        json!({"kind": "ConfigMap", "name": "cert"}),
        vec![secret("cert", 0)],
        bad,
    );
    check_certificate(cert(), vec![malformed("Hello world", "Hello world")], bad);
    check_certificate(
        cert(),
        vec![malformed(&pem(0).certificate, "Hello world")],
        bad,
    );
    check_certificate(
        cert(),
        vec![malformed(&pem(0).certificate, &pem(1).key)],
        bad,
    );
    check_certificate(cert(), vec![malformed(&pem(0).key, &pem(0).key)], bad);
    check_certificate(cert(), vec![config_map("cert", &pem(0).certificate)], bad);
    let only_key = merged(secret("cert", 0), json!({"stringData": {"tls.crt": null}}));
    check_certificate(cert(), vec![only_key], bad);
}

#[test]
fn a_listener_without_certificates_is_not_served() {
    let listener = https(json!({"tls": null}));
    let edge = Edge::new([gateway("web", json!([listener]))]);
    assert_eq!(
        edge.of_listener("web", "https", "ResolvedRefs"),
        "False InvalidCertificateRef"
    );
    // What is passed on unopened needs none.
    let edge = Edge::new([gateway("web", json!([tls("Passthrough", json!({}))]))]);
    assert_eq!(
        edge.of_listener("web", "tls", "ResolvedRefs"),
        "True ResolvedRefs"
    );
}

#[test]
fn one_usable_certificate_of_several_is_used() {
    let references = json!([{"name": "cert"}, {"name": "missing"}]);
    let listener = https(json!({"tls": {"certificateRefs": references}}));
    let edge = Edge::new([secret("cert", 0), gateway("web", json!([listener]))]);
    assert_eq!(
        edge.of_listener("web", "https", "ResolvedRefs"),
        "False InvalidCertificateRef"
    );
    assert_eq!(
        edge.of_listener("web", "https", "Programmed"),
        "True Programmed"
    );
    assert_eq!(
        edge.served("web", "https").unwrap().certificates,
        ["Secret/shop/cert"]
    );
}

#[test]
fn certificates_of_other_namespaces_need_a_grant() {
    let no = "False RefNotPermitted";
    let check = |grants: Vec<Value>, expected| {
        let objects = grants
            .into_iter()
            .chain([secret("infra/cert", 0)])
            .collect();
        check_certificate(
            json!({"name": "cert", "namespace": "infra"}),
            objects,
            expected,
        );
    };
    let secrets = || json!({"group": "", "kind": "Secret"});
    let one = |name: &str| json!({"group": "", "kind": "Secret", "name": name});
    check(vec![], no);
    check(
        vec![grant("Gateway", "shop", secrets())],
        "True ResolvedRefs",
    );
    check(
        vec![grant("Gateway", "shop", one("cert"))],
        "True ResolvedRefs",
    );
    check(vec![grant("Gateway", "shop", one(""))], "True ResolvedRefs");
    check(vec![grant("Gateway", "shop", one("other"))], no);
    check(vec![grant("Gateway", "other", secrets())], no);
    check(vec![grant("HTTPRoute", "shop", secrets())], no);
    check(
        vec![grant(
            "Gateway",
            "shop",
            json!({"group": "", "kind": "Service"}),
        )],
        no,
    );
    check(
        vec![grant(
            "Gateway",
            "shop",
            json!({"group": "x.io", "kind": "Secret"}),
        )],
        no,
    );
    let elsewhere = merged(
        grant("Gateway", "shop", secrets()),
        json!({"metadata": {"namespace": "shop"}}),
    );
    check(vec![elsewhere], no);
    // Whether there is such a Secret is nobody's business without a grant.
    check_certificate(json!({"name": "cert", "namespace": "infra"}), vec![], no);
}

fn with_client_certificate(reference: Value) -> Value {
    let tls = json!({"spec": {"tls": {"backend": {"clientCertificateRef": reference}}}});
    merged(gateway("web", json!([http(json!({}))])), tls)
}

#[test]
fn the_certificate_towards_backends_is_checked_without_harm_to_listeners() {
    let bad = "False InvalidClientCertificateRef";
    for (reference, expected) in [
        (json!({"name": "cert"}), "True ResolvedRefs"),
        (json!({"name": "missing"}), bad),
        (json!({"group": "x.io", "name": "cert"}), bad),
        (json!({"kind": "Odd", "name": "cert"}), bad),
        (json!({"name": "empty"}), bad),
        (
            json!({"name": "cert", "namespace": "infra"}),
            "False RefNotPermitted",
        ),
    ] {
        let empty = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "empty", "namespace": "shop"}, "data": {}});
        let edge = Edge::new([
            secret("cert", 0),
            secret("infra/cert", 0),
            empty,
            with_client_certificate(reference.clone()),
        ]);
        assert_eq!(
            edge.condition(GATEWAY, "web", "ResolvedRefs"),
            expected,
            "{reference}"
        );
        assert_eq!(edge.condition(GATEWAY, "web", "Accepted"), "True Accepted");
        assert_eq!(
            edge.of_listener("web", "http", "Programmed"),
            "True Programmed"
        );
    }
}

fn validation(reference: Value, mode: &str) -> Value {
    json!({"validation": {"mode": mode, "caCertificateRefs": [reference]}})
}

fn authorities(name: &str) -> Value {
    json!({"group": "", "kind": "ConfigMap", "name": name})
}

#[test]
fn client_validation_that_cannot_be_done_takes_its_listeners_out() {
    let per_port = |port: u16, reference: Value| json!({"port": port, "tls": validation(reference, "AllowValidOnly")});
    let far = json!({"group": "", "kind": "ConfigMap", "name": "far", "namespace": "infra"});
    let frontend = json!({"default": validation(authorities("ca"), "AllowValidOnly"), "perPort": [
        per_port(7443, authorities("missing")),
        per_port(8443, json!({"group": "", "kind": "Service", "name": "web"})),
        per_port(6443, far),
        per_port(5443, authorities("garbage")),
    ]});
    let listener = |port: u16| https(json!({"name": format!("l{port}"), "port": port}));
    let listeners = json!([
        listener(443),
        listener(7443),
        listener(8443),
        listener(6443),
        listener(5443),
        http(json!({"port": 7080}))
    ]);
    let edge = Edge::new([
        secret("cert", 0),
        config_map("ca", &pem(1).certificate),
        config_map("garbage", "Hello world"),
        config_map("infra/far", &pem(1).certificate),
        merged(
            gateway("web", listeners),
            json!({"spec": {"tls": {"frontend": frontend}}}),
        ),
    ]);
    for condition in ["ResolvedRefs", "Accepted", "Programmed"] {
        for listener in ["l443", "http"] {
            let found = edge.of_listener("web", listener, condition);
            assert!(found.starts_with("True"), "{listener} {condition} {found}");
        }
    }
    for (listener, resolved) in [
        ("l7443", "False InvalidCACertificateRef"),
        ("l8443", "False InvalidCACertificateKind"),
        ("l6443", "False RefNotPermitted"),
        ("l5443", "False InvalidCACertificateRef"),
    ] {
        assert_eq!(edge.of_listener("web", listener, "ResolvedRefs"), resolved);
        assert_eq!(
            edge.of_listener("web", listener, "Accepted"),
            "False NoValidCACertificate"
        );
        assert_eq!(
            edge.of_listener("web", listener, "Programmed"),
            "False Invalid"
        );
        assert_eq!(edge.served("web", listener), None);
    }
    let served = edge.served("web", "l443").unwrap();
    let validation = served.client_validation.unwrap();
    assert_eq!(validation.authorities, ["ConfigMap/shop/ca"]);
    assert!(!validation.allow_insecure_fallback);
    assert_eq!(edge.served("web", "http").unwrap().client_validation, None);
    assert_eq!(
        edge.condition(GATEWAY, "web", "InsecureFrontendValidationMode"),
        "-"
    );
}

#[test]
fn a_port_without_validation_is_an_exception_from_the_default() {
    let frontend = json!({"default": validation(authorities("ca"), "AllowValidOnly"),
        "perPort": [{"port": 8443, "tls": {}}]});
    let listeners = json!([
        https(json!({})),
        https(json!({"name": "open", "port": 8443}))
    ]);
    let edge = Edge::new([
        secret("cert", 0),
        config_map("ca", &pem(1).certificate),
        merged(
            gateway("web", listeners),
            json!({"spec": {"tls": {"frontend": frontend}}}),
        ),
    ]);
    assert!(
        edge.served("web", "https")
            .unwrap()
            .client_validation
            .is_some()
    );
    assert!(
        edge.served("web", "open")
            .unwrap()
            .client_validation
            .is_none()
    );
}

#[test]
fn a_fallback_to_clients_without_certificates_is_pointed_out() {
    let frontend = json!({"default": validation(authorities("ca"), "AllowInsecureFallback")});
    let edge = Edge::new([
        secret("cert", 0),
        config_map("ca", &pem(1).certificate),
        merged(
            gateway("web", json!([https(json!({}))])),
            json!({"spec": {"tls": {"frontend": frontend}}}),
        ),
    ]);
    assert_eq!(
        edge.condition(GATEWAY, "web", "InsecureFrontendValidationMode"),
        "True ConfigurationChanged"
    );
    let validation = edge
        .served("web", "https")
        .unwrap()
        .client_validation
        .unwrap();
    assert!(validation.allow_insecure_fallback);
}

#[test]
fn secrets_are_sent_with_what_is_needed_of_them_alone() {
    let mut value = secret("both", 0);
    value["stringData"]["ca.crt"] = json!(pem(1).certificate);
    let edge = Edge::new([value, config_map("ca", &pem(1).certificate)]);
    let certificate = edge.0.tls_secret("Secret/shop/both").unwrap();
    assert_eq!(certificate.name, "Secret/shop/both");
    assert_eq!(certificate.certificate_chain, pem(0).certificate);
    assert_eq!(certificate.private_key, pem(0).key.as_bytes());
    assert!(certificate.authorities.is_empty());
    for name in ["SecretAuthorities/shop/both", "ConfigMap/shop/ca"] {
        let authorities = edge.0.tls_secret(name).unwrap();
        assert_eq!(authorities.authorities, pem(1).certificate);
        assert!(authorities.private_key.is_empty() && authorities.certificate_chain.is_empty());
    }
    for name in [
        "Secret/shop/none",
        "ConfigMap/shop/both",
        "Odd/shop/both",
        "Secret",
        "",
    ] {
        assert_eq!(edge.0.tls_secret(name), None, "{name}");
    }
}

#[test]
fn secrets_without_certificates_are_not_kept() {
    let opaque = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "x", "namespace": "shop"}, "stringData": {"password": "1"}});
    assert_eq!(object(opaque).body, Body::Secret(None));
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "x", "namespace": "shop"}, "data": {"key": "1"}});
    assert_eq!(object(map).body, Body::ConfigMap(None));
    let mut edge = Edge::new([secret("x", 0)]);
    assert_eq!(edge.0.object_count(Kind::Secret), 1);
    let emptied = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "x", "namespace": "shop"}});
    edge.apply(emptied);
    assert_eq!(edge.0.object_count(Kind::Secret), 0);
}

#[test]
fn a_key_is_not_shown() {
    let found = object(secret("x", 0));
    let shown = format!("{found:?}");
    assert!(!shown.contains("BEGIN"), "{shown}");
    let bad = object(malformed("Hello world", "secret words"));
    assert_eq!(bad.findings.len(), 1);
    assert!(!format!("{bad:?}").contains("secret words"));
}

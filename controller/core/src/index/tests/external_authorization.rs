//! Policies that ask an external authorizer: what proxies are served for them, and what is said of them.

use karst_api::waypoint::{self as wire, PolicyAction};
use serde_json::{Value, json};

use super::{
    authorization_policies::authorization,
    support::{Mesh, merged, object, service},
    support_l7::{key, short},
};
use crate::{Changes, ExtensionProviders, Kind, ProxyKind};

const AUTH: &str = "sec/auth.sec.svc.cluster.local/9000";

fn custom(target: &str, kind: &str, provider: &str) -> Value {
    let group = match kind {
        "Service" => "",
        _ => "gateway.networking.k8s.io",
    };
    json!({"action": "CUSTOM", "provider": {"name": provider},
        "targetRefs": [{"group": group, "kind": kind, "name": target}],
        "rules": [{"to": [{"operation": {"paths": ["/admin*"]}}]}]})
}

fn policy(name: &str, provider: &str) -> Value {
    authorization("shop", name, custom("web", "Service", provider))
}

fn auth_service() -> Value {
    let over = json!({"metadata": {"name": "auth", "namespace": "sec"}, "spec": {"clusterIP": "10.96.0.77", "selector": {"app": "auth"},
        "ports": [{"name": "grpc", "port": 9000}]}});
    service(over)
}

fn providers(list: Value) -> ExtensionProviders {
    let config = json!({"extensionProviders": list});
    ExtensionProviders::read(&config).unwrap().0
}

fn grpc(name: &str, over: Value) -> Value {
    let spec = json!({"service": "auth.sec.svc.cluster.local", "port": 9000});
    json!({"name": name, "envoyExtAuthzGrpc": merged(spec, over)})
}

fn set(mesh: &mut Mesh, list: Value) -> Changes {
    mesh.0.set_extension_providers(providers(list))
}

fn served(mesh: &Mesh) -> wire::AuthorizationPolicy {
    let kind = ProxyKind::AuthorizationPolicy;
    mesh.resource(kind, "shop/p").unwrap()
}

fn said(mesh: &Mesh, name: &str) -> (String, String) {
    let conditions = mesh.conditions(&key(Kind::AuthorizationPolicy, name));
    (short(&conditions[0]), conditions[0].message.clone())
}

#[test]
fn a_provider_travels_with_its_policy_and_its_backend() {
    let mut mesh = Mesh::bound([auth_service()]);
    set(
        &mut mesh,
        json!([grpc("a", json!({"failOpen": true, "timeout": "1s"}))]),
    );
    mesh.apply(policy("p", "a"));
    let policy = served(&mesh);
    assert_eq!(policy.action(), PolicyAction::ActionCustom);
    assert_eq!(policy.rules.len(), 1);
    let provider = policy.provider.unwrap();
    assert_eq!(provider.name, "a");
    assert_eq!(provider.backend, AUTH);
    assert_eq!(provider.invalid, "");
    assert!(provider.fail_open);
    assert_eq!(provider.timeout_ms, 1000);
    let backends = mesh.resources(ProxyKind::Backend);
    assert!(backends.contains(&AUTH.to_owned()), "{backends:?}");
    assert_eq!(said(&mesh, "p").0, "Accepted=True/Accepted");
    assert!(mesh.policy("shop/p").is_none(), "not for node agents");

    // A change of the provider is one of the policy.
    let changes = set(&mut mesh, json!([grpc("a", json!({}))]));
    let changed: Vec<_> = changes.proxies.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(changed, ["shop/p"]);
    assert!(!served(&mesh).provider.unwrap().fail_open);
    // One of another provider is none.
    let changes = set(
        &mut mesh,
        json!([grpc("a", json!({})), grpc("b", json!({}))]),
    );
    assert!(changes.is_empty(), "{changes:?}");
    mesh.delete(authorization("shop", "p", json!({})));
    let backends = mesh.resources(ProxyKind::Backend);
    assert!(!backends.contains(&AUTH.to_owned()), "{backends:?}");
}

#[test]
fn nobody_is_asked_who_cannot_be() {
    let mut mesh = Mesh::bound([policy("p", "a")]);
    let check = |mesh: &mut Mesh, reason: &str, words: &str| {
        let provider = served(mesh).provider.unwrap();
        let told = (provider.invalid.as_str(), provider.backend.as_str());
        assert_eq!(told, (reason, ""));
        assert_eq!(provider.name, "a");
        assert!(!provider.fail_open);
        let (condition, message) = said(mesh, "p");
        assert_eq!(condition, format!("Accepted=False/{reason}"));
        assert!(message.contains(words), "{message}");
        assert!(
            message.contains("what the policy's rules match is refused"),
            "{message}"
        );
    };
    check(&mut mesh, "ProviderNotFound", "no extension provider \"a\"");
    set(&mut mesh, json!([grpc("a", json!({"failOpen": true}))]));
    check(&mut mesh, "ProviderServiceNotFound", "no such Service");
    let other = merged(auth_service(), json!({"spec": {"ports": [{"port": 1}]}}));
    mesh.apply(other);
    check(&mut mesh, "ProviderServiceNotFound", "no such port");
    set(
        &mut mesh,
        json!([grpc("a", json!({"failOpen": true, "later": 1}))]),
    );
    check(
        &mut mesh,
        "ProviderInvalid",
        "envoyExtAuthzGrpc.later is not supported",
    );
    set(
        &mut mesh,
        json!([{"name": "a", "zipkin": {"service": "x", "port": 1}}]),
    );
    check(&mut mesh, "ProviderNotSupported", "is no authorizer");
    for (name, words) in [
        ("example.com", "is no Service"),
        ("other/auth.sec.svc.cluster.local", "another namespace"),
    ] {
        set(&mut mesh, json!([grpc("a", json!({"service": name}))]));
        check(&mut mesh, "ProviderServiceNotFound", words);
    }
    // And all comes right by itself.
    set(&mut mesh, json!([grpc("a", json!({"failOpen": true}))]));
    mesh.apply(auth_service());
    assert_eq!(said(&mesh, "p").0, "Accepted=True/Accepted");
    assert_eq!(served(&mesh).provider.unwrap().backend, AUTH);
    mesh.delete(auth_service());
    check(&mut mesh, "ProviderServiceNotFound", "no such Service");
}

#[test]
fn two_providers_for_one_thing_are_named() {
    let mut mesh = Mesh::bound([auth_service(), policy("p", "a")]);
    set(
        &mut mesh,
        json!([grpc("a", json!({})), grpc("b", json!({}))]),
    );
    mesh.apply(policy("same", "a"));
    assert_eq!(said(&mesh, "p").0, "Accepted=True/Accepted");
    // At the waypoint as a whole, so at its Service too.
    let whole = authorization("shop", "whole", custom("wp", "Gateway", "b"));
    mesh.apply(whole.clone());
    for (name, other) in [
        ("p", "shop/whole"),
        ("same", "shop/whole"),
        ("whole", "shop/p, shop/same"),
    ] {
        let (condition, message) = said(&mesh, name);
        assert_eq!(condition, "Accepted=False/ProviderConflict", "{name}");
        assert!(message.contains(&format!("by {other};")), "{message}");
    }
    mesh.delete(whole);
    assert_eq!(said(&mesh, "p").0, "Accepted=True/Accepted");
    assert_eq!(said(&mesh, "same").0, "Accepted=True/Accepted");
}

#[test]
fn a_policy_that_names_nobody_asks_nobody() {
    for provider in [json!(null), json!({}), json!({"name": 1}), json!("a")] {
        let mut spec = custom("web", "Service", "a");
        spec["provider"] = provider.clone();
        let mesh = Mesh::bound([authorization("shop", "p", spec)]);
        let policy = served(&mesh);
        assert_eq!(policy.action(), PolicyAction::ActionCustom);
        assert_eq!(policy.provider.unwrap().invalid, "ProviderNotFound");
        let (condition, message) = said(&mesh, "p");
        assert_eq!(condition, "Accepted=False/Invalid", "{provider}");
        assert!(message.contains("spec.provider"), "{message}");
    }
}

#[test]
fn on_trial_nothing_is_enforced() {
    let mut value = policy("p", "a");
    value["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    let mut mesh = Mesh::bound([auth_service(), value]);
    set(&mut mesh, json!([grpc("a", json!({}))]));
    assert!(served(&mesh).dry_run);
    let conditions = mesh.conditions(&key(Kind::AuthorizationPolicy, "p"));
    let conditions: Vec<_> = conditions.iter().map(short).collect();
    assert!(
        conditions.contains(&"karst.dev/FullyEnforced=False/DryRun".to_owned()),
        "{conditions:?}"
    );
}

/// The authorizer is itself behind the waypoint for which it decides.
#[test]
fn an_authorizer_that_is_bound_where_it_is_asked_comes_to_rest() {
    let labels = json!({"metadata": {"labels": {"karst.dev/use-waypoint": "wp",
        "karst.dev/use-waypoint-namespace": "shop"}}});
    let whole = authorization("shop", "whole", custom("wp", "Gateway", "a"));
    let mut auth = merged(auth_service(), labels);
    auth["metadata"]["namespace"] = json!("shop");
    let mut mesh = Mesh::bound([auth.clone(), whole]);
    let own = json!({"service": "auth.shop.svc.cluster.local"});
    set(&mut mesh, json!([grpc("a", own)]));
    assert_eq!(said(&mesh, "whole").0, "Accepted=True/Accepted");
    assert!(mesh.0.l7.dirty.services.is_empty());
    // A change of it is one of the policy.
    auth["spec"]["ports"][0]["port"] = json!(1);
    mesh.apply(auth);
    assert_eq!(
        said(&mesh, "whole").0,
        "Accepted=False/ProviderServiceNotFound"
    );
    assert!(mesh.0.l7.dirty.services.is_empty());
}

#[test]
fn other_services_do_not_concern_what_is_said_of_providers() {
    let mut mesh = Mesh::bound([auth_service(), policy("p", "a")]);
    set(
        &mut mesh,
        json!([grpc("a", json!({})), grpc("b", json!({}))]),
    );
    let over = json!({"metadata": {"name": "other"}, "spec": {"clusterIP": "10.96.0.78"}});
    let stage = |mesh: &mut Mesh, value| {
        mesh.0.stage(object(value)).unwrap();
        mesh.0.l7.dirty.statuses.clone()
    };
    assert!(stage(&mut mesh, service(over)).is_empty());
    mesh.0.flush();
    // Where its own target goes does: another provider is asked at the waypoint as a whole.
    mesh.apply(authorization("shop", "whole", custom("wp", "Gateway", "b")));
    assert_eq!(said(&mesh, "p").0, "Accepted=False/ProviderConflict");
    let none = json!({"metadata": {"labels": {"karst.dev/use-waypoint": "none"}}});
    mesh.apply(service(none));
    assert_eq!(said(&mesh, "p").0, "Accepted=True/Accepted");
    assert_eq!(said(&mesh, "whole").0, "Accepted=True/Accepted");
    mesh.apply(service(json!({})));
    assert_eq!(said(&mesh, "p").0, "Accepted=False/ProviderConflict");
    assert_eq!(said(&mesh, "whole").0, "Accepted=False/ProviderConflict");
}

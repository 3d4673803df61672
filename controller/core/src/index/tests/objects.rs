//! What is accepted, what is not, and what the error says.

use serde_json::{Value, json};

use super::support::{error, merged, object, pod, service, slice};
use crate::{Kind, Object};

/// The object and the field that the error names.
fn check(value: Value, expected_object: &str, expected_field: &str) {
    let error = error(value.clone());
    assert_eq!(error.object, expected_object, "{value}");
    assert_eq!(error.field, expected_field, "{value}");
    assert!(!error.problem.is_empty() && !error.hint.is_empty());
    assert_eq!(error.reason(), "object_invalid");
    let text = error.to_string();
    assert!(
        text.contains(expected_object) && text.contains(expected_field),
        "{text}"
    );
}

#[test]
fn every_error_names_object_and_field() {
    let a = |over: Value| pod("a", "10.0.1.1", over);
    let ports = |ports: Value| service(json!({"spec": {"ports": ports}}));
    check(
        a(json!({"spec": {"nodeName": 5}})),
        "Pod shop/a",
        "spec.nodeName",
    );
    check(
        a(json!({"status": {"podIP": "ten"}})),
        "Pod shop/a",
        "status.podIP",
    );
    check(
        a(json!({"status": {"podIP": "127.0.0.1"}})),
        "Pod shop/a",
        "status.podIP",
    );
    check(
        a(json!({"status": {"podIPs": [{"ip": "0.0.0.0"}]}})),
        "Pod shop/a",
        "status.podIPs[0].ip",
    );
    check(
        a(json!({"spec": {"serviceAccountName": "a/b"}})),
        "Pod shop/a",
        "spec.serviceAccountName",
    );
    check(
        a(json!({"metadata": {"uid": "../../etc"}})),
        "Pod shop/a",
        "metadata.uid",
    );
    check(
        a(json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 70000}]}]}})),
        "Pod shop/a",
        "spec.containers[0].ports[0].containerPort",
    );
    check(
        ports(json!([{"port": 0}])),
        "Service shop/web",
        "spec.ports[0].port",
    );
    check(
        ports(json!([{"port": 80}, {"port": 65536}])),
        "Service shop/web",
        "spec.ports[1].port",
    );
    check(
        ports(json!([{"port": "x"}])),
        "Service shop/web",
        "spec.ports[0].port",
    );
    check(
        ports(json!([{"port": 80}, {"port": 80}])),
        "Service shop/web",
        "spec.ports[1].port",
    );
    check(
        ports(json!([{"port": 80, "targetPort": -1}])),
        "Service shop/web",
        "spec.ports[0].targetPort",
    );
    check(
        ports(json!([{"port": 80, "protocol": "QUIC"}])),
        "Service shop/web",
        "spec.ports[0].protocol",
    );
    check(ports(json!({})), "Service shop/web", "spec.ports");
    check(
        service(json!({"spec": {"clusterIP": "x"}})),
        "Service shop/web",
        "spec.clusterIP",
    );
    check(
        service(json!({"spec": {"clusterIPs": ["10.96.0.10", "y"]}})),
        "Service shop/web",
        "spec.clusterIPs[1]",
    );
    check(
        service(json!({"spec": {"ipFamilies": ["IPv5"]}})),
        "Service shop/web",
        "spec.ipFamilies[0]",
    );
    check(
        service(json!({"spec": {"internalTrafficPolicy": "Nearby"}})),
        "Service shop/web",
        "spec.internalTrafficPolicy",
    );
    check(
        slice("s", json!({"addressType": "IPv5"})),
        "EndpointSlice shop/s",
        "addressType",
    );
    check(
        slice("s", json!({"endpoints": [{"addresses": ["nowhere"]}]})),
        "EndpointSlice shop/s",
        "endpoints[0].addresses[0]",
    );
    check(
        slice("s", json!({"ports": [{"port": 0}]})),
        "EndpointSlice shop/s",
        "ports[0].port",
    );
}

#[test]
fn objects_that_are_none_are_refused() {
    check(json!("text"), "object without a name", "document");
    check(json!([1]), "object without a name", "document");
    check(json!({"kind": "Pod"}), "Pod without a name", "apiVersion");
    check(
        json!({"apiVersion": "v1", "kind": 5}),
        "object without a name",
        "kind",
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod"}),
        "Pod without a name",
        "metadata.name",
    );
    check(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "Bad Name"}}),
        "Node Bad Name",
        "metadata.name",
    );
    check(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "a/b"}}),
        "Pod a/b/a",
        "metadata.namespace",
    );
    check(
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x".repeat(254)}}),
        &format!("Namespace {}", "x".repeat(80)),
        "metadata.name",
    );
}

#[test]
fn other_kinds_are_ignored() {
    for (version, kind) in [
        ("apps/v1", "Deployment"),
        ("v1", "ResourceQuota"),
        ("v2", "Pod"),
        ("karst.dev/v1", "Pod"),
    ] {
        let value = json!({"apiVersion": version, "kind": kind, "spec": 5});
        assert_eq!(Object::from_value(value), Ok(None), "{version} {kind}");
    }
}

#[test]
fn an_object_without_a_namespace_is_in_the_default_one() {
    let found =
        object(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}}));
    assert_eq!(found.key.to_string(), "ServiceAccount default/a");
    let found = object(
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n", "namespace": "x"}}),
    );
    assert_eq!(found.key.to_string(), "Node n");
}

#[test]
fn kinds_are_applied_in_the_order_of_their_dependence() {
    assert!(Kind::Namespace < Kind::Pod);
    assert!(Kind::Node < Kind::Pod);
    assert!(Kind::Service < Kind::Pod);
}

#[test]
fn fields_that_the_mesh_does_not_know_do_no_harm() {
    let future = json!({"spec": {"someday": {"x": [1, 2]}}, "status": {"other": true}});
    assert_eq!(
        object(merged(pod("a", "10.0.1.1", json!({})), future)).findings,
        []
    );
}

//! BackendTrafficPolicies: what the waypoint gets, which one counts, and what is said.

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use super::{
    support::{Mesh, merged, object, service},
    support_l7::{key, short},
};
use crate::{Kind, StatusContent};

/// A policy for the Service `web`.
pub(crate) fn policy(name: &str, spec: Value) -> Value {
    let own = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web"}]});
    json!({"apiVersion": "karst.dev/v1alpha1", "kind": "BackendTrafficPolicy",
        "metadata": {"name": name, "namespace": "shop", "generation": 2,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": merged(own, spec)})
}

fn accepted(mesh: &Mesh, name: &str) -> String {
    let key = key(Kind::BackendTrafficPolicy, name);
    short(&mesh.conditions(&key)[0])
}

fn algorithm(mesh: &Mesh) -> wire::Algorithm {
    let policy = mesh.backend().policy.unwrap_or_default();
    policy.load_balancing.unwrap_or_default().algorithm()
}

fn balance(algorithm: &str) -> Value {
    json!({"loadBalancing": {"algorithm": algorithm}})
}

#[test]
fn every_field_is_taken_over() {
    let spec = json!({
        "loadBalancing": {"algorithm": "RingHash", "slowStart": "30s", "locality": "SameZone",
            "hash": {"cookie": {"name": "c", "ttl": "1h", "path": "/p"}}},
        "outlierDetection": {"consecutiveErrors": 3, "consecutiveGatewayErrors": 2, "baseEjection": "10s",
            "maxEjectionPercent": 50, "panicPercent": 40, "successRateInterval": "5s",
            "successRateStdevMilli": 1900, "disabled": false},
        "limits": {"maxConnections": 1, "maxPendingRequests": 2, "maxRequests": 3,
            "maxRequestsPerConnection": 4, "connectTimeout": "1s", "idleTimeout": "1m"},
        "retryBudget": {"percent": 20, "minPerSecond": 10},
    });
    let mesh = Mesh::bound([policy("p", spec)]);
    let policy = mesh.backend().policy.unwrap();
    let balancing = policy.load_balancing.unwrap();
    assert_eq!(balancing.algorithm(), wire::Algorithm::RingHash);
    assert_eq!(balancing.locality(), wire::LocalityPreference::SameZone);
    assert_eq!(balancing.slow_start_ms, 30_000);
    let cookie = wire::HashCookie {
        name: "c".into(),
        ttl_seconds: 3600,
        path: "/p".into(),
    };
    assert_eq!(
        balancing.hash.unwrap().kind,
        Some(wire::hash_key::Kind::Cookie(cookie))
    );
    assert_eq!(
        policy.outlier_detection,
        Some(wire::OutlierDetection {
            consecutive_errors: 3,
            consecutive_gateway_errors: 2,
            base_ejection_ms: 10_000,
            max_ejection_percent: 50,
            panic_percent: 40,
            success_rate_interval_ms: 5000,
            success_rate_stdev_milli: 1900,
            disabled: false,
        })
    );
    assert_eq!(
        policy.limits,
        Some(wire::ConnectionLimits {
            max_connections: 1,
            max_pending_requests: 2,
            max_requests: 3,
            max_requests_per_connection: 4,
            connect_timeout_ms: 1000,
            idle_timeout_ms: 60_000,
        })
    );
    assert_eq!(
        policy.retry_budget,
        Some(wire::RetryBudget {
            percent: 20,
            min_per_second: 10
        })
    );
    assert_eq!(accepted(&mesh, "p"), "Accepted=True/Accepted");
    assert_eq!(
        mesh.0
            .status(&key(Kind::BackendTrafficPolicy, "p"))
            .unwrap()
            .generation,
        2
    );
}

#[test]
fn hashes_are_of_one_thing() {
    let hash = |hash: Value| {
        let spec = json!({"loadBalancing": {"algorithm": "Maglev", "hash": hash}});
        let mesh = Mesh::bound([policy("p", spec)]);
        let balancing = mesh.backend().policy.unwrap().load_balancing.unwrap();
        (
            balancing.hash.and_then(|hash| hash.kind),
            accepted(&mesh, "p"),
        )
    };
    use wire::hash_key::Kind;
    assert_eq!(
        hash(json!({"header": "x-a"})).0,
        Some(Kind::Header("x-a".into()))
    );
    assert_eq!(
        hash(json!({"sourceIP": true})).0,
        Some(Kind::SourceAddress(true))
    );
    for bad in [
        json!({}),
        json!({"header": "a b"}),
        json!({"header": "a", "sourceIP": true}),
    ] {
        assert_eq!(hash(bad), (None, "Accepted=False/Invalid".to_owned()));
    }
}

#[test]
fn what_cannot_be_used_is_said_and_the_rest_is_in_force() {
    for (spec, field) in [
        (balance("Fastest"), "spec.loadBalancing.algorithm"),
        (balance("RingHash"), "spec.loadBalancing.hash"),
        (
            json!({"loadBalancing": {"locality": "Moon"}}),
            "spec.loadBalancing.locality",
        ),
        (
            json!({"loadBalancing": {"slowStart": "soon"}}),
            "spec.loadBalancing.slowStart",
        ),
        (
            json!({"limits": {"connectTimeout": "1.5s"}}),
            "spec.limits.connectTimeout",
        ),
        (
            json!({"outlierDetection": {"panicPercent": 200}}),
            "spec.outlierDetection.panicPercent",
        ),
        (
            json!({"retryBudget": {"percent": 101}}),
            "spec.retryBudget.percent",
        ),
    ] {
        let spec = merged(spec, json!({"limits": {"maxConnections": 7}}));
        let object = object(policy("p", spec.clone()));
        assert_eq!(object.findings[0].field, field);
        let mesh = Mesh::bound([policy("p", spec)]);
        assert_eq!(accepted(&mesh, "p"), "Accepted=False/Invalid", "{field}");
        assert_eq!(
            mesh.backend()
                .policy
                .unwrap()
                .limits
                .unwrap()
                .max_connections,
            7
        );
    }
}

#[test]
fn the_oldest_counts_and_the_others_say_so() {
    let older = merged(
        policy("z", balance("Random")),
        json!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}}),
    );
    let mut mesh = Mesh::bound([
        policy("a", balance("RoundRobin")),
        policy("b", balance("LeastRequest")),
    ]);
    assert_eq!(algorithm(&mesh), wire::Algorithm::RoundRobin);
    assert_eq!(accepted(&mesh, "a"), "Accepted=True/Accepted");
    assert_eq!(accepted(&mesh, "b"), "Accepted=False/Conflicted");
    let changes = mesh.apply(older.clone());
    assert_eq!(algorithm(&mesh), wire::Algorithm::Random);
    assert_eq!(accepted(&mesh, "a"), "Accepted=False/Conflicted");
    assert!(
        changes
            .statuses
            .contains(&key(Kind::BackendTrafficPolicy, "a"))
    );
    let changes = mesh.delete(older);
    assert_eq!(algorithm(&mesh), wire::Algorithm::RoundRobin);
    assert!(
        changes
            .statuses
            .contains(&key(Kind::BackendTrafficPolicy, "a"))
    );
}

#[test]
fn a_policy_for_a_port_comes_before_one_for_the_service() {
    let section = |name: &str| json!({"targetRefs": [{"group": "", "kind": "Service", "name": "web", "sectionName": name}]});
    let of_port = |name| policy("port", merged(section(name), balance("Random")));
    let mut mesh = Mesh::bound([policy("a", balance("RoundRobin")), of_port("http")]);
    assert_eq!(algorithm(&mesh), wire::Algorithm::Random);
    assert_eq!(accepted(&mesh, "a"), "Accepted=True/Accepted");
    assert_eq!(accepted(&mesh, "port"), "Accepted=True/Accepted");
    mesh.apply(of_port("nothing"));
    assert_eq!(algorithm(&mesh), wire::Algorithm::RoundRobin);
    assert_eq!(accepted(&mesh, "port"), "Accepted=False/TargetNotFound");
}

#[test]
fn a_target_must_be_there() {
    let mut mesh = Mesh::bound([policy("p", json!({}))]);
    assert_eq!(accepted(&mesh, "p"), "Accepted=True/Accepted");
    let changes = mesh.delete(service(json!({})));
    assert_eq!(accepted(&mesh, "p"), "Accepted=False/TargetNotFound");
    assert!(
        changes
            .statuses
            .contains(&key(Kind::BackendTrafficPolicy, "p"))
    );
    mesh.apply(service(json!({})));
    assert_eq!(accepted(&mesh, "p"), "Accepted=True/Accepted");
    let odd = json!({"targetRefs": [{"group": "x", "kind": "Bucket", "name": "web"}]});
    mesh.apply(policy("q", odd));
    assert_eq!(accepted(&mesh, "q"), "Accepted=False/Invalid");
}

#[test]
fn an_ancestor_is_the_target() {
    let mesh = Mesh::bound([policy("p", json!({}))]);
    let status = mesh
        .0
        .status(&key(Kind::BackendTrafficPolicy, "p"))
        .unwrap();
    let StatusContent::Ancestors(ancestors) = status.content else {
        panic!()
    };
    assert_eq!(
        ancestors[0].ancestor_ref,
        json!({"group": "", "kind": "Service", "name": "web"})
    );
    assert_eq!(ancestors[0].controller, "karst.dev/waypoint-controller");
}

#[test]
fn a_policy_touches_its_backends_alone() {
    let mut mesh = Mesh::bound([]);
    let changes = mesh.apply(policy("p", balance("Random")));
    let touched: Vec<&str> = changes
        .proxies
        .iter()
        .map(|change| change.name.as_str())
        .collect();
    assert_eq!(touched, [super::support_l7::WEB_80]);
    assert!(changes.addresses.is_empty() && changes.node_pods.is_empty());
}

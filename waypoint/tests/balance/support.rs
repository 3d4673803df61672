//! Backends for the tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use karst_api::waypoint::{
    Algorithm, Backend, Endpoint, Health, LoadBalancing, Locality, OutlierDetection, TrafficPolicy,
    Tunnel,
};
use karst_waypoint::balance::{Cluster, Clusters, Outcome, OwnPlace, PickRequest};

pub const NAME: &str = "test/shop.test.svc.cluster.local/80";
pub const OK: Outcome = Outcome::Response(StatusCode::OK);
pub const ERROR: Outcome = Outcome::Response(StatusCode::INTERNAL_SERVER_ERROR);
pub const UNAVAILABLE: Outcome = Outcome::Response(StatusCode::SERVICE_UNAVAILABLE);

pub fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        uid: uid(n),
        address: vec![10, 0, 0, n],
        port: 8080,
        tunnel: Tunnel::Hbone.into(),
        identity: "spiffe://cluster.local/ns/test/sa/shop".to_owned(),
        ..Endpoint::default()
    }
}

pub fn uid(n: u8) -> String {
    format!("Kubernetes//Pod/test/shop-{n}")
}

pub fn key(n: u8) -> String {
    format!("{}:8080", uid(n))
}

pub fn in_zone(n: u8, zone: &str, node: &str) -> Endpoint {
    Endpoint {
        locality: Some(Locality {
            region: String::new(),
            zone: zone.to_owned(),
        }),
        node: node.to_owned(),
        ..endpoint(n)
    }
}

pub fn draining(n: u8) -> Endpoint {
    Endpoint {
        health: Health::Draining.into(),
        ..endpoint(n)
    }
}

/// A backend of the endpoints 1 to `count`.
pub fn backend(count: u8, policy: TrafficPolicy) -> Backend {
    of((1..=count).map(endpoint).collect(), policy)
}

pub fn of(endpoints: Vec<Endpoint>, policy: TrafficPolicy) -> Backend {
    Backend {
        name: NAME.to_owned(),
        namespace: "test".to_owned(),
        service: "shop".to_owned(),
        hostname: "shop.test.svc.cluster.local".to_owned(),
        port: 80,
        endpoints,
        policy: Some(policy),
        ..Backend::default()
    }
}

pub fn balancing(load_balancing: LoadBalancing) -> TrafficPolicy {
    TrafficPolicy {
        load_balancing: Some(load_balancing),
        ..TrafficPolicy::default()
    }
}

pub fn algorithm(algorithm: Algorithm) -> TrafficPolicy {
    balancing(LoadBalancing {
        algorithm: algorithm.into(),
        ..LoadBalancing::default()
    })
}

pub fn outliers(outlier_detection: OutlierDetection) -> TrafficPolicy {
    TrafficPolicy {
        outlier_detection: Some(outlier_detection),
        load_balancing: Some(LoadBalancing {
            algorithm: Algorithm::RoundRobin.into(),
            ..LoadBalancing::default()
        }),
        ..TrafficPolicy::default()
    }
}

/// A registry in zone `here` on node `me`, and the cluster of `backend` in it.
pub fn cluster(backend: &Backend) -> (Clusters, Arc<Cluster>) {
    let clusters = Clusters::new(OwnPlace {
        node: "me".to_owned(),
        zone: "here".to_owned(),
    });
    clusters.update(backend, None).unwrap();
    let cluster = clusters.get(&backend.name);
    (clusters, cluster)
}

/// Sends a request; says where it went.
pub fn send(cluster: &Arc<Cluster>, outcome: Outcome) -> String {
    let picked = cluster.pick(&PickRequest::default()).unwrap();
    let key = picked.key().to_string();
    picked.finish(outcome);
    key
}

/// Sends good requests; counts where they went.
pub fn spread(cluster: &Arc<Cluster>, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(send(cluster, OK)).or_default() += 1;
    }
    counts
}

/// Sends a request to one endpoint.
pub fn send_to(cluster: &Arc<Cluster>, n: u8, outcome: Outcome) {
    let key = key(n);
    let request = PickRequest {
        sticky: Some(&key),
        ..PickRequest::default()
    };
    let picked = cluster.pick(&request).unwrap();
    assert_eq!(&**picked.key(), key, "endpoint {n} is not to be had");
    picked.finish(outcome);
}

/// The endpoints that get requests.
pub fn used(cluster: &Arc<Cluster>) -> Vec<u8> {
    let counts = spread(cluster, 400);
    (0..=u8::MAX)
        .filter(|n| counts.contains_key(&key(*n)))
        .collect()
}

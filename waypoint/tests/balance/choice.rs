//! Which endpoint, by algorithm, place, age and history of the request.

use std::time::Duration;

use karst_api::waypoint::{Algorithm, LoadBalancing, LocalityPreference, TrafficPolicy};
use karst_waypoint::balance::{PickError, PickRequest};
use tokio::time::advance;

use crate::support::{
    OK, algorithm, backend, balancing, cluster, draining, endpoint, in_zone, key, of, send_to,
    spread, used,
};

// The clock stands still: peak EWMA takes the noise of latencies seriously.
#[tokio::test(start_paused = true)]
async fn equal_endpoints_get_equal_shares() {
    let all = [
        Algorithm::PeakEwma,
        Algorithm::LeastRequest,
        Algorithm::RoundRobin,
        Algorithm::Random,
    ];
    for name in all {
        let (_clusters, cluster) = cluster(&backend(10, algorithm(name)));
        let counts = spread(&cluster, 20_000);
        assert_eq!(counts.len(), 10, "{name:?}");
        for (key, count) in counts {
            assert!(
                (1_750..=2_250).contains(&count),
                "{name:?}: {key} got {count}"
            );
        }
    }
}

#[test]
fn round_robin_takes_turns() {
    let (_clusters, cluster) = cluster(&backend(7, algorithm(Algorithm::RoundRobin)));
    assert!(spread(&cluster, 700).values().all(|count| *count == 100));
}

#[test]
fn least_request_avoids_the_busy() {
    let (_clusters, cluster) = cluster(&backend(5, algorithm(Algorithm::LeastRequest)));
    let busy = key(1);
    let request = PickRequest {
        sticky: Some(&busy),
        ..PickRequest::default()
    };
    let held: Vec<_> = (0..10).map(|_| cluster.pick(&request).unwrap()).collect();
    assert!(!spread(&cluster, 1_000).contains_key(&busy));
    drop(held);
    assert!(spread(&cluster, 1_000).contains_key(&busy));
}

#[tokio::test(start_paused = true)]
async fn peak_ewma_avoids_the_slow() {
    let (_clusters, cluster) = cluster(&backend(5, algorithm(Algorithm::PeakEwma)));
    let mut slow = 0;
    for _ in 0..3_000 {
        let picked = cluster.pick(&PickRequest::default()).unwrap();
        let is_slow = **picked.key() == *key(3);
        slow += usize::from(is_slow);
        advance(Duration::from_millis(if is_slow { 100 } else { 5 })).await;
        picked.finish(OK);
    }
    assert!((1..150).contains(&slow), "a fifth would be 600: {slow}");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_fails_at_once_does_not_look_fast() {
    let (_clusters, cluster) = cluster(&backend(4, algorithm(Algorithm::PeakEwma)));
    let mut failed = 0;
    for _ in 0..1_000 {
        let picked = cluster.pick(&PickRequest::default()).unwrap();
        let fails = **picked.key() == *key(2);
        failed += usize::from(fails);
        advance(Duration::from_millis(if fails { 0 } else { 10 })).await;
        picked.finish(if fails {
            karst_waypoint::balance::Outcome::ConnectFailed
        } else {
            OK
        });
    }
    assert!(failed < 25, "{failed}");
}

#[test]
fn endpoints_that_were_tried_are_avoided_while_there_are_others() {
    for name in [Algorithm::PeakEwma, Algorithm::RoundRobin] {
        let (_clusters, cluster) = cluster(&backend(3, algorithm(name)));
        let mut tried = Vec::new();
        for _ in 0..3 {
            let request = PickRequest {
                tried: &tried,
                ..PickRequest::default()
            };
            let picked = cluster.pick(&request).unwrap();
            assert!(!tried.contains(picked.key()));
            tried.push(picked.key().clone());
        }
        let request = PickRequest {
            tried: &tried,
            ..PickRequest::default()
        };
        assert!(cluster.pick(&request).is_ok(), "one of them once more");
    }
}

#[test]
fn a_session_keeps_its_endpoint_as_long_as_that_is_well() {
    let (clusters, cluster) = cluster(&backend(5, TrafficPolicy::default()));
    let session = key(4);
    let tried = [session.as_str().into()];
    let request = PickRequest {
        sticky: Some(&session),
        ..PickRequest::default()
    };
    for _ in 0..50 {
        assert_eq!(**cluster.pick(&request).unwrap().key(), *session);
    }
    let again = PickRequest {
        tried: &tried,
        ..request
    };
    assert_ne!(
        **cluster.pick(&again).unwrap().key(),
        *session,
        "it failed there"
    );
    let mut endpoints: Vec<_> = (1..=5).map(endpoint).collect();
    endpoints[3] = draining(4);
    clusters
        .update(&of(endpoints, TrafficPolicy::default()), None)
        .unwrap();
    assert_ne!(
        **cluster.pick(&request).unwrap().key(),
        *session,
        "it is about to end"
    );
}

#[test]
fn draining_endpoints_are_used_only_when_there_are_no_others() {
    let policy = || algorithm(Algorithm::RoundRobin);
    let endpoints = vec![endpoint(1), draining(2), endpoint(3)];
    let (clusters, cluster) = cluster(&of(endpoints, policy()));
    assert_eq!(used(&cluster), [1, 3]);
    clusters
        .update(&of(vec![draining(1), draining(2)], policy()), None)
        .unwrap();
    assert_eq!(used(&cluster), [1, 2]);
}

fn near(preference: LocalityPreference) -> TrafficPolicy {
    balancing(LoadBalancing {
        algorithm: Algorithm::Random.into(),
        locality: preference.into(),
        ..LoadBalancing::default()
    })
}

#[test]
fn near_endpoints_are_preferred() {
    let endpoints = || {
        vec![
            in_zone(1, "here", "me"),
            in_zone(2, "here", "other"),
            in_zone(3, "there", "far"),
            endpoint(4),
        ]
    };
    let with = |preference| cluster(&of(endpoints(), near(preference)));
    assert_eq!(used(&with(LocalityPreference::Anywhere).1), [1, 2, 3, 4]);
    assert_eq!(used(&with(LocalityPreference::SameZone).1), [1, 2]);
    assert_eq!(used(&with(LocalityPreference::SameNode).1), [1]);
    let elsewhere = of(
        vec![in_zone(3, "there", "far")],
        near(LocalityPreference::SameNode),
    );
    assert_eq!(used(&cluster(&elsewhere).1), [3], "better far than nowhere");
}

#[test]
fn too_few_healthy_ones_nearby_bring_in_those_farther_away() {
    let mut endpoints: Vec<_> = (1..=4).map(|n| in_zone(n, "here", "other")).collect();
    endpoints.extend((5..=8).map(|n| in_zone(n, "there", "far")));
    let (_clusters, cluster) = cluster(&of(endpoints, near(LocalityPreference::SameZone)));
    assert_eq!(used(&cluster), [1, 2, 3, 4]);
    fail(&cluster, 1);
    assert_eq!(used(&cluster), [2, 3, 4], "three of four are enough");
    fail(&cluster, 2);
    assert_eq!(used(&cluster), [3, 4, 5, 6, 7, 8], "two of four are not");
}

fn fail(cluster: &std::sync::Arc<karst_waypoint::balance::Cluster>, n: u8) {
    for _ in 0..5 {
        send_to(cluster, n, crate::support::UNAVAILABLE);
    }
}

#[tokio::test(start_paused = true)]
async fn the_share_of_a_new_endpoint_grows_with_its_age() {
    for name in [Algorithm::Random, Algorithm::RoundRobin] {
        let policy = || {
            balancing(LoadBalancing {
                algorithm: name.into(),
                slow_start_ms: 60_000,
                ..LoadBalancing::default()
            })
        };
        let (clusters, cluster) = cluster(&backend(4, policy()));
        let equal = spread(&cluster, 8_000);
        assert!(
            equal.values().all(|count| (1_750..2_250).contains(count)),
            "all are new: {equal:?}"
        );
        clusters.update(&backend(5, policy()), None).unwrap();
        // The share of one beside four with all of theirs.
        for (after, share) in [
            (0.0, 0.05),
            (0.25, 0.25),
            (0.5, 0.5),
            (0.75, 0.75),
            (1.0, 1.0),
        ] {
            let counts = spread(&cluster, 20_000);
            let got = counts.get(&key(5)).copied().unwrap_or_default();
            let wanted = 20_000.0 * share / (4.0 + share);
            let got = f64::from(u32::try_from(got).unwrap());
            assert!(
                (got - wanted).abs() < 300.0,
                "{name:?} {after}: {got} for {wanted}"
            );
            advance(Duration::from_secs(15)).await;
        }
    }
}

#[test]
fn a_backend_says_why_it_takes_no_requests() {
    let any = PickRequest::default();
    let (clusters, cluster) = cluster(&backend(0, TrafficPolicy::default()));
    let error = cluster.pick(&any).unwrap_err();
    assert_eq!(error, PickError::NoEndpoints);
    assert_eq!(
        (error.reason(), error.status().as_u16()),
        ("no_endpoints", 503)
    );
    let mut invalid = backend(2, TrafficPolicy::default());
    invalid.invalid = "BackendTlsInvalid".to_owned();
    clusters.update(&invalid, None).unwrap();
    let error = cluster.pick(&any).unwrap_err();
    assert_eq!(
        (error.reason(), error.status().as_u16()),
        ("BackendTlsInvalid", 500)
    );
}

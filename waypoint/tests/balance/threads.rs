//! Several workers at once.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use karst_api::waypoint::{
    Algorithm, ConnectionLimits, OutlierDetection, RetryBudget, TrafficPolicy,
};
use karst_waypoint::balance::{Outcome, PickError, PickRequest};

use crate::support::{OK, UNAVAILABLE, backend, cluster, outliers};

const THREADS: u32 = 8;

#[test]
fn limits_hold_among_threads() {
    const LIMIT: u32 = 5;
    let mut limited = backend(3, TrafficPolicy::default());
    limited.policy.get_or_insert_default().limits = Some(ConnectionLimits {
        max_requests: LIMIT,
        max_connections: LIMIT,
        ..ConnectionLimits::default()
    });
    let (_clusters, cluster) = cluster(&limited);
    let (held, most, refused) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    let picked = match cluster.pick(&PickRequest::default()) {
                        Ok(picked) => picked,
                        Err(error) => {
                            assert!(matches!(error, PickError::Overloaded(_)));
                            refused.fetch_add(1, Ordering::Relaxed);
                            thread::yield_now();
                            continue;
                        }
                    };
                    let slot = cluster.try_connection();
                    let now = held.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    assert!(cluster.stats().connections <= LIMIT);
                    if now % 3 == 0 {
                        thread::yield_now();
                    }
                    held.fetch_sub(1, Ordering::SeqCst);
                    drop(slot);
                    picked.finish(OK);
                }
            });
        }
    });
    assert!(most.load(Ordering::SeqCst) <= LIMIT);
    let stats = cluster.stats();
    assert_eq!((stats.requests, stats.connections), (0, 0));
    assert!(
        cluster
            .endpoints()
            .iter()
            .all(|endpoint| endpoint.in_flight() == 0)
    );
}

#[test]
fn retries_among_threads_keep_to_the_budget() {
    let mut limited = backend(1, TrafficPolicy::default());
    limited.policy.get_or_insert_default().retry_budget = Some(RetryBudget {
        percent: 10,
        min_per_second: 1,
    });
    let (_clusters, cluster) = cluster(&limited);
    let held: Vec<_> = (0..100)
        .map(|_| cluster.pick(&PickRequest::default()).unwrap())
        .collect();
    let permits = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    (0..100)
                        .filter_map(|_| cluster.try_retry())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let permits = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        permits.collect::<Vec<_>>()
    });
    // A second may pass meanwhile on a busy machine, hardly more.
    assert!((11..=14).contains(&permits.len()), "{}", permits.len());
    drop((permits, held));
    assert_eq!(cluster.stats().retries, 0);
}

#[test]
fn updates_ejections_and_picks_go_together() {
    let policy = || {
        outliers(OutlierDetection {
            consecutive_errors: 2,
            base_ejection_ms: 1,
            max_ejection_percent: 100,
            success_rate_interval_ms: 1,
            ..OutlierDetection::default()
        })
    };
    let (clusters, cluster) = cluster(&backend(6, policy()));
    thread::scope(|scope| {
        let cluster = &cluster;
        let work = |thread: u32| {
            scope.spawn(move || {
                for requests in 1..=20_000_usize {
                    let request = PickRequest {
                        hash: Some(requests as u64),
                        ..PickRequest::default()
                    };
                    let picked = cluster.pick(&request).unwrap();
                    match (requests + thread as usize) % 3 {
                        0 => picked.finish(UNAVAILABLE),
                        1 => picked.finish(Outcome::Cancelled),
                        _ => picked.finish(OK),
                    }
                }
            })
        };
        let threads: Vec<_> = (0..THREADS).map(work).collect();
        let mut round = 0_u32;
        while threads.iter().any(|thread| !thread.is_finished()) {
            round += 1;
            let mut backend = backend(u8::try_from(2 + round % 5).unwrap(), policy());
            let load_balancing = backend.policy.get_or_insert_default();
            let load_balancing = load_balancing.load_balancing.get_or_insert_default();
            load_balancing.algorithm = match round % 3 {
                0 => Algorithm::RoundRobin.into(),
                1 => Algorithm::PeakEwma.into(),
                _ => Algorithm::LeastRequest.into(),
            };
            clusters.update(&backend, None).unwrap();
        }
    });
    assert_eq!(cluster.stats().requests, 0);
}

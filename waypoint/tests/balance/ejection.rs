//! Endpoints that fail lose their requests, within bounds.

use std::time::Duration;

use karst_api::waypoint::{OutlierDetection, TrafficPolicy};
use karst_waypoint::balance::{Outcome, PickRequest};
use tokio::time::advance;

use crate::support::{
    ERROR, OK, UNAVAILABLE, backend, cluster, key, outliers, send, send_to, used,
};

#[test]
fn without_a_policy_only_missing_answers_eject() {
    let (_clusters, cluster) = cluster(&backend(4, TrafficPolicy::default()));
    for _ in 0..50 {
        send_to(&cluster, 1, ERROR);
    }
    assert!(
        !cluster.is_ejected(&cluster.endpoints()[0]),
        "its own 500 is an answer"
    );
    for outcome in [
        Outcome::ConnectFailed,
        Outcome::Reset,
        Outcome::Cancelled,
        Outcome::TimedOut,
        UNAVAILABLE,
    ] {
        send_to(&cluster, 2, outcome);
    }
    assert!(
        !cluster.is_ejected(&cluster.endpoints()[1]),
        "a client that went away is no failure"
    );
    send_to(&cluster, 2, Outcome::Reset);
    assert!(cluster.is_ejected(&cluster.endpoints()[1]));
    assert_eq!((cluster.stats().ejected, cluster.stats().active), (1, 3));
}

#[test]
fn failures_in_a_row_eject_and_a_success_starts_anew() {
    let policy = outliers(OutlierDetection {
        consecutive_errors: 3,
        ..OutlierDetection::default()
    });
    let (_clusters, cluster) = cluster(&backend(4, policy));
    for _ in 0..10 {
        send_to(&cluster, 1, ERROR);
        send_to(&cluster, 1, ERROR);
        send_to(&cluster, 1, OK);
    }
    assert_eq!(used(&cluster), [1, 2, 3, 4]);
    for _ in 0..3 {
        send_to(&cluster, 1, ERROR);
    }
    assert_eq!(used(&cluster), [2, 3, 4]);
}

#[test]
fn a_session_leaves_an_ejected_endpoint() {
    let (_clusters, cluster) = cluster(&backend(4, TrafficPolicy::default()));
    for _ in 0..5 {
        send_to(&cluster, 1, UNAVAILABLE);
    }
    let session = key(1);
    let request = PickRequest {
        sticky: Some(&session),
        ..PickRequest::default()
    };
    assert_ne!(**cluster.pick(&request).unwrap().key(), *session);
}

#[tokio::test(start_paused = true)]
async fn an_ejection_ends_and_the_next_is_longer() {
    let policy = outliers(OutlierDetection {
        consecutive_errors: 1,
        base_ejection_ms: 10_000,
        ..OutlierDetection::default()
    });
    let (_clusters, cluster) = cluster(&backend(4, policy));
    for seconds in [10, 20, 30] {
        send_to(&cluster, 2, ERROR);
        assert_eq!(used(&cluster), [1, 3, 4]);
        advance(Duration::from_millis(seconds * 1_000 - 1)).await;
        assert_eq!(used(&cluster), [1, 3, 4], "after almost {seconds} s");
        advance(Duration::from_millis(1)).await;
        assert_eq!(used(&cluster), [1, 2, 3, 4], "after {seconds} s");
    }
    advance(Duration::from_secs(30)).await;
    send_to(&cluster, 2, ERROR);
    advance(Duration::from_secs(10)).await;
    assert_eq!(used(&cluster), [1, 2, 3, 4], "peace makes up for it");
    assert_eq!(cluster.stats().ejections_total, 4);
}

#[test]
fn no_more_than_a_share_is_ejected() {
    let policy = outliers(OutlierDetection {
        consecutive_errors: 1,
        max_ejection_percent: 30,
        ..OutlierDetection::default()
    });
    let (_clusters, cluster) = cluster(&backend(10, policy));
    for n in 1..=10 {
        send_to(&cluster, n, ERROR);
    }
    assert_eq!(used(&cluster), [4, 5, 6, 7, 8, 9, 10]);
}

#[test]
fn one_of_two_may_be_ejected_and_an_only_one_never_is() {
    let policy = || {
        outliers(OutlierDetection {
            consecutive_errors: 1,
            max_ejection_percent: 10,
            ..OutlierDetection::default()
        })
    };
    let (_clusters, two) = cluster(&backend(2, policy()));
    send_to(&two, 1, ERROR);
    assert_eq!(used(&two), [2]);
    send_to(&two, 2, ERROR);
    assert_eq!(used(&two), [2]);
    let (_clusters, one) = cluster(&backend(1, policy()));
    send_to(&one, 1, ERROR);
    assert_eq!(used(&one), [1]);
    assert_eq!(one.stats().ejected, 0);
}

#[tokio::test(start_paused = true)]
async fn when_too_few_are_left_ejections_are_ignored() {
    let policy = outliers(OutlierDetection {
        consecutive_errors: 1,
        max_ejection_percent: 100,
        panic_percent: 60,
        base_ejection_ms: 10_000,
        ..OutlierDetection::default()
    });
    let (_clusters, cluster) = cluster(&backend(5, policy));
    send_to(&cluster, 1, ERROR);
    advance(Duration::from_secs(5)).await;
    send_to(&cluster, 2, ERROR);
    assert_eq!(used(&cluster), [3, 4, 5], "three of five are enough");
    send_to(&cluster, 3, ERROR);
    assert_eq!(used(&cluster), [1, 2, 3, 4, 5], "two are not");
    assert_eq!(cluster.stats().ejected, 3);
    advance(Duration::from_secs(5)).await;
    assert_eq!(
        used(&cluster),
        [1, 4, 5],
        "the first is back, and with it the others' ejections"
    );
}

#[tokio::test(start_paused = true)]
async fn a_success_rate_far_below_the_others_ejects() {
    let policy = outliers(OutlierDetection {
        consecutive_errors: 1_000,
        success_rate_interval_ms: 10_000,
        ..OutlierDetection::default()
    });
    let (_clusters, cluster) = cluster(&backend(8, policy));
    let round = || {
        for request in 0..800 {
            let picked = cluster.pick(&PickRequest::default()).unwrap();
            let fails = **picked.key() == *key(5) && (request / 8) % 2 == 0 || request % 50 == 0;
            picked.finish(if fails { ERROR } else { OK });
        }
    };
    round();
    round();
    assert_eq!(used(&cluster).len(), 8, "the interval has not ended");
    advance(Duration::from_secs(10)).await;
    send(&cluster, OK);
    assert_eq!(used(&cluster), [1, 2, 3, 4, 6, 7, 8]);
}

#[test]
fn switched_off_it_ejects_nothing() {
    let policy = outliers(OutlierDetection {
        disabled: true,
        consecutive_errors: 1,
        ..OutlierDetection::default()
    });
    let (_clusters, cluster) = cluster(&backend(3, policy));
    for _ in 0..100 {
        send_to(&cluster, 1, UNAVAILABLE);
    }
    assert_eq!(used(&cluster), [1, 2, 3]);
}

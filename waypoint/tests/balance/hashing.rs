//! Consistent hashing: who belongs to which endpoint, and who moves.

use std::sync::Arc;

use http::HeaderMap;
use http::header::COOKIE;
use karst_api::waypoint::hash_key::Kind;
use karst_api::waypoint::{Algorithm, HashCookie, HashKey, LoadBalancing, TrafficPolicy};
use karst_waypoint::balance::{Cluster, PickRequest, hash_of};
use karst_waypoint::client::Client;
use proptest::prelude::*;

use crate::support::{UNAVAILABLE, balancing, cluster, endpoint, key, of, send_to};

const KEYS: u64 = 4_000;

fn by(algorithm: Algorithm, kind: Kind) -> TrafficPolicy {
    balancing(LoadBalancing {
        algorithm: algorithm.into(),
        hash: Some(HashKey { kind: Some(kind) }),
        ..LoadBalancing::default()
    })
}

fn hashed(algorithm: Algorithm) -> TrafficPolicy {
    by(algorithm, Kind::Header("x-user".to_owned()))
}

fn among(list: &[u8], algorithm: Algorithm) -> Arc<Cluster> {
    let endpoints = list.iter().copied().map(endpoint).collect();
    cluster(&of(endpoints, hashed(algorithm))).1
}

fn find(cluster: &Arc<Cluster>, hash: u64) -> String {
    let request = PickRequest {
        hash: Some(hash),
        ..PickRequest::default()
    };
    cluster.pick(&request).unwrap().key().to_string()
}

fn all(cluster: &Arc<Cluster>) -> Vec<String> {
    (0..KEYS).map(|hash| find(cluster, hash)).collect()
}

/// Keys of `before` that are elsewhere in `after`, other than those of the endpoint `n`.
fn moved(before: &[String], after: &[String], n: u8) -> usize {
    let n = key(n);
    let pairs = before.iter().zip(after);
    pairs
        .filter(|(before, after)| before != after && **before != n && **after != n)
        .count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn an_endpoint_that_goes_or_comes_moves_few_keys_besides_its_own(
        count in 3_u8..40,
        pick in any::<prop::sample::Index>(),
    ) {
        let list: Vec<u8> = (1..=count).collect();
        let gone = list[pick.index(list.len())];
        let rest: Vec<u8> = list.iter().copied().filter(|n| *n != gone).collect();
        for (algorithm, most) in [(Algorithm::RingHash, 0), (Algorithm::Maglev, KEYS / 20)] {
            let with = all(&among(&list, algorithm));
            let without = all(&among(&rest, algorithm));
            // The same two tables, read in both directions.
            let moved = moved(&with, &without, gone) as u64;
            prop_assert!(moved <= most, "{algorithm:?} moved {moved} of {KEYS}");
            prop_assert!(!without.contains(&key(gone)));
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(
        list in Just((1_u8..=12).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let sorted: Vec<u8> = (1..=12).collect();
        for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
            prop_assert_eq!(all(&among(&sorted, algorithm)), all(&among(&list, algorithm)));
        }
    }
}

#[test]
fn shares_are_fair() {
    let list: Vec<u8> = (1..=10).collect();
    // 400 of 4,000 each: 20 is the deviation of the keys alone.
    for (algorithm, range) in [
        (Algorithm::RingHash, 250..=560),
        (Algorithm::Maglev, 320..=480),
    ] {
        let found = all(&among(&list, algorithm));
        for n in list.iter().copied() {
            let count = found.iter().filter(|found| **found == key(n)).count();
            assert!(range.contains(&count), "{algorithm:?}: {n} has {count}");
        }
    }
}

#[test]
fn an_ejection_moves_the_keys_of_the_ejected_endpoint_only() {
    let list: Vec<u8> = (1..=8).collect();
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let cluster = among(&list, algorithm);
        let before = all(&cluster);
        for _ in 0..5 {
            send_to(&cluster, 3, UNAVAILABLE);
        }
        let after = all(&cluster);
        assert!(!after.contains(&key(3)));
        assert_eq!(moved(&before, &after, 3), 0, "{algorithm:?}");
        let heirs: std::collections::BTreeSet<_> = before
            .iter()
            .zip(&after)
            .filter(|(before, _)| **before == key(3))
            .map(|(_, after)| after)
            .collect();
        assert!(
            heirs.len() >= 4,
            "{algorithm:?}: its keys are spread: {heirs:?}"
        );
    }
}

#[test]
fn a_retry_goes_elsewhere_and_always_to_the_same_place() {
    for algorithm in [Algorithm::RingHash, Algorithm::Maglev] {
        let cluster = among(&[1, 2, 3, 4, 5], algorithm);
        for hash in 0..200 {
            let tried = [find(&cluster, hash).into()];
            let request = PickRequest {
                hash: Some(hash),
                tried: &tried,
                ..PickRequest::default()
            };
            let second = cluster.pick(&request).unwrap().key().clone();
            assert_ne!(second, tried[0]);
            assert_eq!(&second, cluster.pick(&request).unwrap().key());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_anything_to_hash_requests_are_spread() {
    let cluster = among(&[1, 2, 3], Algorithm::Maglev);
    assert_eq!(crate::support::used(&cluster), [1, 2, 3]);
}

fn client(address: &str) -> Client {
    Client {
        destination: None,
        address: address.parse().unwrap(),
        identity: None,
        workload: None,
        trace: None,
    }
}

#[test]
fn the_key_is_what_the_policy_says() {
    let nobody = client("10.1.1.1:1");
    let mut headers = HeaderMap::new();
    let settings = |kind| {
        cluster(&of(vec![endpoint(1)], by(Algorithm::Maglev, kind)))
            .1
            .settings()
    };

    let header = settings(Kind::Header("X-User".to_owned()));
    assert_eq!(hash_of(&header, &headers, &nobody), None);
    headers.insert("x-user", "ann".parse().unwrap());
    let ann = hash_of(&header, &headers, &nobody).unwrap();
    assert_eq!(ann.set_cookie, None);
    headers.insert("x-user", "bob".parse().unwrap());
    assert_ne!(hash_of(&header, &headers, &nobody).unwrap(), ann);

    let address = settings(Kind::SourceAddress(true));
    let hash = |from| hash_of(&address, &headers, &client(from)).unwrap().value;
    assert_eq!(
        hash("10.1.1.1:1"),
        hash("10.1.1.1:2"),
        "the port does not matter"
    );
    assert_eq!(hash("10.1.1.1:1"), hash("[::ffff:10.1.1.1]:2"));
    assert_ne!(hash("10.1.1.1:1"), hash("10.1.1.2:1"));
}

#[test]
fn a_client_without_the_cookie_gets_one_that_brings_it_back() {
    let nobody = client("10.1.1.1:1");
    let kind = Kind::Cookie(HashCookie {
        name: "lb".to_owned(),
        ttl_seconds: 60,
        path: "/shop".to_owned(),
    });
    let backend = of(vec![endpoint(1)], by(Algorithm::RingHash, kind));
    let settings = cluster(&backend).1.settings();
    let first = hash_of(&settings, &HeaderMap::new(), &nobody).unwrap();
    let cookie = first.set_cookie.unwrap();
    let (pair, attributes) = cookie.to_str().unwrap().split_once("; ").unwrap();
    assert_eq!(attributes, "Path=/shop; HttpOnly; Max-Age=60");
    let mut headers = HeaderMap::new();
    headers.insert(COOKIE, format!("a=b; {pair}; lbx=1").parse().unwrap());
    let second = hash_of(&settings, &headers, &nobody).unwrap();
    assert_eq!((second.value, second.set_cookie), (first.value, None));
    let other = hash_of(&settings, &HeaderMap::new(), &nobody).unwrap();
    assert_ne!(other.value, first.value, "another client");
}

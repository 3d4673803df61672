//! Tokens and keys, without a proxy around them.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::Algorithm;
use serde_json::{Value, json};

use super::Refusal;
use super::keys::{KeySet, KeysError, MAX_BYTES, MAX_KEYS};
use super::source::{Health, KeySources, Timing};
use super::testing::{Issuer, jwks};

fn read(keys: Vec<Value>) -> Result<KeySet, KeysError> {
    KeySet::read(json!({ "keys": keys }).to_string().as_bytes())
}

#[test]
fn a_set_has_the_keys_that_can_be_used() {
    let issuer = Issuer::new("good");
    let with = |over: Value| {
        let mut key = issuer.jwk();
        for (name, value) in over.as_object().unwrap() {
            key[name] = value.clone();
        }
        key
    };
    for useless in [
        with(json!({"use": "enc"})),
        with(json!({"key_ops": ["sign"]})),
        with(json!({"alg": "HS256"})),
        with(json!({"alg": "ES384"})),
        with(json!({"alg": "unheard"})),
        with(json!({"crv": "P-521"})),
        with(json!({"x": "!"})),
        json!({"kty": "oct", "k": "AAAA"}),
        json!({"kty": "RSA", "n": "AQAB", "e": "AQAB"}),
        json!({"kty": "unheard"}),
        json!("text"),
    ] {
        let alone = read(vec![useless.clone()]);
        assert_eq!(alone.err(), Some(KeysError::NoKey), "{useless}");
        // Beside a good one it does no harm.
        let beside = read(vec![useless.clone(), issuer.jwk()]).unwrap();
        assert!(
            beside.find(Some("good"), Algorithm::ES256).is_ok(),
            "{useless}"
        );
    }
    assert_eq!(KeySet::read(b"<html>").err(), Some(KeysError::Malformed));
    assert_eq!(KeySet::read(b"{}").err(), Some(KeysError::Malformed));
    let many = vec![issuer.jwk(); MAX_KEYS + 1];
    assert_eq!(read(many).err(), Some(KeysError::TooMany));
    let large = vec![b' '; MAX_BYTES + 1];
    assert_eq!(KeySet::read(&large).err(), Some(KeysError::TooLarge));
}

#[test]
fn a_key_is_found_by_name_and_kind() {
    let (ec, rsa) = (Issuer::new("ec"), Issuer::rsa("rsa"));
    let keys = KeySet::read(jwks(&[&ec, &rsa]).as_bytes()).unwrap();
    let count = |name, algorithm| keys.find(name, algorithm).map(Iterator::count);
    assert_eq!(count(Some("ec"), Algorithm::ES256), Ok(1));
    assert_eq!(count(None, Algorithm::ES256), Ok(1));
    assert_eq!(count(Some("rsa"), Algorithm::PS512), Ok(1));
    assert_eq!(
        count(Some("rsa"), Algorithm::ES256),
        Err(Refusal::BadAlgorithm)
    );
    assert_eq!(count(None, Algorithm::ES384), Err(Refusal::BadAlgorithm));
    assert_eq!(
        count(Some("new"), Algorithm::ES256),
        Err(Refusal::UnknownKey)
    );
}

fn timing() -> Timing {
    Timing {
        pause: Duration::from_secs(3600),
        ..Timing::default()
    }
}

#[tokio::test]
async fn keys_that_are_not_known_are_fetched_once_in_a_while() {
    let (sources, _new) = KeySources::new(timing());
    let short = Duration::from_millis(50);
    let source = sources.get("https://issuer.example/keys", short).unwrap();
    // Nobody fetches: who waits does so for the time of a fetch.
    assert!(source.keys().await.is_none());
    let read = || KeySet::read(jwks(&[&Issuer::new("a")]).as_bytes()).ok();
    source.fetched(read());
    let keys = source.keys().await.unwrap();
    let since = std::time::Instant::now();
    assert!(source.newer(&keys).await.is_none());
    assert!(since.elapsed() < short, "a fetch was only just");
    source.fetched(None);
    assert!(
        Arc::ptr_eq(&source.keys().await.unwrap(), &keys),
        "they stay"
    );
    source.fetched(read());
    assert!(!Arc::ptr_eq(&source.newer(&keys).await.unwrap(), &keys));
    assert_eq!(sources.health().available, 1);
}

#[test]
fn a_source_is_shared_and_goes_with_its_rules() {
    let (sources, mut new) = KeySources::new(timing());
    let time = Duration::from_secs(5);
    let get = |uri: &str| sources.get(uri, time);
    for uri in [
        "",
        "/keys",
        "ftp://h/keys",
        "https:///keys",
        "http://u:p@h/keys",
        "http://h/ a",
    ] {
        assert!(get(uri).is_none(), "{uri}");
    }
    let one = get("http://h/keys").unwrap();
    assert!(Arc::ptr_eq(&one, &get("http://h/keys").unwrap()));
    assert!(
        new.try_recv().is_ok() && new.try_recv().is_err(),
        "one task"
    );
    assert_eq!(sources.health().unavailable, 1);
    drop(one);
    assert_eq!(sources.health(), Health::default());
}

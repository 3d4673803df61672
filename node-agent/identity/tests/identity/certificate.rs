use std::sync::Arc;

use karst_identity::{SpiffeId, WorkloadCertificate, peer_identity};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use crate::ca::{Leaf, TestCa, id};

fn reason(result: Result<WorkloadCertificate, karst_identity::IdentityError>) -> &'static str {
    result.map_or_else(|error| error.reason(), |_| "it was taken")
}

#[test]
fn material_that_does_not_fit_is_not_taken() {
    let ca = TestCa::new();
    let me = id("me");
    let (chain, key) = ca.sign(&Leaf::of(&me));
    let (_, other_key) = ca.sign(&Leaf::of(&me));
    let roots = ca.root_pem();
    let take = |id: &SpiffeId, chain: &str, key: &str, roots: &str| {
        reason(WorkloadCertificate::from_pem(id.clone(), chain, key, roots))
    };
    assert_eq!(take(&me, &chain, &key, &roots), "it was taken");
    let unusable = "certificate_unusable";
    assert_eq!(take(&id("other"), &chain, &key, &roots), unusable);
    assert_eq!(take(&me, &chain, &other_key, &roots), unusable);
    assert_eq!(take(&me, "", &key, &roots), unusable);
    assert_eq!(take(&me, &chain, "", &roots), unusable);
    assert_eq!(take(&me, &chain, &key, ""), unusable);
    assert_eq!(take(&me, &chain.repeat(9), &key, &roots), unusable);
    let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert_eq!(take(&me, broken, &key, &roots), unusable);
    assert_eq!(take(&me, &chain, &key, broken), unusable);
}

#[test]
fn an_epoch_builds_its_configurations_once() {
    let ca = TestCa::new();
    let cert = ca.issue(&id("me"));
    assert!(Arc::ptr_eq(&cert.server_config(), &cert.server_config()));
    let to_a = cert.client_config(&id("a")).unwrap();
    assert!(Arc::ptr_eq(&to_a, &cert.client_config(&id("a")).unwrap()));
    assert!(!Arc::ptr_eq(&to_a, &cert.client_config(&id("b")).unwrap()));
    assert!(!to_a.enable_sni);
    assert_eq!(to_a.alpn_protocols, [b"h2".to_vec()]);
    let next = ca.issue(&id("me"));
    assert!(next.epoch() > cert.epoch());
    assert_ne!(next.serial(), cert.serial());
}

/// The cache is for peers of one pod; a pod that talks to very many must not grow without end.
#[test]
fn configurations_are_bounded() {
    let cert = TestCa::new().issue(&id("me"));
    let first = cert.client_config(&id("peer-0")).unwrap();
    for i in 1..=1024 {
        cert.client_config(&id(&format!("peer-{i}"))).unwrap();
    }
    assert_eq!(Arc::strong_count(&first), 1);
}

#[test]
fn debug_output_shows_no_secret() {
    let ca = TestCa::new();
    let me = id("me");
    let (chain, key) = ca.sign(&Leaf::of(&me));
    let cert = WorkloadCertificate::from_pem(me, &chain, &key, &ca.root_pem()).unwrap();
    let shown = format!("{cert:?}");
    assert!(shown.contains("spiffe://cluster.local/ns/test/sa/me"));
    let secret = key.lines().nth(1).unwrap();
    assert!(!shown.contains(secret) && !shown.contains("PRIVATE"));
    assert!(cert.chain_pem().contains("BEGIN CERTIFICATE"));
}

#[test]
fn a_peer_is_who_its_certificate_says() {
    let ca = TestCa::new();
    let own = ca.issue(&id("me"));
    let check = |leaf: &Leaf| {
        let (chain, _) = ca.sign(leaf);
        let der = CertificateDer::from_pem_slice(chain.as_bytes()).unwrap();
        match peer_identity(&[der], &own) {
            Ok(id) => id.to_string(),
            Err(error) => error.reason().to_owned(),
        }
    };
    let good = Leaf::of(&id("peer"));
    assert_eq!(check(&good), id("peer").to_string());
    let names = |uris: &[&str]| Leaf {
        uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
        ..Leaf::of(&id("peer"))
    };
    let other = "spiffe://other.example/ns/test/sa/peer";
    assert_eq!(check(&names(&[other])), "trust_domain_mismatch");
    assert_eq!(check(&names(&[])), "identity_uri_count");
    assert_eq!(check(&names(&[other, other])), "identity_uri_count");
    assert_eq!(check(&names(&["https://example.com/"])), "identity_invalid");
    let now = OffsetDateTime::now_utc();
    let expired = Leaf {
        not_after: now - Duration::seconds(5),
        ..Leaf::of(&id("peer"))
    };
    assert_eq!(check(&expired), "tls_expired");
    let early = Leaf {
        not_before: now + Duration::minutes(5),
        ..Leaf::of(&id("peer"))
    };
    assert_eq!(check(&early), "tls_not_yet_valid");
    let none = peer_identity(&[], &own).unwrap_err();
    assert_eq!(none.reason(), "tls_no_client_certificate");
    let garbage = peer_identity(&[CertificateDer::from(vec![1, 2, 3])], &own).unwrap_err();
    assert_eq!(garbage.reason(), "tls_bad_certificate");
}

//! Renewal, on tokio's paused clock: hours pass in milliseconds.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use karst_identity::{
    CertificateEvents, CertificateManager, CertificateState, IdentityError, ManagerConfig,
    SpiffeId, Urgency, WorkloadCertificate,
};
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep};

use crate::ca::id;
use crate::fake::{Answer, FakeCa};

fn manager(ca: &Arc<FakeCa>) -> CertificateManager {
    let authority = Arc::clone(ca);
    CertificateManager::new(
        authority,
        ManagerConfig::default(),
        Arc::new(()),
        Handle::current(),
    )
}

/// Lets the paused clock run until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(14 * 24 * 3600);
    while !condition() {
        assert!(Instant::now() < limit, "it never happened");
        sleep(Duration::from_millis(100)).await;
    }
}

fn waits(ca: &FakeCa) -> Vec<Duration> {
    let calls = ca.calls.lock().unwrap();
    calls.windows(2).map(|pair| pair[1].0 - pair[0].0).collect()
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_fetched_once_and_kept() {
    let ca = FakeCa::new(Answer::Minutes(60));
    let manager = manager(&ca);
    assert!(manager.get(&id("a")).is_none());
    let a = id("a");
    let (first, second) = tokio::join!(manager.fetch(&a), manager.fetch(&a));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(first.id(), &id("a"));
    assert!(Arc::ptr_eq(&manager.get(&id("a")).unwrap(), &first));
    assert_eq!(ca.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn it_is_renewed_at_half_of_its_life_with_jitter() {
    let ca = FakeCa::new(Answer::Minutes(60));
    let manager = manager(&ca);
    let changes = manager.changes();
    let first = manager.fetch(&id("a")).await.unwrap();
    until(|| ca.calls() == 21).await;
    let waits = waits(&ca);
    // Half an hour, 10 % more or less, and a little for the rounding to seconds in X.509.
    let (low, high) = (
        Duration::from_secs(27 * 60 - 2),
        Duration::from_secs(33 * 60 + 2),
    );
    assert!(waits.iter().all(|w| (low..=high).contains(w)), "{waits:?}");
    let spread = *waits.iter().max().unwrap() - *waits.iter().min().unwrap();
    assert!(spread > Duration::from_secs(30), "no jitter: {waits:?}");
    until(|| *changes.borrow() >= 21).await;
    let now = manager.get(&id("a")).unwrap();
    assert!(now.epoch() > first.epoch());
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_with_growing_waits() {
    let ca = FakeCa::new(Answer::Refuse);
    let manager = manager(&ca);
    manager.want(&id("a"), Urgency::Background).unwrap();
    until(|| ca.calls() == 14).await;
    let waits = waits(&ca);
    for (index, wait) in waits.iter().enumerate() {
        let full = Duration::from_millis(500 << index.min(9)).min(Duration::from_secs(150));
        // The manager waits for the upper half of it, the paused clock moves by 0.1 s.
        let slack = Duration::from_millis(5);
        assert!(
            *wait + slack >= full / 2 && *wait <= full + slack,
            "{index}: {wait:?}"
        );
    }
    let status = &manager.list()[0];
    assert_eq!(status.state, CertificateState::Unavailable);
    assert_eq!(status.reason, "ca_refused");
    assert!(status.serial.is_empty());
    ca.set(Answer::Minutes(60));
    until(|| manager.get(&id("a")).is_some()).await;
    assert_eq!(manager.list()[0].reason, "");
}

#[tokio::test(start_paused = true)]
async fn a_waiting_connection_shortens_the_wait() {
    let ca = FakeCa::new(Answer::Refuse);
    let manager = manager(&ca);
    manager.want(&id("a"), Urgency::Background).unwrap();
    until(|| ca.calls() == 12).await;
    let asked = Instant::now();
    let error = manager.fetch(&id("a")).await.unwrap_err();
    assert_eq!(error.reason(), "ca_refused");
    assert!(
        asked.elapsed() <= Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
    assert_eq!(ca.calls(), 13);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_cannot_be_renewed_serves_while_it_is_valid() {
    let ca = FakeCa::new(Answer::Minutes(60));
    let manager = manager(&ca);
    let first = manager.fetch(&id("a")).await.unwrap();
    ca.set(Answer::Refuse);
    until(|| ca.calls() == 5).await;
    assert!(Arc::ptr_eq(&manager.get(&id("a")).unwrap(), &first));
    let status = &manager.list()[0];
    assert_eq!(status.state, CertificateState::Available);
    assert_eq!(status.reason, "ca_refused");
    assert_eq!(status.serial, first.serial());
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_hangs_is_given_up() {
    let ca = FakeCa::new(Answer::Hang);
    let manager = manager(&ca);
    let error = manager.fetch(&id("a")).await.unwrap_err();
    assert_eq!(error.reason(), "ca_timeout");
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_does_not_fit_is_not_taken() {
    let ca = FakeCa::new(Answer::WrongIdentity);
    let manager = manager(&ca);
    let error = manager.fetch(&id("a")).await.unwrap_err();
    assert_eq!(error.reason(), "certificate_unusable");
    ca.set(Answer::Minutes(-1));
    let error = manager.fetch(&id("a")).await.unwrap_err();
    assert_eq!(error.reason(), "certificate_unusable");
    assert!(manager.get(&id("a")).is_none());
}

/// An expired certificate is as good as none, whatever the renewal is doing. On the real clock.
#[tokio::test]
async fn an_expired_certificate_is_not_handed_out() {
    let ca = FakeCa::new(Answer::Seconds(8));
    let manager = manager(&ca);
    let certificate = manager.fetch(&id("a")).await.unwrap();
    ca.set(Answer::Refuse);
    until(|| SystemTime::now() > certificate.not_after()).await;
    assert!(manager.get(&id("a")).is_none());
    assert_eq!(
        manager.fetch(&id("a")).await.unwrap_err().reason(),
        "ca_refused"
    );
    let status = &manager.list()[0];
    assert_eq!(status.state, CertificateState::Unavailable);
    assert_eq!(status.serial, certificate.serial());
}

#[tokio::test(start_paused = true)]
async fn requests_are_limited_and_urgent_ones_pass() {
    let ca = FakeCa::new(Answer::Minutes(60));
    ca.gate.forget_permits(usize::MAX >> 3);
    let manager = manager(&ca);
    for i in 0..50 {
        manager
            .want(&id(&format!("pod-{i}")), Urgency::Background)
            .unwrap();
    }
    sleep(Duration::from_millis(10)).await;
    assert_eq!(ca.in_flight.load(Ordering::SeqCst), 6);
    let urgent = tokio::spawn({
        let manager = manager.clone();
        async move { manager.fetch(&id("urgent")).await.map(|c| c.id().clone()) }
    });
    sleep(Duration::from_millis(10)).await;
    assert_eq!(ca.calls.lock().unwrap().last().unwrap().1, id("urgent"));
    ca.gate.add_permits(100);
    assert_eq!(urgent.await.unwrap().unwrap(), id("urgent"));
    until(|| ca.calls() == 51).await;
    assert!(ca.most_in_flight.load(Ordering::SeqCst) <= 8);
    assert_eq!(manager.list().len(), 51);
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_gone_and_its_waiters_know() {
    let ca = FakeCa::new(Answer::Minutes(60));
    let manager = manager(&ca);
    manager.fetch(&id("a")).await.unwrap();
    manager.forget(&id("a"));
    assert!(manager.get(&id("a")).is_none());
    assert!(manager.list().is_empty());
    sleep(Duration::from_secs(7200)).await;
    assert_eq!(ca.calls(), 1);

    ca.set(Answer::Hang);
    let waiting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.fetch(&id("b")).await.map(|_| ()) }
    });
    until(|| ca.calls() == 2).await;
    assert_eq!(manager.list()[0].state, CertificateState::Initializing);
    manager.forget(&id("b"));
    assert_eq!(
        waiting.await.unwrap().unwrap_err().reason(),
        "no_certificate"
    );
    until(|| ca.in_flight.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_for_after_the_manager_is_gone() {
    let ca = FakeCa::new(Answer::Minutes(60));
    let manager = manager(&ca);
    manager.fetch(&id("a")).await.unwrap();
    drop(manager);
    sleep(Duration::from_secs(7200)).await;
    assert_eq!(ca.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_number_of_identities_is_limited() {
    let ca = FakeCa::new(Answer::Minutes(60));
    let config = ManagerConfig {
        max_identities: 2,
        ..ManagerConfig::default()
    };
    let authority = Arc::clone(&ca);
    let manager = CertificateManager::new(authority, config, Arc::new(()), Handle::current());
    manager.want(&id("a"), Urgency::Background).unwrap();
    manager.want(&id("b"), Urgency::Background).unwrap();
    manager.want(&id("a"), Urgency::Background).unwrap();
    let error = manager.want(&id("c"), Urgency::Background).unwrap_err();
    assert_eq!(error.reason(), "too_many_identities");
    manager.forget(&id("a"));
    manager.want(&id("c"), Urgency::Background).unwrap();
}

#[derive(Default)]
struct Events {
    issued: AtomicUsize,
    failed: Mutex<Vec<&'static str>>,
}

impl CertificateEvents for Events {
    fn issued(&self, _certificate: &WorkloadCertificate, _took: Duration) {
        self.issued.fetch_add(1, Ordering::SeqCst);
    }

    fn failed(&self, _id: &SpiffeId, error: &IdentityError) {
        self.failed.lock().unwrap().push(error.reason());
    }
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_told_and_listed() {
    let ca = FakeCa::new(Answer::Refuse);
    let events = Arc::new(Events::default());
    let (authority, told) = (Arc::clone(&ca), Arc::clone(&events));
    let manager =
        CertificateManager::new(authority, ManagerConfig::default(), told, Handle::current());
    manager.fetch(&id("b")).await.unwrap_err();
    ca.set(Answer::Minutes(60));
    let certificate = manager.fetch(&id("a")).await.unwrap();
    assert_eq!(events.issued.load(Ordering::SeqCst), 1);
    assert_eq!(*events.failed.lock().unwrap(), ["ca_refused"]);
    let list = serde_json::to_value(manager.list()).unwrap();
    assert_eq!(list[0]["id"], "spiffe://cluster.local/ns/test/sa/a");
    assert_eq!(list[0]["state"], "available");
    assert_eq!(list[0]["serial"], certificate.serial());
    assert_eq!(list[0]["chain_length"], 1);
    assert_eq!(list[0]["epoch"], certificate.epoch().get());
    let not_after = list[0]["not_after"].as_str().unwrap();
    assert!(
        not_after.ends_with('Z') && not_after.len() == 20,
        "{not_after}"
    );
    assert_eq!(list[1]["state"], "unavailable");
    assert_eq!(list[1]["reason"], "ca_refused");
}

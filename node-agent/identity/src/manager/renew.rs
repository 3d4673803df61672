//! The task that keeps the certificate of one identity fresh.

use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256, SanType,
    string::Ia5String,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout};

use super::entry::Entry;
use super::shared::Shared;
use super::{ManagerConfig, Urgency};
use crate::{CertificateRequest, IdentityError, SpiffeId, WorkloadCertificate};

/// Longest uninterrupted sleep. The monotonic clock stands still while a machine is suspended,
/// so the wall clock is looked at this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(300);
/// Shortest wait between two renewals, whatever lifetime an authority hands out: certificates
/// of a few seconds must not turn into a request loop.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);
/// A renewal comes at half of the lifetime, more or less by this share, so that identities
/// that were issued together do not ask together for ever.
const JITTER: f64 = 0.1;

/// Renews until the manager is gone or the task is aborted.
pub(super) async fn run(shared: Weak<Shared>, entry: Arc<Entry>, urgency: Urgency) {
    let mut failures = 0;
    let mut urgency = urgency;
    loop {
        let Some(manager) = shared.upgrade() else {
            return;
        };
        let wait = match attempt(&manager, &entry, urgency).await {
            Ok(certificate) => {
                failures = 0;
                let wait = refresh_after(&certificate);
                entry.succeeded(certificate);
                manager.changed();
                Wait::For(wait)
            }
            Err(error) => {
                failures += 1;
                tracing::warn!(id = %entry.id, reason = error.reason(), %error, "no certificate");
                manager.events.failed(&entry.id, &error);
                entry.failed(error);
                Wait::BackOff {
                    at_least: manager.config.backoff_initial,
                    at_most: backoff(&manager.config, failures),
                }
            }
        };
        drop(manager);
        urgency = wait.sleep(&entry).await;
    }
}

/// How long until the next attempt.
enum Wait {
    For(Duration),
    /// A waiting connection shortens it, but not below `at_least`.
    BackOff {
        at_least: Duration,
        at_most: Duration,
    },
}

impl Wait {
    async fn sleep(self, entry: &Entry) -> Urgency {
        match self {
            Self::For(wait) => tokio::select! {
                () = sleep_by_both_clocks(wait) => Urgency::Background,
                () = hurried_without_certificate(entry) => Urgency::Now,
            },
            Self::BackOff { at_least, at_most } => {
                let started = Instant::now();
                tokio::select! {
                    () = sleep_until(started + at_most) => Urgency::Background,
                    () = entry.hurried() => {
                        sleep_until(started + at_least.min(at_most)).await;
                        Urgency::Now
                    }
                }
            }
        }
    }
}

/// A connection waits although there is a certificate: it has expired, the clock was set.
async fn hurried_without_certificate(entry: &Entry) {
    loop {
        entry.hurried().await;
        let certificate = entry.certificate.load();
        let now = SystemTime::now();
        if !certificate.as_ref().is_some_and(|c| c.is_valid_at(now)) {
            return;
        }
    }
}

/// Ends when either clock says that `wait` is over.
async fn sleep_by_both_clocks(wait: Duration) {
    let monotonic = Instant::now() + wait;
    let wall = SystemTime::now() + wait;
    while Instant::now() < monotonic && SystemTime::now() < wall {
        sleep_until(monotonic.min(Instant::now() + LONGEST_SLEEP)).await;
    }
}

/// Requests that may be under way at once.
///
/// Background requests leave a quarter of the places free, so that a waiting connection does
/// not stand in line behind a node's start-up.
pub(super) struct Permits {
    all: Semaphore,
    background: Semaphore,
}

impl Permits {
    pub(super) fn new(concurrency: usize) -> Self {
        let all = concurrency.max(1);
        Self {
            all: Semaphore::new(all),
            background: Semaphore::new((all - all / 4).max(1)),
        }
    }

    async fn acquire(&self, entry: &Entry, urgency: Urgency) -> [Option<SemaphorePermit<'_>>; 2] {
        let background = match urgency {
            Urgency::Now => None,
            Urgency::Background => tokio::select! {
                biased;
                permit = self.background.acquire() => permit.ok(),
                () = entry.hurried() => None,
            },
        };
        [background, self.all.acquire().await.ok()]
    }
}

async fn attempt(
    manager: &Shared,
    entry: &Entry,
    urgency: Urgency,
) -> Result<Arc<WorkloadCertificate>, IdentityError> {
    let id = &entry.id;
    let _permit = manager.permits.acquire(entry, urgency).await;
    let started = Instant::now();
    let (key, csr_pem) = key_and_request(id)?;
    let request = CertificateRequest {
        id: id.clone(),
        csr_pem,
    };
    let limit = manager.config.request_timeout;
    let signed = timeout(limit, manager.authority.sign(request))
        .await
        .map_err(|_| IdentityError::AuthorityTimeout {
            seconds: limit.as_secs(),
        })??;
    let unusable = |problem: String| IdentityError::UnusableCertificate {
        id: id.clone(),
        problem,
    };
    let chain = parse(&signed.chain_pem).map_err(|e| unusable(format!("chain: {e}")))?;
    let roots = parse(&signed.roots_pem).map_err(|e| unusable(format!("roots: {e}")))?;
    let certificate = WorkloadCertificate::new(id.clone(), chain, &key, roots, signed.chain_pem)?;
    if !certificate.is_valid_at(SystemTime::now()) {
        return Err(unusable(
            "it is not valid now; compare the clocks of the controller and this node".to_owned(),
        ));
    }
    manager.events.issued(&certificate, started.elapsed());
    Ok(Arc::new(certificate))
}

fn parse(pem: &str) -> Result<Vec<CertificateDer<'static>>, rustls_pki_types::pem::Error> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect()
}

/// A fresh P-256 key and a request that names the identity.
fn key_and_request(id: &SpiffeId) -> Result<(PrivateKeyDer<'static>, String), IdentityError> {
    let failed = |error: rcgen::Error| IdentityError::KeyGeneration {
        problem: error.to_string(),
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = Ia5String::try_from(id.as_str()).map_err(failed)?;
    params.subject_alt_names = vec![SanType::URI(name)];
    let request = params.serialize_request(&key).map_err(failed)?;
    let pem = request.pem().map_err(failed)?;
    let der = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok((PrivateKeyDer::Pkcs8(der), pem))
}

/// Half of what is left, with jitter. What is left is what counts: an authority may back-date
/// the start, or hand out a certificate it issued before.
fn refresh_after(certificate: &WorkloadCertificate) -> Duration {
    let left = certificate
        .not_after()
        .duration_since(SystemTime::now())
        .unwrap_or_default();
    let share = 0.5 * (1.0 + JITTER * (2.0 * rand::random::<f64>() - 1.0));
    left.mul_f64(share).max(SHORTEST_REFRESH)
}

/// Doubles with every failure, and spreads over the upper half of the wait.
fn backoff(config: &ManagerConfig, failures: u32) -> Duration {
    let doubled = config
        .backoff_initial
        .saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
    let wait = doubled.min(config.backoff_max);
    wait.mul_f64(0.5 + 0.5 * rand::random::<f64>())
}

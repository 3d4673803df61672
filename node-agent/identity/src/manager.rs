//! Keeps a certificate for every identity of this node and renews it in time.

mod entry;
mod renew;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use shared::Shared;

use crate::{
    CertificateAuthority, CertificateStatus, IdentityError, SpiffeId, WorkloadCertificate,
};

/// How urgently a certificate is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// In time, e.g. for a pod that has just come to this node.
    Background,
    /// A connection waits for it.
    Now,
}

/// Limits and times of a [`CertificateManager`].
#[derive(Clone, Debug)]
pub struct ManagerConfig {
    /// Requests to the authority under way at once.
    pub concurrency: usize,
    /// Longest wait for one answer of the authority.
    pub request_timeout: Duration,
    /// Wait after the first failure; doubled after each further one.
    pub backoff_initial: Duration,
    /// Longest wait between two attempts.
    pub backoff_max: Duration,
    /// Identities wanted at once on this node.
    pub max_identities: usize,
}

impl Default for ManagerConfig {
    fn default() -> Self {
        Self {
            concurrency: 8,
            request_timeout: Duration::from_secs(10),
            backoff_initial: Duration::from_millis(500),
            backoff_max: Duration::from_secs(150),
            // Several times the pods a node can hold; each pod has one identity.
            max_identities: 4096,
        }
    }
}

/// What happens to certificates, for metrics and logs.
pub trait CertificateEvents: Send + Sync {
    /// A certificate was issued after `took`.
    fn issued(&self, certificate: &WorkloadCertificate, took: Duration);
    /// A request failed.
    fn failed(&self, id: &SpiffeId, error: &IdentityError);
}

impl CertificateEvents for () {
    fn issued(&self, _certificate: &WorkloadCertificate, _took: Duration) {}
    fn failed(&self, _id: &SpiffeId, _error: &IdentityError) {}
}

/// Certificates of this node's identities. Cloning shares it.
///
/// [`CertificateManager::get`] takes no lock and never waits, so that a connection may ask.
#[derive(Clone)]
pub struct CertificateManager {
    shared: Arc<Shared>,
}

impl CertificateManager {
    /// A manager that renews on `runtime`, which must have its time driver enabled.
    #[must_use]
    pub fn new(
        authority: Arc<dyn CertificateAuthority>,
        config: ManagerConfig,
        events: Arc<dyn CertificateEvents>,
        runtime: Handle,
    ) -> Self {
        Self {
            shared: Arc::new(Shared::new(authority, config, events, runtime)),
        }
    }

    /// The certificate of `id` if there is one and it is valid now.
    #[must_use]
    pub fn get(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        self.shared.get(id)
    }

    /// The certificate of `id`; asks for it and waits when there is none.
    ///
    /// # Errors
    /// What the next attempt fails with. Attempts go on in the background.
    pub async fn fetch(&self, id: &SpiffeId) -> Result<Arc<WorkloadCertificate>, IdentityError> {
        self.shared.fetch(id).await
    }

    /// Keeps a certificate for `id` from now on. Does nothing when it is kept already.
    ///
    /// # Errors
    /// [`IdentityError::TooManyIdentities`].
    pub fn want(&self, id: &SpiffeId, urgency: Urgency) -> Result<(), IdentityError> {
        self.shared.want(id, urgency)
    }

    /// Drops the certificate of `id` and stops renewing it.
    pub fn forget(&self, id: &SpiffeId) {
        self.shared.forget(id);
    }

    /// All identities, sorted by id.
    #[must_use]
    pub fn list(&self) -> Vec<CertificateStatus> {
        self.shared.list()
    }

    /// A counter that moves whenever a certificate was issued or forgotten, so that servers and
    /// pools can take up the new epoch.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes()
    }
}

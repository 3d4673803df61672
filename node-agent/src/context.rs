//! What every part of the agent shares, and the two things behind traits so
//! that tests need no kernel and no certificate authority.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use karst_datapath::{Counter, Datapath, DatapathError, EnrolledPod, MapFill, PodAttachment};
use karst_identity::{
    CertificateManager, CertificateStatus, IdentityError, SpiffeId, Urgency, WorkloadCertificate,
};

use crate::access_log::AccessLog;
use crate::metrics::Metrics;
use crate::state::MeshState;

/// The kernel's part of the work. [`Datapath`] in production.
pub trait Kernel: Send + Sync {
    /// See [`Datapath::enrol`].
    fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError>;
    /// See [`Datapath::unenrol`].
    fn unenrol(&self, uid: &str) -> Result<(), DatapathError>;
    /// See [`Datapath::enrolled`].
    fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError>;
    /// See [`Datapath::original_destination`].
    fn original_destination(&self, fd: BorrowedFd<'_>)
    -> Result<Option<SocketAddr>, DatapathError>;
    /// See [`Datapath::set_source`].
    fn set_source(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> Result<(), DatapathError>;
    /// See [`Datapath::counters`].
    fn counters(&self) -> Result<Vec<Counter>, DatapathError>;
    /// See [`Datapath::map_fill`].
    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError>;
}

impl Kernel for Datapath {
    fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        Self::enrol(self, pod)
    }

    fn unenrol(&self, uid: &str) -> Result<(), DatapathError> {
        Self::unenrol(self, uid)
    }

    fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError> {
        Self::enrolled(self)
    }

    fn original_destination(
        &self,
        fd: BorrowedFd<'_>,
    ) -> Result<Option<SocketAddr>, DatapathError> {
        Self::original_destination(self, fd)
    }

    fn set_source(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> Result<(), DatapathError> {
        Self::set_source(self, fd, client)
    }

    fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        Self::counters(self)
    }

    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        Self::map_fill(self)
    }
}

/// Where certificates come from. [`CertificateManager`] in production.
pub trait Certificates: Send + Sync {
    /// The valid certificate of `id`, without waiting.
    fn get(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>>;
    /// Whether there is a valid certificate of `id`.
    fn has(&self, id: &SpiffeId) -> bool {
        self.get(id).is_some()
    }
    /// Keeps a certificate of `id` from now on.
    ///
    /// # Errors
    /// Too many identities.
    fn want(&self, id: &SpiffeId) -> Result<(), IdentityError>;
    /// Ends it.
    fn forget(&self, id: &SpiffeId);
    /// All identities.
    fn list(&self) -> Vec<CertificateStatus>;
}

impl Certificates for CertificateManager {
    fn get(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        Self::get(self, id)
    }

    fn want(&self, id: &SpiffeId) -> Result<(), IdentityError> {
        Self::want(self, id, Urgency::Now)
    }

    fn forget(&self, id: &SpiffeId) {
        Self::forget(self, id);
    }

    fn list(&self) -> Vec<CertificateStatus> {
        Self::list(self)
    }
}

/// Shared by the control runtime and all workers.
pub struct Context {
    /// The mesh.
    pub state: Arc<MeshState>,
    /// The kernel.
    pub kernel: Arc<dyn Kernel>,
    /// Certificates of this node's pods.
    pub certificates: Arc<dyn Certificates>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Access log.
    pub access_log: AccessLog,
}

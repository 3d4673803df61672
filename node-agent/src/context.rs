//! What every part of the agent shares, and the two things behind traits so
//! that tests need no kernel and no certificate authority.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use karst_datapath::{
    Counter, Datapath, DatapathError, EnrolledPod, Loaded, MapFill, Original, PodAttachment,
    ProgramRuns,
};
use karst_identity::{
    CertificateManager, CertificateStatus, IdentityError, SpiffeId, Urgency, WorkloadCertificate,
};
use karst_process::tap::Tap;
use karst_telemetry::span::Resource;

use crate::access_log::AccessLog;
use crate::metrics::Metrics;
use crate::same_node::Reachable;
use crate::state::MeshState;

/// The kernel's part of the work. [`KernelSlot`] in production.
pub trait Kernel: Send + Sync {
    /// See [`Datapath::enrol`].
    fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError>;
    /// See [`Datapath::unenrol`].
    fn unenrol(&self, uid: &str) -> Result<(), DatapathError>;
    /// See [`Datapath::enrolled`].
    fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError>;
    /// See [`Datapath::claim`].
    fn claim(&self) -> Result<(), DatapathError>;
    /// See [`Datapath::original`].
    fn original(&self, fd: BorrowedFd<'_>) -> Result<Option<Original>, DatapathError>;
    /// See [`Datapath::set_source`].
    fn set_source(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> Result<(), DatapathError>;
    /// See [`Datapath::counters`].
    fn counters(&self) -> Result<Vec<Counter>, DatapathError>;
    /// See [`Datapath::map_fill`].
    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError>;
    /// See [`Datapath::loaded`].
    fn loaded(&self) -> Result<Loaded, DatapathError>;
    /// See [`Datapath::program_runs`].
    fn program_runs(&self) -> Result<Vec<ProgramRuns>, DatapathError>;
}

/// The datapath of an agent that may have to wait for it: while another agent
/// serves the node there is none.
#[derive(Debug, Default)]
pub struct KernelSlot(ArcSwapOption<Datapath>);

impl KernelSlot {
    /// Uses `datapath` from now on.
    pub fn set(&self, datapath: Arc<Datapath>) {
        self.0.store(Some(datapath));
    }

    fn with<T>(
        &self,
        work: impl FnOnce(&Datapath) -> Result<T, DatapathError>,
    ) -> Result<T, DatapathError> {
        let guard = self.0.load();
        work(guard.as_ref().ok_or(DatapathError::NotOpen)?)
    }
}

impl Kernel for KernelSlot {
    fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        self.with(|datapath| datapath.enrol(pod))
    }

    fn unenrol(&self, uid: &str) -> Result<(), DatapathError> {
        self.with(|datapath| datapath.unenrol(uid))
    }

    fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError> {
        self.with(Datapath::enrolled)
    }

    fn claim(&self) -> Result<(), DatapathError> {
        self.with(Datapath::claim)
    }

    fn original(&self, fd: BorrowedFd<'_>) -> Result<Option<Original>, DatapathError> {
        self.with(|datapath| datapath.original(fd))
    }

    fn set_source(&self, fd: BorrowedFd<'_>, client: SocketAddr) -> Result<(), DatapathError> {
        self.with(|datapath| datapath.set_source(fd, client))
    }

    fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        self.with(Datapath::counters)
    }

    fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        self.with(Datapath::map_fill)
    }

    fn loaded(&self) -> Result<Loaded, DatapathError> {
        self.with(|datapath| Ok(datapath.loaded()))
    }

    fn program_runs(&self) -> Result<Vec<ProgramRuns>, DatapathError> {
        self.with(Datapath::program_runs)
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
    /// Access log. Workers have clones.
    pub access_log: AccessLog,
    /// Who follows connections live.
    pub tap: Tap,
    /// Workloads of this node that connections of its pods reach past this agent.
    pub reachable: Reachable,
    /// Who we are in spans.
    pub resource: Resource,
}

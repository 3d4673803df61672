//! The eBPF datapath of one node: loads the programs, keeps them attached by pinned links, and
//! tells the kernel which pods are enrolled.
//!
//! It knows nothing of identities, policy or tunnels, and it makes no listeners: the agent makes
//! them inside the pod's namespace ([`netns::Netns::run`]) and hands them in. It is the only
//! crate that depends on aya. Start with [`Datapath::open`], then [`Datapath::enrol`]; the hooks
//! and maps are tabled in `ebpf/README.md`.

#![expect(
    unsafe_code,
    reason = "bpf(2) and setns(2) have no safe wrapper; every other crate forbids it"
)]

mod api;
mod error;
pub mod inspect;
pub mod netns;

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::Path;

pub use api::{Counter, DatapathConfig, EnrolledPod, MapFill, PodAttachment, VerifiedProgram};
pub use error::DatapathError;

/// The programs and maps of one node, attached for as long as their pins exist.
///
/// Dropping it detaches nothing: enrolled pods stay captured and fail closed without the agent.
#[derive(Debug)]
pub struct Datapath {}

impl Datapath {
    /// Loads the programs, reuses pinned maps of the same layout version, and creates or
    /// atomically replaces the pinned links.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        let _ = config;
        Err(DatapathError::ObjectMissing)
    }
    /// Enrols a pod; idempotent.
    pub fn enrol(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        let _ = pod;
        Err(DatapathError::ObjectMissing)
    }
    /// Puts new listeners in place for an enrolled pod; the same as [`Datapath::enrol`].
    pub fn replace_listeners(&self, pod: &PodAttachment<'_>) -> Result<(), DatapathError> {
        self.enrol(pod)
    }
    /// Lets go of a pod: new connections are its own again, established ones go on; idempotent.
    pub fn unenrol(&self, uid: &str) -> Result<(), DatapathError> {
        let _ = uid;
        Err(DatapathError::ObjectMissing)
    }
    /// Un-enrols every pod not in `uids`, returns the uids let go.
    pub fn retain(&self, uids: &[&str]) -> Result<Vec<String>, DatapathError> {
        let _ = uids;
        Err(DatapathError::ObjectMissing)
    }
    /// The enrolled pods, from the kernel maps.
    pub fn enrolled(&self) -> Result<Vec<EnrolledPod>, DatapathError> {
        Err(DatapathError::ObjectMissing)
    }
    /// Where the application wanted to go; `None` if the connection was not captured by us.
    pub fn original_destination(
        &self,
        accepted: BorrowedFd<'_>,
    ) -> Result<Option<SocketAddr>, DatapathError> {
        let _ = accepted;
        Err(DatapathError::ObjectMissing)
    }
    /// Makes the application see `client` as the peer of this socket. Before `connect()`.
    pub fn set_source(
        &self,
        socket: BorrowedFd<'_>,
        client: SocketAddr,
    ) -> Result<(), DatapathError> {
        let _ = (socket, client);
        Err(DatapathError::ObjectMissing)
    }
    /// Counters of the programs.
    pub fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        Err(DatapathError::ObjectMissing)
    }
    /// Fill of the bounded maps.
    pub fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        Err(DatapathError::ObjectMissing)
    }
    /// Sends the programs' log records to `tracing` until the runtime ends. Call inside a tokio
    /// runtime, once.
    pub fn start_logging(&self) -> Result<(), DatapathError> {
        Err(DatapathError::ObjectMissing)
    }
    /// Deletes every pin of this node, which detaches every program (uninstall).
    pub fn remove_all(config: &DatapathConfig) -> Result<(), DatapathError> {
        let _ = config;
        Err(DatapathError::ObjectMissing)
    }
}

/// Loads every program of the object at `path` into the running kernel's verifier, attaching
/// none.
pub fn verify_object(path: &Path) -> Result<Vec<VerifiedProgram>, DatapathError> {
    let _ = path;
    Err(DatapathError::ObjectMissing)
}

//! What the control side and all workers share.

use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use karst_identity::WorkloadCertificate;
use karst_process::tap::Tap;
use karst_telemetry::span::Resource;
use karst_tunnel::headers::Baggage;

use crate::access_log::AccessLog;
use crate::balance::Clusters;
use crate::metrics::Metrics;
use crate::table::Tables;
use crate::upstream;
use crate::upstream::UpstreamStats;

/// Gives our certificate of the moment; `None` while there is no valid one. It must not wait.
pub type Certificate = Box<dyn Fn() -> Option<Arc<WorkloadCertificate>> + Send + Sync>;

/// Shared by the control side and all workers.
pub struct Shared {
    /// The configuration in force.
    pub tables: Arc<Tables>,
    /// A complete configuration has been received, at some time since the start.
    pub configured: AtomicBool,
    /// Backends, with the state of their endpoints.
    pub clusters: Arc<Clusters>,
    /// Our certificate.
    pub certificate: Certificate,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Access log.
    pub access_log: AccessLog,
    /// Who follows requests live.
    pub tap: Tap,
    /// Who we are in spans.
    pub resource: Resource,
    /// Clients' connections at once, of all workers and both sides.
    pub max_connections: usize,
    /// Forward proxies in front of us that are trusted to tell their client's address.
    pub trusted_hops: usize,
    /// What is said to the other end of a tunnel.
    pub baggage: Option<Baggage>,
    /// Port of the tunnel at endpoints.
    pub tunnel_port: u16,
    /// What each worker counts of its connections to endpoints.
    pub upstreams: Upstreams,
}

/// The counts of all workers' connections to endpoints.
#[derive(Debug, Default)]
pub struct Upstreams(Mutex<Vec<Arc<upstream::Metrics>>>);

impl Upstreams {
    /// Adds a worker's.
    pub fn add(&self, metrics: Arc<upstream::Metrics>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(metrics);
    }

    /// The sums over all workers.
    #[must_use]
    pub fn stats(&self) -> UpstreamStats {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut sum = UpstreamStats::default();
        for one in all.iter().map(|metrics| metrics.stats()) {
            sum.opened += one.opened;
            sum.open += one.open;
            sum.failed += one.failed;
            sum.requests += one.requests;
            sum.reused += one.reused;
            sum.resent += one.resent;
        }
        sum
    }
}

impl Shared {
    /// Clients' connections open now.
    #[must_use]
    pub fn connections(&self) -> usize {
        let open = self.metrics.mesh_connections.get() + self.metrics.gateway_connections.get();
        usize::try_from(open).unwrap_or(0)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

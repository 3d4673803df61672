//! All metrics of the proxy that its data plane counts. What is read at each scrape from where the truth is
//! (pools, endpoints, certificates, the stream to the controller) is in [`process`].

pub mod checks;
pub mod encode;
pub mod policies;
pub mod process;
pub mod refusals;
pub mod traffic;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use checks::Checks;
use karst_process::metrics::handshakes::Handshakes;
use karst_tunnel::Observer;
use policies::PolicyCounts;
use refusals::Refusals;
use traffic::Traffic;

use crate::access_log::RequestRecord;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// One more.
    pub fn inc(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Level(AtomicI64);

impl Level {
    /// The value of the moment.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// One more, until the guard is dropped.
    #[must_use]
    pub fn enter(self: &Arc<Self>) -> Inside {
        self.0.fetch_add(1, Ordering::Relaxed);
        Inside(Arc::clone(self))
    }
}

/// Counts in a [`Level`] while it lives.
#[derive(Debug)]
pub struct Inside(Arc<Level>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counters the data plane writes, shared by all workers.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Workers do not count connections and requests in [`Self::traffic`]: for measuring what that costs.
    pub without_traffic: bool,
    /// Istio's metrics.
    pub traffic: Arc<Traffic>,
    /// Refusals by reason: of connections, streams and requests that never got to an endpoint.
    pub refusals: Refusals,
    /// What policies have done, by policy.
    pub policies: PolicyCounts,
    /// What was not logged, and what became of spans.
    pub telemetry: Arc<karst_telemetry::metrics::Metrics>,
    /// What external authorizers were asked and said.
    pub checks: Arc<Checks>,
    /// TLS handshakes of tunnels.
    pub handshakes: Arc<Handshakes>,
    /// Accepts that failed for lack of file descriptors or memory.
    pub accept_failures: Count,
    /// Tunnel connections open now.
    pub mesh_connections: Arc<Level>,
    /// Connections to a gateway's ports open now.
    pub gateway_connections: Arc<Level>,
    /// Connections taken, of both kinds.
    pub connections: Count,
    /// Requests under way.
    pub requests_active: Arc<Level>,
    /// Retries made.
    pub retries: Count,
    /// Retries that the budget did not allow.
    pub retries_denied: Count,
    /// Requests mirrored.
    pub mirrors: Count,
    /// Certificates issued to this proxy.
    pub certificates_issued: Count,
    /// Certificate requests that failed.
    pub certificates_failed: Count,
    /// Ports of a gateway that are wanted and could not be opened.
    pub ports_failed: Level,
}

impl Metrics {
    /// Tells [`Self::handshakes`].
    #[must_use]
    pub fn observer(&self) -> Observer {
        let handshakes = Arc::clone(&self.handshakes);
        Observer::new(move |one| handshakes.count(one.side.as_str(), one.outcome, one.took))
    }

    /// Counts a request that has ended. Workers use [`crate::telemetry::Recorder`], which is cheaper.
    pub fn request_finished(&self, record: &RequestRecord) {
        traffic::TrafficCache::new(Arc::clone(&self.traffic)).request(record);
    }
}

//! The endpoint that was chosen for a request, counted while the request is under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;

use super::cluster::Cluster;
use super::endpoint::Endpoint;

/// What a request that was not answered is taken for by the latency, microseconds: an endpoint that fails
/// at once must not look fast.
const FAILURE_MICROS: u64 = 1_000_000;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Response(StatusCode),
    /// There was no connection to be had.
    ConnectFailed,
    /// The connection or stream broke.
    Reset,
    /// There was no answer in time.
    TimedOut,
    /// The client gave it up, or we did for a reason that has nothing to do with the endpoint.
    Cancelled,
}

/// An endpoint that was chosen. Dropping it ends the request; without an outcome it counts as cancelled.
#[derive(Debug)]
pub struct Picked {
    cluster: Arc<Cluster>,
    endpoint: Arc<Endpoint>,
    destination: SocketAddr,
    /// Microseconds of the cluster's clock: when it was chosen, or when there was a connection.
    started: AtomicU64,
    observed: bool,
}

impl Picked {
    /// The requests of the cluster are counted already.
    pub(super) fn new(
        cluster: &Arc<Cluster>,
        endpoint: &Arc<Endpoint>,
        destination: SocketAddr,
    ) -> Self {
        endpoint.state().in_flight.try_add(u32::MAX);
        Self {
            cluster: Arc::clone(cluster),
            endpoint: Arc::clone(endpoint),
            destination,
            started: AtomicU64::new(cluster.now_micros()),
            observed: false,
        }
    }

    /// The backend.
    #[must_use]
    pub fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// The endpoint.
    #[must_use]
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The endpoint's key, for `tried` and for sessions.
    #[must_use]
    pub fn key(&self) -> &Arc<str> {
        self.endpoint.key()
    }

    /// Address and port of the application.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// There is a connection, and the request is sent now. Its latency counts from here: what it takes to connect
    /// says nothing about the next request, and would keep others away from an endpoint that was just new.
    pub fn connected(&self) {
        let now = self.cluster.now_micros();
        self.started.store(now, Ordering::Relaxed);
    }

    /// Says what became of the request while its response body is still under way: it goes on being counted
    /// until this is finished or dropped. The latency is that of the first call.
    pub fn observe(&mut self, outcome: Outcome) {
        let now = self.cluster.now_micros();
        let took = now.saturating_sub(self.started.load(Ordering::Relaxed));
        let state = self.endpoint.state();
        let first = !std::mem::replace(&mut self.observed, true);
        match outcome {
            Outcome::Response(_) if first => state.latency.answered(took, now / 1_000),
            Outcome::Response(_) | Outcome::Cancelled => {}
            Outcome::ConnectFailed | Outcome::Reset | Outcome::TimedOut => {
                state.latency.observe(took.max(FAILURE_MICROS), now / 1_000);
            }
        }
        self.cluster.record(&self.endpoint, outcome);
    }

    /// Ends the request. After [`Self::observe`] only a failure is counted once more: a response that was
    /// answered and broke off.
    pub fn finish(mut self, outcome: Outcome) {
        if !(self.observed && matches!(outcome, Outcome::Response(_))) {
            self.observe(outcome);
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.endpoint.state().in_flight.sub();
        self.cluster.in_use().requests.sub();
    }
}

//! Limits of a backend for the whole proxy: connections, requests that wait for one, requests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::sync::Notify;

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Connections.
    Connections,
    /// Requests that wait for a connection.
    Pending,
    /// Requests under way.
    Requests,
}

impl Limit {
    /// The stable label, shared by log and metric.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Connections => "overloaded_connections",
            Self::Pending => "overloaded_pending_requests",
            Self::Requests => "overloaded_requests",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connections => "too many connections",
            Self::Pending => "too many requests wait for a connection",
            Self::Requests => "too many requests are under way",
        })
    }
}

/// A count that never passes a ceiling which may move.
#[derive(Debug, Default)]
pub(super) struct Gauge(AtomicU32);

impl Gauge {
    /// Counts one more unless there are `max`.
    pub(super) fn try_add(&self, max: u32) -> bool {
        let add = |used: u32| (used < max).then_some(used + 1);
        let added = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.is_ok()
    }

    pub(super) fn sub(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What is in use of a backend's limits.
#[derive(Debug, Default)]
pub(super) struct InUse {
    pub(super) requests: Gauge,
    pub(super) retries: Gauge,
    pub(super) connections: Gauge,
    pub(super) pending: Gauge,
    /// Requests that wait because all connections are in use.
    waiting: Gauge,
    /// Told of each connection that ended.
    released: Notify,
}

impl InUse {
    pub(super) fn connection(self: &Arc<Self>, max: u32) -> Option<ConnectionSlot> {
        let added = self.connections.try_add(max);
        added.then(|| ConnectionSlot(Arc::clone(self)))
    }

    pub(super) fn pending(self: &Arc<Self>, max: u32) -> Option<PendingSlot> {
        let added = self.pending.try_add(max);
        added.then(|| PendingSlot(Arc::clone(self)))
    }

    pub(super) fn waiting(&self) -> u32 {
        self.waiting.get()
    }

    /// Waits until a connection has ended. What has ended before the first poll is not seen.
    pub(super) async fn released(&self) {
        let _waiting = Waiting::new(self);
        self.released.notified().await;
    }
}

struct Waiting<'a>(&'a InUse);

impl<'a> Waiting<'a> {
    fn new(in_use: &'a InUse) -> Self {
        // The requests that may wait are limited before.
        in_use.waiting.try_add(u32::MAX);
        Self(in_use)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.sub();
    }
}

/// Counts one connection of a backend while it lives.
#[derive(Debug)]
pub struct ConnectionSlot(Arc<InUse>);

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.connections.sub();
        // A permit that nobody waits for is kept, and one waiter at most looks in vain.
        self.0.released.notify_one();
    }
}

/// Counts one request that waits for a connection.
#[derive(Debug)]
pub struct PendingSlot(Arc<InUse>);

impl Drop for PendingSlot {
    fn drop(&mut self) {
        self.0.pending.sub();
    }
}

//! What the connections of a worker do, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts of one worker. One thread writes, any thread may read.
#[derive(Debug, Default)]
pub struct Metrics {
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    requests: AtomicU64,
    reused: AtomicU64,
    resent: AtomicU64,
}

/// [`Metrics`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct UpstreamStats {
    /// Connections made so far.
    pub opened: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections that could not be made.
    pub failed: u64,
    /// Requests sent.
    pub requests: u64,
    /// Those of them that went on a connection which had carried another before.
    pub reused: u64,
    /// Requests sent once more, unseen by the application, because a connection had ended.
    pub resent: u64,
}

impl Metrics {
    /// The counts of the moment.
    #[must_use]
    pub fn stats(&self) -> UpstreamStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        UpstreamStats {
            opened: get(&self.opened),
            open: get(&self.opened).saturating_sub(get(&self.closed)),
            failed: get(&self.failed),
            requests: get(&self.requests),
            reused: get(&self.reused),
            resent: get(&self.resent),
        }
    }

    pub(super) fn opened(&self) {
        add(&self.opened);
    }

    pub(super) fn closed(&self) {
        add(&self.closed);
    }

    pub(super) fn failed(&self) {
        add(&self.failed);
    }

    pub(super) fn request(&self, connection: Use) {
        add(&self.requests);
        if connection == Use::Again {
            add(&self.reused);
        }
    }

    pub(super) fn resent(&self) {
        add(&self.resent);
    }
}

/// Whether a connection has carried a request before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    First,
    Again,
}

/// With one writer no locked instruction is needed.
fn add(counter: &AtomicU64) {
    counter.store(
        counter.load(Ordering::Relaxed).wrapping_add(1),
        Ordering::Relaxed,
    );
}

//! Bytes of one relayed connection, readable while it runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes copied so far. One thread writes, any thread may read.
///
/// Writing is a plain load and store: with one writer no locked instruction is needed.
#[derive(Debug, Default)]
pub struct Counters {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    /// Bytes read from the first socket given to the relay and passed on.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes written to the first socket given to the relay.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(crate) fn add_sent(&self, bytes: usize) {
        add(&self.sent, bytes);
    }

    pub(crate) fn add_received(&self, bytes: usize) {
        add(&self.received, bytes);
    }
}

fn add(counter: &AtomicU64, bytes: usize) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before.wrapping_add(bytes as u64), Ordering::Relaxed);
}

//! One subscriber as the data plane sees it: a selector, a rate and a bounded queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Counts;
use super::facts::Facts;
use super::query::Query;
use super::rate::Rate;

/// Events that wait for one subscriber: what comes in a few tenths of a second at the highest rate, and longer than
/// a reader on the same machine is held up.
pub(super) const QUEUE_EVENTS: usize = 4096;

/// Bytes of events that wait for one subscriber. An event has some 700 bytes, but hosts and paths that clients
/// choose may make it several times that.
pub(super) const QUEUE_BYTES: usize = 4 << 20;

/// The data plane's end of a subscription.
#[derive(Debug)]
pub(super) struct Queue {
    id: u64,
    query: Query,
    rate: Rate,
    sender: mpsc::Sender<Bytes>,
    bytes: AtomicUsize,
    /// Put into the queue.
    sent: AtomicU64,
    /// Found no room in the queue.
    queue_full: AtomicU64,
    /// Were beyond the rate.
    rate_limit: AtomicU64,
}

impl Queue {
    pub(super) fn new(id: u64, query: Query) -> (Arc<Self>, mpsc::Receiver<Bytes>) {
        let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
        let queue = Arc::new(Self {
            id,
            rate: Rate::new(query.max_rps, Instant::now()),
            query,
            sender,
            bytes: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            queue_full: AtomicU64::new(0),
            rate_limit: AtomicU64::new(0),
        });
        (queue, receiver)
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn query(&self) -> &Query {
        &self.query
    }

    /// Whether the subscriber asked for such an event.
    pub(super) fn wants(&self, facts: &Facts<'_>) -> bool {
        self.query.selector.matches(facts)
    }

    /// Whether one more is within the rate; counts it if not.
    pub(super) fn admits(&self, now: Instant, counts: &Counts) -> bool {
        let admits = self.rate.admits(now);
        if !admits {
            self.rate_limit.fetch_add(1, Ordering::Relaxed);
            counts.rate_limit.fetch_add(1, Ordering::Relaxed);
        }
        admits
    }

    /// Puts an event into the queue; counts it if there is no room.
    pub(super) fn offer(&self, line: Bytes, counts: &Counts) {
        let length = line.len();
        let before = self.bytes.fetch_add(length, Ordering::Relaxed);
        if before + length > QUEUE_BYTES || self.sender.try_send(line).is_err() {
            self.bytes.fetch_sub(length, Ordering::Relaxed);
            self.queue_full.fetch_add(1, Ordering::Relaxed);
            counts.queue_full.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.sent.fetch_add(1, Ordering::Relaxed);
        counts.sent.fetch_add(1, Ordering::Relaxed);
    }

    /// The reader has taken this many bytes.
    pub(super) fn taken(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What has become of events: sent, found no room, were beyond the rate.
    pub(super) fn totals(&self) -> [u64; 3] {
        [&self.sent, &self.queue_full, &self.rate_limit].map(|count| count.load(Ordering::Relaxed))
    }
}

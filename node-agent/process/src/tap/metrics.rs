//! What a tap counts, for a scrape.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Tap;
use crate::metrics::{Out, gauge};

impl Tap {
    /// Writes what is counted here.
    ///
    /// # Errors
    /// The text cannot be written.
    pub fn encode(&self, out: &mut Out<'_>) -> fmt::Result {
        let help = "Clients that follow the live events of this process";
        out.gauge("karst_tap_subscribers", help, gauge(self.subscribers()))?;
        let counts = &self.0.counts;
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let help = "Live events put into a subscriber's queue";
        out.counter("karst_tap_events", help, load(&counts.sent))?;
        let dropped = [
            (vec![("cause", "queue_full")], load(&counts.queue_full)),
            (vec![("cause", "rate_limit")], load(&counts.rate_limit)),
        ];
        let help = "Live events that a subscriber wanted and did not get";
        out.counters("karst_tap_events_dropped", help, dropped)?;
        let help = "Subscribers refused because there were too many";
        out.counter("karst_tap_refused", help, load(&counts.refused))
    }
}

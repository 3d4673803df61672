//! Counts by a reason: few, static labels, so the map is soon complete and then only read.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;

use crate::reason::Reason;

/// Refused connections and requests, by reason.
#[derive(Default)]
pub struct Refusals {
    counters: ArcSwap<HashMap<&'static str, Arc<AtomicU64>>>,
}

impl fmt::Debug for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.read()).finish()
    }
}

impl Refusals {
    /// Counts one.
    pub fn count(&self, reason: Reason) {
        let key = reason.as_str();
        if let Some(counter) = self.counters.load().get(key) {
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counters.rcu(|old| {
            let mut new = HashMap::clone(old);
            new.entry(key).or_default();
            new
        });
        if let Some(counter) = self.counters.load().get(key) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All reasons that have come up, with their counts.
    #[must_use]
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        let mut list: Vec<_> = self
            .counters
            .load()
            .iter()
            .map(|(reason, count)| (*reason, count.load(Ordering::Relaxed)))
            .collect();
        list.sort_unstable();
        list
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::Refusals;
    use crate::reason::Reason;

    #[test]
    fn concurrent_first_counts_are_not_lost() {
        let refusals = Arc::new(Refusals::default());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        refusals.count(Reason::NotHttp);
                    }
                });
            }
        });
        assert_eq!(refusals.read(), [("waypoint_not_http", 800)]);
    }
}

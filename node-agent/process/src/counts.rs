//! Counts by keys that are few and known when the program is written.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use hashbrown::HashMap;

/// Counts without a lock: the map is soon complete, and then only read.
pub struct Counts<K>(ArcSwap<HashMap<K, Arc<AtomicU64>>>);

impl<K> Default for Counts<K> {
    fn default() -> Self {
        Self(ArcSwap::default())
    }
}

impl<K: Copy + Eq + Hash + fmt::Debug> fmt::Debug for Counts<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.read()).finish()
    }
}

impl<K: Copy + Eq + Hash> Counts<K> {
    /// Counts one.
    pub fn count(&self, key: K) {
        if let Some(counter) = self.0.load().get(&key) {
            counter.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.0.rcu(|old| {
            let mut new = HashMap::clone(old);
            new.entry(key).or_default();
            new
        });
        if let Some(counter) = self.0.load().get(&key) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All keys that have come up, with their counts, in no order.
    #[must_use]
    pub fn read(&self) -> Vec<(K, u64)> {
        let counters = self.0.load();
        let counters = counters.iter();
        counters
            .map(|(key, count)| (*key, count.load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::Counts;

    #[test]
    fn concurrent_first_counts_are_not_lost() {
        let counts = Counts::default();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        counts.count("a");
                        counts.count("b");
                    }
                });
            }
        });
        let mut read = counts.read();
        read.sort_unstable();
        assert_eq!(read, [("a", 800), ("b", 800)]);
    }
}

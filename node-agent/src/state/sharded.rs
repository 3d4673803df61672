//! A map many threads read without locking while one writer replaces parts of it.
//!
//! Each shard is an immutable map behind an atomic pointer. A write clones only
//! the shards it touches, so one change among 100,000 entries costs a copy of a
//! few hundred pointers, and a reader never waits.

use std::borrow::Borrow;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hashbrown::{DefaultHashBuilder, HashMap};

/// Number of shards: a power of two so that the index is a mask. 128 keeps a
/// shard below 1,000 entries for 100,000 workloads.
const SHARDS: usize = 128;

/// A sharded, lock-free-to-read map. `V` is meant to be an `Arc`.
#[derive(Debug)]
pub struct ShardedMap<K, V> {
    hasher: DefaultHashBuilder,
    shards: Box<[ArcSwap<HashMap<K, V>>]>,
}

impl<K, V> Default for ShardedMap<K, V> {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| ArcSwap::from_pointee(HashMap::default()));
        Self {
            hasher: DefaultHashBuilder::default(),
            shards: shards.collect(),
        }
    }
}

impl<K: Hash + Eq + Clone, V: Clone> ShardedMap<K, V> {
    fn index<Q: Hash + ?Sized>(&self, key: &Q) -> usize {
        // The high bits: hashbrown uses the low ones inside the shard.
        let hash = self.hasher.hash_one(key) >> 32;
        usize::try_from(hash).unwrap_or(0) & (SHARDS - 1)
    }

    /// The value of `key` now.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ?Sized,
    {
        let index = self.index(key);
        self.shards.get(index)?.load().get(key).cloned()
    }

    /// Applies a batch of changes (`None` removes). Each touched shard is
    /// replaced once. Only one thread may write at a time: of two concurrent
    /// writers of one shard, one would be lost.
    pub fn write(&self, changes: impl IntoIterator<Item = (K, Option<V>)>) {
        let mut touched: HashMap<usize, Vec<(K, Option<V>)>> = HashMap::default();
        for (key, value) in changes {
            touched
                .entry(self.index(&key))
                .or_default()
                .push((key, value));
        }
        for (index, changes) in touched {
            let Some(shard) = self.shards.get(index) else {
                continue;
            };
            let mut map = HashMap::clone(&shard.load());
            for (key, value) in changes {
                match value {
                    Some(value) => map.insert(key, value),
                    None => map.remove(&key),
                };
            }
            shard.store(Arc::new(map));
        }
    }

    /// All values, shard by shard; not one point in time.
    pub fn values(&self) -> Vec<V> {
        self.shards
            .iter()
            .flat_map(|s| s.load().values().cloned().collect::<Vec<_>>())
            .collect()
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.load().len()).sum()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::ShardedMap;

    #[test]
    fn last_write_of_a_batch_wins_and_removal_removes() {
        let map: ShardedMap<u32, u32> = ShardedMap::default();
        map.write((0..1000).map(|i| (i, Some(i))));
        assert_eq!(map.len(), 1000);
        map.write([(7, Some(70)), (8, None), (7, Some(71))]);
        assert_eq!(map.get(&7), Some(71));
        assert_eq!(map.get(&8), None);
        assert_eq!(map.len(), 999);
    }

    #[test]
    fn values_returns_every_entry_once() {
        let map: ShardedMap<u32, u32> = ShardedMap::default();
        map.write((0..500).map(|i| (i, Some(i * 2))));
        let mut values = map.values();
        values.sort_unstable();
        assert_eq!(values, (0..500).map(|i| i * 2).collect::<Vec<_>>());
    }
}

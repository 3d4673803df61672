//! Names of what has changed, for tasks that come and go.
//!
//! Whoever changes things tells [`Feeds`]; a task that wants to know joins them with a [`Feed`] of its own,
//! which collects until it is looked at. Bounded: names, each once. While nobody has joined, nothing is kept.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use tokio::sync::Notify;

/// What has changed since it was last looked at.
#[derive(Debug)]
pub struct Feed<K> {
    keys: Mutex<BTreeSet<K>>,
    changed: Notify,
}

impl<K> Default for Feed<K> {
    fn default() -> Self {
        Self {
            keys: Mutex::default(),
            changed: Notify::new(),
        }
    }
}

impl<K: Ord> Feed<K> {
    /// These have changed.
    pub fn add(&self, keys: impl IntoIterator<Item = K>) {
        let mut all = self.keys();
        all.extend(keys);
        let some = !all.is_empty();
        drop(all);
        if some {
            self.changed.notify_one();
        }
    }

    /// Takes what has changed; waits until there is something. May be dropped while it waits.
    pub async fn take(&self) -> BTreeSet<K> {
        loop {
            let keys = std::mem::take(&mut *self.keys());
            if !keys.is_empty() {
                return keys;
            }
            self.changed.notified().await;
        }
    }

    fn keys(&self) -> MutexGuard<'_, BTreeSet<K>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All feeds of one kind of names.
#[derive(Debug)]
pub struct Feeds<K>(Mutex<Vec<Weak<Feed<K>>>>);

impl<K> Default for Feeds<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Feeds<K> {
    /// Tells a feed as well, for as long as somebody has it.
    pub fn join(&self, feed: &Arc<Feed<K>>) {
        self.feeds().push(Arc::downgrade(feed));
    }

    /// Tells all feeds.
    pub fn tell<'a>(&self, keys: impl IntoIterator<Item = &'a K> + Clone)
    where
        K: 'a,
    {
        self.feeds().retain(|feed| {
            let feed = feed.upgrade();
            if let Some(feed) = &feed {
                feed.add(keys.clone().into_iter().cloned());
            }
            feed.is_some()
        });
    }

    fn feeds(&self) -> MutexGuard<'_, Vec<Weak<Feed<K>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_joined_are_told_once() {
        let feeds = Feeds::default();
        feeds.tell(&[0]);
        let (a, b) = (Arc::new(Feed::default()), Arc::new(Feed::default()));
        feeds.join(&a);
        feeds.join(&b);
        feeds.tell(&[2, 1]);
        feeds.tell(&[2]);
        assert_eq!(a.take().await, BTreeSet::from([1, 2]));
        drop(a);
        feeds.tell(&[3]);
        assert_eq!(feeds.feeds().len(), 1, "who is gone is forgotten");
        assert_eq!(b.take().await, BTreeSet::from([1, 2, 3]));
        b.add([]);
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(20), b.take());
        assert!(waiting.await.is_err(), "nothing is nothing to tell");
    }
}

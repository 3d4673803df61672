//! The index, shared by the source that changes it and the streams that read it.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
};

use karst_core::{Changes, Index, Object, ObjectError, ObjectKey};
use tokio::sync::{Notify, watch};

/// Names a stream may have waiting beyond twice the number of resources that exist. A stream that
/// is further behind is told to compare everything instead, which takes no memory.
const MAX_DIRTY_EXTRA: usize = 10_000;

/// Shared state of the controller. Locks are held for map operations only, never across an await.
pub struct Store {
    index: RwLock<Index>,
    streams: Mutex<Streams>,
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct Streams {
    next: u64,
    open: HashMap<u64, Arc<StreamQueue>>,
}

/// What changed since a stream last looked. Bounded: names, not messages, and each name once.
#[derive(Default)]
pub struct StreamQueue {
    /// The stream's node; it is told of that node's pods.
    node: String,
    dirty: Mutex<Dirty>,
    /// Wakes the stream.
    pub changed: Notify,
}

/// Names of resources that may have changed.
#[derive(Default)]
pub struct Dirty {
    /// Too much has changed to name it.
    pub everything: bool,
    /// `istio.workload.Address` resources.
    pub addresses: BTreeSet<String>,
    /// `karst.node.v1.NodePod` resources of the stream's node.
    pub node_pods: BTreeSet<String>,
}

/// Keeps a stream's queue registered.
pub struct Registration<'a> {
    store: &'a Store,
    id: u64,
    /// The queue.
    pub queue: Arc<StreamQueue>,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.store.streams().open.remove(&self.id);
    }
}

/// One step of a batch.
pub enum Update {
    /// Add or replace.
    Apply(Object),
    /// Remove.
    Delete(ObjectKey),
}

impl Store {
    /// A store around an empty or filled index.
    pub fn new(index: Index) -> Self {
        Self {
            index: RwLock::new(index),
            streams: Mutex::default(),
            revision: watch::Sender::new(0),
        }
    }

    /// Reads the index.
    pub fn index(&self) -> RwLockReadGuard<'_, Index> {
        // Nothing panics while it holds the lock for writing; were it to, reading what there is
        // beats refusing to serve.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies a batch in its order, in one step as far as readers can see. Returns, for each
    /// update that was refused, its place in the batch and the error.
    pub fn update(&self, batch: Vec<Update>) -> Vec<(usize, ObjectError)> {
        let mut changes = Changes::default();
        let mut refused = Vec::new();
        {
            let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
            for (at, update) in batch.into_iter().enumerate() {
                match update {
                    Update::Apply(object) => match index.stage(object) {
                        Ok(applied) => changes.merge(applied),
                        Err(error) => refused.push((at, error)),
                    },
                    Update::Delete(key) => changes.merge(index.stage_delete(&key)),
                }
            }
            changes.merge(index.flush());
        }
        self.announce(&changes);
        self.revision.send_modify(|revision| *revision += 1);
        refused
    }

    /// Says when a batch has been applied.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Whether the agent of a node has a stream open here.
    pub fn has_stream(&self, node: &str) -> bool {
        let streams = self.streams();
        streams.open.values().any(|queue| queue.node == node)
    }

    /// Takes a node's report of its enrolled pods. Returns how many of them are pods of that node.
    pub fn report_enrolled(&self, node: &str, pod_uids: &[String]) -> usize {
        let (known, changes) = self
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .report_enrolled(node, pod_uids);
        self.announce(&changes);
        known
    }

    /// Registers a stream of a node; from now on its queue collects what changes.
    pub fn register(&self, node: &str) -> Registration<'_> {
        let queue = Arc::new(StreamQueue {
            node: node.to_owned(),
            ..StreamQueue::default()
        });
        let mut streams = self.streams();
        let id = streams.next;
        streams.next += 1;
        streams.open.insert(id, queue.clone());
        Registration {
            store: self,
            id,
            queue,
        }
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, changes: &Changes) {
        if changes.is_empty() {
            return;
        }
        let limit = 2 * self.index().addresses().count() + MAX_DIRTY_EXTRA;
        let queues: Vec<Arc<StreamQueue>> = self.streams().open.values().cloned().collect();
        for queue in queues {
            queue.add(changes, limit);
        }
    }
}

impl StreamQueue {
    /// Takes what has been collected.
    pub fn take(&self) -> Dirty {
        std::mem::take(&mut *self.dirty())
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, changes: &Changes, limit: usize) {
        let mut dirty = self.dirty();
        dirty.addresses.extend(changes.addresses.iter().cloned());
        let own = changes.node_pods.iter();
        let own = own.filter(|(node, _)| *node == self.node);
        dirty.node_pods.extend(own.map(|(_, name)| name.clone()));
        if dirty.addresses.len() + dirty.node_pods.len() > limit {
            *dirty = Dirty {
                everything: true,
                ..Dirty::default()
            };
        }
        drop(dirty);
        self.changed.notify_one();
    }
}

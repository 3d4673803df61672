//! The index, shared by the source that changes it and the streams that read it.

mod problems;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard},
    time::Instant,
};

use karst_core::{
    Changes, ExtensionProviders, GatewayName, Index, Object, ObjectError, ObjectKey, ProxyKind,
};
use tokio::sync::{Notify, watch};

pub use self::problems::Problems;
use crate::{
    auth::ServiceAccount,
    feed::Feeds,
    xds::{journal::Journal, resources::ResourceKind},
};

/// Names a stream may have waiting beyond twice the number of resources that exist. A stream that
/// is further behind is told to compare everything instead, which takes no memory.
const MAX_DIRTY_EXTRA: usize = 10_000;

/// Shared state of the controller. Locks are held for map operations only, never across an await.
pub struct Store {
    index: RwLock<Index>,
    streams: Mutex<Streams>,
    revision: watch::Sender<u64>,
    problems: Problems,
    /// What has changed of `istio.workload.Address` resources, which all agents are told alike.
    pub addresses: Arc<Journal>,
    /// Told of objects whose status may have to be written.
    pub statuses: Feeds<ObjectKey>,
    /// Told of Gateways for which something else may have to run.
    pub wanted: Feeds<GatewayName>,
}

#[derive(Default)]
struct Streams {
    next: u64,
    open: HashMap<u64, Arc<StreamQueue>>,
}

/// Whose resources a stream is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Those of a node's agent.
    Node(String),
    /// Those of the Gateways whose proxies run as that account.
    Proxy(ServiceAccount),
}

impl Scope {
    /// Gateways of which it is served the resources; none for a node.
    pub fn gateways(&self, index: &Index) -> Vec<GatewayName> {
        match self {
            Self::Node(_) => Vec::new(),
            Self::Proxy(account) => index.gateways_of_account(&account.namespace, &account.name),
        }
    }
}

/// What changed since a stream last looked. Bounded: names, not messages, and each name once.
pub struct StreamQueue {
    scope: Scope,
    dirty: Mutex<Dirty>,
    /// Wakes the stream.
    pub changed: Notify,
}

/// Names of resources that may have changed.
#[derive(Default)]
pub struct Dirty {
    /// When the first of these changes came.
    pub since: Option<Instant>,
    /// Too much has changed to name it.
    pub everything: bool,
    /// Something of the `istio.workload.Address` resources; which it is, [`Store::addresses`] says.
    pub addresses: bool,
    /// `istio.security.Authorization` resources.
    pub authorizations: BTreeSet<String>,
    /// `karst.node.v1.NodePod` resources of the stream's node.
    pub node_pods: BTreeSet<String>,
    /// Resources of the stream's Gateways.
    pub proxies: BTreeMap<ProxyKind, BTreeSet<String>>,
    /// The stream's Gateways, as they were at the last change.
    gateways: Vec<GatewayName>,
}

/// Keeps a stream's queue registered.
pub struct Registration<'a> {
    store: &'a Store,
    id: u64,
    /// The queue.
    pub queue: Arc<StreamQueue>,
}

impl Registration<'_> {
    /// What the stream's proxy has rejected of a kind, by name, with its reasons.
    pub fn set_rejected(&self, kind: ProxyKind, rejected: BTreeMap<String, String>) {
        let gateways = self.queue.scope.gateways(&self.store.index());
        let Some(gateway) = gateways.first() else {
            return;
        };
        let changed = self
            .store
            .problems
            .set_rejected(self.id, gateway, kind, rejected);
        self.store.statuses.tell(&changed);
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        self.store.streams().open.remove(&self.id);
        let changed = self.store.problems.ended(self.id);
        self.store.statuses.tell(&changed);
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
            problems: Problems::default(),
            addresses: Arc::new(Journal::new(ResourceKind::Address)),
            statuses: Feeds::default(),
            wanted: Feeds::default(),
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
        self.update_of(batch, Instant::now())
    }

    /// The same for a batch whose first object came at `since`.
    pub fn update_of(&self, batch: Vec<Update>, since: Instant) -> Vec<(usize, ObjectError)> {
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
        self.announce(&changes, since);
        self.revision.send_modify(|revision| *revision += 1);
        refused
    }

    /// Takes the external authorizers of the mesh's configuration.
    pub fn set_extension_providers(&self, providers: ExtensionProviders) {
        let since = Instant::now();
        let changes = self
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .set_extension_providers(providers);
        self.announce(&changes, since);
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Says when a batch has been applied.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Whether the agent of a node has a stream open here.
    pub fn has_stream(&self, node: &str) -> bool {
        let streams = self.streams();
        let of_node =
            |queue: &Arc<StreamQueue>| matches!(&queue.scope, Scope::Node(own) if own == node);
        streams.open.values().any(of_node)
    }

    /// Takes a node's report of its enrolled pods. Returns how many of them are pods of that node.
    pub fn report_enrolled(&self, node: &str, pod_uids: &[String]) -> usize {
        let since = Instant::now();
        let (known, changes) = self
            .index
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .report_enrolled(node, pod_uids);
        self.announce(&changes, since);
        known
    }

    /// Registers a stream; from now on its queue collects what changes.
    pub fn register(&self, scope: Scope) -> Registration<'_> {
        let gateways = scope.gateways(&self.index());
        let queue = Arc::new(StreamQueue {
            scope,
            dirty: Mutex::new(Dirty {
                gateways,
                ..Dirty::default()
            }),
            changed: Notify::new(),
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

    /// Why what is wanted for an object is not in force, as far as this replica knows: a proxy has
    /// rejected it, or its own could not be made.
    pub fn problem(&self, key: &ObjectKey) -> Option<String> {
        self.problems.of(key)
    }

    /// Says why the proxies of a Gateway could not be made; `None` when they are as they should be.
    pub fn set_unmade(&self, gateway: &GatewayName, problem: Option<String>) {
        let changed = self.problems.set_unmade(gateway, problem);
        self.statuses.tell(&changed);
    }

    fn streams(&self) -> MutexGuard<'_, Streams> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the streams of what has changed because of something that came at `since`.
    fn announce(&self, changes: &Changes, since: Instant) {
        if changes.is_empty() {
            return;
        }
        self.addresses.note(&changes.addresses, since);
        self.statuses.tell(&changes.statuses);
        self.wanted.tell(&changes.workloads_wanted);
        let queues: Vec<Arc<StreamQueue>> = self.streams().open.values().cloned().collect();
        let index = self.index();
        let limit = 2 * index.authorizations().count() + MAX_DIRTY_EXTRA;
        for queue in queues {
            queue.add((changes, since), &index, limit);
        }
    }
}

impl StreamQueue {
    /// Takes what has been collected.
    pub fn take(&self) -> Dirty {
        let mut dirty = self.dirty();
        let gateways = dirty.gateways.clone();
        std::mem::replace(
            &mut *dirty,
            Dirty {
                gateways,
                ..Dirty::default()
            },
        )
    }

    fn dirty(&self) -> MutexGuard<'_, Dirty> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, (changes, since): (&Changes, Instant), index: &Index, limit: usize) {
        let mut dirty = self.dirty();
        let some = match &self.scope {
            Scope::Node(node) => dirty.add_of_node(changes, node),
            Scope::Proxy(_) => dirty.add_of_gateways(changes, self.scope.gateways(index)),
        };
        let proxies: usize = dirty.proxies.values().map(BTreeSet::len).sum();
        let own = dirty.authorizations.len() + dirty.node_pods.len();
        if own + proxies > limit {
            dirty.forget_names();
        }
        if some {
            dirty.since.get_or_insert(since);
        }
        drop(dirty);
        if some {
            self.changed.notify_one();
        }
    }
}

impl Dirty {
    /// Whether something of it concerns the node.
    fn add_of_node(&mut self, changes: &Changes, node: &str) -> bool {
        self.addresses |= !changes.addresses.is_empty();
        self.authorizations
            .extend(changes.authorizations.iter().cloned());
        let own = changes.node_pods.iter().filter(|(of, _)| of == node);
        self.node_pods.extend(own.map(|(_, name)| name.clone()));
        self.addresses
            || !self.authorizations.is_empty()
            || !self.node_pods.is_empty()
            || self.everything
    }

    /// Whether something of it concerns these Gateways.
    fn add_of_gateways(&mut self, changes: &Changes, gateways: Vec<GatewayName>) -> bool {
        if self.gateways != gateways {
            // One has come or gone, with all that is its.
            self.gateways = gateways;
            self.forget_names();
            return true;
        }
        let own = |gateway: &GatewayName| self.gateways.contains(gateway);
        for change in changes.proxies.iter().filter(|change| own(&change.gateway)) {
            let names = self.proxies.entry(change.kind).or_default();
            names.insert(change.name.clone());
        }
        !self.proxies.is_empty() || self.everything
    }

    fn forget_names(&mut self) {
        *self = Self {
            everything: true,
            addresses: self.addresses,
            since: self.since,
            gateways: std::mem::take(&mut self.gateways),
            ..Self::default()
        };
    }
}

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

//! A Kubernetes API server as the source of objects.
//!
//! Kinds that not every cluster has are followed while they are served, in the best version that there
//! is; those that are not there hold nothing up. One task a kind follows the objects and reduces each at once to what the mesh needs; a last
//! task puts what they say together into batches. The store is filled in one step when the first
//! list of every kind is complete, so that nobody is ever told a half. A faulty object is reported
//! once, its last good version stays, and everything else applies.

mod batch;
mod kind;
mod raw;
mod served;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use karst_core::{Kind, Object, ObjectError, ObjectKey};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tracing::{info, warn};

use self::{batch::Batch, kind::Follow};
use crate::{
    cluster::{Cluster, facts::Facts},
    metrics::Metrics,
    store::Store,
};

/// Messages that may wait between the followers and the batches; followers wait when it is full,
/// and the API server keeps what they have not read.
const QUEUE: usize = 4096;

/// Changes that come closer together than this are applied together. It also evens out how far
/// the watches of different kinds are behind each other: a namespace's label must not come after
/// a pod that was made later.
const QUIET: Duration = Duration::from_millis(10);

/// Under constant change, what has changed is applied this often.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

/// Objects in a batch.
const MAX_BATCH: usize = 10_000;

/// What a follower of a kind says.
enum Message {
    /// The first list of a kind.
    Initial(Kind, Vec<Object>),
    /// An object is new or has changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
}

/// A running source; dropping it stops it.
pub struct Running {
    _tasks: JoinSet<()>,
    synced: watch::Receiver<bool>,
}

impl Running {
    /// Waits until the store has everything.
    pub async fn synced(&self) {
        // An error means that the source is gone, and the process with it.
        let _ = self.synced.clone().wait_for(|synced| *synced).await;
    }
}

/// Starts to follow the API server.
pub fn start(
    cluster: &Cluster,
    store: Arc<Store>,
    facts: &Arc<Facts>,
    metrics: &Metrics,
) -> Running {
    let (sender, messages) = mpsc::channel(QUEUE);
    let (done, synced) = watch::channel(false);
    let mut tasks = JoinSet::new();
    let (server, served) = watch::channel(None);
    tasks.spawn(served::follow(cluster.clone(), server));
    for kind in Kind::ALL {
        let follow = Follow::new(kind, cluster, sender.clone(), facts.clone());
        tasks.spawn(match served::is_everywhere(kind) {
            true => follow.run(None),
            false => follow.run(Some(served.clone())),
        });
    }
    tasks.spawn(assemble(messages, store, done, metrics.clone()));
    Running {
        _tasks: tasks,
        synced,
    }
}

/// Puts messages together into batches, for ever.
async fn assemble(
    mut messages: mpsc::Receiver<Message>,
    store: Arc<Store>,
    done: watch::Sender<bool>,
    metrics: Metrics,
) {
    let started = Instant::now();
    let mut batch = Batch::default();
    let mut complete: BTreeMap<Kind, usize> = BTreeMap::new();
    while complete.len() < Kind::ALL.len() {
        let Some(message) = messages.recv().await else {
            return;
        };
        if let Message::Initial(kind, objects) = &message {
            complete.insert(*kind, objects.len());
        }
        batch.add(message);
    }
    commit(&mut batch, &store, &metrics, started);
    let objects: usize = complete.values().sum();
    info!(objects, elapsed = ?started.elapsed(), "source read");
    done.send_replace(true);

    while let Some(message) = messages.recv().await {
        let first = Instant::now();
        batch.add(message);
        let latest = tokio::time::Instant::now() + LONGEST_WAIT;
        while batch.len() < MAX_BATCH {
            let quiet = (tokio::time::Instant::now() + QUIET).min(latest);
            match tokio::time::timeout_at(quiet, messages.recv()).await {
                Ok(Some(message)) => batch.add(message),
                Ok(None) | Err(_) => break,
            }
        }
        commit(&mut batch, &store, &metrics, first);
    }
}

/// Applies a batch of which the first object came at `since`.
fn commit(batch: &mut Batch, store: &Store, metrics: &Metrics, since: Instant) {
    let updates = {
        let index = store.index();
        batch.take(
            |namespace| index.has_namespace(namespace),
            |key| index.has_pod(&key.namespace, &key.name),
        )
    };
    if updates.is_empty() {
        return;
    }
    for (_, error) in store.update_of(updates, since) {
        report(metrics, &error, "object not taken");
    }
}

/// Counts and logs what is wrong with an object; `outcome` is what came of it.
fn report(metrics: &Metrics, fault: &ObjectError, outcome: &str) {
    metrics.source_faults.inc();
    warn!(
        reason = fault.reason(),
        object = fault.object,
        field = fault.field,
        problem = fault.problem,
        hint = fault.hint,
        "{outcome}"
    );
}

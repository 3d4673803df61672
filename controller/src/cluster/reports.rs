//! Which pods are enrolled on which node, shared between the replicas.
//!
//! A node's agent reports to the one replica it is connected to. That replica writes the report
//! to the ConfigMap `karst-node-<NODE>`, and every replica follows those ConfigMaps. Requests never
//! wait for it: a report is answered from memory and written later, the last one only.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};
use tracing::{debug, warn};

use super::{
    CallError, Cluster, FIELD_MANAGER,
    facts::Facts,
    follow::{Event, Follower},
    retry::Retry,
};
use crate::store::Store;

/// What a node's ConfigMap is named, before the node's name.
const PREFIX: &str = "karst-node-";

/// Marks those ConfigMaps.
const LABEL: &str = "karst.dev/node-enrolment";

/// The key that has the pods, as a JSON list of uids.
const KEY: &str = "pods";

/// Pods of a node that are taken from a ConfigMap; the same limit as for reports.
const MAX_PODS: usize = 10_000;

/// Reports of one node that come closer together than this are written once.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Writes under way at a time.
const MAX_WRITES: usize = 8;

/// A report of a node that has no stream here any more is dropped after this time: its agent has
/// reported to another replica, or will.
const ORPHAN_LIMIT: Duration = Duration::from_secs(30);

/// After objects have changed, reports are looked at again this much later: a report may come
/// before the label that it answers, as the two travel on different watches.
const REVIEW_DELAY: Duration = Duration::from_secs(1);

/// What the nodes have reported, and what is to be written.
pub struct Reports {
    cluster: Cluster,
    store: Arc<Store>,
    facts: Arc<Facts>,
    state: Mutex<State>,
    wake: Notify,
    /// Grows with each change of `shared`; 0 until the first list is complete.
    revision: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By node, as the ConfigMaps say.
    shared: BTreeMap<String, Vec<String>>,
    /// By node: what is to be written.
    pending: HashMap<String, Pending>,
}

struct Pending {
    uids: Vec<String>,
    since: Instant,
    not_before: Instant,
    retry: Retry,
}

impl Reports {
    /// Nothing is known yet; start [`Reports::run`].
    pub fn new(cluster: Cluster, store: Arc<Store>, facts: Arc<Facts>) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            store,
            facts,
            state: Mutex::default(),
            wake: Notify::new(),
            revision: watch::Sender::new(0),
        })
    }

    /// Takes a report of a node's agent that is connected here. Returns at once.
    pub fn reported(&self, node: &str, pod_uids: &[String]) {
        let mut uids = pod_uids.to_vec();
        uids.sort_unstable();
        uids.dedup();
        let now = Instant::now();
        let mut state = self.state();
        if state.shared.get(node) == Some(&uids) && !state.pending.contains_key(node) {
            return;
        }
        let pending = state.pending.entry(node.to_owned()).or_insert(Pending {
            uids: Vec::new(),
            since: now,
            not_before: now + DEBOUNCE,
            retry: Retry::default(),
        });
        pending.uids = uids;
        pending.since = now;
        drop(state);
        self.wake.notify_one();
    }

    /// What all nodes have reported, by node.
    pub fn shared(&self) -> BTreeMap<String, Vec<String>> {
        self.state().shared.clone()
    }

    /// Says when [`Reports::shared`] has changed; 0 as long as it is not complete.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Follows and writes the ConfigMaps, for ever.
    pub async fn run(self: Arc<Self>) {
        tokio::join!(self.follow(), self.write(), self.review());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn api(&self) -> Api<ConfigMap> {
        Api::namespaced(self.cluster.client(), &self.cluster.system_namespace)
    }

    async fn follow(&self) {
        let selector = format!("{LABEL}=true");
        let mut follower =
            Follower::new(&self.cluster, self.api(), "node_enrolment").labels(&selector);
        let mut listed: BTreeMap<String, Vec<String>> = BTreeMap::new();
        loop {
            match follower.next().await {
                Event::Started => listed.clear(),
                Event::Listed(map) => listed.extend(report(map)),
                Event::Synced => {
                    let shared = std::mem::take(&mut listed);
                    for (node, uids) in &shared {
                        self.store.report_enrolled(node, uids);
                    }
                    self.state().shared = shared;
                    self.changed();
                }
                Event::Applied(map) => {
                    if let Some((node, uids)) = report(map) {
                        self.store.report_enrolled(&node, &uids);
                        self.state().shared.insert(node, uids);
                        self.changed();
                    }
                }
                Event::Deleted(map) => {
                    if let Some((node, _)) = report(map) {
                        self.state().shared.remove(&node);
                        self.changed();
                    }
                }
                Event::Unreadable(problem) => {
                    warn!(reason = "object_invalid", problem, "node report unreadable");
                }
            }
        }
    }

    fn changed(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    /// Feeds reports again for pods that were put into the mesh after their report had come.
    async fn review(&self) {
        let mut revisions = self.store.revisions();
        while revisions.changed().await.is_ok() {
            tokio::time::sleep(REVIEW_DELAY).await;
            revisions.mark_unchanged();
            let awaited: Vec<String> = {
                let index = self.store.index();
                let nodes = index.nodes_awaited();
                nodes.into_iter().map(str::to_owned).collect()
            };
            for node in awaited {
                let uids = self.state().shared.get(&node).cloned();
                if let Some(uids) = uids {
                    self.store.report_enrolled(&node, &uids);
                }
            }
        }
    }

    async fn write(&self) {
        let mut writes: JoinSet<(String, Result<(), CallError>)> = JoinSet::new();
        let mut writing: HashMap<String, Vec<String>> = HashMap::new();
        loop {
            while writes.len() < MAX_WRITES
                && let Some((node, uids)) = self.due(&writing)
            {
                writing.insert(node.clone(), uids.clone());
                let (cluster, api) = (self.cluster.clone(), self.api());
                let node_uid = self.facts.node_uid(&node);
                writes.spawn(async move {
                    let result = write(&cluster, &api, &node, node_uid, &uids).await;
                    (node, result)
                });
            }
            tokio::select! {
                Some(ended) = writes.join_next() => if let Ok((node, result)) = ended {
                    let uids = writing.remove(&node).unwrap_or_default();
                    self.ended(&node, &uids, result);
                },
                () = self.wake.notified() => {}
                () = tokio::time::sleep(DEBOUNCE), if self.waits() => {}
            }
        }
    }

    fn waits(&self) -> bool {
        !self.state().pending.is_empty()
    }

    /// A report that is to be written now and is not being written.
    fn due(&self, writing: &HashMap<String, Vec<String>>) -> Option<(String, Vec<String>)> {
        let now = Instant::now();
        let mut state = self.state();
        state.pending.retain(|node, pending| {
            now < pending.since + ORPHAN_LIMIT || self.store.has_stream(node)
        });
        let mut due = state.pending.iter();
        due.find(|(node, pending)| {
            // Only the replica that the agent is connected to speaks for its node.
            now >= pending.not_before && !writing.contains_key(*node) && self.store.has_stream(node)
        })
        .map(|(node, pending)| (node.clone(), pending.uids.clone()))
    }

    fn ended(&self, node: &str, uids: &[String], result: Result<(), CallError>) {
        let mut state = self.state();
        let Some(pending) = state.pending.get_mut(node) else {
            return;
        };
        let done = match &result {
            Ok(()) => true,
            Err(CallError::Invalid(_)) => true,
            Err(_) => false,
        };
        if done && pending.uids == uids {
            state.pending.remove(node);
        } else if done {
            pending.not_before = Instant::now() + DEBOUNCE;
        } else {
            pending.not_before = Instant::now() + pending.retry.next();
        }
        drop(state);
        match result {
            Ok(()) => debug!(node, pods = uids.len(), "report written"),
            Err(error) => {
                let reason = error.reason();
                warn!(reason, node, %error, "report not written");
            }
        }
    }
}

/// Node and pods of a ConfigMap, if it is one of ours.
fn report(map: ConfigMap) -> Option<(String, Vec<String>)> {
    let name = map.metadata.name?;
    let node = name.strip_prefix(PREFIX)?.to_owned();
    let text = map.data.and_then(|mut data| data.remove(KEY));
    let mut uids: Vec<String> = match serde_json::from_str(text.as_deref().unwrap_or("[]")) {
        Ok(uids) => uids,
        Err(error) => {
            warn!(reason = "object_invalid", object = name, field = "data.pods", %error, "node report unreadable");
            return None;
        }
    };
    uids.truncate(MAX_PODS);
    Some((node, uids))
}

async fn write(
    cluster: &Cluster,
    api: &Api<ConfigMap>,
    node: &str,
    node_uid: Option<String>,
    uids: &[String],
) -> Result<(), CallError> {
    let name = format!("{PREFIX}{node}");
    let mut labels = super::labels();
    labels.insert(LABEL.to_owned(), "true".to_owned());
    let mut metadata = json!({"name": name, "labels": labels});
    // The report goes with its node.
    if let Some(uid) = node_uid {
        metadata["ownerReferences"] =
            json!([{"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}]);
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
        "data": {KEY: json!(uids).to_string()},
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&map);
    cluster
        .call("patch", api.patch(&name, &params, &patch))
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(name: &str, pods: Option<&str>) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.name = Some(name.to_owned());
        map.data = pods.map(|pods| BTreeMap::from([(KEY.to_owned(), pods.to_owned())]));
        map
    }

    #[test]
    fn only_well_formed_reports_count() {
        assert_eq!(
            report(map("karst-node-n.1", Some(r#"["a","b"]"#))),
            Some(("n.1".to_owned(), vec!["a".to_owned(), "b".to_owned()]))
        );
        assert_eq!(
            report(map("karst-node-n", None)),
            Some(("n".to_owned(), Vec::new()))
        );
        assert_eq!(report(map("other", Some("[]"))), None);
        assert_eq!(report(map("karst-node-n", Some("{"))), None);
        assert_eq!(report(map("karst-node-n", Some("[1]"))), None);
    }
}

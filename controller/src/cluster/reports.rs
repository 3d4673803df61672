//! Which pods are enrolled on which node, shared between the replicas.
//!
//! A node's agent reports to the one replica it is connected to. That replica writes the report
//! to the ConfigMap `karst-node-<NODE>`, and every replica follows those ConfigMaps. Requests never
//! wait for it: a report is answered from memory and written later, the last one only. What the
//! agent of a stream here has said last is written again when the ConfigMap says otherwise: another
//! replica's write may have been under way when the agent came here.

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
    /// By node: what the agent that is connected here has said last.
    said: HashMap<String, Said>,
}

#[derive(Default)]
struct Said {
    uids: Vec<String>,
    /// Waits before it is written once more. They grow, because in an upgrade a node has two agents
    /// for a while, which may be connected to two replicas and differ.
    repairs: Retry,
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
        let said = state.said.entry(node.to_owned()).or_default();
        if said.uids != uids {
            *said = Said {
                uids: uids.clone(),
                repairs: Retry::default(),
            };
        }
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
        let mut listed = BTreeMap::new();
        loop {
            self.take(follower.next().await, &mut listed);
        }
    }

    fn take(&self, event: Event<ConfigMap>, listed: &mut BTreeMap<String, Vec<String>>) {
        match event {
            Event::Started => listed.clear(),
            Event::Listed(map) => listed.extend(report(map)),
            Event::Synced => {
                let shared = std::mem::take(listed);
                for (node, uids) in &shared {
                    self.store.report_enrolled(node, uids);
                }
                let mut state = self.state();
                state.shared = shared;
                let said: Vec<String> = state.said.keys().cloned().collect();
                for node in said {
                    self.compare(&mut state, &node);
                }
                drop(state);
                self.changed();
            }
            Event::Applied(map) => {
                if let Some((node, uids)) = report(map) {
                    self.store.report_enrolled(&node, &uids);
                    let mut state = self.state();
                    state.shared.insert(node.clone(), uids);
                    self.compare(&mut state, &node);
                    drop(state);
                    self.changed();
                }
            }
            Event::Deleted(map) => {
                if let Some((node, _)) = report(map) {
                    let mut state = self.state();
                    state.shared.remove(&node);
                    self.compare(&mut state, &node);
                    drop(state);
                    self.changed();
                }
            }
            Event::Unreadable(problem) => {
                warn!(reason = "object_invalid", problem, "node report unreadable");
            }
        }
    }

    /// Has the last report of an agent that is connected here written again, if its ConfigMap says
    /// otherwise.
    fn compare(&self, state: &mut State, node: &str) {
        let read = state.shared.get(node);
        // A ConfigMap that went with its node is not to come back.
        let gone = read.is_none() && self.facts.node_uid(node).is_none();
        if gone || !self.store.has_stream(node) {
            state.said.remove(node);
            return;
        }
        let Some(said) = state.said.get_mut(node) else {
            return;
        };
        let pending = state.pending.get(node);
        if read == Some(&said.uids) {
            if pending.is_some_and(|pending| pending.uids == said.uids) {
                state.pending.remove(node);
            }
        } else if pending.is_none() {
            let now = Instant::now();
            let pending = Pending {
                uids: said.uids.clone(),
                since: now,
                not_before: now + said.repairs.next(),
                retry: Retry::default(),
            };
            state.pending.insert(node.to_owned(), pending);
            self.wake.notify_one();
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
        if result.is_ok() {
            // Not only when the watch says so: a report that takes this one back may come before.
            state.shared.insert(node.to_owned(), uids.to_vec());
        }
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
    use crate::metrics::Metrics;
    use karst_core::{Index, Kind, MeshConfig, ObjectKey};
    use kube::api::ObjectMeta;

    /// Reports of a server that is not there; the node `n` is.
    fn reports() -> Arc<Reports> {
        let cluster = Cluster::at("http://127.0.0.1:1", Metrics::default());
        let facts = Arc::new(Facts::default());
        facts.note(
            &node(),
            &ObjectMeta {
                uid: Some("uid-n".to_owned()),
                ..ObjectMeta::default()
            },
        );
        let store = Arc::new(Store::new(Index::new(MeshConfig::default())));
        Reports::new(cluster, store, facts)
    }

    fn node() -> ObjectKey {
        ObjectKey {
            kind: Kind::Node,
            namespace: String::new(),
            name: "n".to_owned(),
        }
    }

    fn uids(uid: &str) -> Vec<String> {
        vec![uid.to_owned()]
    }

    /// What is to be written for the node.
    fn pending(reports: &Reports) -> Option<Vec<String>> {
        let state = reports.state();
        state.pending.get("n").map(|pending| pending.uids.clone())
    }

    fn take(reports: &Reports, event: Event<ConfigMap>) {
        reports.take(event, &mut BTreeMap::new());
    }

    fn applied(uid: &str) -> Event<ConfigMap> {
        Event::Applied(map("karst-node-n", Some(&format!("[{uid:?}]"))))
    }

    #[tokio::test]
    async fn a_report_that_takes_back_what_was_just_written_is_written() {
        let reports = reports();
        take(&reports, applied("w"));
        reports.reported("n", &uids("x"));
        reports.ended("n", &uids("x"), Ok(()));
        assert_eq!(pending(&reports), None);
        // The watch has not said anything of the write yet.
        reports.reported("n", &uids("w"));
        assert_eq!(pending(&reports), Some(uids("w")));
    }

    #[tokio::test]
    async fn what_another_wrote_over_a_connected_agents_report_is_repaired() {
        let reports = reports();
        let stream = reports
            .store
            .register(crate::store::Scope::Node("n".to_owned()));
        reports.reported("n", &uids("x"));
        reports.ended("n", &uids("x"), Ok(()));
        take(&reports, applied("x"));
        assert_eq!(pending(&reports), None);
        take(&reports, applied("w"));
        assert_eq!(pending(&reports), Some(uids("x")));
        take(&reports, applied("x"));
        assert_eq!(pending(&reports), None, "it was only late");
        take(&reports, Event::Deleted(map("karst-node-n", None)));
        assert_eq!(pending(&reports), Some(uids("x")));
        reports.ended("n", &uids("x"), Ok(()));
        take(&reports, Event::Synced);
        assert_eq!(pending(&reports), Some(uids("x")), "missing in a list");

        // Another agent of the node does the same elsewhere.
        let wait = |reports: &Reports| {
            take(reports, applied("w"));
            let at = reports.state().pending["n"].not_before;
            reports.ended("n", &uids("x"), Ok(()));
            at - Instant::now()
        };
        for _ in 0..8 {
            reports.ended("n", &uids("x"), Ok(()));
            wait(&reports);
        }
        assert!(wait(&reports) > Duration::from_secs(4), "they grow");

        drop(stream);
        take(&reports, applied("w"));
        assert_eq!(pending(&reports), None, "nobody here speaks for it");
    }

    #[tokio::test]
    async fn a_node_that_is_gone_gets_no_report_any_more() {
        let reports = reports();
        let _stream = reports
            .store
            .register(crate::store::Scope::Node("n".to_owned()));
        reports.reported("n", &uids("x"));
        reports.ended("n", &uids("x"), Ok(()));
        reports.facts.forget(&node());
        take(&reports, Event::Deleted(map("karst-node-n", None)));
        assert_eq!(pending(&reports), None);
    }

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

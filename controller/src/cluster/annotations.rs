//! The annotation that says to people that a pod is enrolled. Written by the leader only, and read
//! by nobody: it is made of the nodes' reports.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::{CallError, Cluster, FIELD_MANAGER, facts::Facts, reports::Reports};
use crate::store::Store;

/// The annotation; its value is `true`.
pub const ENROLLED: &str = "karst.dev/enrolled";

/// Changes that come closer together than this are looked at together.
const DEBOUNCE: Duration = Duration::from_millis(100);

/// Whatever could not be written is tried again this much later.
const RETRY: Duration = Duration::from_secs(5);

/// Writes under way at a time.
const MAX_WRITES: usize = 8;

/// One pod's annotation is to change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    namespace: String,
    name: String,
    uid: String,
    wanted: Wanted,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Present,
    Absent,
}

/// Keeps the annotations right, for ever. Dropped when this replica leads no more.
pub async fn write(cluster: Cluster, store: Arc<Store>, reports: Arc<Reports>, facts: Arc<Facts>) {
    let mut reported = reports.revisions();
    let mut annotated = facts.annotation_revisions();
    // Without the reports of all nodes, every annotation would look wrong.
    if reported.wait_for(|revision| *revision > 0).await.is_err() {
        return;
    }
    loop {
        reported.mark_unchanged();
        annotated.mark_unchanged();
        let (changes, unknown) = changes(&store, &reports.shared(), &facts.annotated());
        let failed = apply(&cluster, changes).await;
        let again = async {
            if failed > 0 || unknown > 0 {
                tokio::time::sleep(RETRY).await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            changed = reported.changed() => if changed.is_err() { return },
            changed = annotated.changed() => if changed.is_err() { return },
            () = again => {}
        }
        tokio::time::sleep(DEBOUNCE).await;
    }
}

/// What has to change, and how many reported pods are not known (yet, or any more).
fn changes(
    store: &Store,
    shared: &BTreeMap<String, Vec<String>>,
    annotated: &BTreeMap<(String, String), String>,
) -> (Vec<Change>, usize) {
    let index = store.index();
    let mut unknown = 0;
    let mut wanted: BTreeSet<&str> = BTreeSet::new();
    let mut changes = Vec::new();
    for (node, uids) in shared {
        for uid in uids {
            let Some(pod) = index.reported_pod(node, uid) else {
                unknown += 1;
                continue;
            };
            // A node speaks for its own pods only.
            if pod.node != Some(node) {
                continue;
            }
            wanted.insert(pod.uid);
            let name = (pod.namespace.to_owned(), pod.name.to_owned());
            if annotated.get(&name).map(String::as_str) != Some(pod.uid) {
                changes.push(Change {
                    namespace: name.0,
                    name: name.1,
                    uid: pod.uid.to_owned(),
                    wanted: Wanted::Present,
                });
            }
        }
    }
    for ((namespace, name), uid) in annotated {
        // A pod that has ended was enrolled, and nobody is served by taking that back.
        if !wanted.contains(uid.as_str()) && index.live_pod(uid).is_some() {
            changes.push(Change {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: uid.clone(),
                wanted: Wanted::Absent,
            });
        }
    }
    (changes, unknown)
}

/// Returns how many failed and should be tried again.
async fn apply(cluster: &Cluster, changes: Vec<Change>) -> usize {
    let mut failed = 0;
    let mut writes = JoinSet::new();
    for change in changes {
        if writes.len() >= MAX_WRITES {
            failed += usize::from(!ended(writes.join_next().await));
        }
        let cluster = cluster.clone();
        writes.spawn(async move {
            let result = patch(&cluster, &change).await;
            (change, result)
        });
    }
    while !writes.is_empty() {
        failed += usize::from(!ended(writes.join_next().await));
    }
    failed
}

type Ended = Option<Result<(Change, Result<(), CallError>), tokio::task::JoinError>>;

/// Whether there is nothing more to do about a write.
fn ended(write: Ended) -> bool {
    let Some(Ok((change, result))) = write else {
        return true;
    };
    let Change {
        namespace, name, ..
    } = &change;
    match result {
        Ok(()) => {
            debug!(namespace, name, wanted = ?change.wanted, "annotation written");
            true
        }
        // The pod is gone, or another one has its name.
        Err(CallError::NotFound(_) | CallError::Conflict(_)) => true,
        Err(error) => {
            let reason = error.reason();
            warn!(reason, namespace, name, %error, "annotation not written");
            matches!(error, CallError::Invalid(_))
        }
    }
}

async fn patch(cluster: &Cluster, change: &Change) -> Result<(), CallError> {
    let api: Api<Pod> = Api::namespaced(cluster.client(), &change.namespace);
    // With the uid, neither a namesake is touched nor a pod made where there is none.
    let pod = |annotations: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": change.name, "uid": change.uid, "annotations": annotations},
        })
    };
    match change.wanted {
        Wanted::Present => {
            let params = PatchParams::apply(FIELD_MANAGER).force();
            let patch = Patch::Apply(pod(json!({ENROLLED: "true"})));
            let call = api.patch_metadata(&change.name, &params, &patch);
            cluster.call("patch", call).await?;
        }
        Wanted::Absent => {
            // Unlike an apply without it, this also removes what somebody else has written.
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            let patch = Patch::Merge(pod(json!({ENROLLED: null})));
            let call = api.patch_metadata(&change.name, &params, &patch);
            cluster.call("patch", call).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Update;
    use karst_core::{Index, MeshConfig, Object};

    fn store(pods: &[(&str, &str, &str)]) -> Store {
        let store = Store::new(Index::new(MeshConfig::default()));
        let object = |(name, node, phase): &(&str, &str, &str)| {
            let value = json!({"apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
                "spec": {"nodeName": node, "containers": []}, "status": {"phase": phase}});
            Update::Apply(Object::from_value(value).unwrap().unwrap())
        };
        assert!(store.update(pods.iter().map(object).collect()).is_empty());
        store
    }

    fn shared(reports: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
        let report = |(node, uids): &(&str, &[&str])| {
            let uids = uids.iter().map(|uid| (*uid).to_owned()).collect();
            ((*node).to_owned(), uids)
        };
        reports.iter().map(report).collect()
    }

    fn annotated(pods: &[(&str, &str)]) -> BTreeMap<(String, String), String> {
        let entry = |(name, uid): &(&str, &str)| {
            (("shop".to_owned(), (*name).to_owned()), (*uid).to_owned())
        };
        pods.iter().map(entry).collect()
    }

    fn check(
        store: &Store,
        reports: &[(&str, &[&str])],
        present: &[(&str, &str)],
    ) -> Vec<(String, Wanted)> {
        let (changes, _) = changes(store, &shared(reports), &annotated(present));
        changes
            .into_iter()
            .map(|change| (change.name, change.wanted))
            .collect()
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let store = store(&[("a", "n1", "Running"), ("b", "n2", "Running")]);
        assert_eq!(check(&store, &[("n1", &["uid-a"])], &[("a", "uid-a")]), []);
        assert_eq!(check(&store, &[], &[]), []);
    }

    #[test]
    fn reported_pods_get_it_and_others_lose_it() {
        let store = store(&[("a", "n1", "Running"), ("b", "n1", "Running")]);
        assert_eq!(
            check(&store, &[("n1", &["uid-a"])], &[("b", "uid-b")]),
            [
                ("a".to_owned(), Wanted::Present),
                ("b".to_owned(), Wanted::Absent)
            ]
        );
    }

    #[test]
    fn a_node_cannot_speak_for_anothers_pod() {
        let store = store(&[("a", "n1", "Running")]);
        assert_eq!(check(&store, &[("n2", &["uid-a"])], &[]), []);
    }

    #[test]
    fn a_static_pod_is_reported_by_one_uid_and_annotated_by_another() {
        let store = Store::new(Index::new(MeshConfig::default()));
        let value = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "shop", "uid": "uid-a",
                "annotations": {"kubernetes.io/config.mirror": "h", "kubernetes.io/config.hash": "h"},
                "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n",
                    "controller": true}]},
            "spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Running"}});
        let object = Object::from_value(value).unwrap().unwrap();
        assert!(store.update(vec![Update::Apply(object)]).is_empty());
        let (found, _) = changes(&store, &shared(&[("n1", &["h"])]), &annotated(&[]));
        let [change] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(
            (change.uid.as_str(), &change.wanted),
            ("uid-a", &Wanted::Present)
        );
        assert_eq!(check(&store, &[("n1", &["h"])], &[("a", "uid-a")]), []);
        assert_eq!(
            check(&store, &[], &[("a", "uid-a")]),
            [("a".to_owned(), Wanted::Absent)]
        );
    }

    #[test]
    fn ended_and_unknown_pods_are_left_alone() {
        let store = store(&[("a", "n1", "Succeeded")]);
        assert_eq!(check(&store, &[("n1", &["uid-a"])], &[]), []);
        assert_eq!(check(&store, &[], &[("a", "uid-a"), ("z", "uid-z")]), []);
        let (_, unknown) = changes(&store, &shared(&[("n1", &["uid-q"])]), &annotated(&[]));
        assert_eq!(unknown, 1);
    }
}

//! What the writers need to know of objects besides what the mesh does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use karst_core::{Kind, ObjectKey};
use kube::core::ApiResource;
use serde_json::Value;
use tokio::sync::watch;

use super::annotations::ENROLLED;
use crate::feed::Feeds;

/// Noted by the source as objects pass by: uids of nodes, which pods have our annotation, and the status
/// of objects whose status the mesh writes.
pub struct Facts {
    state: Mutex<State>,
    /// Told of objects that have been seen with another status.
    pub statuses: Feeds<ObjectKey>,
    /// Grows whenever a pod gets or loses the annotation.
    annotations: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, String>,
    /// Namespace and name, to uid.
    annotated: BTreeMap<(String, String), String>,
    statuses: HashMap<ObjectKey, Seen>,
}

/// An object whose status the mesh writes, as it was last seen.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Where it is.
    pub resource: Arc<ApiResource>,
    /// Its `resourceVersion`.
    pub version: String,
    /// Its status; null if it has none.
    pub status: Arc<Value>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            statuses: Feeds::default(),
            annotations: watch::Sender::new(0),
        }
    }
}

impl Facts {
    /// Notes an object as it is now.
    pub fn note(&self, key: &ObjectKey, metadata: &ObjectMeta) {
        match key.kind {
            Kind::Node => {
                if let Some(uid) = &metadata.uid {
                    self.state().nodes.insert(key.name.clone(), uid.clone());
                }
            }
            Kind::Pod => {
                let annotations = metadata.annotations.as_ref();
                let enrolled = annotations.is_some_and(|all| all.contains_key(ENROLLED));
                self.note_pod(key, metadata.uid.as_ref().filter(|_| enrolled));
            }
            _ => {}
        }
    }

    /// An object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        match key.kind {
            Kind::Node => {
                self.state().nodes.remove(&key.name);
            }
            Kind::Pod => self.note_pod(key, None),
            _ => {
                self.state().statuses.remove(key);
            }
        }
    }

    /// Notes the status of an object as it is now.
    pub fn note_status(
        &self,
        key: &ObjectKey,
        resource: &Arc<ApiResource>,
        version: String,
        status: &Value,
    ) {
        let seen = Seen {
            resource: resource.clone(),
            version,
            status: Arc::new(status.clone()),
        };
        let mut state = self.state();
        let status = seen.status.clone();
        let former = state.statuses.insert(key.clone(), seen);
        drop(state);
        // Most changes are of the status itself, and our own.
        if former.is_none_or(|former| former.status != status) {
            self.statuses.tell([key]);
        }
    }

    /// An object whose status the mesh writes.
    pub fn seen(&self, key: &ObjectKey) -> Option<Seen> {
        self.state().statuses.get(key).cloned()
    }

    /// All of them.
    pub fn all_seen(&self) -> Vec<ObjectKey> {
        self.state().statuses.keys().cloned().collect()
    }

    fn note_pod(&self, key: &ObjectKey, annotated_uid: Option<&String>) {
        let name = (key.namespace.clone(), key.name.clone());
        let mut state = self.state();
        let former = match annotated_uid {
            Some(uid) => state.annotated.insert(name, uid.clone()),
            None => state.annotated.remove(&name),
        };
        drop(state);
        if former.as_ref() != annotated_uid {
            self.annotations.send_modify(|revision| *revision += 1);
        }
    }

    /// Kubernetes uid of a node.
    pub fn node_uid(&self, name: &str) -> Option<String> {
        self.state().nodes.get(name).cloned()
    }

    /// Pods that have our annotation: namespace and name, to uid.
    pub fn annotated(&self) -> BTreeMap<(String, String), String> {
        self.state().annotated.clone()
    }

    /// Says when [`Facts::annotated`] has changed.
    pub fn annotation_revisions(&self) -> watch::Receiver<u64> {
        self.annotations.subscribe()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(kind: Kind) -> ObjectKey {
        ObjectKey {
            kind,
            namespace: "shop".to_owned(),
            name: "a".to_owned(),
        }
    }

    fn metadata(uid: &str, annotation: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.to_owned()),
            annotations: annotation.map(|key| BTreeMap::from([(key.to_owned(), "x".to_owned())])),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn annotated_pods_are_known_by_uid() {
        let facts = Facts::default();
        let revisions = facts.annotation_revisions();
        let pod = key(Kind::Pod);
        facts.note(&pod, &metadata("1", Some("other")));
        assert!(!revisions.has_changed().unwrap());
        facts.note(&pod, &metadata("1", Some(ENROLLED)));
        assert!(revisions.has_changed().unwrap());
        let name = ("shop".to_owned(), "a".to_owned());
        assert_eq!(facts.annotated().get(&name).unwrap(), "1");
        facts.note(&pod, &metadata("2", None));
        assert!(facts.annotated().is_empty());
        facts.note(&pod, &metadata("2", Some(ENROLLED)));
        facts.forget(&pod);
        assert!(facts.annotated().is_empty());
    }

    #[test]
    fn nodes_have_uids_while_they_are_there() {
        let facts = Facts::default();
        facts.note(&key(Kind::Node), &metadata("n", None));
        assert_eq!(facts.node_uid("a").unwrap(), "n");
        facts.forget(&key(Kind::Node));
        assert_eq!(facts.node_uid("a"), None);
    }
}

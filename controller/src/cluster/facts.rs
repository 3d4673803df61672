//! What the writers need to know of objects besides what the mesh does.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use karst_core::{Kind, ObjectKey};
use tokio::sync::watch;

use super::annotations::ENROLLED;

/// Noted by the source as objects pass by: uids of nodes, and which pods have our annotation.
pub struct Facts {
    state: Mutex<State>,
    /// Grows whenever a pod gets or loses the annotation.
    annotations: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, String>,
    /// Namespace and name, to uid.
    annotated: BTreeMap<(String, String), String>,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
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
            _ => {}
        }
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

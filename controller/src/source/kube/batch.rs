//! What is applied in one step.

use std::collections::{BTreeMap, HashMap};

use karst_core::{Kind, Object, ObjectKey};

use super::Message;
use crate::store::Update;

/// Pods that may wait for their namespace; more are applied without it.
const MAX_HELD: usize = 10_000;

/// The latest word on each object, and pods that came before their namespace.
///
/// Whether a pod is in the mesh is decided when it is first seen, with its namespace's label. The
/// watches of pods and namespaces are not in step, so a pod of an unknown namespace waits for it.
#[derive(Debug, Default)]
pub struct Batch {
    /// `None` is a deletion.
    latest: BTreeMap<ObjectKey, Option<Object>>,
    /// By namespace.
    held: HashMap<String, BTreeMap<ObjectKey, Object>>,
    held_count: usize,
}

impl Batch {
    /// Takes a message; of several about one object the last counts.
    pub fn add(&mut self, message: Message) {
        match message {
            Message::Initial(_, objects) => {
                for object in objects {
                    self.apply(object);
                }
            }
            Message::Apply(object) => self.apply(object),
            Message::Delete(key) => {
                self.release_one(&key);
                self.latest.insert(key, None);
            }
        }
    }

    fn apply(&mut self, object: Object) {
        self.release_one(&object.key);
        self.latest.insert(object.key.clone(), Some(object));
    }

    fn release_one(&mut self, key: &ObjectKey) {
        if let Some(pods) = self.held.get_mut(&key.namespace)
            && pods.remove(key).is_some()
        {
            self.held_count -= 1;
            if pods.is_empty() {
                self.held.remove(&key.namespace);
            }
        }
    }

    /// Number of objects that would be applied.
    pub fn len(&self) -> usize {
        self.latest.len()
    }

    /// What to do, in order: what others depend on goes last and comes first.
    pub fn take(
        &mut self,
        knows_namespace: impl Fn(&str) -> bool,
        knows_pod: impl Fn(&ObjectKey) -> bool,
    ) -> Vec<Update> {
        let mut latest = std::mem::take(&mut self.latest);
        let arriving: Vec<String> = latest
            .iter()
            .filter(|(key, object)| key.kind == Kind::Namespace && object.is_some())
            .map(|(key, _)| key.name.clone())
            .collect();
        for namespace in &arriving {
            let pods = self.held.remove(namespace).unwrap_or_default();
            self.held_count -= pods.len();
            for (key, pod) in pods {
                latest.entry(key).or_insert(Some(pod));
            }
        }
        let mut gone = Vec::new();
        let mut changed = Vec::new();
        for (key, object) in latest {
            let Some(object) = object else {
                gone.push(Update::Delete(key));
                continue;
            };
            let waits = key.kind == Kind::Pod
                && self.held_count < MAX_HELD
                && arriving.binary_search(&key.namespace).is_err()
                && !knows_namespace(&key.namespace)
                && !knows_pod(&key);
            if waits {
                self.held_count += 1;
                let pods = self.held.entry(key.namespace.clone()).or_default();
                pods.insert(key, object);
            } else {
                changed.push(Update::Apply(object));
            }
        }
        gone.reverse();
        gone.extend(changed);
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(api_version: &str, kind: &str, namespace: &str, name: &str) -> Object {
        let value = json!({"apiVersion": api_version, "kind": kind,
            "metadata": {"namespace": namespace, "name": name}});
        Object::from_value(value).unwrap().unwrap()
    }

    fn pod(name: &str) -> Object {
        object("v1", "Pod", "shop", name)
    }

    fn namespace() -> Object {
        object("v1", "Namespace", "", "shop")
    }

    fn text(updates: Vec<Update>) -> Vec<String> {
        let line = |update: Update| match update {
            Update::Apply(object) => format!("+ {}", object.key),
            Update::Delete(key) => format!("- {key}"),
        };
        updates.into_iter().map(line).collect()
    }

    fn take(batch: &mut Batch, known: bool) -> Vec<String> {
        text(batch.take(|_| known, |_| false))
    }

    #[test]
    fn dependencies_come_first_and_go_last() {
        let mut batch = Batch::default();
        batch.add(Message::Apply(pod("a")));
        batch.add(Message::Initial(
            Kind::Service,
            vec![object("v1", "Service", "shop", "web")],
        ));
        batch.add(Message::Apply(namespace()));
        batch.add(Message::Delete(object("v1", "Namespace", "", "old").key));
        batch.add(Message::Delete(object("v1", "Pod", "old", "b").key));
        assert_eq!(batch.len(), 5);
        assert_eq!(
            take(&mut batch, false),
            [
                "- Pod old/b",
                "- Namespace old",
                "+ Namespace shop",
                "+ Service shop/web",
                "+ Pod shop/a",
            ]
        );
        assert_eq!(batch.len(), 0);
    }

    #[test]
    fn the_last_word_counts() {
        let mut batch = Batch::default();
        batch.add(Message::Apply(pod("a")));
        batch.add(Message::Delete(pod("a").key));
        batch.add(Message::Delete(pod("b").key));
        batch.add(Message::Apply(pod("b")));
        assert_eq!(take(&mut batch, true), ["- Pod shop/a", "+ Pod shop/b"]);
    }

    #[test]
    fn a_pod_waits_for_its_namespace() {
        let mut batch = Batch::default();
        batch.add(Message::Apply(pod("a")));
        batch.add(Message::Apply(pod("b")));
        assert!(take(&mut batch, false).is_empty());
        batch.add(Message::Apply(pod("c")));
        batch.add(Message::Delete(pod("b").key));
        assert_eq!(take(&mut batch, false), ["- Pod shop/b"]);
        batch.add(Message::Apply(namespace()));
        assert_eq!(
            take(&mut batch, false),
            ["+ Namespace shop", "+ Pod shop/a", "+ Pod shop/c"]
        );
        assert_eq!(batch.held_count, 0);
        assert!(batch.held.is_empty());
    }

    #[test]
    fn a_known_pod_does_not_wait() {
        let mut batch = Batch::default();
        batch.add(Message::Apply(pod("a")));
        assert_eq!(text(batch.take(|_| false, |_| true)), ["+ Pod shop/a"]);
    }

    #[test]
    fn only_so_many_wait() {
        let mut batch = Batch::default();
        for number in 0..MAX_HELD + 3 {
            batch.add(Message::Apply(pod(&format!("p{number}"))));
        }
        assert_eq!(take(&mut batch, false).len(), 3);
        assert_eq!(batch.held_count, MAX_HELD);
    }
}

//! What findings are made of.

use std::collections::{BTreeMap, BTreeSet};

use karst_core::{Condition, ConditionStatus, Index, Kind, ObjectKey, StatusContent};
use serde_json::Value;

use crate::source::{Input, Read};

/// Where workloads have the template of their pods.
const TEMPLATES: [(&str, &str); 6] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// Whether the objects are all that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// They are a cluster's.
    Cluster,
    /// They are some manifests: what they refer to may be elsewhere.
    Manifests,
}

/// A pod, or a template of pods.
#[derive(Debug)]
pub struct Pod {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Everything that is looked at.
pub struct Context<'a> {
    /// The objects.
    pub input: &'a Input,
    /// What the controller makes of them.
    pub read: &'a Read,
    /// Whether they are all.
    pub reach: Reach,
    /// Pods and templates of pods.
    pub pods: Vec<Pod>,
    /// Namespaces that there are.
    pub namespaces: BTreeSet<String>,
    /// Namespace and name of accounts that there are.
    pub accounts: BTreeSet<(String, String)>,
    has_accounts: bool,
}

impl<'a> Context<'a> {
    /// Prepares.
    pub fn new(input: &'a Input, read: &'a Read, reach: Reach) -> Self {
        let mut context = Self {
            input,
            read,
            reach,
            pods: Vec::new(),
            namespaces: BTreeSet::new(),
            accounts: BTreeSet::new(),
            has_accounts: reach == Reach::Cluster,
        };
        for document in &input.documents {
            context.note(&document.value);
        }
        context
    }

    fn note(&mut self, value: &Value) {
        let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
        let namespace = text("/metadata/namespace").unwrap_or("default").to_owned();
        let name = text("/metadata/name").unwrap_or_default().to_owned();
        match text("/kind").unwrap_or_default() {
            "Namespace" => {
                self.accounts.insert((name.clone(), "default".to_owned()));
                self.namespaces.insert(name);
            }
            "ServiceAccount" => {
                self.has_accounts = true;
                self.accounts.insert((namespace, name));
            }
            "Pod" => self.note_pod(&namespace, value),
            // The account that the controller makes for its proxies.
            "Gateway" => {
                self.accounts.insert((namespace, name));
            }
            kind => {
                let template = TEMPLATES.iter().find(|(of, _)| *of == kind);
                let template = template.and_then(|(_, pointer)| value.pointer(pointer));
                if let Some(template) = template {
                    self.note_pod(&namespace, template);
                }
            }
        }
    }

    fn note_pod(&mut self, namespace: &str, pod: &Value) {
        let labels = pod.pointer("/metadata/labels").and_then(Value::as_object);
        let labels = labels.into_iter().flatten();
        let labels =
            labels.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
        self.pods.push(Pod {
            namespace: namespace.to_owned(),
            labels: labels.collect(),
        });
        let account = pod
            .pointer("/spec/serviceAccountName")
            .and_then(Value::as_str);
        self.accounts.insert((
            namespace.to_owned(),
            account.unwrap_or("default").to_owned(),
        ));
    }

    /// The controller's index.
    pub fn index(&self) -> &Index {
        &self.read.index
    }

    /// The namespace of policies for the whole mesh.
    pub fn root(&self) -> &str {
        &self.input.config.root_namespace
    }

    /// Objects of a kind that were taken, as they are written.
    pub fn of_kind(&self, kind: Kind) -> impl Iterator<Item = (&ObjectKey, &Value)> {
        self.taken().filter(move |(key, _)| key.kind == kind)
    }

    /// All objects that were taken, as they are written.
    pub fn taken(&self) -> impl Iterator<Item = (&ObjectKey, &Value)> {
        let taken = self.read.taken.iter();
        taken.filter_map(|(key, at)| Some((key, &self.input.documents.get(*at)?.value)))
    }

    /// Conditions of an object's status as the controller would write it.
    pub fn conditions(&self, key: &ObjectKey) -> Vec<Condition> {
        let Some(status) = self.index().status(key) else {
            return Vec::new();
        };
        match status.content {
            StatusContent::Object { conditions, .. } | StatusContent::Conditions(conditions) => {
                conditions
            }
            StatusContent::Parents(parents) => {
                parents.into_iter().flat_map(|one| one.conditions).collect()
            }
            StatusContent::Ancestors(all) => {
                all.into_iter().flat_map(|one| one.conditions).collect()
            }
        }
    }

    /// Whether an object is not accepted as it is written.
    pub fn has_faults(&self, key: &ObjectKey) -> bool {
        let conditions = self.conditions(key);
        conditions
            .iter()
            .any(|one| one.kind == "Accepted" && one.status == ConditionStatus::False)
    }

    /// Whether it can be said that no object of a kind is there: in a cluster always, else where there are others.
    pub fn knows(&self, kind: Kind) -> bool {
        self.reach == Reach::Cluster
            || match kind {
                Kind::Pod => !self.pods.is_empty(),
                Kind::Namespace => !self.namespaces.is_empty(),
                Kind::ServiceAccount => self.has_accounts,
                kind => self.index().object_count(kind) > 0,
            }
    }
}

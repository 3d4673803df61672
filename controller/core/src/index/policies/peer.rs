//! What PeerAuthentications come to: policies that refuse connections without an identity.
//!
//! At each level (mesh, namespace, pods) the oldest counts, by name where two are of one age. What it
//! leaves unset is taken from the level above. STRICT is one policy for all; a policy for pods with
//! exceptions for ports is one of its own, listed instead of that. Names and forms are Istio's.

use std::collections::BTreeSet;

use karst_api::security as wire;

use super::{Changes, Held, Index, NsName, in_namespace, status};
use crate::{
    labels::Labels,
    object::{
        Kind, Metadata,
        peer_authentication::{Mode, PeerAuthentication},
        pod::Pod,
    },
};

/// Refuses whoever has no identity. No object can have this name, as `_` is not allowed in one.
const STRICT: &str = "istio_converted_static_strict";

/// Begins the names of policies with exceptions for ports.
const CONVERTED: &str = "converted_peer_authentication_";

/// Of two policies of one level, the smaller counts.
pub(super) fn age<'a>(
    (key, held): &(&'a NsName, &'a Held<PeerAuthentication>),
) -> (i64, &'a NsName) {
    (held.meta.created, key)
}

impl Index {
    /// Stores a PeerAuthentication or forgets it.
    pub(in crate::index) fn set_peer_authentication(
        &mut self,
        key: NsName,
        policy: Option<(Metadata, PeerAuthentication)>,
        changes: &mut Changes,
    ) {
        let root = self.config.root_namespace.clone();
        let modes = |index: &Self, namespaces: &BTreeSet<String>| -> Vec<Mode> {
            let modes = namespaces.iter();
            modes
                .map(|namespace| index.mode_of_namespace(namespace))
                .collect()
        };
        let namespaces = self.peer_namespaces(&key.namespace);
        let modes_before = modes(self, &namespaces);
        let mesh_before = self.mode_of_namespace(&root);

        let former = self.policies.peer.remove(&key);
        let now = policy.map(|(meta, policy)| Held::after(former.clone(), meta, policy));
        if let Some(now) = &now {
            self.policies.peer.insert(key.clone(), now.clone());
        }
        if former == now {
            return;
        }
        self.render_strict(changes);
        let modes_after = modes(self, &namespaces);
        for ((namespace, before), after) in namespaces.iter().zip(&modes_before).zip(&modes_after) {
            if before != after {
                self.render_converted_of(namespace, changes);
            }
        }
        self.render_converted(&key, changes);
        self.peer_statuses(&key, changes);

        let mesh_changed = self.mode_of_namespace(&root) != mesh_before;
        if key.namespace == root && mesh_changed {
            for pod in self.pods_under(&root, |_| true) {
                self.render_pod(&pod, changes);
            }
            return;
        }
        let namespace_changed = modes_before != modes_after;
        // A policy of some other namespace selects nothing elsewhere, that of the root's own either.
        let is_touched = |labels: &Labels| {
            namespace_changed
                || [&former, &now]
                    .into_iter()
                    .flatten()
                    .any(|held| held.selects(labels))
        };
        let pods = self.pods_of_namespace(&key.namespace);
        let touched = pods.into_iter().filter(|pod| {
            let entry = self.pods.get(pod);
            entry.is_some_and(|entry| is_touched(&entry.pod.labels))
        });
        for pod in touched.collect::<Vec<_>>() {
            self.render_pod(&pod, changes);
        }
    }

    /// Namespaces whose mode depends on policies of a namespace, as far as a policy there does: the
    /// namespace itself, and for the root all that have policies.
    fn peer_namespaces(&self, namespace: &str) -> BTreeSet<String> {
        let mut all = BTreeSet::from([namespace.to_owned()]);
        if namespace == self.config.root_namespace {
            let with_policies = self.policies.peer.keys();
            all.extend(with_policies.map(|key| key.namespace.clone()));
        }
        all
    }

    /// The policy of a namespace without a selector that counts.
    pub(super) fn oldest(&self, namespace: &str) -> Option<(&NsName, &Held<PeerAuthentication>)> {
        let all = in_namespace(&self.policies.peer, namespace);
        let whole = all.filter(|(_, held)| held.in_force.selector.is_empty());
        whole.min_by_key(age)
    }

    /// What holds for pods of a namespace of which no policy says anything.
    pub(super) fn mode_of_namespace(&self, namespace: &str) -> Mode {
        let own = self.oldest(namespace);
        let of = |found: Option<(&NsName, &Held<PeerAuthentication>)>| {
            found.and_then(|(_, held)| held.in_force.mode)
        };
        of(own)
            .or_else(|| of(self.oldest(&self.config.root_namespace)))
            .unwrap_or(Mode::Permissive)
    }

    /// Resource name of the policy that a pod must list so that it takes what it should, if it does not
    /// take everything.
    pub(super) fn peer_policy_of_pod(&self, key: &NsName, pod: &Pod) -> Option<String> {
        let all = in_namespace(&self.policies.peer, &key.namespace);
        let own = all.filter(|(_, held)| held.selects(&pod.labels));
        let above = self.mode_of_namespace(&key.namespace);
        let Some((policy, held)) = own.min_by_key(age) else {
            return (above == Mode::Strict).then(|| self.strict_name());
        };
        if with_exceptions(&held.in_force, above).is_some() {
            return Some(converted_name(policy));
        }
        let mode = held.in_force.mode.unwrap_or(above);
        (mode == Mode::Strict).then(|| self.strict_name())
    }

    fn strict_name(&self) -> String {
        format!("{}/{STRICT}", self.config.root_namespace)
    }

    /// There is the policy for STRICT as long as any policy may lead to it.
    fn render_strict(&mut self, changes: &mut Changes) {
        let message = wire::Authorization {
            name: STRICT.to_owned(),
            namespace: self.config.root_namespace.clone(),
            scope: wire::Scope::WorkloadSelector.into(),
            action: wire::Action::Deny.into(),
            rules: vec![wire::Rule {
                clauses: vec![clause(without_identity())],
            }],
            ..wire::Authorization::default()
        };
        let message = (!self.policies.peer.is_empty()).then_some(message);
        self.put_authorization(self.strict_name(), message.as_ref(), changes);
    }

    fn render_converted_of(&mut self, namespace: &str, changes: &mut Changes) {
        let all = in_namespace(&self.policies.peer, namespace);
        let all: Vec<NsName> = all.map(|(key, _)| key.clone()).collect();
        for key in all {
            self.render_converted(&key, changes);
        }
    }

    /// Renders what a policy with exceptions for ports becomes, or removes it.
    fn render_converted(&mut self, key: &NsName, changes: &mut Changes) {
        let above = self.mode_of_namespace(&key.namespace);
        let held = self.policies.peer.get(key);
        let rules = held.and_then(|held| with_exceptions(&held.in_force, above));
        let message = rules.map(|rules| wire::Authorization {
            name: format!("{CONVERTED}{}", key.name),
            namespace: key.namespace.clone(),
            scope: wire::Scope::WorkloadSelector.into(),
            action: wire::Action::Deny.into(),
            rules,
            ..wire::Authorization::default()
        });
        self.put_authorization(converted_name(key), message.as_ref(), changes);
    }

    /// Statuses of the policies of a namespace: which of them counts may have changed.
    fn peer_statuses(&mut self, changed: &NsName, changes: &mut Changes) {
        let all = in_namespace(&self.policies.peer, &changed.namespace);
        let mut statuses: Vec<_> = all
            .map(|(key, held)| {
                let rivals = in_namespace(&self.policies.peer, &changed.namespace);
                let rivals = rivals
                    .filter(|(_, other)| other.in_force.selector == held.in_force.selector)
                    .min_by_key(age)
                    .map(|(winner, _)| winner)
                    .filter(|winner| *winner != key);
                let root = &self.config.root_namespace;
                let status = status::of_peer(key, held, rivals, root);
                (key.clone(), Some(status))
            })
            .collect();
        if !self.policies.peer.contains_key(changed) {
            statuses.push((changed.clone(), None));
        }
        for (key, status) in statuses {
            self.put_policy_status(Kind::PeerAuthentication, &key, status, changes);
        }
    }
}

fn converted_name(key: &NsName) -> String {
    format!("{}/{CONVERTED}{}", key.namespace, key.name)
}

/// What a policy for some pods refuses where a port differs from the rest; `None` where none does.
fn with_exceptions(policy: &PeerAuthentication, above: Mode) -> Option<Vec<wire::Rule>> {
    if policy.selector.is_empty() {
        return None;
    }
    let mode = policy.mode.unwrap_or(above);
    let others = policy.ports.iter().filter(|(_, other)| **other != mode);
    let others: Vec<u32> = others.map(|(port, _)| u32::from(*port)).collect();
    if others.is_empty() {
        return None;
    }
    let clauses = match mode {
        Mode::Strict => vec![
            clause(without_identity()),
            clause(wire::Match {
                not_destination_ports: others,
                ..wire::Match::default()
            }),
        ],
        Mode::Permissive => vec![clause(wire::Match {
            destination_ports: others,
            ..without_identity()
        })],
    };
    Some(vec![wire::Rule { clauses }])
}

fn without_identity() -> wire::Match {
    let anybody = wire::StringMatch {
        match_type: Some(wire::string_match::MatchType::Presence(())),
    };
    wire::Match {
        not_principals: vec![anybody],
        ..wire::Match::default()
    }
}

fn clause(one: wire::Match) -> wire::Clause {
    wire::Clause { matches: vec![one] }
}

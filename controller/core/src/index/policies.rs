//! Security policies: what node agents are told of them, and which ones a pod lists.
//!
//! An AuthorizationPolicy becomes one `istio.security.Authorization`. What a PeerAuthentication comes to
//! is worked out in `policies/peer.rs`. A policy without a selector holds by its scope alone; one with a
//! selector holds for the pods that list it, so a change renders again those that it selects now or did
//! before. A policy with mistakes in it does not replace one without; see [`Held`].

mod authentication;
pub(in crate::index) mod explain;
mod peer;
mod providers;
mod status;
mod targets;
mod telemetry;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
};

use karst_api::security as wire;

use super::{Changes, Index, NsName, PodEntry};
use crate::{
    labels::{DataplaneMode, Labels},
    object::{
        Kind, Metadata, ObjectKey, authorization::AuthorizationPolicy,
        peer_authentication::PeerAuthentication, pod::Pod,
        request_authentication::RequestAuthentication, telemetry::Telemetry,
    },
    resource::Rendered,
    status::ObjectStatus,
};

/// All security policies, and what is made of them.
#[derive(Debug, Default)]
pub(super) struct Policies {
    authorization: BTreeMap<NsName, Held<AuthorizationPolicy>>,
    /// Those of them that ask a provider.
    custom: BTreeSet<NsName>,
    /// Where they meet; worked out when it is first needed in a flush, and forgotten after it.
    meetings: OnceLock<providers::Meetings>,
    peer: BTreeMap<NsName, Held<PeerAuthentication>>,
    authentication: BTreeMap<NsName, Held<RequestAuthentication>>,
    telemetry: BTreeMap<NsName, Held<Telemetry>>,
    rendered: BTreeMap<String, Arc<Rendered>>,
    statuses: BTreeMap<ObjectKey, ObjectStatus>,
}

impl Policies {
    /// Something has changed, or nobody asks any more where policies with providers meet.
    pub(super) fn forget_meetings(&mut self) {
        self.meetings.take();
    }
}

/// A policy as it is stored.
#[derive(Debug, Clone, PartialEq)]
struct Held<T> {
    meta: Metadata,
    /// What holds: the last version without mistakes if there was one, and else the present one, which
    /// reads everything that it cannot understand so that less is allowed.
    in_force: T,
    /// Mistakes in the present version.
    faults: Vec<String>,
    /// Whether what holds is a former version.
    is_former: bool,
}

/// What the kinds have in common.
trait Policy: Sized {
    fn selector(&self) -> &Labels;
    fn faults(&self) -> &[String];
}

impl Policy for AuthorizationPolicy {
    fn selector(&self) -> &Labels {
        &self.selector
    }

    fn faults(&self) -> &[String] {
        &self.faults
    }
}

impl Policy for PeerAuthentication {
    fn selector(&self) -> &Labels {
        &self.selector
    }

    fn faults(&self) -> &[String] {
        &self.faults
    }
}

impl Policy for RequestAuthentication {
    fn selector(&self) -> &Labels {
        &self.selector
    }

    fn faults(&self) -> &[String] {
        &self.faults
    }
}

impl<T: Policy> Held<T> {
    /// The policy as it comes, after what was there before.
    fn after(former: Option<Self>, meta: Metadata, now: T) -> Self {
        let faults = now.faults().to_vec();
        let whole = |former: &Self| former.in_force.faults().is_empty();
        match former.filter(|former| !faults.is_empty() && whole(former)) {
            Some(former) => Self {
                meta,
                in_force: former.in_force,
                faults,
                is_former: true,
            },
            None => Self {
                meta,
                in_force: now,
                faults,
                is_former: false,
            },
        }
    }

    /// Whether it is for some pods only, and for this one.
    fn selects(&self, labels: &Labels) -> bool {
        let selector = self.in_force.selector();
        !selector.is_empty() && matches(selector, labels)
    }
}

fn matches(selector: &Labels, labels: &Labels) -> bool {
    let mut wanted = selector.iter();
    wanted.all(|(key, value)| labels.get(key) == Some(value))
}

/// Policies of a namespace, by name.
fn in_namespace<'a, T>(
    policies: &'a BTreeMap<NsName, Held<T>>,
    namespace: &str,
) -> impl Iterator<Item = (&'a NsName, &'a Held<T>)> + use<'a, T> {
    let namespace = namespace.to_owned();
    policies
        .range(NsName::new(namespace.as_str(), "")..)
        .take_while(move |(key, _)| key.namespace == namespace)
}

/// Name of the resource that an AuthorizationPolicy becomes.
fn resource_name(key: &NsName) -> String {
    format!("{}/{}", key.namespace, key.name)
}

impl Index {
    /// An `istio.security.Authorization` resource.
    #[must_use]
    pub fn authorization(&self, name: &str) -> Option<&Arc<Rendered>> {
        self.policies.rendered.get(name)
    }

    /// All of them, by name.
    pub fn authorizations(&self) -> impl Iterator<Item = &Arc<Rendered>> {
        self.policies.rendered.values()
    }

    /// Number of security policies of a kind; `None` for other kinds.
    pub(super) fn policy_count(&self, kind: Kind) -> Option<usize> {
        match kind {
            Kind::AuthorizationPolicy => Some(self.policies.authorization.len()),
            Kind::PeerAuthentication => Some(self.policies.peer.len()),
            Kind::RequestAuthentication => Some(self.policies.authentication.len()),
            Kind::Telemetry => Some(self.policies.telemetry.len()),
            _ => None,
        }
    }

    /// The status that a security policy should have.
    pub(super) fn policy_status(&self, key: &ObjectKey) -> Option<&ObjectStatus> {
        self.policies.statuses.get(key)
    }

    /// Stores an AuthorizationPolicy or forgets it.
    pub(super) fn set_authorization_policy(
        &mut self,
        key: NsName,
        policy: Option<(Metadata, AuthorizationPolicy)>,
        changes: &mut Changes,
    ) {
        let former = self.policies.authorization.remove(&key);
        let now = policy.map(|(meta, policy)| Held::after(former.clone(), meta, policy));
        if let Some(now) = &now {
            let stored = now.clone();
            self.policies.authorization.insert(key.clone(), stored);
        }
        if former == now {
            return;
        }
        match now.as_ref().and_then(providers::provider_of) {
            Some(_) => self.policies.custom.insert(key.clone()),
            None => self.policies.custom.remove(&key),
        };
        let selector = |held: &Option<Held<AuthorizationPolicy>>| {
            let held = held.as_ref().map(|held| &held.in_force);
            let listed = held.filter(|policy| policy.action.is_some());
            listed
                .map(|policy| policy.selector.clone())
                .filter(|selector| !selector.is_empty())
        };
        self.targets_changed(&key, former.as_ref());
        self.targets_changed(&key, now.as_ref());
        let (before, after) = (selector(&former), selector(&now));
        let message = now
            .as_ref()
            .and_then(|held| self.authorization_message(&key, &held.in_force));
        self.put_authorization(resource_name(&key), message.as_ref(), changes);
        let status = now
            .as_ref()
            // That of one with targets follows from these; it is worked out with them.
            .filter(|held| held.in_force.targeted.is_none())
            .map(|held| status::of_authorization(&key, held, &self.config.root_namespace));
        self.put_policy_status(Kind::AuthorizationPolicy, &key, status, changes);
        if before == after {
            return;
        }
        // Those whose list changes: selected before or now, and not both.
        let selected = |selector: &Option<Labels>, labels: &Labels| {
            selector
                .as_ref()
                .is_some_and(|selector| matches(selector, labels))
        };
        let is_touched = |labels: &Labels| selected(&before, labels) != selected(&after, labels);
        for pod in self.pods_under(&key.namespace, is_touched) {
            self.render_pod(&pod, changes);
        }
    }

    fn authorization_message(
        &self,
        key: &NsName,
        policy: &AuthorizationPolicy,
    ) -> Option<wire::Authorization> {
        let scope = if !policy.selector.is_empty() {
            wire::Scope::WorkloadSelector
        } else if key.namespace == self.config.root_namespace {
            wire::Scope::Global
        } else {
            wire::Scope::Namespace
        };
        Some(wire::Authorization {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            scope: scope.into(),
            action: policy.action?.into(),
            rules: policy.rules.clone(),
            dry_run: policy.dry_run,
            extensions: Vec::new(),
        })
    }

    /// Pods whose policies those of a namespace are, as far as their labels are wanted: those of the
    /// namespace, or of the whole mesh for the root namespace.
    fn pods_under(&self, namespace: &str, wanted: impl Fn(&Labels) -> bool) -> Vec<NsName> {
        let is_wanted = |(_, entry): &(&NsName, &PodEntry)| wanted(&entry.pod.labels);
        if namespace == self.config.root_namespace {
            let pods = self.pods.iter().filter(is_wanted);
            return pods.map(|(key, _)| key.clone()).collect();
        }
        let pods = self.pods.range(NsName::new(namespace, "")..);
        let pods = pods.take_while(|(key, _)| key.namespace == namespace);
        pods.filter(is_wanted).map(|(key, _)| key.clone()).collect()
    }

    /// Resource names of the policies that a pod of the mesh must list.
    pub(super) fn policies_of_pod(&self, key: &NsName, pod: &Pod) -> Vec<String> {
        if self.mode(key, pod) != DataplaneMode::Ambient {
            return Vec::new();
        }
        let root = self.config.root_namespace.as_str();
        let mut names = BTreeSet::new();
        for namespace in BTreeSet::from([root, key.namespace.as_str()]) {
            let policies = in_namespace(&self.policies.authorization, namespace);
            let listed = policies
                .filter(|(_, held)| held.in_force.action.is_some() && held.selects(&pod.labels));
            names.extend(listed.map(|(key, _)| resource_name(key)));
        }
        names.extend(self.peer_policy_of_pod(key, pod));
        names.into_iter().collect()
    }

    fn put_authorization(
        &mut self,
        name: String,
        message: Option<&wire::Authorization>,
        changes: &mut Changes,
    ) {
        let now = message.map(|message| Rendered::new(name.clone(), Vec::new(), message));
        let former = self.policies.rendered.get(&name);
        if former.map(|it| &it.version) == now.as_ref().map(|it| &it.version) {
            return;
        }
        match now {
            Some(now) => self.policies.rendered.insert(name.clone(), Arc::new(now)),
            None => self.policies.rendered.remove(&name),
        };
        changes.authorizations.insert(name);
    }

    fn put_policy_status(
        &mut self,
        kind: Kind,
        key: &NsName,
        status: Option<ObjectStatus>,
        changes: &mut Changes,
    ) {
        let key = ObjectKey {
            kind,
            namespace: key.namespace.clone(),
            name: key.name.clone(),
        };
        if self.policies.statuses.get(&key) == status.as_ref() {
            return;
        }
        match status {
            Some(status) => self.policies.statuses.insert(key.clone(), status),
            None => self.policies.statuses.remove(&key),
        };
        changes.statuses.insert(key);
    }
}

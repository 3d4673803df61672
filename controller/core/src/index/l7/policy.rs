//! BackendTrafficPolicies: which one counts for a port of a Service.

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use super::{Index, NsName, ObjectKey, Stored, TrafficPolicy, put};
use crate::{
    object::{
        Kind,
        service::{Reach, ServicePort},
        traffic_policy::Target,
    },
    proxy::ProxyClass,
    status::{AncestorStatus, Condition, ObjectStatus, StatusContent},
};

impl Index {
    pub(super) fn set_traffic_policy(
        &mut self,
        name: NsName,
        policy: Option<Stored<TrafficPolicy>>,
    ) {
        let former = self.targets_of(&name);
        if !put(&mut self.l7.policies, name.clone(), policy) {
            return;
        }
        for service in former.into_iter().chain(self.targets_of(&name)) {
            self.l7.dirty.services.insert(service.clone());
            self.l7.dirty.backends.insert(service.clone());
            self.policy_targets_changed(&service);
        }
        self.l7.dirty.statuses.insert(policy_key(&name));
    }

    /// What a policy is for may have changed, or which policies there are for it.
    pub(super) fn policy_targets_changed(&mut self, service: &NsName) {
        let policies = self.policies_for(service);
        let policies: Vec<ObjectKey> = policies.map(|(name, _, _)| policy_key(name)).collect();
        self.l7.dirty.statuses.extend(policies);
    }

    fn targets_of(&self, policy: &NsName) -> Vec<NsName> {
        let stored = self.l7.policies.get(policy);
        let targets = stored.into_iter().flat_map(|stored| &stored.body.targets);
        let services = targets.filter(|target| target.is_service());
        let key = |target: &Target| NsName::new(policy.namespace.as_str(), target.name.as_str());
        services.map(key).collect()
    }

    /// Policies of the Service's namespace with a target that is the Service, or a port of it.
    fn policies_for<'a>(
        &'a self,
        service: &'a NsName,
    ) -> impl Iterator<Item = (&'a NsName, &'a Stored<TrafficPolicy>, &'a Target)> {
        let first = NsName::new(service.namespace.as_str(), "");
        let policies = self.l7.policies.range(first..);
        let policies = policies.take_while(|(name, _)| name.namespace == service.namespace);
        policies.flat_map(move |(name, stored)| {
            let targets = stored.body.targets.iter();
            let is_it = |target: &&Target| target.is_service() && target.name == service.name;
            targets
                .filter(is_it)
                .map(move |target| (name, stored, target))
        })
    }

    /// Whether a policy says how requests for a Service are sent.
    pub(super) fn has_traffic_policy(&self, service: &NsName) -> bool {
        self.policies_for(service).next().is_some()
    }

    /// The policy that counts for a target: the oldest.
    fn winner<'a>(
        &'a self,
        service: &'a NsName,
        section: Option<&str>,
    ) -> Option<(&'a NsName, &'a Stored<TrafficPolicy>)> {
        let policies = self.policies_for(service);
        let policies = policies.filter(|(_, _, target)| target.section_name.as_deref() == section);
        let winner = policies.min_by_key(|(name, stored, _)| (stored.meta.created, *name));
        winner.map(|(name, stored, _)| (name, stored))
    }

    /// The policy for a port of a Service: one for the port, else one for the whole Service.
    pub(super) fn traffic_policy(
        &self,
        service: &NsName,
        port: &ServicePort,
    ) -> Option<wire::TrafficPolicy> {
        let named = port.name.as_deref();
        let own = named.and_then(|name| self.winner(service, Some(name)));
        let (_, stored) = own.or_else(|| self.winner(service, None))?;
        Some(stored.body.policy.clone())
    }

    /// Status of a BackendTrafficPolicy.
    pub(super) fn traffic_policy_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        let stored = self.l7.policies.get(&name)?;
        let ancestors = stored.body.targets.iter().map(|target| AncestorStatus {
            ancestor_ref: ancestor(target),
            controller: ProxyClass::Waypoint.controller(),
            conditions: vec![self.policy_accepted(&name, stored, target)],
        });
        Some(ObjectStatus {
            generation: stored.meta.generation,
            content: StatusContent::Ancestors(ancestors.collect()),
        })
    }

    fn policy_accepted(
        &self,
        name: &NsName,
        stored: &Stored<TrafficPolicy>,
        target: &Target,
    ) -> Condition {
        let no = |reason, message: String| Condition::no("Accepted", reason, message);
        if !target.is_service() {
            let message = format!(
                "{} is no kind that a policy can be for; name a Service",
                target.kind
            );
            return no("Invalid", message);
        }
        if let Some(problem) = stored.body.problems.first() {
            return no(
                "Invalid",
                format!("{problem}; the rest of the policy is in force"),
            );
        }
        let service = NsName::new(name.namespace.as_str(), target.name.as_str());
        let found = self.services.get(&service);
        let Some(found) = found.filter(|found| found.reach == Reach::Endpoints) else {
            let message = format!(
                "There is no Service {} in namespace {}",
                target.name, name.namespace
            );
            return no("TargetNotFound", message);
        };
        let section = target.section_name.as_deref();
        let has_port = |section| {
            found
                .ports
                .iter()
                .any(|port| port.name.as_deref() == Some(section))
        };
        if let Some(section) = section.filter(|section| !has_port(section)) {
            let message = format!(
                "Service {} has no TCP port of the name {section}",
                target.name
            );
            return no("TargetNotFound", message);
        }
        match self.winner(&service, section) {
            Some((winner, _)) if winner != name => {
                let message = format!(
                    "BackendTrafficPolicy {} is older and for the same target",
                    winner.name
                );
                no("Conflicted", message)
            }
            _ => Condition::yes("Accepted", "Accepted", "The policy is in force"),
        }
    }
}

fn policy_key(name: &NsName) -> ObjectKey {
    ObjectKey {
        kind: Kind::BackendTrafficPolicy,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

fn ancestor(target: &Target) -> Value {
    let mut reference = json!({
        "group": target.group,
        "kind": target.kind,
        "name": target.name,
    });
    if let (Some(section), Some(fields)) = (&target.section_name, reference.as_object_mut()) {
        fields.insert("sectionName".to_owned(), Value::from(section.as_str()));
    }
    reference
}

//! BackendTLSPolicies: TLS towards applications.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use karst_api::waypoint as wire;
use serde_json::{Value, json};

use super::{Index, NsName, Stored, gateway::Fault, put};
use crate::{
    object::{
        Kind, ObjectKey,
        backend_tls_policy::{BackendTlsPolicy, Name, Target, Trust},
        service::ServicePort,
    },
    proxy::{GatewayName, ProxyClass},
    status::{AncestorStatus, Condition, ObjectStatus, StatusContent},
};

/// Ancestors in the status of one policy. The API's own limit.
const MAX_ANCESTORS: usize = 16;

/// What a BackendTLSPolicy makes of a port of a Service.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum BackendTls {
    /// No policy.
    None,
    /// TLS, with the names of the TlsSecrets that it refers to.
    Tls(wire::BackendTls, BTreeSet<String>),
    /// A policy that cannot be followed: requests must not be sent, for this stable reason.
    Invalid(&'static str),
}

type Policies = BTreeMap<NsName, Stored<BackendTlsPolicy>>;

impl Index {
    pub(super) fn set_backend_tls(
        &mut self,
        name: NsName,
        policy: Option<Stored<BackendTlsPolicy>>,
    ) {
        let former = self.l7.backend_tls.get(&name).cloned();
        if put(&mut self.l7.backend_tls, name.clone(), policy) {
            if let Some(former) = former {
                self.policy_changed(&name, &former.body.targets);
            }
            let now = self.l7.backend_tls.get(&name);
            let targets = now.map(|now| now.body.targets.clone()).unwrap_or_default();
            self.policy_changed(&name, &targets);
            self.l7.dirty.statuses.insert(policy_key(&name));
        }
    }

    /// The backends of these targets, and the statuses of all policies for them, may change.
    fn policy_changed(&mut self, policy: &NsName, targets: &[Target]) {
        for target in targets.iter().filter(|target| target.is_service()) {
            let service = NsName::new(policy.namespace.as_str(), target.name.as_str());
            self.backend_tls_changed(&service);
            self.l7.dirty.backends.insert(service);
        }
    }

    /// The statuses of all policies for a Service may change.
    pub(super) fn backend_tls_changed(&mut self, service: &NsName) {
        let policies = policies_for(&self.l7.backend_tls, service);
        let keys: Vec<ObjectKey> = policies.map(|(name, ..)| policy_key(name)).collect();
        self.l7.dirty.statuses.extend(keys);
    }

    /// A Gateway has another certificate towards backends, or none any more.
    pub(super) fn client_certificate_changed(&mut self) {
        let policies = self.l7.backend_tls.iter();
        let services = policies.flat_map(|(name, stored)| {
            let targets = stored
                .body
                .targets
                .iter()
                .filter(|target| target.is_service());
            targets.map(|target| NsName::new(name.namespace.as_str(), target.name.as_str()))
        });
        let services: Vec<NsName> = services.collect();
        self.l7.dirty.backends.extend(services);
    }

    /// Authorities that policies refer to have changed.
    pub(super) fn policy_material_changed(&mut self, is: impl Fn(Kind, &NsName) -> bool) {
        let refers = |name: &NsName, policy: &BackendTlsPolicy| match &policy.trust {
            Trust::Objects(references) => references.iter().any(|reference| {
                let of = NsName::new(name.namespace.as_str(), reference.name.as_str());
                is(Kind::ConfigMap, &of) || is(Kind::Secret, &of)
            }),
            Trust::System | Trust::Invalid(_) => false,
        };
        let users = self.l7.backend_tls.iter();
        let users = users.filter(|(name, stored)| refers(name, &stored.body));
        let users: Vec<(NsName, Vec<Target>)> = users
            .map(|(name, stored)| (name.clone(), stored.body.targets.clone()))
            .collect();
        for (name, targets) in users {
            self.policy_changed(&name, &targets);
            for gateway in self.ancestors(&name, &targets) {
                self.l7.dirty.proxies.insert(gateway);
            }
        }
    }

    /// TLS from the proxy of a Gateway towards the application behind a port of a Service.
    pub(super) fn backend_tls(
        &self,
        gateway: &GatewayName,
        service: &NsName,
        port: &ServicePort,
    ) -> BackendTls {
        let Some((name, stored)) = self.policy_of(service, port.name.as_deref()) else {
            return BackendTls::None;
        };
        let (authorities, system_authorities) = match self.trust(name, &stored.body) {
            Ok(trust) => trust,
            Err((reason, _)) => return BackendTls::Invalid(reason),
        };
        let certificate = self
            .l7
            .views
            .get(gateway)
            .map(|view| &view.client_certificate);
        let client_certificate = match certificate {
            Some(Err(fault)) => return BackendTls::Invalid(fault.reason),
            Some(Ok(certificate)) => certificate.clone().unwrap_or_default(),
            None => String::new(),
        };
        let mut secrets: BTreeSet<String> = authorities.iter().cloned().collect();
        if !client_certificate.is_empty() {
            secrets.insert(client_certificate.clone());
        }
        let names = stored.body.names.iter().map(|name| wire::SubjectAltName {
            kind: Some(match name {
                Name::Hostname(name) => wire::subject_alt_name::Kind::Hostname(name.clone()),
                Name::Uri(uri) => wire::subject_alt_name::Kind::Uri(uri.clone()),
            }),
        });
        let tls = wire::BackendTls {
            hostname: stored.body.hostname.clone(),
            subject_alt_names: names.collect(),
            authorities,
            system_authorities,
            client_certificate,
        };
        BackendTls::Tls(tls, secrets)
    }

    /// The policy for a port: one that names it before one for the whole Service, then the older, then the
    /// one whose name comes first.
    fn policy_of(
        &self,
        service: &NsName,
        port: Option<&str>,
    ) -> Option<(&NsName, &Stored<BackendTlsPolicy>)> {
        let policies = policies_for(&self.l7.backend_tls, service);
        let applying = policies
            .filter(|(_, _, target)| target.section.is_none() || target.section.as_deref() == port);
        let (name, stored, _) = applying.min_by(|one, other| {
            let whole = |target: &Target| target.section.is_none();
            let sections = whole(one.2).cmp(&whole(other.2));
            sections.then_with(|| precedence((one.0, one.1), (other.0, other.1)))
        })?;
        Some((name, stored))
    }

    /// Names of TlsSecrets with the authorities of a policy, and whether it trusts those of the operating
    /// system. With one reference that cannot be followed the policy still trusts the others; with none,
    /// nothing may be sent. The first part of the error goes to the proxies, the second into the status.
    fn trust(
        &self,
        name: &NsName,
        policy: &BackendTlsPolicy,
    ) -> Result<(Vec<String>, bool), (&'static str, Fault)> {
        let references = match &policy.trust {
            Trust::System => return Ok((Vec::new(), true)),
            Trust::Invalid(problem) => {
                return Err(("Invalid", Fault::new("Invalid", problem.as_str())));
            }
            Trust::Objects(references) => references,
        };
        let mut found = Vec::new();
        let mut fault = Fault::new("InvalidCACertificateRef", "there is no reference");
        for reference in references {
            match self.policy_authorities(name, reference) {
                Ok(name) => found.push(name),
                Err(problem) => fault = problem,
            }
        }
        if found.is_empty() {
            return Err((fault.reason, fault));
        }
        Ok((found, false))
    }

    fn policy_authorities(
        &self,
        policy: &NsName,
        reference: &crate::object::listener::ObjectRef,
    ) -> Result<String, Fault> {
        // The API has no namespace in these references.
        if reference.namespace(&policy.namespace) != policy.namespace {
            let message = format!(
                "{} is in another namespace",
                reference.text(&policy.namespace)
            );
            return Err(Fault::new("InvalidCACertificateRef", message));
        }
        self.authorities(&policy.namespace, reference, "InvalidKind")
    }

    /// Gateways whose proxies send to a target of a policy.
    fn ancestors(&self, policy: &NsName, targets: &[Target]) -> BTreeSet<GatewayName> {
        let targets = targets.iter().filter(|target| target.is_service());
        let services =
            targets.map(|target| NsName::new(policy.namespace.as_str(), target.name.as_str()));
        services
            .filter_map(|service| self.l7.backend_users.get(&service))
            .flatten()
            .cloned()
            .collect()
    }

    /// Status of a BackendTLSPolicy.
    pub(super) fn backend_tls_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        let stored = self.l7.backend_tls.get(&name)?;
        let conditions = self.policy_conditions(&name, stored);
        let mut ancestors: Vec<AncestorStatus> = Vec::new();
        for gateway in self.ancestors(&name, &stored.body.targets) {
            let class = self.gateway_class(&gateway).unwrap_or(ProxyClass::Gateway);
            ancestors.push(AncestorStatus {
                ancestor_ref: json!({
                    "group": Kind::Gateway.group(),
                    "kind": Kind::Gateway.name(),
                    "namespace": gateway.namespace,
                    "name": gateway.name,
                }),
                controller: class.controller(),
                conditions: conditions.clone(),
            });
        }
        for target in &stored.body.targets {
            if let Some(problem) = self.missing(&name, target) {
                ancestors.push(AncestorStatus {
                    ancestor_ref: target_ref(target),
                    controller: ProxyClass::Gateway.controller(),
                    conditions: vec![Condition::no("Accepted", "TargetNotFound", problem)],
                });
            }
        }
        ancestors.truncate(MAX_ANCESTORS);
        Some(ObjectStatus {
            generation: stored.meta.generation,
            content: StatusContent::Ancestors(ancestors),
        })
    }

    fn missing(&self, policy: &NsName, target: &Target) -> Option<String> {
        if !target.is_service() {
            return Some(format!(
                "A {} cannot be a target, only a Service",
                target.kind
            ));
        }
        let name = NsName::new(policy.namespace.as_str(), target.name.as_str());
        let Some(service) = self.services.get(&name) else {
            return Some(format!(
                "There is no Service {}/{}",
                name.namespace, name.name
            ));
        };
        let section = target.section.as_ref()?;
        let mut ports = service.ports.iter();
        let found = ports.any(|port| port.name.as_ref() == Some(section));
        (!found).then(|| {
            format!(
                "The Service {} has no TCP port named {section:?}",
                name.name
            )
        })
    }

    fn policy_conditions(
        &self,
        name: &NsName,
        stored: &Stored<BackendTlsPolicy>,
    ) -> Vec<Condition> {
        let trust = self.trust(name, &stored.body);
        let mut faults = Vec::new();
        if let Trust::Objects(references) = &stored.body.trust {
            let outcomes = references
                .iter()
                .map(|one| self.policy_authorities(name, one));
            faults.extend(outcomes.filter_map(Result::err));
        }
        let resolved = match faults.pop() {
            Some(fault) => Condition::no("ResolvedRefs", fault.reason, fault.message),
            None => Condition::yes(
                "ResolvedRefs",
                "ResolvedRefs",
                "All references can be followed",
            ),
        };
        let accepted = match (self.winner_over(name, stored), trust) {
            (Some((target, winner)), _) => Condition::no(
                "Accepted",
                "Conflicted",
                format!(
                    "The Service {target} has an older policy, {}/{}",
                    winner.namespace, winner.name
                ),
            ),
            (None, Ok(_)) => Condition::yes("Accepted", "Accepted", "The policy is in force"),
            (None, Err(("Invalid", fault))) => Condition::no("Accepted", "Invalid", fault.message),
            (None, Err((_, fault))) => Condition::no(
                "Accepted",
                "NoValidCACertificate",
                format!("Requests are refused with 500: {}", fault.message),
            ),
        };
        vec![accepted, resolved]
    }

    /// A target of a policy that another policy goes before, and that policy.
    fn winner_over<'a>(
        &'a self,
        name: &NsName,
        stored: &'a Stored<BackendTlsPolicy>,
    ) -> Option<(&'a str, &'a NsName)> {
        stored.body.targets.iter().find_map(|target| {
            let service = NsName::new(name.namespace.as_str(), target.name.as_str());
            let mut rivals =
                policies_for(&self.l7.backend_tls, &service).filter(|(other, _, of)| {
                    *other != name && of.section == target.section && target.is_service()
                });
            let winner = rivals.find(|(other, rival, _)| {
                precedence((other, rival), (name, stored)) == Ordering::Less
            });
            winner.map(|(winner, ..)| (target.name.as_str(), winner))
        })
    }
}

/// All policies for a Service, with the target that it is of each.
fn policies_for<'a>(
    policies: &'a Policies,
    service: &NsName,
) -> impl Iterator<Item = (&'a NsName, &'a Stored<BackendTlsPolicy>, &'a Target)> {
    let NsName { namespace, name } = service.clone();
    let of_namespace = namespace.clone();
    policies
        .range(NsName::new(namespace, "")..)
        .take_while(move |(policy, _)| policy.namespace == of_namespace)
        .flat_map(|(policy, stored)| {
            let targets = stored.body.targets.iter();
            targets.map(move |target| (policy, stored, target))
        })
        .filter(move |(_, _, target)| target.is_service() && target.name == name)
}

fn precedence(
    one: (&NsName, &Stored<BackendTlsPolicy>),
    other: (&NsName, &Stored<BackendTlsPolicy>),
) -> Ordering {
    (one.1.meta.created, one.0).cmp(&(other.1.meta.created, other.0))
}

fn policy_key(name: &NsName) -> ObjectKey {
    ObjectKey {
        kind: Kind::BackendTlsPolicy,
        namespace: name.namespace.clone(),
        name: name.name.clone(),
    }
}

fn target_ref(target: &Target) -> Value {
    let mut value = json!({"group": target.group, "kind": target.kind, "name": target.name});
    if let Some(section) = &target.section {
        value["sectionName"] = json!(section);
    }
    value
}

//! Policies with targets: which waypoints and gateways enforce them, and what is said of them.
//!
//! A policy for a Service is enforced by the Service's waypoint, if it has one; a policy for a Gateway or
//! GatewayClass by their proxies, for everything that comes through them.

use std::collections::BTreeMap;

use karst_api::waypoint as wire;

use super::{
    Held, Index, Kind, NsName, ObjectKey, ObjectStatus, in_namespace, resource_name,
    status::{self, ACCEPTED, FULLY_ENFORCED},
};
use crate::{
    index::l7::{Binding, BindingState, WAYPOINT_BOUND},
    object::{
        authorization::{AuthorizationPolicy, Target, Targeted},
        policy::listed,
    },
    proxy::{GatewayName, ProxyClass},
    status::Condition,
};

pub(super) fn targeted(held: &Held<AuthorizationPolicy>) -> Option<&Targeted> {
    held.in_force.targeted.as_ref()
}

/// Kinds of policies that can have targets.
pub(super) trait HasTargets {
    const KIND: Kind;

    /// Empty for one without.
    fn targets(&self) -> &[Target];

    /// Whether it has a provider decide, which concerns others of its frontends.
    fn asks_provider(&self) -> bool {
        false
    }

    /// What else keeps it from being what its author wants.
    fn problem(&self, _: &Index, _: &NsName) -> Option<Condition> {
        None
    }
}

impl HasTargets for AuthorizationPolicy {
    const KIND: Kind = Kind::AuthorizationPolicy;

    fn targets(&self) -> &[Target] {
        self.targeted
            .as_ref()
            .map_or(&[], |targeted| targeted.targets.as_slice())
    }

    fn asks_provider(&self) -> bool {
        let targeted = self.targeted.as_ref();
        targeted.is_some_and(|targeted| targeted.provider.is_some())
    }

    fn problem(&self, index: &Index, key: &NsName) -> Option<Condition> {
        index.provider_problem(key, self.targeted.as_ref()?)
    }
}

pub(super) fn object_key(kind: Kind, key: &NsName) -> ObjectKey {
    ObjectKey {
        kind,
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    }
}

/// How a policy stands with one target.
enum Standing {
    /// These enforce it.
    Bound(Vec<String>),
    /// Nobody does; the reason and what to do.
    Unbound(&'static str, String),
    /// There is no such target.
    NotFound(String),
    /// Policies cannot be for it.
    Unsupported(String),
}

impl Index {
    /// A policy of that name came, changed or went: what its targets are served may change.
    pub(super) fn targets_changed<T: HasTargets>(&mut self, key: &NsName, held: Option<&Held<T>>) {
        self.l7.dirty.statuses.insert(object_key(T::KIND, key));
        if held.is_some_and(|held| held.in_force.asks_provider()) {
            self.custom_statuses_changed();
        }
        let targets = held.map(|held| held.in_force.targets().to_vec());
        for target in targets.unwrap_or_default() {
            match target {
                Target::Service(name) => {
                    let service = NsName::new(key.namespace.as_str(), name);
                    self.l7.dirty.services.insert(service);
                }
                Target::Gateway(name) => {
                    self.proxy_policies_changed(GatewayName::new(key.namespace.as_str(), name));
                }
                Target::GatewayClass(class) if key.namespace == self.config.root_namespace => {
                    let gateways = self.l7.gateways.keys();
                    let gateways = gateways.filter(|name| self.is_of_class(name, &class));
                    let gateways: Vec<GatewayName> = gateways.cloned().collect();
                    for gateway in gateways {
                        self.proxy_policies_changed(gateway);
                    }
                }
                Target::GatewayClass(_) | Target::Other(_) => {}
            }
        }
    }

    /// Everything that comes through a proxy may have other policies.
    fn proxy_policies_changed(&mut self, gateway: GatewayName) {
        self.l7.proxy_policies_changed(gateway);
    }

    /// The statuses of policies for a Service may change.
    pub(in crate::index) fn service_policies_changed(&mut self, service: &NsName) {
        let mut keys = naming_service(&self.policies.authorization, service);
        keys.extend(naming_service(&self.policies.authentication, service));
        keys.extend(naming_service(&self.policies.telemetry, service));
        self.l7.dirty.statuses.extend(keys);
    }

    /// The statuses of policies for a Gateway or its class may change, and, if its class has, its policies.
    pub(in crate::index) fn gateway_policies_changed(&mut self, gateway: &GatewayName) {
        let mut keys = naming_gateway(&self.policies.authorization, gateway);
        keys.extend(naming_gateway(&self.policies.authentication, gateway));
        keys.extend(naming_gateway(&self.policies.telemetry, gateway));
        if !keys.is_empty() {
            self.proxy_policies_changed(gateway.clone());
        }
        self.l7.dirty.statuses.extend(keys);
        self.custom_statuses_changed();
    }

    /// Whether a Gateway is a waypoint of a class of that name. Only waypoints have policies by class.
    pub(super) fn is_of_class(&self, gateway: &GatewayName, class: &str) -> bool {
        let stored = self.l7.gateways.get(gateway);
        stored.is_some_and(|stored| stored.body.class == class)
            && self.class_of_gateway(gateway) == Some(ProxyClass::Waypoint)
    }

    /// Names of the policies for what comes through a proxy, and for one of its Services.
    pub(in crate::index) fn policies_at(
        &self,
        gateway: &GatewayName,
        class: ProxyClass,
        service: Option<&NsName>,
    ) -> Vec<String> {
        self.attached_at(&self.policies.authorization, gateway, class, service)
    }

    /// Likewise of one kind.
    pub(super) fn attached_at<T: HasTargets>(
        &self,
        policies: &BTreeMap<NsName, Held<T>>,
        gateway: &GatewayName,
        class: ProxyClass,
        service: Option<&NsName>,
    ) -> Vec<String> {
        let is_for = |key: &NsName, target: &Target| match target {
            Target::Service(name) => {
                service.is_some_and(|it| it.namespace == key.namespace && it.name == *name)
            }
            Target::Gateway(name) => key.namespace == gateway.namespace && *name == gateway.name,
            Target::GatewayClass(name) => {
                class == ProxyClass::Waypoint
                    && key.namespace == self.config.root_namespace
                    && self.is_of_class(gateway, name)
            }
            Target::Other(_) => false,
        };
        let root = self.config.root_namespace.as_str();
        let mut namespaces = vec![root, gateway.namespace.as_str()];
        namespaces.extend(service.map(|it| it.namespace.as_str()));
        namespaces.sort_unstable();
        namespaces.dedup();
        let policies = namespaces
            .into_iter()
            .flat_map(|namespace| in_namespace(policies, namespace));
        let applying = policies.filter(|(key, held)| {
            let mut targets = held.in_force.targets().iter();
            targets.any(|target| is_for(key, target))
        });
        applying.map(|(key, _)| resource_name(key)).collect()
    }

    /// A policy as proxies get it.
    pub(in crate::index) fn request_policy(&self, name: &str) -> Option<wire::AuthorizationPolicy> {
        let (namespace, own) = name.split_once('/')?;
        let held = self
            .policies
            .authorization
            .get(&NsName::new(namespace, own))?;
        let targeted = targeted(held)?;
        Some(wire::AuthorizationPolicy {
            name: name.to_owned(),
            action: targeted.action.into(),
            dry_run: held.in_force.dry_run,
            rules: targeted.rules.clone(),
            provider: targeted
                .provider
                .as_ref()
                .map(|name| self.extension_provider(name)),
        })
    }

    /// Status of a policy with targets; `None` if it has none.
    pub(in crate::index) fn targeted_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        let held = self.policies.authorization.get(&name)?;
        targeted(held)?;
        const LENIENT: &str = "What could not be understood is left out so that less is allowed, and more refused, \
                               than written";
        let unsupported = held.in_force.unsupported.as_deref();
        let mut conditions = self.target_conditions(&name, held, unsupported, LENIENT);
        if let Some(narrowed) = &held.in_force.narrowed {
            let narrowed = narrowed.as_str();
            conditions.push(Condition::no(FULLY_ENFORCED, "UnsupportedValue", narrowed));
        } else if held.in_force.dry_run {
            let message = "The annotation istio.io/dry-run is true: what the policy would do is logged and counted only";
            conditions.push(Condition::no(FULLY_ENFORCED, "DryRun", message));
        }
        Some(status::status(held, conditions))
    }

    /// Whether a policy is taken, and who enforces it. `without_former` says what comes of mistakes in its first
    /// version.
    pub(super) fn target_conditions<T: HasTargets>(
        &self,
        name: &NsName,
        held: &Held<T>,
        unsupported_whole: Option<&str>,
        without_former: &str,
    ) -> Vec<Condition> {
        let targets = held.in_force.targets();
        let (mut bound, mut unbound, mut missing, mut unsupported) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for target in targets {
            match self.standing(name, target) {
                Standing::Bound(names) => bound.extend(names),
                Standing::Unbound(reason, message) => unbound.push((reason, message)),
                Standing::NotFound(message) => missing.push(message),
                Standing::Unsupported(message) => unsupported.push(message),
            }
        }
        let no = |reason, message: String| Condition::no(ACCEPTED, reason, message);
        let accepted = if !held.faults.is_empty() {
            let effect = if held.is_former {
                status::FORMER
            } else {
                without_former
            };
            status::invalid(&held.faults, effect)
        } else if let Some(problem) = unsupported_whole {
            no("UnsupportedValue", format!("The policy {problem}"))
        } else if let Some(condition) = held.in_force.problem(self, name) {
            condition
        } else if !unsupported.is_empty() {
            no("UnsupportedValue", listed(&unsupported, "; "))
        } else if !missing.is_empty() {
            no("TargetNotFound", listed(&missing, "; "))
        } else if targets.is_empty() {
            let message = "The policy names no target, and is for nothing";
            no("TargetNotFound", message.to_owned())
        } else {
            Condition::yes(
                ACCEPTED,
                "Accepted",
                "The policy is taken for all its targets",
            )
        };
        let mut conditions = vec![accepted];
        if let Some((reason, _)) = unbound.first() {
            let messages: Vec<String> = unbound.iter().map(|(_, text)| text.clone()).collect();
            let messages = listed(&messages, "; ");
            conditions.push(Condition::no(WAYPOINT_BOUND, reason, messages));
        } else if !bound.is_empty() {
            bound.sort_unstable();
            bound.dedup();
            let message = format!("The policy is bound to {}", listed(&bound, ", "));
            conditions.push(Condition::yes(WAYPOINT_BOUND, "WaypointBound", message));
        }
        conditions
    }

    fn standing(&self, policy: &NsName, target: &Target) -> Standing {
        let namespace = &policy.namespace;
        match target {
            Target::Service(name) => {
                let service = NsName::new(namespace.as_str(), name.as_str());
                if !self.services.contains_key(&service) {
                    let message = format!("There is no Service {name} in namespace {namespace}");
                    return Standing::NotFound(message);
                }
                at_service(&service, self.l7.binding_of_service(&service))
            }
            Target::Gateway(name) => {
                let gateway = GatewayName::new(namespace.as_str(), name.as_str());
                match self.class_of_gateway(&gateway) {
                    Some(_) => Standing::Bound(vec![format!("Gateway {gateway}")]),
                    None => Standing::NotFound(format!(
                        "There is no Gateway {name} of a class of Karst in namespace {namespace}"
                    )),
                }
            }
            Target::GatewayClass(name) => {
                let root = &self.config.root_namespace;
                if namespace != root {
                    return Standing::Unsupported(format!(
                        "A policy for GatewayClass {name} must be in the namespace {root}"
                    ));
                }
                match self.l7_class(name) {
                    Some(ProxyClass::Waypoint) => {
                        Standing::Bound(vec![format!("GatewayClass {name}")])
                    }
                    Some(ProxyClass::Gateway) => Standing::Unsupported(format!(
                        "GatewayClass {name} is not of waypoints; name the Gateways"
                    )),
                    None => Standing::NotFound(format!("There is no GatewayClass {name} of Karst")),
                }
            }
            Target::Other(what) => Standing::Unsupported(format!(
                "{what} cannot be a target; a Service, a Gateway or a GatewayClass can"
            )),
        }
    }
}

pub(super) fn naming_service<T: HasTargets>(
    policies: &BTreeMap<NsName, Held<T>>,
    service: &NsName,
) -> Vec<ObjectKey> {
    let is_it = |target: &Target| matches!(target, Target::Service(name) if *name == service.name);
    let policies = in_namespace(policies, &service.namespace);
    let naming = policies.filter(|(_, held)| held.in_force.targets().iter().any(is_it));
    naming.map(|(key, _)| object_key(T::KIND, key)).collect()
}

fn naming_gateway<T: HasTargets>(
    policies: &BTreeMap<NsName, Held<T>>,
    gateway: &GatewayName,
) -> Vec<ObjectKey> {
    let naming = policies.iter().filter(|(key, held)| {
        let is_it = |target: &Target| match target {
            Target::Gateway(name) => key.namespace == gateway.namespace && *name == gateway.name,
            Target::GatewayClass(_) => true,
            Target::Service(_) | Target::Other(_) => false,
        };
        held.in_force.targets().iter().any(is_it)
    });
    naming.map(|(key, _)| object_key(T::KIND, key)).collect()
}

fn at_service(service: &NsName, binding: Option<&Binding>) -> Standing {
    let NsName { namespace, name } = service;
    let Some(binding) = binding else {
        let message = format!(
            "Service {namespace}/{name} has no waypoint, so that nobody enforces the policy for it; label it, or \
             its namespace, with karst.dev/use-waypoint and the name of a Gateway of class karst-waypoint"
        );
        return Standing::Unbound("NoWaypoint", message);
    };
    let gateway = &binding.gateway;
    match binding.state {
        BindingState::Ready => Standing::Bound(vec![format!(
            "Service {namespace}/{name} at waypoint {gateway}"
        )]),
        BindingState::NotReady => Standing::Unbound(
            "WaypointNotReady",
            format!(
                "Waypoint {gateway} of Service {namespace}/{name} has no address or no ready pod so far"
            ),
        ),
        BindingState::NoWaypoint => Standing::Unbound(
            "NoWaypoint",
            format!(
                "Service {namespace}/{name} asks for the waypoint {gateway}, which is no Gateway of class \
                 karst-waypoint"
            ),
        ),
        BindingState::NotPermitted => Standing::Unbound(
            "WaypointNotPermitted",
            format!("Gateway {gateway} does not let namespace {namespace} in"),
        ),
        BindingState::NotMeant => Standing::Unbound(
            "WaypointNotMeant",
            format!("Gateway {gateway} is not for services, says its label karst.dev/waypoint-for"),
        ),
    }
}

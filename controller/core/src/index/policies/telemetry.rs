//! Telemetry: what is reported of a pod's connections and of what comes to a proxy, and what is said of the objects.
//!
//! Levels, each before the next: the root namespace; of proxies the GatewayClass; the namespace; then pods by selector,
//! and of proxies the Gateway and the Service. At each the oldest counts, by name where two are of one age. For access
//! logs the entry of the narrowest level counts as a whole; of tracing each field does on its own.

use std::collections::BTreeSet;

use karst_api::telemetry as wire;

use super::{
    Changes, Held, Index, Kind, Metadata, NsName, ObjectKey, ObjectStatus, Policy, in_namespace,
    status::{self, ACCEPTED, FULLY_ENFORCED},
    targets::{HasTargets, object_key},
};
use crate::{
    extension::Unusable,
    labels::{DataplaneMode, Labels},
    object::{
        authorization::Target,
        pod::Pod,
        policy::listed,
        telemetry::{Side, Telemetry},
    },
    proxy::{GatewayName, ProxyClass},
    status::Condition,
};

/// Share of traces that begin in the mesh where nothing says it, in millionths: Istio's 1 %.
const DEFAULT_SAMPLING: u32 = 10_000;

const WITHOUT_FORMER: &str =
    "What could not be understood is left out so that more is logged and less traced";

const FOR_NOBODY: &str = "Whom it is for is not known, so it has no effect";

impl Policy for Telemetry {
    fn selector(&self) -> &Labels {
        &self.selector
    }

    fn faults(&self) -> &[String] {
        &self.faults
    }
}

impl HasTargets for Telemetry {
    const KIND: Kind = Kind::Telemetry;

    fn targets(&self) -> &[Target] {
        &self.targets
    }

    fn problem(&self, index: &Index, key: &NsName) -> Option<Condition> {
        let lost = index.lost_targets(key, self);
        (!lost.is_empty() && lost.len() == self.targets.len()).then(|| {
            let message = format!("{}, so this one has no effect", listed(&lost, "; "));
            Condition::no(ACCEPTED, "Conflicted", message)
        })
    }
}

impl Index {
    /// Stores a Telemetry or forgets it.
    pub(in crate::index) fn set_telemetry(
        &mut self,
        key: NsName,
        policy: Option<(Metadata, Telemetry)>,
        changes: &mut Changes,
    ) {
        let former = self.policies.telemetry.remove(&key);
        let now = policy.map(|(meta, policy)| Held::after(former.clone(), meta, policy));
        if let Some(now) = &now {
            self.policies.telemetry.insert(key.clone(), now.clone());
        }
        if former == now {
            return;
        }
        for held in [former.as_ref(), now.as_ref()] {
            self.targets_changed(&key, held);
            if let Some(held) = held.filter(|held| held.in_force.targets.is_empty()) {
                self.telemetry_scope_changed(&key.namespace, held, changes);
            }
        }
        // Which one counts may have changed for the others of its namespace, and of the mesh what they take from it.
        let is_root = key.namespace == self.config.root_namespace;
        let others = self.policies.telemetry.keys();
        let others = others.filter(|other| is_root || other.namespace == key.namespace);
        let others = others.map(|key| object_key(Kind::Telemetry, key));
        let others: Vec<ObjectKey> = others.collect();
        self.l7.dirty.statuses.extend(others);
    }

    /// What one without targets is for is reported otherwise.
    fn telemetry_scope_changed(
        &mut self,
        namespace: &str,
        held: &Held<Telemetry>,
        changes: &mut Changes,
    ) {
        if held.in_force.is_for_nobody {
            return;
        }
        let selector = &held.in_force.selector;
        let wanted = |labels: &Labels| selector.is_empty() || held.selects(labels);
        for pod in self.pods_under(namespace, wanted) {
            self.render_pod(&pod, changes);
        }
        if !selector.is_empty() {
            return;
        }
        let is_root = namespace == self.config.root_namespace;
        let gateways = self.l7.gateways.keys();
        let gateways = gateways.filter(|gateway| is_root || gateway.namespace == namespace);
        for gateway in gateways.cloned().collect::<Vec<_>>() {
            self.l7.proxy_policies_changed(gateway);
        }
        let services = self.services.keys();
        let services = services.filter(|service| service.namespace == namespace);
        self.l7.dirty.services.extend(services.cloned());
        for pod in self.pods_of_namespace(namespace) {
            // Who serves it may need another collector.
            self.l7.dirty.proxies.extend(self.l7.server_of_pod(&pod));
            self.l7.dirty.pods.insert(pod);
        }
    }

    /// Whether there is any Telemetry.
    pub(in crate::index) fn has_telemetries(&self) -> bool {
        !self.policies.telemetry.is_empty()
    }

    /// Whether a Telemetry is for a Service, which its waypoint has to report then.
    pub(in crate::index) fn has_telemetry(&self, service: &NsName) -> bool {
        !super::targets::naming_service(&self.policies.telemetry, service).is_empty()
    }

    /// Collectors, or the Services of these, have come, changed or gone.
    pub(super) fn collectors_changed(&mut self, changes: &mut Changes) {
        let tracing = self.policies.telemetry.iter();
        let tracing = tracing.filter(|(_, held)| !held.in_force.tracing.is_empty());
        let tracing: Vec<_> = tracing
            .map(|(key, held)| (key.clone(), held.clone()))
            .collect();
        for (key, held) in tracing {
            self.targets_changed(&key, Some(&held));
            if held.in_force.targets.is_empty() {
                self.telemetry_scope_changed(&key.namespace, &held, changes);
            }
        }
    }

    /// A Service came, changed or went: it may be the one of a collector.
    pub(in crate::index) fn collector_service_changed(
        &mut self,
        service: &NsName,
        changes: &mut Changes,
    ) {
        if self.policies.telemetry.is_empty() {
            return;
        }
        let hostname = self.config.hostname(&service.namespace, &service.name);
        if self.providers.has_collector_at(&hostname) {
            self.collectors_changed(changes);
        }
    }

    /// The one that counts of a level: the oldest.
    fn oldest_telemetry<'a>(
        &'a self,
        namespace: &str,
        is_for: impl Fn(&Telemetry) -> bool,
    ) -> Option<(&'a NsName, &'a Telemetry)> {
        let all = in_namespace(&self.policies.telemetry, namespace);
        let all = all.filter(|(_, held)| !held.in_force.is_for_nobody && is_for(&held.in_force));
        let oldest = all.min_by_key(|(key, held)| (held.meta.created, *key));
        oldest.map(|(key, held)| (key, &held.in_force))
    }

    /// What is reported of a pod's connections; `None` for the default.
    pub(in crate::index) fn telemetry_of_pod(
        &self,
        key: &NsName,
        pod: &Pod,
    ) -> Option<wire::Telemetry> {
        if self.policies.telemetry.is_empty() || self.mode(key, pod) != DataplaneMode::Ambient {
            return None;
        }
        let root = self.config.root_namespace.as_str();
        let selected = |policy: &Telemetry| {
            !policy.selector.is_empty() && super::matches(&policy.selector, &pod.labels)
        };
        let levels = [
            self.oldest_telemetry(root, is_for_all),
            (key.namespace != root)
                .then(|| self.oldest_telemetry(&key.namespace, is_for_all))
                .flatten(),
            self.oldest_telemetry(root, selected),
            (key.namespace != root)
                .then(|| self.oldest_telemetry(&key.namespace, selected))
                .flatten(),
        ];
        let levels: Vec<&Telemetry> = levels.into_iter().flatten().map(|(_, it)| it).collect();
        let client = self.reporting(&levels, Side::Client);
        let server = self.reporting(&levels, Side::Server);
        (client.is_some() || server.is_some()).then_some(wire::Telemetry { client, server })
    }

    /// What is reported of what comes through a proxy, to one of its Services or to pods of a namespace; `None` for the
    /// default.
    pub(in crate::index) fn telemetry_at(
        &self,
        gateway: &GatewayName,
        class: ProxyClass,
        namespace: &str,
        service: Option<&NsName>,
    ) -> Option<wire::Reporting> {
        if self.policies.telemetry.is_empty() {
            return None;
        }
        let root = self.config.root_namespace.as_str();
        let names =
            |policy: &Telemetry, is_it: &dyn Fn(&Target) -> bool| policy.targets.iter().any(is_it);
        let of_class = |target: &Target| match target {
            Target::GatewayClass(name) => {
                class == ProxyClass::Waypoint && self.is_of_class(gateway, name)
            }
            _ => false,
        };
        let of_gateway =
            |target: &Target| matches!(target, Target::Gateway(name) if *name == gateway.name);
        let levels = [
            self.oldest_telemetry(root, is_for_all),
            self.oldest_telemetry(root, |policy| names(policy, &of_class)),
            (namespace != root)
                .then(|| self.oldest_telemetry(namespace, is_for_all))
                .flatten(),
            self.oldest_telemetry(&gateway.namespace, |policy| names(policy, &of_gateway)),
            service.and_then(|service| {
                let is_it =
                    |target: &Target| matches!(target, Target::Service(name) if *name == service.name);
                self.oldest_telemetry(&service.namespace, |policy| names(policy, &is_it))
            }),
        ];
        let levels: Vec<&Telemetry> = levels.into_iter().flatten().map(|(_, it)| it).collect();
        // As Istio has it: a gateway is a client of what is behind it, a waypoint stands for its servers.
        let side = match class {
            ProxyClass::Waypoint => Side::Server,
            ProxyClass::Gateway => Side::Client,
        };
        self.reporting(&levels, side)
    }

    /// The port of a Service that spans go to.
    pub(in crate::index) fn collector_of(
        &self,
        reporting: &wire::Reporting,
    ) -> Option<(NsName, u16)> {
        let tracing = reporting.tracing.as_ref()?;
        self.collector(&tracing.provider).ok()
    }

    fn reporting(&self, levels: &[&Telemetry], side: Side) -> Option<wire::Reporting> {
        let mut reporting = wire::Reporting::default();
        let logging = levels.iter().rev().find_map(|level| level.logging(side));
        if let Some(logging) = logging {
            reporting.log_disabled = logging.disabled;
            reporting.log_filter = logging.filter.clone();
        }
        reporting.log_sampling = levels.iter().rev().find_map(|level| level.log_sampling);
        reporting.tracing = self.tracing(levels, side);
        (reporting != wire::Reporting::default()).then_some(reporting)
    }

    fn tracing(&self, levels: &[&Telemetry], side: Side) -> Option<wire::Tracing> {
        let entries: Vec<_> = levels
            .iter()
            .filter_map(|level| level.tracing(side))
            .collect();
        if entries.is_empty() {
            return None;
        }
        let narrowest = || entries.iter().rev();
        if narrowest().find_map(|entry| entry.disabled) == Some(true) {
            return None;
        }
        let named = narrowest().find_map(|entry| entry.provider.as_deref());
        let provider = named.or_else(|| self.providers.default_collector())?;
        let (service, port) = self.collector(provider).ok()?;
        Some(wire::Tracing {
            provider: provider.to_owned(),
            collector: self.backend_name(&service, port),
            sampling: narrowest()
                .find_map(|entry| entry.sampling)
                .unwrap_or(DEFAULT_SAMPLING),
            tags: narrowest()
                .find_map(|entry| entry.tags.clone())
                .unwrap_or_default(),
        })
    }

    /// The Service and port of a collector.
    fn collector(&self, name: &str) -> Result<(NsName, u16), Unusable> {
        let collector = self.providers.collector(name)?;
        let service = self.service_of_provider(name, collector)?;
        Ok((service, collector.port))
    }

    /// Status of a Telemetry.
    pub(in crate::index) fn telemetry_status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        let held = self.policies.telemetry.get(&name)?;
        let mut conditions = match held.in_force.targets.is_empty() {
            true => vec![self.untargeted(&name, held)],
            false => self.target_conditions(&name, held, None, WITHOUT_FORMER),
        };
        let mut narrowed = held.in_force.narrowed.clone();
        let lost = self.lost_targets(&name, &held.in_force);
        if lost.len() < held.in_force.targets.len() {
            narrowed.extend(lost);
        }
        narrowed.extend(self.tracing_problems(&name, &held.in_force));
        if !narrowed.is_empty() {
            let narrowed = listed(&narrowed, "; ");
            conditions.push(Condition::no(FULLY_ENFORCED, "UnsupportedValue", narrowed));
        }
        Some(status::status(held, conditions))
    }

    fn untargeted(&self, name: &NsName, held: &Held<Telemetry>) -> Condition {
        if !held.faults.is_empty() {
            let effect = match held.is_former {
                true => status::FORMER,
                false if held.in_force.is_for_nobody => FOR_NOBODY,
                false => WITHOUT_FORMER,
            };
            return status::invalid(&held.faults, effect);
        }
        let selector = &held.in_force.selector;
        // One that wants fewer labels selects the same pods, and more.
        let covers = |policy: &Telemetry| {
            policy.targets.is_empty()
                && policy.selector.is_empty() == selector.is_empty()
                && super::matches(&policy.selector, selector)
        };
        let age = |name: &NsName, held: &Held<Telemetry>| (held.meta.created, name.clone());
        match self.oldest_telemetry(&name.namespace, covers) {
            Some((oldest, _)) if oldest != name => {
                let message = format!(
                    "Telemetry {}/{} is older and for the same, so this one has no effect",
                    oldest.namespace, oldest.name
                );
                Condition::no(ACCEPTED, "Conflicted", message)
            }
            _ => {
                let root = &self.config.root_namespace;
                let mut message = format!(
                    "What it says is reported {}",
                    status::whom(name, !selector.is_empty(), root)
                );
                // A pod can have the labels of two that want different ones.
                let all = in_namespace(&self.policies.telemetry, &name.namespace);
                let overlapping = all.filter(|(other, other_held)| {
                    let policy = &other_held.in_force;
                    !selector.is_empty()
                        && !policy.selector.is_empty()
                        && !policy.is_for_nobody
                        && age(other, other_held) < age(name, held)
                        && are_compatible(&policy.selector, selector)
                });
                let names = overlapping.map(|(other, _)| super::resource_name(other));
                let names: Vec<String> = names.collect();
                if !names.is_empty() {
                    message.push_str(&format!(
                        ", but for those that an older Telemetry selects too: {}",
                        listed(&names, ", ")
                    ));
                }
                Condition::yes(ACCEPTED, "Accepted", message)
            }
        }
    }

    /// The targets of a Telemetry of which an older one counts, with that one.
    fn lost_targets(&self, name: &NsName, policy: &Telemetry) -> Vec<String> {
        let winner = |target: &Target| {
            let names_it = |policy: &Telemetry| policy.targets.contains(target);
            let (winner, _) = self.oldest_telemetry(&name.namespace, names_it)?;
            (winner != name).then_some(winner)
        };
        let lost = policy.targets.iter().filter_map(|target| {
            let NsName { namespace, name } = winner(target)?;
            let (kind, of) = match target {
                Target::Service(of) => ("Service", of),
                Target::Gateway(of) => ("Gateway", of),
                Target::GatewayClass(of) => ("GatewayClass", of),
                Target::Other(_) => return None,
            };
            Some(format!(
                "Telemetry {namespace}/{name} is older and for {kind} {of} too"
            ))
        });
        lost.collect()
    }

    fn tracing_problems(&self, name: &NsName, policy: &Telemetry) -> Vec<String> {
        let mut problems = BTreeSet::new();
        for entry in policy.tracing.iter().filter(|it| it.disabled != Some(true)) {
            let named = entry.provider.as_deref();
            // It can be that of another one for the same, which has a status itself.
            if named.is_none() && self.do_others_name_provider(name) {
                continue;
            }
            let Some(provider) = named.or_else(|| self.providers.default_collector()) else {
                problems.insert(
                    "spec.tracing names no provider, neither does another Telemetry of the namespace or the mesh, and \
                     the mesh's configuration has no defaultProviders.tracing. There are no spans"
                        .to_owned(),
                );
                continue;
            };
            if let Err(unusable) = self.collector(provider) {
                problems.insert(format!("{}. There are no spans", unusable.message));
            }
        }
        problems.into_iter().collect()
    }

    /// Whether another Telemetry of the mesh or of the namespace has a provider for spans.
    fn do_others_name_provider(&self, name: &NsName) -> bool {
        let root = self.config.root_namespace.as_str();
        let namespaces = BTreeSet::from([root, name.namespace.as_str()]);
        let mut all = namespaces
            .into_iter()
            .flat_map(|namespace| in_namespace(&self.policies.telemetry, namespace));
        all.any(|(other, held)| {
            let mut tracing = held.in_force.tracing.iter();
            other != name && tracing.any(|entry| entry.provider.is_some())
        })
    }
}

/// Whether a pod can have all of both.
fn are_compatible(one: &Labels, other: &Labels) -> bool {
    let differs = |(key, value): (&String, &String)| other.get(key).is_some_and(|it| it != value);
    !one.iter().any(differs)
}

fn is_for_all(policy: &Telemetry) -> bool {
    policy.targets.is_empty() && policy.selector.is_empty()
}

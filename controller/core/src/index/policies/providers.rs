//! External authorizers (CUSTOM): what proxies are told of them, and what is said of the policies that ask them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use karst_api::waypoint as wire;

use super::{
    Held, Index, Kind, NsName, resource_name,
    status::ACCEPTED,
    targets::{object_key, targeted},
};
use crate::{
    extension::{ExtensionProviders, Place, Provider, Unusable},
    index::Changes,
    object::{
        authorization::{AuthorizationPolicy, Target, Targeted},
        policy::listed,
        service::Reach,
    },
    proxy::GatewayName,
    status::Condition,
};

/// What a policy is enforced at: what comes through a proxy, as a whole or for one Service.
type Frontend = (GatewayName, Option<NsName>);

/// The providers that are asked at each place, with the policies that ask them.
pub(super) type Meetings = HashMap<Frontend, BTreeMap<String, BTreeSet<String>>>;

/// Name of the provider that a policy asks.
pub(super) fn provider_of(held: &Held<AuthorizationPolicy>) -> Option<&str> {
    targeted(held)?.provider.as_deref()
}

impl Index {
    /// Takes the external authorizers of the mesh's configuration, instead of those of before.
    pub fn set_extension_providers(&mut self, providers: ExtensionProviders) -> Changes {
        let differing = self.providers.differing(&providers);
        let has_new_collectors = self.providers.collectors_differ(&providers);
        self.providers = providers;
        self.providers_changed(|name| differing.contains(name));
        let mut changes = Changes::default();
        if has_new_collectors {
            self.collectors_changed(&mut changes);
        }
        changes.merge(self.flush());
        changes
    }

    /// The external authorizers of the mesh's configuration.
    #[must_use]
    pub fn extension_providers(&self) -> &ExtensionProviders {
        &self.providers
    }

    fn custom_policies(&self) -> impl Iterator<Item = (&NsName, &Held<AuthorizationPolicy>)> {
        let keys = self.policies.custom.iter();
        keys.filter_map(|key| Some((key, self.policies.authorization.get(key)?)))
    }

    /// What proxies are told of policies that ask these may change.
    fn providers_changed(&mut self, is_changed: impl Fn(&str) -> bool) {
        let asking = self.custom_policies();
        let asking = asking.filter(|(_, held)| provider_of(held).is_some_and(&is_changed));
        let asking: Vec<_> = asking
            .map(|(key, held)| (key.clone(), held.clone()))
            .collect();
        for (key, held) in asking {
            self.targets_changed(&key, Some(&held));
        }
    }

    /// A Service came, changed or went: it may be the one of a provider.
    pub(in crate::index) fn provider_service_changed(&mut self, service: &NsName) {
        let hostname = self.config.hostname(&service.namespace, &service.name);
        let all = self.custom_policies();
        let all = all.filter_map(|(_, held)| provider_of(held));
        let names = all.filter(|name| {
            let provider = self.providers.get(name);
            provider.is_ok_and(|provider| provider.place.hostname == hostname)
        });
        let names: BTreeSet<String> = names.map(str::to_owned).collect();
        if !names.is_empty() {
            self.providers_changed(|name| names.contains(name));
        }
    }

    /// Which providers meet at a proxy follows from all policies that ask one.
    pub(in crate::index) fn custom_statuses_changed(&mut self) {
        let keys: Vec<_> = self
            .policies
            .custom
            .iter()
            .map(|key| object_key(Kind::AuthorizationPolicy, key))
            .collect();
        self.l7.dirty.statuses.extend(keys);
    }

    /// The Service and port of a provider.
    fn provider_service(&self, name: &str) -> Result<(&Provider, NsName), Unusable> {
        let provider = self.providers.get(name)?;
        let service = self.service_of_provider(name, &provider.place)?;
        Ok((provider, service))
    }

    /// The Service that a provider is at.
    pub(super) fn service_of_provider(
        &self,
        name: &str,
        place: &Place,
    ) -> Result<NsName, Unusable> {
        let Place {
            namespace,
            hostname,
            port,
        } = place;
        let no = |problem: &str| Unusable {
            reason: "ProviderServiceNotFound",
            message: format!("Extension provider {name:?} is {hostname}:{port}, {problem}"),
        };
        let suffix = format!(".svc.{}", self.config.cluster_domain);
        let service = hostname
            .strip_suffix(suffix.as_str())
            .and_then(|rest| rest.split_once('.'));
        let (own, of) = service
            .filter(|(_, of)| !of.contains('.'))
            .ok_or_else(|| no("which is no Service; write NAME.NAMESPACE.svc.CLUSTER-DOMAIN"))?;
        if namespace.as_ref().is_some_and(|namespace| namespace != of) {
            return Err(no(
                "which is of another namespace than the one before the slash",
            ));
        }
        let key = NsName::new(of, own);
        let service = self.services.get(&key);
        let service = service.filter(|service| service.reach == Reach::Endpoints);
        let service = service.ok_or_else(|| no("and there is no such Service with endpoints"))?;
        if !service.ports.iter().any(|each| each.port == *port) {
            return Err(no("and the Service has no such port"));
        }
        Ok(key)
    }

    /// A provider as proxies get it.
    pub(super) fn extension_provider(&self, name: &str) -> wire::ExtensionProvider {
        match self.provider_service(name) {
            Ok((provider, service)) => wire::ExtensionProvider {
                backend: self.backend_name(&service, provider.place.port),
                ..provider.template.clone()
            },
            Err(unusable) => wire::ExtensionProvider {
                name: name.to_owned(),
                invalid: unusable.reason.to_owned(),
                ..wire::ExtensionProvider::default()
            },
        }
    }

    /// The port of a Service that a policy asks.
    pub(in crate::index) fn asked_by(&self, policy: &str) -> Option<(NsName, u16)> {
        let (namespace, name) = policy.split_once('/')?;
        let key = NsName::new(namespace, name);
        let provider = provider_of(self.policies.authorization.get(&key)?)?;
        let (provider, service) = self.provider_service(provider).ok()?;
        Some((service, provider.place.port))
    }

    /// What is wrong with whom a policy asks.
    pub(super) fn provider_problem(&self, key: &NsName, policy: &Targeted) -> Option<Condition> {
        let name = policy.provider.as_deref()?;
        let effect = "Nobody is asked, and what the policy's rules match is refused";
        if let Err(unusable) = self.provider_service(name) {
            let message = format!("{}. {effect}", unusable.message);
            return Some(Condition::no(ACCEPTED, unusable.reason, message));
        }
        let meetings = self.policies.meetings.get_or_init(|| self.meetings());
        let own = resource_name(key);
        let mut others = BTreeSet::new();
        for place in self.places(key, policy) {
            // One that asks one provider alone is nearly every place.
            let asked = meetings.get(&place).filter(|asked| asked.len() > 1);
            let of_others = asked.into_iter().flatten();
            let of_others = of_others.filter(|(provider, _)| *provider != name);
            others.extend(of_others.flat_map(|(_, policies)| policies));
        }
        others.remove(&own);
        if others.is_empty() {
            return None;
        }
        let others: Vec<String> = others.into_iter().cloned().collect();
        let message = format!(
            "Another provider than {name:?} is asked for the same traffic by {}; there can be one only. {effect}",
            listed(&others, ", ")
        );
        Some(Condition::no(ACCEPTED, "ProviderConflict", message))
    }

    /// Which providers are asked where, and by whom.
    fn meetings(&self) -> Meetings {
        let mut meetings = Meetings::new();
        for (key, held) in self.custom_policies() {
            let Some((targeted, provider)) = targeted(held).zip(provider_of(held)) else {
                continue;
            };
            for place in self.places(key, targeted) {
                let asked = meetings.entry(place).or_default();
                let policies = asked.entry(provider.to_owned()).or_default();
                policies.insert(resource_name(key));
            }
        }
        meetings
    }

    /// Everything that a policy is enforced at: proxies, and there each Service on its own.
    fn places(&self, key: &NsName, policy: &Targeted) -> Vec<Frontend> {
        let mut places = Vec::new();
        let mut whole = |gateway: &GatewayName| {
            if self.class_of_gateway(gateway).is_none() {
                return;
            }
            places.push((gateway.clone(), None));
            let services = self.l7.services_bound_to(gateway);
            places.extend(services.map(|service| (gateway.clone(), Some(service.clone()))));
        };
        let mut services = Vec::new();
        for target in &policy.targets {
            match target {
                Target::Service(name) => {
                    services.push(NsName::new(key.namespace.as_str(), name.as_str()));
                }
                Target::Gateway(name) => {
                    whole(&GatewayName::new(key.namespace.as_str(), name.as_str()));
                }
                Target::GatewayClass(class) if key.namespace == self.config.root_namespace => {
                    let gateways = self.l7.gateways.keys();
                    gateways
                        .filter(|gateway| self.is_of_class(gateway, class))
                        .for_each(&mut whole);
                }
                Target::GatewayClass(_) | Target::Other(_) => {}
            }
        }
        for service in services {
            if let Some(binding) = self.l7.binding_of_service(&service) {
                let gateway = binding.gateway.clone();
                places.push((gateway, Some(service)));
            }
        }
        places
    }
}

//! Layer 7: waypoints and gateways, what they serve, and the statuses of what describes them.
//!
//! Objects come in by [`Index::set_l7`], which only notes what may have changed by it ([`Dirty`]).
//! [`Index::flush`] then works that out in one direction: gateways, routes, services, pods, what each
//! proxy serves, its backends, and statuses. Every step compares its result with the former one and
//! hands on only what differs, so that the work, and what is announced, is as large as the change.

mod backend_tls;
mod backends;
mod binding;
mod gateway;
mod grants;
mod mesh;
mod policy;
mod proxy;
mod routes;
mod status;
mod tls;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub(super) use self::{
    binding::{Binding, BindingState},
    status::WAYPOINT_BOUND,
};
use self::{
    binding::{PodMesh, Waypoint},
    gateway::View,
    mesh::ServiceMesh,
    proxy::Proxy,
    routes::{Compiled, RouteIndex},
};
use super::{Changes, Index, NsName};
use crate::{
    object::{
        Body, Kind, Metadata, ObjectKey,
        backend_tls_policy::BackendTlsPolicy,
        gateway::{Gateway, GatewayClass},
        gateway_api::ParentRef,
        listener_set::ListenerSet,
        namespace::Namespace,
        reference_grant::ReferenceGrant,
        route::{Route, RouteKind},
        service::Service,
        tls_material::TlsMaterial,
        traffic_policy::TrafficPolicy,
    },
    proxy::{GatewayName, ProxyChange, ProxyClass, ProxyKind, ProxyWanted},
    resource::Rendered,
    status::{Condition, ObjectStatus},
};

/// An object as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored<T> {
    pub(super) meta: Metadata,
    pub(super) body: T,
}

/// A route's kind and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RouteKey {
    pub(super) kind: RouteKind,
    pub(super) name: NsName,
}

impl RouteKey {
    /// Name of the Route resource.
    pub(super) fn resource_name(&self) -> String {
        let NsName { namespace, name } = &self.name;
        format!("{}/{namespace}/{name}", self.kind.kind().name())
    }

    /// Whether its rules are for requests, not connections.
    pub(super) fn is_http(&self) -> bool {
        matches!(self.kind, RouteKind::Grpc | RouteKind::Http)
    }

    pub(super) fn object(&self) -> ObjectKey {
        ObjectKey {
            kind: self.kind.kind(),
            namespace: self.name.namespace.clone(),
            name: self.name.name.clone(),
        }
    }
}

/// Objects of the Gateway API, and what is made of them.
#[derive(Debug, Default)]
pub(super) struct L7 {
    pub(super) classes: BTreeMap<String, Stored<GatewayClass>>,
    pub(super) gateways: BTreeMap<GatewayName, Stored<Gateway>>,
    pub(super) listener_sets: BTreeMap<NsName, Stored<ListenerSet>>,
    pub(super) grants: BTreeMap<NsName, ReferenceGrant>,
    pub(super) secrets: BTreeMap<NsName, TlsMaterial>,
    pub(super) config_maps: BTreeMap<NsName, TlsMaterial>,
    pub(super) backend_tls: BTreeMap<NsName, Stored<BackendTlsPolicy>>,
    pub(super) policies: BTreeMap<NsName, Stored<TrafficPolicy>>,
    pub(super) routes: BTreeMap<RouteKey, Stored<Route>>,
    pub(super) dirty: Dirty,
    /// What our Gateways listen on.
    views: BTreeMap<GatewayName, View>,
    /// The condition `SupportedVersion` of our GatewayClasses, once it is known.
    supported_version: Option<Condition>,
    compiled: BTreeMap<RouteKey, Compiled>,
    route_index: RouteIndex,
    waypoints: BTreeMap<GatewayName, Waypoint>,
    /// Services about which there is anything to say.
    services: BTreeMap<NsName, ServiceMesh>,
    /// Pods about which there is anything to say.
    pods: BTreeMap<NsName, PodMesh>,
    /// Services that ask for a waypoint.
    bound_services: BTreeMap<GatewayName, BTreeSet<NsName>>,
    /// Pods that ask for a waypoint.
    bound_pods: BTreeMap<GatewayName, BTreeSet<NsName>>,
    /// Pods that a waypoint takes the traffic of.
    served_pods: BTreeMap<GatewayName, BTreeSet<NsName>>,
    /// Proxies that have backends of a Service.
    backend_users: BTreeMap<NsName, BTreeSet<GatewayName>>,
    proxies: BTreeMap<GatewayName, Proxy>,
    statuses: BTreeMap<ObjectKey, ObjectStatus>,
    wanted: BTreeMap<GatewayName, ProxyWanted>,
}

/// What may have changed since the last flush.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    /// What a Gateway is and what it listens on.
    pub(super) gateways: BTreeSet<GatewayName>,
    /// What a route says, and what it refers to.
    pub(super) routes: BTreeSet<RouteKey>,
    /// Binding, routes and need of a service.
    pub(super) services: BTreeSet<NsName>,
    /// Binding of a pod.
    pub(super) pods: BTreeSet<NsName>,
    /// What a proxy serves.
    pub(super) proxies: BTreeSet<GatewayName>,
    /// Backends of a service: endpoints, policies, TLS.
    pub(super) backends: BTreeSet<NsName>,
    /// Statuses.
    pub(super) statuses: BTreeSet<ObjectKey>,
}

/// A port of a Service as a destination.
pub(super) type BackendKey = (NsName, u16);

impl L7 {
    /// The waypoint that a Service asks for.
    pub(super) fn binding_of_service(&self, service: &NsName) -> Option<&Binding> {
        self.services.get(service)?.binding.as_ref()
    }

    /// Services that ask for a waypoint.
    pub(super) fn services_bound_to(
        &self,
        gateway: &GatewayName,
    ) -> impl Iterator<Item = &NsName> + use<'_> {
        self.bound_services.get(gateway).into_iter().flatten()
    }

    /// The waypoint that takes the traffic to a pod's own addresses.
    pub(super) fn server_of_pod(&self, pod: &NsName) -> Option<GatewayName> {
        self.pods.get(pod)?.served_by().cloned()
    }

    /// Namespaces with pods that a waypoint takes the traffic of.
    fn served_namespaces(&self, gateway: &GatewayName) -> BTreeSet<&str> {
        let pods = self.served_pods.get(gateway).into_iter().flatten();
        pods.map(|pod| pod.namespace.as_str()).collect()
    }

    /// Whether a waypoint takes the traffic of any pod of a namespace.
    fn is_namespace_served(&self, gateway: &GatewayName, namespace: &str) -> bool {
        self.served_pods.get(gateway).is_some_and(|pods| {
            let mut from = pods.range(NsName::new(namespace, "")..);
            from.next().is_some_and(|pod| pod.namespace == namespace)
        })
    }

    /// Everything that comes through a proxy may have other policies: its own ports, services and pods.
    pub(super) fn proxy_policies_changed(&mut self, gateway: GatewayName) {
        let services = self.bound_services.get(&gateway).into_iter().flatten();
        self.dirty.services.extend(services.cloned());
        let pods = self.served_pods.get(&gateway).into_iter().flatten();
        self.dirty.pods.extend(pods.cloned());
        self.dirty.proxies.insert(gateway);
    }

    pub(super) fn object_count(&self, kind: Kind) -> usize {
        match kind {
            Kind::GatewayClass => self.classes.len(),
            Kind::Gateway => self.gateways.len(),
            Kind::ListenerSet => self.listener_sets.len(),
            Kind::ReferenceGrant => self.grants.len(),
            Kind::Secret => self.secrets.len(),
            Kind::ConfigMap => self.config_maps.len(),
            Kind::BackendTlsPolicy => self.backend_tls.len(),
            Kind::BackendTrafficPolicy => self.policies.len(),
            kind => match RouteKind::of(kind) {
                Some(of) => self.routes.keys().filter(|key| key.kind == of).count(),
                None => 0,
            },
        }
    }
}

/// Stores an object or forgets it. Whether that changed anything.
fn put<K: Ord, V: PartialEq>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) -> bool {
    match value {
        Some(value) if map.get(&key) == Some(&value) => false,
        Some(value) => {
            map.insert(key, value);
            true
        }
        None => map.remove(&key).is_some(),
    }
}

fn link<K: Ord + Clone, V: Ord + Clone>(map: &mut BTreeMap<K, BTreeSet<V>>, from: &K, to: &V) {
    map.entry(from.clone()).or_default().insert(to.clone());
}

fn unlink<K: Ord, V: Ord>(map: &mut BTreeMap<K, BTreeSet<V>>, from: &K, to: &V) {
    if let Some(all) = map.get_mut(from) {
        all.remove(to);
        if all.is_empty() {
            map.remove(from);
        }
    }
}

impl Index {
    /// A resource of the proxy of a Gateway.
    #[must_use]
    pub fn proxy_resource(
        &self,
        gateway: &GatewayName,
        kind: ProxyKind,
        name: &str,
    ) -> Option<&Arc<Rendered>> {
        self.l7.proxies.get(gateway)?.of(kind).get(name)
    }

    /// All resources of a kind for the proxy of a Gateway, by name.
    pub fn proxy_resources(
        &self,
        gateway: &GatewayName,
        kind: ProxyKind,
    ) -> impl Iterator<Item = &Arc<Rendered>> {
        let proxy = self.l7.proxies.get(gateway).into_iter();
        proxy.flat_map(move |proxy| proxy.of(kind).values())
    }

    /// Gateways of our classes whose proxies run as that service account. Normally one at most: the account
    /// has the Gateway's name.
    #[must_use]
    pub fn gateways_of_account(&self, namespace: &str, service_account: &str) -> Vec<GatewayName> {
        let name = GatewayName::new(namespace, service_account);
        let class = self.gateway_class(&name);
        let own = class.filter(|_| !name.shares_its_account());
        own.map(|_| name).into_iter().collect()
    }

    /// The status that an object should have; `None` if it is not ours to write.
    #[must_use]
    pub fn status(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        let own = self.l7.statuses.get(key);
        own.or_else(|| self.policy_status(key))
            .or_else(|| self.entry_status(key))
            .cloned()
    }

    /// What should run for a Gateway; `None`: nothing, as it is gone, or not ours.
    #[must_use]
    pub fn proxy_wanted(&self, gateway: &GatewayName) -> Option<ProxyWanted> {
        self.l7.wanted.get(gateway).cloned()
    }

    /// What a Gateway is for; `None` if there is none of that name, or it is not ours.
    pub(super) fn class_of_gateway(&self, gateway: &GatewayName) -> Option<ProxyClass> {
        self.gateway_class(gateway)
    }

    /// What Gateways of a class are for; `None` if the class is not ours.
    pub(super) fn l7_class(&self, class: &str) -> Option<ProxyClass> {
        self.class_of(class)
    }

    /// Stores an object of a kind that concerns waypoints and gateways, or forgets it.
    pub(super) fn set_l7(&mut self, key: &ObjectKey, meta: Metadata, body: Option<Body>) {
        let name = NsName::new(key.namespace.as_str(), key.name.as_str());
        macro_rules! taken {
            ($variant:path) => {
                match body {
                    Some($variant(body)) => Some(Stored { meta, body }),
                    _ => None,
                }
            };
            ($variant:path, boxed) => {
                match body {
                    Some($variant(body)) => Some(Stored { meta, body: *body }),
                    _ => None,
                }
            };
        }
        match key.kind {
            Kind::GatewayClass => self.set_class(name.name, taken!(Body::GatewayClass)),
            Kind::Gateway => {
                let gateway = GatewayName::new(name.namespace, name.name);
                self.set_gateway(gateway, taken!(Body::Gateway, boxed));
            }
            Kind::ListenerSet => self.set_listener_set(name, taken!(Body::ListenerSet, boxed)),
            Kind::ReferenceGrant => {
                let grant = taken!(Body::ReferenceGrant);
                self.set_grant(name, grant.map(|stored| stored.body));
            }
            Kind::Secret => {
                let secret = taken!(Body::Secret).and_then(|stored| stored.body);
                self.set_secret(name, secret.map(|material| *material));
            }
            Kind::ConfigMap => {
                let map = taken!(Body::ConfigMap).and_then(|stored| stored.body);
                self.set_config_map(name, map.map(|material| *material));
            }
            Kind::BackendTlsPolicy => {
                self.set_backend_tls(name, taken!(Body::BackendTlsPolicy, boxed));
            }
            Kind::BackendTrafficPolicy => {
                self.set_traffic_policy(name, taken!(Body::BackendTrafficPolicy, boxed));
            }
            kind => {
                if let Some(kind) = RouteKind::of(kind) {
                    self.set_route(RouteKey { kind, name }, taken!(Body::Route, boxed));
                }
            }
        }
    }

    /// Works out what waypoints and gateways make of what was staged.
    pub fn flush(&mut self) -> Changes {
        let mut changes = Changes::default();
        self.flush_gateways(&mut changes);
        self.flush_routes();
        self.flush_services(&mut changes);
        self.flush_pods(&mut changes);
        self.flush_proxies(&mut changes);
        self.flush_backends(&mut changes);
        self.flush_statuses(&mut changes);
        // Last, because it looks at all addresses.
        self.flush_entries(&mut changes);
        changes
    }
}

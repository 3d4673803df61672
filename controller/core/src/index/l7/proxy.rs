//! What each proxy is served.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use karst_api::{convert::address_bytes, waypoint as wire};

use super::{
    BackendKey, Changes, GatewayName, Index, NsName, ProxyChange, ProxyKind, Rendered, RouteKey,
    backends, mesh::RouteSets,
};
use crate::{object::service::ServicePort, proxy::ProxyClass};

/// Resources of a proxy, by name, and what they depend on.
#[derive(Debug, Default)]
pub(super) struct Proxy {
    pub(super) listeners: BTreeMap<String, Arc<Rendered>>,
    pub(super) routes: BTreeMap<String, Arc<Rendered>>,
    pub(super) backends: BTreeMap<String, Arc<Rendered>>,
    pub(super) secrets: BTreeMap<String, Arc<Rendered>>,
    pub(super) policies: BTreeMap<String, Arc<Rendered>>,
    pub(super) authentications: BTreeMap<String, Arc<Rendered>>,
    /// Each backend, with the names of the TlsSecrets that it refers to.
    pub(super) backend_keys: BTreeMap<BackendKey, BTreeSet<String>>,
    /// Names of the TlsSecrets that its listeners refer to.
    listener_secrets: BTreeSet<String>,
}

/// What a proxy serves, before its backends are looked up.
#[derive(Default)]
struct Served {
    listeners: BTreeMap<String, wire::Listener>,
    routes: BTreeSet<RouteKey>,
    backends: BTreeSet<BackendKey>,
    secrets: BTreeSet<String>,
    /// Services, whose policies are needed.
    services: BTreeSet<NsName>,
}

/// How names of listeners for workloads begin; these come and go with their pods.
const WORKLOAD_PREFIX: &str = "workload/";

impl Proxy {
    pub(super) fn of(&self, kind: ProxyKind) -> &BTreeMap<String, Arc<Rendered>> {
        match kind {
            ProxyKind::Listener => &self.listeners,
            ProxyKind::Route => &self.routes,
            ProxyKind::Backend => &self.backends,
            ProxyKind::TlsSecret => &self.secrets,
            ProxyKind::AuthorizationPolicy => &self.policies,
            ProxyKind::RequestAuthentication => &self.authentications,
        }
    }

    fn of_mut(&mut self, kind: ProxyKind) -> &mut BTreeMap<String, Arc<Rendered>> {
        match kind {
            ProxyKind::Listener => &mut self.listeners,
            ProxyKind::Route => &mut self.routes,
            ProxyKind::Backend => &mut self.backends,
            ProxyKind::TlsSecret => &mut self.secrets,
            ProxyKind::AuthorizationPolicy => &mut self.policies,
            ProxyKind::RequestAuthentication => &mut self.authentications,
        }
    }
}

impl Index {
    pub(super) fn flush_gateways(&mut self, changes: &mut Changes) {
        for gateway in std::mem::take(&mut self.l7.dirty.gateways) {
            self.refresh_view(&gateway);
            self.refresh_waypoint(&gateway);
            self.gateway_policies_changed(&gateway);
            let wanted = self.wanted_for(&gateway);
            if self.l7.wanted.get(&gateway) != wanted.as_ref() {
                match wanted {
                    Some(wanted) => self.l7.wanted.insert(gateway.clone(), wanted),
                    None => self.l7.wanted.remove(&gateway),
                };
                changes.workloads_wanted.insert(gateway.clone());
            }
            self.l7.dirty.proxies.insert(gateway);
        }
    }

    pub(super) fn flush_proxies(&mut self, changes: &mut Changes) {
        for gateway in std::mem::take(&mut self.l7.dirty.proxies) {
            let Some(class) = self.gateway_class(&gateway) else {
                self.remove_proxy(&gateway, changes);
                continue;
            };
            let mut served = match class {
                ProxyClass::Waypoint => self.served_by_waypoint(&gateway),
                ProxyClass::Gateway => self.served_by_gateway(&gateway),
            };
            for route in &served.routes {
                if let Some(compiled) = self.l7.compiled.get(route) {
                    served.backends.extend(compiled.backends.iter().cloned());
                }
            }
            self.put_authentications(&gateway, class, &served.services, changes);
            let asked = self.put_policies(&gateway, class, &served.services, changes);
            served.backends.extend(asked);
            let collectors = self.collectors_at(&gateway, class, &served);
            served.backends.extend(collectors);
            self.put_listeners(&gateway, served.listeners, changes);
            self.put_routes(&gateway, &served.routes, changes);
            self.put_backends(&gateway, served.backends, changes);
            if let Some(proxy) = self.l7.proxies.get_mut(&gateway) {
                proxy.listener_secrets = served.secrets;
            }
            self.put_secrets(&gateway, changes);
        }
    }

    /// Where a proxy sends spans: its own, and those of each Service and of pods that it serves.
    fn collectors_at(
        &self,
        gateway: &GatewayName,
        class: ProxyClass,
        served: &Served,
    ) -> BTreeSet<BackendKey> {
        if !self.has_telemetries() {
            return BTreeSet::new();
        }
        let mut namespaces = self.l7.served_namespaces(gateway);
        namespaces.insert(&gateway.namespace);
        let own = namespaces.into_iter().map(|namespace| (namespace, None));
        let services = served.services.iter();
        let services = services.map(|key| (key.namespace.as_str(), Some(key)));
        let reporting = own.chain(services).filter_map(|(namespace, service)| {
            self.telemetry_at(gateway, class, namespace, service)
        });
        reporting
            .filter_map(|reporting| self.collector_of(&reporting))
            .collect()
    }

    fn served_by_gateway(&self, gateway: &GatewayName) -> Served {
        let sockets = self.gateway_sockets(gateway);
        let listeners = sockets.listeners.into_iter();
        Served {
            listeners: listeners.map(|each| (each.name.clone(), each)).collect(),
            routes: sockets.routes,
            backends: BTreeSet::new(),
            secrets: sockets.secrets,
            services: BTreeSet::new(),
        }
    }

    fn served_by_waypoint(&self, gateway: &GatewayName) -> Served {
        let mut served = Served::default();
        let bound = self.l7.bound_services.get(gateway).into_iter().flatten();
        for key in bound {
            let (Some(mesh), Some(service)) = (self.l7.services.get(key), self.services.get(key))
            else {
                continue;
            };
            let usable = mesh
                .binding
                .as_ref()
                .is_some_and(super::binding::Binding::is_usable);
            if !usable || mesh.in_force.as_ref() != Some(gateway) {
                continue;
            }
            served.services.insert(key.clone());
            for port in &service.ports {
                let none = RouteSets::new();
                let sets = mesh.routes.get(&port.port).unwrap_or(&none);
                let listener = self.service_listener(gateway, key, port, sets);
                served.listeners.insert(listener.name.clone(), listener);
                served.routes.extend(sets.values().flatten().cloned());
                served.backends.insert((key.clone(), port.port));
            }
        }
        served
    }

    fn service_listener(
        &self,
        gateway: &GatewayName,
        key: &NsName,
        port: &ServicePort,
        sets: &RouteSets,
    ) -> wire::Listener {
        let hostname = self.config.hostname(&key.namespace, &key.name);
        let service = self.services.get(key);
        let vips = service.into_iter().flat_map(|service| &service.vips);
        let sets = sets.iter().map(|(clients, routes)| wire::RouteSet {
            client_namespace: clients.clone(),
            routes: routes.iter().map(attached).collect(),
        });
        let backend = self.backend_name(key, port.port);
        wire::Listener {
            name: format!("service/{backend}"),
            frontend: Some(wire::listener::Frontend::Service(wire::ServiceFrontend {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                hostname,
                addresses: vips.copied().map(address_bytes).collect(),
                port: port.port.into(),
                protocol: backends::protocol(port.app_protocol).into(),
                backend,
                route_sets: sets.collect(),
                policies: self.policies_at(gateway, ProxyClass::Waypoint, Some(key)),
                authentications: self.authentications_at(gateway, ProxyClass::Waypoint, Some(key)),
                telemetry: self.telemetry_at(
                    gateway,
                    ProxyClass::Waypoint,
                    &key.namespace,
                    Some(key),
                ),
            })),
        }
    }

    fn put_listeners(
        &mut self,
        gateway: &GatewayName,
        listeners: BTreeMap<String, wire::Listener>,
        changes: &mut Changes,
    ) {
        let rendered = listeners.into_iter().map(|(name, listener)| {
            let rendered = Arc::new(Rendered::new(name.clone(), Vec::new(), &listener));
            (name, rendered)
        });
        let mut wanted: BTreeMap<String, Arc<Rendered>> = rendered.collect();
        if let Some(proxy) = self.l7.proxies.get(gateway) {
            let workloads = proxy.listeners.range(WORKLOAD_PREFIX.to_owned()..);
            let workloads = workloads.take_while(|(name, _)| name.starts_with(WORKLOAD_PREFIX));
            wanted.extend(workloads.map(|(name, rendered)| (name.clone(), rendered.clone())));
        }
        self.put_all(gateway, ProxyKind::Listener, wanted, changes);
    }

    /// Renders the listener of a waypoint for a pod, or removes it.
    pub(super) fn put_workload_listener(
        &mut self,
        gateway: &GatewayName,
        pod: &NsName,
        changes: &mut Changes,
    ) {
        let uid = self.config.pod_workload_uid(&pod.namespace, &pod.name);
        let name = format!("{WORKLOAD_PREFIX}{uid}");
        let listener = self.workload_listener(gateway, pod);
        let rendered =
            listener.map(|listener| Arc::new(Rendered::new(name.clone(), Vec::new(), &listener)));
        self.put_one(gateway, ProxyKind::Listener, name, rendered, changes);
    }

    fn put_routes(
        &mut self,
        gateway: &GatewayName,
        routes: &BTreeSet<RouteKey>,
        changes: &mut Changes,
    ) {
        let compiled = routes
            .iter()
            .filter_map(|route| self.l7.compiled.get(route));
        let wanted = compiled
            .map(|compiled| (compiled.rendered.name.clone(), compiled.rendered.clone()))
            .collect();
        self.put_all(gateway, ProxyKind::Route, wanted, changes);
    }

    fn put_backends(
        &mut self,
        gateway: &GatewayName,
        wanted: BTreeSet<BackendKey>,
        changes: &mut Changes,
    ) {
        let former = self.l7.proxies.get(gateway);
        let former = former.map(|proxy| proxy.backend_keys.keys().cloned());
        let former: BTreeSet<BackendKey> = former.into_iter().flatten().collect();
        for key in former.difference(&wanted) {
            let name = self.backend_name(&key.0, key.1);
            self.put_one(gateway, ProxyKind::Backend, name, None, changes);
            if let Some(proxy) = self.l7.proxies.get_mut(gateway) {
                proxy.backend_keys.remove(key);
            }
        }
        let services = |keys: &BTreeSet<BackendKey>| {
            let services = keys.iter().map(|(service, _)| service.clone());
            services.collect::<BTreeSet<NsName>>()
        };
        let (before, now) = (services(&former), services(&wanted));
        for service in before.difference(&now) {
            super::unlink(&mut self.l7.backend_users, service, gateway);
            self.backend_tls_changed(service);
        }
        for service in now.difference(&before) {
            super::link(&mut self.l7.backend_users, service, gateway);
            self.backend_tls_changed(service);
        }
        // Those that were there before are rendered again when they themselves are concerned.
        for key in wanted.difference(&former) {
            self.put_backend(gateway, key, changes);
        }
    }

    fn put_backend(&mut self, gateway: &GatewayName, key: &BackendKey, changes: &mut Changes) {
        let (backend, secrets) = self.backend(gateway, key);
        let name = backend.name.clone();
        let rendered = Arc::new(Rendered::new(name.clone(), Vec::new(), &backend));
        let proxy = self.l7.proxies.entry(gateway.clone()).or_default();
        proxy.backend_keys.insert(key.clone(), secrets);
        self.put_one(gateway, ProxyKind::Backend, name, Some(rendered), changes);
    }

    /// Policies of a proxy: those that its listeners name. Returns the backends that they ask.
    fn put_policies(
        &mut self,
        gateway: &GatewayName,
        class: ProxyClass,
        services: &BTreeSet<NsName>,
        changes: &mut Changes,
    ) -> BTreeSet<BackendKey> {
        let mut names: BTreeSet<String> =
            self.policies_at(gateway, class, None).into_iter().collect();
        for service in services {
            names.extend(self.policies_at(gateway, class, Some(service)));
        }
        let asked = names.iter().filter_map(|name| self.asked_by(name));
        let asked = asked.collect();
        let rendered = names.into_iter().filter_map(|name| {
            let policy = self.request_policy(&name)?;
            let rendered = Rendered::new(name.clone(), Vec::new(), &policy);
            Some((name, Arc::new(rendered)))
        });
        let wanted = rendered.collect();
        self.put_all(gateway, ProxyKind::AuthorizationPolicy, wanted, changes);
        asked
    }

    /// Likewise for whose tokens count.
    fn put_authentications(
        &mut self,
        gateway: &GatewayName,
        class: ProxyClass,
        services: &BTreeSet<NsName>,
        changes: &mut Changes,
    ) {
        let own = self.authentications_at(gateway, class, None);
        let mut names: BTreeSet<String> = own.into_iter().collect();
        for service in services {
            names.extend(self.authentications_at(gateway, class, Some(service)));
        }
        let rendered = names.into_iter().filter_map(|name| {
            let message = self.request_authentication(&name)?;
            let rendered = Rendered::new(name.clone(), Vec::new(), &message);
            Some((name, Arc::new(rendered)))
        });
        let wanted = rendered.collect();
        self.put_all(gateway, ProxyKind::RequestAuthentication, wanted, changes);
    }

    pub(super) fn flush_backends(&mut self, changes: &mut Changes) {
        for service in std::mem::take(&mut self.l7.dirty.backends) {
            let users = self.l7.backend_users.get(&service).cloned();
            for gateway in users.unwrap_or_default() {
                let Some(proxy) = self.l7.proxies.get(&gateway) else {
                    continue;
                };
                let keys = proxy.backend_keys.range((service.clone(), 0)..);
                let keys = keys.take_while(|((of, _), _)| *of == service);
                let keys: Vec<BackendKey> = keys.map(|(key, _)| key.clone()).collect();
                for key in &keys {
                    self.put_backend(&gateway, key, changes);
                }
                self.put_secrets(&gateway, changes);
            }
        }
    }

    fn put_secrets(&mut self, gateway: &GatewayName, changes: &mut Changes) {
        let Some(proxy) = self.l7.proxies.get(gateway) else {
            return;
        };
        let names = proxy.backend_keys.values().flatten();
        let names = names.chain(&proxy.listener_secrets);
        let wanted = names.filter_map(|name| {
            let secret = self.tls_secret(name)?;
            let rendered = Rendered::new(name.clone(), Vec::new(), &secret);
            Some((name.clone(), Arc::new(rendered)))
        });
        let wanted = wanted.collect();
        self.put_all(gateway, ProxyKind::TlsSecret, wanted, changes);
    }

    fn put_all(
        &mut self,
        gateway: &GatewayName,
        kind: ProxyKind,
        wanted: BTreeMap<String, Arc<Rendered>>,
        changes: &mut Changes,
    ) {
        let proxy = self.l7.proxies.entry(gateway.clone()).or_default();
        let held = proxy.of(kind).keys();
        let gone = held.filter(|name| !wanted.contains_key(*name));
        let gone: Vec<String> = gone.cloned().collect();
        for name in gone {
            self.put_one(gateway, kind, name, None, changes);
        }
        for (name, rendered) in wanted {
            self.put_one(gateway, kind, name, Some(rendered), changes);
        }
    }

    fn put_one(
        &mut self,
        gateway: &GatewayName,
        kind: ProxyKind,
        name: String,
        rendered: Option<Arc<Rendered>>,
        changes: &mut Changes,
    ) {
        if rendered.is_none() && !self.l7.proxies.contains_key(gateway) {
            return;
        }
        let proxy = self.l7.proxies.entry(gateway.clone()).or_default();
        let held = proxy.of_mut(kind);
        match (held.get(&name), rendered) {
            (None, None) => return,
            (Some(former), Some(now)) if former.version == now.version => return,
            (_, Some(now)) => held.insert(name.clone(), now),
            (Some(_), None) => held.remove(&name),
        };
        changes.proxies.insert(ProxyChange {
            gateway: gateway.clone(),
            kind,
            name,
        });
    }

    fn remove_proxy(&mut self, gateway: &GatewayName, changes: &mut Changes) {
        let Some(proxy) = self.l7.proxies.remove(gateway) else {
            return;
        };
        for (service, _) in proxy.backend_keys.keys() {
            super::unlink(&mut self.l7.backend_users, service, gateway);
            self.backend_tls_changed(service);
        }
        for kind in [
            ProxyKind::Listener,
            ProxyKind::Route,
            ProxyKind::Backend,
            ProxyKind::TlsSecret,
            ProxyKind::AuthorizationPolicy,
            ProxyKind::RequestAuthentication,
        ] {
            let names = proxy.of(kind).keys().cloned();
            changes.proxies.extend(names.map(|name| ProxyChange {
                gateway: gateway.clone(),
                kind,
                name,
            }));
        }
    }
}

/// In the mesh a route is for all host names.
fn attached(route: &RouteKey) -> wire::AttachedRoute {
    wire::AttachedRoute {
        route: route.resource_name(),
        hostnames: Vec::new(),
    }
}

//! GatewayClasses, Gateways and ListenerSets: what is listened on, what is attached, what shall run.

mod addresses;
mod attach;
mod conflicts;
mod sockets;
mod status;
mod view;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use karst_api::waypoint as wire;

pub(super) use self::view::{Fault, View};
use super::{Changes, Index, NsName, RouteKey, Stored, put};
use crate::{
    labels::Labels,
    object::{
        Kind, ObjectKey,
        gateway::{Gateway, GatewayClass},
        listener_set::ListenerSet,
    },
    proxy::{GatewayName, ProxyClass},
    status::Condition,
};

/// What the proxy of a gateway serves on ports of its own.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// One for each port.
    pub(super) listeners: Vec<wire::Listener>,
    /// Routes that they refer to.
    pub(super) routes: BTreeSet<RouteKey>,
    /// Names of the TlsSecrets that they refer to.
    pub(super) secrets: BTreeSet<String>,
}

/// How a route stands with a Gateway or ListenerSet that it names as parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attachment {
    /// What the parent belongs to.
    pub(super) class: ProxyClass,
    /// The condition `Accepted`, as far as the parent decides it.
    pub(super) accepted: Condition,
}

impl Index {
    pub(super) fn set_class(&mut self, name: String, class: Option<Stored<GatewayClass>>) {
        if put(&mut self.l7.classes, name.clone(), class) {
            let gateways = self.l7.gateways.iter();
            let of_class = gateways.filter(|(_, gateway)| gateway.body.class == name);
            let of_class: Vec<GatewayName> = of_class.map(|(key, _)| key.clone()).collect();
            self.l7.dirty.gateways.extend(of_class);
            self.l7.dirty.statuses.insert(ObjectKey {
                kind: Kind::GatewayClass,
                namespace: String::new(),
                name,
            });
        }
    }

    pub(super) fn set_gateway(&mut self, name: GatewayName, gateway: Option<Stored<Gateway>>) {
        if put(&mut self.l7.gateways, name.clone(), gateway) {
            self.l7.dirty.gateways.insert(name);
        }
    }

    pub(super) fn set_listener_set(&mut self, name: NsName, set: Option<Stored<ListenerSet>>) {
        let former = self.l7.listener_sets.get(&name);
        let former = former.and_then(|former| self.gateway_of_set(&name, &former.body.parent));
        if !put(&mut self.l7.listener_sets, name.clone(), set) {
            return;
        }
        let now = self.l7.listener_sets.get(&name);
        let now = now.and_then(|now| self.gateway_of_set(&name, &now.body.parent));
        self.l7.dirty.gateways.extend(former.into_iter().chain(now));
        // Routes may have named it before it was there, and others keep its name when it is gone.
        let routes: Vec<RouteKey> = self.routes_naming("ListenerSet", &name);
        self.l7.dirty.routes.extend(routes);
        self.l7.dirty.statuses.insert(ObjectKey {
            kind: Kind::ListenerSet,
            namespace: name.namespace,
            name: name.name,
        });
    }

    /// Routes with a parent of that kind and name.
    fn routes_naming(&self, kind: &str, name: &NsName) -> Vec<RouteKey> {
        let routes = self.l7.routes.iter();
        let naming = routes.filter(|(key, route)| {
            route.body.parents.iter().any(|parent| {
                parent.group_kind() == (Kind::Gateway.group(), kind)
                    && parent.name == name.name
                    && parent.namespace(&key.name.namespace) == name.namespace
            })
        });
        naming.map(|(key, _)| key.clone()).collect()
    }

    /// What Gateways of a class are for; `None` if the class is not ours. Ours are there even before, or
    /// without, an object that says so.
    pub(super) fn class_of(&self, class: &str) -> Option<ProxyClass> {
        let ours = [ProxyClass::Waypoint, ProxyClass::Gateway];
        match self.l7.classes.get(class) {
            Some(found) => ours
                .into_iter()
                .find(|each| each.controller() == found.body.controller),
            None => ours.into_iter().find(|each| each.class_name() == class),
        }
    }

    /// What a Gateway is for; `None` if there is none of that name, or it is not ours.
    pub(super) fn gateway_class(&self, gateway: &GatewayName) -> Option<ProxyClass> {
        self.class_of(&self.l7.gateways.get(gateway)?.body.class)
    }

    /// Works out anew what a Gateway listens on, and notes what may change by it.
    pub(super) fn refresh_view(&mut self, gateway: &GatewayName) {
        let now = self.gateway_view(gateway);
        let former = match &now {
            Some(now) => self.l7.views.insert(gateway.clone(), now.clone()),
            None => self.l7.views.remove(gateway),
        };
        self.gateway_state_changed(gateway, former.as_ref());
        if former == now {
            return;
        }
        self.l7.dirty.proxies.insert(gateway.clone());
        if former.as_ref().map(|view| &view.client_certificate)
            != now.as_ref().map(|view| &view.client_certificate)
        {
            self.client_certificate_changed();
        }
        self.note_routes(gateway, former.as_ref(), now.as_ref());
    }

    /// Notes the routes that may stand differently with a Gateway that listens on something else now.
    fn note_routes(&mut self, gateway: &GatewayName, former: Option<&View>, now: Option<&View>) {
        if let (Some(former), Some(now)) = (former, now)
            && former.has_same_listeners(now)
        {
            let routes = former.differing_routes(now);
            self.l7
                .dirty
                .statuses
                .extend(routes.iter().map(RouteKey::object));
            return;
        }
        let name = NsName::new(gateway.namespace.as_str(), gateway.name.as_str());
        let mut routes = self.routes_naming("Gateway", &name);
        for set in [former, now]
            .into_iter()
            .flatten()
            .flat_map(|view| view.sets.keys())
        {
            routes.extend(self.routes_naming("ListenerSet", set));
        }
        let dirty = &mut self.l7.dirty;
        if former.map(|view| view.class) == now.map(|view| view.class) {
            dirty.statuses.extend(routes.iter().map(RouteKey::object));
        } else {
            // Whether it is a Gateway of theirs at all is part of what is worked out for routes.
            dirty.routes.extend(routes);
        }
    }

    /// A Gateway has, or is about to have, other pods, another Service or other listeners than the `former`
    /// ones: what is said of it and its ListenerSets may change.
    fn gateway_state_changed(&mut self, gateway: &GatewayName, former: Option<&View>) {
        let views = [former, self.l7.views.get(gateway)].into_iter().flatten();
        let sets = views.flat_map(|view| view.sets.keys());
        let sets = sets.map(|set| ObjectKey {
            kind: Kind::ListenerSet,
            namespace: set.namespace.clone(),
            name: set.name.clone(),
        });
        let own = ObjectKey {
            kind: Kind::Gateway,
            namespace: gateway.namespace.clone(),
            name: gateway.name.clone(),
        };
        self.l7.dirty.statuses.extend(sets.chain([own]));
    }

    /// A pod has changed, or is about to.
    pub(super) fn gateway_pod_changed(&mut self, key: &NsName) {
        let entry = self.pods.get(key);
        if let Some((gateway, _)) = entry.and_then(|entry| self.proxy_of_pod(key, &entry.pod)) {
            self.gateway_state_changed(&gateway, None);
        }
    }

    /// A Service is about to change.
    pub(super) fn gateway_service_changed(&mut self, key: &NsName) {
        let gateway = GatewayName::new(key.namespace.as_str(), key.name.as_str());
        if self.l7.views.contains_key(&gateway) {
            self.gateway_state_changed(&gateway, None);
        }
        self.backend_tls_changed(key);
    }

    /// Takes the versions of the Gateway API whose CustomResourceDefinitions the cluster has (their
    /// annotation `gateway.networking.k8s.io/bundle-version`; empty for one without it), to be said in the
    /// status of our GatewayClasses.
    pub fn set_api_versions(&mut self, versions: &BTreeSet<String>) -> Changes {
        let condition = Some(status::supported_version(versions));
        if self.l7.supported_version != condition {
            self.l7.supported_version = condition;
            let classes = self.l7.classes.keys().map(|name| ObjectKey {
                kind: Kind::GatewayClass,
                namespace: String::new(),
                name: name.clone(),
            });
            self.l7.dirty.statuses.extend(classes);
        }
        self.flush()
    }

    /// The labels of a namespace, or whether there is one, have changed.
    pub(in crate::index) fn namespace_selected_anew(&mut self, _namespace: &str) {
        self.l7
            .dirty
            .gateways
            .extend(self.l7.gateways.keys().cloned());
    }

    /// The labels of a namespace; `None` if there is none of that name.
    pub(super) fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace).map(|found| &found.labels)
    }
}

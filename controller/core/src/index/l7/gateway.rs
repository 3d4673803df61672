//! GatewayClasses, Gateways and ListenerSets: what is listened on, what is attached, what shall run.

use std::collections::BTreeSet;

use karst_api::waypoint as wire;

use super::{Index, NsName, ParentRef, RouteKey, Stored, put};
use crate::{
    object::{
        Kind, ObjectKey,
        gateway::{Gateway, GatewayClass},
        listener_set::ListenerSet,
    },
    proxy::{GatewayName, ProxyClass, ProxyWanted},
    status::{Condition, ObjectStatus},
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
        put(&mut self.l7.listener_sets, name, set);
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

    /// What the proxy of a Gateway of class `karst` serves.
    pub(super) fn gateway_sockets(&self, _gateway: &GatewayName) -> Sockets {
        Sockets::default()
    }

    /// How a route stands with a parent that is a Gateway or ListenerSet; `None` if the parent is not ours.
    pub(super) fn attach_to_gateway(
        &self,
        _route: &RouteKey,
        _parent: &ParentRef,
    ) -> Option<Attachment> {
        None
    }

    /// Gateways of class `karst` to which a route is, or wants to be, attached: by a parent that is a
    /// Gateway, or a ListenerSet of one.
    pub(super) fn gateways_of_parents<'a>(
        &self,
        _namespace: &str,
        _parents: impl Iterator<Item = &'a ParentRef>,
    ) -> BTreeSet<GatewayName> {
        BTreeSet::new()
    }

    /// Status of a GatewayClass, Gateway or ListenerSet.
    pub(super) fn gateway_status(&self, _key: &ObjectKey) -> Option<ObjectStatus> {
        None
    }

    /// What shall run for a Gateway.
    pub(super) fn wanted_for(&self, _gateway: &GatewayName) -> Option<ProxyWanted> {
        None
    }

    /// The labels of a namespace, or whether there is one, have changed.
    pub(super) fn namespace_selected_anew(&mut self, _namespace: &str) {}
}

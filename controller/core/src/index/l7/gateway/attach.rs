//! Which routes attach to which listeners.

use std::collections::BTreeSet;

use super::{
    super::{GatewayName, Index, NsName, ParentRef, RouteKey, Stored, routes::Usability},
    Attachment,
    view::{Attached, Entry, Owner, SetState, View},
};
use crate::{
    object::{
        Kind,
        hostname::Hostname,
        route::{Route, RouteKind},
    },
    proxy::ProxyClass,
    status::Condition,
};

impl Index {
    /// The Gateway that a parent is, or that a ListenerSet belongs to which is the parent.
    pub(in crate::index::l7) fn gateway_of_parent(
        &self,
        namespace: &str,
        parent: &ParentRef,
    ) -> Option<(GatewayName, Owner)> {
        let name = NsName::new(parent.namespace(namespace), parent.name.as_str());
        let (group, kind) = parent.group_kind();
        if group != Kind::Gateway.group() {
            return None;
        }
        match kind {
            "Gateway" => Some((GatewayName::new(name.namespace, name.name), Owner::Gateway)),
            "ListenerSet" => {
                let set = self.l7.listener_sets.get(&name)?;
                let gateway = self.gateway_of_set(&name, &set.body.parent)?;
                Some((gateway, Owner::Set(name)))
            }
            _ => None,
        }
    }

    /// The Gateway that a ListenerSet names as its parent.
    pub(in crate::index::l7) fn gateway_of_set(
        &self,
        set: &NsName,
        parent: &ParentRef,
    ) -> Option<GatewayName> {
        let is_gateway = parent.group_kind() == (Kind::Gateway.group(), Kind::Gateway.name());
        let namespace = parent.namespace(&set.namespace);
        is_gateway.then(|| GatewayName::new(namespace, parent.name.as_str()))
    }

    /// A route is about to change, or has changed.
    pub(in crate::index::l7) fn attachment_changed(&mut self, route: &RouteKey) {
        let Some(stored) = self.l7.routes.get(route) else {
            return;
        };
        let parents = stored.body.parents.iter();
        let gateways: Vec<GatewayName> = parents
            .filter_map(|parent| self.gateway_of_parent(&route.name.namespace, parent))
            .map(|(gateway, _)| gateway)
            .collect();
        self.l7.dirty.gateways.extend(gateways);
    }

    /// Attaches all routes that name the Gateway or one of its ListenerSets.
    pub(super) fn attach_routes(&self, view: &mut View, gateway: &GatewayName) {
        if view.class != ProxyClass::Gateway {
            return;
        }
        for (key, route) in &self.l7.routes {
            for parent in &route.body.parents {
                let Some((of, owner)) = self.gateway_of_parent(&key.name.namespace, parent) else {
                    continue;
                };
                if of == *gateway {
                    self.attach_route(view, gateway, &owner, parent, (key, route));
                }
            }
        }
        for entry in &mut view.entries {
            entry
                .attached
                .sort_by(|one, other| precedence(one).cmp(&precedence(other)));
            keep_one_kind(&mut entry.attached);
        }
    }

    fn attach_route(
        &self,
        view: &mut View,
        gateway: &GatewayName,
        owner: &Owner,
        parent: &ParentRef,
        (key, route): (&RouteKey, &Stored<Route>),
    ) {
        let own = hostnames(&route.body);
        for entry in &mut view.entries {
            // All parents of a route come one after another.
            let known = entry.attached.last().is_some_and(|last| last.route == *key);
            if known || !is_meant(entry, owner, parent) || !self.lets_in(entry, gateway, key) {
                continue;
            }
            if let Some(hostnames) = common(&own, &route.body, entry) {
                entry.attached.push(Attached {
                    route: key.clone(),
                    created: route.meta.created,
                    hostnames,
                });
            }
        }
    }

    /// Whether kind and namespace of a route are let in by a listener.
    fn lets_in(&self, entry: &Entry, gateway: &GatewayName, route: &RouteKey) -> bool {
        let namespace = route.name.namespace.as_str();
        entry.kinds.contains(&route.kind)
            && entry.listener.allowed_namespaces.allows(
                entry.namespace(gateway),
                namespace,
                self.namespace_labels(namespace),
            )
    }

    /// Whether a route is accepted as far as it itself decides that.
    pub(super) fn is_route_sound(&self, route: &RouteKey) -> bool {
        let compiled = self.l7.compiled.get(route);
        compiled.is_some_and(|compiled| compiled.refused.is_none())
    }

    /// Whether there is anything in a route that can be in force.
    pub(super) fn is_route_usable(&self, route: &RouteKey) -> bool {
        let compiled = self.l7.compiled.get(route);
        compiled.is_some_and(|compiled| compiled.usability == Usability::Usable)
    }

    /// How a route stands with a parent that is a Gateway or ListenerSet; `None` if the parent is not ours.
    pub(in crate::index::l7) fn attach_to_gateway(
        &self,
        route: &RouteKey,
        parent: &ParentRef,
    ) -> Option<Attachment> {
        let (gateway, owner) = self.gateway_of_parent(&route.name.namespace, parent)?;
        let view = self.l7.views.get(&gateway)?;
        let stored = self.l7.routes.get(route)?;
        Some(Attachment {
            class: view.class,
            accepted: self.acceptance(view, &gateway, &owner, parent, (route, stored)),
        })
    }

    /// The condition `Accepted` of a route, as far as the parent decides it.
    fn acceptance(
        &self,
        view: &View,
        gateway: &GatewayName,
        owner: &Owner,
        parent: &ParentRef,
        (key, stored): (&RouteKey, &Stored<Route>),
    ) -> Condition {
        let (route, created) = (&stored.body, stored.meta.created);
        let no = |reason, message: String| Condition::no("Accepted", reason, message);
        let kind = key.kind.kind().name();
        if view.class == ProxyClass::Waypoint {
            return no(
                "NotAllowedByListeners",
                format!("A waypoint takes no routes; name the Service as parent of the {kind}"),
            );
        }
        if let Owner::Set(set) = owner
            && view.sets.get(set) != Some(&SetState::Allowed)
        {
            return no(
                "NotAllowedByListeners",
                format!("The Gateway {gateway} does not allow the ListenerSet"),
            );
        }
        let meant: Vec<&Entry> = view
            .entries
            .iter()
            .filter(|entry| is_meant(entry, owner, parent))
            .collect();
        if meant.is_empty() {
            return no(
                "NoMatchingParent",
                "The parent has no listener of that sectionName and port".to_owned(),
            );
        }
        let open: Vec<&Entry> = meant
            .into_iter()
            .filter(|entry| self.lets_in(entry, gateway, key))
            .collect();
        if open.is_empty() {
            return no(
                "NotAllowedByListeners",
                format!(
                    "No listener takes a {kind} from the namespace {}; see protocol and allowedRoutes",
                    key.name.namespace
                ),
            );
        }
        let own = hostnames(route);
        let fitting: Vec<&Entry> = open
            .into_iter()
            .filter(|entry| common(&own, route, entry).is_some())
            .collect();
        if fitting.is_empty() {
            return no(
                "NoMatchingListenerHostname",
                "No listener has a host name in common with the route".to_owned(),
            );
        }
        let kept = |entry: &&Entry| {
            let own = (created, &key.name, key.kind);
            let found = entry
                .attached
                .binary_search_by(|one| precedence(one).cmp(&own));
            found.is_ok()
        };
        if !fitting.iter().any(kept) {
            return no(
                "Conflicted",
                "An older route of the other kind, HTTPRoute or GRPCRoute, has host names in common \
                 with it at every listener"
                    .to_owned(),
            );
        }
        Condition::yes("Accepted", "Accepted", "The route is attached")
    }

    /// Gateways of class `karst` to which a route is, or wants to be, attached: by a parent that is a
    /// Gateway, or a ListenerSet of one.
    pub(in crate::index::l7) fn gateways_of_parents<'a>(
        &self,
        namespace: &str,
        parents: impl Iterator<Item = &'a ParentRef>,
    ) -> BTreeSet<GatewayName> {
        let gateways = parents.filter_map(|parent| self.gateway_of_parent(namespace, parent));
        let gateways = gateways.map(|(gateway, _)| gateway);
        gateways
            .filter(|gateway| self.gateway_class(gateway) == Some(ProxyClass::Gateway))
            .collect()
    }
}

/// Whether a parent means a listener.
fn is_meant(entry: &Entry, owner: &Owner, parent: &ParentRef) -> bool {
    let section = parent
        .section_name
        .as_deref()
        .filter(|name| !name.is_empty());
    entry.owner == *owner
        && section.is_none_or(|section| section == entry.listener.name)
        && parent
            .port
            .is_none_or(|port| port == 0 || port == entry.listener.port)
}

/// The valid host names of a route.
fn hostnames(route: &Route) -> Vec<Hostname> {
    route
        .hostnames
        .iter()
        .filter_map(|name| Hostname::parse(name))
        .collect()
}

/// Host names that a route, whose valid ones are `own`, and a listener have in common; empty for all.
/// `None` if there are none.
fn common(own: &[Hostname], route: &Route, entry: &Entry) -> Option<Vec<Hostname>> {
    let listener = entry.listener.hostname.as_ref();
    if route.kind == RouteKind::Tcp {
        return Some(Vec::new());
    }
    if route.hostnames.is_empty() {
        return Some(listener.cloned().into_iter().collect());
    }
    let mut found: Vec<Hostname> = match listener {
        None => own.to_vec(),
        Some(listener) => {
            let both = own.iter().filter_map(|name| name.intersection(listener));
            both.cloned().collect()
        }
    };
    found.dedup();
    (!found.is_empty()).then_some(found)
}

/// The older route comes first, then the one whose name does.
fn precedence(attached: &Attached) -> (i64, &NsName, RouteKind) {
    (attached.created, &attached.route.name, attached.route.kind)
}

/// Of an HTTPRoute and a GRPCRoute that have host names in common, one listener takes the first only
/// (Gateway API, GRPCRoute `hostnames`).
fn keep_one_kind(attached: &mut Vec<Attached>) {
    let has = |kind: RouteKind| attached.iter().any(|one| one.route.kind == kind);
    if !has(RouteKind::Http) || !has(RouteKind::Grpc) {
        return;
    }
    let mut kept: Vec<Attached> = Vec::with_capacity(attached.len());
    for one in attached.drain(..) {
        let mut others = kept
            .iter()
            .filter(|other| other.route.kind != one.route.kind);
        if !others.any(|other| overlap(&one.hostnames, &other.hostnames)) {
            kept.push(one);
        }
    }
    *attached = kept;
}

fn overlap(one: &[Hostname], other: &[Hostname]) -> bool {
    if one.is_empty() || other.is_empty() {
        return true;
    }
    let mut pairs = one
        .iter()
        .flat_map(|one| other.iter().map(move |other| (one, other)));
    pairs.any(|(one, other)| one.intersection(other).is_some())
}

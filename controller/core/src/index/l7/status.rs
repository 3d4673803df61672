//! Statuses: worked out anew for what may have changed, announced when they differ.

use super::{
    Changes, Index, NsName, ParentRef, RouteKey, Stored,
    binding::{Binding, BindingState},
    mesh::{self, NoParent},
};
use crate::{
    object::{
        Kind, ObjectKey,
        route::{Route, RouteKind},
    },
    proxy::ProxyClass,
    status::{Condition, ObjectStatus, ParentStatus, StatusContent},
};

/// Our own condition: whether the parent Service has a waypoint, without which no route is in force.
pub(in crate::index) const WAYPOINT_BOUND: &str = "karst.dev/WaypointBound";

impl Index {
    pub(super) fn flush_statuses(&mut self, changes: &mut Changes) {
        self.policies.forget_meetings();
        for key in std::mem::take(&mut self.l7.dirty.statuses) {
            let former = self.l7.statuses.get(&key);
            let now = self.status_of(&key);
            if former == now.as_ref() {
                continue;
            }
            match now {
                Some(now) => self.l7.statuses.insert(key.clone(), now),
                None => self.l7.statuses.remove(&key),
            };
            changes.statuses.insert(key);
        }
        self.policies.forget_meetings();
    }

    fn status_of(&self, key: &ObjectKey) -> Option<ObjectStatus> {
        match key.kind {
            Kind::GatewayClass | Kind::Gateway | Kind::ListenerSet => self.gateway_status(key),
            Kind::BackendTlsPolicy => self.backend_tls_status(key),
            Kind::BackendTrafficPolicy => self.traffic_policy_status(key),
            Kind::AuthorizationPolicy => self.targeted_status(key),
            Kind::RequestAuthentication => self.authentication_status(key),
            Kind::Telemetry => self.telemetry_status(key),
            kind => self.route_status(&RouteKey {
                kind: RouteKind::of(kind)?,
                name: NsName::new(key.namespace.as_str(), key.name.as_str()),
            }),
        }
    }

    fn route_status(&self, key: &RouteKey) -> Option<ObjectStatus> {
        let stored = self.l7.routes.get(key)?;
        let mut parents: Vec<ParentStatus> = Vec::new();
        for parent in &stored.body.parents {
            let status = self.parent_status(key, stored, parent);
            let known = |status: &ParentStatus| {
                let mut parents = parents.iter();
                parents.any(|other| other.parent_ref == status.parent_ref)
            };
            if let Some(status) = status.filter(|status| !known(status)) {
                parents.push(status);
            }
        }
        Some(ObjectStatus {
            generation: stored.meta.generation,
            content: StatusContent::Parents(parents),
        })
    }

    fn parent_status(
        &self,
        key: &RouteKey,
        stored: &Stored<Route>,
        parent: &ParentRef,
    ) -> Option<ParentStatus> {
        let compiled = self.l7.compiled.get(key)?;
        let (class, mut accepted, bound) = if parent.group_kind() == ("", "Service") {
            let (accepted, bound) = self.at_service(key, &stored.body, parent);
            (ProxyClass::Waypoint, accepted, bound)
        } else {
            let attachment = self.attach_to_gateway(key, parent)?;
            (attachment.class, attachment.accepted, None)
        };
        // A parent that is not there, or does not want the route, is the first thing to correct.
        if accepted.status == crate::ConditionStatus::True
            && let Some(refused) = &compiled.refused
        {
            accepted = refused.clone();
        }
        let partial = compiled.partial.clone();
        let partial = partial.filter(|_| accepted.status == crate::ConditionStatus::True);
        let mut conditions = vec![accepted, compiled.resolved.clone()];
        conditions.extend(partial);
        conditions.extend(bound);
        Some(ParentStatus {
            parent_ref: parent.to_value(),
            controller: class.controller(),
            conditions,
        })
    }

    /// How a route stands with a Service: whether it is accepted, and whether a waypoint puts it into force.
    fn at_service(
        &self,
        key: &RouteKey,
        route: &Route,
        parent: &ParentRef,
    ) -> (Condition, Option<Condition>) {
        let no = |reason, message: String| (Condition::no("Accepted", reason, message), None);
        let namespace = parent.namespace(&key.name.namespace);
        let name = NsName::new(namespace, parent.name.as_str());
        let Some(service) = self.services.get(&name) else {
            let message = format!(
                "There is no Service {} in namespace {namespace}",
                parent.name
            );
            return no("NoMatchingParent", message);
        };
        let ports = match mesh::parent_ports(route.kind, &name, service, parent) {
            Ok(ports) => ports,
            Err(NoParent { reason, message }) => return no(reason, message),
        };
        let mesh = self.l7.services.get(&name);
        let clients = mesh::clients(key, &name);
        let set = |port: &u16| {
            let sets = mesh.and_then(|mesh| mesh.routes.get(port));
            sets.and_then(|sets| sets.get(&clients))
        };
        let bound = bound(&name, mesh.and_then(|mesh| mesh.binding.as_ref()));
        let won = |port: &&u16| set(port).is_some_and(|routes| routes.contains(key));
        let lost: Vec<&u16> = ports.iter().filter(|port| !won(port)).collect();
        let usable = self
            .l7
            .compiled
            .get(key)
            .is_some_and(|compiled| compiled.usability == super::routes::Usability::Usable);
        let winner = lost.first().and_then(|port| set(port));
        let winner = winner.and_then(|routes| routes.first());
        let accepted = match winner {
            Some(winner) if usable => {
                let kind = winner.kind.kind().name();
                let listed: Vec<String> = lost.iter().map(|port| port.to_string()).collect();
                let listed = listed.join(", ");
                let message = format!(
                    "On port {listed} of Service {}/{} a {kind} comes first: {}/{}",
                    name.namespace, name.name, winner.name.namespace, winner.name.name
                );
                if lost.len() == ports.len() {
                    Condition::no("Accepted", "Conflicted", message)
                } else {
                    Condition::yes("Accepted", "Accepted", message)
                }
            }
            _ => Condition::yes("Accepted", "Accepted", "The route is attached"),
        };
        (accepted, Some(bound))
    }
}

fn bound(service: &NsName, binding: Option<&Binding>) -> Condition {
    let NsName { namespace, name } = service;
    let no = |reason, message: String| Condition::no(WAYPOINT_BOUND, reason, message);
    let Some(binding) = binding else {
        let message = format!(
            "Service {namespace}/{name} has no waypoint, so that no route to it is in force; label it, or its \
             namespace, with karst.dev/use-waypoint and the name of a Gateway of class karst-waypoint"
        );
        return no("NoWaypoint", message);
    };
    let gateway = &binding.gateway;
    match binding.state {
        BindingState::Ready => {
            let message = format!("Waypoint {gateway} puts the route into force");
            Condition::yes(WAYPOINT_BOUND, "WaypointBound", message)
        }
        BindingState::NotReady => no(
            "WaypointNotReady",
            format!(
                "Gateway {gateway} has no address or no ready pod so far; see its status and the Deployment of \
                 the same name"
            ),
        ),
        BindingState::NoWaypoint => no(
            "NoWaypoint",
            format!(
                "There is no Gateway {gateway} of class karst-waypoint; create it, or correct the label \
                 karst.dev/use-waypoint of Service {namespace}/{name} or its namespace"
            ),
        ),
        BindingState::NotPermitted => no(
            "WaypointNotPermitted",
            format!(
                "Gateway {gateway} does not let namespace {namespace} in; allow it by \
                 spec.listeners[].allowedRoutes.namespaces of the Gateway"
            ),
        ),
        BindingState::NotMeant => no(
            "NoWaypoint",
            format!(
                "Gateway {gateway} is no waypoint for services; label it karst.dev/waypoint-for with service or \
                 all, or let Service {namespace}/{name} use another"
            ),
        ),
    }
}

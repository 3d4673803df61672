//! Services in the mesh: their routes, and whether they need their waypoint.
//!
//! A waypoint that comes into force is announced to the sources (`Service.waypoint`) and to the
//! destinations (`NodePod.waypoints`) in one step; which of them learns first is not in the hand of the
//! index. Connections that a source opens without the waypoint in between are refused by the destination,
//! which is safe, and open again through the waypoint.

use std::collections::{BTreeMap, BTreeSet};

use karst_api::workload::AppProtocol;

use super::{
    Changes, GatewayName, Index, NsName, RouteKey, Service,
    binding::{Binding, Trust},
    routes::Usability,
};
use crate::{
    object::{
        gateway_api::ParentRef,
        route::RouteKind,
        service::{Reach, ServicePort},
    },
    proxy::ProxyClass,
};

/// Routes of a port by the namespace of the clients that they are for; empty: all others.
pub(super) type RouteSets = BTreeMap<String, Vec<RouteKey>>;

/// What there is about a Service besides the Service itself.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ServiceMesh {
    /// The waypoint that its labels, or its namespace's, ask for.
    pub(super) binding: Option<Binding>,
    /// Routes in force, by port.
    pub(super) routes: BTreeMap<u16, RouteSets>,
    /// The waypoint that traffic goes through.
    pub(super) in_force: Option<GatewayName>,
}

/// Why a route cannot have a Service as parent.
pub(super) struct NoParent {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl ServiceMesh {
    /// Whether connections to its endpoints must come through the waypoint.
    pub(super) fn requirement(&self) -> Option<(&GatewayName, Trust)> {
        let binding = self.binding.as_ref()?;
        let gateway = self.in_force.as_ref()?;
        Some((gateway, binding.trust()))
    }
}

impl Index {
    /// A Service is about to change.
    pub(in crate::index) fn service_changed(&mut self, key: &NsName, now: Option<&Service>) {
        if self.services.get(key) == now {
            return;
        }
        self.gateway_service_changed(key);
        let index = &self.l7.route_index;
        let dirty = &mut self.l7.dirty;
        let referring = index.by_backend.get(key).into_iter().flatten();
        dirty.routes.extend(referring.cloned());
        dirty.services.insert(key.clone());
        dirty.backends.insert(key.clone());
        let gateway = GatewayName::new(key.namespace.as_str(), key.name.as_str());
        if self.l7.gateways.contains_key(&gateway) {
            // The pods of a waypoint are those that its Service selects, ready or not.
            self.proxies_changed(gateway);
        }
        self.policy_targets_changed(key);
        self.service_policies_changed(key);
        self.provider_service_changed(key);
    }

    pub(super) fn flush_services(&mut self, changes: &mut Changes) {
        for key in std::mem::take(&mut self.l7.dirty.services) {
            let now = self.service_mesh(&key);
            let former = match now.clone() {
                now if now == ServiceMesh::default() => self.l7.services.remove(&key),
                now => self.l7.services.insert(key.clone(), now),
            };
            let former = former.unwrap_or_default();
            self.service_policies_changed(&key);
            let routes = self.l7.route_index.by_parent.get(&key);
            let routes = routes.into_iter().flatten().map(RouteKey::object);
            self.l7.dirty.statuses.extend(routes);
            // Its listeners have its ports and addresses, which may have changed though nothing else did.
            let waypoints = former.in_force.iter().chain(&now.in_force).cloned();
            self.l7.dirty.proxies.extend(waypoints);
            if former == now {
                continue;
            }
            let gateway = |mesh: &ServiceMesh| mesh.binding.as_ref().map(|it| it.gateway.clone());
            if gateway(&former) != gateway(&now) {
                // Other policies meet there.
                self.custom_statuses_changed();
            }
            if let Some(binding) = &former.binding {
                super::unlink(&mut self.l7.bound_services, &binding.gateway, &key);
            }
            if let Some(binding) = &now.binding {
                super::link(&mut self.l7.bound_services, &binding.gateway, &key);
            }
            self.l7.dirty.backends.insert(key.clone());
            if former.requirement() != now.requirement() {
                let pods = self.pods_of_service(&key);
                self.l7.dirty.pods.extend(pods);
                self.render_service(&key, changes);
            }
        }
    }

    fn service_mesh(&self, key: &NsName) -> ServiceMesh {
        let Some(service) = self.services.get(key) else {
            return ServiceMesh::default();
        };
        if service.reach != Reach::Endpoints {
            return ServiceMesh::default();
        }
        let routes = self.routes_of_service(key, service);
        let binding = self.service_binding(key, service);
        let needed = || {
            !routes.is_empty()
                || self.has_traffic_policy(key)
                || self.has_telemetry(key)
                || binding.as_ref().is_some_and(|binding| {
                    let class = ProxyClass::Waypoint;
                    let gateway = &binding.gateway;
                    let policies = self.policies_at(gateway, class, Some(key));
                    !policies.is_empty()
                        || !self
                            .authentications_at(gateway, class, Some(key))
                            .is_empty()
                })
                || service.ports.iter().any(is_http_like)
        };
        let in_force = binding.as_ref().filter(|binding| binding.is_in_force());
        let in_force = in_force.filter(|_| needed());
        ServiceMesh {
            in_force: in_force.map(|binding| binding.gateway.clone()),
            binding,
            routes,
        }
    }

    /// The routes in force for each port of a service. In one set there are routes of one kind: GRPCRoutes,
    /// else HTTPRoutes, else TLSRoutes, else TCPRoutes (GEP-1294). The set of one namespace's clients does not
    /// decide about that of another's.
    fn routes_of_service(&self, key: &NsName, service: &Service) -> BTreeMap<u16, RouteSets> {
        let mut ports: BTreeMap<u16, BTreeMap<String, BTreeSet<RouteKey>>> = BTreeMap::new();
        let routes = self.l7.route_index.by_parent.get(key).into_iter().flatten();
        for route in routes {
            let compiled = self.l7.compiled.get(route);
            if compiled.is_none_or(|compiled| compiled.usability == Usability::Nothing) {
                continue;
            }
            for parent in self.parents_of(route, key) {
                for port in parent_ports(route.kind, key, service, &parent).unwrap_or_default() {
                    let sets = ports.entry(port).or_default();
                    let clients = clients(route, key);
                    sets.entry(clients).or_default().insert(route.clone());
                }
            }
        }
        let winners = |routes: BTreeSet<RouteKey>| {
            // The kinds are in the order of their priority.
            let kind = routes.first().map(|route| route.kind);
            routes
                .into_iter()
                .take_while(|route| Some(route.kind) == kind)
                .collect()
        };
        let sets = |sets: BTreeMap<String, BTreeSet<RouteKey>>| {
            let sets = sets.into_iter();
            sets.map(|(clients, routes)| (clients, winners(routes)))
                .collect()
        };
        let ports = ports.into_iter();
        ports.map(|(port, found)| (port, sets(found))).collect()
    }

    /// References of a route to a Service as parent.
    fn parents_of(&self, route: &RouteKey, service: &NsName) -> Vec<ParentRef> {
        let stored = self.l7.routes.get(route);
        let parents = stored.into_iter().flat_map(|stored| &stored.body.parents);
        let namespace = &route.name.namespace;
        let is_it = |parent: &&ParentRef| {
            parent.group_kind() == ("", "Service")
                && parent.name == service.name
                && parent.namespace(namespace) == service.namespace
        };
        parents.filter(is_it).cloned().collect()
    }
}

/// Namespace of the clients that a route is for: its own, or everybody, if it is the Service's.
pub(super) fn clients(route: &RouteKey, service: &NsName) -> String {
    if route.name.namespace == service.namespace {
        String::new()
    } else {
        route.name.namespace.clone()
    }
}

/// The ports of a Service that a parent reference means.
pub(super) fn parent_ports(
    kind: RouteKind,
    key: &NsName,
    service: &Service,
    parent: &ParentRef,
) -> Result<Vec<u16>, NoParent> {
    let NsName { namespace, name } = key;
    let unsupported = |why: &str| NoParent {
        reason: "UnsupportedValue",
        message: format!("Service {namespace}/{name} {why}"),
    };
    if service.reach != Reach::Endpoints {
        let why = "is an ExternalName, to which no route can be attached; name the Service that it stands for";
        return Err(unsupported(why));
    }
    if service.vips.is_empty() {
        let why = "has no cluster IP, and clients of its pods' own addresses are not routed; attach the route to \
                   a Service with a cluster IP";
        return Err(unsupported(why));
    }
    let is_meant = |port: &&ServicePort| {
        parent.port.is_none_or(|number| number == port.port)
            && (parent.section_name.as_deref())
                .is_none_or(|name| port.name.as_deref() == Some(name))
    };
    let meant: Vec<&ServicePort> = service.ports.iter().filter(is_meant).collect();
    let fits = |port: &&&ServicePort| {
        let is_http = matches!(kind, RouteKind::Http | RouteKind::Grpc);
        !(is_http && matches!(port.app_protocol, AppProtocol::Tcp | AppProtocol::Tls))
    };
    let ports: Vec<u16> = meant.iter().filter(fits).map(|port| port.port).collect();
    if !ports.is_empty() {
        return Ok(ports);
    }
    let kind = kind.kind().name();
    let message = if meant.is_empty() {
        format!(
            "Service {namespace}/{name} has no TCP port that parentRefs means by port and sectionName"
        )
    } else {
        format!(
            "The ports of Service {namespace}/{name} that parentRefs means are declared tcp or tls, where a \
             {kind} has nothing to match; correct appProtocol or the port's name"
        )
    };
    Err(NoParent {
        reason: "NoMatchingParent",
        message,
    })
}

/// Whether requests may come to a port: it is declared, or nothing is.
fn is_http_like(port: &ServicePort) -> bool {
    !matches!(port.app_protocol, AppProtocol::Tcp | AppProtocol::Tls)
}

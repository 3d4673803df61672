//! Routes: what they refer to, and what they look like on the wire.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use karst_api::waypoint as wire;

use super::{
    BackendKey, GatewayName, Index, NsName, Rendered, Route, RouteKey, Stored,
    grants::{From, To},
    put,
};
use crate::{
    object::{
        Kind,
        route::{BackendRef, Filter, Rule},
        service::Reach,
    },
    status::Condition,
};

/// Problems with references that a condition lists; more are only counted.
const MAX_LISTED: usize = 5;

/// A route, worked out.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Compiled {
    pub(super) rendered: Arc<Rendered>,
    /// Backends it sends requests to.
    pub(super) backends: BTreeSet<BackendKey>,
    /// Services it refers to, there or not.
    pub(super) referred: BTreeSet<NsName>,
    /// Services it names as parents, there or not.
    pub(super) parents: BTreeSet<NsName>,
    /// Gateways that it is, or wants to be, attached to.
    pub(super) gateways: BTreeSet<GatewayName>,
    /// Whether there is anything in it that can be in force.
    pub(super) usability: Usability,
    /// The condition `ResolvedRefs`.
    pub(super) resolved: Condition,
    /// Why the route is not accepted whatever its parents say.
    pub(super) refused: Option<Condition>,
    /// The condition `PartiallyInvalid`.
    pub(super) partial: Option<Condition>,
}

/// Whether a route has anything that can be in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usability {
    Usable,
    /// None of its rules could be read: it is as good as absent.
    Nothing,
}

/// Which routes have to do with a Service.
#[derive(Debug, Default)]
pub(super) struct RouteIndex {
    /// By Services that they refer to.
    pub(super) by_backend: BTreeMap<NsName, BTreeSet<RouteKey>>,
    /// By Services that are their parents.
    pub(super) by_parent: BTreeMap<NsName, BTreeSet<RouteKey>>,
}

/// A reference that cannot be followed.
struct Unresolved {
    reason: &'static str,
    message: String,
}

/// What was found while a route was worked out.
#[derive(Default)]
struct References {
    /// A Service of another namespace that needs no grant.
    addressed: Option<NsName>,
    backends: BTreeSet<BackendKey>,
    referred: BTreeSet<NsName>,
    problems: Vec<Unresolved>,
}

impl Index {
    pub(super) fn set_route(&mut self, key: RouteKey, route: Option<Stored<Route>>) {
        self.attachment_changed(&key);
        if put(&mut self.l7.routes, key.clone(), route) {
            self.attachment_changed(&key);
            self.l7.dirty.routes.insert(key);
        }
    }

    /// Grants in a namespace have changed: routes of other namespaces may refer to it.
    pub(super) fn grants_changed(&mut self, namespace: &str) {
        let from_elsewhere = |key: &&RouteKey| key.name.namespace != namespace;
        let refers = |(key, compiled): (&RouteKey, &Compiled)| {
            let mut referred = compiled.referred.iter();
            referred
                .any(|service| service.namespace == namespace)
                .then(|| key.clone())
        };
        let routes: Vec<RouteKey> = self.l7.compiled.iter().filter_map(refers).collect();
        let routes = routes.iter().filter(from_elsewhere).cloned();
        self.l7.dirty.routes.extend(routes);
    }

    pub(super) fn flush_routes(&mut self) {
        for key in std::mem::take(&mut self.l7.dirty.routes) {
            let now = self.l7.routes.get(&key);
            let now = now.map(|stored| self.compile(&key, stored));
            let former = match now.clone() {
                Some(now) => self.l7.compiled.insert(key.clone(), now),
                None => self.l7.compiled.remove(&key),
            };
            self.l7.dirty.statuses.insert(key.object());
            // Port or section of a parent may have changed though nothing else did.
            for compiled in former.iter().chain(&now) {
                let parents = compiled.parents.iter().cloned();
                self.l7.dirty.services.extend(parents);
            }
            if former == now {
                continue;
            }
            let index = &mut self.l7.route_index;
            if let Some(former) = &former {
                unlink_all(&mut index.by_backend, &former.referred, &key);
                unlink_all(&mut index.by_parent, &former.parents, &key);
            }
            if let Some(now) = &now {
                link_all(&mut index.by_backend, &now.referred, &key);
                link_all(&mut index.by_parent, &now.parents, &key);
            }
            let name = key.resource_name();
            let users = self.l7.proxies.iter();
            let users = users.filter(|(_, proxy)| proxy.routes.contains_key(&name));
            let users: Vec<GatewayName> = users.map(|(gateway, _)| gateway.clone()).collect();
            let dirty = &mut self.l7.dirty;
            dirty.proxies.extend(users);
            for compiled in former.iter().chain(&now) {
                dirty.proxies.extend(compiled.gateways.iter().cloned());
            }
        }
    }

    fn compile(&self, key: &RouteKey, stored: &Stored<Route>) -> Compiled {
        let route = &stored.body;
        let mut references = References {
            addressed: addressed(key, route),
            ..References::default()
        };
        let mut message = wire::Route {
            name: key.resource_name(),
            created: stored.meta.created,
            kind: route.kind.to_wire().into(),
            ..wire::Route::default()
        };
        for (index, rule) in route.rules.iter().enumerate() {
            let rule = self.rule(key, (index, rule), &mut references);
            if key.is_http() {
                message.http_rules.push(rule);
            } else {
                message.l4_rules.push(wire::L4Rule {
                    name: rule.name,
                    backends: rule.backends,
                });
            }
        }
        let namespace = key.name.namespace.as_str();
        let services = route.parents.iter();
        let services = services.filter(|parent| parent.group_kind() == ("", "Service"));
        let services = services
            .map(|parent| NsName::new(parent.namespace(namespace), parent.name.as_str()))
            .collect();
        let (refused, partial) = faults(route);
        let nothing =
            route.refused.is_some() || (route.rules.is_empty() && !route.faults.is_empty());
        Compiled {
            rendered: Arc::new(Rendered::new(message.name.clone(), Vec::new(), &message)),
            resolved: resolved(references.problems),
            backends: references.backends,
            referred: references.referred,
            parents: services,
            gateways: self.gateways_of_parents(namespace, route.parents.iter()),
            usability: if nothing {
                Usability::Nothing
            } else {
                Usability::Usable
            },
            refused,
            partial,
        }
    }

    fn rule(
        &self,
        key: &RouteKey,
        (index, rule): (usize, &Rule),
        references: &mut References,
    ) -> wire::HttpRule {
        let mut out = rule.template.clone();
        if let Some(reason) = rule.failing {
            out.backends = vec![wire::WeightedBackend {
                weight: 1,
                invalid: reason.to_owned(),
                ..wire::WeightedBackend::default()
            }];
            return out;
        }
        let at = format!("rules[{index}]");
        out.filters = self.filters(key, &rule.filters, &format!("{at}.filters"), references);
        for (place, backend) in rule.backends.iter().enumerate() {
            let field = format!("{at}.backendRefs[{place}]");
            let (name, mut invalid) =
                match self.resolve(key, &backend.reference, &field, references) {
                    Ok(name) => (name, ""),
                    Err(reason) => (String::new(), reason),
                };
            let mut filters = Vec::new();
            match backend.failing {
                Some(reason) if invalid.is_empty() => invalid = reason,
                _ => filters = self.filters(key, &backend.filters, &field, references),
            }
            out.backends.push(wire::WeightedBackend {
                backend: if invalid.is_empty() {
                    name
                } else {
                    String::new()
                },
                weight: backend.weight,
                filters,
                invalid: invalid.to_owned(),
            });
        }
        out
    }

    fn filters(
        &self,
        key: &RouteKey,
        filters: &[Filter],
        field: &str,
        references: &mut References,
    ) -> Vec<wire::Filter> {
        let one = |filter: &Filter| match filter {
            Filter::Plain(filter) => filter.clone(),
            Filter::Mirror {
                reference,
                numerator,
                denominator,
            } => {
                // Without a backend nothing is mirrored; the condition says why.
                let backend = self.resolve(key, reference, field, references);
                wire::Filter {
                    kind: Some(wire::filter::Kind::Mirror(wire::Mirror {
                        backend: backend.unwrap_or_default(),
                        numerator: *numerator,
                        denominator: *denominator,
                    })),
                }
            }
        };
        filters.iter().map(one).collect()
    }

    /// The name of the backend that is referred to; if there is none, the reason, which is noted with what
    /// to do about it.
    fn resolve(
        &self,
        key: &RouteKey,
        reference: &BackendRef,
        field: &str,
        references: &mut References,
    ) -> Result<String, &'static str> {
        let namespace = reference
            .namespace
            .as_deref()
            .filter(|name| !name.is_empty());
        let namespace = namespace.unwrap_or(&key.name.namespace);
        let service = NsName::new(namespace, reference.name.as_str());
        let kind = reference.kind.as_deref().unwrap_or("Service");
        let found = if reference.group.is_empty() && kind == "Service" {
            references.referred.insert(service.clone());
            let granted = references.addressed.as_ref() == Some(&service);
            self.referred_port(key, &service, reference.port, granted)
        } else {
            let group = reference.group.as_str();
            let message =
                format!("refers to a {kind} of group {group:?}; only Services can be backends");
            Err(("InvalidKind", message))
        };
        match found {
            Ok(port) => {
                let name = self.backend_name(&service, port);
                references.backends.insert((service, port));
                Ok(name)
            }
            Err((reason, message)) => {
                references.problems.push(Unresolved {
                    reason,
                    message: format!("{field} {message}"),
                });
                Err(reason)
            }
        }
    }

    fn referred_port(
        &self,
        key: &RouteKey,
        service: &NsName,
        port: Option<u16>,
        granted: bool,
    ) -> Result<u16, (&'static str, String)> {
        let NsName { namespace, name } = service;
        let from = From {
            group: key.kind.kind().group(),
            kind: key.kind.kind().name(),
            namespace: &key.name.namespace,
        };
        let to = To {
            group: "",
            kind: Kind::Service.name(),
            namespace,
            name,
        };
        if !granted && !self.is_granted(from, to) {
            let message = format!(
                "refers to Service {namespace}/{name}, which no ReferenceGrant in namespace {namespace} \
                 permits a {} of namespace {}",
                from.kind, from.namespace
            );
            return Err(("RefNotPermitted", message));
        }
        let missing = |message: String| Err(("BackendNotFound", message));
        let Some(found) = self.services.get(service) else {
            return missing(format!(
                "refers to Service {namespace}/{name}, which does not exist"
            ));
        };
        if found.reach != Reach::Endpoints {
            return missing(format!(
                "refers to Service {namespace}/{name}, which is an ExternalName and has no endpoints"
            ));
        }
        let Some(port) = port else {
            return missing(format!(
                "names no port of Service {namespace}/{name}; a Service needs one"
            ));
        };
        if !found.ports.iter().any(|each| each.port == port) {
            return missing(format!(
                "refers to port {port}, which Service {namespace}/{name} does not have for TCP"
            ));
        }
        Ok(port)
    }

    /// Name of the Backend resource for a port of a Service.
    pub(in crate::index) fn backend_name(&self, service: &NsName, port: u16) -> String {
        format!("{}/{port}", self.service_resource_name(service))
    }
}

/// The Service of another namespace that a route is for and nothing else: clients of the route's own namespace
/// address it anyway, so that sending them there takes no grant. Anywhere else the waypoint would go in its own
/// name, for which GEP-1294 asks for one.
fn addressed(key: &RouteKey, route: &Route) -> Option<NsName> {
    let own = key.name.namespace.as_str();
    let mut parents = route.parents.iter().map(|parent| {
        let namespace = parent.namespace(own);
        let elsewhere = parent.group_kind() == ("", "Service") && namespace != own;
        elsewhere.then(|| NsName::new(namespace, parent.name.as_str()))
    });
    let first = parents.next()??;
    // With another parent, what is meant for that one could be sent there.
    parents
        .all(|other| other.as_ref() == Some(&first))
        .then_some(first)
}

/// What is wrong with rules, as conditions: for the whole route, or for a part.
fn faults(route: &Route) -> (Option<Condition>, Option<Condition>) {
    if let Some(message) = &route.refused {
        let refused = Condition::no("Accepted", "UnsupportedValue", message.as_str());
        return (Some(refused), None);
    }
    let Some(first) = route.faults.first() else {
        return (None, None);
    };
    let said = route.faults.iter().take(MAX_LISTED);
    let said: Vec<&str> = said.map(|fault| fault.message.as_str()).collect();
    let said = said.join(". ");
    let sound = route.rules.iter().any(|rule| {
        rule.failing.is_none()
            && rule
                .backends
                .iter()
                .all(|backend| backend.failing.is_none())
    });
    if !sound {
        return (Some(Condition::no("Accepted", first.reason, said)), None);
    }
    let places: BTreeSet<usize> = route.faults.iter().map(|fault| fault.rule).collect();
    let places: Vec<String> = places
        .iter()
        .map(|place| format!("#{}", place + 1))
        .collect();
    // How the message begins is laid down by the Gateway API.
    let message = format!("Dropped Rule {}: {said}", places.join(", "));
    let partial = Condition::yes("PartiallyInvalid", "UnsupportedValue", message);
    (None, Some(partial))
}

fn resolved(problems: Vec<Unresolved>) -> Condition {
    let Some(first) = problems.first() else {
        let message = "All references are resolved";
        return Condition::yes("ResolvedRefs", "ResolvedRefs", message);
    };
    let reason = first.reason;
    let more = problems.len().saturating_sub(MAX_LISTED);
    let listed = problems.iter().take(MAX_LISTED);
    let mut listed: Vec<&str> = listed.map(|problem| problem.message.as_str()).collect();
    let more = format!("{more} more");
    if problems.len() > MAX_LISTED {
        listed.push(&more);
    }
    Condition::no("ResolvedRefs", reason, listed.join("; "))
}

fn link_all(
    map: &mut BTreeMap<NsName, BTreeSet<RouteKey>>,
    services: &BTreeSet<NsName>,
    route: &RouteKey,
) {
    for service in services {
        map.entry(service.clone())
            .or_default()
            .insert(route.clone());
    }
}

fn unlink_all(
    map: &mut BTreeMap<NsName, BTreeSet<RouteKey>>,
    services: &BTreeSet<NsName>,
    route: &RouteKey,
) {
    for service in services {
        super::unlink(map, service, route);
    }
}

//! Routes: HTTPRoute, GRPCRoute, TLSRoute and TCPRoute, in the one form that the index works on.
//!
//! A rule is checked as a whole. One that cannot be used is dropped, and the others live on; one with a
//! filter that cannot be applied stays and fails its requests, because to pass them on without the filter
//! is what nobody asked for (Gateway API, `HTTPRouteFilter`).

mod check;
mod filter;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod l4;
mod matches;

use karst_api::waypoint as wire;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

pub(crate) use self::{check::PROTECTED_HEADERS, filter::Filter};
use super::{Kind, gateway_api::ParentRef};
use crate::error::{Faults, ObjectError};

/// Rules of a route (Gateway API).
const MAX_RULES: usize = 16;

/// Backends of a rule (Gateway API).
const MAX_BACKENDS: usize = 16;

/// Largest weight of a backend (Gateway API).
const MAX_WEIGHT: u32 = 1_000_000;

/// Parents of a route (Gateway API).
const MAX_PARENTS: usize = 32;

/// Kinds of routes, the one that wins a port of a Service first (GEP-1294).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum RouteKind {
    Grpc,
    Http,
    Tls,
    Tcp,
}

impl RouteKind {
    pub(crate) const ALL: [Self; 4] = [Self::Grpc, Self::Http, Self::Tls, Self::Tcp];

    /// The kind of the objects.
    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Grpc => Kind::GrpcRoute,
            Self::Http => Kind::HttpRoute,
            Self::Tls => Kind::TlsRoute,
            Self::Tcp => Kind::TcpRoute,
        }
    }

    /// The routes of a kind of objects.
    pub(crate) fn of(kind: Kind) -> Option<Self> {
        Self::ALL.into_iter().find(|each| each.kind() == kind)
    }

    /// On the wire.
    pub(crate) fn to_wire(self) -> wire::RouteKind {
        match self {
            Self::Grpc => wire::RouteKind::RouteGrpc,
            Self::Http => wire::RouteKind::RouteHttp,
            Self::Tls => wire::RouteKind::RouteTls,
            Self::Tcp => wire::RouteKind::RouteTcp,
        }
    }
}

/// A route.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Route {
    pub(crate) kind: RouteKind,
    pub(crate) parents: Vec<ParentRef>,
    /// Host names in lower case; of TLSRoutes and, at gateways, HTTPRoutes and GRPCRoutes.
    pub(crate) hostnames: Vec<String>,
    /// Those that can be used, in their order.
    pub(crate) rules: Vec<Rule>,
    /// What is wrong with rules: each was dropped, or fails its requests.
    pub(crate) faults: Vec<RuleFault>,
    /// Why none of the rules can be used, though each alone might.
    pub(crate) refused: Option<String>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rule {
    /// All but filters and backends.
    pub(crate) template: wire::HttpRule,
    pub(crate) filters: Vec<Filter>,
    pub(crate) backends: Vec<Backend>,
    /// Requests are answered with 500, for this stable reason, as a filter cannot be applied.
    pub(crate) failing: Option<&'static str>,
}

/// A backend of a rule.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Backend {
    pub(crate) reference: BackendRef,
    pub(crate) weight: u32,
    pub(crate) filters: Vec<Filter>,
    /// As that of a rule, for this backend's share.
    pub(crate) failing: Option<&'static str>,
}

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RuleFault {
    /// Place in the route, from 0.
    pub(crate) rule: usize,
    /// Reason of the condition.
    pub(crate) reason: &'static str,
    /// A sentence.
    pub(crate) message: String,
}

/// What a rule refers to (`BackendObjectReference`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BackendRef {
    pub(crate) group: String,
    pub(crate) kind: Option<String>,
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    pub(crate) port: Option<u16>,
}

/// A fault that makes a rule unusable.
#[derive(Debug)]
pub(super) struct Unusable {
    reason: &'static str,
    fault: ObjectError,
}

/// Where in an object something is, to say what is wrong with it.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    faults: &'a Faults,
    field: &'a str,
}

impl Place<'_> {
    /// A value that the API, or the mesh, has no meaning for.
    fn unsupported(
        self,
        field: impl std::fmt::Display,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Unusable {
        self.because("UnsupportedValue", field, problem, hint)
    }

    fn because(
        self,
        reason: &'static str,
        field: impl std::fmt::Display,
        problem: impl Into<String>,
        hint: impl Into<String>,
    ) -> Unusable {
        let field = format!("{}{field}", self.field);
        Unusable {
            reason,
            fault: self.faults.error(field, problem, hint),
        }
    }
}

/// `spec` of a route, whatever its rules look like.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Spec {
    parent_refs: Vec<ParentRef>,
    hostnames: Vec<String>,
    rules: Vec<Value>,
    use_default_gateways: Option<Value>,
}

impl Spec {
    /// Checks the rules one by one. `read` makes a rule, and adds what of it fails its requests.
    fn route<S: DeserializeOwned>(
        self,
        kind: RouteKind,
        faults: &Faults,
        findings: &mut Vec<ObjectError>,
        read: impl Fn(S, Place<'_>, &mut Vec<Unusable>) -> Result<Rule, Unusable>,
    ) -> Route {
        let mut route = Route {
            kind,
            parents: self.parents(faults, findings),
            hostnames: Vec::new(),
            rules: Vec::new(),
            faults: Vec::new(),
            refused: None,
        };
        if let Some(value) = self.use_default_gateways.filter(|value| value != "None") {
            findings.push(faults.error(
                "spec.useDefaultGateways",
                format!("is {value}, which is not supported"),
                "name the Gateways in spec.parentRefs",
            ));
        }
        let lower = |name: String| name.to_ascii_lowercase();
        route.hostnames = self.hostnames.into_iter().map(lower).collect();
        let rules = self.rules.len();
        if rules > MAX_RULES {
            let problem = format!("has {rules} rules, at most {MAX_RULES} are allowed");
            let fault = faults.error("spec.rules", problem, "divide the route into several");
            route.refused = Some(fault.to_string());
            findings.push(fault);
            return route;
        }
        for (index, value) in self.rules.into_iter().enumerate() {
            let field = format!("spec.rules[{index}]");
            let place = Place {
                faults,
                field: &field,
            };
            let mut failing = Vec::new();
            let spec = serde_path_to_error::deserialize(value).map_err(|error| {
                let path = match error.path().to_string() {
                    path if path == "." => String::new(),
                    path => format!(".{path}"),
                };
                let problem = format!("cannot be read: {}", error.inner());
                place.unsupported(path, problem, "see `kubectl explain` for the field")
            });
            match spec.and_then(|spec| read(spec, place, &mut failing)) {
                Ok(rule) => route.rules.push(rule),
                Err(unusable) => failing.push(unusable),
            }
            for Unusable { reason, fault } in failing {
                route.faults.push(RuleFault {
                    rule: index,
                    reason,
                    message: format!("{} {}; {}", fault.field, fault.problem, fault.hint),
                });
                findings.push(fault);
            }
        }
        route
    }

    fn parents(&self, faults: &Faults, findings: &mut Vec<ObjectError>) -> Vec<ParentRef> {
        let mut parents = self.parent_refs.clone();
        if parents.len() > MAX_PARENTS {
            let problem = format!("has {} entries", parents.len());
            let hint = format!("only the first {MAX_PARENTS} are used; divide the route");
            findings.push(faults.error("spec.parentRefs", problem, hint));
            parents.truncate(MAX_PARENTS);
        }
        parents
    }
}

/// The weight of a backend.
fn weight(
    place: Place<'_>,
    at: impl std::fmt::Display,
    weight: Option<u32>,
) -> Result<u32, Unusable> {
    let weight = weight.unwrap_or(1);
    if weight <= MAX_WEIGHT {
        return Ok(weight);
    }
    let problem = format!("is {weight}");
    let hint = format!("use 0 to {MAX_WEIGHT}");
    Err(place.unsupported(format_args!("{at}.weight"), problem, hint))
}

fn check_count(place: Place<'_>, field: &str, count: usize, most: usize) -> Result<(), Unusable> {
    if count <= most {
        return Ok(());
    }
    let problem = format!("has {count} entries");
    Err(place.unsupported(field, problem, format!("use at most {most}")))
}

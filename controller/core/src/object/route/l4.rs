//! TLSRoutes and TCPRoutes.

use karst_api::waypoint as wire;
use serde::Deserialize;

use super::{
    Place, Route, RouteKind, Spec, Unusable,
    http::{self, BackendSpec},
};
use crate::{
    error::{Faults, ObjectError},
    object::{Body, gateway_api::Resource},
};

/// `TLSRouteRule` and `TCPRouteRule`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    name: Option<String>,
    backend_refs: Vec<BackendSpec>,
}

pub(crate) fn tls_body(
    object: Resource<Spec>,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Result<Body, ObjectError> {
    Ok(body(RouteKind::Tls, object, faults, findings))
}

pub(crate) fn tcp_body(
    object: Resource<Spec>,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Result<Body, ObjectError> {
    Ok(body(RouteKind::Tcp, object, faults, findings))
}

fn body(
    kind: RouteKind,
    object: Resource<Spec>,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Body {
    let read = |spec: RuleSpec, place: Place<'_>, failing: &mut Vec<Unusable>| {
        let template = wire::HttpRule {
            name: spec.name.unwrap_or_default(),
            ..wire::HttpRule::default()
        };
        http::with_backends(kind, template, (&[], &spec.backend_refs), place, failing)
    };
    let route: Route = object.spec.route(kind, faults, findings, read);
    Body::Route(Box::new(route))
}

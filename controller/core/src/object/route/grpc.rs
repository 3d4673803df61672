//! GRPCRoutes.

use karst_api::waypoint as wire;
use serde::Deserialize;

use super::{
    Place, RouteKind, Rule, Spec, Unusable, check_count,
    filter::FilterSpec,
    http::{self, BackendSpec, SessionSpec},
    matches::GrpcMatch,
};
use crate::{
    error::{Faults, ObjectError},
    object::{Body, gateway_api::Resource},
};

/// Matches of a rule (Gateway API).
const MAX_MATCHES: usize = 64;

/// `GRPCRouteRule`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    name: Option<String>,
    matches: Vec<GrpcMatch>,
    filters: Vec<FilterSpec>,
    backend_refs: Vec<BackendSpec>,
    session_persistence: Option<SessionSpec>,
}

pub(crate) fn body(
    object: Resource<Spec>,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Result<Body, ObjectError> {
    let mut route = object.spec.route(RouteKind::Grpc, faults, findings, rule);
    http::limit_matches(&mut route, faults, findings);
    Ok(Body::Route(Box::new(route)))
}

fn rule(spec: RuleSpec, place: Place<'_>, failing: &mut Vec<Unusable>) -> Result<Rule, Unusable> {
    check_count(place, ".matches", spec.matches.len(), MAX_MATCHES)?;
    let faults = place.faults;
    let of_match = |(index, condition): (usize, &GrpcMatch)| {
        let field = format!("{}.matches[{index}]", place.field);
        condition.to_wire(Place {
            faults,
            field: &field,
        })
    };
    let matches = spec.matches.iter().enumerate().map(of_match);
    let template = wire::HttpRule {
        name: spec.name.unwrap_or_default(),
        matches: matches.collect::<Result<_, _>>()?,
        session_persistence: http::session(place, spec.session_persistence)?,
        ..wire::HttpRule::default()
    };
    let parts = (&spec.filters[..], &spec.backend_refs[..]);
    http::with_backends(RouteKind::Grpc, template, parts, place, failing)
}

//! HTTPRoutes.

use karst_api::waypoint as wire;
use serde::Deserialize;

use super::{
    Backend, BackendRef, MAX_BACKENDS, Place, Route, RouteKind, Rule, Spec, Unusable, check,
    check_count,
    filter::{self, Filter, FilterSpec, Prefix, Scope},
    matches::HttpMatch,
};
use crate::{
    error::{Faults, ObjectError},
    object::{Body, duration, gateway_api::Resource},
};

/// Matches of a rule (Gateway API).
const MAX_MATCHES: usize = 64;

/// Matches of all rules of a route together (Gateway API).
const MAX_ALL_MATCHES: usize = 128;

/// Retries of a request at most. More do not help a backend that fails.
const MAX_ATTEMPTS: u32 = 25;

/// Retries if nothing is said.
const DEFAULT_ATTEMPTS: u32 = 2;

/// Wait before a retry if nothing is said, milliseconds.
const DEFAULT_BACKOFF_MS: u64 = 25;

/// Status codes of a retry.
const MAX_CODES: usize = 64;

/// Cookie or header of a session that has no name.
const DEFAULT_SESSION: &str = "karst-session";

/// `HTTPRouteRule`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct RuleSpec {
    name: Option<String>,
    matches: Vec<HttpMatch>,
    filters: Vec<FilterSpec>,
    backend_refs: Vec<BackendSpec>,
    timeouts: Timeouts,
    retry: Option<RetrySpec>,
    session_persistence: Option<SessionSpec>,
}

/// `HTTPBackendRef`, which is `GRPCBackendRef` as well, and with no filters `BackendRef`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BackendSpec {
    group: String,
    kind: Option<String>,
    name: String,
    namespace: Option<String>,
    port: Option<u16>,
    weight: Option<u32>,
    filters: Vec<FilterSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Timeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RetrySpec {
    codes: Vec<u32>,
    attempts: Option<u32>,
    backoff: Option<String>,
}

/// `SessionPersistence`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SessionSpec {
    session_name: Option<String>,
    absolute_timeout: Option<String>,
    r#type: Option<String>,
    cookie_config: Option<CookieSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct CookieSpec {
    lifetime_type: Option<String>,
}

pub(crate) fn body(
    object: Resource<Spec>,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Result<Body, ObjectError> {
    let mut route = object.spec.route(RouteKind::Http, faults, findings, rule);
    limit_matches(&mut route, faults, findings);
    Ok(Body::Route(Box::new(route)))
}

/// Refuses a route that has more matches than one may have.
pub(super) fn limit_matches(route: &mut Route, faults: &Faults, findings: &mut Vec<ObjectError>) {
    let matches = route.rules.iter();
    let matches: usize = matches.map(|rule| rule.template.matches.len()).sum();
    if matches > MAX_ALL_MATCHES {
        let problem = format!("has {matches} matches, at most {MAX_ALL_MATCHES} are allowed");
        let fault = faults.error("spec.rules", problem, "divide the route into several");
        route.refused = Some(fault.to_string());
        route.rules.clear();
        findings.push(fault);
    }
}

fn rule(spec: RuleSpec, place: Place<'_>, failing: &mut Vec<Unusable>) -> Result<Rule, Unusable> {
    check_count(place, ".matches", spec.matches.len(), MAX_MATCHES)?;
    let faults = place.faults;
    let of_match = |(index, condition): (usize, &HttpMatch)| {
        let field = format!("{}.matches[{index}]", place.field);
        condition.to_wire(Place {
            faults,
            field: &field,
        })
    };
    let matches = spec.matches.iter().enumerate().map(of_match);
    let matches: Vec<wire::HttpMatch> = matches.collect::<Result<_, _>>()?;
    let (request, backend) = spec.timeouts.read(place)?;
    let template = wire::HttpRule {
        name: spec.name.unwrap_or_default(),
        request_timeout_ms: request,
        backend_timeout_ms: backend,
        retry: spec.retry.map(|retry| retry.read(place)).transpose()?,
        session_persistence: session(place, spec.session_persistence)?,
        matches,
        ..wire::HttpRule::default()
    };
    let rule = with_backends(
        RouteKind::Http,
        template,
        (&spec.filters, &spec.backend_refs),
        place,
        failing,
    )?;
    if is_redirect(&rule.filters) && !rule.backends.is_empty() {
        let hint = "remove the one or the other: what is redirected is not forwarded";
        let problem = "are there, and a RequestRedirect filter as well";
        return Err(place.because("IncompatibleFilters", ".backendRefs", problem, hint));
    }
    Ok(rule)
}

/// A rule with its filters and backends. Filters that cannot be applied make requests fail.
pub(super) fn with_backends(
    kind: RouteKind,
    template: wire::HttpRule,
    (filters, backends): (&[FilterSpec], &[BackendSpec]),
    place: Place<'_>,
    failing: &mut Vec<Unusable>,
) -> Result<Rule, Unusable> {
    let mut apply = |specs: &[FilterSpec], field: &str| {
        let prefix = prefix(&template.matches);
        let scope = Scope {
            kind,
            prefix,
            field,
        };
        match filter::list(place, scope, specs) {
            Ok(filters) => (filters, None),
            Err(unusable) => {
                let reason = unusable.reason;
                failing.push(unusable);
                (Vec::new(), Some(reason))
            }
        }
    };
    let (filters, failing_rule) = apply(filters, ".filters");
    check_count(place, ".backendRefs", backends.len(), MAX_BACKENDS)?;
    let mut read = Vec::with_capacity(backends.len());
    for (index, spec) in backends.iter().enumerate() {
        let at = format!(".backendRefs[{index}]");
        let (filters, failing) = apply(&spec.filters, &format!("{at}.filters"));
        read.push(Backend {
            reference: spec.reference(),
            weight: super::weight(place, &at, spec.weight)?,
            filters,
            failing,
        });
    }
    Ok(Rule {
        template,
        filters,
        backends: read,
        failing: failing_rule,
    })
}

fn is_redirect(filters: &[Filter]) -> bool {
    filters.iter().any(|filter| match filter {
        Filter::Plain(filter) => matches!(filter.kind, Some(wire::filter::Kind::Redirect(_))),
        Filter::Mirror { .. } => false,
    })
}

/// A match without a path is one by the prefix `/` (Gateway API).
fn prefix(matches: &[wire::HttpMatch]) -> Prefix {
    let path = |one: &wire::HttpMatch| one.path.as_ref().and_then(|path| path.kind.clone());
    match matches {
        [] => Prefix::One,
        [one] => match path(one) {
            None | Some(wire::path_match::Kind::Prefix(_)) => Prefix::One,
            Some(_) => Prefix::NotOne,
        },
        _ => Prefix::NotOne,
    }
}

impl BackendSpec {
    fn reference(&self) -> BackendRef {
        BackendRef {
            group: self.group.clone(),
            kind: self.kind.clone(),
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            port: self.port,
        }
    }
}

/// Milliseconds; nothing and zero are no limit.
fn limit(place: Place<'_>, field: &str, text: Option<&str>) -> Result<Option<u64>, Unusable> {
    let Some(text) = text else { return Ok(None) };
    match duration::milliseconds(text) {
        Some(0) => Ok(None),
        Some(milliseconds) => Ok(Some(milliseconds)),
        None => {
            let problem = format!("is {:?}, which is no duration", check::shown(text));
            let hint = "write one like \"500ms\", \"10s\" or \"1h30m\"";
            Err(place.unsupported(field, problem, hint))
        }
    }
}

impl Timeouts {
    fn read(&self, place: Place<'_>) -> Result<(Option<u64>, Option<u64>), Unusable> {
        let request = limit(place, ".timeouts.request", self.request.as_deref())?;
        let field = ".timeouts.backendRequest";
        let backend = limit(place, field, self.backend_request.as_deref())?;
        if let (Some(request), Some(backend)) = (request, backend)
            && backend > request
        {
            let problem = "is longer than .timeouts.request";
            return Err(place.unsupported(field, problem, "shorten it: it is for one attempt"));
        }
        Ok((request, backend))
    }
}

impl RetrySpec {
    fn read(&self, place: Place<'_>) -> Result<wire::Retry, Unusable> {
        check_count(place, ".retry.codes", self.codes.len(), MAX_CODES)?;
        if let Some(code) = self.codes.iter().find(|code| !(400..600).contains(*code)) {
            let problem = format!("has {code}");
            return Err(place.unsupported(".retry.codes", problem, "use codes of 400 to 599"));
        }
        let attempts = self.attempts.unwrap_or(DEFAULT_ATTEMPTS);
        if attempts > MAX_ATTEMPTS {
            let problem = format!("is {attempts}");
            let hint = format!("use at most {MAX_ATTEMPTS}");
            return Err(place.unsupported(".retry.attempts", problem, hint));
        }
        let backoff = limit(place, ".retry.backoff", self.backoff.as_deref())?;
        Ok(wire::Retry {
            attempts,
            codes: self.codes.clone(),
            backoff_ms: backoff.unwrap_or(DEFAULT_BACKOFF_MS),
        })
    }
}

/// What keeps a client at its endpoint.
pub(super) fn session(
    place: Place<'_>,
    spec: Option<SessionSpec>,
) -> Result<Option<wire::SessionPersistence>, Unusable> {
    use wire::session_persistence::Kind;
    let Some(spec) = spec else { return Ok(None) };
    let at = ".sessionPersistence";
    let name = spec.session_name.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| DEFAULT_SESSION.to_owned());
    check::header_name(place, &format!("{at}.sessionName"), &name)?;
    let absolute = spec.absolute_timeout.as_deref();
    let absolute = limit(place, &format!("{at}.absoluteTimeout"), absolute)?;
    let lifetime = spec.cookie_config.and_then(|config| config.lifetime_type);
    let permanent = match lifetime.as_deref() {
        None | Some("Session") => false,
        Some("Permanent") if absolute.is_some() => true,
        Some("Permanent") => {
            let problem = "is Permanent, and there is no absoluteTimeout";
            let hint = "say with absoluteTimeout when the cookie ends";
            return Err(place.unsupported(format_args!("{at}.cookieConfig"), problem, hint));
        }
        Some(other) => {
            let problem = format!("is {:?}", check::shown(other));
            let field = format!("{at}.cookieConfig.lifetimeType");
            return Err(place.unsupported(field, problem, "use Session or Permanent"));
        }
    };
    let kind = match spec.r#type.as_deref().unwrap_or("Cookie") {
        "Cookie" => Kind::Cookie(name),
        "Header" => Kind::Header(name),
        other => {
            let problem = format!("is {:?}", check::shown(other));
            let field = format!("{at}.type");
            return Err(place.unsupported(field, problem, "use Cookie or Header"));
        }
    };
    Ok(Some(wire::SessionPersistence {
        kind: Some(kind),
        // Rounded up: a session that is too short would be none at all.
        absolute_seconds: absolute.map_or(0, |milliseconds| milliseconds.div_ceil(1000)),
        permanent,
    }))
}

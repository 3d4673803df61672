//! From a route on the wire to matches and rules.

use std::cmp::Reverse;
use std::sync::Arc;

use http::Method;
use karst_api::waypoint as wire;
use regex::bytes::Regex;

use super::RequestHead;
use super::l4_router::L4Rule;
use super::value::{HeaderMatch, QueryMatch, anchored};
use crate::balance::Cluster;
use crate::config::{ConfigError, at_most};
use crate::filter::Filter;
use crate::table::{
    BackendTarget, Backends, HttpRule, Retry, Session, SessionCarrier, WeightedBackend,
};

/// Rules of one route. The Gateway API allows 16; other sources of routes may have more.
const MAX_RULES: usize = 1024;

/// Matches of one route, over all its rules. The Gateway API allows 128.
const MAX_MATCHES: usize = 4096;

/// Conditions on headers, or on query parameters, of one match. The Gateway API allows 16.
const MAX_CONDITIONS: usize = 64;

/// Backends of one rule. The Gateway API allows 16.
const MAX_BACKENDS: usize = 256;

/// Status codes of one retry.
const MAX_RETRY_CODES: usize = 64;

/// Finds the cluster of a backend by its name; one that is not held has no endpoints.
pub type Resolve<'a> = &'a dyn Fn(&str) -> Arc<Cluster>;

/// A route resource, compiled. It does not depend on where it is attached.
pub struct CompiledRoute {
    name: Arc<str>,
    created: i64,
    matches: Vec<Arc<RuleMatch>>,
    l4_rule: Option<Arc<L4Rule>>,
}

/// One of the alternatives under which a rule applies.
pub struct RuleMatch {
    pub(super) path: PathRule,
    pub(super) rule: Arc<HttpRule>,
    method: Option<Method>,
    headers: Box<[HeaderMatch]>,
    query: Box<[QueryMatch]>,
    created: i64,
    /// Place among the matches of its route.
    place: usize,
}

/// The same in words, for listings.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MatchView {
    /// Such as `prefix /api`.
    pub path: String,
    /// `None` for any.
    pub method: Option<String>,
    /// Names of headers that are looked at; their values are not shown.
    pub headers: Vec<String>,
    /// Names of query parameters that are looked at; their values are not shown.
    pub query: Vec<String>,
}

pub(super) enum PathRule {
    Exact(Box<str>),
    /// Without a final slash, and not empty.
    Prefix(Box<str>),
    Regex {
        regex: Regex,
        /// Bytes of the expression as it was written.
        length: usize,
    },
    /// Every path: the prefix `/`.
    Any,
}

impl CompiledRoute {
    /// Checks and compiles a route.
    ///
    /// # Errors
    /// Names the field that is invalid. Nothing of such a route is used.
    pub fn new(route: &wire::Route, resolve: Resolve<'_>) -> Result<Self, ConfigError> {
        let mut compiled = Self {
            name: route.name.as_str().into(),
            created: route.created,
            matches: Vec::new(),
            l4_rule: None,
        };
        match route.kind() {
            wire::RouteKind::RouteHttp | wire::RouteKind::RouteGrpc => {
                compiled.http_rules(route, resolve)?;
            }
            wire::RouteKind::RouteTls | wire::RouteKind::RouteTcp => {
                // These kinds have one rule; with more, all match the same and the first one wins.
                if let Some(rule) = route.l4_rules.first() {
                    let rule = l4_rule(&compiled.name, rule, resolve);
                    let rule = rule.map_err(|error| error.within("l4_rules[0]"))?;
                    compiled.l4_rule = Some(Arc::new(rule));
                }
            }
            wire::RouteKind::RouteUnspecified => {
                return Err(ConfigError::new(
                    "kind",
                    "is missing, or not known to this version",
                ));
            }
        }
        Ok(compiled)
    }

    /// The route, `KIND/NAMESPACE/NAME`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    pub(super) fn matches(&self) -> &[Arc<RuleMatch>] {
        &self.matches
    }

    pub(super) fn l4_rule(&self) -> Option<&Arc<L4Rule>> {
        self.l4_rule.as_ref()
    }

    /// Which of two routes wins a tie: the smaller.
    pub(super) fn precedence(&self) -> (i64, (&str, &str)) {
        (self.created, alphabetical(&self.name))
    }

    fn http_rules(&mut self, route: &wire::Route, resolve: Resolve<'_>) -> Result<(), ConfigError> {
        at_most("http_rules", route.http_rules.len(), MAX_RULES)?;
        let matches = route
            .http_rules
            .iter()
            .map(|rule| rule.matches.len().max(1));
        at_most("http_rules.matches", matches.sum(), MAX_MATCHES)?;
        for (index, rule) in route.http_rules.iter().enumerate() {
            self.http_rule(route.kind(), (index, rule), resolve)
                .map_err(|error| error.within(format_args!("http_rules[{index}]")))?;
        }
        Ok(())
    }

    fn http_rule(
        &mut self,
        kind: wire::RouteKind,
        (index, rule): (usize, &wire::HttpRule),
        resolve: Resolve<'_>,
    ) -> Result<(), ConfigError> {
        let compiled = Arc::new(HttpRule {
            route: Arc::clone(&self.name),
            name: named(&rule.name, index),
            grpc: kind == wire::RouteKind::RouteGrpc,
            filters: Filter::list(&rule.filters, resolve)?,
            backends: backends(&rule.backends, resolve)?,
            request_timeout: milliseconds(rule.request_timeout_ms),
            backend_timeout: milliseconds(rule.backend_timeout_ms),
            retry: rule.retry.as_ref().map(retry).transpose()?,
            session: rule.session_persistence.as_ref().map(session).transpose()?,
        });
        let everything = [wire::HttpMatch::default()];
        let matches = if rule.matches.is_empty() {
            &everything[..]
        } else {
            &rule.matches[..]
        };
        for (index, wire) in matches.iter().enumerate() {
            let place = (self.created, self.matches.len());
            let compiled = RuleMatch::new(wire, Arc::clone(&compiled), place)
                .map_err(|error| error.within(format_args!("matches[{index}]")))?;
            self.matches.push(Arc::new(compiled));
        }
        Ok(())
    }
}

impl RuleMatch {
    fn new(
        wire: &wire::HttpMatch,
        rule: Arc<HttpRule>,
        (created, place): (i64, usize),
    ) -> Result<Self, ConfigError> {
        let method = match wire.method.as_str() {
            "" => None,
            method => Some(Method::from_bytes(method.as_bytes()).map_err(|_| {
                ConfigError::new("method", format!("is {method:?}, which is no method"))
            })?),
        };
        at_most("headers", wire.headers.len(), MAX_CONDITIONS)?;
        at_most("query", wire.query.len(), MAX_CONDITIONS)?;
        // Of several conditions on one name only the first counts.
        let mut headers: Vec<HeaderMatch> = Vec::with_capacity(wire.headers.len());
        for (index, wire) in wire.headers.iter().enumerate() {
            let header = HeaderMatch::new(wire)
                .map_err(|error| error.within(format_args!("headers[{index}]")))?;
            if headers.iter().all(|other| other.name != header.name) {
                headers.push(header);
            }
        }
        let mut query: Vec<QueryMatch> = Vec::with_capacity(wire.query.len());
        for (index, wire) in wire.query.iter().enumerate() {
            let parameter = QueryMatch::new(wire)
                .map_err(|error| error.within(format_args!("query[{index}]")))?;
            if query.iter().all(|other| other.name != parameter.name) {
                query.push(parameter);
            }
        }
        Ok(Self {
            path: PathRule::new(wire.path.as_ref())?,
            rule,
            method,
            headers: headers.into(),
            query: query.into(),
            created,
            place,
        })
    }

    /// What it leads to.
    #[must_use]
    pub fn rule(&self) -> &Arc<HttpRule> {
        &self.rule
    }

    /// In words.
    #[must_use]
    pub fn view(&self) -> MatchView {
        let path = match &self.path {
            PathRule::Exact(path) => format!("exact {path}"),
            PathRule::Prefix(prefix) => format!("prefix {prefix}"),
            PathRule::Any => "prefix /".to_owned(),
            PathRule::Regex { regex, .. } => {
                let whole = regex.as_str();
                let inner = whole.strip_prefix(r"\A(?:");
                let inner = inner.and_then(|rest| rest.strip_suffix(r")\z"));
                format!("regex {}", inner.unwrap_or(whole))
            }
        };
        MatchView {
            path,
            method: self.method.as_ref().map(ToString::to_string),
            headers: self.headers.iter().map(|h| h.name.to_string()).collect(),
            query: self.query.iter().map(|q| q.name.to_string()).collect(),
        }
    }

    /// Whether a request fulfils everything, the path apart, unless that is a regular expression.
    pub(super) fn matches(&self, request: &RequestHead<'_>) -> bool {
        self.method
            .as_ref()
            .is_none_or(|method| method == request.method)
            && self.headers.iter().all(|header| header.matches(request))
            && self.query.iter().all(|query| query.matches(request.query))
            && match &self.path {
                PathRule::Regex { regex, .. } => regex.is_match(request.path.as_bytes()),
                PathRule::Exact(_) | PathRule::Prefix(_) | PathRule::Any => true,
            }
    }

    /// Order among matches whose paths are equally specific; the smallest is the first to be tried.
    pub(super) fn precedence(&self) -> impl Ord {
        (
            self.method.is_none(),
            Reverse(self.headers.len()),
            Reverse(self.query.len()),
            self.created,
            alphabetical(&self.rule.route),
            self.place,
        )
    }
}

impl PathRule {
    fn new(wire: Option<&wire::PathMatch>) -> Result<Self, ConfigError> {
        let Some(wire) = wire else {
            return Ok(Self::Any);
        };
        let absolute = |field: &str, path: &str| {
            if path.starts_with('/') {
                return Ok(());
            }
            let problem = format!("is {path:?}, a path begins with a slash");
            Err(ConfigError::new(field, problem))
        };
        match &wire.kind {
            Some(wire::path_match::Kind::Exact(path)) => {
                absolute("path.exact", path)?;
                Ok(Self::Exact(path.as_str().into()))
            }
            Some(wire::path_match::Kind::Prefix(prefix)) => {
                absolute("path.prefix", prefix)?;
                match prefix.strip_suffix('/').unwrap_or(prefix) {
                    "" => Ok(Self::Any),
                    prefix => Ok(Self::Prefix(prefix.into())),
                }
            }
            Some(wire::path_match::Kind::Regex(pattern)) => Ok(Self::Regex {
                regex: anchored("path.regex", pattern)?,
                length: pattern.len(),
            }),
            None => Err(ConfigError::new(
                "path.kind",
                "is missing, or not known to this version",
            )),
        }
    }

    pub(super) fn prefix(&self) -> Option<&str> {
        match self {
            Self::Prefix(prefix) => Some(prefix),
            Self::Any => Some("/"),
            Self::Exact(_) | Self::Regex { .. } => None,
        }
    }

    pub(super) fn pattern_length(&self) -> usize {
        match self {
            Self::Regex { length, .. } => *length,
            Self::Exact(_) | Self::Prefix(_) | Self::Any => 0,
        }
    }
}

/// What decides between routes of the same age: `NAMESPACE/NAME`, then the kind.
fn alphabetical(route: &str) -> (&str, &str) {
    match route.split_once('/') {
        Some((kind, name)) => (name, kind),
        None => (route, ""),
    }
}

fn named(name: &str, index: usize) -> String {
    if name.is_empty() {
        index.to_string()
    } else {
        name.to_owned()
    }
}

fn l4_rule(
    route: &Arc<str>,
    rule: &wire::L4Rule,
    resolve: Resolve<'_>,
) -> Result<L4Rule, ConfigError> {
    Ok(L4Rule {
        route: Arc::clone(route),
        name: named(&rule.name, 0),
        backends: backends(&rule.backends, resolve)?,
    })
}

fn backends(wire: &[wire::WeightedBackend], resolve: Resolve<'_>) -> Result<Backends, ConfigError> {
    at_most("backends", wire.len(), MAX_BACKENDS)?;
    let mut backends = Backends::default();
    for (index, backend) in wire.iter().enumerate() {
        let filters = Filter::list(&backend.filters, resolve)
            .map_err(|error| error.within(format_args!("backends[{index}]")))?;
        if backend.weight == 0 {
            continue;
        }
        let target = if !backend.invalid.is_empty() {
            BackendTarget::Invalid(backend.invalid.clone())
        } else if backend.backend.is_empty() {
            let field = format!("backends[{index}].backend");
            return Err(ConfigError::new(
                field,
                "is empty, and there is no reason why",
            ));
        } else {
            BackendTarget::Cluster(resolve(&backend.backend))
        };
        backends.total += u64::from(backend.weight);
        backends.list.push(WeightedBackend {
            weight: backend.weight,
            target,
            filters,
        });
    }
    Ok(backends)
}

fn milliseconds(value: Option<u64>) -> Option<std::time::Duration> {
    value
        .filter(|value| *value > 0)
        .map(std::time::Duration::from_millis)
}

fn retry(wire: &wire::Retry) -> Result<Retry, ConfigError> {
    at_most("retry.codes", wire.codes.len(), MAX_RETRY_CODES)?;
    let code = |code: &u32| match u16::try_from(*code) {
        Ok(code @ 400..=599) => Ok(code),
        _ => {
            let problem = format!("has {code}, which is no status code of an error (400 to 599)");
            Err(ConfigError::new("retry.codes", problem))
        }
    };
    let mut codes = wire.codes.iter().map(code).collect::<Result<Vec<_>, _>>()?;
    codes.sort_unstable();
    codes.dedup();
    Ok(Retry {
        attempts: wire.attempts,
        codes,
        backoff: std::time::Duration::from_millis(wire.backoff_ms),
    })
}

fn session(wire: &wire::SessionPersistence) -> Result<Session, ConfigError> {
    let carrier = match &wire.kind {
        Some(wire::session_persistence::Kind::Cookie(name)) => {
            // The name of a cookie is a token (RFC 6265 4.1.1), and so is that of a header.
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
                let problem = format!("is {name:?}, which is no name of a cookie");
                return Err(ConfigError::new("session_persistence.cookie", problem));
            }
            SessionCarrier::Cookie(name.clone())
        }
        Some(wire::session_persistence::Kind::Header(name)) => {
            let header = http::HeaderName::from_bytes(name.as_bytes()).map_err(|_| {
                let problem = format!("is {name:?}, which is no name of a header");
                ConfigError::new("session_persistence.header", problem)
            })?;
            SessionCarrier::Header(header)
        }
        None => {
            return Err(ConfigError::new(
                "session_persistence.kind",
                "is missing, or not known to this version",
            ));
        }
    };
    Ok(Session {
        carrier,
        absolute: (wire.absolute_seconds > 0)
            .then(|| std::time::Duration::from_secs(wire.absolute_seconds)),
        permanent: wire.permanent,
    })
}

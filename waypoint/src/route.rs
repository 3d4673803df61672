//! Which rule a request or connection matches.
//!
//! [`CompiledRoute`] is one route resource with everything checked and compiled; [`HttpRouter`] and [`L4Router`]
//! put the routes of one listener or service in the order of precedence of the Gateway API (`HTTPRouteRule.matches`
//! and `HTTPRouteSpec.hostnames` in its types). Looking up a request allocates nothing and takes a number of steps
//! that depends on the configuration, not on the length of the path.

mod compile;
mod group;
mod http_router;
mod l4_router;
mod value;

use std::borrow::Cow;
use std::sync::Arc;

use http::StatusCode;

use crate::table::{Hostname, HttpRule};

pub use compile::{CompiledRoute, MatchView, Resolve, RuleMatch};
pub use http_router::HttpRouter;
pub use l4_router::{L4Router, L4Rule};

/// A route as it is attached to something.
#[derive(Clone, Copy)]
pub struct Attached<'a> {
    /// Host names for which it is; empty for all.
    pub hostnames: &'a [Hostname],
    /// The route; `None` if it is not held, then what its host names stand for is refused.
    pub route: Option<&'a CompiledRoute>,
}

/// What routing looks at.
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a http::Method,
    /// Host without port, lower case, without a final dot ([`host_of`]); empty if there is none.
    pub host: &'a str,
    /// Path, normalised, without query.
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// Headers.
    pub headers: &'a http::HeaderMap,
}

/// The rule for a request.
pub struct Matched<'a> {
    /// The rule.
    pub rule: &'a Arc<HttpRule>,
    /// The prefix that matched, for rewrites; `None` if the match was of another kind (then a prefix to be
    /// replaced is the whole path).
    pub prefix: Option<&'a str>,
}

/// Why there is no rule for a request or connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoRoute {
    /// Nothing matches.
    #[error("no route matches")]
    NotFound,
    /// A route that might match is not held yet, or none of its versions was valid.
    #[error("a route for this host is not there yet, or it is invalid")]
    NotReady,
}

impl NoRoute {
    /// Stable label for log and metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotFound => "no_route",
            Self::NotReady => "route_not_ready",
        }
    }

    /// What an HTTP client is answered.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::NotReady => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The host of an authority (`Host` or `:authority`) in the form that routing compares: without port, in lower
/// case, and without the dot that ends an absolute name. IPv6 addresses keep their brackets.
#[must_use]
pub fn host_of(authority: &str) -> Cow<'_, str> {
    let host = match authority.rfind(':') {
        Some(colon) if !authority[colon..].contains(']') => &authority[..colon],
        _ => authority,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(host.to_ascii_lowercase())
    } else {
        Cow::Borrowed(host)
    }
}

#[cfg(test)]
#[path = "route/tests.rs"]
mod tests;

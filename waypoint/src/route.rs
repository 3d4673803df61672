//! Which rule a request or connection matches.

use crate::table::{Backends, Hostname, HttpRule};
use std::sync::Arc;

/// All HTTP rules of one listener, in the order of precedence.
pub struct HttpRouter {}

/// What routing looks at.
pub struct RequestHead<'a> {
    /// Method.
    pub method: &'a http::Method,
    /// Host without port, lower case; empty if there is none.
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

impl HttpRouter {
    /// The rule that comes first of those that match.
    #[must_use]
    pub fn route<'a>(&'a self, _request: &RequestHead<'_>) -> Option<Matched<'a>> {
        None
    }
}

/// TLS and TCP rules of one listener.
pub struct L4Router {
    /// By host name, the most specific first; TCP rules have none.
    pub rules: Vec<(Option<Hostname>, Arc<Backends>)>,
}

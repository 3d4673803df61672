//! Changes of requests and responses.
//!
//! A rule has filters, and so has each of its backends. On the way to the backend those of the rule are applied
//! first, on the way back those of the backend. Paths are always changed from what the request came with, so that
//! of two rewrites the backend's counts.

mod cors;
mod headers;
mod mirror;
mod path;
mod redirect;
mod rewrite;

use http::header::HeaderValue;
use http::{Response, StatusCode, request, response};
use karst_api::waypoint as wire;

use crate::body::Body;
use crate::config::{ConfigError, at_most};
use crate::route::Resolve;

pub use cors::Cors;
pub use headers::HeaderChanges;
pub(crate) use headers::is_protected;
pub use mirror::Mirror;
pub use path::PathChange;
pub use redirect::Redirect;
pub use rewrite::Rewrite;

/// Filters of one rule, or of one backend of a rule. The Gateway API allows 16.
const MAX_FILTERS: usize = 64;

/// A compiled filter.
pub enum Filter {
    /// Headers of the request.
    RequestHeaders(HeaderChanges),
    /// Headers of the response.
    ResponseHeaders(HeaderChanges),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Host and path of the request.
    Rewrite(Rewrite),
    /// A copy to another backend.
    Mirror(Mirror),
    /// Cross-origin resource sharing.
    Cors(Cors),
    /// A kind that this version does not know: requests are answered with 500.
    Unsupported,
}

/// What filters look at besides the message. It is of the request as it came, before any filter.
#[derive(Clone, Copy, Debug)]
pub struct FilterContext<'a> {
    /// Whether the request came over TLS of a gateway's listener.
    pub scheme: RequestScheme,
    /// Host of the request without port; empty if there is none.
    pub host: &'a str,
    /// Port of the listener, or of the service.
    pub port: u16,
    /// Path that was matched, without query.
    pub path: &'a str,
    /// The prefix that matched ([`crate::route::Matched::prefix`]).
    pub prefix: Option<&'a str>,
    /// The request's `Origin`.
    pub origin: Option<&'a HeaderValue>,
}

/// The scheme of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestScheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

impl RequestScheme {
    /// As in a URI.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that need not be named.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// Why a filter answered a request; an extension of its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredBy {
    /// A redirect.
    Redirect,
    /// A preflight request was answered.
    Preflight,
    /// A filter that this version does not know.
    Unsupported,
    /// The changed request would not be valid.
    Unusable,
}

impl AnsweredBy {
    /// Stable label for log and metric.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Redirect => "redirect",
            Self::Preflight => "cors_preflight",
            Self::Unsupported => "filter_unsupported",
            Self::Unusable => "filter_unusable",
        }
    }

    fn answer(self, status: StatusCode) -> Response<Body> {
        let mut response = Response::new(Body::Empty);
        *response.status_mut() = status;
        response.extensions_mut().insert(self);
        response
    }
}

/// A request that cannot be changed as it should. What is put together is checked configuration and what the client
/// sent, so that the client is at fault.
#[derive(Debug)]
struct Unusable;

impl Unusable {
    fn answer(self) -> Response<Body> {
        AnsweredBy::Unusable.answer(StatusCode::BAD_REQUEST)
    }
}

impl Filter {
    /// Compiles a list of filters.
    ///
    /// # Errors
    /// Names the field that is invalid.
    pub fn list(wire: &[wire::Filter], resolve: Resolve<'_>) -> Result<Vec<Self>, ConfigError> {
        at_most("filters", wire.len(), MAX_FILTERS)?;
        let compile = |(index, filter): (usize, &wire::Filter)| {
            Self::new(filter, resolve)
                .map_err(|error| error.within(format_args!("filters[{index}]")))
        };
        wire.iter().enumerate().map(compile).collect()
    }

    fn new(wire: &wire::Filter, resolve: Resolve<'_>) -> Result<Self, ConfigError> {
        use wire::filter::Kind;
        match &wire.kind {
            Some(Kind::RequestHeaders(changes)) => HeaderChanges::of_request(changes)
                .map(Self::RequestHeaders)
                .map_err(|error| error.within("request_headers")),
            Some(Kind::ResponseHeaders(changes)) => HeaderChanges::of_response(changes)
                .map(Self::ResponseHeaders)
                .map_err(|error| error.within("response_headers")),
            Some(Kind::Redirect(redirect)) => Redirect::new(redirect)
                .map(Self::Redirect)
                .map_err(|error| error.within("redirect")),
            Some(Kind::Rewrite(rewrite)) => Rewrite::new(rewrite)
                .map(Self::Rewrite)
                .map_err(|error| error.within("rewrite")),
            Some(Kind::Mirror(mirror)) => Mirror::new(mirror, resolve)
                .map(Self::Mirror)
                .map_err(|error| error.within("mirror")),
            Some(Kind::Cors(cors)) => Cors::new(cors)
                .map(Self::Cors)
                .map_err(|error| error.within("cors")),
            None => Ok(Self::Unsupported),
        }
    }
}

/// Applies filters to a request, in their order; a preflight request is answered before all others see it.
///
/// An answer is final: what the filters of the same list do to responses is done to it. Its extensions have an
/// [`AnsweredBy`].
pub fn apply_request(
    filters: &[Filter],
    parts: &mut request::Parts,
    context: &FilterContext<'_>,
) -> Option<Response<Body>> {
    let preflight = filters.iter().find_map(|filter| match filter {
        Filter::Cors(cors) => cors.preflight(parts, context),
        _ => None,
    });
    if preflight.is_some() {
        return preflight;
    }
    for filter in filters {
        let answer = match filter {
            Filter::RequestHeaders(changes) => {
                changes.apply_request(parts).err().map(Unusable::answer)
            }
            Filter::Rewrite(rewrite) => rewrite.apply(parts, context).err().map(Unusable::answer),
            Filter::Redirect(redirect) => Some(redirect.answer(parts, context)),
            Filter::Unsupported => {
                Some(AnsweredBy::Unsupported.answer(StatusCode::INTERNAL_SERVER_ERROR))
            }
            Filter::ResponseHeaders(_) | Filter::Mirror(_) | Filter::Cors(_) => None,
        };
        if let Some(answer) = answer {
            let (mut parts, body) = answer.into_parts();
            apply_response(filters, &mut parts, context);
            return Some(Response::from_parts(parts, body));
        }
    }
    None
}

/// Applies filters to a response: a backend's, or one of our own for a request that got past
/// [`apply_request`].
pub fn apply_response(
    filters: &[Filter],
    parts: &mut response::Parts,
    context: &FilterContext<'_>,
) {
    for filter in filters {
        match filter {
            Filter::ResponseHeaders(changes) => changes.apply(&mut parts.headers),
            Filter::Cors(cors) => cors.apply_response(&mut parts.headers, context),
            Filter::RequestHeaders(_)
            | Filter::Redirect(_)
            | Filter::Rewrite(_)
            | Filter::Mirror(_)
            | Filter::Unsupported => {}
        }
    }
}

/// The mirrors among filters.
pub fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &Mirror> {
    filters.iter().filter_map(|filter| match filter {
        Filter::Mirror(mirror) => Some(mirror),
        _ => None,
    })
}

#[cfg(test)]
#[path = "filter/tests.rs"]
mod tests;

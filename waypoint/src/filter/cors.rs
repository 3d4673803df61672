//! Cross-origin resource sharing: the `HTTPCORSFilter` of the Gateway API, and the Fetch standard behind it.

use std::fmt::Write as _;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderName,
    HeaderValue, ORIGIN, SET_COOKIE, VARY,
};
use http::{Method, Response, StatusCode, request};
use karst_api::waypoint as wire;

use super::{AnsweredBy, FilterContext, RequestScheme};
use crate::body::Body;
use crate::config::{ConfigError, at_most};

/// Entries of one list. The Gateway API allows 64.
const MAX_ENTRIES: usize = 256;

/// How long a preflight's answer holds if nothing is said, in seconds: the Gateway API's default.
const DEFAULT_MAX_AGE_SECONDS: u32 = 5;

/// Headers that only the gateway sets once it has been told what is allowed.
const OURS: [HeaderName; 6] = [
    ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_ALLOW_CREDENTIALS,
    ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_HEADERS,
    ACCESS_CONTROL_EXPOSE_HEADERS,
    ACCESS_CONTROL_MAX_AGE,
];

/// Cross-origin resource sharing of a rule.
pub struct Cors {
    origins: Origins,
    methods: Names,
    headers: Names,
    expose: Names,
    credentials: Credentials,
    max_age: HeaderValue,
}

/// Origins that are allowed.
enum Origins {
    /// Every one, `null` included.
    Any,
    List(Box<[OriginPattern]>),
}

/// An allowed origin, in lower case.
struct OriginPattern {
    scheme: RequestScheme,
    host: HostPattern,
    port: u16,
}

enum HostPattern {
    Any,
    Exact(String),
    /// What follows the `*`.
    EndsWith(String),
}

/// Methods or headers that are allowed.
enum Names {
    Any,
    /// As they are written to the response; `None` if there are none.
    List(Option<HeaderValue>),
}

/// Whether credentials may be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Credentials {
    Allowed,
    Omitted,
}

impl Cors {
    pub(super) fn new(wire: &wire::Cors) -> Result<Self, ConfigError> {
        Ok(Self {
            origins: Origins::new(&wire.allow_origins)?,
            methods: Names::new("allow_methods", &wire.allow_methods, |name| {
                Method::from_bytes(name.as_bytes()).is_ok()
            })?,
            headers: Names::new("allow_headers", &wire.allow_headers, is_header)?,
            expose: Names::new("expose_headers", &wire.expose_headers, is_header)?,
            credentials: if wire.allow_credentials {
                Credentials::Allowed
            } else {
                Credentials::Omitted
            },
            max_age: HeaderValue::from(match wire.max_age_seconds {
                0 => DEFAULT_MAX_AGE_SECONDS,
                seconds => seconds,
            }),
        })
    }

    /// Answers a preflight request; `None` if it is none. An origin that is not allowed gets an answer that
    /// allows nothing.
    pub(super) fn preflight(
        &self,
        parts: &request::Parts,
        context: &FilterContext<'_>,
    ) -> Option<Response<Body>> {
        let origin = parts.headers.get(ORIGIN)?;
        let method = parts.headers.get(ACCESS_CONTROL_REQUEST_METHOD)?;
        if parts.method != Method::OPTIONS {
            return None;
        }
        let mut response = AnsweredBy::Preflight.answer(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        let context = FilterContext {
            origin: Some(origin),
            ..*context
        };
        if self.allow_origin(headers, &context) {
            if let Some(methods) = self.methods.or_requested(Some(method)) {
                headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
            }
            let requested = joined(&parts.headers, &ACCESS_CONTROL_REQUEST_HEADERS);
            if let Some(names) = self.headers.or_requested(requested.as_ref()) {
                headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
            }
            self.expose(headers, None);
            headers.insert(ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        Some(response)
    }

    /// Says to the browser who may read a response. What the application says about it does not count.
    pub(super) fn apply_response(&self, headers: &mut HeaderMap, context: &FilterContext<'_>) {
        for name in &OURS {
            headers.remove(name);
        }
        if self.allow_origin(headers, context) {
            let names = self.exposed_names(headers);
            self.expose(headers, names);
        }
    }

    /// Sets what depends on the origin; says whether the origin is allowed.
    fn allow_origin(&self, headers: &mut HeaderMap, context: &FilterContext<'_>) -> bool {
        let everybody = matches!(self.origins, Origins::Any);
        if everybody && self.credentials == Credentials::Omitted {
            // One answer for all: caches need not tell origins apart.
            let any = HeaderValue::from_static("*");
            return context.origin.is_some()
                && headers.try_insert(ACCESS_CONTROL_ALLOW_ORIGIN, any).is_ok();
        }
        vary_by_origin(headers);
        let Some(origin) = context.origin.filter(|origin| self.origins.allow(origin)) else {
            return false;
        };
        let _ = headers.try_insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials == Credentials::Allowed {
            let yes = HeaderValue::from_static("true");
            let _ = headers.try_insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        true
    }

    fn expose(&self, headers: &mut HeaderMap, names: Option<HeaderValue>) {
        let value = match &self.expose {
            Names::List(list) => list.clone(),
            Names::Any if self.credentials == Credentials::Omitted => {
                Some(HeaderValue::from_static("*"))
            }
            Names::Any => names,
        };
        if let Some(value) = value {
            let _ = headers.try_insert(ACCESS_CONTROL_EXPOSE_HEADERS, value);
        }
    }

    /// With credentials `*` has no meaning to browsers, so all headers are named one by one.
    fn exposed_names(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        if !matches!(self.expose, Names::Any) || self.credentials == Credentials::Omitted {
            return None;
        }
        let mut list = String::new();
        for name in headers.keys() {
            if !OURS.contains(name) && name != SET_COOKIE {
                let comma = if list.is_empty() { "" } else { ", " };
                // Writing to a string does not fail.
                let _ = write!(list, "{comma}{name}");
            }
        }
        (!list.is_empty())
            .then(|| HeaderValue::from_str(&list).ok())
            .flatten()
    }
}

impl Origins {
    fn new(wire: &[String]) -> Result<Self, ConfigError> {
        at_most("allow_origins", wire.len(), MAX_ENTRIES)?;
        if wire.iter().any(|origin| origin == "*") {
            return Ok(Self::Any);
        }
        let pattern = |(index, text): (usize, &String)| {
            OriginPattern::new(text).ok_or_else(|| {
                let problem = format!("is {text:?}, which is not of the form SCHEME://HOST[:PORT]");
                ConfigError::new(format!("allow_origins[{index}]"), problem)
            })
        };
        let list = wire.iter().enumerate().map(pattern);
        list.collect::<Result<_, _>>().map(Self::List)
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::List(list) => origin
                .to_str()
                .is_ok_and(|origin| list.iter().any(|pattern| pattern.matches(origin))),
        }
    }
}

impl OriginPattern {
    fn new(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let (scheme, host, port) = split_origin(&lower)?;
        let host = match host.strip_prefix('*') {
            Some("") => HostPattern::Any,
            Some(rest) => HostPattern::EndsWith(rest.to_owned()),
            None => HostPattern::Exact(host.to_owned()),
        };
        let rest = match &host {
            HostPattern::Any => "",
            HostPattern::Exact(rest) | HostPattern::EndsWith(rest) => rest,
        };
        let allowed = |byte: u8| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'[' | b']' | b':')
        };
        rest.bytes()
            .all(allowed)
            .then_some(Self { scheme, host, port })
    }

    fn matches(&self, origin: &str) -> bool {
        let Some((scheme, host, port)) = split_origin(origin) else {
            return false;
        };
        let host_fits = match &self.host {
            HostPattern::Any => true,
            HostPattern::Exact(name) => name.eq_ignore_ascii_case(host),
            HostPattern::EndsWith(end) => {
                // The `*` stands for one character at least.
                let start = host.len().checked_sub(end.len()).filter(|start| *start > 0);
                start
                    .and_then(|start| host.get(start..))
                    .is_some_and(|tail| tail.eq_ignore_ascii_case(end))
            }
        };
        host_fits && self.scheme == scheme && self.port == port
    }
}

/// Scheme, host and port of an origin; the port of the scheme if none is named.
fn split_origin(origin: &str) -> Option<(RequestScheme, &str, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let scheme = if scheme.eq_ignore_ascii_case("http") {
        RequestScheme::Http
    } else if scheme.eq_ignore_ascii_case("https") {
        RequestScheme::Https
    } else {
        return None;
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            let digits = port.bytes().all(|byte| byte.is_ascii_digit());
            (host, port.parse().ok().filter(|port| digits && *port != 0)?)
        }
        _ => (rest, scheme.default_port()),
    };
    (!host.is_empty()).then_some((scheme, host, port))
}

impl Names {
    fn new(field: &str, wire: &[String], valid: fn(&str) -> bool) -> Result<Self, ConfigError> {
        at_most(field, wire.len(), MAX_ENTRIES)?;
        if wire.iter().any(|name| name == "*") {
            return Ok(Self::Any);
        }
        if let Some((index, name)) = wire.iter().enumerate().find(|(_, name)| !valid(name)) {
            let problem = format!("is {name:?}, which is no valid name");
            return Err(ConfigError::new(format!("{field}[{index}]"), problem));
        }
        let list = (!wire.is_empty()).then(|| HeaderValue::from_str(&wire.join(", ")));
        let list = list.transpose();
        let error = |_| ConfigError::new(field, "cannot be written to a header");
        list.map(Self::List).map_err(error)
    }

    /// What is allowed: the list, or whatever is asked for. `*` itself would not cover `Authorization`, and
    /// nothing at all with credentials.
    fn or_requested(&self, requested: Option<&HeaderValue>) -> Option<HeaderValue> {
        match self {
            Self::Any => requested.cloned(),
            Self::List(list) => list.clone(),
        }
    }
}

fn is_header(name: &str) -> bool {
    HeaderName::from_bytes(name.as_bytes()).is_ok()
}

/// All lines of a header as one value.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<HeaderValue> {
    let mut values = headers.get_all(name).iter();
    let first = values.next()?;
    let mut bytes = first.as_bytes().to_vec();
    for value in values {
        bytes.extend_from_slice(b", ");
        bytes.extend_from_slice(value.as_bytes());
    }
    HeaderValue::from_bytes(&bytes).ok()
}

/// Tells caches that the response is another one for another origin.
fn vary_by_origin(headers: &mut HeaderMap) {
    let named = headers.get_all(VARY).iter().any(|value| {
        value.to_str().is_ok_and(|value| {
            let mut names = value.split(',').map(str::trim);
            names.any(|name| name == "*" || name.eq_ignore_ascii_case("origin"))
        })
    });
    if !named {
        let _ = headers.try_append(VARY, HeaderValue::from_static("origin"));
    }
}

//! Changes of requests and responses.

use karst_api::waypoint::{self as wire, filter::Kind, path_modifier};
use serde::Deserialize;
use serde_json::Value;

use super::{BackendRef, Place, RouteKind, Unusable, check, check_count};
use crate::token::is_name;

/// Filters of a rule, or of a backend (Gateway API).
const MAX_FILTERS: usize = 16;

/// Headers in one list of a filter. The Gateway API allows 16.
const MAX_HEADERS: usize = 16;

/// Entries in one list of a CORS filter (Gateway API).
const MAX_CORS: usize = 64;

/// Length of a path that is written into a request, in bytes (Gateway API).
const MAX_PATH_BYTES: usize = 1024;

/// How long a preflight's answer holds if nothing is said, seconds (Gateway API).
const DEFAULT_MAX_AGE: u32 = 5;

/// A filter.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Filter {
    /// One that refers to nothing.
    Plain(wire::Filter),
    /// A copy of requests.
    Mirror {
        reference: BackendRef,
        numerator: u32,
        denominator: u32,
    },
}

/// `HTTPRouteFilter`, and `GRPCRouteFilter`, which has fewer kinds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct FilterSpec {
    r#type: String,
    request_header_modifier: Option<Headers>,
    response_header_modifier: Option<Headers>,
    request_mirror: Option<Mirror>,
    request_redirect: Option<Redirect>,
    url_rewrite: Option<Rewrite>,
    cors: Option<Cors>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Headers {
    set: Vec<Header>,
    add: Vec<Header>,
    remove: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Header {
    name: String,
    value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Mirror {
    backend_ref: BackendRef,
    percent: Option<u32>,
    fraction: Option<Fraction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Fraction {
    numerator: u32,
    denominator: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Redirect {
    scheme: Option<String>,
    hostname: Option<String>,
    path: Option<PathModifier>,
    port: Option<u16>,
    status_code: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Rewrite {
    hostname: Option<String>,
    path: Option<PathModifier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct PathModifier {
    r#type: String,
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Cors {
    allow_origins: Vec<String>,
    allow_credentials: Option<Value>,
    allow_methods: Vec<String>,
    allow_headers: Vec<String>,
    expose_headers: Vec<String>,
    max_age: Option<u32>,
}

/// What the filters of a rule are for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scope<'a> {
    pub(super) kind: RouteKind,
    /// Whether the rule matches by exactly one path prefix, so that there is one to be replaced.
    pub(super) prefix: Prefix,
    /// Field of the list, below the rule's own.
    pub(super) field: &'a str,
}

/// Whether a rule's match has a path prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefix {
    /// It has exactly one match, by prefix.
    One,
    /// Anything else.
    NotOne,
}

/// Checks a list of filters.
pub(super) fn list(
    place: Place<'_>,
    scope: Scope<'_>,
    specs: &[FilterSpec],
) -> Result<Vec<Filter>, Unusable> {
    check_count(place, scope.field, specs.len(), MAX_FILTERS)?;
    let mut filters = Vec::new();
    for (index, spec) in specs.iter().enumerate() {
        let field = format!("{}[{index}]", scope.field);
        filters.push(spec.filter(place, scope, &field)?);
        let same = specs.iter().take(index);
        let repeated = same.clone().any(|other| other.r#type == spec.r#type);
        // Mirrors alone may be repeated.
        if repeated && spec.r#type != "RequestMirror" {
            let problem = format!("is a second {}", spec.r#type);
            return Err(incompatible(place, &field, problem, "merge the two"));
        }
    }
    let has = |kind: &str| specs.iter().any(|spec| spec.r#type == kind);
    if has("RequestRedirect") && has("URLRewrite") {
        let problem = "has both RequestRedirect and URLRewrite";
        let hint = "keep one of them: what is redirected is not forwarded";
        return Err(incompatible(place, scope.field, problem, hint));
    }
    Ok(filters)
}

fn incompatible(place: Place<'_>, field: &str, problem: impl Into<String>, hint: &str) -> Unusable {
    place.because("IncompatibleFilters", field, problem, hint)
}

fn given<'a, T>(
    place: Place<'_>,
    field: &str,
    name: &str,
    settings: &'a Option<T>,
) -> Result<&'a T, Unusable> {
    settings.as_ref().ok_or_else(|| {
        let field = format!("{field}.{name}");
        place.unsupported(field, "is missing", "say what the filter shall do")
    })
}

impl FilterSpec {
    fn filter(&self, place: Place<'_>, scope: Scope<'_>, field: &str) -> Result<Filter, Unusable> {
        let http = scope.kind == RouteKind::Http;
        let kind = match self.r#type.as_str() {
            "RequestHeaderModifier" => {
                let name = "requestHeaderModifier";
                let headers = given(place, field, name, &self.request_header_modifier)?;
                Kind::RequestHeaders(headers.of_request(place, &format!("{field}.{name}"))?)
            }
            "ResponseHeaderModifier" => {
                let name = "responseHeaderModifier";
                let headers = given(place, field, name, &self.response_header_modifier)?;
                Kind::ResponseHeaders(headers.to_wire(place, &format!("{field}.{name}"))?)
            }
            "RequestMirror" => {
                let mirror = given(place, field, "requestMirror", &self.request_mirror)?;
                return mirror.filter(place, &format!("{field}.requestMirror"));
            }
            "RequestRedirect" if http => {
                let redirect = given(place, field, "requestRedirect", &self.request_redirect)?;
                let field = format!("{field}.requestRedirect");
                Kind::Redirect(redirect.to_wire(place, scope, &field)?)
            }
            "URLRewrite" if http => {
                let rewrite = given(place, field, "urlRewrite", &self.url_rewrite)?;
                Kind::Rewrite(rewrite.to_wire(place, scope, &format!("{field}.urlRewrite"))?)
            }
            "CORS" if http => {
                let cors = given(place, field, "cors", &self.cors)?;
                Kind::Cors(cors.to_wire(place, &format!("{field}.cors"))?)
            }
            other => {
                let problem = format!("is {:?}, which is not supported", check::shown(other));
                let hint = "until the filter is removed, requests are answered with an error";
                return Err(place.unsupported(format_args!("{field}.type"), problem, hint));
            }
        };
        Ok(Filter::Plain(wire::Filter { kind: Some(kind) }))
    }
}

impl Headers {
    fn of_request(&self, place: Place<'_>, field: &str) -> Result<wire::HeaderModifier, Unusable> {
        let is_host = |name: &str| name.eq_ignore_ascii_case("host");
        if self.add.iter().any(|header| is_host(&header.name))
            || self.remove.iter().any(|name| is_host(name))
        {
            let hint = "set it instead: a request has exactly one";
            return Err(place.unsupported(field, "adds or removes \"host\"", hint));
        }
        for header in self.set.iter().filter(|header| is_host(&header.name)) {
            let (host, port) = header
                .value
                .rsplit_once(':')
                .unwrap_or((&header.value, "1"));
            check::hostname(place, &format!("{field}.set"), host)?;
            if !port.parse::<u16>().is_ok_and(|port| port != 0) {
                let problem = format!("sets \"host\" to {:?}", check::shown(&header.value));
                return Err(place.unsupported(field, problem, "use a host with or without a port"));
            }
        }
        self.to_wire(place, field)
    }

    fn to_wire(&self, place: Place<'_>, field: &str) -> Result<wire::HeaderModifier, Unusable> {
        let list = |list: &str, headers: &[Header]| {
            check_count(
                place,
                &format!("{field}.{list}"),
                headers.len(),
                MAX_HEADERS,
            )?;
            let mut out = Vec::with_capacity(headers.len());
            for (index, header) in headers.iter().enumerate() {
                let at = format!("{field}.{list}[{index}]");
                check::changed_header(place, &format!("{at}.name"), &header.name)?;
                check::header_value(place, &format!("{at}.value"), &header.value)?;
                out.push(wire::Header {
                    name: header.name.clone(),
                    value: header.value.clone(),
                });
            }
            Ok(out)
        };
        check_count(
            place,
            &format!("{field}.remove"),
            self.remove.len(),
            MAX_HEADERS,
        )?;
        for (index, name) in self.remove.iter().enumerate() {
            check::changed_header(place, &format!("{field}.remove[{index}]"), name)?;
        }
        Ok(wire::HeaderModifier {
            set: list("set", &self.set)?,
            add: list("add", &self.add)?,
            remove: self.remove.clone(),
        })
    }
}

impl Mirror {
    fn filter(&self, place: Place<'_>, field: &str) -> Result<Filter, Unusable> {
        let (numerator, denominator) = match (self.percent, &self.fraction) {
            (Some(_), Some(_)) => {
                let problem = "has both percent and fraction";
                return Err(place.unsupported(field, problem, "keep one of them"));
            }
            (Some(percent), None) => (percent, 100),
            (None, Some(fraction)) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
            (None, None) => (1, 1),
        };
        if denominator == 0 || numerator > denominator {
            let problem = format!("is {numerator} of {denominator} requests");
            return Err(place.unsupported(field, problem, "mirror between none and all of them"));
        }
        Ok(Filter::Mirror {
            reference: self.backend_ref.clone(),
            numerator,
            denominator,
        })
    }
}

impl Redirect {
    fn to_wire(
        &self,
        place: Place<'_>,
        scope: Scope<'_>,
        field: &str,
    ) -> Result<wire::Redirect, Unusable> {
        let scheme = self.scheme.clone().unwrap_or_default();
        if !matches!(scheme.as_str(), "" | "http" | "https") {
            let problem = format!("is {:?}", check::shown(&scheme));
            let field = format!("{field}.scheme");
            return Err(place.unsupported(field, problem, "use http or https"));
        }
        let status = self.status_code.unwrap_or(302);
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            let field = format!("{field}.statusCode");
            let hint = "use 301, 302, 303, 307 or 308";
            return Err(place.unsupported(field, format!("is {status}"), hint));
        }
        let hostname = self.hostname.clone().unwrap_or_default();
        if !hostname.is_empty() {
            check::hostname(place, &format!("{field}.hostname"), &hostname)?;
        }
        let path = self.path.as_ref();
        let path = path.map(|path| path.to_wire(place, scope, &format!("{field}.path")));
        Ok(wire::Redirect {
            scheme,
            hostname,
            port: self.port.unwrap_or_default().into(),
            path: path.transpose()?,
            status,
        })
    }
}

impl Rewrite {
    fn to_wire(
        &self,
        place: Place<'_>,
        scope: Scope<'_>,
        field: &str,
    ) -> Result<wire::UrlRewrite, Unusable> {
        let hostname = self.hostname.clone().unwrap_or_default();
        if !hostname.is_empty() {
            check::hostname(place, &format!("{field}.hostname"), &hostname)?;
        }
        let path = self.path.as_ref();
        let path = path.map(|path| path.to_wire(place, scope, &format!("{field}.path")));
        Ok(wire::UrlRewrite {
            hostname,
            path: path.transpose()?,
        })
    }
}

impl PathModifier {
    fn to_wire(
        &self,
        place: Place<'_>,
        scope: Scope<'_>,
        field: &str,
    ) -> Result<wire::PathModifier, Unusable> {
        let (text, kind): (_, fn(String) -> path_modifier::Kind) = match self.r#type.as_str() {
            "ReplaceFullPath" => (&self.replace_full_path, path_modifier::Kind::Full),
            "ReplacePrefixMatch" if scope.prefix == Prefix::One => {
                (&self.replace_prefix_match, path_modifier::Kind::Prefix)
            }
            "ReplacePrefixMatch" => {
                let problem = "is ReplacePrefixMatch, but the rule does not have exactly one match \
                               of type PathPrefix";
                let hint = "give the rule one such match, or use ReplaceFullPath";
                return Err(incompatible(place, &format!("{field}.type"), problem, hint));
            }
            other => {
                let problem = format!("is {:?}", check::shown(other));
                let hint = "use ReplaceFullPath or ReplacePrefixMatch";
                return Err(place.unsupported(format_args!("{field}.type"), problem, hint));
            }
        };
        let Some(text) = text else {
            let hint = "write the new path into the field that belongs to the type";
            return Err(place.unsupported(field, "has no path of its type", hint));
        };
        if text.len() > MAX_PATH_BYTES {
            let problem = format!("is {} bytes long", text.len());
            let hint = format!("use at most {MAX_PATH_BYTES}");
            return Err(place.unsupported(field, problem, hint));
        }
        Ok(wire::PathModifier {
            kind: Some(kind(text.clone())),
        })
    }
}

impl Cors {
    fn to_wire(&self, place: Place<'_>, field: &str) -> Result<wire::Cors, Unusable> {
        let lists = [
            (
                "allowOrigins",
                &self.allow_origins,
                is_origin as fn(&str) -> bool,
            ),
            ("allowMethods", &self.allow_methods, is_name),
            ("allowHeaders", &self.allow_headers, is_name),
            ("exposeHeaders", &self.expose_headers, is_name),
        ];
        for (name, list, valid) in lists {
            check_count(place, &format!("{field}.{name}"), list.len(), MAX_CORS)?;
            for (index, text) in list.iter().enumerate() {
                if text != "*" && !valid(text) {
                    let problem = format!("is {:?}", check::shown(text));
                    let hint = "see `kubectl explain httproute.spec.rules.filters.cors`";
                    let field = format!("{field}.{name}[{index}]");
                    return Err(place.unsupported(field, problem, hint));
                }
            }
        }
        let allow_credentials = match &self.allow_credentials {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::Bool(true)) => true,
            Some(other) => {
                let field = format!("{field}.allowCredentials");
                return Err(place.unsupported(field, format!("is {other}"), "use true or false"));
            }
        };
        Ok(wire::Cors {
            allow_origins: self.allow_origins.clone(),
            allow_methods: self.allow_methods.clone(),
            allow_headers: self.allow_headers.clone(),
            expose_headers: self.expose_headers.clone(),
            allow_credentials,
            max_age_seconds: self.max_age.unwrap_or(DEFAULT_MAX_AGE),
        })
    }
}

/// `SCHEME://HOST`, with or without a port; the host may begin with `*`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else {
        return false;
    };
    let (host, port) = rest.rsplit_once(':').unwrap_or((rest, "1"));
    let bare = host.strip_prefix('*').unwrap_or(host);
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-.".contains(&byte);
    matches!(scheme, "http" | "https")
        && !host.is_empty()
        && bare.bytes().all(allowed)
        && port.parse::<u16>().is_ok_and(|port| port != 0)
}

//! An authorizer, checked.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use http::{StatusCode, Uri};
use karst_api::waypoint as wire;
use karst_api::waypoint::extension_provider::Kind as WireKind;
use karst_api::waypoint::header_name::Kind as NameKind;

use super::STATUS_ON_ERROR;
use crate::balance::{Cluster, Clusters};
use crate::config::{ConfigError, at_most};

/// Time for a check where the configuration says nothing. Istio waits for 600 s, which no client does.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest time for a check, milliseconds.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// Bytes of a body that can be held back for a check.
const MAX_BODY_BYTES: u32 = 1 << 20;

/// Entries of one list of headers; the controller takes fewer.
const MAX_HEADERS: usize = 256;

/// Longest name of a provider, bytes; it is a label of metrics.
const MAX_NAME_BYTES: usize = 256;

/// An authorizer.
#[derive(Debug)]
pub struct Provider {
    /// Name in the mesh's configuration.
    pub name: Arc<str>,
    /// Who is asked; or why nobody can be.
    pub cluster: Result<Arc<Cluster>, Arc<str>>,
    /// Time for one check.
    pub timeout: Duration,
    /// Requests pass that nobody has decided about.
    pub fail_open: bool,
    /// For requests that nobody has decided about.
    pub status_on_error: StatusCode,
    /// The route is chosen by the request as it was changed.
    pub clear_route_cache: bool,
    /// How much it is sent of a body.
    pub body: Option<CheckedBody>,
    /// How it is asked.
    pub kind: Kind,
}

/// How an authorizer is asked.
#[derive(Debug)]
pub enum Kind {
    /// By gRPC.
    Grpc,
    /// By a request over HTTP.
    Http(Box<HttpCheck>),
}

/// How much an authorizer is sent of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckedBody {
    /// Bytes at most.
    pub max_bytes: usize,
    /// A longer one is sent in part.
    pub allow_partial: bool,
    /// As bytes instead of as text.
    pub as_bytes: bool,
}

/// How an authorizer is asked by HTTP.
#[derive(Debug, Default)]
pub struct HttpCheck {
    /// Before the path of the request.
    pub path_prefix: String,
    /// Headers of the request that it is sent.
    pub request_headers: Names,
    /// Headers that it is sent besides.
    pub additional_headers: Vec<(HeaderName, HeaderValue)>,
    /// Headers that go from its answer to the application.
    pub upstream_on_allow: Names,
    /// Headers that go from its answer to the client of a request that may go on.
    pub downstream_on_allow: Names,
    /// Likewise, of one that may not; `None`: all.
    pub downstream_on_deny: Option<Names>,
}

/// Names of headers, in lower case.
#[derive(Debug, Default)]
pub struct Names(Vec<NameKind>);

impl Names {
    /// Whether a name, in lower case, is one of them.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|each| match each {
            NameKind::Exact(exact) => name == exact,
            NameKind::Prefix(prefix) => name.starts_with(prefix.as_str()),
            NameKind::Suffix(suffix) => name.ends_with(suffix.as_str()),
        })
    }

    fn new(field: &str, wire: &[wire::HeaderName]) -> Result<Self, ConfigError> {
        at_most(field, wire.len(), MAX_HEADERS)?;
        let name = |(index, wire): (usize, &wire::HeaderName)| {
            let text = match &wire.kind {
                Some(NameKind::Exact(text) | NameKind::Prefix(text) | NameKind::Suffix(text)) => {
                    text.as_str()
                }
                None => "",
            };
            let lower = HeaderName::from_lowercase(text.as_bytes()).is_ok();
            match (&wire.kind, lower) {
                (Some(kind), true) => Ok(kind.clone()),
                _ => {
                    let field = format!("{field}[{index}]");
                    Err(ConfigError::new(
                        field,
                        "is no name of headers in lower case",
                    ))
                }
            }
        };
        let names = wire.iter().enumerate().map(name);
        Ok(Self(names.collect::<Result<_, _>>()?))
    }
}

impl Provider {
    /// Checks an authorizer.
    ///
    /// # Errors
    /// Something in it is wrong, or not known to this version.
    pub fn new(wire: &wire::ExtensionProvider, clusters: &Clusters) -> Result<Self, ConfigError> {
        let wrong = |field: &str, problem: &str| Err(ConfigError::new(field, problem));
        if wire.name.len() > MAX_NAME_BYTES || wire.name.chars().any(char::is_control) {
            return wrong("name", "is too long, or no text");
        }
        let cluster = match (wire.backend.as_str(), wire.invalid.as_str()) {
            ("", "") => return wrong("backend", "is empty"),
            (backend, "") => Ok(clusters.get(backend)),
            (_, invalid) => Err(invalid.into()),
        };
        let kind = match &wire.kind {
            Some(WireKind::Grpc(_)) => Kind::Grpc,
            Some(WireKind::Http(http)) => Kind::Http(Box::new(HttpCheck::new(http)?)),
            None if cluster.is_err() => Kind::Grpc,
            None => return wrong("kind", "is missing, or not known to this version"),
        };
        let timeout = match wire.timeout_ms {
            0 => DEFAULT_TIMEOUT,
            millis if millis <= MAX_TIMEOUT_MS => Duration::from_millis(millis),
            _ => return wrong("timeout_ms", "is more than 600000"),
        };
        let status_on_error = match wire.status_on_error {
            0 => STATUS_ON_ERROR,
            code => match u16::try_from(code)
                .ok()
                .and_then(|code| StatusCode::from_u16(code).ok())
            {
                Some(status) if status.is_client_error() || status.is_server_error() => status,
                _ => return wrong("status_on_error", "is no status from 400 to 599"),
            },
        };
        let body = match &wire.body {
            None => None,
            Some(body) if (1..=MAX_BODY_BYTES).contains(&body.max_bytes) => Some(CheckedBody {
                max_bytes: body.max_bytes as usize,
                allow_partial: body.allow_partial,
                as_bytes: body.as_bytes,
            }),
            Some(_) => return wrong("body.max_bytes", "is not from 1 to 1048576"),
        };
        Ok(Self {
            name: wire.name.as_str().into(),
            cluster,
            timeout,
            fail_open: wire.fail_open,
            status_on_error,
            clear_route_cache: wire.clear_route_cache,
            body,
            kind,
        })
    }

    /// Name of the backend that is asked, if one is.
    #[must_use]
    pub fn backend(&self) -> Option<&str> {
        self.cluster.as_ref().ok().map(|cluster| &**cluster.name())
    }
}

impl HttpCheck {
    fn new(wire: &wire::HttpCheck) -> Result<Self, ConfigError> {
        let prefix = &wire.path_prefix;
        let is_path = prefix.is_empty()
            || (prefix.starts_with('/')
                && !prefix.contains(['?', '#'])
                && prefix.parse::<Uri>().is_ok());
        if !is_path {
            return Err(ConfigError::new("path_prefix", "is no path"));
        }
        at_most(
            "additional_headers",
            wire.additional_headers.len(),
            MAX_HEADERS,
        )?;
        let header = |(index, header): (usize, &wire::Header)| {
            let name = HeaderName::from_lowercase(header.name.as_bytes());
            let value = HeaderValue::try_from(header.value.as_str());
            match (name, value) {
                (Ok(name), Ok(value)) => Ok((name, value)),
                _ => {
                    let field = format!("additional_headers[{index}]");
                    Err(ConfigError::new(field, "is no header"))
                }
            }
        };
        let additional = wire.additional_headers.iter().enumerate().map(header);
        let on_deny = &wire.downstream_on_deny;
        Ok(Self {
            path_prefix: prefix.clone(),
            request_headers: Names::new("request_headers", &wire.request_headers)?,
            additional_headers: additional.collect::<Result<_, _>>()?,
            upstream_on_allow: Names::new("upstream_on_allow", &wire.upstream_on_allow)?,
            downstream_on_allow: Names::new("downstream_on_allow", &wire.downstream_on_allow)?,
            downstream_on_deny: match on_deny.is_empty() {
                true => None,
                false => Some(Names::new("downstream_on_deny", on_deny)?),
            },
        })
    }
}

//! Redirects.

use std::fmt::Write as _;

use bytes::Bytes;
use http::header::{HeaderValue, LOCATION};
use http::{Response, StatusCode, request};
use karst_api::waypoint as wire;

use super::rewrite::Host;
use super::{AnsweredBy, FilterContext, PathChange, RequestScheme, Unusable};
use crate::body::Body;
use crate::config::ConfigError;

/// A redirect (`HTTPRequestRedirectFilter` of the Gateway API).
pub struct Redirect {
    scheme: Option<RequestScheme>,
    hostname: Option<String>,
    port: Option<u16>,
    path: Option<PathChange>,
    status: StatusCode,
}

impl Redirect {
    pub(super) fn new(wire: &wire::Redirect) -> Result<Self, ConfigError> {
        let scheme = match wire.scheme.as_str() {
            "" => None,
            "http" => Some(RequestScheme::Http),
            "https" => Some(RequestScheme::Https),
            other => {
                let problem = format!("is {other:?}, it must be http or https");
                return Err(ConfigError::new("scheme", problem));
            }
        };
        let hostname = match wire.hostname.as_str() {
            "" => None,
            name => {
                Host::new("hostname", name)?;
                Some(name.to_owned())
            }
        };
        let port = u16::try_from(wire.port).map_err(|_| {
            ConfigError::new("port", format!("is {}, a port is 1 to 65535", wire.port))
        })?;
        let status = match wire.status {
            301 => StatusCode::MOVED_PERMANENTLY,
            302 => StatusCode::FOUND,
            303 => StatusCode::SEE_OTHER,
            307 => StatusCode::TEMPORARY_REDIRECT,
            308 => StatusCode::PERMANENT_REDIRECT,
            other => {
                let problem = format!("is {other}, it must be 301, 302, 303, 307 or 308");
                return Err(ConfigError::new("status", problem));
            }
        };
        let path = wire.path.as_ref().map(PathChange::new).transpose();
        Ok(Self {
            scheme,
            hostname,
            port: (port != 0).then_some(port),
            path: path.map_err(|error| error.within("path"))?,
            status,
        })
    }

    pub(super) fn answer(
        &self,
        parts: &request::Parts,
        context: &FilterContext<'_>,
    ) -> Response<Body> {
        let location = self.location(parts.uri.query(), context);
        match HeaderValue::from_maybe_shared(Bytes::from(location)) {
            Ok(location) => {
                let mut response = AnsweredBy::Redirect.answer(self.status);
                response.headers_mut().insert(LOCATION, location);
                response
            }
            Err(_) => Unusable.answer(),
        }
    }

    fn location(&self, query: Option<&str>, context: &FilterContext<'_>) -> String {
        let mut location = String::with_capacity(context.host.len() + context.path.len() + 64);
        let path = match &self.path {
            Some(change) => change.apply(context),
            None => context.path.to_owned(),
        };
        let host = self.hostname.as_deref().unwrap_or(context.host);
        if host.is_empty() {
            // A client without `Host` (HTTP/1.0) resolves the path itself. Two slashes in front would be a host.
            location.push('/');
            location.push_str(path.trim_start_matches('/'));
        } else {
            let scheme = self.scheme.unwrap_or(context.scheme);
            let port = self.port.unwrap_or(match self.scheme {
                Some(scheme) => scheme.default_port(),
                None => context.port,
            });
            location.push_str(scheme.as_str());
            location.push_str("://");
            location.push_str(host);
            if port != scheme.default_port() {
                // Writing to a string does not fail.
                let _ = write!(location, ":{port}");
            }
            if !path.starts_with('/') {
                location.push('/');
            }
            location.push_str(&path);
        }
        if let Some(query) = query {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

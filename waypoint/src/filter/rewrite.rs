//! Rewrites of host and path.

use http::header::{HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery};
use http::{Uri, request};
use karst_api::waypoint as wire;

use super::{FilterContext, PathChange, Unusable};
use crate::config::ConfigError;

/// A rewrite of host and path; the query stays.
pub struct Rewrite {
    host: Option<Host>,
    path: Option<PathChange>,
}

/// A host in the two forms that a request carries.
pub(super) struct Host {
    header: HeaderValue,
    authority: Authority,
}

impl Host {
    pub(super) fn new(field: &str, text: &str) -> Result<Self, ConfigError> {
        let error = || {
            let problem = format!("is {text:?}, which is neither a host nor a host with a port");
            ConfigError::new(field, problem)
        };
        let authority: Authority = text.parse().map_err(|_| error())?;
        if authority.as_str().contains('@') {
            return Err(error());
        }
        let header = HeaderValue::from_str(text).map_err(|_| error())?;
        Ok(Self { header, authority })
    }

    /// Replaces the host: `Host`, and what HTTP/2 has instead of it.
    pub(super) fn apply(&self, parts: &mut request::Parts) -> Result<(), Unusable> {
        parts.headers.insert(HOST, self.header.clone());
        if parts.uri.authority().is_none() {
            return Ok(());
        }
        replace_uri(parts, |uri| uri.authority = Some(self.authority.clone()))
    }
}

impl Rewrite {
    pub(super) fn new(wire: &wire::UrlRewrite) -> Result<Self, ConfigError> {
        let host = match wire.hostname.as_str() {
            "" => None,
            hostname => Some(Host::new("hostname", hostname)?),
        };
        let path = wire.path.as_ref().map(PathChange::new).transpose();
        Ok(Self {
            host,
            path: path.map_err(|error| error.within("path"))?,
        })
    }

    pub(super) fn apply(
        &self,
        parts: &mut request::Parts,
        context: &FilterContext<'_>,
    ) -> Result<(), Unusable> {
        if let Some(host) = &self.host {
            host.apply(parts)?;
        }
        let Some(change) = &self.path else {
            return Ok(());
        };
        let mut path = change.apply(context);
        if let Some(query) = parts.uri.query() {
            path.push('?');
            path.push_str(query);
        }
        let path = PathAndQuery::from_maybe_shared(path).map_err(|_| Unusable)?;
        replace_uri(parts, |uri| uri.path_and_query = Some(path))
    }
}

fn replace_uri(
    parts: &mut request::Parts,
    change: impl FnOnce(&mut http::uri::Parts),
) -> Result<(), Unusable> {
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    change(&mut uri);
    parts.uri = Uri::from_parts(uri).map_err(|_| Unusable)?;
    Ok(())
}

//! Rules of a RequestAuthentication, checked.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderName, HeaderValue};
use karst_api::waypoint as wire;
use karst_api::waypoint::token_rule::Keys as WireKeys;

use super::claims::{MAX_DEPTH, Verified};
use super::extract::{Place, usual};
use super::keys::KeySet;
use super::source::{KeySource, KeySources};
use crate::config::{ConfigError, at_most};

/// Rules of one object: the CRD's limit.
const MAX_RULES: usize = 32;

/// Entries of a list of a rule: the CRD's limit.
const MAX_ITEMS: usize = 64;

/// Bytes of a text of a rule: the CRD's limit.
const MAX_TEXT_BYTES: usize = 2048;

/// Longest time for one fetch of keys.
const MAX_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a header made of a claim. Larger claims are left out.
const MAX_HEADER_BYTES: usize = 4096;

/// A RequestAuthentication.
pub struct Document {
    pub(super) rules: Vec<Arc<Rule>>,
    pub(super) unusable: bool,
}

/// Tokens of one issuer.
pub(super) struct Rule {
    pub(super) issuer: String,
    pub(super) audiences: Vec<String>,
    pub(super) keys: Keys,
    pub(super) places: Vec<Place>,
    pub(super) forward: bool,
    payload_header: Option<HeaderName>,
    claim_headers: Vec<(HeaderName, Vec<String>)>,
    pub(super) space_delimited: Vec<String>,
}

/// Where keys are from.
pub(super) enum Keys {
    Inline(Arc<KeySet>),
    Fetched(Arc<KeySource>),
    /// The rule could not be understood.
    Unusable,
}

impl Document {
    /// Checks an object. Keys that must be fetched are fetched from then on.
    ///
    /// # Errors
    /// Something in it is wrong, or not known to this version.
    pub fn new(
        wire: &wire::RequestAuthentication,
        sources: &Arc<KeySources>,
    ) -> Result<Self, ConfigError> {
        at_most("rules", wire.rules.len(), MAX_RULES)?;
        let rule = |(index, wire): (usize, &wire::TokenRule)| {
            Rule::new(wire, sources)
                .map(Arc::new)
                .map_err(|error| error.within(format_args!("rules[{index}]")))
        };
        let rules = wire.rules.iter().enumerate().map(rule);
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
            unusable: wire.unusable,
        })
    }
}

impl Rule {
    fn new(wire: &wire::TokenRule, sources: &Arc<KeySources>) -> Result<Self, ConfigError> {
        let keys = keys(wire, sources)?;
        if wire.issuer.is_empty() && !matches!(keys, Keys::Unusable) {
            return Err(ConfigError::new("issuer", "is empty"));
        }
        texts("issuer", std::slice::from_ref(&wire.issuer))?;
        texts("audiences", &wire.audiences)?;
        texts("space_delimited_claims", &wire.space_delimited_claims)?;
        at_most("claim_headers", wire.claim_headers.len(), MAX_ITEMS)?;
        let claim = |(index, wire): (usize, &wire::ClaimHeader)| {
            let at = |error: ConfigError| error.within(format_args!("claim_headers[{index}]"));
            at_most("claim", wire.claim.len(), MAX_DEPTH).map_err(at)?;
            let name = header_name("header", &wire.header).map_err(at)?;
            Ok((name, wire.claim.clone()))
        };
        let claims = wire.claim_headers.iter().enumerate().map(claim);
        let payload = Some(&wire.payload_header).filter(|name| !name.is_empty());
        let payload = payload.map(|name| header_name("payload_header", name));
        Ok(Self {
            issuer: wire.issuer.clone(),
            audiences: wire.audiences.clone(),
            keys,
            places: places(wire)?,
            forward: wire.forward,
            payload_header: payload.transpose()?,
            claim_headers: claims.collect::<Result<_, ConfigError>>()?,
            space_delimited: wire.space_delimited_claims.clone(),
        })
    }

    /// Headers that it writes.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &HeaderName> {
        let claims = self.claim_headers.iter().map(|(name, _)| name);
        claims.chain(&self.payload_header)
    }

    /// The headers that a token makes. A claim that is not there, or no text for a header, makes none.
    pub(super) fn headers_of(&self, token: &Verified) -> Vec<(HeaderName, HeaderValue)> {
        let claims = self.claim_headers.iter().filter_map(|(name, path)| {
            let text = token.scalar(path)?;
            let value = HeaderValue::try_from(text).ok()?;
            (value.len() <= MAX_HEADER_BYTES).then(|| (name.clone(), value))
        });
        let payload = self.payload_header.iter().filter_map(|name| {
            let value = HeaderValue::try_from(&*token.payload).ok()?;
            Some((name.clone(), value))
        });
        claims.chain(payload).collect()
    }
}

fn keys(wire: &wire::TokenRule, sources: &Arc<KeySources>) -> Result<Keys, ConfigError> {
    match &wire.keys {
        Some(WireKeys::Jwks(text)) => match KeySet::read(text.as_bytes()) {
            Ok(keys) => Ok(Keys::Inline(Arc::new(keys))),
            Err(error) => Err(ConfigError::new("jwks", error.to_string())),
        },
        Some(WireKeys::JwksUri(uri)) => {
            let timeout = Duration::from_millis(wire.timeout_ms);
            if timeout.is_zero() || timeout > MAX_TIMEOUT {
                let problem = format!("is {}, not from 1 to 30000", wire.timeout_ms);
                return Err(ConfigError::new("timeout_ms", problem));
            }
            let source = sources.get(uri, timeout);
            // The address is not shown: it may have a secret in its query.
            let source = source.ok_or_else(|| {
                ConfigError::new("jwks_uri", "is no address of http or https with a host")
            })?;
            Ok(Keys::Fetched(source))
        }
        Some(WireKeys::Unusable(true)) => Ok(Keys::Unusable),
        Some(WireKeys::Unusable(false)) | None => Err(ConfigError::new(
            "keys",
            "is missing, or not known to this version",
        )),
    }
}

fn places(wire: &wire::TokenRule) -> Result<Vec<Place>, ConfigError> {
    at_most("headers", wire.headers.len(), MAX_ITEMS)?;
    texts("parameters", &wire.parameters)?;
    texts("cookies", &wire.cookies)?;
    let mut places = Vec::new();
    for (index, header) in wire.headers.iter().enumerate() {
        let at = |error: ConfigError| error.within(format_args!("headers[{index}]"));
        let name = header_name("name", &header.name).map_err(at)?;
        texts("prefix", std::slice::from_ref(&header.prefix)).map_err(at)?;
        places.push(Place::Header(
            name.as_str().to_owned(),
            header.prefix.clone(),
        ));
    }
    places.extend(wire.parameters.iter().cloned().map(Place::Parameter));
    places.extend(wire.cookies.iter().cloned().map(Place::Cookie));
    if places.is_empty() {
        places.extend(usual());
    }
    Ok(places)
}

fn texts(field: &str, texts: &[String]) -> Result<(), ConfigError> {
    at_most(field, texts.len(), MAX_ITEMS)?;
    for (index, text) in texts.iter().enumerate() {
        if text.len() > MAX_TEXT_BYTES {
            let problem = format!(
                "is {} bytes long, at most {MAX_TEXT_BYTES} are allowed",
                text.len()
            );
            return Err(ConfigError::new(format!("{field}[{index}]"), problem));
        }
    }
    Ok(())
}

fn header_name(field: &str, name: &str) -> Result<HeaderName, ConfigError> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| ConfigError::new(field, format!("is {name:?}, which is no name of a header")))
}

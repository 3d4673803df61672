//! What a condition can be about, as it is written and as waypoints and gateways are told.
//!
//! Unlike node agents they know everything that the API can ask for but what only Istio's own proxy
//! knows.

use karst_api::{
    security,
    waypoint::{self as wire, Attribute, attribute_value::Kind},
};

use super::values::{self, Wrong};
use crate::token::is_token;

/// Bytes of one value. Proxies take no more.
const MAX_VALUE_BYTES: usize = 4096;

/// What a field of a source or operation asks for.
pub(super) enum Named {
    Is(Attribute),
    IsNot(Attribute),
    /// Something of Istio's that proxies of ours do not know.
    NotKnown,
    /// Nothing.
    Unheard,
}

/// The attribute of a field of a source.
pub(super) fn source(name: &str) -> Named {
    match name {
        "principals" => Named::Is(Attribute::SourcePrincipal),
        "notPrincipals" => Named::IsNot(Attribute::SourcePrincipal),
        "namespaces" => Named::Is(Attribute::SourceNamespace),
        "notNamespaces" => Named::IsNot(Attribute::SourceNamespace),
        "serviceAccounts" => Named::Is(Attribute::SourceServiceAccount),
        "notServiceAccounts" => Named::IsNot(Attribute::SourceServiceAccount),
        "ipBlocks" => Named::Is(Attribute::SourceIp),
        "notIpBlocks" => Named::IsNot(Attribute::SourceIp),
        "remoteIpBlocks" => Named::Is(Attribute::RemoteIp),
        "notRemoteIpBlocks" => Named::IsNot(Attribute::RemoteIp),
        "requestPrincipals" => Named::Is(Attribute::RequestPrincipal),
        "notRequestPrincipals" => Named::IsNot(Attribute::RequestPrincipal),
        "trustDomains" | "notTrustDomains" => Named::NotKnown,
        _ => Named::Unheard,
    }
}

/// The attribute of a field of an operation.
pub(super) fn operation(name: &str) -> Named {
    match name {
        "hosts" => Named::Is(Attribute::Host),
        "notHosts" => Named::IsNot(Attribute::Host),
        "ports" => Named::Is(Attribute::DestinationPort),
        "notPorts" => Named::IsNot(Attribute::DestinationPort),
        "methods" => Named::Is(Attribute::Method),
        "notMethods" => Named::IsNot(Attribute::Method),
        "paths" => Named::Is(Attribute::Path),
        "notPaths" => Named::IsNot(Attribute::Path),
        _ => Named::Unheard,
    }
}

/// The attribute of a condition's key, and what is in its brackets.
pub(super) fn keyed(key: &str) -> Option<(Attribute, String)> {
    let plain = match key {
        "source.ip" => Attribute::SourceIp,
        "remote.ip" => Attribute::RemoteIp,
        "source.namespace" => Attribute::SourceNamespace,
        "source.principal" => Attribute::SourcePrincipal,
        "source.serviceAccount" => Attribute::SourceServiceAccount,
        "destination.ip" => Attribute::DestinationIp,
        "destination.port" => Attribute::DestinationPort,
        "connection.sni" => Attribute::Sni,
        "request.auth.principal" => Attribute::RequestPrincipal,
        "request.auth.audiences" => Attribute::RequestAudiences,
        "request.auth.presenter" => Attribute::RequestPresenter,
        _ => return bracketed(key),
    };
    Some((plain, String::new()))
}

/// Whether an attribute is one of an end user's token.
pub(super) fn is_of_token(attribute: Attribute) -> bool {
    matches!(
        attribute,
        Attribute::RequestPrincipal
            | Attribute::RequestAudiences
            | Attribute::RequestPresenter
            | Attribute::RequestClaim
    )
}

/// Attributes that Istio has and no proxy of ours knows.
pub(super) fn is_other(key: &str) -> bool {
    key == "source.trustDomain" || key.starts_with("experimental.")
}

fn bracketed(key: &str) -> Option<(Attribute, String)> {
    let inner = |prefix: &str| {
        let rest = key.strip_prefix(prefix)?.strip_prefix('[')?;
        rest.strip_suffix(']')
    };
    if let Some(name) = inner("request.headers") {
        return is_token(name).then(|| (Attribute::Header, name.to_owned()));
    }
    let claims: Vec<&str> = inner("request.auth.claims")?.split("][").collect();
    let is_path = claims.iter().all(|claim| !claim.is_empty());
    is_path.then(|| (Attribute::RequestClaim, claims.join("][")))
}

/// A value of an attribute.
pub(super) fn read_value(attribute: Attribute, text: &str, namespace: &str) -> Result<Kind, Wrong> {
    if text.len() > MAX_VALUE_BYTES {
        return Err((
            format!("is {} bytes long", text.len()),
            "write at most 4096 bytes",
        ));
    }
    match attribute {
        Attribute::SourceIp | Attribute::RemoteIp | Attribute::DestinationIp => {
            let block = values::address(text)?;
            Ok(Kind::IpBlock(wire::IpBlock {
                address: block.address,
                length: block.length,
            }))
        }
        Attribute::DestinationPort => values::port(text).map(Kind::Port),
        Attribute::SourceServiceAccount => {
            let account = values::service_account(text, namespace)?;
            let (namespace, name) = (account.namespace, account.service_account);
            Ok(Kind::Exact(format!("{namespace}/{name}")))
        }
        Attribute::SourcePrincipal => values::principal(text).and_then(string_kind),
        Attribute::Path if text.contains(['{', '}']) => template(text),
        _ => values::string(text).and_then(string_kind),
    }
}

fn string_kind(value: security::StringMatch) -> Result<Kind, Wrong> {
    use security::string_match::MatchType;
    match value.match_type {
        Some(MatchType::Exact(text)) => Ok(Kind::Exact(text)),
        Some(MatchType::Prefix(text)) => Ok(Kind::Prefix(text)),
        Some(MatchType::Suffix(text)) => Ok(Kind::Suffix(text)),
        Some(MatchType::Presence(())) => Ok(Kind::Present(true)),
        None => Err(("is nothing".to_owned(), "write a value")),
    }
}

/// A path with the operators `{*}` and `{**}`, each a whole segment, and the latter the last of them.
fn template(text: &str) -> Result<Kind, Wrong> {
    let hint = "use {*} for one segment and {**} for any number, each alone between slashes, and nothing of the \
                kind behind {**}; other asterisks and braces may not be in such a path";
    let mut is_last = false;
    let is_good = |segment: &str| match segment {
        "{*}" | "{**}" if is_last => false,
        "{**}" => {
            is_last = true;
            true
        }
        "{*}" => true,
        literal => !literal.contains(['*', '{', '}']),
    };
    let segments = text.strip_prefix('/').map(|rest| rest.split('/'));
    // Proxies take no more segments.
    let few = |count: usize| count <= 256;
    let is_template =
        segments.is_some_and(|segments| few(segments.clone().count()) && { segments }.all(is_good));
    if is_template {
        Ok(Kind::PathTemplate(text.to_owned()))
    } else {
        Err((format!("is {text:?}, which is no template of paths"), hint))
    }
}

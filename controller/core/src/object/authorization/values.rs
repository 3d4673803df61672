//! Values of conditions, as they are on the wire.

use std::net::IpAddr;

use karst_api::{
    convert::{address_bytes, network, parse_block, whole},
    security as wire,
};

/// What is wrong with a value, and what to do about it.
pub(super) type Wrong = (String, &'static str);

fn wrong<T>(problem: impl Into<String>, hint: &'static str) -> Result<T, Wrong> {
    Err((problem.into(), hint))
}

/// A name, or a pattern with one `*` at either end.
pub(super) fn string(text: &str) -> Result<wire::StringMatch, Wrong> {
    use wire::string_match::MatchType;
    let kind = match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
        ("", _, _) => return wrong("is empty", "write a name, or \"*\" for any"),
        ("*", _, _) => MatchType::Presence(()),
        (_, Some(rest), _) => MatchType::Suffix(rest.to_owned()),
        (_, None, Some(rest)) => MatchType::Prefix(rest.to_owned()),
        (text, None, None) => MatchType::Exact(text.to_owned()),
    };
    let rest = match &kind {
        MatchType::Exact(rest) | MatchType::Prefix(rest) | MatchType::Suffix(rest) => rest,
        MatchType::Presence(()) => "",
    };
    if rest.contains('*') {
        // Taken literally it would match nobody, which is not what a DENY rule's author wants.
        let hint = "use one \"*\", at the beginning or at the end";
        return wrong(
            format!("is {text:?}, with a \"*\" that is not alone at one end"),
            hint,
        );
    }
    Ok(wire::StringMatch {
        match_type: Some(kind),
    })
}

/// An identity, as `TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT`, or a pattern.
pub(super) fn principal(text: &str) -> Result<wire::StringMatch, Wrong> {
    if text.trim_start_matches('*').starts_with("spiffe://") {
        let hint = "leave spiffe:// out, as in \"cluster.local/ns/shop/sa/web\"";
        return wrong(format!("is {text:?}, which no client's principal is"), hint);
    }
    string(text)
}

/// A service account, of the policy's own namespace if it names none.
pub(super) fn service_account(
    text: &str,
    namespace: &str,
) -> Result<wire::ServiceAccountMatch, Wrong> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    let is_name = |part: &str| !part.is_empty() && !part.contains(['/', '*']);
    if !is_name(namespace) || !is_name(name) {
        let hint = "write \"NAMESPACE/NAME\", or \"NAME\" for one of the policy's own namespace";
        return wrong(format!("is {text:?}, which is no service account"), hint);
    }
    Ok(wire::ServiceAccountMatch {
        namespace: namespace.to_owned(),
        service_account: name.to_owned(),
    })
}

/// An address or a range of them.
pub(super) fn address(text: &str) -> Result<wire::Address, Wrong> {
    let hint = "write an address like \"10.0.0.1\", or a range like \"10.0.0.0/8\"";
    let read = || {
        let (ip, length) = parse_block(text)?;
        let length = length.unwrap_or_else(|| whole(ip));
        // An IPv4 address in its IPv6 form is compared as what it is.
        let (ip, length) = match (ip.to_canonical(), length.checked_sub(96)) {
            (IpAddr::V4(v4), Some(length)) if ip.is_ipv6() => (v4.into(), length),
            _ => (ip, length),
        };
        Some(wire::Address {
            address: address_bytes(network(ip, length)?),
            length: length.into(),
        })
    };
    let problem = || format!("is {text:?}, which is no address and no range");
    read().ok_or_else(|| (problem(), hint))
}

/// A port's number, as text.
pub(super) fn port(text: &str) -> Result<u32, Wrong> {
    match text.parse::<u16>() {
        Ok(port) if port != 0 && !text.starts_with('+') => Ok(port.into()),
        _ => wrong(
            format!("is {text:?}, which is no port"),
            "write a number from 1 to 65535, in quotes",
        ),
    }
}

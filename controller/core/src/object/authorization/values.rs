//! Values of conditions, as they are on the wire.

use std::net::IpAddr;

use karst_api::security as wire;

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
    let refused = || {
        wrong(
            format!("is {text:?}, which is no address and no range"),
            hint,
        )
    };
    let (ip, length) = match text.split_once('/') {
        None => (text, None),
        Some((ip, length)) => (ip, Some(length)),
    };
    let Ok(ip) = ip.parse::<IpAddr>() else {
        return refused();
    };
    let bits = if ip.is_ipv4() { 32_u32 } else { 128 };
    let length = match length {
        None => bits,
        // `parse` takes a sign, which nobody means.
        Some(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => match text.parse::<u32>() {
            Ok(length) if length <= bits => length,
            _ => return refused(),
        },
        Some(_) => return refused(),
    };
    // An IPv4 address in its IPv6 form is compared as what it is.
    Ok(match ip {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) if length >= 96 => masked(v4.octets().to_vec(), length - 96),
            _ => masked(v6.octets().to_vec(), length),
        },
        IpAddr::V4(v4) => masked(v4.octets().to_vec(), length),
    })
}

/// Without the bits beyond the prefix: one range has one form.
fn masked(mut address: Vec<u8>, length: u32) -> wire::Address {
    let mut left = length;
    for byte in &mut address {
        let here = left.min(8);
        left -= here;
        *byte &= u8::MAX.checked_shl(8 - here).unwrap_or(0);
    }
    wire::Address { address, length }
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

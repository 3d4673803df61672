//! One of `spec.jwtRules`: the tokens of one issuer.

use std::collections::BTreeSet;

use karst_api::waypoint::{self as wire, token_rule::Keys};
use serde_json::Value;

use crate::{
    object::{policy::Reader, route::PROTECTED_HEADERS},
    token::is_token,
};

/// Entries of a list, and bytes of a text. Proxies take no more of either.
const MAX_ITEMS: usize = 64;
const MAX_TEXT_BYTES: usize = 2048;

/// Bytes of a key set. Proxies take no more.
const MAX_JWKS_BYTES: usize = 256 * 1024;

/// Keys of a key set. Proxies take no more.
const MAX_KEYS: usize = 64;

/// How long a fetch of keys may take unless the rule says otherwise (Istio's default), and at most.
const TIMEOUT_MS: u64 = 5_000;
const MAX_TIMEOUT_MS: u64 = 30_000;

/// Headers that mean something to proxies on the way, or are made by them, besides [`PROTECTED_HEADERS`]: no claim may
/// stand there.
const RESERVED_HEADERS: [&str; 8] = [
    "content-encoding",
    "expect",
    "forwarded",
    "host",
    "x-forwarded-client-cert",
    "x-forwarded-for",
    "x-forwarded-proto",
    "x-request-id",
];

/// Reads a rule. One with a mistake refuses the tokens of its issuer, as far as that is known.
pub(super) fn read(
    value: &Value,
    field: &str,
    index: u32,
    reader: &mut Reader<'_>,
) -> wire::TokenRule {
    let before = reader.problems.len();
    let mut rule = wire::TokenRule {
        index,
        timeout_ms: TIMEOUT_MS,
        ..wire::TokenRule::default()
    };
    let (mut inline, mut uri, mut has_issuer) = (None, None, false);
    if value.is_null() {
        reader.fault(field, "is null", "write an issuer and its keys");
    }
    for (name, value) in reader.fields(value, field).unwrap_or_default() {
        let field = format!("{field}.{name}");
        match name {
            "issuer" => {
                has_issuer = true;
                rule.issuer = text(value, &field, reader).unwrap_or_default();
            }
            "audiences" => rule.audiences = texts(value, &field, reader),
            "jwks" => inline = jwks(value, &field, reader),
            "jwksUri" | "jwks_uri" => uri = jwks_uri(value, &field, reader),
            "fromHeaders" => rule.headers = from_headers(value, &field, reader),
            "fromParams" => rule.parameters = texts(value, &field, reader),
            "fromCookies" => rule.cookies = cookies(value, &field, reader),
            "outputPayloadToHeader" => {
                rule.payload_header = output_header(value, &field, reader).unwrap_or_default();
            }
            "outputClaimToHeaders" => rule.claim_headers = claims(value, &field, reader),
            "forwardOriginalToken" => match value.as_bool() {
                Some(forward) => rule.forward = forward,
                None => reader.fault(&field, format!("is {value}"), "use true or false"),
            },
            "timeout" => rule.timeout_ms = timeout(value, &field, reader),
            "spaceDelimitedClaims" => {
                rule.space_delimited_claims = texts(value, &field, reader);
            }
            _ => reader.unknown(&field),
        }
    }
    headers_differ(&rule, field, reader);
    if !has_issuer {
        let hint = "write the claim iss of the tokens";
        reader.fault(&format!("{field}.issuer"), "is missing", hint);
    }
    rule.keys = match (inline, uri) {
        (Some(text), None) => Some(Keys::Jwks(text)),
        (None, Some(uri)) => Some(Keys::JwksUri(uri)),
        (Some(_), Some(_)) => {
            let hint = "write one of them";
            reader.fault(&format!("{field}.jwks"), "is there beside jwksUri", hint);
            None
        }
        (None, None) => {
            if reader.problems.len() == before {
                let hint = "write one of them; the keys are not looked up by the issuer's name (OpenID discovery)";
                reader.fault(field, "has neither jwksUri nor jwks", hint);
            }
            None
        }
    };
    if reader.problems.len() > before {
        rule.keys = Some(Keys::Unusable(true));
    }
    rule
}

fn text(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<String> {
    match value.as_str() {
        Some("") => reader.fault(field, "is empty", "write a text, or leave it out"),
        Some(text) if text.len() > MAX_TEXT_BYTES => {
            let problem = format!("is {} bytes long", text.len());
            reader.fault(field, problem, "write at most 2048 bytes");
        }
        Some(text) => return Some(text.to_owned()),
        None => reader.fault(field, format!("is {value}, not text"), "put it in quotes"),
    }
    None
}

/// The elements of a list; none if there are too many.
fn items<'v>(value: &'v Value, field: &str, reader: &mut Reader<'_>) -> &'v [Value] {
    let items = reader.items(value, field).unwrap_or_default();
    if items.len() <= MAX_ITEMS {
        return items;
    }
    let problem = format!("has {} entries", items.len());
    reader.fault(field, problem, "write at most 64");
    &[]
}

fn texts(value: &Value, field: &str, reader: &mut Reader<'_>) -> Vec<String> {
    let items = items(value, field, reader).iter().enumerate();
    let read = items.filter_map(|(index, item)| text(item, &format!("{field}[{index}]"), reader));
    read.collect()
}

/// The name of a header or cookie.
fn name(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<String> {
    let name = text(value, field, reader)?;
    if is_token(&name) {
        return Some(name);
    }
    let problem = format!("is {name:?}, which is no name");
    reader.fault(field, problem, "use letters, digits and dashes");
    None
}

fn cookies(value: &Value, field: &str, reader: &mut Reader<'_>) -> Vec<String> {
    let items = items(value, field, reader).iter().enumerate();
    let read = items.filter_map(|(index, item)| name(item, &format!("{field}[{index}]"), reader));
    read.collect()
}

fn from_headers(value: &Value, field: &str, reader: &mut Reader<'_>) -> Vec<wire::TokenHeader> {
    let mut headers = Vec::new();
    for (index, item) in items(value, field, reader).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let before = reader.problems.len();
        let mut header = wire::TokenHeader::default();
        for (key, value) in reader.fields(item, &field).unwrap_or_default() {
            let field = format!("{field}.{key}");
            match (key, value.as_str()) {
                ("name", _) => {
                    let name = name(value, &field, reader).unwrap_or_default();
                    header.name = name.to_ascii_lowercase();
                }
                ("prefix", Some("")) => {}
                ("prefix", _) => header.prefix = text(value, &field, reader).unwrap_or_default(),
                _ => reader.unknown(&field),
            }
        }
        if !header.name.is_empty() {
            headers.push(header);
        } else if reader.problems.len() == before {
            reader.fault(&field, "has no name", "write the name of a header");
        }
    }
    headers
}

fn output_header(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<String> {
    let name = name(value, field, reader)?.to_ascii_lowercase();
    let is_taken = |list: &[&str]| list.contains(&name.as_str());
    if is_taken(&PROTECTED_HEADERS) || is_taken(&RESERVED_HEADERS) {
        let problem = format!("is {name:?}, which proxies make or read themselves");
        reader.fault(field, problem, "use another header");
        return None;
    }
    Some(name)
}

fn claims(value: &Value, field: &str, reader: &mut Reader<'_>) -> Vec<wire::ClaimHeader> {
    let mut all = Vec::new();
    for (index, item) in items(value, field, reader).iter().enumerate() {
        let field = format!("{field}[{index}]");
        let before = reader.problems.len();
        let mut one = wire::ClaimHeader::default();
        for (key, value) in reader.fields(item, &field).unwrap_or_default() {
            let field = format!("{field}.{key}");
            match key {
                "header" => one.header = output_header(value, &field, reader).unwrap_or_default(),
                "claim" => {
                    let claim = text(value, &field, reader).unwrap_or_default();
                    one.claim = claim.split('.').map(str::to_owned).collect();
                }
                _ => reader.unknown(&field),
            }
        }
        if !one.header.is_empty() && !one.claim.is_empty() {
            all.push(one);
        } else if reader.problems.len() == before {
            reader.fault(&field, "has no header or no claim", "write both");
        }
    }
    all
}

/// One header has room for one value.
fn headers_differ(rule: &wire::TokenRule, field: &str, reader: &mut Reader<'_>) {
    let claims = rule.claim_headers.iter().map(|claim| &claim.header);
    let payload = Some(&rule.payload_header).filter(|name| !name.is_empty());
    let mut seen = BTreeSet::new();
    for header in claims.chain(payload) {
        if !seen.insert(header) {
            let field = format!("{field}.outputClaimToHeaders");
            let problem = format!("writes the header {header:?} twice");
            reader.fault(&field, problem, "use a header of its own for each claim");
        }
    }
}

/// Of a key set it is only looked at whether it is one: proxies take the keys that they can use.
fn jwks(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<String> {
    let hint = "write a JSON Web Key Set, as text: {\"keys\": [...]}";
    let Some(text) = value.as_str() else {
        reader.fault(field, "is not text", hint);
        return None;
    };
    if text.len() > MAX_JWKS_BYTES {
        let problem = format!("is {} bytes long", text.len());
        reader.fault(field, problem, "write at most 262144 bytes");
        return None;
    }
    let set: Option<Value> = serde_json::from_str(text).ok();
    let keys = set.as_ref().and_then(|set| set.get("keys")?.as_array());
    match keys {
        Some(keys) if keys.is_empty() => reader.fault(field, "has no keys", hint),
        Some(keys) if keys.len() > MAX_KEYS => {
            let problem = format!("has {} keys", keys.len());
            reader.fault(field, problem, "write at most 64");
        }
        Some(keys) if keys.iter().any(|key| key["kty"] == "oct") => {
            let hint = "whoever may check a token by it could make one; use RSA, EC or OKP keys";
            reader.fault(field, "has a symmetric key", hint);
        }
        Some(keys) if keys.iter().any(|key| key.get("d").is_some()) => {
            let hint = "anybody who may read the object can sign with it; write the public part, and make a new key";
            reader.fault(field, "has a private key", hint);
        }
        Some(_) => return Some(text.to_owned()),
        None => reader.fault(field, "is no key set", hint),
    }
    None
}

fn jwks_uri(value: &Value, field: &str, reader: &mut Reader<'_>) -> Option<String> {
    let uri = text(value, field, reader)?;
    let rest = ["https://", "http://"]
        .iter()
        .find_map(|scheme| uri.strip_prefix(scheme));
    let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next());
    let is_good = authority.is_some_and(|it| !it.is_empty() && !it.contains('@'))
        && uri.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good {
        return Some(uri);
    }
    // Not shown: there may be a password in it.
    let hint = "write http:// or https://, a host and a path, without user and password";
    reader.fault(field, "is no address of a key set", hint);
    None
}

/// As Protocol Buffers write durations: seconds, perhaps with a fraction.
fn timeout(value: &Value, field: &str, reader: &mut Reader<'_>) -> u64 {
    let seconds = value.as_str().and_then(|text| text.strip_suffix('s'));
    let seconds = seconds.filter(|text| {
        text.starts_with(|first: char| first.is_ascii_digit())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || byte == b'.')
    });
    let parsed =
        seconds.and_then(|text| std::time::Duration::try_from_secs_f64(text.parse().ok()?).ok());
    let milliseconds = parsed.and_then(|time| u64::try_from(time.as_millis()).ok());
    match milliseconds {
        Some(time @ 1..=MAX_TIMEOUT_MS) => time,
        _ => {
            let hint = "write seconds, as in 5s; at most 30s";
            reader.fault(field, format!("is {value}"), hint);
            TIMEOUT_MS
        }
    }
}

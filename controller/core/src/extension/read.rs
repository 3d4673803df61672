//! Reads `extensionProviders`, field by field.

use std::collections::BTreeMap;

use karst_api::waypoint::{self as wire, extension_provider::Kind, header_name};
use serde_json::{Map, Value};

use super::{ExtensionProviders, MeshConfigFindings, Place, Provider, Unusable};
use crate::token::is_token;

/// Providers of one mesh. Each costs little; more is a mistake.
const MAX_PROVIDERS: usize = 256;

/// Longest name of a provider, bytes; it is a label of metrics.
const MAX_NAME_BYTES: usize = 128;

/// Names or headers of one list.
const MAX_HEADERS: usize = 64;

/// Longest name or value of a header, and path prefix, bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Most bytes of a body that a proxy holds back for a check.
const MAX_BODY_BYTES: u64 = 1 << 20;

/// Longest time for a check, milliseconds: Istio's default, and far more than a client waits.
const MAX_TIMEOUT_MS: u64 = 600_000;

/// Why a provider of another kind cannot be asked. Such a one is no mistake by itself.
const NOT_SUPPORTED: &str = "ProviderNotSupported";

/// The kind of provider that takes spans.
const COLLECTOR: &str = "opentelemetry";

/// A field, and what is wrong with it.
type Problem = String;

pub(super) fn providers(
    config: &Value,
    findings: &mut MeshConfigFindings,
) -> Result<ExtensionProviders, String> {
    let mut by_name: BTreeMap<String, Result<Provider, Unusable>> = BTreeMap::new();
    let mut collectors: BTreeMap<String, Result<Place, Unusable>> = BTreeMap::new();
    let empty = Map::new();
    let fields = match config {
        Value::Null => &empty,
        Value::Object(fields) => fields,
        _ => return Err("is no object; write extensionProviders: [...]".to_owned()),
    };
    const KNOWN: [&str; 2] = ["extensionProviders", "defaultProviders"];
    let others = fields.keys().filter(|name| !KNOWN.contains(&name.as_str()));
    findings.ignored.extend(others.cloned());
    let default_collector = default_collector(fields.get("defaultProviders"), findings);
    let items = match fields.get("extensionProviders") {
        None | Some(Value::Null) => &Vec::new(),
        Some(Value::Array(items)) => items,
        Some(_) => return Err("extensionProviders is no list".to_owned()),
    };
    if items.len() > MAX_PROVIDERS {
        let count = items.len();
        return Err(format!(
            "extensionProviders has {count} entries; use at most {MAX_PROVIDERS}"
        ));
    }
    for (index, item) in items.iter().enumerate() {
        let place = format!("extensionProviders[{index}]");
        let name = item.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
            let fault = format!(
                "{place}.name is missing or unusable; write 1 to {MAX_NAME_BYTES} characters"
            );
            findings.faults.push(fault);
            continue;
        }
        let twice = || Unusable {
            reason: "ProviderInvalid",
            message: format!("{place}.name is {name:?}, as of another one; use another name"),
        };
        let is_known = by_name.contains_key(name) || collectors.contains_key(name);
        if let Some(spec) = item.get(COLLECTOR) {
            let read = match is_known {
                true => Err(twice()),
                false => collector(item, spec, &place),
            };
            if let Err(unusable) = &read {
                findings.faults.push(unusable.message.clone());
            }
            // A name that means two things means none.
            if let Some(other) = by_name.get_mut(name) {
                *other = Err(twice());
            }
            collectors.insert(name.to_owned(), read);
            continue;
        }
        let read = match is_known {
            true => Err(twice()),
            false => provider(name, item, &place, findings),
        };
        if let Some(other) = collectors.get_mut(name) {
            *other = Err(twice());
        }
        if let Err(unusable) = &read
            && unusable.reason != NOT_SUPPORTED
        {
            findings.faults.push(unusable.message.clone());
        }
        by_name.insert(name.to_owned(), read);
    }
    let providers = ExtensionProviders {
        by_name,
        collectors,
        default_collector,
    };
    let default = providers.default_collector();
    if let Some(Err(unusable)) = default.map(|name| providers.collector(name)) {
        let message = format!("defaultProviders.tracing: {}", unusable.message);
        findings.faults.push(message);
    }
    Ok(providers)
}

/// The first of `defaultProviders.tracing`.
fn default_collector(value: Option<&Value>, findings: &mut MeshConfigFindings) -> Option<String> {
    let value = value.filter(|value| !value.is_null())?;
    let Some(fields) = value.as_object() else {
        let fault = "defaultProviders is no object; write defaultProviders: {tracing: [NAME]}";
        findings.faults.push(fault.to_owned());
        return None;
    };
    let others = fields.keys().filter(|name| *name != "tracing");
    let others = others.map(|name| format!("defaultProviders.{name}"));
    findings.ignored.extend(others);
    let value = fields.get("tracing").filter(|value| !value.is_null())?;
    let items = value.as_array().map(Vec::as_slice);
    let names: Option<Vec<&str>> =
        items.and_then(|items| items.iter().map(Value::as_str).collect());
    let Some(names) = names else {
        let fault = "defaultProviders.tracing is no list of names; write the name of one provider";
        findings.faults.push(fault.to_owned());
        return None;
    };
    if names.len() > 1 {
        let others = "defaultProviders.tracing beyond the first, where spans go";
        findings.ignored.push(others.to_owned());
    }
    names.first().map(|name| (*name).to_owned())
}

/// A collector of spans, by OTLP over gRPC.
fn collector(item: &Value, spec: &Value, place: &str) -> Result<Place, Unusable> {
    let invalid = |problem: String| Unusable {
        reason: "ProviderInvalid",
        message: format!("{place}.{COLLECTOR}.{problem}"),
    };
    if item.as_object().is_none_or(|fields| fields.len() != 2) {
        return Err(Unusable {
            reason: "ProviderInvalid",
            message: format!("{place} must have name and exactly one kind of provider"),
        });
    }
    let (mut service, mut port) = (None, None);
    let fields = spec.as_object().into_iter().flatten();
    for (field, value) in fields.filter(|(_, value)| !value.is_null()) {
        match field.as_str() {
            "service" => service = Some(host(value).map_err(invalid)?),
            "port" => port = Some(self::port(value).map_err(invalid)?),
            "http" => {
                let problem =
                    "http is not supported; spans go by gRPC: use the collector's port for that";
                return Err(invalid(problem.to_owned()));
            }
            _ => return Err(invalid(format!("{field} is not supported; remove it"))),
        }
    }
    let missing = |field: &str| invalid(format!("{field} is missing"));
    let (namespace, hostname) = service.ok_or_else(|| missing("service"))?;
    Ok(Place {
        namespace,
        hostname,
        port: port.ok_or_else(|| missing("port"))?,
    })
}

fn provider(
    name: &str,
    item: &Value,
    place: &str,
    findings: &mut MeshConfigFindings,
) -> Result<Provider, Unusable> {
    let invalid = |message: String| Unusable {
        reason: "ProviderInvalid",
        message,
    };
    let empty = Map::new();
    let fields = item.as_object().unwrap_or(&empty);
    let mut kinds = fields.iter().filter(|(key, _)| *key != "name");
    let (Some((kind, spec)), None) = (kinds.next(), kinds.next()) else {
        let message = format!("{place} must have name and exactly one kind of provider");
        return Err(invalid(message));
    };
    let place = format!("{place}.{kind}");
    let is_grpc = match kind.as_str() {
        "envoyExtAuthzGrpc" => true,
        "envoyExtAuthzHttp" => false,
        _ => {
            findings.ignored.push(place.clone());
            return Err(Unusable {
                reason: NOT_SUPPORTED,
                message: format!(
                    "{place} is no authorizer; use envoyExtAuthzGrpc or envoyExtAuthzHttp"
                ),
            });
        }
    };
    let Value::Object(spec) = spec else {
        return Err(invalid(format!("{place} is no object")));
    };
    let read = read(name, spec, is_grpc);
    read.map_err(|problem| invalid(format!("{place}.{problem}")))
}

fn read(name: &str, spec: &Map<String, Value>, is_grpc: bool) -> Result<Provider, Problem> {
    let mut out = wire::ExtensionProvider {
        name: name.to_owned(),
        ..wire::ExtensionProvider::default()
    };
    let mut http = wire::HttpCheck::default();
    let (mut service, mut port) = (None, None);
    for (field, value) in spec.iter().filter(|(_, value)| !value.is_null()) {
        match (field.as_str(), is_grpc) {
            ("service", _) => service = Some(host(value)?),
            ("port", _) => port = Some(self::port(value)?),
            ("timeout", _) => out.timeout_ms = timeout(value)?,
            ("failOpen", _) => out.fail_open = boolean(field, value)?,
            ("clearRouteCache", _) => out.clear_route_cache = boolean(field, value)?,
            ("statusOnError", _) => out.status_on_error = status(value)?,
            ("includeRequestBodyInCheck", _) => out.body = Some(body(value)?),
            ("pathPrefix", false) => http.path_prefix = path_prefix(value)?,
            // The second is the former name of the first.
            ("includeRequestHeadersInCheck" | "includeHeadersInCheck", false) => {
                http.request_headers.extend(names(field, value)?);
            }
            ("includeAdditionalHeadersInCheck", false) => {
                http.additional_headers = headers(field, value)?;
            }
            ("headersToUpstreamOnAllow", false) => http.upstream_on_allow = names(field, value)?,
            ("headersToDownstreamOnAllow", false) => {
                http.downstream_on_allow = names(field, value)?;
            }
            ("headersToDownstreamOnDeny", false) => http.downstream_on_deny = names(field, value)?,
            _ => return Err(format!("{field} is not supported; remove it")),
        }
    }
    let (namespace, hostname) = service.ok_or("service is missing")?;
    out.kind = Some(if is_grpc {
        Kind::Grpc(wire::GrpcCheck {})
    } else {
        Kind::Http(http)
    });
    Ok(Provider {
        place: Place {
            namespace,
            hostname,
            port: port.ok_or("port is missing")?,
        },
        template: out,
    })
}

/// `[NAMESPACE/]HOSTNAME`.
fn host(value: &Value) -> Result<(Option<String>, String), Problem> {
    let text = value.as_str().unwrap_or_default();
    let (namespace, hostname) = match text.split_once('/') {
        Some((namespace, hostname)) => (Some(namespace), hostname),
        None => (None, text),
    };
    if hostname.is_empty() || hostname.contains('/') || namespace == Some("") {
        return Err(format!(
            "service is {value}; write NAME.NAMESPACE.svc.cluster.local"
        ));
    }
    let hostname = hostname.to_ascii_lowercase();
    Ok((namespace.map(str::to_owned), hostname))
}

fn port(value: &Value) -> Result<u16, Problem> {
    let port = value.as_u64().and_then(|port| u16::try_from(port).ok());
    port.filter(|port| *port != 0)
        .ok_or_else(|| format!("port is {value}; write the port of the Service, 1 to 65535"))
}

/// A duration as protobuf writes it in JSON: seconds, with a fraction or not, and `s`. In milliseconds.
fn timeout(value: &Value) -> Result<u64, Problem> {
    let wrong = || format!("timeout is {value}; write seconds from 0.001s to 600s, as in \"0.5s\"");
    let text = value.as_str().and_then(|text| text.strip_suffix('s'));
    let (whole, fraction) = text
        .map(|text| text.split_once('.').unwrap_or((text, "")))
        .ok_or_else(wrong)?;
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(fraction) || fraction.len() > 9 {
        return Err(wrong());
    }
    let seconds: u64 = whole.parse().map_err(|_| wrong())?;
    let millis: u64 = format!("{fraction:0<3}")[..3]
        .parse()
        .map_err(|_| wrong())?;
    let all = seconds
        .checked_mul(1000)
        .and_then(|all| all.checked_add(millis));
    all.filter(|all| (1..=MAX_TIMEOUT_MS).contains(all))
        .ok_or_else(wrong)
}

fn boolean(field: &str, value: &Value) -> Result<bool, Problem> {
    let wrong = || format!("{field} is {value}; write true or false");
    value.as_bool().ok_or_else(wrong)
}

/// An answer that says that all is well would be one for a request that nobody has allowed.
fn status(value: &Value) -> Result<u32, Problem> {
    let number = match value {
        Value::String(text) => text.parse().ok(),
        value => value.as_u64().and_then(|number| u32::try_from(number).ok()),
    };
    number
        .filter(|number| (400..=599).contains(number))
        .ok_or_else(|| format!("statusOnError is {value}; write a status from \"400\" to \"599\""))
}

fn body(value: &Value) -> Result<wire::CheckedBody, Problem> {
    let Value::Object(fields) = value else {
        return Err("includeRequestBodyInCheck is no object".to_owned());
    };
    let mut body = wire::CheckedBody::default();
    for (field, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
        let within = |problem: Problem| format!("includeRequestBodyInCheck.{problem}");
        match field.as_str() {
            "maxRequestBytes" => {
                let bytes = value
                    .as_u64()
                    .filter(|bytes| (1..=MAX_BODY_BYTES).contains(bytes));
                let bytes = bytes.and_then(|bytes| u32::try_from(bytes).ok());
                body.max_bytes = bytes.ok_or_else(|| {
                    within(format!("{field} is {value}; write 1 to {MAX_BODY_BYTES}"))
                })?;
            }
            "allowPartialMessage" => body.allow_partial = boolean(field, value).map_err(within)?,
            "packAsBytes" => body.as_bytes = boolean(field, value).map_err(within)?,
            _ => return Err(within(format!("{field} is not supported; remove it"))),
        }
    }
    if body.max_bytes == 0 {
        return Err("includeRequestBodyInCheck.maxRequestBytes is missing".to_owned());
    }
    Ok(body)
}

fn path_prefix(value: &Value) -> Result<String, Problem> {
    let text = value.as_str().unwrap_or_default();
    let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    if text.starts_with('/') && text.len() <= MAX_TEXT_BYTES && text.bytes().all(fits) {
        // The path that follows begins with a slash of its own.
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(format!("pathPrefix is {value}; write a path, as in /check"))
}

/// The name of a header. A `*` would look like a pattern.
fn is_header_name(text: &str) -> bool {
    text.len() <= MAX_TEXT_BYTES && !text.contains('*') && is_token(text)
}

/// Names of headers: `abc`, `abc*` or `*abc`.
fn names(field: &str, value: &Value) -> Result<Vec<wire::HeaderName>, Problem> {
    let Some(items) = value.as_array().filter(|items| items.len() <= MAX_HEADERS) else {
        return Err(format!(
            "{field} is no list of at most {MAX_HEADERS} names of headers"
        ));
    };
    let name = |(index, item): (usize, &Value)| {
        let text = item.as_str().unwrap_or_default().to_ascii_lowercase();
        let (text, make): (&str, fn(String) -> header_name::Kind) =
            match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(rest), _) => (rest, header_name::Kind::Suffix),
                (None, Some(rest)) => (rest, header_name::Kind::Prefix),
                (None, None) => (text.as_str(), header_name::Kind::Exact),
            };
        if !is_header_name(text) {
            let hint = "write a name, with * at its beginning or end for several";
            return Err(format!("{field}[{index}] is {item}; {hint}"));
        }
        Ok(wire::HeaderName {
            kind: Some(make(text.to_owned())),
        })
    };
    items.iter().enumerate().map(name).collect()
}

fn headers(field: &str, value: &Value) -> Result<Vec<wire::Header>, Problem> {
    let Some(items) = value.as_object().filter(|items| items.len() <= MAX_HEADERS) else {
        return Err(format!(
            "{field} is no map of at most {MAX_HEADERS} headers"
        ));
    };
    let header = |(name, value): (&String, &Value)| {
        let text = value.as_str().filter(|text| {
            let fits = |byte: u8| byte == b'\t' || (b' '..=b'~').contains(&byte);
            text.len() <= MAX_TEXT_BYTES && text.bytes().all(fits)
        });
        match text {
            Some(text) if is_header_name(name) => Ok(wire::Header {
                name: name.to_ascii_lowercase(),
                value: text.to_owned(),
            }),
            // The value may be a secret.
            _ => Err(format!(
                "{field}[{name:?}] is no header; write a name and a text in ASCII"
            )),
        }
    };
    items.iter().map(header).collect()
}

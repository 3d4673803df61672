//! Conditions on requests.

use karst_api::waypoint::{self as wire, path_match, value_match};
use serde::Deserialize;

use super::{Place, Unusable, check};

/// Conditions on headers, or on query parameters, of one match (Gateway API).
const MAX_CONDITIONS: usize = 16;

/// Length of a path in bytes (Gateway API).
const MAX_PATH_BYTES: usize = 1024;

/// `HTTPRouteMatch`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpMatch {
    path: Option<PathMatch>,
    headers: Vec<ValueMatch>,
    query_params: Vec<ValueMatch>,
    method: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct PathMatch {
    r#type: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ValueMatch {
    r#type: Option<String>,
    name: String,
    value: String,
}

/// `GRPCRouteMatch`.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct GrpcMatch {
    method: Option<MethodMatch>,
    headers: Vec<ValueMatch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct MethodMatch {
    r#type: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

impl HttpMatch {
    pub(super) fn to_wire(&self, place: Place<'_>) -> Result<wire::HttpMatch, Unusable> {
        let path = self.path.as_ref();
        if let Some(method) = &self.method {
            check::method(place, ".method", method)?;
        }
        Ok(wire::HttpMatch {
            path: path.map(|path| path.to_wire(place)).transpose()?,
            headers: values(place, ".headers", &self.headers, Named::Header)?,
            query: values(place, ".queryParams", &self.query_params, Named::Parameter)?,
            method: self.method.clone().unwrap_or_default(),
        })
    }
}

impl PathMatch {
    fn to_wire(&self, place: Place<'_>) -> Result<wire::PathMatch, Unusable> {
        let value = self.value.clone().unwrap_or_else(|| "/".to_owned());
        let kind = match self.r#type.as_deref().unwrap_or("PathPrefix") {
            "Exact" => {
                check_path(place, &value)?;
                path_match::Kind::Exact(value)
            }
            "PathPrefix" => {
                check_path(place, &value)?;
                path_match::Kind::Prefix(value)
            }
            "RegularExpression" => {
                check::regex(place, ".path.value", &value)?;
                path_match::Kind::Regex(value)
            }
            other => {
                let problem = format!("is {:?}", check::shown(other));
                let hint = "use Exact, PathPrefix or RegularExpression";
                return Err(place.unsupported(".path.type", problem, hint));
            }
        };
        Ok(wire::PathMatch { kind: Some(kind) })
    }
}

/// A path as the Gateway API wants it: absolute and in its normal form, as no request has another.
fn check_path(place: Place<'_>, path: &str) -> Result<(), Unusable> {
    let lower = path.to_ascii_lowercase();
    let odd = ["//", "/./", "/../", "%2f"];
    let odd = odd.into_iter().any(|part| lower.contains(part));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-/._~!$&'()*+,;=:@%".contains(&byte);
    let normal = path.starts_with('/')
        && path.len() <= MAX_PATH_BYTES
        && !odd
        && !path.ends_with("/..")
        && !path.ends_with("/.")
        && path.bytes().all(allowed);
    if normal {
        return Ok(());
    }
    let problem = format!(
        "is {:?}, which is no path in its normal form",
        check::shown(path)
    );
    let hint =
        "begin it with '/', and write no '//', '/./', '/../', '%2f', '#', '?' or space in it";
    Err(place.unsupported(".path.value", problem, hint))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Named {
    Header,
    Parameter,
}

fn values(
    place: Place<'_>,
    field: &str,
    matches: &[ValueMatch],
    named: Named,
) -> Result<Vec<wire::ValueMatch>, Unusable> {
    super::check_count(place, field, matches.len(), MAX_CONDITIONS)?;
    let one = |(index, condition): (usize, &ValueMatch)| {
        let at = format!("{field}[{index}]");
        match named {
            Named::Header => check::header_name(place, &format!("{at}.name"), &condition.name)?,
            Named::Parameter if condition.name.is_empty() => {
                let hint = "name the query parameter";
                return Err(place.unsupported(format_args!("{at}.name"), "is missing", hint));
            }
            Named::Parameter => check::length(place, &format!("{at}.name"), &condition.name)?,
        }
        let value = condition.value.clone();
        let field = format!("{at}.value");
        let kind = match condition.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => {
                check::length(place, &field, &value)?;
                value_match::Kind::Exact(value)
            }
            "RegularExpression" => {
                check::regex(place, &field, &value)?;
                value_match::Kind::Regex(value)
            }
            other => {
                let problem = format!("is {:?}", check::shown(other));
                let hint = "use Exact or RegularExpression";
                return Err(place.unsupported(format_args!("{at}.type"), problem, hint));
            }
        };
        Ok(wire::ValueMatch {
            name: condition.name.clone(),
            kind: Some(kind),
        })
    };
    matches.iter().enumerate().map(one).collect()
}

impl GrpcMatch {
    pub(super) fn to_wire(&self, place: Place<'_>) -> Result<wire::HttpMatch, Unusable> {
        let method = self.method.as_ref();
        let path = method.map(|method| method.to_path(place)).transpose()?;
        Ok(wire::HttpMatch {
            path: path.flatten(),
            headers: values(place, ".headers", &self.headers, Named::Header)?,
            query: Vec::new(),
            method: String::new(),
        })
    }
}

impl MethodMatch {
    /// A method of gRPC is the path `/SERVICE/METHOD` (gRPC over HTTP/2).
    fn to_path(&self, place: Place<'_>) -> Result<Option<wire::PathMatch>, Unusable> {
        let filled = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let (service, method) = (filled(&self.service), filled(&self.method));
        let kind = match self.r#type.as_deref().unwrap_or("Exact") {
            "Exact" => {
                for (field, text) in [(".method.service", &service), (".method.method", &method)] {
                    let text = text.as_deref().unwrap_or("x");
                    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
                    if text.len() > MAX_PATH_BYTES || !text.bytes().all(allowed) {
                        let problem = format!("is {:?}, which is no name", check::shown(text));
                        return Err(place.unsupported(field, problem, "use a name of gRPC"));
                    }
                }
                match (service, method) {
                    (Some(service), Some(method)) => {
                        path_match::Kind::Exact(format!("/{service}/{method}"))
                    }
                    // A method has no slash in its name, so that the prefix stands for all of them.
                    (Some(service), None) => path_match::Kind::Prefix(format!("/{service}/")),
                    (None, Some(method)) => {
                        path_match::Kind::Regex(format!("/[^/]+/{}", regex::escape(&method)))
                    }
                    (None, None) => return Ok(None),
                }
            }
            "RegularExpression" => {
                let pattern = |field: &str, text: &Option<String>| match text {
                    Some(text) => check::regex(place, field, text).map(|()| format!("(?:{text})")),
                    None => Ok("[^/]+".to_owned()),
                };
                if service.is_none() && method.is_none() {
                    return Ok(None);
                }
                let service = pattern(".method.service", &service)?;
                let method = pattern(".method.method", &method)?;
                let whole = format!("/{service}/{method}");
                check::regex(place, ".method", &whole)?;
                path_match::Kind::Regex(whole)
            }
            other => {
                let problem = format!("is {:?}", check::shown(other));
                let hint = "use Exact or RegularExpression";
                return Err(place.unsupported(".method.type", problem, hint));
            }
        };
        Ok(Some(wire::PathMatch { kind: Some(kind) }))
    }
}

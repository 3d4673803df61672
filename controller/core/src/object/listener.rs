//! Listeners of Gateways and ListenerSets.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    GATEWAY_GROUP,
    hostname::Hostname,
    pod::parse_port,
    selector::{AllowedNamespaces, NamespacesSpec},
};
use crate::error::{Faults, ObjectError};

/// Listeners of one object. The API's own limit.
const MAX_LISTENERS: usize = 64;

/// Longest name of a listener in bytes. The API's own limit.
const MAX_SECTION_BYTES: usize = 253;

/// Option of a listener's TLS: the lowest version, `1.2` or `1.3`.
pub(crate) const TLS_MIN_OPTION: &str = "karst.dev/tls-min-version";

/// Option of a listener's TLS: the highest version, `1.2` or `1.3`.
pub(crate) const TLS_MAX_OPTION: &str = "karst.dev/tls-max-version";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) name: String,
    /// `None` for all.
    pub(crate) hostname: Option<Hostname>,
    pub(crate) port: u16,
    pub(crate) protocol: ListenerProtocol,
    pub(crate) certificates: Vec<ObjectRef>,
    pub(crate) tls_min: Option<TlsVersion>,
    pub(crate) tls_max: Option<TlsVersion>,
    /// Options of its TLS that nobody here knows, or values of them.
    pub(crate) unknown_options: Vec<String>,
    pub(crate) allowed_namespaces: AllowedNamespaces,
    /// Kinds of routes it is restricted to; `None` for all that its protocol allows.
    pub(crate) allowed_kinds: Option<Vec<GroupKind>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListenerProtocol {
    Http,
    Https,
    TlsPassthrough,
    TlsTerminate,
    Tcp,
    Hbone,
    /// Another one, by its name.
    Unsupported(String),
}

impl ListenerProtocol {
    /// Its name in manifests.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
            Self::TlsPassthrough | Self::TlsTerminate => "TLS",
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
            Self::Unsupported(name) => name,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TlsVersion {
    V1_2,
    V1_3,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupKind {
    pub(crate) group: String,
    pub(crate) kind: String,
}

/// A reference to a Secret or ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(default)]
pub(crate) struct ObjectRef {
    pub(crate) group: String,
    pub(crate) kind: String,
    pub(crate) name: String,
    /// Empty for that of the object that refers.
    namespace: String,
}

impl Default for ObjectRef {
    fn default() -> Self {
        Self {
            group: String::new(),
            // Where the API lets the kind be left out, it is this one.
            kind: "Secret".to_owned(),
            name: String::new(),
            namespace: String::new(),
        }
    }
}

impl ObjectRef {
    /// The namespace it refers to, from an object of the namespace `own`.
    pub(crate) fn namespace<'a>(&'a self, own: &'a str) -> &'a str {
        if self.namespace.is_empty() {
            own
        } else {
            &self.namespace
        }
    }

    /// Whether it is of that kind of the core group.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.group.is_empty() && self.kind == kind
    }

    /// `Kind namespace/name`, for messages.
    pub(crate) fn text(&self, own: &str) -> String {
        let namespace = self.namespace(own);
        if self.group.is_empty() {
            format!("{} {namespace}/{}", self.kind, self.name)
        } else {
            format!("{}.{} {namespace}/{}", self.kind, self.group, self.name)
        }
    }
}

/// One of `spec.listeners`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct ListenerSpec {
    name: String,
    hostname: Option<String>,
    port: i32,
    protocol: String,
    tls: Option<TlsSpec>,
    allowed_routes: AllowedRoutesSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct TlsSpec {
    mode: Option<String>,
    certificate_refs: Vec<ObjectRef>,
    options: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct AllowedRoutesSpec {
    namespaces: NamespacesSpec,
    kinds: Vec<GroupKindSpec>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct GroupKindSpec {
    group: Option<String>,
    kind: String,
}

/// Reads the listeners of an object.
pub(super) fn read(spec: &[ListenerSpec], faults: &Faults) -> Result<Vec<Listener>, ObjectError> {
    if spec.len() > MAX_LISTENERS {
        return Err(faults.error(
            "spec.listeners",
            format!("has {} entries", spec.len()),
            format!("use at most {MAX_LISTENERS}, and ListenerSets for more"),
        ));
    }
    let mut listeners: Vec<Listener> = Vec::with_capacity(spec.len());
    for (index, entry) in spec.iter().enumerate() {
        let field = format!("spec.listeners[{index}]");
        let listener = Listener::read(entry, &field, faults)?;
        if listeners.iter().any(|other| other.name == listener.name) {
            return Err(faults.error(
                format!("{field}.name"),
                format!("is {:?}, which another listener has", listener.name),
                "give each listener a name of its own",
            ));
        }
        listeners.push(listener);
    }
    Ok(listeners)
}

impl Listener {
    fn read(spec: &ListenerSpec, field: &str, faults: &Faults) -> Result<Self, ObjectError> {
        if spec.name.is_empty() || spec.name.len() > MAX_SECTION_BYTES || spec.name.contains('/') {
            return Err(faults.error(
                format!("{field}.name"),
                "is no name",
                "use lower-case letters, digits and '-'",
            ));
        }
        let protocol = protocol(spec, field, faults)?;
        let port = parse_port(&format!("{field}.port"), spec.port, faults)?;
        let by_name = !matches!(protocol, ListenerProtocol::Tcp | ListenerProtocol::Hbone);
        let hostname = match spec.hostname.as_deref().filter(|text| !text.is_empty()) {
            Some(text) if by_name => Some(hostname(text, field, faults)?),
            _ => None,
        };
        let mut unknown_options = Vec::new();
        let options = spec.tls.as_ref().map(|tls| &tls.options);
        let mut version = |key: &str| {
            let value = options?.get(key)?;
            let version = match value.as_str() {
                "1.2" => Some(TlsVersion::V1_2),
                "1.3" => Some(TlsVersion::V1_3),
                _ => None,
            };
            if version.is_none() {
                let shown: String = value.chars().take(80).collect();
                unknown_options.push(format!("{key}: {shown}"));
            }
            version
        };
        let (tls_min, tls_max) = (version(TLS_MIN_OPTION), version(TLS_MAX_OPTION));
        let known = [TLS_MIN_OPTION, TLS_MAX_OPTION];
        let others = options.into_iter().flat_map(BTreeMap::keys);
        unknown_options.extend(others.filter(|key| !known.contains(&key.as_str())).cloned());
        let routes = &spec.allowed_routes;
        Ok(Self {
            name: spec.name.clone(),
            hostname,
            port,
            certificates: match (&protocol, &spec.tls) {
                (ListenerProtocol::TlsPassthrough, _) | (_, None) => Vec::new(),
                (_, Some(tls)) => tls.certificate_refs.clone(),
            },
            protocol,
            tls_min,
            tls_max,
            unknown_options,
            allowed_namespaces: AllowedNamespaces::read(
                &routes.namespaces,
                &format!("{field}.allowedRoutes.namespaces"),
                AllowedNamespaces::Same,
                faults,
            )?,
            allowed_kinds: (!routes.kinds.is_empty()).then(|| group_kinds(&routes.kinds)),
        })
    }
}

fn group_kinds(kinds: &[GroupKindSpec]) -> Vec<GroupKind> {
    let kinds = kinds.iter().map(|entry| GroupKind {
        group: entry
            .group
            .clone()
            .unwrap_or_else(|| GATEWAY_GROUP.to_owned()),
        kind: entry.kind.clone(),
    });
    kinds.collect()
}

fn protocol(
    spec: &ListenerSpec,
    field: &str,
    faults: &Faults,
) -> Result<ListenerProtocol, ObjectError> {
    let mode = spec.tls.as_ref().and_then(|tls| tls.mode.as_deref());
    let mode = mode.filter(|mode| !mode.is_empty());
    let bad_mode = |mode: &str, hint: &str| {
        let field = format!("{field}.tls.mode");
        Err(faults.error(field, format!("is {mode:?}"), hint))
    };
    Ok(match (spec.protocol.as_str(), mode) {
        ("HTTP", _) => ListenerProtocol::Http,
        ("HTTPS", None | Some("Terminate")) => ListenerProtocol::Https,
        ("HTTPS", Some(mode)) => {
            return bad_mode(mode, "use \"Terminate\", or the protocol TLS");
        }
        ("TLS", None | Some("Terminate")) => ListenerProtocol::TlsTerminate,
        ("TLS", Some("Passthrough")) => ListenerProtocol::TlsPassthrough,
        ("TLS", Some(mode)) => return bad_mode(mode, "use \"Terminate\" or \"Passthrough\""),
        ("TCP", _) => ListenerProtocol::Tcp,
        ("HBONE", _) => ListenerProtocol::Hbone,
        ("", _) => {
            return Err(faults.error(
                format!("{field}.protocol"),
                "is missing",
                "use HTTP, HTTPS, TLS or TCP, or HBONE for a waypoint",
            ));
        }
        (other, _) => ListenerProtocol::Unsupported(other.chars().take(80).collect()),
    })
}

fn hostname(text: &str, field: &str, faults: &Faults) -> Result<Hostname, ObjectError> {
    Hostname::parse(text).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        faults.error(
            format!("{field}.hostname"),
            format!("is {shown:?}, which is no host name"),
            "write a name such as \"example.com\" or \"*.example.com\"",
        )
    })
}

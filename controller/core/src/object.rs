//! Kubernetes objects, reduced to what the mesh needs and checked once.

pub(crate) mod endpoint_slice;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod pod;
pub(crate) mod service;

use std::fmt;

use k8s_openapi::{
    api::{core::v1, discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::error::{Faults, ObjectError};

/// Kinds the mesh reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    // In the order in which a batch is applied: what others depend on comes first, so that a pod
    // is never seen before its namespace's label.
    /// v1 Namespace.
    Namespace,
    /// v1 Node.
    Node,
    /// v1 ServiceAccount.
    ServiceAccount,
    /// v1 Service.
    Service,
    /// v1 Pod.
    Pod,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
}

impl Kind {
    /// The kind of an object by its `apiVersion` and `kind`; `None` for those the mesh ignores.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        Some(match (api_version, kind) {
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Node") => Self::Node,
            ("v1", "ServiceAccount") => Self::ServiceAccount,
            ("v1", "Service") => Self::Service,
            ("v1", "Pod") => Self::Pod,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::EndpointSlice,
            _ => return None,
        })
    }

    /// The kind's name in manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

/// What tells one object from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Kind.
    pub kind: Kind,
    /// Namespace; empty for kinds that have none.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.kind.name();
        if self.namespace.is_empty() {
            write!(f, "{kind} {}", self.name)
        } else {
            write!(f, "{kind} {}/{}", self.namespace, self.name)
        }
    }
}

/// An object that has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Which object it is.
    pub key: ObjectKey,
    /// Fields that were left out of account, to be reported to the author.
    pub findings: Vec<ObjectError>,
    pub(crate) body: Body,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Body {
    Namespace(namespace::Namespace),
    Node(node::Node),
    ServiceAccount,
    Service(Box<service::Service>),
    Pod(Box<pod::Pod>),
    EndpointSlice(endpoint_slice::EndpointSlice),
}

/// Namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// Longest name or namespace in bytes: a DNS subdomain, as Kubernetes itself demands.
const MAX_NAME_BYTES: usize = 253;

impl Object {
    /// Checks a Kubernetes object. `Ok(None)` is an object of a kind that the mesh ignores.
    ///
    /// # Errors
    /// When the object cannot be used at all; the error names object and field and says what to do.
    pub fn from_value(value: Value) -> Result<Option<Self>, ObjectError> {
        let described = Faults::of(describe(&value));
        if !value.is_object() {
            return Err(described.error(
                "document",
                format!("is {}, not an object", type_name(&value)),
                "write `apiVersion:`, `kind:` and `metadata:`",
            ));
        }
        let text = |field: &str| match value.get(field) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            Some(Value::Null) | None => Err(described.error(
                field,
                "is missing",
                "every Kubernetes object needs apiVersion and kind",
            )),
            Some(other) => Err(described.error(
                field,
                format!("is {}, not a string", type_name(other)),
                "every Kubernetes object needs apiVersion and kind",
            )),
        };
        let Some(kind) = Kind::of(&text("apiVersion")?, &text("kind")?) else {
            return Ok(None);
        };
        Self::of_kind(kind, value, &described).map(Some)
    }

    fn of_kind(kind: Kind, value: Value, described: &Faults) -> Result<Self, ObjectError> {
        match kind {
            Kind::Namespace => {
                let object: v1::Namespace = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |faults, findings| {
                    Ok(Body::Namespace(namespace::Namespace::new(
                        &object, faults, findings,
                    )))
                })
            }
            Kind::Node => {
                let object: v1::Node = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |_, _| {
                    Ok(Body::Node(node::Node::new(&object)))
                })
            }
            Kind::ServiceAccount => {
                let object: v1::ServiceAccount = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |_, _| {
                    Ok(Body::ServiceAccount)
                })
            }
            Kind::Service => {
                let object: v1::Service = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |faults, findings| {
                    let service = service::Service::new(&object, faults, findings)?;
                    Ok(Body::Service(Box::new(service)))
                })
            }
            Kind::Pod => {
                let object: v1::Pod = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |faults, findings| {
                    let pod = pod::Pod::new(&object, faults, findings)?;
                    Ok(Body::Pod(Box::new(pod)))
                })
            }
            Kind::EndpointSlice => {
                let object: discovery::v1::EndpointSlice = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |faults, _| {
                    let slice = endpoint_slice::EndpointSlice::new(&object, faults)?;
                    Ok(Body::EndpointSlice(slice))
                })
            }
        }
    }

    fn build(
        kind: Kind,
        metadata: &ObjectMeta,
        described: &Faults,
        body: impl FnOnce(&Faults, &mut Vec<ObjectError>) -> Result<Body, ObjectError>,
    ) -> Result<Self, ObjectError> {
        let name = checked_name("metadata.name", metadata.name.as_deref(), described)?;
        let namespace = if kind.is_namespaced() {
            let namespace = metadata
                .namespace
                .as_deref()
                .filter(|text| !text.is_empty());
            checked_name(
                "metadata.namespace",
                namespace.or(Some(DEFAULT_NAMESPACE)),
                described,
            )?
        } else {
            String::new()
        };
        let key = ObjectKey {
            kind,
            namespace,
            name,
        };
        let mut findings = Vec::new();
        let body = body(&Faults::of(&key), &mut findings)?;
        Ok(Self {
            key,
            findings,
            body,
        })
    }
}

/// Names end up in SPIFFE IDs, resource names, file names and logs, so nothing but what Kubernetes
/// itself allows gets in.
fn checked_name(field: &str, name: Option<&str>, faults: &Faults) -> Result<String, ObjectError> {
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        return Err(faults.error(field, "is missing", "give the object a name"));
    };
    let valid = name.len() <= MAX_NAME_BYTES
        && name.bytes().all(|byte| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte)
        })
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.ends_with(|last: char| last.is_ascii_alphanumeric());
    if valid {
        return Ok(name.to_owned());
    }
    let shown: String = name.chars().take(80).collect();
    Err(faults.error(
        field,
        format!("is {shown:?}, which is no valid name"),
        "use lower-case letters, digits, '-' and '.', at most 253 characters",
    ))
}

/// Converts to the typed form; the error names the field whose type is wrong.
fn typed<T: DeserializeOwned>(value: Value, faults: &Faults) -> Result<T, ObjectError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = error.path().to_string();
        faults.error(
            field,
            format!("has the wrong type: {}", error.inner()),
            "see `kubectl explain` for the field's type",
        )
    })
}

/// As much of `Kind namespace/name` as can be had from an object that may be anything.
fn describe(value: &Value) -> String {
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .map(|text| text.chars().take(80).collect::<String>())
    };
    let kind = text("/kind").unwrap_or_else(|| "object".to_owned());
    let name = text("/metadata/name").unwrap_or_else(|| "without a name".to_owned());
    match text("/metadata/namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

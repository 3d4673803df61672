//! Kubernetes objects, reduced to what the mesh needs and checked once.

pub(crate) mod authorization;
pub(crate) mod backend_tls_policy;
pub(crate) mod duration;
pub(crate) mod endpoint_slice;
pub(crate) mod gateway;
pub(crate) mod gateway_api;
pub(crate) mod hostname;
pub(crate) mod listener;
pub(crate) mod listener_set;
pub(crate) mod namespace;
pub(crate) mod node;
pub(crate) mod peer_authentication;
pub(crate) mod pod;
pub(crate) mod policy;
pub(crate) mod reference_grant;
pub(crate) mod request_authentication;
pub(crate) mod route;
pub(crate) mod selector;
pub(crate) mod service;
pub(crate) mod service_entry;
pub(crate) mod telemetry;
pub(crate) mod tls_material;
pub(crate) mod traffic_policy;

use std::fmt;

use k8s_openapi::{
    api::{core::v1, discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::{gateway_api::Resource, policy::PolicyDocument};
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
    /// gateway.networking.k8s.io GatewayClass.
    GatewayClass,
    /// gateway.networking.k8s.io Gateway.
    Gateway,
    /// gateway.networking.k8s.io ListenerSet.
    ListenerSet,
    /// gateway.networking.k8s.io ReferenceGrant.
    ReferenceGrant,
    /// v1 Secret, of which those with certificates are kept.
    Secret,
    /// v1 ConfigMap, of which those with authorities are kept.
    ConfigMap,
    /// gateway.networking.k8s.io BackendTLSPolicy.
    BackendTlsPolicy,
    /// karst.dev BackendTrafficPolicy.
    BackendTrafficPolicy,
    /// gateway.networking.k8s.io HTTPRoute.
    HttpRoute,
    /// gateway.networking.k8s.io GRPCRoute.
    GrpcRoute,
    /// gateway.networking.k8s.io TLSRoute.
    TlsRoute,
    /// gateway.networking.k8s.io TCPRoute.
    TcpRoute,
    /// security.istio.io AuthorizationPolicy.
    AuthorizationPolicy,
    /// security.istio.io PeerAuthentication.
    PeerAuthentication,
    /// security.istio.io RequestAuthentication.
    RequestAuthentication,
    /// telemetry.istio.io Telemetry.
    Telemetry,
    /// networking.istio.io ServiceEntry.
    ServiceEntry,
    /// v1 Service.
    Service,
    /// v1 Pod.
    Pod,
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice,
}

/// API group of the Gateway API.
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

/// Our own API group.
const KARST_GROUP: &str = "karst.dev";

/// API group of Istio's security policies.
const SECURITY_GROUP: &str = "security.istio.io";

/// API group of Istio's traffic resources.
const NETWORKING_GROUP: &str = "networking.istio.io";

/// API group of Istio's telemetry.
const TELEMETRY_GROUP: &str = "telemetry.istio.io";

/// Versions in which kinds of the Gateway API are or were served. Fields that there are in two of them
/// mean the same in both.
const GATEWAY_VERSIONS: [&str; 4] = ["v1", "v1beta1", "v1alpha3", "v1alpha2"];

impl Kind {
    /// All of them, in the order in which a batch is applied.
    pub const ALL: [Self; 23] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::GatewayClass,
        Self::Gateway,
        Self::ListenerSet,
        Self::ReferenceGrant,
        Self::Secret,
        Self::ConfigMap,
        Self::BackendTlsPolicy,
        Self::BackendTrafficPolicy,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TlsRoute,
        Self::TcpRoute,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::RequestAuthentication,
        Self::Telemetry,
        Self::ServiceEntry,
        Self::Service,
        Self::Pod,
        Self::EndpointSlice,
    ];

    /// The kind of an object by its `apiVersion` and `kind`; `None` for those the mesh ignores.
    #[must_use]
    pub fn of(api_version: &str, kind: &str) -> Option<Self> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let found = Self::ALL
            .into_iter()
            .find(|each| each.group() == group && each.name() == kind)?;
        found.versions().contains(&version).then_some(found)
    }

    /// The kind's name in manifests.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::GatewayClass => "GatewayClass",
            Self::Gateway => "Gateway",
            Self::ListenerSet => "ListenerSet",
            Self::ReferenceGrant => "ReferenceGrant",
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
            Self::BackendTlsPolicy => "BackendTLSPolicy",
            Self::BackendTrafficPolicy => "BackendTrafficPolicy",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::RequestAuthentication => "RequestAuthentication",
            Self::Telemetry => "Telemetry",
            Self::ServiceEntry => "ServiceEntry",
            Self::Service => "Service",
            Self::Pod => "Pod",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// The API group; empty for the core group.
    #[must_use]
    pub fn group(self) -> &'static str {
        match self {
            Self::Namespace
            | Self::Node
            | Self::ServiceAccount
            | Self::Secret
            | Self::ConfigMap
            | Self::Service
            | Self::Pod => "",
            Self::EndpointSlice => "discovery.k8s.io",
            Self::BackendTrafficPolicy => KARST_GROUP,
            Self::AuthorizationPolicy | Self::PeerAuthentication | Self::RequestAuthentication => {
                SECURITY_GROUP
            }
            Self::Telemetry => TELEMETRY_GROUP,
            Self::ServiceEntry => NETWORKING_GROUP,
            Self::GatewayClass
            | Self::Gateway
            | Self::ListenerSet
            | Self::ReferenceGrant
            | Self::BackendTlsPolicy
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::TlsRoute
            | Self::TcpRoute => GATEWAY_GROUP,
        }
    }

    /// Versions of the group that are understood, the best first.
    #[must_use]
    pub fn versions(self) -> &'static [&'static str] {
        match self.group() {
            GATEWAY_GROUP => &GATEWAY_VERSIONS,
            KARST_GROUP => &["v1alpha1"],
            SECURITY_GROUP | NETWORKING_GROUP => &["v1", "v1beta1"],
            TELEMETRY_GROUP => &["v1", "v1alpha1"],
            _ => &["v1"],
        }
    }

    /// Whether objects of the kind are in namespaces.
    #[must_use]
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::GatewayClass)
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
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Which object it is.
    pub key: ObjectKey,
    /// Fields that were left out of account, to be reported to the author.
    pub findings: Vec<ObjectError>,
    pub(crate) meta: Metadata,
    pub(crate) body: Body,
}

/// What else tells objects and their states apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Metadata {
    /// The API server's; empty for a manifest that nobody has run through one.
    pub(crate) uid: String,
    /// Counts changes of the spec.
    pub(crate) generation: i64,
    /// Creation, in seconds since 1970; 0 if unknown.
    pub(crate) created: i64,
}

impl Metadata {
    fn of(metadata: &ObjectMeta) -> Self {
        let created = metadata.creation_timestamp.as_ref();
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: created.map_or(0, |time| time.0.as_second()),
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    Namespace(namespace::Namespace),
    Node(node::Node),
    ServiceAccount,
    GatewayClass(gateway::GatewayClass),
    Gateway(Box<gateway::Gateway>),
    ListenerSet(Box<listener_set::ListenerSet>),
    ReferenceGrant(reference_grant::ReferenceGrant),
    /// `None`: nothing in it that concerns the mesh.
    Secret(Option<Box<tls_material::TlsMaterial>>),
    /// `None`: nothing in it that concerns the mesh.
    ConfigMap(Option<Box<tls_material::TlsMaterial>>),
    BackendTlsPolicy(Box<backend_tls_policy::BackendTlsPolicy>),
    BackendTrafficPolicy(Box<traffic_policy::TrafficPolicy>),
    Route(Box<route::Route>),
    AuthorizationPolicy(Box<authorization::AuthorizationPolicy>),
    PeerAuthentication(Box<peer_authentication::PeerAuthentication>),
    RequestAuthentication(Box<request_authentication::RequestAuthentication>),
    Telemetry(Box<telemetry::Telemetry>),
    ServiceEntry(Box<service_entry::ServiceEntry>),
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
            Kind::GatewayClass => {
                Self::of_spec(kind, value, described, gateway::GatewayClass::body)
            }
            Kind::Gateway => Self::of_spec(kind, value, described, gateway::Gateway::body),
            Kind::ListenerSet => {
                Self::of_spec(kind, value, described, listener_set::ListenerSet::body)
            }
            Kind::ReferenceGrant => Self::of_spec(
                kind,
                value,
                described,
                reference_grant::ReferenceGrant::body,
            ),
            Kind::BackendTlsPolicy => {
                let body = backend_tls_policy::BackendTlsPolicy::body;
                Self::of_spec(kind, value, described, body)
            }
            Kind::BackendTrafficPolicy => {
                Self::of_spec(kind, value, described, traffic_policy::TrafficPolicy::body)
            }
            Kind::HttpRoute => Self::of_spec(kind, value, described, route::http::body),
            Kind::GrpcRoute => Self::of_spec(kind, value, described, route::grpc::body),
            Kind::TlsRoute => Self::of_spec(kind, value, described, route::l4::tls_body),
            Kind::TcpRoute => Self::of_spec(kind, value, described, route::l4::tcp_body),
            Kind::AuthorizationPolicy
            | Kind::PeerAuthentication
            | Kind::RequestAuthentication
            | Kind::Telemetry
            | Kind::ServiceEntry => Self::of_policy(kind, value, described),
            Kind::Secret => {
                let object: v1::Secret = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |faults, findings| {
                    Ok(Body::Secret(tls_material::of_secret(
                        &object, faults, findings,
                    )))
                })
            }
            Kind::ConfigMap => {
                let object: v1::ConfigMap = typed(value, described)?;
                Self::build(kind, &object.metadata, described, |faults, findings| {
                    Ok(Body::ConfigMap(tls_material::of_config_map(
                        &object, faults, findings,
                    )))
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

    /// Checks an object of a kind that has types of our own.
    fn of_spec<S: DeserializeOwned + Default>(
        kind: Kind,
        value: Value,
        described: &Faults,
        body: impl FnOnce(Resource<S>, &Faults, &mut Vec<ObjectError>) -> Result<Body, ObjectError>,
    ) -> Result<Self, ObjectError> {
        let object: Resource<S> = typed(value, described)?;
        let metadata = object.metadata.clone();
        Self::build(kind, &metadata, described, |faults, findings| {
            body(object, faults, findings)
        })
    }

    /// Reads a kind of Istio's, which becomes an object whatever is wrong with it.
    fn of_policy(kind: Kind, value: Value, described: &Faults) -> Result<Self, ObjectError> {
        let document = PolicyDocument::read(value);
        Self::build(kind, &document.metadata, described, |faults, findings| {
            let namespace = document.metadata.namespace.as_deref();
            let namespace = namespace.filter(|text| !text.is_empty());
            let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
            Ok(match kind {
                Kind::PeerAuthentication => {
                    peer_authentication::PeerAuthentication::body(&document, faults, findings)
                }
                Kind::RequestAuthentication => {
                    let body = request_authentication::RequestAuthentication::body;
                    body(&document, faults, findings)
                }
                Kind::Telemetry => telemetry::Telemetry::body(&document, faults, findings),
                Kind::ServiceEntry => {
                    let body = service_entry::ServiceEntry::body;
                    body(&document, namespace, faults, findings)
                }
                _ => {
                    let body = authorization::AuthorizationPolicy::body;
                    body(&document, namespace, faults, findings)
                }
            })
        })
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
            meta: Metadata::of(metadata),
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

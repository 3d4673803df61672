//! The wire protocol between the controller and its clients: delta discovery, workloads and
//! services, authorization, certificate signing, and what is Karst's own for node agents.
//!
//! It holds generated types, resource type URLs and validated conversions. It holds no policy, no
//! Kubernetes types and no connection handling (that is `karst-client` and `karst-controller`).
//! Start with `proto/workload.proto`; the Rust under `src/gen` is written by `cargo xtask codegen`.

pub mod ca;
pub mod convert;
pub mod discovery;
pub mod ext_authz;
pub mod features;
pub mod node;
pub mod security;
pub mod telemetry;
pub mod waypoint;
pub mod workload;

pub use convert::FieldError;

/// Resource type of [`workload::Address`].
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";

/// Resource type of [`security::Authorization`].
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";

/// Resource type of [`node::NodePod`].
pub const NODE_POD_TYPE: &str = "type.googleapis.com/karst.node.v1.NodePod";

/// Resource type of [`waypoint::Listener`].
pub const LISTENER_TYPE: &str = "type.googleapis.com/karst.waypoint.v1.Listener";

/// Resource type of [`waypoint::Route`].
pub const ROUTE_TYPE: &str = "type.googleapis.com/karst.waypoint.v1.Route";

/// Resource type of [`waypoint::Backend`].
pub const BACKEND_TYPE: &str = "type.googleapis.com/karst.waypoint.v1.Backend";

/// Resource type of [`waypoint::TlsSecret`].
pub const TLS_SECRET_TYPE: &str = "type.googleapis.com/karst.waypoint.v1.TlsSecret";

/// Resource type of [`waypoint::AuthorizationPolicy`].
pub const AUTHORIZATION_POLICY_TYPE: &str =
    "type.googleapis.com/karst.waypoint.v1.AuthorizationPolicy";

/// Resource type of [`waypoint::RequestAuthentication`].
pub const REQUEST_AUTHENTICATION_TYPE: &str =
    "type.googleapis.com/karst.waypoint.v1.RequestAuthentication";

/// Type of [`node::RejectedResource`], a detail of a rejected discovery response.
pub const REJECTED_RESOURCE_TYPE: &str = "type.googleapis.com/karst.node.v1.RejectedResource";

/// Type of [`node::OutsideService`], an extension of a [`workload::Service`].
pub const OUTSIDE_SERVICE_TYPE: &str = "type.googleapis.com/karst.node.v1.OutsideService";

/// Subscribes to every resource of a type.
pub const WILDCARD: &str = "*";

/// Key of the signing request's metadata that holds the wanted SPIFFE ID.
pub const IMPERSONATED_IDENTITY: &str = "ImpersonatedIdentity";

/// The trust domain meant by an empty `trust_domain` on the wire.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// Namespaces whose pods are never in the mesh, whatever their labels say: the mesh's own pods must
/// start before there is a mesh, and so must what the mesh stands on. Their sandboxes do not wait for
/// an agent, so a pod there that was captured later would have spoken in clear first.
pub const OUTSIDE_NAMESPACES: [&str; 2] = ["karst-system", "kube-system"];

/// Largest message either side accepts, in bytes. Istio's own limit: a first push of a large mesh
/// must fit when the other side does not split it (Karst's controller does).
pub const MAX_MESSAGE_BYTES: usize = 200 * 1024 * 1024;

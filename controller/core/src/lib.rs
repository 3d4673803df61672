//! The controller's pure core: Kubernetes objects in, mesh resources out.
//!
//! [`Object::from_value`] turns a Kubernetes object into the part the mesh needs and says exactly
//! what is wrong with a bad one. [`Index`] holds all objects and keeps the resources they make up
//! to date; every change touches what it changes and says what that was. There is no I/O here, no
//! Kubernetes client, no gRPC and no clock. Start with [`Index`].
//!
//! What node agents are told (workloads, services, pods of a node) follows each object at once. What
//! waypoints and gateways are told (listeners, routes, backends, secrets), what shall run for a
//! Gateway and the statuses of its kinds are worked out by [`Index::flush`], which [`Index::apply`]
//! and [`Index::delete`] end with, and which comes once after many [`Index::stage`]s.

mod config;
pub mod documents;
mod error;
mod extension;
mod index;
mod labels;
mod object;
mod proxy;
mod resource;
mod status;
mod token;

pub use config::{MeshConfig, ROOT_NAMESPACE};
pub use error::ObjectError;
pub use extension::{ExtensionProviders, MAX_MESH_CONFIG_BYTES, MeshConfigFindings};
pub use index::{Changes, Index, MeshPod, NodeIdentity, PeerMode, PodRef, WaypointBinding};
pub use labels::{DataplaneMode, Egress};
pub use object::{Kind, Object, ObjectKey, pod::has_sidecar};
pub use proxy::{
    GatewayName, ProxyChange, ProxyClass, ProxyKind, ProxyPort, ProxyWanted, WAYPOINT_PORT,
};
pub use resource::Rendered;
pub use status::{
    AncestorStatus, Condition, ConditionStatus, ObjectStatus, ParentStatus, StatusContent,
};

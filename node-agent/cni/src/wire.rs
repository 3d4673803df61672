//! What plugin and agent say to each other: JSON over HTTP/1.1 on the CNI socket.
//!
//! | method | path | body | answer |
//! |---|---|---|---|
//! | POST | [`ADD`] | [`Attachment`] | [`Added`], once the pod is in the wanted state |
//! | POST | [`CHECK`] | [`Attachment`] | [`Added`], at once |
//! | POST | [`DEL`] | [`Attachment`] | `{}` |
//! | POST | [`GC`] | `{}` | `{}` |
//!
//! Refusals have another status than 200 and a [`Refused`]. Fields that one side does not know
//! are passed over: for the time of an upgrade the two differ in age.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A sandbox was made.
pub const ADD: &str = "/v1/cni/add";
/// Is it as it should be?
pub const CHECK: &str = "/v1/cni/check";
/// It ends.
pub const DEL: &str = "/v1/cni/del";
/// Look for sandboxes that ended unheard.
pub const GC: &str = "/v1/cni/gc";

/// How long the agent waits for the controller to tell it of a new pod. The controller sees a
/// pod about when the kubelet does; more than seconds means that it is out of reach.
pub const POD_WAIT: Duration = Duration::from_secs(20);

/// How long the agent then has to enrol it: the first certificate of an identity has to be issued.
pub const ENROL_WAIT: Duration = Duration::from_secs(20);

/// Which namespace a file stood for, seen by the plugin: the agent may see the file elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetnsInode {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// One interface of one sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Kubernetes uid of the pod; old container runtimes do not tell.
    #[serde(default)]
    pub pod_uid: Option<String>,
    /// Pod namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// The container runtime's id of the sandbox.
    pub container_id: String,
    /// Path of its network namespace on the node; there may be none any more when it ends.
    #[serde(default)]
    pub netns: Option<PathBuf>,
    /// Which one that is.
    #[serde(default)]
    pub netns_id: Option<NetnsInode>,
    /// Its addresses, at most one of each family.
    #[serde(default)]
    pub addresses: Vec<IpAddr>,
}

/// The pod is in the wanted state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Added {
    /// Whether that is in the mesh.
    pub enrolled: bool,
}

/// It is not, or nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Stable label.
    pub reason: String,
    /// Details.
    pub error: String,
}

//! The lab: nodes, pods and a control plane out of network namespaces on one machine, with
//! the real `karst-controller` and one real `karst-node-agent` a node. Tests, the demo, the
//! benchmark and `cargo xtask lab` stand on it.
//!
//! The lab plays what a cluster brings: the API server (a directory of manifests that the
//! controller watches), the kubelet (a pod's first container is a host program in the pod's
//! own network and mount namespace and cgroup), the container runtime (which calls the real
//! `karst-cni`) and the CNI plugin before it (addresses, routes). It has no route out of the machine, writes no packet filter rule
//! and does not proxy Service addresses: an un-enrolled pod cannot dial a ClusterIP here.
//!
//! Start reading at [`Lab`]; `network` builds the wire, `kubelet` runs pods, `mesh` runs
//! the controller and the agents. Everything a lab leaves on the machine is named after it:
//! namespaces `karst-<lab>-*`, cgroups `karst-lab/<lab>`, pins `karst-lab/<lab>`, files
//! `/run/karst-lab/<lab>`; so [`Lab::tear_down`] needs no record to remove it.
//!
//! The public modules are what the test cluster of `karst_cluster` does in the same way: programs,
//! processes, locks, cgroups and network namespaces of the machine; and what tests ask in both where a fault is staged.

mod addresses;
mod admin;
pub mod by_hand;
pub mod cgroup;
mod cni;
mod doctor;
mod ending;
pub mod files;
pub mod helper;
pub mod host;
pub mod inside;
mod kubelet;
mod lab;
mod launch;
pub mod lock;
mod manifests;
mod mesh;
pub mod mounts;
mod name_files;
pub mod netns;
mod network;
mod newer;
mod options;
mod paths;
pub mod process;
mod running;
mod state;
mod status;
mod store;
mod tokens;
mod wait;
mod workloads;

pub use admin::get_in;
pub use doctor::Doctor;
pub use ending::EndingAuthority;
pub use lab::Lab;
pub use netns::run_in;
pub use newer::{NewerController, Place};
pub use options::{LabName, LabOptions, Lifetime, MAX_NODES, Mesh};
pub use running::Running;
pub use status::{LabStatus, NodeStatus, PodStatus};
pub use tokens::Claims;
pub use wait::until;

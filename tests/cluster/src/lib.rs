//! A real Kubernetes cluster on one machine: etcd, API server, controller manager and scheduler,
//! and nodes with kubelet, containerd, runc, CNI plugins and kube-proxy, in namespaces of this
//! machine. The tests that need more than the lab of `karst_harness` stand on it, and so does
//! `cargo xtask cluster`.
//!
//! It does not know Karst: tests install that as a user does. It has no route out of the machine
//! and changes nothing of the machine's own configuration: a node sees a copy of the machine's file
//! system that is its own, and is alone in its process, network, cgroup and mount namespaces.
//!
//! Start reading at [`Cluster`]; `binaries` builds the programs, `network` the wire, `node` a node's
//! files, `inside` what makes a process a node, `control_plane` runs the rest. The README beside
//! this crate says what is real and what is not.

mod binaries;
mod cgroup;
mod cluster;
mod conformance;
mod control_plane;
mod faults;
mod image;
pub mod inside;
mod kubectl;
mod lifecycle;
mod load_balancer;
mod network;
mod node;
mod options;
mod paths;
mod pki;
mod state;

pub use binaries::{Binaries, check_go, collector};
pub use cluster::{Cluster, ClusterStatus, ProcessStatus};
pub use conformance::{Channel, Suite};
pub use image::{Image, write_archive};
pub use inside::binary;
pub use karst_harness::Lifetime;
pub use load_balancer::LoadBalancer;
pub use options::{Audit, ClusterName, ClusterOptions};
pub use paths::{API_SERVER, CLUSTER_CGROUP, CLUSTER_DNS, NODES, node_address};

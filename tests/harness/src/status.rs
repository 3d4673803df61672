//! What a lab looks like from outside: the JSON of `lab status -j`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A lab's nodes and pods.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LabStatus {
    /// Its nodes, by name.
    pub nodes: Vec<NodeStatus>,
    /// Its pods, by namespace and name.
    pub pods: Vec<PodStatus>,
}

/// One node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name: `node1`, `node2`, ...
    pub name: String,
    /// The name of its network namespace (a file in `/run/netns`).
    pub netns: String,
    /// Its addresses on the wire, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The process id of its running agent.
    pub agent_pid: Option<u32>,
}

/// One pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// The name of its network namespace (a file in `/run/netns`).
    pub netns: String,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The process id of its container; none when it ended.
    pub pid: Option<u32>,
    /// The file with its container's output.
    pub log: PathBuf,
    /// Whether the kernel captures its connections now: read from the node's pinned maps
    /// or its agent, never from what the manifests ask for.
    pub enrolled: bool,
}

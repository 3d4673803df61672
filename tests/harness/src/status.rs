//! What a lab looks like from outside: the JSON of `lab status -j`.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::addresses;
use crate::admin;
use crate::host;
use crate::mesh;
use crate::paths::Paths;
use crate::state::{PodRecord, State, node_name};

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

/// How an agent should know a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// By HBONE.
    Hbone,
    /// Without it.
    Plain,
}

/// Reads the lab's state from the running system.
pub(crate) fn read(paths: &Paths, state: &State) -> Result<LabStatus> {
    let mut nodes = Vec::new();
    let mut enrolled = BTreeSet::new();
    for number in 1..=state.nodes {
        let name = node_name(number);
        enrolled.extend(enrolled_pods(paths, &name)?);
        nodes.push(NodeStatus {
            netns: paths.host_netns(&name),
            addresses: addresses::wire(number).both(),
            agent_pid: mesh::agent_pid(paths, &name)?,
            name,
        });
    }
    let pods = state
        .pods
        .values()
        .map(|pod| PodStatus {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            node: pod.node.clone(),
            netns: pod.netns.clone(),
            addresses: pod.addresses.clone(),
            pid: pod
                .process
                .filter(|process| process.is_alive())
                .map(|process| process.pid),
            log: paths.pod_log(&pod.namespace, &pod.name),
            enrolled: enrolled.contains(&pod.uid),
        })
        .collect();
    Ok(LabStatus { nodes, pods })
}

/// Whether the kernel captures the pod's connections.
pub(crate) fn is_enrolled(paths: &Paths, pod: &PodRecord) -> Result<bool> {
    Ok(enrolled_pods(paths, &pod.node)?.contains(&pod.uid))
}

/// The uids of a node's enrolled pods, from its pinned maps: right also without an agent.
fn enrolled_pods(paths: &Paths, node: &str) -> Result<BTreeSet<String>> {
    if !paths.bpffs_root().join(node).exists() {
        return Ok(BTreeSet::new());
    }
    let text = host::run(&mut mesh::inspect(paths, node, &["pod", "show", "-j"])?)?;
    let pods: Value = serde_json::from_str(&text).context("reading what karst inspect says")?;
    Ok(pods
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|pod| pod["uid"].as_str().map(str::to_owned))
        .collect())
}

/// Fails unless the agent of `node` knows the pod as expected, and as ready as it is.
pub(crate) fn check_known(
    paths: &Paths,
    node: &str,
    pod: &PodRecord,
    expected: Expected,
) -> Result<()> {
    let text = admin::get(&paths.admin_socket(node), "/v1/workloads")?;
    let workloads: Value = serde_json::from_slice(&text)?;
    let known = workloads
        .as_array()
        .into_iter()
        .flatten()
        .find(|known| {
            known["namespace"] == pod.namespace.as_str() && known["name"] == pod.name.as_str()
        })
        .with_context(|| format!("{node} does not know {}", pod.id()))?;
    let protocol = known["protocol"]
        .as_str()
        .unwrap_or_default()
        .to_ascii_uppercase();
    ensure!(
        (protocol == "HBONE") == (expected == Expected::Hbone),
        "{node} knows {} by protocol {protocol:?}",
        pod.id()
    );
    // Until an agent has heard that a pod is ready, its Services have no endpoint there.
    let healthy = known["health"] == "healthy";
    ensure!(
        healthy == pod.ready,
        "{node} knows {} as {}",
        pod.id(),
        known["health"]
    );
    Ok(())
}

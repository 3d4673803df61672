//! The lab's record: one JSON file, read and written under the lab's file lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::files::write_atomic;
use crate::manifests::Key;
use crate::options::Mesh;
use crate::paths::Paths;
use crate::process::ProcessRecord;

/// Everything the lab remembers between commands.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Whether controller and agents run.
    pub mesh: Mesh,
    /// How many nodes there are.
    pub nodes: u8,
    /// Hosts (nodes, wire, control, external) whose network namespace is complete.
    pub hosts: BTreeSet<String>,
    /// More arguments for every agent.
    pub agent_args: Vec<String>,
    /// More arguments for the controller.
    pub controller_args: Vec<String>,
    /// The API server's objects.
    pub objects: BTreeMap<Key, Value>,
    /// What the kubelet knows of its pods, by `namespace/name`.
    pub pods: BTreeMap<String, PodRecord>,
    /// Node names to node uids.
    pub node_uids: BTreeMap<String, String>,
}

/// A pod's sandbox and process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// The pod's uid: a new one each time a pod of this name is made.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// The named network namespace it runs in.
    pub netns: String,
    /// Whether that is its own (false with `hostNetwork`).
    pub own_netns: bool,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its container's process.
    pub process: Option<ProcessRecord>,
    /// How its container ended, if it did: whether with exit status 0 cannot be known for a
    /// process that another lab command started.
    pub ended: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// The `spec` its sandbox was made from.
    pub spec: Value,
}

impl PodRecord {
    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl State {
    /// A new lab's.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh,
            nodes: 0,
            hosts: BTreeSet::new(),
            agent_args: Vec::new(),
            controller_args: Vec::new(),
            objects: BTreeMap::new(),
            pods: BTreeMap::new(),
            node_uids: BTreeMap::new(),
        }
    }

    /// The lab's record; none if it was never brought up.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        let path = paths.state();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes the record.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        write_atomic(&paths.state(), &serde_json::to_vec(self)?)
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(node_name).collect()
    }

    /// A node's number; an error names those there are.
    pub fn node_number(&self, node: &str) -> Result<u8> {
        match (1..=self.nodes).find(|number| node_name(*number) == node) {
            Some(number) => Ok(number),
            None => bail!(
                "there is no node {node}; there are {}",
                self.node_names().join(", ")
            ),
        }
    }

    /// The pod that `name` means: `namespace/name`, `name` in `default`, or the first pod of
    /// a Deployment called so.
    pub fn pod(&self, name: &str) -> Result<&PodRecord> {
        let id = if name.contains('/') {
            name.to_owned()
        } else {
            format!("default/{name}")
        };
        if let Some(pod) = self.pods.get(&id) {
            return Ok(pod);
        }
        self.pods
            .values()
            .find(|pod| self.deployment_of(pod).is_some_and(|owner| owner == id))
            .with_context(|| {
                let known: Vec<&str> = self.pods.keys().map(String::as_str).collect();
                format!("there is no pod {id}; there are: {}", known.join(", "))
            })
    }

    /// `namespace/name` of the Deployment that a pod belongs to.
    pub fn deployment_of(&self, pod: &PodRecord) -> Option<String> {
        let object = self
            .objects
            .get(&Key::new("Pod", &pod.namespace, &pod.name))?;
        let hash = object["metadata"]["labels"]["pod-template-hash"].as_str()?;
        let owner = object["metadata"]["ownerReferences"][0]["name"].as_str()?;
        let name = owner.strip_suffix(hash)?.strip_suffix('-')?;
        Some(format!("{}/{name}", pod.namespace))
    }
}

/// The name of node number `number`.
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// A new uid in the form of a random UUID.
pub fn new_uid() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) | (0x4 << 76);
    let bits = bits & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_look_like_random_uuids() {
        let uid = new_uid();
        let parts: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(uid, new_uid());
    }
}

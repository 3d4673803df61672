//! What a lab is made from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::ensure;
use serde::{Deserialize, Serialize};

/// Nodes a lab may have: the limit of the address plan's third octet, less the addresses
/// kept for the controller and the external host, rounded down.
pub const MAX_NODES: u8 = 16;

/// A lab's name: 1 to 20 of `[a-z0-9_]`. It becomes part of namespace, cgroup and pin names,
/// where `-` ends it, so that no lab's prefix is the beginning of another's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LabName(String);

impl FromStr for LabName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(
            (1..=20).contains(&name.len()) && name.chars().all(good),
            "a lab's name is 1 to 20 of a-z, 0-9 and _; got {name:?}"
        );
        Ok(Self(name.to_owned()))
    }
}

impl TryFrom<String> for LabName {
    type Error = anyhow::Error;

    fn try_from(name: String) -> anyhow::Result<Self> {
        name.parse()
    }
}

impl From<LabName> for String {
    fn from(name: LabName) -> Self {
        name.0
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for LabName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// Whether the lab runs the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mesh {
    /// Nodes and pods only.
    Off,
    /// A controller, and an agent on each node.
    On,
}

/// How long a lab, or a test cluster, lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    /// Until `down`: the command line's.
    UntilDown,
    /// No longer than the calling process: a guard process tears it down when the caller ends,
    /// however it ends.
    WithCaller,
}

/// What to bring up. `LabOptions::new(name)` is a meshed lab of two nodes that ends with
/// the calling process.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// The lab's name; a second `up` of the same name reconciles.
    pub name: String,
    /// How many nodes (`node1`, `node2`, ...), 1 to [`MAX_NODES`].
    pub nodes: u8,
    /// Whether controller and agents run.
    pub mesh: Mesh,
    /// A directory of manifests (`*.yaml`, `*.yml`, `*.json`) to apply.
    pub dir: Option<PathBuf>,
    /// When the lab ends.
    pub lifetime: Lifetime,
    /// More arguments for every node agent, after the lab's own.
    pub agent_args: Vec<String>,
    /// More arguments for the controller, after the lab's own.
    pub controller_args: Vec<String>,
}

impl LabOptions {
    /// A meshed lab of two nodes that ends with the calling process.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: 2,
            mesh: Mesh::On,
            dir: None,
            lifetime: Lifetime::WithCaller,
            agent_args: Vec::new(),
            controller_args: Vec::new(),
        }
    }
}

//! What a cluster is made from.

use std::fmt;
use std::str::FromStr;

use anyhow::ensure;
use karst_harness::Lifetime;

/// The longest name of a cluster, in bytes: it is part of paths of sockets, whose length the kernel
/// limits to 108.
const LONGEST_NAME: usize = 20;

/// A cluster's name: 1 to 20 of `[a-z0-9_]`. It becomes part of names of namespaces and cgroups,
/// where `-` ends it, so that no cluster's prefix is the beginning of another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

impl FromStr for ClusterName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Self> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        ensure!(
            (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(good),
            "a cluster's name is 1 to {LONGEST_NAME} of a-z, 0-9 and _; got {name:?}"
        );
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether the API server writes an audit log (every request's metadata, as JSON lines).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audit {
    /// No audit log.
    Off,
    /// To `logs/audit.log` of the cluster's directory.
    Metadata,
}

/// What to bring up. `ClusterOptions::new(name)` ends with the calling process.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// The cluster's name; clusters of different names run side by side.
    pub name: String,
    /// How many nodes (`node1`, `node2`): 0 for a control plane alone, at most
    /// [`NODES`](crate::NODES).
    pub nodes: u8,
    /// When the cluster ends.
    pub lifetime: Lifetime,
    /// Whether requests are logged.
    pub audit: Audit,
}

impl ClusterOptions {
    /// A cluster of two nodes that ends with the calling process.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            nodes: crate::NODES,
            lifetime: Lifetime::WithCaller,
            audit: Audit::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_fit_into_other_names() {
        assert!("test_1".parse::<ClusterName>().is_ok());
        for bad in ["", "a-b", "UP", "../x", "a23456789012345678901"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad}");
        }
    }
}

//! What the kernel holds of ours, read from the kernel and bpffs alone: it works with the agent
//! dead, and shows what is really attached, not what the agent believes.

use std::net::IpAddr;
use std::path::Path;

use serde::Serialize;

use crate::DatapathError;

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramInfo {
    /// Kernel id.
    pub id: u32,
    /// Name, as given at load (the kernel keeps 15 bytes).
    pub name: String,
    /// Program type, for example `cgroup_sock_addr`.
    pub kind: String,
    /// The kernel's hash of the instructions.
    pub tag: String,
    /// Machine code, bytes.
    pub jited_bytes: u32,
    /// Instructions the verifier walked.
    pub verified_instructions: u32,
    /// Runs, counted only while `kernel.bpf_stats_enabled` is on.
    pub run_count: u64,
    /// Time spent, nanoseconds, counted only while `kernel.bpf_stats_enabled` is on.
    pub run_time_ns: u64,
    /// Ids of the maps it uses.
    pub map_ids: Vec<u32>,
    /// Pin names of the links that run it.
    pub links: Vec<String>,
}

/// A pinned link: a program attached to a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkInfo {
    /// Pin name.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// `cgroup` or `netns`.
    pub kind: String,
    /// The hook, for example `cgroup_inet4_connect`.
    pub attach_type: String,
    /// Kernel id of the program it runs.
    pub program_id: u32,
    /// The cgroup it is attached to; `None` for other kinds, 0 when that cgroup is gone.
    pub cgroup_id: Option<u64>,
    /// Inode of the network namespace; `None` for other kinds, 0 when it is gone.
    pub netns_ino: Option<u32>,
}

/// A pinned map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapInfo {
    /// Name.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// Map type, for example `lru_hash`.
    pub kind: String,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Limit; 0 for per-socket storage, which is bounded by the sockets.
    pub max_entries: u32,
    /// Entries now; `None` where the kernel cannot enumerate them (per-socket storage).
    pub entries: Option<u32>,
}

/// One entry of a map, decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapEntry {
    /// The key, one field per component.
    pub key: Fields,
    /// The value, one field per component.
    pub value: Fields,
}

/// Named components in a stable order, serialised as a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub Vec<(&'static str, String)>);

impl Serialize for Fields {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// An enrolled pod as the kernel knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PodEntry {
    /// The pod's uid.
    pub uid: String,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Inode of its network namespace by the `sk_lookup` link; `None` when that link is missing
    /// or the namespace is gone.
    pub netns_ino: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Addresses for which inbound connections find a listener now.
    pub listening: Vec<IpAddr>,
}

/// Programs run by this node's pinned links.
///
/// # Errors
/// The pins cannot be read.
pub fn programs(bpffs_root: &Path, node: &str) -> Result<Vec<ProgramInfo>, DatapathError> {
    let _ = (bpffs_root, node);
    Err(DatapathError::ObjectMissing)
}

/// This node's pinned links.
///
/// # Errors
/// The pins cannot be read.
pub fn links(bpffs_root: &Path, node: &str) -> Result<Vec<LinkInfo>, DatapathError> {
    let _ = (bpffs_root, node);
    Err(DatapathError::ObjectMissing)
}

/// This node's pinned maps.
///
/// # Errors
/// The pins cannot be read.
pub fn maps(bpffs_root: &Path, node: &str) -> Result<Vec<MapInfo>, DatapathError> {
    let _ = (bpffs_root, node);
    Err(DatapathError::ObjectMissing)
}

/// Every entry of one map.
///
/// # Errors
/// There is no such map, or it cannot be enumerated.
pub fn dump_map(bpffs_root: &Path, node: &str, name: &str) -> Result<Vec<MapEntry>, DatapathError> {
    let _ = (bpffs_root, node, name);
    Err(DatapathError::ObjectMissing)
}

/// The enrolled pods.
///
/// # Errors
/// The pins cannot be read.
pub fn pods(bpffs_root: &Path, node: &str) -> Result<Vec<PodEntry>, DatapathError> {
    let _ = (bpffs_root, node);
    Err(DatapathError::ObjectMissing)
}

/// Nodes that have pins under `bpffs_root`: one on a real machine, several in a lab.
///
/// # Errors
/// The directory cannot be read; that it does not exist is no error.
pub fn nodes(bpffs_root: &Path) -> Result<Vec<String>, DatapathError> {
    let _ = bpffs_root;
    Err(DatapathError::ObjectMissing)
}

//! The shapes people and scripts see.

use std::net::IpAddr;

use serde::Serialize;

use crate::DatapathError;
use crate::map::{RawMap, kind_name};
use crate::sys::{self, AttachType, LINK_CGROUP, LINK_NETNS, LinkTarget};

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramInfo {
    /// Kernel id.
    pub id: u32,
    /// Name, of which the kernel keeps 15 bytes.
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

/// A program attached to a cgroup, by whomever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AttachedProgram {
    /// The hook.
    pub attach_type: String,
    /// Kernel id.
    pub program_id: u32,
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

pub(super) fn program(found: &sys::ProgramInfo, links: Vec<String>) -> ProgramInfo {
    let raw = &found.raw;
    let name = raw.name.split(|byte| *byte == 0).next().unwrap_or_default();
    ProgramInfo {
        id: raw.id,
        name: String::from_utf8_lossy(name).into_owned(),
        kind: program_kind(raw.kind),
        tag: raw.tag.iter().map(|byte| format!("{byte:02x}")).collect(),
        jited_bytes: raw.jited_bytes,
        verified_instructions: raw.verified_instructions,
        run_count: raw.run_count,
        run_time_ns: raw.run_time_ns,
        map_ids: found.map_ids.clone(),
        links,
    }
}

/// `BPF_PROG_TYPE_*`, as far as we use them.
fn program_kind(kind: u32) -> String {
    match kind {
        13 => "sock_ops".to_owned(),
        18 => "cgroup_sock_addr".to_owned(),
        30 => "sk_lookup".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn link(name: String, info: &sys::LinkInfo) -> LinkInfo {
    LinkInfo {
        name,
        id: info.id,
        kind: match info.kind {
            LINK_CGROUP => "cgroup".to_owned(),
            LINK_NETNS => "netns".to_owned(),
            other => other.to_string(),
        },
        attach_type: AttachType::name(info.attach_type),
        program_id: info.program,
        cgroup_id: match info.target {
            LinkTarget::Cgroup(id) => Some(id),
            _ => None,
        },
        netns_ino: match info.target {
            LinkTarget::Netns(ino) => Some(ino),
            _ => None,
        },
    }
}

pub(super) fn map(map: &RawMap) -> Result<MapInfo, DatapathError> {
    Ok(MapInfo {
        name: map.spec.name.to_owned(),
        id: map.info.id,
        kind: kind_name(map.info.kind),
        key_size: map.info.key_size,
        value_size: map.info.value_size,
        max_entries: map.info.max_entries,
        entries: map.count()?,
    })
}

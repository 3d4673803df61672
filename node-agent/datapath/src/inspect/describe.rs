//! The shapes people and scripts see.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::DatapathError;
use crate::map::{self, RawMap, kind_name};
use crate::sys::{self, AttachType, LINK_CGROUP, LINK_NETNS, LINK_TCX, LinkTarget};

/// Of per-socket storage.
const STORAGE_NOTE: &str = "the kernel keeps it with each socket and does not count it; \
    `map dump` walks all sockets by a BPF iterator, which needs Linux 5.9 and CAP_PERFMON";

/// Of a ring buffer.
const RING_NOTE: &str = "records that the agent has not taken yet; looking takes none away";

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProgramInfo {
    /// Kernel id.
    pub id: u32,
    /// Name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Program type, for example `cgroup_sock_addr`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kernel's hash of the instructions.
    pub tag: String,
    /// Its licence is one that all helpers may be used with.
    pub gpl_compatible: bool,
    /// When it was loaded, seconds since 1970.
    pub loaded_at: u64,
    /// Who loaded it.
    pub uid: u32,
    /// Instructions as the kernel keeps them, bytes.
    pub bytes_xlated: u32,
    /// Whether there is machine code.
    pub jited: bool,
    /// Machine code, bytes.
    #[serde(rename = "bytes_jited")]
    pub jited_bytes: u32,
    /// Memory that is charged for it, bytes.
    pub bytes_memlock: u64,
    /// Instructions the verifier walked.
    #[serde(rename = "verified_insns")]
    pub verified_instructions: u32,
    /// Runs, counted only while `kernel.bpf_stats_enabled` is on.
    #[serde(rename = "run_cnt")]
    pub run_count: u64,
    /// Time spent, nanoseconds, counted only while `kernel.bpf_stats_enabled` is on.
    pub run_time_ns: u64,
    /// Whether runs are counted now; if not, the two numbers are of some time before.
    pub bpf_stats_enabled: bool,
    /// Ids of the maps it uses.
    pub map_ids: Vec<u32>,
    /// Pin names of the links that run it.
    pub links: Vec<String>,
}

/// A pinned link: a program attached to a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkInfo {
    /// Pin name.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// `cgroup`, `netns` or `tcx`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The hook, for example `cgroup_inet4_connect`.
    pub attach_type: String,
    /// Kernel id of the program it runs.
    #[serde(rename = "prog_id")]
    pub program_id: u32,
    /// The cgroup it is attached to; `None` for other kinds, 0 when that cgroup is gone.
    pub cgroup_id: Option<u64>,
    /// Inode of the network namespace; `None` for other kinds, 0 when it is gone.
    pub netns_ino: Option<u32>,
    /// Index of the interface; `None` for other kinds, 0 when it is gone.
    #[serde(default)]
    pub ifindex: Option<u32>,
    /// The pin.
    pub pinned: PathBuf,
}

/// A program attached to a cgroup, by whomever.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct AttachedProgram {
    /// The hook.
    pub attach_type: String,
    /// Kernel id.
    pub program_id: u32,
}

/// A map of the programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MapInfo {
    /// Name.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// Map type, for example `lru_hash`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `BPF_F_*`.
    pub flags: u32,
    /// Bytes of a key.
    #[serde(rename = "bytes_key")]
    pub key_size: u32,
    /// Bytes of a value.
    #[serde(rename = "bytes_value")]
    pub value_size: u32,
    /// Limit; 0 for per-socket storage, which is bounded by the sockets; bytes of a ring buffer.
    pub max_entries: u32,
    /// Memory that is charged for it, bytes.
    pub bytes_memlock: u64,
    /// Entries now, records not yet taken of a ring buffer; `None` where the kernel does not count
    /// them (per-socket storage).
    pub entries: Option<u32>,
    /// How full it is; `None` for what cannot fill up.
    pub fill_percent: Option<f64>,
    /// The pin; `None` for a map that only programs hold.
    pub pinned: Option<PathBuf>,
    /// What is special about reading it.
    #[serde(skip_deserializing)]
    pub note: Option<&'static str>,
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Index, in the node's namespace, of the other end of its interface, if handshakes that go to the pod past the
    /// agent are checked there; `None`: there are none such.
    #[serde(default)]
    pub guard: Option<u32>,
}

pub(super) fn program(
    fd: BorrowedFd<'_>,
    found: &sys::ProgramInfo,
    links: Vec<String>,
) -> ProgramInfo {
    let raw = &found.raw;
    ProgramInfo {
        id: raw.id,
        name: text(&raw.name),
        kind: program_kind(raw.kind),
        tag: raw.tag.iter().map(|byte| format!("{byte:02x}")).collect(),
        gpl_compatible: raw.licence & 1 == 1,
        loaded_at: since_1970(raw.load_time),
        uid: raw.created_by,
        bytes_xlated: raw.translated_bytes,
        jited: raw.jited_bytes > 0,
        jited_bytes: raw.jited_bytes,
        bytes_memlock: charged(fd),
        verified_instructions: raw.verified_instructions,
        run_count: raw.run_count,
        run_time_ns: raw.run_time_ns,
        bpf_stats_enabled: super::run_stats_enabled(),
        map_ids: found.map_ids.clone(),
        links,
    }
}

/// A name in a field of fixed size.
fn text(bytes: &[u8]) -> String {
    let name = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(name).into_owned()
}

/// A time since the machine's start as seconds since 1970. The clock may have been set meanwhile.
fn since_1970(since_start_ns: u64) -> u64 {
    let start = sys::clock(libc::CLOCK_REALTIME).saturating_sub(sys::clock(libc::CLOCK_BOOTTIME));
    (start + since_start_ns) / 1_000_000_000
}

/// What the kernel charges for the object; it says so in the descriptor's file alone.
fn charged(fd: BorrowedFd<'_>) -> u64 {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or(0)
}

/// `BPF_PROG_TYPE_*`, as far as we use them.
fn program_kind(kind: u32) -> String {
    match kind {
        3 => "sched_cls".to_owned(),
        13 => "sock_ops".to_owned(),
        18 => "cgroup_sock_addr".to_owned(),
        30 => "sk_lookup".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn link(name: String, pinned: PathBuf, info: &sys::LinkInfo) -> LinkInfo {
    LinkInfo {
        name,
        pinned,
        id: info.id,
        kind: match info.kind {
            LINK_CGROUP => "cgroup".to_owned(),
            LINK_NETNS => "netns".to_owned(),
            LINK_TCX => "tcx".to_owned(),
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
        ifindex: match info.target {
            LinkTarget::Interface(index) => Some(index),
            _ => None,
        },
    }
}

pub(super) fn map(map: &RawMap, pinned: PathBuf) -> Result<MapInfo, DatapathError> {
    let entries = map.count()?;
    let limit = map.info.max_entries;
    let fills = !matches!(map.info.kind, map::ARRAY | map::PERCPU_ARRAY) && limit > 0;
    let filled = entries.filter(|_| fills);
    let spec = map.spec;
    Ok(MapInfo {
        entries,
        fill_percent: filled.map(|entries| percent(entries.into(), limit)),
        pinned: Some(pinned),
        note: (map.info.kind == map::SK_STORAGE).then_some(STORAGE_NOTE),
        ..raw_map(map.as_fd(), &map.info, spec.name.to_owned())
    })
}

/// A map that no pin holds: those that a program brings for itself.
pub(super) fn unpinned(fd: BorrowedFd<'_>, info: &sys::MapInfo) -> MapInfo {
    let name = text(&info.name);
    let mut shown = raw_map(fd, info, name);
    if info.kind == map::RINGBUF {
        shown.note = Some(RING_NOTE);
        // Without the right to map it, the rest is still worth showing.
        if let Ok(pending) = sys::ring::pending(fd, info.max_entries) {
            shown.entries = u32::try_from(pending.records.len()).ok();
            shown.fill_percent = Some(percent(pending.bytes, info.max_entries));
        }
    } else if matches!(info.kind, map::ARRAY | map::PERCPU_ARRAY) {
        shown.entries = Some(info.max_entries);
    }
    shown
}

fn raw_map(fd: BorrowedFd<'_>, info: &sys::MapInfo, name: String) -> MapInfo {
    MapInfo {
        name,
        id: info.id,
        kind: kind_name(info.kind),
        flags: info.flags,
        key_size: info.key_size,
        value_size: info.value_size,
        max_entries: info.max_entries,
        bytes_memlock: charged(fd),
        entries: None,
        fill_percent: None,
        pinned: None,
        note: None,
    }
}

/// With two digits after the point.
fn percent(part: u64, of: u32) -> f64 {
    let hundredths = part * 10_000 / u64::from(of.max(1));
    f64::from(u32::try_from(hundredths).unwrap_or(u32::MAX)) / 100.0
}

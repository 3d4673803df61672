//! What the kernel holds of ours, read from the kernel and bpffs alone: it works with the agent
//! dead, and shows what is really attached, not what the agent believes.
//!
//! `bpffs_root` and `node` are those of [`crate::DatapathConfig`]. A node without pins yields
//! empty lists. Start with [`nodes`].

mod describe;
mod dump;
mod records;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use karst_bpf_common::Ip;
use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::links;
use crate::map::{self, Map, RawMap};
use crate::object::{CGROUP_PROGRAMS, SK_LOOKUP_LINK, SYN_CHECK_LINK};
use crate::pins::{self, Pins};
use crate::pods::{addresses_of, uid_of};
use crate::sys::{self, AttachType, LinkTarget};
use crate::{Counter, DatapathError, node};

pub use describe::{AttachedProgram, Fields, LinkInfo, MapEntry, MapInfo, PodEntry, ProgramInfo};

/// Programs run by this node's pinned links, by id.
///
/// # Errors
/// The pins cannot be read. A program that goes away meanwhile is left out.
pub fn programs(bpffs_root: &Path, node: &str) -> Result<Vec<ProgramInfo>, DatapathError> {
    let mut by_program: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for link in links(bpffs_root, node)? {
        by_program
            .entry(link.program_id)
            .or_default()
            .push(link.name);
    }
    let mut programs = Vec::new();
    for (id, links) in by_program {
        if let Ok(program) = sys::program_by_id(id)
            && let Ok(found) = sys::program_info(program.as_fd())
        {
            programs.push(describe::program(program.as_fd(), &found, links));
        }
    }
    Ok(programs)
}

/// The links that every node with an agent has, by pin name, and the hook of each. Each enrolled pod has one
/// more, see [`pod_link`].
pub fn node_links() -> Vec<(&'static str, String)> {
    let programs = CGROUP_PROGRAMS.iter();
    programs
        .map(|program| (program.link, AttachType::name(program.attach_type as u32)))
        .collect()
}

/// The pin name of the link of the pod with this uid; `None` for what is no uid.
pub fn pod_link(uid: &str) -> Option<String> {
    pins::escape(uid).map(|uid| format!("{SK_LOOKUP_LINK}-{uid}"))
}

/// The pin name of the link that checks handshakes at that pod's interface, which only a pod whose interface
/// allows it has; `None` for what is no uid.
pub fn guard_link(uid: &str) -> Option<String> {
    pins::escape(uid).map(|uid| format!("{SYN_CHECK_LINK}-{uid}"))
}

/// This node's pinned links, by name.
///
/// # Errors
/// The pins cannot be read.
pub fn links(bpffs_root: &Path, node: &str) -> Result<Vec<LinkInfo>, DatapathError> {
    let pins = Pins::new(bpffs_root, node)?;
    let mut found = Vec::new();
    for name in pins.link_names()? {
        // Unpinned meanwhile: gone.
        if let Some(info) = links::info(&pins, &name)? {
            let pin = pins.link(&name);
            found.push(describe::link(name, pin, &info));
        }
    }
    Ok(found)
}

/// Programs attached to a cgroup at the hooks we use, ours and others': shows whether anybody
/// else rewrites connections there, and that none of ours is attached twice.
///
/// # Errors
/// The cgroup cannot be opened or asked.
pub fn attached(cgroup: &Path) -> Result<Vec<AttachedProgram>, DatapathError> {
    let opened = Cgroup::open(cgroup)?;
    let mut found = Vec::new();
    for attach_type in AttachType::OF_CGROUPS {
        let ids = sys::attached_programs(opened.folder.as_fd(), attach_type)
            .map_err(pins::failed("query programs of", cgroup))?;
        found.extend(ids.into_iter().map(|program_id| AttachedProgram {
            attach_type: AttachType::name(attach_type as u32),
            program_id,
        }));
    }
    Ok(found)
}

/// This node's maps: the pinned ones, and behind them those that its programs use besides, such as
/// the ring buffer of their log.
///
/// # Errors
/// The pins cannot be read, or a map is not of the shape this version expects.
pub fn maps(bpffs_root: &Path, node: &str) -> Result<Vec<MapInfo>, DatapathError> {
    let mut found = Vec::new();
    let pins = Pins::new(bpffs_root, node)?;
    for spec in map::ALL {
        if let Some((folder, map)) = open_map_in(&pins, spec)? {
            found.push(describe::map(&map, folder.join(spec.name))?);
        }
    }
    let pinned: BTreeSet<u32> = found.iter().map(|map| map.id).collect();
    for (map, info) in unpinned(bpffs_root, node, &pinned)? {
        found.push(describe::unpinned(map.as_fd(), &info));
    }
    Ok(found)
}

/// Whether the kernel counts runs of programs now.
pub fn run_stats_enabled() -> bool {
    let setting = fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled");
    setting.is_ok_and(|text| text.trim() != "0")
}

/// Makes the kernel count runs of all programs, whoever loaded them, until the answer is dropped.
/// It costs each run two looks at the clock.
///
/// # Errors
/// The kernel is older than Linux 5.8, or we may not.
pub fn count_runs() -> Result<RunStats, DatapathError> {
    let failed = pins::failed("count runs by", Path::new("bpf(BPF_ENABLE_STATS)"));
    Ok(RunStats(sys::enable_run_stats().map_err(failed)?))
}

/// Runs are counted while this is alive.
#[derive(Debug)]
pub struct RunStats(#[expect(dead_code, reason = "it is there to be open")] OwnedFd);

/// Every entry of one map, decoded. Listeners can be enumerated by key only; of a ring buffer, the
/// records that nobody has taken yet; of sockets' storage, that of every socket, by a BPF iterator.
///
/// # Errors
/// There is no such map, or it cannot be read.
pub fn dump_map(bpffs_root: &Path, node: &str, name: &str) -> Result<Vec<MapEntry>, DatapathError> {
    if let Some(spec) = map::ALL.into_iter().find(|spec| spec.name == name) {
        return match open_map(bpffs_root, node, spec)? {
            Some(map) => dump::entries(&map),
            None => Ok(Vec::new()),
        };
    }
    let unknown = || DatapathError::UnknownMap {
        map: name.to_owned(),
        known: map::ALL.map(|spec| spec.name).join(", "),
    };
    let pinned = maps(bpffs_root, node)?;
    let wanted = pinned.iter().find(|map| map.name == name);
    let wanted = wanted.ok_or_else(unknown)?.id;
    dump_by_id(wanted)?.ok_or_else(unknown)
}

/// As [`dump_map`], of a map that no pin holds; `None` when it is gone.
///
/// # Errors
/// It cannot be read.
pub fn dump_by_id(id: u32) -> Result<Option<Vec<MapEntry>>, DatapathError> {
    let Ok(map) = sys::map_by_id(id) else {
        return Ok(None);
    };
    let failed = || pins::failed("look at", Path::new("a map without a pin"));
    let info = sys::map_info(map.as_fd()).map_err(failed())?;
    dump::unpinned(map.as_fd(), &info)
        .map(Some)
        .map_err(failed())
}

/// The counters, as [`crate::Datapath::counters`].
///
/// # Errors
/// The map cannot be read.
pub fn counters(bpffs_root: &Path, node: &str) -> Result<Vec<Counter>, DatapathError> {
    match open_map(bpffs_root, node, map::COUNTERS)? {
        Some(map) => node::read_counters(&Map::typed(map)?),
        None => Ok(Vec::new()),
    }
}

/// The enrolled pods, by uid.
///
/// # Errors
/// The pins cannot be read.
pub fn pods(bpffs_root: &Path, node: &str) -> Result<Vec<PodEntry>, DatapathError> {
    let pins = Pins::new(bpffs_root, node)?;
    let Some(pods) = open_map(bpffs_root, node, map::PODS)? else {
        return Ok(Vec::new());
    };
    let pods: Map<u64, karst_bpf_common::layout::Pod> = Map::typed(pods)?;
    let listening: Vec<IpAddr> = match open_map(bpffs_root, node, map::LISTENERS)? {
        Some(map) => dump::keys::<Ip>(&map)?
            .into_iter()
            .map(Ip::to_ip_addr)
            .collect(),
        None => Vec::new(),
    };
    let mut found = Vec::new();
    for (netns_cookie, pod) in pods.entries()? {
        let uid = uid_of(&pod);
        let addresses = addresses_of(&pod);
        let link = pins::escape(&uid).map(|uid| pins.sk_lookup(&uid));
        let link = link.map(|name| links::info(&pins, &name)).transpose()?;
        found.push(PodEntry {
            netns_ino: link.flatten().and_then(|link| match link.target {
                LinkTarget::Netns(ino) if ino != 0 => Some(ino),
                _ => None,
            }),
            listening: addresses
                .iter()
                .filter(|address| listening.contains(address))
                .copied()
                .collect(),
            guard: (pod.guard != 0).then_some(pod.guard),
            uid,
            netns_cookie,
            addresses,
        });
    }
    found.sort_by(|a, b| a.uid.cmp(&b.uid));
    Ok(found)
}

/// Nodes that have pins under `bpffs_root`: one on a real machine, several in a lab.
///
/// # Errors
/// The directory cannot be read; that it does not exist is no error.
pub fn nodes(bpffs_root: &Path) -> Result<Vec<String>, DatapathError> {
    pins::nodes(bpffs_root)
}

/// The map of the newest layout pinned.
fn open_map(
    bpffs_root: &Path,
    node: &str,
    spec: map::MapSpec,
) -> Result<Option<RawMap>, DatapathError> {
    let found = open_map_in(&Pins::new(bpffs_root, node)?, spec)?;
    Ok(found.map(|(_, map)| map))
}

/// The same, with the folder that it is pinned in.
fn open_map_in(
    pins: &Pins,
    spec: map::MapSpec,
) -> Result<Option<(PathBuf, RawMap)>, DatapathError> {
    let Some(layout) = pins.layouts()?.pop() else {
        return Ok(None);
    };
    let folder = pins.maps(layout);
    Ok(RawMap::open(&folder, spec)?.map(|map| (folder, map)))
}

/// Maps that this node's programs use and no pin holds, by id. One that goes away meanwhile is
/// left out.
fn unpinned(
    bpffs_root: &Path,
    node: &str,
    pinned: &BTreeSet<u32>,
) -> Result<Vec<(OwnedFd, sys::MapInfo)>, DatapathError> {
    let used = programs(bpffs_root, node)?;
    let used = used.into_iter().flat_map(|program| program.map_ids);
    let others: BTreeSet<u32> = used.filter(|id| !pinned.contains(id)).collect();
    let open = |id| {
        let map = sys::map_by_id(id).ok()?;
        let info = sys::map_info(map.as_fd()).ok()?;
        Some((map, info))
    };
    Ok(others.into_iter().filter_map(open).collect())
}

/// Serialisable on its own: a node's whole state at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// See [`programs`].
    pub programs: Vec<ProgramInfo>,
    /// See [`links`].
    pub links: Vec<LinkInfo>,
    /// See [`maps`].
    pub maps: Vec<MapInfo>,
    /// See [`pods`].
    pub pods: Vec<PodEntry>,
}

/// All of the above at once.
///
/// # Errors
/// As its parts.
pub fn snapshot(bpffs_root: &Path, node: &str) -> Result<Snapshot, DatapathError> {
    Ok(Snapshot {
        programs: programs(bpffs_root, node)?,
        links: links(bpffs_root, node)?,
        maps: maps(bpffs_root, node)?,
        pods: pods(bpffs_root, node)?,
    })
}

//! Opening a node's datapath: adopt what a former agent left, replace its programs, lose nothing.

use std::collections::BTreeSet;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use aya::Ebpf;
use karst_bpf_common::layout::{
    Authorisation, Config, EndpointKey, Flow, NetnsCookie, Pod, PublishedKey, ServiceEndpoints,
    SocketState, Tuple, VerdictKey,
};
use karst_bpf_common::{CounterId, Endpoint, Ip, LAYOUT_VERSION};

use crate::api::{Counter, DatapathConfig, Loaded, LoadedProgram, MapFill};
use crate::cgroup::Cgroup;
use crate::error::DatapathError;
use crate::flow_events::FlowEvents;
use crate::links::{self, Hook, Place};
use crate::map::{self, Map, RawMap};
use crate::memory;
use crate::netns::Netns;
use crate::object::{self, CGROUP_PROGRAMS, SK_LOOKUP, SK_LOOKUP_LINK, SYN_CHECK, SYN_CHECK_LINK};
use crate::pins::{Pins, failed};
use crate::pods::uid_of;
use crate::sys::LinkTarget;

/// The programs and maps of one node, attached for as long as their pins exist.
///
/// Dropping it detaches nothing: enrolled pods stay captured and fail closed without the agent.
#[derive(Debug)]
pub struct Datapath {
    pub(crate) pins: Pins,
    pub(crate) maps: Maps,
    /// For the links of pods enrolled later.
    pub(crate) sk_lookup: OwnedFd,
    /// The same, for those at their interfaces.
    pub(crate) syn_check: OwnedFd,
    /// The node's own network namespace, in which those are.
    pub(crate) node: Netns,
    /// Until somebody asks for them.
    pub(crate) flow_events: Mutex<Option<FlowEvents>>,
    /// Any of the programs: all write their log to one ring buffer, found through it.
    pub(crate) program_id: u32,
    pub(crate) logging: AtomicBool,
    /// What the programs are to compare with while this agent serves.
    settings: Config,
    /// Version of the layout that it was opened as.
    layout: u32,
    /// What the node's programs are attached to.
    node_cgroup: u64,
    /// What was loaded.
    programs: Vec<LoadedProgram>,
    /// Enrolling is several steps; two at once could undo each other's.
    pub(crate) enrolling: Mutex<()>,
}

/// The pinned maps.
#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) pods: Map<NetnsCookie, Pod>,
    pub(crate) addresses: Map<Ip, NetnsCookie>,
    pub(crate) listeners: Map<Ip, u32>,
    pub(crate) published: Map<PublishedKey, SocketState>,
    pub(crate) authorised: Map<Tuple, Authorisation>,
    pub(crate) counters: Map<u32, u64>,
    pub(crate) config: Map<u32, Config>,
    pub(crate) sockets: Map<u32, SocketState>,
    pub(crate) verdicts: Map<VerdictKey, u32>,
    pub(crate) services: Map<Endpoint, ServiceEndpoints>,
    pub(crate) endpoints: Map<EndpointKey, Endpoint>,
    pub(crate) flows: Map<u64, Flow>,
    pub(crate) flow_count: Map<u32, u64>,
    pub(crate) verdicts_until: Map<u32, u64>,
}

impl Maps {
    pub(crate) fn open(folder: &Path) -> Result<Self, DatapathError> {
        Ok(Self {
            pods: Map::open(folder, map::PODS)?,
            addresses: Map::open(folder, map::POD_ADDRESSES)?,
            listeners: Map::open(folder, map::LISTENERS)?,
            published: Map::open(folder, map::PUBLISHED)?,
            authorised: Map::open(folder, map::AUTH)?,
            counters: Map::open(folder, map::COUNTERS)?,
            config: Map::open(folder, map::CONFIG)?,
            sockets: Map::open(folder, map::SKST)?,
            verdicts: Map::open(folder, map::VERDICTS)?,
            services: Map::open(folder, map::SERVICES)?,
            endpoints: Map::open(folder, map::ENDPOINTS)?,
            flows: Map::open(folder, map::FLOWS)?,
            flow_count: Map::open(folder, map::FLOW_COUNT)?,
            verdicts_until: Map::open(folder, map::VERDICTS_UNTIL)?,
        })
    }

    /// Those that can fill up.
    fn bounded(&self) -> [&RawMap; 9] {
        [
            self.pods.raw(),
            self.addresses.raw(),
            self.listeners.raw(),
            self.published.raw(),
            self.authorised.raw(),
            self.verdicts.raw(),
            self.services.raw(),
            self.endpoints.raw(),
            self.flows.raw(),
        ]
    }
}

impl Datapath {
    /// Loads the programs, reuses pinned maps of the same layout version, and creates or
    /// atomically replaces the pinned links; never leaves two of ours attached.
    ///
    /// Call it in the node's own network namespace. Takes tens of milliseconds and blocks; needs
    /// root. Pods whose namespace is gone are let go; others stay enrolled, see
    /// [`Datapath::enrolled`].
    ///
    /// # Errors
    /// A cgroup or bpffs cannot be used, or the kernel refuses a program or map. What was
    /// attached before stays attached.
    pub fn open(config: &DatapathConfig) -> Result<Self, DatapathError> {
        Self::open_as_layout(config, LAYOUT_VERSION)
    }

    /// [`Datapath::open`] as a build with another layout version would do it, for tests of the
    /// change of layouts.
    #[doc(hidden)]
    pub fn open_as_layout(config: &DatapathConfig, layout: u32) -> Result<Self, DatapathError> {
        let node_cgroup = Cgroup::open(&config.node_cgroup)?;
        let (node, settings) = settings(config)?;
        let pins = Pins::new(&config.bpffs_root, &config.node_name)?;
        pins.prepare(&config.bpffs_root, layout)?;
        let lock = pins.lock()?;
        let folder = pins.maps(layout);
        for spec in map::ALL {
            // A map of another shape would be taken as it is by the loader.
            RawMap::open(&folder, spec)?;
        }
        let mut ebpf = object::load(&folder, config.max_pods)?;
        let maps = Maps::open(&folder)?;
        let room = maps.pods.raw().info.max_entries;
        if room != config.max_pods {
            tracing::warn!(
                pinned = room,
                configured = config.max_pods,
                "maps of a former agent keep their size; max_pods takes effect after a restart of the node"
            );
        }
        let former: Vec<u32> = pins.layouts()?;
        let former: Vec<u32> = former
            .into_iter()
            .filter(|other| *other != layout)
            .collect();
        let before = match maps.config.get(&0)? {
            Some(before) if before.agent_cgroup != 0 => Some(before),
            // Maps just made: the agent before us had those of another layout.
            _ => agent_of(&pins, &former)?,
        };
        let settings = beside(settings, before);
        maps.config.set(&0, &settings)?;
        for other in &former {
            adopt_pods(&maps, &pins.maps(*other))?;
        }
        let gone = update_pod_links(&pins, &maps, &ebpf)?;
        attach_node(&pins, &ebpf, &node_cgroup)?;
        drop_unknown_links(&pins)?;
        for other in former {
            pins.remove_maps(other)?;
        }
        let datapath = Self {
            sk_lookup: program_fd(&ebpf, SK_LOOKUP)?,
            syn_check: program_fd(&ebpf, SYN_CHECK)?,
            node,
            flow_events: Mutex::new(Some(FlowEvents::take_from(&mut ebpf)?)),
            program_id: program_id(&ebpf, SK_LOOKUP)?,
            programs: loaded_programs(&ebpf)?,
            pins,
            maps,
            settings,
            layout,
            node_cgroup: node_cgroup.id,
            logging: AtomicBool::new(false),
            enrolling: Mutex::new(()),
        };
        for uid in gone {
            tracing::info!(pod.uid = %uid, "the pod's network namespace is gone, letting go of it");
            datapath.unenrol(&uid)?;
        }
        drop(lock);
        drop(ebpf);
        memory::return_free();
        Ok(datapath)
    }

    /// Deletes every pin of this node, which detaches every program (uninstall).
    ///
    /// # Errors
    /// A pin cannot be deleted.
    pub fn remove_all(config: &DatapathConfig) -> Result<(), DatapathError> {
        Pins::new(&config.bpffs_root, &config.node_name)?.remove_all()
    }

    /// Says again that this is the agent that serves, after another one that opened the same
    /// datapath did not come to do so.
    ///
    /// # Errors
    /// The map cannot be read or written.
    pub fn claim(&self) -> Result<(), DatapathError> {
        let settings = beside(self.settings, self.maps.config.get(&0)?);
        self.maps.config.set(&0, &settings)
    }

    /// What this agent has loaded, and what it told its programs.
    pub fn loaded(&self) -> Loaded {
        Loaded {
            layout: self.layout,
            node_cgroup: self.node_cgroup,
            host_netns_cookie: self.settings.host_netns,
            agent_cgroup: self.settings.agent_cgroup,
            kubepods_cgroup: self.settings.kubepods_cgroup,
            programs: self.programs.clone(),
        }
    }

    /// What the programs counted since the maps were made, over all CPUs.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn counters(&self) -> Result<Vec<Counter>, DatapathError> {
        read_counters(&self.maps.counters)
    }

    /// How full the bounded maps are.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn map_fill(&self) -> Result<Vec<MapFill>, DatapathError> {
        let fill = |map: &RawMap| {
            Ok(MapFill {
                map: map.spec.name,
                entries: map.count()?.unwrap_or_default(),
                max_entries: map.info.max_entries,
            })
        };
        self.maps.bounded().into_iter().map(fill).collect()
    }
}

pub(crate) fn read_counters(map: &Map<u32, u64>) -> Result<Vec<Counter>, DatapathError> {
    let read = |id: &CounterId| {
        let values = map.get_per_cpu(&(*id as u32))?;
        Ok(Counter {
            reason: id.label(),
            value: values.into_iter().fold(0, u64::wrapping_add),
        })
    };
    CounterId::ALL.iter().map(read).collect()
}

/// What the programs compare with: of this node, this agent and its pods.
fn settings(config: &DatapathConfig) -> Result<(Netns, Config), DatapathError> {
    let own = Path::new("/proc/thread-self/ns/net");
    let host = Netns::current().map_err(failed("open", own))?;
    let settings = Config {
        host_netns: host.cookie().map_err(failed("identify", own))?,
        agent_cgroup: Cgroup::open(&config.agent_cgroup)?.id,
        former_agent_cgroup: 0,
        kubepods_cgroup: Cgroup::open(&config.kubepods_cgroup)?.id,
    };
    Ok((host, settings))
}

/// The settings of an agent that comes after another one, whose `former` settings these are: that
/// one may still finish its connections. The kernel never gives a cgroup's id to another one, so an
/// agent long gone may stay named.
fn beside(own: Config, former: Option<Config>) -> Config {
    let former_agent_cgroup = match former {
        Some(former) if former.agent_cgroup != own.agent_cgroup => former.agent_cgroup,
        Some(former) => former.former_agent_cgroup,
        None => 0,
    };
    Config {
        former_agent_cgroup,
        ..own
    }
}

/// The agent's cgroup as the newest of other layouts has it: that agent may still finish its
/// connections.
fn agent_of(pins: &Pins, layouts: &[u32]) -> Result<Option<Config>, DatapathError> {
    for layout in layouts.iter().rev() {
        let value = map::only_value(&pins.maps(*layout), map::CONFIG.name)?;
        if let Some(agent_cgroup) = value.as_deref().and_then(agent_cgroup) {
            return Ok(Some(Config {
                agent_cgroup,
                ..Config::default()
            }));
        }
    }
    Ok(None)
}

/// From the value of `CONFIG` in any layout.
fn agent_cgroup(config: &[u8]) -> Option<u64> {
    const AT: usize = offset_of!(Config, agent_cgroup);
    // An agent of another layout reads this field, so it keeps its place in all of them.
    const { assert!(AT == 8) };
    let bytes = config.get(AT..AT + size_of::<u64>())?;
    let id = u64::from_ne_bytes(bytes.try_into().ok()?);
    (id != 0).then_some(id)
}

/// Takes over the enrolled pods, and what is noted of live connections, of maps of another layout, before programs that read the new
/// ones run: a pod must not be without capture in between. Listeners cannot be read back from
/// the kernel, so inbound connections are dropped until the agent enrols the pod again.
fn adopt_pods(maps: &Maps, former: &Path) -> Result<(), DatapathError> {
    adopt_all(maps.pods.raw(), former)?;
    adopt_all(maps.addresses.raw(), former)?;
    // Live connections past the agent, so that they can still be ended. Their sockets will not say when they close,
    // since their storage is not taken over; the agent finds out that they are gone.
    if let Err(error) = adopt_all(maps.flows.raw(), former) {
        tracing::warn!(%error, "live connections past a former agent are not known any more");
    }
    let flows = maps.flows.raw().count()?.unwrap_or_default();
    maps.flow_count.set(&0, &flows.into())
}

/// Every entry of the map of the same name in `former`.
fn adopt_all(to: &RawMap, former: &Path) -> Result<(), DatapathError> {
    for (key, value) in map::all_entries(former, &to.spec)? {
        to.set_grown(&key, &value)?;
    }
    Ok(())
}

/// Puts the new programs into the links of pods enrolled before; returns the uids of pods whose
/// namespace is gone. A pod whose interface has no check now is marked so.
fn update_pod_links(pins: &Pins, maps: &Maps, ebpf: &Ebpf) -> Result<Vec<String>, DatapathError> {
    let sk_lookup = program_fd(ebpf, SK_LOOKUP)?;
    let syn_check = program_fd(ebpf, SYN_CHECK)?;
    let mut gone = Vec::new();
    let mut guarded = BTreeSet::new();
    for name in pins.link_names()? {
        if let Some(uid) = Pins::sk_lookup_uid(&name) {
            if !links::update(pins, &name, sk_lookup.as_fd())? {
                gone.push(uid);
            }
        } else if let Some(uid) = Pins::syn_check_uid(&name) {
            if links::update(pins, &name, syn_check.as_fd())? {
                guarded.insert(uid);
            } else {
                pins.unpin(&name)?;
            }
        }
    }
    for (cookie, pod) in maps.pods.entries()? {
        if pod.guard != 0 && !guarded.contains(&uid_of(&pod)) {
            maps.pods.set(&cookie, &Pod { guard: 0, ..pod })?;
        }
    }
    Ok(gone)
}

fn attach_node(pins: &Pins, ebpf: &Ebpf, cgroup: &Cgroup) -> Result<(), DatapathError> {
    for program in &CGROUP_PROGRAMS {
        let hook = Hook {
            place: Place::File(cgroup.folder.as_fd()),
            target: LinkTarget::Cgroup(cgroup.id),
            attach_type: program.attach_type,
        };
        let fd = program_fd(ebpf, program.name)?;
        links::attach(pins, program.link, &hook, fd.as_fd())?;
    }
    Ok(())
}

/// A link this version does not know runs a program of another one beside ours.
fn drop_unknown_links(pins: &Pins) -> Result<(), DatapathError> {
    for name in pins.link_names()? {
        let known = Pins::sk_lookup_uid(&name).is_some()
            || Pins::syn_check_uid(&name).is_some()
            || CGROUP_PROGRAMS.iter().any(|program| program.link == name);
        if !known {
            tracing::warn!(link = %name, "removing a link this version does not know");
            pins.unpin(&name)?;
        }
    }
    Ok(())
}

fn program_fd(ebpf: &Ebpf, name: &str) -> Result<OwnedFd, DatapathError> {
    let missing = |detail: String| DatapathError::Load {
        what: name.to_owned(),
        detail,
    };
    let fd = object::program(ebpf, name)?
        .fd()
        .map_err(|error| missing(error.to_string()))?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| missing(error.to_string()))
}

fn program_id(ebpf: &Ebpf, name: &str) -> Result<u32, DatapathError> {
    let info = object::program(ebpf, name)?.info();
    info.map(|info| info.id())
        .map_err(|error| DatapathError::Load {
            what: name.to_owned(),
            detail: error.to_string(),
        })
}

fn loaded_programs(ebpf: &Ebpf) -> Result<Vec<LoadedProgram>, DatapathError> {
    let of_pods = [(SK_LOOKUP, SK_LOOKUP_LINK), (SYN_CHECK, SYN_CHECK_LINK)];
    let of_node = CGROUP_PROGRAMS.iter().map(|one| (one.name, one.link));
    let loaded = |(name, link): (&str, &str)| {
        Ok(LoadedProgram {
            name: name.to_owned(),
            link: link.to_owned(),
            id: program_id(ebpf, name)?,
        })
    };
    of_node.chain(of_pods).map(loaded).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys;

    fn of(agent_cgroup: u64) -> Config {
        Config {
            host_netns: 1,
            agent_cgroup,
            former_agent_cgroup: 0,
            kubepods_cgroup: 2,
        }
    }

    #[test]
    fn an_agent_whose_successors_fail_is_never_forgotten() {
        let named = |config: Config| [config.agent_cgroup, config.former_agent_cgroup];
        let mut now = beside(of(10), None);
        assert_eq!(named(now), [10, 0]);
        for successor in [20, 30, 40] {
            now = beside(of(successor), Some(now));
            assert_eq!(named(now), [successor, 10]);
            // What `claim` does when it fails.
            now = beside(of(10), Some(now));
            assert_eq!(named(now), [10, successor]);
        }
        // An agent that is started again keeps the one before it.
        assert_eq!(named(beside(of(10), Some(now))), [10, 40]);
    }

    /// Pods of layout 2, which knew nothing of guards.
    #[test]
    fn entries_grow_by_zeroes_when_they_are_taken_over() {
        let root = Path::new("/sys/fs/bpf").join(format!("karst-grow-{}", std::process::id()));
        let pins = Pins::new(&root, "n").unwrap();
        for layout in [2, 3, 4] {
            pins.prepare(&root, layout).unwrap();
        }
        let make = |layout, value_size| {
            let map = sys::make_hash(8, value_size, 8).unwrap();
            let pin = pins.maps(layout).join(map::PODS.name);
            sys::pin(map.as_fd(), &pin).unwrap();
            map
        };
        let size = size_of::<Pod>() as u32;
        let (former, _now, newer) = (make(2, size - 4), make(3, size), make(4, size + 4));
        let mut value = [7; size_of::<Pod>()];
        let short = &value[..size_of::<Pod>() - 4];
        sys::map_update(former.as_fd(), &1u64.to_ne_bytes(), short).unwrap();
        let long = vec![7; size_of::<Pod>() + 4];
        sys::map_update(newer.as_fd(), &2u64.to_ne_bytes(), &long).unwrap();
        let to = RawMap::open(&pins.maps(3), map::PODS).unwrap().unwrap();
        let adopted = adopt_all(&to, &pins.maps(2));
        let refused = adopt_all(&to, &pins.maps(4));
        let (found, others) = (to.lookup(&1u64.to_ne_bytes()), to.keys());
        pins.remove_all().unwrap();
        let _ = std::fs::remove_dir(&root);
        adopted.unwrap();
        value[size_of::<Pod>() - 4..].fill(0);
        assert_eq!(found.unwrap().as_deref(), Some(&value[..]));
        assert!(refused.is_err(), "what is longer is another thing");
        assert_eq!(others.unwrap().len(), 1);
    }

    #[test]
    fn the_agent_is_found_in_the_settings_of_any_layout() {
        let mut config = [0; 40];
        config[8..16].copy_from_slice(&77u64.to_ne_bytes());
        assert_eq!(agent_cgroup(&config), Some(77));
        assert_eq!(agent_cgroup(&config[..16]), Some(77), "a shorter one");
        for none in [&config[..15], &[], &[0; 32]] {
            assert_eq!(agent_cgroup(none), None);
        }
    }
}

//! The types callers hand in and get back.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

use serde::Serialize;

use crate::netns::Netns;

/// Where this node's datapath lives.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Names the pins, so that several nodes can share a machine.
    pub node_name: String,
    /// Directory on a bpffs that holds the pins; the file system is mounted if it is not.
    pub bpffs_root: PathBuf,
    /// cgroup2 directory the programs are attached to: the root of the hierarchy on a real node.
    pub node_cgroup: PathBuf,
    /// cgroup2 directory of the agent itself: its connections are never captured.
    pub agent_cgroup: PathBuf,
    /// cgroup2 directory above all pods: what is below it is never taken for a node's probe.
    pub kubepods_cgroup: PathBuf,
    /// How many pods can be enrolled at once. Fixed when the maps are first made.
    pub max_pods: u32,
}

/// A pod to be enrolled.
pub struct PodAttachment<'a> {
    /// The pod's uid: letters, digits, `-` and `_`, at most 64 bytes.
    pub uid: &'a str,
    /// Its network namespace.
    pub netns: &'a Netns,
    /// Its addresses: at most one of each family, at least one.
    pub addresses: &'a [IpAddr],
    /// Listeners made in the pod's namespace, by the pod address whose inbound plaintext
    /// connections they take. One of a `SO_REUSEPORT` group stands for the group.
    pub plaintext_listeners: &'a [(IpAddr, BorrowedFd<'a>)],
}

/// An enrolled pod, as the kernel maps have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnrolledPod {
    /// The pod's uid.
    pub uid: String,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether handshakes that go to it past the agent are checked at the host's end of its interface. Where they
    /// are not, all go to the agent.
    pub guarded: bool,
}

/// A count kept by the BPF programs since the maps were made, over all CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Counter {
    /// Stable snake_case label.
    pub reason: &'static str,
    /// Events.
    pub value: u64,
}

/// How full a bounded map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MapFill {
    /// The map's name.
    pub map: &'static str,
    /// Entries now.
    pub entries: u32,
    /// Its limit.
    pub max_entries: u32,
}

/// A program as the verifier accepted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VerifiedProgram {
    /// Name in the object.
    pub name: String,
    /// Program type, for example `cgroup_sock_addr`.
    pub kind: &'static str,
    /// Instructions the verifier walked, over all paths.
    pub verified_instructions: u32,
    /// Machine code, bytes.
    pub jited_bytes: u32,
}

/// What an agent has loaded, and what its programs compare with: what it believes to be in the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// Version of the maps' layout.
    pub layout: u32,
    /// Id of the cgroup that the node's programs are attached to.
    pub node_cgroup: u64,
    /// Cookie of the node's own network namespace.
    pub host_netns_cookie: u64,
    /// Id of the agent's own cgroup.
    pub agent_cgroup: u64,
    /// Id of the cgroup above all pods.
    pub kubepods_cgroup: u64,
    /// The programs.
    pub programs: Vec<LoadedProgram>,
}

/// A program that an agent has loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LoadedProgram {
    /// Its name in the object.
    pub name: String,
    /// Pin name of the link that runs it; `sk_lookup` for the program that each pod's link runs.
    pub link: String,
    /// Kernel id.
    pub id: u32,
}

//! What can go wrong, each with a stable label for logs, metrics and the CLI.

use std::io;
use std::path::PathBuf;

/// Why the datapath could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatapathError {
    /// This binary was built without the BPF programs.
    #[error(
        "this binary was built without the BPF programs; run `cargo xtask build-ebpf` and build it again"
    )]
    ObjectMissing,
    /// Nothing is open: another agent serves this node.
    #[error("the datapath is not open: another agent serves this node")]
    NotOpen,
    /// The records of connections past the agent have one reader, and somebody else is it.
    #[error("the records of connections past the agent have been asked for before")]
    FlowEventsTaken,
    /// A kernel without type information cannot be adapted to.
    #[error("kernel type information {path}: {detail}")]
    Btf {
        /// The file read, `/sys/kernel/btf/vmlinux`.
        path: PathBuf,
        /// What is missing or malformed.
        detail: String,
    },
    /// A directory or file the datapath needs.
    #[error("{action} {path}")]
    Path {
        /// What was attempted.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The kernel refused to load a program or to create a map.
    #[error("load {what}: {detail}")]
    Load {
        /// The program, or `object`.
        what: String,
        /// The kernel's or the loader's explanation, verifier log included.
        detail: String,
    },
    /// A map pinned by someone else has another shape than these programs expect.
    #[error("pinned map {map} has {found}, these programs need {expected}")]
    MapShape {
        /// The map's name.
        map: String,
        /// Shape of the pinned map.
        found: String,
        /// Shape the programs were built for.
        expected: String,
    },
    /// There is no map of that name.
    #[error("no map {map}; there are {known}")]
    UnknownMap {
        /// The name asked for.
        map: String,
        /// The names there are.
        known: String,
    },
    /// A map operation failed.
    #[error("{action} in map {map}")]
    Map {
        /// What was attempted.
        action: &'static str,
        /// The map's name.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link could not be made, replaced or read.
    #[error("{action} link {link}")]
    Link {
        /// What was attempted.
        action: &'static str,
        /// The link's pin name.
        link: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No room for one more pod: raise `max_pods`.
    #[error("cannot enrol pod {uid}: this node's limit of {max_pods} enrolled pods is reached")]
    PodsFull {
        /// The pod that found no room.
        uid: String,
        /// The limit in force.
        max_pods: u32,
    },
    /// The pod cannot be described to the kernel.
    #[error("pod {uid:?}: {detail}")]
    InvalidPod {
        /// The pod's uid as given.
        uid: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The pod's network namespace could not be used.
    #[error("network namespace of pod {uid}")]
    Netns {
        /// The pod.
        uid: String,
        /// The operating system's answer.
        source: io::Error,
    },
    /// Logs of the BPF programs cannot be read.
    #[error("read BPF logs: {detail}")]
    Log {
        /// What is in the way.
        detail: String,
    },
}

impl DatapathError {
    /// A stable label, the same in logs, metrics and the CLI.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::ObjectMissing => "bpf_object_missing",
            Self::NotOpen => "bpf_not_open",
            Self::FlowEventsTaken => "bpf_flow_events_taken",
            Self::Btf { .. } => "bpf_kernel_btf",
            Self::Path { .. } => "bpf_path",
            Self::Load { .. } => "bpf_load",
            Self::MapShape { .. } => "bpf_map_shape",
            Self::UnknownMap { .. } => "bpf_map_unknown",
            Self::Map { .. } => "bpf_map",
            Self::Link { .. } => "bpf_link",
            Self::PodsFull { .. } => "bpf_pods_full",
            Self::InvalidPod { .. } => "bpf_pod_invalid",
            Self::Netns { .. } => "bpf_netns",
            Self::Log { .. } => "bpf_log",
        }
    }
}

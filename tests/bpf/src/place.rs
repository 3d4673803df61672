//! Where a thread acts: a network namespace and a cgroup.
//!
//! Threads and not processes, so that a test reads as one function. cgroup2 lets the threads of
//! one process sit in different cgroups when these are `threaded`, below the process's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use karst_datapath::DatapathConfig;
use karst_datapath::netns::Netns;
use nix::unistd::gettid;

/// A cgroup below the node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cgroup {
    /// The agent's.
    Agent,
    /// A process of the node, such as the kubelet.
    Host,
    /// Pod A's.
    PodA,
    /// Pod B's.
    PodB,
    /// A pod on the node's own network.
    HostNetworkPod,
    /// Outside the node: another machine.
    Elsewhere,
}

/// All cgroups of a node below its own, parents first.
const FOLDERS: [&str; 6] = [
    "karst-agent",
    "host",
    "kubepods",
    "kubepods/pod-a",
    "kubepods/pod-b",
    "kubepods/pod-host-network",
];

impl Cgroup {
    pub(crate) fn path(self, config: &DatapathConfig) -> Option<PathBuf> {
        let folder = match self {
            Self::Agent => "karst-agent",
            Self::Host => "host",
            Self::PodA => "kubepods/pod-a",
            Self::PodB => "kubepods/pod-b",
            Self::HostNetworkPod => "kubepods/pod-host-network",
            Self::Elsewhere => return None,
        };
        Some(config.node_cgroup.join(folder))
    }
}

/// A namespace and a cgroup.
pub struct Place {
    netns: Netns,
    cgroup: Option<PathBuf>,
}

impl Place {
    pub(crate) fn new(netns: Netns, cgroup: Option<PathBuf>) -> Self {
        Self { netns, cgroup }
    }

    /// Runs `f` there on a thread of its own and waits for it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                if let Some(cgroup) = &self.cgroup {
                    let threads = cgroup.join("cgroup.threads");
                    fs::write(&threads, gettid().to_string())
                        .with_context(|| format!("write {}", threads.display()))?;
                }
                Ok(self.netns.run(f)?)
            });
            thread
                .join()
                .map_err(|_| anyhow!("a test thread panicked"))?
        })
    }
}

/// The cgroup2 folder of this process: worlds are made below it.
pub(crate) fn own_cgroup() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let root = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then_some(point)
        })
        .next()
        .context("no cgroup2 hierarchy is mounted")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("this process is in no cgroup2 cgroup")?;
    Ok(Path::new(root).join(own))
}

pub(crate) fn make_cgroups(node: &Path) -> Result<()> {
    make_threaded(node)?;
    for folder in FOLDERS {
        make_threaded(&node.join(folder))?;
    }
    Ok(())
}

fn make_threaded(folder: &Path) -> Result<()> {
    fs::create_dir(folder).with_context(|| format!("make cgroup {}", folder.display()))?;
    fs::write(folder.join("cgroup.type"), "threaded")
        .with_context(|| format!("make cgroup {} threaded", folder.display()))
}

pub(crate) fn remove_cgroups(node: &Path) {
    for folder in FOLDERS.iter().rev() {
        let _ = fs::remove_dir(node.join(folder));
    }
    let _ = fs::remove_dir(node);
}

//! Control groups: the hierarchies of this machine, and where in them nodes live.
//!
//! A node has a cgroup namespace: what is `/` to it is its cgroup below the cluster's in every
//! hierarchy, so its kubelet, its runc and any agent in it see only their own subtree, at the paths
//! where the machine has its own.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use karst_harness::mounts::{Mount, mounts};

use crate::paths::CLUSTER_CGROUP;

/// The CPU weight of a cluster and of each node, where a process outside has 1024: that of ten.
const CPU_SHARES: &str = "10240";

/// Resource controllers that a kubelet cannot do without.
const NEEDED: &[&str] = &["cpu", "memory", "cpuset", "cpuacct", "pids"];

/// The cgroup hierarchies that are mounted here, each once.
pub fn hierarchies() -> Result<Vec<Mount>> {
    let mut found: Vec<Mount> = Vec::new();
    for mount in mounts()? {
        let is_cgroup = matches!(mount.kind.as_str(), "cgroup" | "cgroup2");
        if is_cgroup && mount.target.starts_with("/sys/fs/cgroup") {
            found.push(mount);
        }
    }
    found.dedup();
    Ok(found)
}

/// Fails, saying what is missing, where the kubelets of a cluster could not run.
pub fn check() -> Result<()> {
    let all = hierarchies()?;
    ensure!(
        all.iter().any(|mount| mount.kind == "cgroup2"),
        "no cgroup2 hierarchy is mounted below /sys/fs/cgroup; `cargo xtask setup` mounts one"
    );
    for controller in NEEDED {
        let is_there = all
            .iter()
            .any(|mount| mount.options.split(',').any(|option| option == *controller));
        ensure!(
            is_there,
            "there is no cgroup v1 hierarchy of controller {controller}; the cluster's nodes are \
             written for v1 controllers beside an empty cgroup2 (\"hybrid\"), see tests/cluster/README.md"
        );
    }
    Ok(())
}

/// Makes `cgroup` (relative to the roots) in every hierarchy, and those above it.
pub fn create(cgroup: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut path = hierarchy.target.clone();
        for part in cgroup {
            let above = path.clone();
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => {
                    inherit_cpuset(&above, &path)?;
                    weigh(&path)?;
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("making cgroup {}", path.display()));
                }
            }
        }
    }
    Ok(())
}

/// A cgroup weighs as much as one process beside it, however many are in it: beside a compiler a
/// whole cluster would crawl.
fn weigh(path: &Path) -> Result<()> {
    let shares = path.join("cpu.shares");
    if !shares.exists() {
        return Ok(());
    }
    fs::write(&shares, CPU_SHARES).with_context(|| format!("setting {}", shares.display()))
}

/// A v1 cpuset takes no process before it has CPUs and memory nodes.
fn inherit_cpuset(above: &Path, path: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(value) = fs::read(above.join(file)) else {
            continue;
        };
        fs::write(path.join(file), value)
            .with_context(|| format!("setting {file} of {}", path.display()))?;
    }
    Ok(())
}

/// Moves the calling process into `cgroup` in every hierarchy.
pub fn join(cgroup: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        let procs = hierarchy.target.join(cgroup).join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| format!("joining {}", procs.display()))?;
    }
    Ok(())
}

/// Kills every process in `cgroup` and below, and waits for their ends.
pub fn kill(cgroup: &Path) -> Result<()> {
    let unified = hierarchies()?
        .into_iter()
        .find(|mount| mount.kind == "cgroup2")
        .context("no cgroup2 hierarchy is mounted")?;
    karst_harness::cgroup::kill(&unified.target.join(cgroup))
}

/// Removes `cgroup` and those below in every hierarchy, and the folder of all clusters if this was
/// the last.
pub fn remove(cgroup: &Path) -> Result<()> {
    for hierarchy in hierarchies()? {
        karst_harness::cgroup::remove(&hierarchy.target.join(cgroup))?;
        // Fails while another cluster is there, as it should.
        let _ = fs::remove_dir(hierarchy.target.join(CLUSTER_CGROUP));
    }
    Ok(())
}

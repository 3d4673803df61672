//! Which cgroups matter to the kernel side: the agent's own, which is never captured, and the one
//! above the node's pods.
//!
//! As a pod, the agent sits below the pods' cgroup itself, and in a cgroup namespace it cannot
//! read where. It is found by looking for its own process.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use karst_datapath::DatapathConfig;

use crate::process;

/// The value of `--agent-cgroup` for the cgroup the process was started in.
pub const OWN: &str = "self";

/// Folders below the node's cgroup in which a kubelet's is looked for: its cgroup root can be a
/// slice below another.
const KUBEPODS_DEPTH: usize = 4;

/// Most folders looked at for our own process: a full node has some thousand.
const MAX_FOLDERS: usize = 200_000;

/// The agent's cgroup as configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentCgroup {
    /// The one the process was started in.
    Own,
    /// This one, made and joined.
    Join(PathBuf),
}

impl From<PathBuf> for AgentCgroup {
    fn from(path: PathBuf) -> Self {
        if path.as_os_str() == OWN {
            Self::Own
        } else {
            Self::Join(path)
        }
    }
}

/// Where this node's datapath lives, before the node was looked at.
#[derive(Clone, Debug)]
pub struct Places {
    /// Names the pins.
    pub node_name: String,
    /// Directory on a bpffs that holds them.
    pub bpffs_root: PathBuf,
    /// cgroup2 directory the programs are attached to.
    pub node_cgroup: PathBuf,
    /// The agent's.
    pub agent_cgroup: AgentCgroup,
    /// The pods'; the first that exists counts, none means to look for it.
    pub kubepods_cgroup: Vec<PathBuf>,
    /// How many pods can be enrolled at once.
    pub max_pods: u32,
}

fn not_found(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, text)
}

impl Places {
    /// Finds the cgroups, and joins the agent's if that is wanted.
    ///
    /// # Errors
    /// One cannot be found, or the agent's own is not its own.
    pub fn settle(&self) -> io::Result<DatapathConfig> {
        let agent_cgroup = match &self.agent_cgroup {
            AgentCgroup::Join(path) => {
                process::join_cgroup(path)?;
                path.clone()
            }
            AgentCgroup::Own => {
                let own = own_cgroup(&self.node_cgroup, std::process::id())?;
                check_unshared(&own, Path::new("/proc"))?;
                process::need_bpffs(&self.bpffs_root)?;
                own
            }
        };
        let kubepods_cgroup = self.kubepods(&agent_cgroup)?;
        tracing::info!(
            agent = %agent_cgroup.display(),
            kubepods = %kubepods_cgroup.display(),
            "cgroups"
        );
        Ok(self.datapath(agent_cgroup, kubepods_cgroup))
    }

    /// The datapath's configuration with these cgroups.
    pub fn datapath(&self, agent_cgroup: PathBuf, kubepods_cgroup: PathBuf) -> DatapathConfig {
        DatapathConfig {
            node_name: self.node_name.clone(),
            bpffs_root: self.bpffs_root.clone(),
            node_cgroup: self.node_cgroup.clone(),
            agent_cgroup,
            kubepods_cgroup,
            max_pods: self.max_pods,
        }
    }

    fn kubepods(&self, agent: &Path) -> io::Result<PathBuf> {
        if let Some(given) = self.kubepods_cgroup.iter().find(|path| path.is_dir()) {
            return Ok(given.clone());
        }
        if !self.kubepods_cgroup.is_empty() {
            let all: Vec<_> = self
                .kubepods_cgroup
                .iter()
                .map(|p| p.display().to_string())
                .collect();
            return Err(not_found(format!(
                "--kubepods-cgroup: none of {} exists",
                all.join(", ")
            )));
        }
        find_kubepods(&self.node_cgroup, agent).ok_or_else(|| {
            not_found(format!(
                "no kubepods cgroup below {}: is the kubelet's cgroup2 hierarchy mounted there? Name it by --kubepods-cgroup",
                self.node_cgroup.display()
            ))
        })
    }
}

/// `kubepods` with the kubelet's cgroupfs driver, `kubepods.slice` or `ROOT-kubepods.slice` with
/// systemd's.
fn is_kubepods(name: &str) -> bool {
    name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
}

/// The cgroup above the node's pods: the one above the agent if there is, else the first found,
/// with the shallowest first.
fn find_kubepods(node: &Path, agent: &Path) -> Option<PathBuf> {
    let named = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(is_kubepods)
    };
    let above = agent.ancestors().take_while(|path| *path != node);
    if let Some(found) = above.filter(|path| named(path)).last() {
        return Some(found.to_owned());
    }
    let mut level = vec![node.to_owned()];
    for _ in 0..KUBEPODS_DEPTH {
        let next: Vec<PathBuf> = level.iter().flat_map(|folder| subfolders(folder)).collect();
        if let Some(found) = next.iter().filter(|path| named(path)).min() {
            return Some(found.clone());
        }
        level = next;
    }
    None
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    // A cgroup may go while we look.
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// The folder of this process below `node`. What `/proc/self/cgroup` says is tried first; in a
/// cgroup namespace that is `/`, or a way up and down again, and every folder is looked into.
fn own_cgroup(node: &Path, pid: u32) -> io::Result<PathBuf> {
    let said = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Some(path) = said_path(&said).map(|path| node.join(path))
        && holds(&path, pid)
    {
        return Ok(path);
    }
    let mut looked_at = 0;
    let mut folders = std::collections::VecDeque::from([node.to_owned()]);
    while let Some(folder) = folders.pop_front() {
        if holds(&folder, pid) {
            return Ok(folder);
        }
        looked_at += 1;
        if looked_at > MAX_FOLDERS {
            break;
        }
        folders.extend(subfolders(&folder));
    }
    Err(not_found(format!(
        "this process is in no cgroup below {}: is the node's cgroup2 hierarchy mounted there?",
        node.display()
    )))
}

/// The cgroup2 path in a `/proc/PID/cgroup`, as a relative one that does not lead up.
fn said_path(cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let plain = !path.is_empty() && path.split('/').all(|part| part != "..");
    plain.then(|| PathBuf::from(path))
}

fn holds(cgroup: &Path, pid: u32) -> bool {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    procs.lines().any(|line| line.parse() == Ok(pid))
}

/// What runs in the agent's cgroup is never captured, so no pod may be in there: a runtime that
/// gives its containers no cgroup2 cgroup of their own would make them all agents.
fn check_unshared(cgroup: &Path, proc: &Path) -> io::Result<()> {
    let netns = |pid: &str| fs::metadata(proc.join(pid).join("ns/net")).map(|m| (m.dev(), m.ino()));
    let own = netns("self")?;
    let procs = fs::read_to_string(cgroup.join("cgroup.procs"))?;
    for pid in procs.lines() {
        match netns(pid) {
            Ok(other) if other == own => {}
            // It ended meanwhile.
            Err(error) if pid != "0" && error.kind() == io::ErrorKind::NotFound => {}
            _ => {
                let text = format!(
                    "{} is shared with process {pid} of another network namespace: the agent needs a cgroup2 cgroup of its own",
                    cgroup.display()
                );
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{check_unshared, find_kubepods, own_cgroup, said_path};

    fn tree(folders: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("dir");
        for folder in folders {
            fs::create_dir_all(dir.path().join(folder)).expect("made");
        }
        dir
    }

    #[test]
    fn kubepods_is_found_under_any_driver() {
        let check = |folders: &[&str], agent: &str, expected: Option<&str>| {
            let dir = tree(folders);
            let found = find_kubepods(dir.path(), &dir.path().join(agent));
            assert_eq!(found, expected.map(|e| dir.path().join(e)), "{folders:?}");
        };
        check(
            &["kubepods/burstable", "system.slice"],
            "x",
            Some("kubepods"),
        );
        check(
            &["kubepods.slice", "system.slice"],
            "x",
            Some("kubepods.slice"),
        );
        check(
            &["a.slice/a-kubepods.slice/p"],
            "x",
            Some("a.slice/a-kubepods.slice"),
        );
        check(&["node1/kubepods/pod1/c"], "x", Some("node1/kubepods"));
        check(&["system.slice"], "x", None);
        // The one the agent is in, not the neighbour's, and the outer of two.
        check(
            &["kubepods", "node1/kubepods/pod1/c"],
            "node1/kubepods/pod1/c",
            Some("node1/kubepods"),
        );
        check(
            &["kubepods/pod1/c/kubepods/pod2"],
            "kubepods/pod1/c/kubepods/pod2",
            Some("kubepods"),
        );
    }

    #[test]
    fn the_own_cgroup_is_found_by_the_own_process() {
        let dir = tree(&["a/b", "kubepods/pod1/agent", "kubepods/pod2/c"]);
        let at = |folder: &str| dir.path().join(folder);
        fs::write(at("a/b/cgroup.procs"), "1\n4243\n").expect("written");
        fs::write(at("kubepods/pod1/agent/cgroup.procs"), "9\n4242\n").expect("written");
        let own = own_cgroup(dir.path(), 4242).expect("found");
        assert_eq!(own, at("kubepods/pod1/agent"));
        assert!(own_cgroup(dir.path(), 77).is_err());
    }

    #[test]
    fn what_a_cgroup_namespace_says_is_not_believed() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(said_path(text), expected.map(PathBuf::from), "{text}");
        };
        check("0::/kubepods/pod1/c\n", Some("kubepods/pod1/c"));
        check("12:memory:/x\n0::/a\n", Some("a"));
        check("0::/\n", None);
        check("0::/../../x\n", None);
        check("12:memory:/x\n", None);
        check("", None);
    }

    #[test]
    fn a_cgroup_shared_with_pods_is_refused() {
        let dir = tree(&["cgroup", "proc/self/ns", "proc/7/ns", "proc/8/ns"]);
        let at = |path: &str| dir.path().join(path);
        let check = |procs: &str, good: bool| {
            fs::write(at("cgroup/cgroup.procs"), procs).expect("written");
            let outcome = check_unshared(&at("cgroup"), Path::new(&at("proc")));
            assert_eq!(outcome.is_ok(), good, "{procs:?}: {outcome:?}");
        };
        for (name, other) in [("self", "host"), ("7", "host"), ("8", "pod")] {
            let file = at(other);
            if !file.exists() {
                fs::write(&file, "").expect("written");
            }
            fs::hard_link(file, at("proc").join(name).join("ns/net")).expect("linked");
        }
        check("7\n", true);
        check("7\n99\n", true);
        check("7\n8\n", false);
        check("0\n", false);
    }
}

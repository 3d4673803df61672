//! From a pod's uid to its network namespace, by way of its processes.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use karst_datapath::netns::NetnsId;
use nix::errno::Errno;

use super::names::{is_pod, pod_of};

/// Folders between the pods' cgroup and a pod's: the class of service.
const CLASS_DEPTH: usize = 2;

/// Folders below a pod's cgroup that are looked into: containers, and what they make.
const POD_DEPTH: usize = 4;

/// Where a node keeps what is looked at.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// The node's `/proc`.
    pub proc: PathBuf,
    /// Where runtimes bind network namespaces, if it can be seen.
    pub netns_dir: Option<PathBuf>,
    /// The cgroup2 folder above all pods.
    pub kubepods: PathBuf,
    /// The node's own namespace, which is no pod's.
    pub host_netns: NetnsId,
}

/// What is known of a pod that has processes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Path of its network namespace, and which one that was.
    Sandbox(PathBuf, NetnsId),
    /// Its processes are in the node's own namespace.
    HostNetwork,
    /// They are there, but went or may not be looked at.
    Unreadable,
}

/// Looks for the pods with these uids; those without a process are not in the answer.
///
/// # Errors
/// Something cannot be read that is there: a pod that is not found would be taken for gone.
pub fn scan(view: &NodeView, uids: &[&str]) -> io::Result<HashMap<String, Found>> {
    let mut processes = by_cgroup(&view.kubepods, uids)?;
    let left: Vec<&str> = uids
        .iter()
        .copied()
        .filter(|uid| !processes.contains_key(*uid))
        .collect();
    if !left.is_empty() {
        // The runtime may keep pods in a hierarchy that is not cgroup2's.
        processes.extend(by_process(&view.proc, &left)?);
    }
    let bound = match &view.netns_dir {
        Some(dir) => bound_namespaces(dir),
        None => HashMap::new(),
    };
    let look = |(uid, pids): (String, Vec<u32>)| (uid, inspect(view, &bound, &pids));
    Ok(processes.into_iter().map(look).collect())
}

/// The cheap way: the folder of a pod's cgroup bears its uid.
fn by_cgroup(kubepods: &Path, uids: &[&str]) -> io::Result<HashMap<String, Vec<u32>>> {
    let mut found = HashMap::new();
    let mut folders = vec![(kubepods.to_owned(), 0)];
    while let Some((folder, depth)) = folders.pop() {
        for (name, path) in subfolders(&folder)? {
            if let Some(uid) = uids.iter().find(|uid| is_pod(&name, uid)) {
                let mut pids = Vec::new();
                collect_pids(&path, 0, &mut pids)?;
                if !pids.is_empty() {
                    found.insert((*uid).to_owned(), pids);
                }
            } else if depth + 1 < CLASS_DEPTH {
                folders.push((path, depth + 1));
            }
        }
    }
    Ok(found)
}

fn subfolders(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut folders = Vec::new();
    for entry in unless_gone(folder, fs::read_dir(folder))?
        .into_iter()
        .flatten()
    {
        let Some(entry) = unless_gone(folder, entry)? else {
            break;
        };
        let path = entry.path();
        let is_dir = unless_gone(&path, entry.file_type())?.is_some_and(|kind| kind.is_dir());
        if is_dir && let Ok(name) = entry.file_name().into_string() {
            folders.push((name, path));
        }
    }
    Ok(folders)
}

/// Cgroups and processes may go while we look; whatever else stands in the way leaves us not
/// knowing.
fn unless_gone<T>(path: &Path, outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // A process or a cgroup that went between opening and reading.
        Err(error) if [Errno::ESRCH, Errno::ENODEV].contains(&errno(&error)) => Ok(None),
        Err(error) => {
            let text = format!("{}: {error}", path.display());
            Err(io::Error::new(error.kind(), text))
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn collect_pids(cgroup: &Path, depth: usize, pids: &mut Vec<u32>) -> io::Result<()> {
    let procs = cgroup.join("cgroup.procs");
    let procs = match fs::read_to_string(&procs) {
        // A threaded cgroup has no processes of its own: the one above it lists them.
        Err(error) if errno(&error) == Errno::EOPNOTSUPP => String::new(),
        read => unless_gone(&procs, read)?.unwrap_or_default(),
    };
    // A process of a PID namespace we cannot see reads as 0.
    pids.extend(
        procs
            .lines()
            .filter_map(|line| line.parse().ok())
            .filter(|pid: &u32| *pid > 0),
    );
    if depth < POD_DEPTH {
        for (_, path) in subfolders(cgroup)? {
            collect_pids(&path, depth + 1, pids)?;
        }
    }
    Ok(())
}

/// The sure way: every process says in which cgroup it is.
fn by_process(proc: &Path, uids: &[&str]) -> io::Result<HashMap<String, Vec<u32>>> {
    let mut found: HashMap<String, Vec<u32>> = HashMap::new();
    let unreadable =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", proc.display()));
    for entry in fs::read_dir(proc).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let path = entry.path().join("cgroup");
        let Some(cgroup) = unless_gone(&path, fs::read_to_string(&path))? else {
            continue;
        };
        if let Some(uid) = pod_of(&cgroup, uids) {
            found.entry(uid.to_owned()).or_default().push(pid);
        }
    }
    Ok(found)
}

/// Files in a runtime's directory of namespaces, by the namespace they stand for.
fn bound_namespaces(dir: &Path) -> HashMap<NetnsId, PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| Some((id(&entry.path()).ok()?, entry.path())))
        .collect()
}

fn id(path: &Path) -> io::Result<NetnsId> {
    let metadata = fs::metadata(path)?;
    Ok(NetnsId {
        dev: metadata.dev(),
        ino: metadata.ino(),
    })
}

/// A pod's namespace is that of its oldest process: the pause container's. Younger ones may have
/// entered the node's (a privileged tool) or made their own (a runtime inside a container).
fn inspect(view: &NodeView, bound: &HashMap<NetnsId, PathBuf>, pids: &[u32]) -> Found {
    let mut oldest: Option<(u64, u32, NetnsId)> = None;
    let mut on_host = false;
    for pid in pids {
        let process = view.proc.join(pid.to_string());
        let started = match start_time(&process) {
            Ok(Some(started)) => started,
            Ok(None) => continue,
            // It may have been the oldest.
            Err(_) => return Found::Unreadable,
        };
        let path = process.join("ns/net");
        let netns = match unless_gone(&path, id(&path)) {
            Ok(Some(netns)) => netns,
            Ok(None) => continue,
            Err(_) => return Found::Unreadable,
        };
        if netns == view.host_netns {
            on_host = true;
        } else if oldest.is_none_or(|(at, of, _)| (started, *pid) < (at, of)) {
            oldest = Some((started, *pid, netns));
        }
    }
    match oldest {
        // A bind mount lasts as long as the sandbox, a process may go before.
        Some((_, pid, netns)) => Found::Sandbox(
            bound
                .get(&netns)
                .cloned()
                .unwrap_or_else(|| view.proc.join(pid.to_string()).join("ns/net")),
            netns,
        ),
        None if on_host => Found::HostNetwork,
        None => Found::Unreadable,
    }
}

/// When a process started, in clock ticks since boot: field 22 of `stat`, where the command may
/// have spaces and brackets. `None` for one that has ended.
fn start_time(process: &Path) -> io::Result<Option<u64>> {
    let path = process.join("stat");
    // The command need not be UTF-8.
    let Some(stat) = unless_gone(&path, fs::read(&path))? else {
        return Ok(None);
    };
    let stat = String::from_utf8_lossy(&stat);
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields);
    let field = fields.and_then(|fields| fields.split_whitespace().nth(19));
    Ok(field.and_then(|field| field.parse().ok()))
}

#[cfg(test)]
#[path = "scan_tests.rs"]
mod tests;

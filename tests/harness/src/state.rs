//! The lab's record: one JSON file, read and written under the lab's file lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::host::write_atomic;
use crate::manifests::Key;
use crate::options::Mesh;
use crate::paths::{LABS_DIR, Paths};

/// Everything the lab remembers between commands.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// Whether controller and agents run.
    pub mesh: Mesh,
    /// How many nodes there are.
    pub nodes: u8,
    /// Hosts (nodes, wire, control, external) whose network namespace is complete.
    pub hosts: BTreeSet<String>,
    /// More arguments for every agent.
    pub agent_args: Vec<String>,
    /// More arguments for the controller.
    pub controller_args: Vec<String>,
    /// The API server's objects.
    pub objects: BTreeMap<Key, Value>,
    /// What the kubelet knows of its pods, by `namespace/name`.
    pub pods: BTreeMap<String, PodRecord>,
    /// Node names to node uids.
    pub node_uids: BTreeMap<String, String>,
}

/// A pod's sandbox and process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodRecord {
    /// The pod's uid: a new one each time a pod of this name is made.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// The named network namespace it runs in.
    pub netns: String,
    /// Whether that is its own (false with `hostNetwork`).
    pub own_netns: bool,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// Its container's process.
    pub process: Option<ProcessRecord>,
    /// How its container ended, if it did: whether with exit status 0 cannot be known for a
    /// process that another lab command started.
    pub ended: bool,
    /// Whether it is ready.
    pub ready: bool,
    /// The `spec` its sandbox was made from.
    pub spec: Value,
}

impl PodRecord {
    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A process id that cannot be mistaken for another process's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The process id.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessRecord {
    /// The record of a running process.
    pub fn of(pid: u32) -> Result<Self> {
        let (_, start_time) = stat(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self { pid, start_time })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        stat(self.pid).is_some_and(|(state, start_time)| {
            start_time == self.start_time && !matches!(state, 'Z' | 'X')
        })
    }
}

fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in brackets and may itself hold blanks.
    let mut rest = text.get(text.rfind(')')? + 2..)?.split(' ');
    let state = rest.next()?.chars().next()?;
    Some((state, rest.nth(18)?.parse().ok()?))
}

/// Holding it keeps every other command out of the lab.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lab's lock.
    pub fn take(paths: &Paths) -> Result<Self> {
        fs::create_dir_all(LABS_DIR).with_context(|| format!("making {LABS_DIR}"))?;
        let path = paths.lock();
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .context("opening the lab's lock")?;
            file.lock().context("taking the lab's lock")?;
            // Whoever held it may have removed the file with the lab: then this lock is on a
            // file that nobody else will find.
            let named = fs::metadata(&path).map(|named| named.ino()).ok();
            if named == Some(file.metadata()?.ino()) {
                return Ok(Self { _file: file, path });
            }
        }
    }

    /// Gives the lock back and removes its file: the end of a lab.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).context("removing the lab's lock")
    }
}

impl State {
    /// A new lab's.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh,
            nodes: 0,
            hosts: BTreeSet::new(),
            agent_args: Vec::new(),
            controller_args: Vec::new(),
            objects: BTreeMap::new(),
            pods: BTreeMap::new(),
            node_uids: BTreeMap::new(),
        }
    }

    /// The lab's record; none if it was never brought up.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        let path = paths.state();
        match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .with_context(|| format!("reading {}", path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("reading {}", path.display())),
        }
    }

    /// Writes the record.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        write_atomic(&paths.state(), &serde_json::to_vec(self)?)
    }

    /// The names of the nodes.
    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(node_name).collect()
    }

    /// A node's number; an error names those there are.
    pub fn node_number(&self, node: &str) -> Result<u8> {
        match (1..=self.nodes).find(|number| node_name(*number) == node) {
            Some(number) => Ok(number),
            None => bail!(
                "there is no node {node}; there are {}",
                self.node_names().join(", ")
            ),
        }
    }

    /// The pod that `name` means: `namespace/name`, `name` in `default`, or the first pod of
    /// a Deployment called so.
    pub fn pod(&self, name: &str) -> Result<&PodRecord> {
        let id = if name.contains('/') {
            name.to_owned()
        } else {
            format!("default/{name}")
        };
        if let Some(pod) = self.pods.get(&id) {
            return Ok(pod);
        }
        self.pods
            .values()
            .find(|pod| self.deployment_of(pod).is_some_and(|owner| owner == id))
            .with_context(|| {
                let known: Vec<&str> = self.pods.keys().map(String::as_str).collect();
                format!("there is no pod {id}; there are: {}", known.join(", "))
            })
    }

    /// `namespace/name` of the Deployment that a pod belongs to.
    pub fn deployment_of(&self, pod: &PodRecord) -> Option<String> {
        let object = self
            .objects
            .get(&Key::new("Pod", &pod.namespace, &pod.name))?;
        let hash = object["metadata"]["labels"]["pod-template-hash"].as_str()?;
        let owner = object["metadata"]["ownerReferences"][0]["name"].as_str()?;
        let name = owner.strip_suffix(hash)?.strip_suffix('-')?;
        Some(format!("{}/{name}", pod.namespace))
    }
}

/// The name of node number `number`.
pub fn node_name(number: u8) -> String {
    format!("node{number}")
}

/// A new uid in the form of a random UUID.
pub fn new_uid() -> String {
    let bits: u128 = rand::random();
    let bits = bits & !(0xf << 76) | (0x4 << 76);
    let bits = bits & !(0x3 << 62) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_alive_and_a_reused_pid_is_not_it() {
        let me = ProcessRecord::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = ProcessRecord {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!other.is_alive());
    }

    #[test]
    fn uids_look_like_random_uuids() {
        let uid = new_uid();
        let parts: Vec<usize> = uid.split('-').map(str::len).collect();
        assert_eq!(parts, [8, 4, 4, 4, 12]);
        assert_eq!(&uid[14..15], "4");
        assert!(matches!(&uid[19..20], "8" | "9" | "a" | "b"));
        assert_ne!(uid, new_uid());
    }
}

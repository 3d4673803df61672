//! Names and paths of everything a lab leaves on the machine, all made from its name.

use std::path::{Path, PathBuf};

use crate::options::LabName;

/// Where all labs keep their files.
pub const LABS_DIR: &str = "/run/karst-lab";

/// The bridge in the wire's netns that joins the nodes.
pub const WIRE_BRIDGE: &str = "wire0";

/// The bridge in a node's netns that joins its pods.
pub const POD_BRIDGE: &str = "cni0";

/// A lab's names and paths.
#[derive(Clone, Debug)]
pub struct Paths {
    name: LabName,
    dir: PathBuf,
}

impl Paths {
    /// Those of the lab called `name`.
    pub fn new(name: LabName) -> Self {
        let dir = Path::new(LABS_DIR).join(name.as_ref());
        Self { name, dir }
    }

    /// The lab's name.
    pub fn name(&self) -> &LabName {
        &self.name
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its lock: outside its directory, because `down` removes that while holding the lock.
    pub fn lock(&self) -> PathBuf {
        Path::new(LABS_DIR).join(format!(".{}.lock", self.name))
    }

    /// Its record.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// What the controller watches.
    pub fn manifests(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// The directory of log files.
    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// A pod's log.
    pub fn pod_log(&self, namespace: &str, name: &str) -> PathBuf {
        self.logs().join(format!("pod-{namespace}.{name}.log"))
    }

    /// A node's agent's log.
    pub fn agent_log(&self, node: &str) -> PathBuf {
        self.logs().join(format!("agent-{node}.log"))
    }

    /// The controller's log.
    pub fn controller_log(&self) -> PathBuf {
        self.logs().join("controller.log")
    }

    /// A pod's own files, also its working directory.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.dir.join("pods").join(uid)
    }

    /// The token of a pod's service account.
    pub fn pod_token(&self, uid: &str) -> PathBuf {
        self.pod_dir(uid).join("token")
    }

    /// A node's files: token, admin socket, the agent's state.
    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.dir.join("node").join(node)
    }

    /// A node's agent's socket for the CNI plugin, in a directory of its own.
    pub fn cni_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("cni").join("cni.sock")
    }

    /// A node's agent's admin socket.
    pub fn admin_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("admin.sock")
    }

    /// The socket that says whether one of several agents of a node is ready.
    pub fn ready_socket(&self, node: &str, tag: &str) -> PathBuf {
        self.node_dir(node).join(format!("ready-{tag}.sock"))
    }

    /// Where a node's agent is asked to hand over to another one.
    pub fn takeover_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("state").join("takeover.sock")
    }

    /// The controller's files.
    pub fn control_dir(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// The mesh's root certificate, written by the controller, pinned by the agents.
    pub fn root_certificate(&self) -> PathBuf {
        self.dir.join("root-cert.pem")
    }

    /// What the names of all its network namespaces begin with.
    pub fn netns_prefix(&self) -> String {
        format!("karst-{}-", self.name)
    }

    /// The netns of a node or of one of `wire`, `control` and `external`.
    pub fn host_netns(&self, host: &str) -> String {
        format!("{}{host}", self.netns_prefix())
    }

    /// A pod's netns; the dot keeps it apart from every host's.
    pub fn pod_netns(&self, namespace: &str, name: &str) -> String {
        format!("{}{namespace}.{name}", self.netns_prefix())
    }

    /// Its programs' pins.
    pub fn bpffs_root(&self) -> PathBuf {
        Path::new("/sys/fs/bpf/karst-lab").join(self.name.as_ref())
    }

    /// Its cgroup, relative to the cgroup2 root.
    pub fn cgroup(&self) -> PathBuf {
        Path::new("karst-lab").join(self.name.as_ref())
    }
}

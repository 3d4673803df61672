//! The lab's handle: everything a caller can do with one.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, bail};

use crate::options::LabOptions;
use crate::running::Running;
use crate::status::LabStatus;

/// A running lab. All methods may be called from several threads and from several processes
/// at once: each takes the lab's file lock for as long as it changes something.
///
/// A pod is named `namespace/name`, or `name` in namespace `default`; the name of a
/// Deployment stands for its first pod.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
}

impl Lab {
    /// Brings a lab up, or an existing one of this name to what is asked, and waits until
    /// controller, agents and pods are ready. Needs root.
    pub fn up(_options: LabOptions) -> Result<Self> {
        bail!("the lab is not built yet")
    }

    /// The handle of a lab that is up.
    pub fn attach(_name: &str) -> Result<Self> {
        bail!("the lab is not built yet")
    }

    /// Removes the lab and everything it left on the machine.
    pub fn down(self) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Removes the lab called `name`, also one whose record is lost; fine if there is none.
    pub fn tear_down(_name: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Applies manifests (several YAML documents) and waits until the pods they make are
    /// ready.
    pub fn apply(&self, _manifests: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Applies a manifest file, or every manifest file of a directory.
    pub fn apply_path(&self, _path: &Path) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Deletes the objects that the manifests name; ones that are gone are fine.
    pub fn delete(&self, _manifests: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Sets (`key=value`) or removes (`key-`) a label of a namespace, live.
    pub fn label_namespace(&self, _namespace: &str, _label: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Sets (`key=value`) or removes (`key-`) a label of a pod, live.
    pub fn label_pod(&self, _pod: &str, _label: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Runs a program in a pod (its netns, cgroup and mounts) to its end, with empty input.
    pub fn exec(&self, _pod: &str, _argv: &[&str]) -> Result<Output> {
        bail!("the lab is not built yet")
    }

    /// Like [`Lab::exec`], but fails unless the program exits with 0, and gives its output
    /// as text.
    pub fn exec_ok(&self, _pod: &str, _argv: &[&str]) -> Result<String> {
        bail!("the lab is not built yet")
    }

    /// Starts a program in a pod, with pipes for its input and output.
    pub fn spawn(&self, _pod: &str, _argv: &[&str]) -> Result<Running> {
        bail!("the lab is not built yet")
    }

    /// The command that runs a program in a pod, for callers with wishes about its pipes.
    pub fn pod_command(&self, _pod: &str, _argv: &[&str]) -> Result<Command> {
        bail!("the lab is not built yet")
    }

    /// The command that runs a program as a node's own (its netns, cgroup `host`).
    pub fn node_command(&self, _node: &str, _argv: &[&str]) -> Result<Command> {
        bail!("the lab is not built yet")
    }

    /// Runs a program as a node's own to its end.
    pub fn node_exec(&self, _node: &str, _argv: &[&str]) -> Result<Output> {
        bail!("the lab is not built yet")
    }

    /// The command that runs a program on the external host, which no mesh knows.
    pub fn external_command(&self, _argv: &[&str]) -> Result<Command> {
        bail!("the lab is not built yet")
    }

    /// The external host's addresses, IPv4 first; pods reach them by their default route.
    pub fn external_addresses(&self) -> Vec<IpAddr> {
        Vec::new()
    }

    /// The command that runs a program in the wire's netns, where the bridge `wire0` carries
    /// all traffic between nodes (for captures).
    pub fn wire_command(&self, _argv: &[&str]) -> Result<Command> {
        bail!("the lab is not built yet")
    }

    /// Runs the user's CLI (`karst inspect ARGS`) against a node, also one whose agent is
    /// gone.
    pub fn inspect(&self, _node: &str, _args: &[&str]) -> Result<Output> {
        bail!("the lab is not built yet")
    }

    /// What a pod's container wrote so far.
    pub fn logs(&self, _pod: &str) -> Result<String> {
        bail!("the lab is not built yet")
    }

    /// What a node's agent wrote so far, over all its lives.
    pub fn agent_log(&self, _node: &str) -> Result<String> {
        bail!("the lab is not built yet")
    }

    /// What the controller wrote so far, over all its lives.
    pub fn controller_log(&self) -> Result<String> {
        bail!("the lab is not built yet")
    }

    /// The state of nodes and pods, read from the running system.
    pub fn status(&self) -> Result<LabStatus> {
        bail!("the lab is not built yet")
    }

    /// Waits until the pod is enrolled (`Enrolment::Enrolled`) or not, and, when enrolled,
    /// until every agent knows it as reachable by HBONE.
    pub fn wait_enrolled(&self, _pod: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Waits until the kernel no longer captures the pod's connections.
    pub fn wait_unenrolled(&self, _pod: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Kills (SIGKILL) a node's agent, and waits for its end.
    pub fn kill_agent(&self, _node: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Asks a node's agent to end (SIGTERM) and waits for it.
    pub fn stop_agent(&self, _node: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Starts a node's agent, if it does not run, and waits until it is ready.
    pub fn start_agent(&self, _node: &str) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// The process id of a node's agent.
    pub fn agent_pid(&self, _node: &str) -> Result<u32> {
        bail!("the lab is not built yet")
    }

    /// A node's agent's metrics, as Prometheus text.
    pub fn agent_metrics(&self, _node: &str) -> Result<String> {
        bail!("the lab is not built yet")
    }

    /// A document of a node's agent's admin socket, e.g. `/v1/connections`.
    pub fn agent_admin(&self, _node: &str, _path: &str) -> Result<serde_json::Value> {
        bail!("the lab is not built yet")
    }

    /// The path of a node's agent's admin socket.
    pub fn admin_socket(&self, node: &str) -> PathBuf {
        self.dir.join("node").join(node).join("admin.sock")
    }

    /// Where the lab's node agents pin their programs and maps.
    pub fn bpffs_root(&self) -> PathBuf {
        PathBuf::from("/sys/fs/bpf/karst-lab")
    }

    /// The directory the controller watches.
    pub fn manifests_dir(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// Kills (SIGKILL) the controller.
    pub fn stop_controller(&self) -> Result<()> {
        bail!("the lab is not built yet")
    }

    /// Starts the controller, if it does not run, and waits until it serves.
    pub fn start_controller(&self) -> Result<()> {
        bail!("the lab is not built yet")
    }
}

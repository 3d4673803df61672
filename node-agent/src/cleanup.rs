//! `karst-node-agent cleanup`: takes everything off the node that agents left on it, and then
//! waits to be ended, so that a DaemonSet of it can be awaited like any other.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use http::StatusCode;
use karst_datapath::Datapath;
use karst_process::http_server::{json as json_reply, serve_tcp};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{LocalSet, spawn_local};

use crate::cgroup::{AgentCgroup, Places};
use crate::cni::install::{CniInstall, InstallError};
use crate::config::LogFormat;
use crate::process;

/// Between two attempts. An agent that still drains holds the node for some seconds.
const RETRY_EVERY: Duration = Duration::from_secs(2);

/// Takes everything off the node that Karst's agents left on it: un-enrols all pods, removes
/// programs, maps, the CNI plugin and its configuration, and the agent's state. Idempotent.
#[derive(Clone, Debug, Parser)]
#[command(name = "karst-node-agent cleanup", version, max_term_width = 100)]
pub struct CleanupArgs {
    /// Name of this node, as the agent had it.
    #[arg(long, env = "KARST_NODE_NAME")]
    pub node_name: String,
    /// Directory on bpffs under which the agent pinned.
    #[arg(long, env = "KARST_BPFFS_ROOT", default_value = "/sys/fs/bpf/karst")]
    pub bpffs_root: PathBuf,
    /// The agent's cgroup, removed if it is empty; `self` for none.
    #[arg(long, env = "KARST_AGENT_CGROUP", default_value = "self")]
    pub agent_cgroup: PathBuf,
    /// The agent's state; /run/karst/NODE by default.
    #[arg(long, env = "KARST_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// The agent's socket for the CNI plugin.
    #[arg(long, env = "KARST_CNI_SOCKET")]
    pub cni_socket: Option<PathBuf>,
    /// The container runtime's directory of CNI plugins.
    #[arg(long, env = "KARST_CNI_BIN_DIR", requires = "cni_conf_dir")]
    pub cni_bin_dir: Option<PathBuf>,
    /// The container runtime's directory of CNI configurations.
    #[arg(long, env = "KARST_CNI_CONF_DIR", requires = "cni_bin_dir")]
    pub cni_conf_dir: Option<PathBuf>,
    /// Where to serve /healthz/ready, which is 200 once all is gone. Repeatable.
    #[arg(long, env = "KARST_READINESS_LISTEN", value_delimiter = ',')]
    pub readiness_listen: Vec<SocketAddr>,
    /// End when all is gone instead of waiting for a signal.
    #[arg(long)]
    pub exit: bool,
    /// Format of the log on standard error.
    #[arg(long, env = "KARST_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// What to log.
    #[arg(long, env = "KARST_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Why something is still there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CleanupError {
    /// An agent runs on the node.
    #[error("an agent runs with {0}; end it first")]
    AgentRuns(PathBuf),
    /// The state directory cannot be used.
    #[error("state directory {path}: {source}")]
    StateDir {
        /// Which.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
    /// The CNI plugin or its configuration.
    #[error("CNI plugin: {0}")]
    Cni(#[from] InstallError),
    /// The kernel side.
    #[error("datapath: {0}")]
    Datapath(#[from] karst_datapath::DatapathError),
    /// A file or directory.
    #[error("remove {path}: {source}")]
    Remove {
        /// Which.
        path: PathBuf,
        /// The operating system's answer.
        source: io::Error,
    },
}

impl CleanupError {
    /// The stable label.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::AgentRuns(_) => "cleanup_agent_runs",
            Self::StateDir { .. } => "state_dir_unusable",
            Self::Cni(error) => error.reason(),
            Self::Datapath(error) => error.reason(),
            Self::Remove { .. } => "cleanup_remove",
        }
    }
}

impl CleanupArgs {
    fn state_dir(&self) -> PathBuf {
        let default = || Path::new("/run/karst").join(&self.node_name);
        self.state_dir.clone().unwrap_or_else(default)
    }

    /// Takes everything away; nothing left is no error.
    ///
    /// # Errors
    /// Something is still there; calling again does the rest.
    pub fn clean(&self) -> Result<(), CleanupError> {
        let state_dir = self.state_dir();
        // An agent that runs would put everything back.
        let unusable = |source| CleanupError::StateDir {
            path: state_dir.clone(),
            source,
        };
        let Some(lock) = process::lock_state_dir(&state_dir).map_err(unusable)? else {
            return Err(CleanupError::AgentRuns(state_dir));
        };
        // New pods first: from here on none asks for an agent. Pods that run already must not stay
        // captured for what stands in the way of that.
        let mut chained = Ok(0);
        if let Some((bin_dir, conf_dir)) = self.cni_bin_dir.clone().zip(self.cni_conf_dir.clone()) {
            let install = CniInstall {
                source: PathBuf::new(),
                bin_dir,
                conf_dir,
                entry: Value::Null,
            };
            chained = install.remove();
        }
        let agent_cgroup = AgentCgroup::from(self.agent_cgroup.clone());
        let places = Places {
            node_name: self.node_name.clone(),
            bpffs_root: self.bpffs_root.clone(),
            node_cgroup: PathBuf::new(),
            agent_cgroup: agent_cgroup.clone(),
            kubepods_cgroup: Vec::new(),
            max_pods: 0,
        };
        let captured = Datapath::remove_all(&places.datapath(PathBuf::new(), PathBuf::new()));
        chained?;
        captured?;
        if let Some(socket) = &self.cni_socket {
            removed(socket, fs::remove_file(socket))?;
        }
        removed(&state_dir, fs::remove_dir_all(&state_dir))?;
        drop(lock);
        // What others may share goes only when it is empty; a mount point of ours cannot go.
        let shared = [Some(&*self.bpffs_root), state_dir.parent()];
        for dir in shared.into_iter().flatten() {
            let _ = fs::remove_dir(dir);
        }
        if let AgentCgroup::Join(cgroup) = agent_cgroup {
            removed(&cgroup, fs::remove_dir(&cgroup))?;
        }
        Ok(())
    }
}

/// What is not there any more is removed.
fn removed(path: &Path, outcome: io::Result<()>) -> Result<(), CleanupError> {
    match outcome {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CleanupError::Remove {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

/// Cleans until all is gone, then waits for SIGTERM or SIGINT.
///
/// # Errors
/// It cannot listen or wait.
pub fn run(args: CleanupArgs) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, serve(args))
}

async fn serve(args: CleanupArgs) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let done = Arc::new(AtomicBool::new(false));
    for address in &args.readiness_listen {
        let listener = TcpListener::bind(address).await?;
        let done = Arc::clone(&done);
        spawn_local(serve_tcp(listener, move |_| {
            let ready = done.load(Ordering::Relaxed);
            let status = if ready {
                StatusCode::OK
            } else {
                StatusCode::SERVICE_UNAVAILABLE
            };
            std::future::ready(json_reply(status, &json!({"ready": ready})))
        }));
    }
    let work = async {
        while let Err(error) = args.clean() {
            tracing::warn!(reason = error.reason(), %error, "not clean yet");
            tokio::time::sleep(RETRY_EVERY).await;
        }
        done.store(true, Ordering::Relaxed);
        tracing::info!(
            node = args.node_name,
            "nothing of Karst is left on this node"
        );
        if !args.exit {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::CleanupArgs;
    use crate::process::lock_state_dir;

    const LIST: &str = "{\"cniVersion\":\"1.0.0\",\"name\":\"n\",\n \"plugins\":[ {\"type\":\"ptp\"}, {\"type\":\"karst-cni\"} ]}\n";

    fn args(dir: &std::path::Path) -> CleanupArgs {
        let at = |name: &str| dir.join(name).display().to_string();
        CleanupArgs::try_parse_from([
            "cleanup".to_owned(),
            "--node-name=n1".to_owned(),
            format!("--bpffs-root={}", at("bpf")),
            format!("--state-dir={}", at("run/n1")),
            format!("--cni-socket={}", at("run/cni.sock")),
            format!("--cni-bin-dir={}", at("bin")),
            format!("--cni-conf-dir={}", at("net.d")),
        ])
        .expect("parses")
    }

    #[test]
    fn everything_goes_and_twice_is_once() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        for name in [
            "bpf/n1/links",
            "bpf/n1/maps-v1",
            "run/n1/sandboxes",
            "bin",
            "net.d",
        ] {
            fs::create_dir_all(at(name)).expect("made");
        }
        for name in [
            "bpf/n1/links/connect4",
            "run/n1/sandboxes/u.json",
            "run/cni.sock",
            "bin/karst-cni",
            "bin/ptp",
        ] {
            fs::write(at(name), "x").expect("written");
        }
        fs::write(at("net.d/10.conflist"), LIST).expect("written");
        let args = args(dir.path());
        for _ in 0..2 {
            args.clean().expect("clean");
            for gone in ["bpf", "run", "bin/karst-cni"] {
                assert!(!at(gone).exists(), "{gone} is left");
            }
            let list = fs::read_to_string(at("net.d/10.conflist")).expect("there");
            assert_eq!(list, LIST.replace(", {\"type\":\"karst-cni\"}", ""));
            assert!(at("bin/ptp").exists());
        }
    }

    #[test]
    fn pods_are_let_go_although_the_plugin_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| dir.path().join(name);
        for name in ["bpf/n1/links", "bpf/n1/maps-v1", "bin/karst-cni", "net.d"] {
            fs::create_dir_all(at(name)).expect("made");
        }
        fs::write(at("bpf/n1/links/connect4"), "x").expect("written");
        // A folder where the plugin should be is not removed as a file.
        let error = args(dir.path()).clean().expect_err("the plugin is there");
        assert_eq!(error.reason(), "cni_dir_unusable");
        assert!(!at("bpf/n1").exists());
        fs::remove_dir(at("bin/karst-cni")).expect("removed");
        args(dir.path()).clean().expect("the rest");
    }

    #[test]
    fn nothing_goes_while_an_agent_runs() {
        let dir = tempfile::tempdir().expect("dir");
        let net = dir.path().join("net.d");
        fs::create_dir(&net).expect("made");
        fs::write(net.join("10.conflist"), LIST).expect("written");
        let _agent = lock_state_dir(&dir.path().join("run/n1"))
            .expect("usable")
            .expect("free");
        let error = args(dir.path()).clean().expect_err("refused");
        assert_eq!(error.reason(), "cleanup_agent_runs");
        assert_eq!(
            fs::read_to_string(net.join("10.conflist")).expect("there"),
            LIST
        );
    }
}

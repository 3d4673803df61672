//! Running the real controller and the real node agents.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::addresses::{self, CONTROL_HOST};
use crate::admin;
use crate::cgroup;
use crate::files::{tail, write_atomic};
use crate::inside::HELPER;
use crate::kubelet::node_cgroups;
use crate::launch::Launch;
use crate::mounts::ensure_bpffs;
use crate::netns::{self, NETNS_DIR};
use crate::network::CONTROL;
use crate::newer::Place;
use crate::paths::Paths;
use crate::state::State;
use crate::tokens::{self, TokenKey};
use crate::wait::until;

/// The controller's gRPC port.
pub const CONTROLLER_PORT: u16 = 15012;
/// The name in the controller's certificate.
pub const CONTROLLER_NAME: &str = "karst-controller.karst-system.svc";
/// Where an agent serves metrics, on its node's loopback.
pub const AGENT_METRICS: &str = "127.0.0.1:15020";
/// Start-up is a second or two; more than this is a fault worth its log.
const START_LIMIT: Duration = Duration::from_secs(60);
/// An agent drains for some seconds after SIGTERM.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// Where agents and proxies reach the controller, `HOST:PORT`.
pub fn controller_address() -> String {
    format!("{}:{CONTROLLER_PORT}", addresses::wire(CONTROL_HOST).v4)
}

/// Where the controller serves metrics, `HOST:PORT`.
pub fn controller_metrics() -> String {
    format!("{}:15014", addresses::wire(CONTROL_HOST).v4)
}

/// Where another controller may stand beside the controller: at a port that the kernel chooses.
pub fn beside_controller(paths: &Paths) -> Place {
    let host = addresses::wire(CONTROL_HOST).v4;
    Place {
        netns: netns::file(&paths.host_netns(CONTROL)),
        listen: (host, 0).into(),
        controller: (host, CONTROLLER_PORT).into(),
        name: CONTROLLER_NAME.to_owned(),
    }
}

fn controller_cgroup(paths: &Paths) -> Result<PathBuf> {
    Ok(cgroup::root()?.join(paths.cgroup()).join(CONTROL))
}

/// The controller's process.
pub fn controller_pid(paths: &Paths) -> Result<Option<u32>> {
    Ok(cgroup::pids(&controller_cgroup(paths)?)?.into_iter().next())
}

/// Starts the controller unless it runs, and waits until it serves.
pub fn start_controller(paths: &Paths, state: &State) -> Result<Option<Child>> {
    let mut child = None;
    if controller_pid(paths)?.is_none() {
        child = Some(spawn_controller(paths, state)?);
    }
    let address: SocketAddr = (addresses::wire(CONTROL_HOST).v4, CONTROLLER_PORT).into();
    let netns = paths.host_netns(CONTROL);
    until("the controller to serve", START_LIMIT, || {
        alive(&mut child, "controller", || paths.controller_log())?;
        ensure!(
            paths.root_certificate().is_file(),
            "there is no root certificate yet"
        );
        netns::run_in(&netns, || {
            TcpStream::connect_timeout(&address, Duration::from_secs(1))
                .context("its port is closed")
        })
    })?;
    Ok(child)
}

fn spawn_controller(paths: &Paths, state: &State) -> Result<Child> {
    let dir = paths.control_dir();
    let key_set = dir.join("jwks.json");
    fs::create_dir_all(&dir)?;
    write_atomic(
        &key_set,
        &serde_json::to_vec(&TokenKey::load(paths)?.key_set())?,
    )?;
    let wire = addresses::wire(CONTROL_HOST);
    let mut argv = vec![
        HELPER.binary("karst-controller")?.display().to_string(),
        format!("--source=dir:{}", paths.manifests().display()),
        format!("--listen=0.0.0.0:{CONTROLLER_PORT}"),
        "--metrics-listen=0.0.0.0:15014".to_owned(),
        format!("--state-dir={}", dir.join("state").display()),
        format!("--root-cert-out={}", paths.root_certificate().display()),
        format!("--serving-name={CONTROLLER_NAME}"),
        format!("--serving-name={}", wire.v4),
        format!("--token-jwks={}", key_set.display()),
        format!("--token-issuer={}", tokens::ISSUER),
        format!("--token-audience={}", tokens::AUDIENCE),
        format!(
            "--node-agent-account={}/{}",
            tokens::SYSTEM_NAMESPACE,
            tokens::AGENT_ACCOUNT
        ),
    ];
    argv.extend(state.controller_args.iter().cloned());
    let launch = Launch {
        netns: paths.host_netns(CONTROL),
        cgroup: controller_cgroup(paths)?,
        name_files: None,
        directory: dir,
        env: Vec::new(),
    };
    cgroup::create(&launch.cgroup)?;
    launch.start(&argv, &paths.controller_log())
}

/// Kills the controller.
pub fn kill_controller(paths: &Paths) -> Result<()> {
    cgroup::kill(&controller_cgroup(paths)?)
}

/// The process of a node's agent.
pub fn agent_pid(paths: &Paths, node: &str) -> Result<Option<u32>> {
    Ok(cgroup::pids(&node_cgroups(paths, node)?.agent)?
        .into_iter()
        .next())
}

/// Starts a node's agent unless it runs.
pub fn spawn_agent(paths: &Paths, state: &State, node: &str) -> Result<Option<Child>> {
    if agent_pid(paths, node)?.is_some() {
        return Ok(None);
    }
    let own = node_cgroups(paths, node)?.agent;
    launch_agent(paths, state, node, own, &[]).map(Some)
}

/// Starts one more agent for a node beside the one that runs, in a cgroup of its own as in a
/// pod of its own: what an upgrade does.
pub fn spawn_successor(
    paths: &Paths,
    state: &State,
    node: &str,
    (tag, more): (&str, &[&str]),
) -> Result<Child> {
    let own = node_cgroups(paths, node)?
        .node
        .join(format!("karst-agent-{tag}"));
    let ready = format!("--ready-socket={}", paths.ready_socket(node, tag).display());
    let mut args = vec![ready];
    args.extend(more.iter().map(ToString::to_string));
    launch_agent(paths, state, node, own, &args)
}

fn launch_agent(
    paths: &Paths,
    state: &State,
    node: &str,
    own: PathBuf,
    more: &[String],
) -> Result<Child> {
    let cgroups = node_cgroups(paths, node)?;
    for path in [&own, &cgroups.pods, &cgroups.host] {
        cgroup::create(path)?;
    }
    ensure_bpffs()?;
    let dir = paths.node_dir(node);
    fs::create_dir_all(&dir)?;
    let uid = state
        .node_uids
        .get(node)
        .with_context(|| format!("node {node} has no uid"))?;
    let token = tokens::write_agent_token(paths, node, uid)?;
    let mut argv = vec![
        HELPER.binary("karst-node-agent")?.display().to_string(),
        format!("--node-name={node}"),
        format!("--controller={}", controller_address()),
        format!("--controller-name={CONTROLLER_NAME}"),
        format!("--root-cert={}", paths.root_certificate().display()),
        format!("--token={}", token.display()),
        format!("--bpffs-root={}", paths.bpffs_root().display()),
        format!("--node-cgroup={}", cgroups.node.display()),
        format!("--agent-cgroup={}", own.display()),
        format!("--kubepods-cgroup={}", cgroups.pods.display()),
        format!("--state-dir={}", dir.join("state").display()),
        format!("--admin-socket={}", paths.admin_socket(node).display()),
    ];
    argv.extend(state.agent_args.iter().cloned());
    argv.extend(more.iter().cloned());
    let launch = Launch {
        netns: paths.host_netns(node),
        cgroup: own,
        name_files: None,
        directory: dir,
        // By the environment, so that a caller's arguments override them.
        env: vec![
            ("KARST_METRICS_LISTEN".to_owned(), AGENT_METRICS.to_owned()),
            ("KARST_ACCESS_LOG".to_owned(), "json".to_owned()),
            (
                "KARST_CNI_SOCKET".to_owned(),
                paths.cni_socket(node).display().to_string(),
            ),
            ("KARST_DISCOVER_PODS".to_owned(), "true".to_owned()),
            ("KARST_NETNS_DIR".to_owned(), NETNS_DIR.to_owned()),
        ],
    };
    launch.start(&argv, &paths.agent_log(node))
}

/// Waits until a node's agent says that it is ready; `child` is its process if this caller
/// started it.
pub fn wait_agent_ready(paths: &Paths, node: &str, child: &mut Option<Child>) -> Result<()> {
    until(
        &format!("the agent of {node} to be ready"),
        START_LIMIT,
        || {
            alive(child, "agent", || paths.agent_log(node))?;
            admin::get(&paths.admin_socket(node), "/v1/ready").map(drop)
        },
    )
}

/// Kills (SIGKILL) a node's agent.
pub fn kill_agent(paths: &Paths, node: &str) -> Result<()> {
    cgroup::kill(&node_cgroups(paths, node)?.agent)
}

/// Asks a node's agent to end, and waits for that.
pub fn stop_agent(paths: &Paths, node: &str) -> Result<()> {
    let agent = node_cgroups(paths, node)?.agent;
    for pid in cgroup::pids(&agent)? {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGTERM).context("stopping the agent")?;
    }
    until("the agent to end", STOP_LIMIT, || {
        let left = cgroup::pids(&agent)?;
        ensure!(left.is_empty(), "it still runs");
        Ok(())
    })
}

/// A GET of a node's agent's metrics server.
pub fn agent_metrics(paths: &Paths, node: &str) -> Result<String> {
    admin::get_in(&paths.host_netns(node), AGENT_METRICS, "/metrics")
}

/// `karst inspect` against one node.
pub fn inspect(paths: &Paths, node: &str, args: &[&str]) -> Result<Command> {
    cli(paths, node, &[&["inspect"], args].concat())
}

/// The user's CLI against one node.
pub fn cli(paths: &Paths, node: &str, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(HELPER.binary("karst")?);
    command.args(args).arg(format!("--node={node}"));
    command.arg(format!("--bpffs-root={}", paths.bpffs_root().display()));
    command.arg(format!(
        "--admin-socket={}",
        paths.admin_socket(node).display()
    ));
    Ok(command)
}

/// The user's CLI about the whole lab.
pub fn karst(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(HELPER.binary("karst")?);
    command.args(args);
    Ok(command)
}

/// Fails with the end of its log if a process that was just started has ended.
fn alive(child: &mut Option<Child>, what: &str, log: impl Fn() -> PathBuf) -> Result<()> {
    let Some(child) = child else { return Ok(()) };
    let Some(status) = child.try_wait()? else {
        return Ok(());
    };
    let log = log();
    bail!(
        "the {what} ended with {status}; the end of {}:\n{}",
        log.display(),
        tail(&log)
    )
}

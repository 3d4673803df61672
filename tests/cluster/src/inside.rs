//! What the helper binary `karst-cluster-run` does: steps that need a process of their own.

mod root;

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command as Process, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use karst_harness::files::append_to;
use karst_harness::helper::{Helper, guard, raise_file_limit};
use karst_harness::netns;
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::setsid;

use crate::cgroup;
use crate::cluster::Cluster;

/// The cluster's helper program.
pub const HELPER: Helper = Helper::new("karst-cluster-run");

/// The path of one of Karst's binaries, for tests to run or to put into images; fails, saying what to
/// do, if it is not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    HELPER.binary(name)
}

/// The namespaces of a node, in the order in which they are entered: after the mount namespace the
/// machine's files cannot be reached any more.
const NODE_NAMESPACES: &[(&str, CloneFlags)] = &[
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// What a node's first process says when the node is there.
const READY: &str = "ready";

/// What the helper can be asked to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a node and print the process id of its first process.
    Node(Node),
    /// Be that first process: build the node's file system, then take in orphans.
    NodeInit(Node),
    /// Start a program in a node or a network namespace.
    Enter(Enter),
    /// Wait for the end of standard input, then take the cluster down.
    Guard {
        /// The cluster's name.
        cluster: String,
    },
}

/// A node to be.
#[derive(Debug, clap::Args)]
pub struct Node {
    /// Its host name.
    #[arg(long)]
    name: String,
    /// Its network namespace's file.
    #[arg(long)]
    netns: PathBuf,
    /// Its cgroup, relative to the hierarchies' roots.
    #[arg(long)]
    cgroup: PathBuf,
    /// Its directory on the machine.
    #[arg(long)]
    dir: PathBuf,
    /// The multi-call binary of Kubernetes.
    #[arg(long)]
    kubernetes: PathBuf,
}

/// Arguments of `enter`.
#[derive(Debug, clap::Args)]
pub struct Enter {
    /// The network namespace's file.
    #[arg(long, conflicts_with = "node", required_unless_present = "node")]
    netns: Option<PathBuf>,
    /// The process id of the node's first process.
    #[arg(long)]
    node: Option<u32>,
    /// The cgroup to join, relative to the hierarchies' roots.
    #[arg(long)]
    cgroup: PathBuf,
    /// Let the program run on, write what it says to this file, and print its process id.
    #[arg(long)]
    detach: Option<PathBuf>,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

/// Does it.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Node(node) => make_node(&node),
        Command::NodeInit(node) => be_node(&node),
        Command::Enter(enter) => start_inside(&enter),
        Command::Guard { cluster } => guard(|| Cluster::tear_down(&cluster)),
    }
}

fn make_node(node: &Node) -> Result<ExitCode> {
    // Before the cgroup namespace is made: its root is where the process is then.
    cgroup::join(&node.cgroup)?;
    netns::enter(&node.netns)?;
    setsid().context("starting a session")?;
    let mut namespaces = CloneFlags::empty();
    for (_, namespace) in NODE_NAMESPACES {
        namespaces |= *namespace;
    }
    unshare(namespaces - CloneFlags::CLONE_NEWNET).context("making a node's namespaces")?;
    // A new process namespace is for children only.
    let mut child = Process::new(std::env::current_exe()?)
        .arg("node-init")
        .args(std::env::args_os().skip(2))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a node's first process")?;
    let stdout = child.stdout.take().context("no output to read")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(
        line.trim() == READY,
        "the node's first process ended: {}",
        child.wait()?
    );
    println!("{}", child.id());
    Ok(ExitCode::SUCCESS)
}

fn be_node(node: &Node) -> Result<ExitCode> {
    // Blocked from the start, so that none is missed between two looks.
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block().context("blocking SIGCHLD")?;
    std::fs::write("/proc/sys/kernel/hostname", &node.name).context("setting the host name")?;
    root::build(&node.dir, &node.kubernetes)?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{READY}")?;
    stdout.flush()?;
    loop {
        children.wait().context("waiting for a child's end")?;
        // One signal may stand for the ends of several.
        while !matches!(
            waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(WaitStatus::StillAlive) | Err(_)
        ) {}
    }
}

fn start_inside(enter: &Enter) -> Result<ExitCode> {
    let (program, arguments) = enter.argv.split_first().context("no program")?;
    let mut command = Process::new(program);
    command.args(arguments);
    if let Some(log) = &enter.detach {
        // Opened before the mount namespace is entered: it is a file of the machine's.
        let log = append_to(log)?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        setsid().context("starting a session")?;
    }
    // Before the node's mount namespace, in which the machine's hierarchies cannot be reached.
    cgroup::join(&enter.cgroup)?;
    if let Some(netns) = &enter.netns {
        netns::enter(netns)?;
    }
    if let Some(pid) = enter.node {
        enter_node(pid)?;
    }
    raise_file_limit()?;
    let mut child = command
        .spawn()
        .with_context(|| format!("starting {}", program.to_string_lossy()))?;
    if enter.detach.is_some() {
        // In a node too this is the id in the machine's process namespace, which is ours.
        println!("{}", child.id());
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    let code = status.code().or(status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(u8::try_from(code.unwrap_or(1)).unwrap_or(1)))
}

fn enter_node(pid: u32) -> Result<()> {
    let open = |&(name, kind): &(&str, CloneFlags)| {
        let path = format!("/proc/{pid}/ns/{name}");
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        Ok((file, kind))
    };
    let namespaces: Vec<(File, CloneFlags)> =
        NODE_NAMESPACES.iter().map(open).collect::<Result<_>>()?;
    for (file, kind) in &namespaces {
        setns(file, *kind).with_context(|| format!("entering a namespace of node {pid}"))?;
    }
    std::env::set_current_dir("/").context("going to the node's root")
}

//! What the helper binary `karst-lab-run` does: steps that need a process of their own.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::setsid;

use crate::helper::{Helper, guard, raise_file_limit};
use crate::lab::Lab;
use crate::netns;

/// The lab's helper program.
pub const HELPER: Helper = Helper::new("karst-lab-run");

/// A kubelet's default probe time limit.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// What the helper can be asked to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Enter a place in the lab and become a program there.
    Enter(Enter),
    /// Open a TCP connection (and ask for an HTTP page) from a place in the lab.
    Probe(Probe),
    /// Wait for the end of standard input, then tear the lab down.
    Guard {
        /// The lab's name.
        lab: String,
    },
}

/// Where to go.
#[derive(Debug, clap::Args)]
pub struct Place {
    /// The network namespace's file.
    #[arg(long)]
    netns: PathBuf,
    /// The cgroup's directory.
    #[arg(long)]
    cgroup: PathBuf,
}

/// Arguments of `enter`.
#[derive(Debug, clap::Args)]
pub struct Enter {
    #[command(flatten)]
    place: Place,
    /// The working directory.
    #[arg(long)]
    directory: PathBuf,
    /// A directory with `hosts` and `resolv.conf` to show in `/etc`.
    #[arg(long)]
    name_files: Option<PathBuf>,
    /// Start a session, so that the program outlives the terminal.
    #[arg(long)]
    session: bool,
    /// The program and its arguments.
    #[arg(last = true, required = true)]
    argv: Vec<OsString>,
}

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
pub struct Probe {
    #[command(flatten)]
    place: Place,
    /// Where to connect.
    address: SocketAddr,
    /// The HTTP path to ask for; a status below 400 passes. Without it a connection passes.
    #[arg(long)]
    http_path: Option<String>,
}

/// Does it.
pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Enter(enter) => become_program(&enter),
        Command::Probe(probe) => {
            join(&probe.place)?;
            Ok(probe_tcp(&probe).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS))
        }
        Command::Guard { lab } => guard(|| Lab::tear_down(&lab)),
    }
}

fn join(place: &Place) -> Result<()> {
    let procs = place.cgroup.join("cgroup.procs");
    fs::write(&procs, "0").with_context(|| format!("joining {}", procs.display()))?;
    netns::enter(&place.netns)
}

fn become_program(enter: &Enter) -> Result<ExitCode> {
    join(&enter.place)?;
    if let Some(files) = &enter.name_files {
        show_name_files(files)?;
    }
    raise_file_limit()?;
    if enter.session {
        setsid().context("starting a session")?;
    }
    let (program, arguments) = enter.argv.split_first().context("no program")?;
    let error = std::process::Command::new(program)
        .args(arguments)
        .current_dir(&enter.directory)
        .exec();
    Err(error).with_context(|| format!("starting {}", program.to_string_lossy()))
}

/// Puts the pod's own files over `/etc/hosts` and `/etc/resolv.conf`, for this process only.
fn show_name_files(files: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("making a mount namespace")?;
    let none = None::<&str>;
    // Unmounts elsewhere must still reach this namespace, or it would keep removed network
    // namespaces alive.
    mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)
        .context("separating the mount namespace")?;
    for name in ["hosts", "resolv.conf"] {
        // A link is followed: the mount must cover what programs end up reading. Without a
        // file there is nothing to cover.
        let Ok(target) = fs::canonicalize(Path::new("/etc").join(name)) else {
            continue;
        };
        mount(
            Some(&files.join(name)),
            &target,
            none,
            MsFlags::MS_BIND,
            none,
        )
        .with_context(|| format!("covering {}", target.display()))?;
    }
    Ok(())
}

fn probe_tcp(probe: &Probe) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&probe.address, PROBE_LIMIT)?;
    let Some(path) = &probe.http_path else {
        return Ok(());
    };
    stream.set_read_timeout(Some(PROBE_LIMIT))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: kube-probe/lab\r\nConnection: close\r\n\r\n",
        probe.address
    )?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer)?;
    let status = std::str::from_utf8(&answer[9..])?.parse::<u16>()?;
    ensure!((200..400).contains(&status), "status {status}");
    Ok(())
}

//! Starting and ending the cluster's programs, and the record of them.

use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use karst_harness::files::{append_to, tail};
use karst_harness::host::SEARCH_PATH;
use karst_harness::lock::Lock;
use karst_harness::process::ProcessRecord;
use nix::sys::signal::Signal;

use crate::inside::HELPER;
use crate::network::CONTROL;
use crate::paths::Paths;
use crate::state::State;

/// What no program of the cluster may inherit from the machine.
const PASSED_ON: &[&str] = &["TERM", "LANG"];

/// A command with a clean environment in the control plane's network namespace or a node.
/// `detach`: the program outlives the caller, its output goes to its log, and the command prints
/// its process id.
pub fn inside(paths: &Paths, place: &str, detach: Option<&str>, argv: &[&str]) -> Result<Command> {
    let mut command = HELPER.command()?;
    command.arg("enter");
    if place == CONTROL {
        command.arg("--netns").arg(paths.netns_file(CONTROL));
    } else {
        let state = State::load(paths)?.context("there is no such cluster")?;
        let node = state
            .running(place)
            .with_context(|| format!("node {place} does not run"))?;
        command.args(["--node", &node.pid.to_string()]);
    }
    command.arg("--cgroup").arg(paths.cgroup().join(place));
    if let Some(name) = detach {
        command.arg("--detach").arg(paths.log(name));
    }
    command.arg("--").args(argv);
    command.env_clear().env("PATH", SEARCH_PATH);
    for key in PASSED_ON {
        command.envs(std::env::var_os(key).map(|value| (key, value)));
    }
    Ok(command)
}

/// Starts a program that runs on and enters it in the record under `name`.
pub fn start(paths: &Paths, place: &str, name: &str, argv: &[&str]) -> Result<()> {
    let mut command = inside(paths, place, Some(name), argv)?;
    record(paths, name, &mut command)
}

/// Runs a command that prints the id of a process that runs on, and enters that in the record.
pub fn record(paths: &Paths, name: &str, command: &mut Command) -> Result<()> {
    // A file and not a pipe: what runs on would keep a pipe open, and the reader waiting.
    let log = paths.log(name);
    let output = command
        .stdin(Stdio::null())
        .stderr(append_to(&log)?)
        .output()
        .with_context(|| format!("starting {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let pid: u32 = text
        .trim()
        .parse()
        .with_context(|| format!("starting {name}: {}", tail(&log)))?;
    let process =
        ProcessRecord::of(pid).with_context(|| format!("{name} ended at once:\n{}", tail(&log)))?;
    let _lock = RECORD.lock();
    let mut state = State::load(paths)?.context("the cluster has no record")?;
    state.processes.insert(name.to_owned(), process);
    state.save(paths)
}

/// Threads of one process that start several programs change one record; other processes are kept
/// out by the cluster's file lock.
static RECORD: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Ends the program called `name` and takes it from the record; fine if it does not run.
pub fn stop(paths: &Paths, name: &str, signal: Signal) -> Result<()> {
    let state = State::load(paths)?.context("there is no such cluster")?;
    let Some(process) = state.processes.get(name) else {
        return Ok(());
    };
    match signal {
        Signal::SIGKILL => process.kill()?,
        _ => process.stop()?,
    }
    let _lock = RECORD.lock();
    let mut state = State::load(paths)?.context("there is no such cluster")?;
    state.processes.remove(name);
    state.save(paths)
}

/// Removes everything that a cluster left on the machine, also one whose making failed halfway.
pub fn remove(paths: &Paths) -> Result<()> {
    let lock = Lock::take(paths.lock())?;
    if let Some(state) = State::load(paths)? {
        // A node's first process ends last and takes all of its node with it, so all may be killed
        // at once.
        for process in state.processes.values() {
            process.signal(Signal::SIGKILL)?;
        }
        for process in state.processes.values() {
            process.kill()?;
        }
    }
    // What was started and, because of a crash, never recorded.
    crate::cgroup::kill(&paths.cgroup())?;
    crate::network::remove(paths)?;
    crate::cgroup::remove(&paths.cgroup())?;
    match std::fs::remove_dir_all(paths.dir()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", paths.dir().display()));
        }
        _ => {}
    }
    lock.remove()
}

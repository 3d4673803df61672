//! Control groups: where processes live, and how they are ended. Who kills only by its own cgroup
//! can never hit a process that is not its own.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;

use crate::mounts::mounts;
use crate::paths::LABS_DIR;
use crate::wait::until;

/// A killed process needs moments to go; a minute means that it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// The root of the machine's cgroup2 hierarchy; where there is none, one of the lab's own.
pub(crate) fn root() -> Result<PathBuf> {
    if let Some(found) = mounts()?.into_iter().find(|m| m.kind == "cgroup2") {
        return Ok(found.target);
    }
    let target = Path::new(LABS_DIR).join("cgroup2");
    fs::create_dir_all(&target)?;
    mount(
        Some("cgroup2"),
        &target,
        Some("cgroup2"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting a cgroup2 hierarchy")?;
    Ok(target)
}

/// Makes a cgroup and those above it.
pub(crate) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making cgroup {}", path.display()))
}

/// The processes in a cgroup and below; none if it does not exist.
pub fn pids(path: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let own = match fs::read_to_string(path.join("cgroup.procs")) {
        Ok(own) => own,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(found),
        // The cgroup went away between opening and reading.
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENODEV as i32) => {
            return Ok(found);
        }
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    };
    // A process of another PID namespace reads as 0.
    found.extend(
        own.lines()
            .filter_map(|line| line.parse::<u32>().ok())
            .filter(|pid| *pid > 0),
    );
    for child in children(path)? {
        found.extend(pids(&child)?);
    }
    Ok(found)
}

/// Kills (SIGKILL) every process in a cgroup of the cgroup2 hierarchy (`path` is its directory) and
/// below, and waits for their end; fine if there is no such cgroup. Fails when one still runs after
/// a minute.
pub fn kill(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    until("killed processes to end", KILL_LIMIT, || {
        let left = pids(path)?;
        if left.is_empty() {
            return Ok(());
        }
        // cgroup.kill came with Linux 5.14; it also catches processes that fork meanwhile.
        if fs::write(path.join("cgroup.kill"), "1").is_err() {
            for pid in &left {
                let _ = signal(Pid::from_raw(i32::try_from(*pid)?), Signal::SIGKILL);
            }
        }
        ensure!(
            left.is_empty(),
            "still running in {}: {left:?}",
            path.display()
        );
        Ok(())
    })
}

/// Kills what is in a cgroup and below, and removes it with those below; fine if there is none.
pub fn remove(path: &Path) -> Result<()> {
    kill(path)?;
    until("a cgroup to be removable", KILL_LIMIT, || remove_tree(path))
}

fn remove_tree(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for child in children(path)? {
        remove_tree(&child)?;
    }
    fs::remove_dir(path).with_context(|| format!("removing cgroup {}", path.display()))
}

fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(path) else {
        return Ok(Vec::new());
    };
    Ok(entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect())
}

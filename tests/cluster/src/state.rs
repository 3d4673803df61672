//! The cluster's record: which processes it started. One JSON file, read and written under the
//! cluster's file lock, so that a cluster can be taken down after any crash, by process ids that
//! are certainly its own.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::paths::{CLUSTERS_DIR, Paths};

/// How long a program may take to end once it was told to, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A killed process needs moments to go; a minute means that it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// Everything a cluster remembers between commands.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct State {
    /// Its processes by name: `etcd`, `kube-apiserver`, ..., `node1` (that node's first process),
    /// `node1-kubelet`, ...
    pub processes: BTreeMap<String, ProcessRecord>,
    /// How many nodes it has.
    pub nodes: u8,
    /// The multi-call binary that it runs.
    pub kubernetes: PathBuf,
    /// Whether the API server writes an audit log.
    pub audit: bool,
}

impl State {
    /// Reads the record; none if there is no cluster.
    pub fn load(paths: &Paths) -> Result<Option<Self>> {
        let file = paths.state();
        let Ok(text) = fs::read_to_string(&file) else {
            return Ok(None);
        };
        let state = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a cluster's record", file.display()))?;
        Ok(Some(state))
    }

    /// Writes it so that a reader sees the old record or the new, never a part.
    pub fn save(&self, paths: &Paths) -> Result<()> {
        let file = paths.state();
        let temporary = file.with_extension("tmp");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("writing {}", temporary.display()))?;
        fs::rename(&temporary, &file).with_context(|| format!("writing {}", file.display()))
    }

    /// The process called `name`, if it runs.
    pub fn running(&self, name: &str) -> Option<ProcessRecord> {
        self.processes
            .get(name)
            .copied()
            .filter(|process| process.is_alive())
    }
}

/// A process id that cannot be mistaken for another process's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The process id, in the machine's process namespace.
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

    /// Sends it a signal, unless it has ended.
    pub fn signal(self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(i32::try_from(self.pid)?), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("signalling process {}", self.pid)),
        }
    }

    /// Asks it to end, and kills it if it does not in time.
    pub fn stop(self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(STOP_LIMIT).or_else(|_| self.kill())
    }

    /// Kills it and waits for its end.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait_end(KILL_LIMIT)
    }

    fn wait_end(self, limit: Duration) -> Result<()> {
        until("a process to end", limit, || {
            ensure!(!self.is_alive(), "process {} still runs", self.pid);
            Ok(())
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

/// Holding it keeps every other command that changes the cluster out.
#[derive(Debug)]
pub struct Lock {
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the cluster's lock.
    pub fn take(paths: &Paths) -> Result<Self> {
        fs::create_dir_all(CLUSTERS_DIR).with_context(|| format!("making {CLUSTERS_DIR}"))?;
        let path = paths.lock();
        loop {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .context("opening the cluster's lock")?;
            file.lock().context("taking the cluster's lock")?;
            // Whoever held it may have removed the file with the cluster: then this lock is on a
            // file that nobody else will find.
            let named = fs::metadata(&path).map(|named| named.ino()).ok();
            if named == Some(file.metadata()?.ino()) {
                return Ok(Self { _file: file, path });
            }
        }
    }

    /// Gives the lock back and removes its file: the end of a cluster.
    pub fn remove(self) -> Result<()> {
        fs::remove_file(&self.path).context("removing the cluster's lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reused_pid_is_not_the_process() {
        let me = ProcessRecord::of(std::process::id()).unwrap();
        assert!(me.is_alive());
        let other = ProcessRecord {
            start_time: me.start_time + 1,
            ..me
        };
        assert!(!other.is_alive());
        // Would end this test, were it not for the start time.
        other.kill().unwrap();
    }

    #[test]
    fn a_zombie_has_ended() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let record = ProcessRecord::of(child.id()).unwrap();
        record.stop().unwrap();
        assert!(!record.is_alive());
        child.wait().unwrap();
    }
}

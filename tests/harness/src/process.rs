//! Processes that are remembered from one command to the next, by something that stays certain.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::wait::until;

/// How long a program may take to end once it was told to, before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A killed process needs moments to go; a minute means that it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(60);

/// A process id that cannot be mistaken for another process's later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The process id, in the machine's process namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start_time: u64,
}

impl ProcessRecord {
    /// The record of a running process; fails if there is none of this id.
    pub fn of(pid: u32) -> Result<Self> {
        let stat = Stat::of(pid).with_context(|| format!("process {pid} is gone"))?;
        Ok(Self {
            pid,
            start_time: stat.start_time,
        })
    }

    /// Whether it still runs; a zombie does not.
    pub fn is_alive(self) -> bool {
        Stat::of(self.pid)
            .is_some_and(|stat| stat.start_time == self.start_time && !stat.has_ended())
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

    /// Asks it to end, and kills it if it does not within ten seconds.
    pub fn stop(self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.wait_end(STOP_LIMIT).or_else(|_| self.kill())
    }

    /// Kills it and waits for its end; fails if it hangs in the kernel for a minute.
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

/// What `/proc/PID/stat` says (`proc_pid_stat(5)`).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    threads: u64,
    start_time: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is the program's name in brackets and may itself hold blanks.
        let rest: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
        let number = |field: usize| rest.get(field - 3)?.parse().ok();
        Some(Self {
            state: rest.first()?.chars().next()?,
            threads: number(20)?,
            start_time: number(22)?,
        })
    }

    /// The first thread may be a zombie while others are still on their way out, and with them the
    /// files of the process: a port that it listens on is not free before.
    fn has_ended(&self) -> bool {
        self.state == 'X' || (self.state == 'Z' && self.threads <= 1)
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
    fn a_process_ends_with_its_last_thread() {
        let stat = |state: char, threads: u32| {
            let text = format!(
                "17 (a) b) {state} 1 17 17 0 -1 4194560 5 0 0 0 1 2 0 0 20 0 {threads} 0 4711 8 9"
            );
            Stat::parse(&text).unwrap()
        };
        assert_eq!(stat('S', 3).start_time, 4711);
        assert!(!stat('S', 3).has_ended());
        assert!(!stat('Z', 3).has_ended(), "its first thread only");
        assert!(stat('Z', 1).has_ended());
        assert!(stat('X', 1).has_ended());
        assert_eq!(Stat::parse("17 (a) S 1"), None);
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

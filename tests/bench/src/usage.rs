//! CPU time of everything that takes part in a measurement: agents, applications, another proxy, and the kernel's
//! softirq.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};
use serde::Serialize;

use crate::{
    process::cpu_us,
    stage::{Stage, Way},
};

/// CPU time in microseconds: since the start of each, or per unit of what was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Usage {
    /// Of each node's agent, in the order of the nodes.
    pub agents_us: Vec<f64>,
    /// Of the client's pod: the program that makes the load.
    pub client_us: f64,
    /// Of the server's pod.
    pub server_us: f64,
    /// Of what runs on the nodes in the place of our agents, all nodes together.
    pub peer_us: f64,
    /// Of softirq on all CPUs. The kernel counts it in ticks, of which one is 10 ms here, and partly to the processes
    /// that it interrupts.
    pub softirq_us: f64,
}

impl Usage {
    /// As it is now, where `way` says whose pods are looked at.
    pub fn now(stage: &Stage, way: Way) -> Result<Self> {
        let pair = stage.pair(way)?;
        let mut agents_us = Vec::new();
        for pid in stage.agents()? {
            agents_us.push(cpu_us(pid)?);
        }
        let mut peer_us = 0.0;
        for cgroup in &stage.peer_cgroups {
            peer_us += cgroup_us(cgroup)?;
        }
        Ok(Self {
            agents_us,
            client_us: cgroup_us(&pair.client_cgroup)?,
            server_us: cgroup_us(&pair.server_cgroup)?,
            peer_us,
            softirq_us: softirq_us()?,
        })
    }

    /// What was used since `before`, for each of so many units.
    pub fn since(&self, before: &Self, units: f64) -> Self {
        let per = |now: f64, before: f64| (now - before) / units;
        Self {
            agents_us: self
                .agents_us
                .iter()
                .zip(&before.agents_us)
                .map(|(now, before)| per(*now, *before))
                .collect(),
            client_us: per(self.client_us, before.client_us),
            server_us: per(self.server_us, before.server_us),
            peer_us: per(self.peer_us, before.peer_us),
            softirq_us: per(self.softirq_us, before.softirq_us),
        }
    }

    /// All agents together.
    pub fn agents(&self) -> f64 {
        self.agents_us.iter().sum()
    }
}

/// CPU time of a cgroup's processes, also of those that have ended, user and system, in microseconds.
fn cgroup_us(cgroup: &Path) -> Result<f64> {
    let path = cgroup.join("cpu.stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    read_cgroup(&stat).with_context(|| format!("{} has no usage_usec", path.display()))
}

fn read_cgroup(stat: &str) -> Option<f64> {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "));
    line?.trim().parse().ok()
}

/// CPU time of softirq so far, on all CPUs, in microseconds.
fn softirq_us() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("reading /proc/stat")?;
    let ticks = read_softirq(&stat).context("/proc/stat does not say softirq")?;
    let hertz = sysconf(SysconfVar::CLK_TCK)
        .context("asking for the length of a tick")?
        .context("the system does not say the length of a tick")?;
    Ok(ticks * 1e6 / hertz as f64)
}

/// The seventh number of the line of all CPUs, in ticks (proc(5)).
fn read_softirq(stat: &str) -> Option<f64> {
    let all = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    all.split_whitespace().nth(6)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_says() {
        let stat = "cpu  1 2 3 4 5 6 77 8 9 10\ncpu0 1 2 3 4 5 6 70 8 9 10\n";
        assert_eq!(read_softirq(stat), Some(77.0));
        assert_eq!(read_softirq("cpu 1 2"), None);
        assert_eq!(
            read_cgroup("usage_usec 12\nuser_usec 4\nsystem_usec 8\n"),
            Some(12.0)
        );
        assert_eq!(read_cgroup("user_usec 4\n"), None);
        assert!(softirq_us().unwrap() >= 0.0);
    }

    #[test]
    fn what_was_used_is_divided_by_units() {
        let before = Usage {
            agents_us: vec![10.0, 20.0],
            client_us: 1.0,
            softirq_us: 5.0,
            ..Usage::default()
        };
        let now = Usage {
            agents_us: vec![30.0, 60.0],
            client_us: 3.0,
            softirq_us: 5.0,
            ..Usage::default()
        };
        let used = now.since(&before, 2.0);
        assert_eq!(used.agents_us, [10.0, 20.0]);
        assert_eq!(used.agents(), 30.0);
        assert_eq!((used.client_us, used.softirq_us), (1.0, 0.0));
    }
}

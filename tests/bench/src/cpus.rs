//! Which CPU runs what. Processes that move between CPUs and wait for each other there use more or less CPU for the same
//! work from one second to the next; one that has a CPU for itself uses the same.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The CPUs that this process may use: one for what is measured, the others for all else.
pub struct Cpus {
    measured: CpuSet,
    others: CpuSet,
}

impl Cpus {
    /// Leaves the last CPU, and starts all that is started from now on on the others.
    ///
    /// # Errors
    /// There is one CPU only.
    pub fn split() -> Result<Self> {
        let here = Pid::from_raw(0);
        let mut others = sched_getaffinity(here).context("reading which CPUs may be used")?;
        let all = numbers()?;
        ensure!(
            all.len() > 1,
            "what is measured needs a CPU for itself, and there is one in all"
        );
        let mut measured = CpuSet::new();
        if let Some(last) = all.last() {
            measured.set(*last)?;
            others.unset(*last)?;
        }
        sched_setaffinity(here, &others).context("leaving a CPU to what is measured")?;
        Ok(Self { measured, others })
    }

    /// Gives a process the CPU until the result is dropped.
    pub fn give(&self, pid: u32) -> Result<Given<'_>> {
        move_to(pid, &self.measured)?;
        Ok(Given { cpus: self, pid })
    }
}

/// A process that has a CPU for itself.
pub struct Given<'a> {
    cpus: &'a Cpus,
    pid: u32,
}

impl Drop for Given<'_> {
    fn drop(&mut self) {
        // It has ended, then.
        let _ = move_to(self.pid, &self.cpus.others);
    }
}

/// The CPUs of the machine that this process may use, in two halves.
pub struct Halves {
    /// The clients', and this process's, so that what it starts is there.
    pub first: Half,
    /// The servers'.
    pub second: Half,
}

/// Some CPUs.
pub struct Half(CpuSet);

impl Halves {
    /// Halves of as many CPUs each, the first with one more if their number is odd.
    ///
    /// # Errors
    /// There is one CPU only.
    pub fn of_machine() -> Result<Self> {
        let all = numbers()?;
        ensure!(
            all.len() > 1,
            "two sides need a CPU each, and there is one in all; --pin none pins nothing"
        );
        let (first, second) = all.split_at(all.len().div_ceil(2));
        Ok(Self {
            first: Half::of(first)?,
            second: Half::of(second)?,
        })
    }

    /// Starts all that this thread starts from now on on the first half.
    pub fn begin(&self) -> Result<()> {
        sched_setaffinity(Pid::from_raw(0), &self.first.0).context("moving to the first half")
    }
}

impl Half {
    fn of(numbers: &[usize]) -> Result<Self> {
        let mut set = CpuSet::new();
        for cpu in numbers {
            set.set(*cpu)?;
        }
        Ok(Self(set))
    }

    /// Moves a process here, with all its threads and what it starts from now on.
    pub fn take(&self, pid: u32) -> Result<()> {
        move_to(pid, &self.0)
    }
}

/// The CPUs that this thread may use.
fn numbers() -> Result<Vec<usize>> {
    let here = sched_getaffinity(Pid::from_raw(0)).context("reading which CPUs may be used")?;
    let mut all = Vec::new();
    for cpu in 0..CpuSet::count() {
        if here.is_set(cpu)? {
            all.push(cpu);
        }
    }
    Ok(all)
}

/// Moves all threads of a process.
fn move_to(pid: u32, cpus: &CpuSet) -> Result<()> {
    let tasks = format!("/proc/{pid}/task");
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        let name = task?.file_name();
        let thread = name.to_str().and_then(|name| name.parse().ok());
        let thread = thread.with_context(|| format!("{tasks} has {}", name.display()))?;
        match sched_setaffinity(Pid::from_raw(thread), cpus) {
            // It has ended meanwhile.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("moving thread {thread} of process {pid}"));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::sched_getaffinity;
    use nix::unistd::Pid;

    use super::{Cpus, Halves, numbers};

    #[test]
    fn halves_have_all_cpus_between_them() {
        let all = numbers().unwrap();
        let halves = Halves::of_machine().unwrap();
        for cpu in all {
            let first = halves.first.0.is_set(cpu).unwrap();
            assert_ne!(first, halves.second.0.is_set(cpu).unwrap());
        }
        // The affinity of a thread is its own, so other tests go on everywhere.
        halves.begin().unwrap();
        assert_eq!(sched_getaffinity(Pid::from_raw(0)).unwrap(), halves.first.0);
    }

    #[test]
    fn what_is_measured_has_a_cpu_for_itself() {
        // The affinity of a thread is its own, so other tests go on everywhere.
        let before = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let cpus = Cpus::split().unwrap();
        let here = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let mut other = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(other.id()).unwrap());
        let started = sched_getaffinity(pid).unwrap();
        let given = cpus.give(other.id()).unwrap();
        let alone = sched_getaffinity(pid).unwrap();
        drop(given);
        let again = sched_getaffinity(pid).unwrap();
        other.kill().unwrap();
        other.wait().unwrap();
        assert_ne!(here, before);
        assert_eq!((started, again), (here, here));
        assert_eq!(alone, cpus.measured);
    }
}

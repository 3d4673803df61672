//! What a process has used.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::{time::clock_getcpuclockid, unistd::Pid};

/// CPU time of a process so far, user and system, of all its threads, in microseconds. It is the process's CPU clock,
/// which the kernel keeps in nanoseconds; a thread that runs at the moment may be up to a tick (4 or 10 ms) ahead of it.
pub fn cpu_us(pid: u32) -> Result<f64> {
    let raw = i32::try_from(pid).with_context(|| format!("{pid} is no process id"))?;
    // Zero would be this process.
    ensure!(raw > 0, "{pid} is no process id");
    let now = clock_getcpuclockid(Pid::from_raw(raw)).and_then(|clock| clock.now());
    let now = now.with_context(|| format!("reading the CPU clock of process {pid}"))?;
    Ok(now.tv_sec() as f64 * 1e6 + now.tv_nsec() as f64 / 1e3)
}

/// Anonymous memory of a process, in bytes: what it allocated, without the program's own pages.
pub fn anonymous_bytes(pid: u32) -> Result<u64> {
    memory(pid, "Anonymous:")
}

/// Memory of a process that is in RAM, in bytes, the program's own pages too.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    memory(pid, "Rss:")
}

fn memory(pid: u32, label: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let smaps = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    read_memory(&smaps, label).with_context(|| format!("{path} has no line {label}"))
}

fn read_memory(smaps: &str, label: &str) -> Option<u64> {
    let line = smaps.lines().find_map(|line| line.strip_prefix(label))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_memory_by_its_label() {
        let smaps = "Rss: 9 kB\nAnonymous:          2700 kB\nAnonHugePages: 1 kB\n";
        assert_eq!(read_memory(smaps, "Anonymous:"), Some(2700 * 1024));
        assert_eq!(read_memory(smaps, "Rss:"), Some(9 * 1024));
        assert_eq!(read_memory("Rss: 9 kB\n", "Anonymous:"), None);
    }

    #[test]
    fn this_process_has_used_something() {
        let me = std::process::id();
        assert!(anonymous_bytes(me).unwrap() > 0);
        assert!(resident_bytes(me).unwrap() >= anonymous_bytes(me).unwrap());
        assert!(cpu_us(u32::MAX).is_err() && cpu_us(0).is_err());
    }

    #[test]
    fn the_cpu_clock_counts_work_and_no_waiting() {
        let me = std::process::id();
        let before = cpu_us(me).unwrap();
        let (begun, mut sum) = (std::time::Instant::now(), 0_u64);
        while cpu_us(me).unwrap() < before + 20_000.0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
            assert!(begun.elapsed().as_secs() < 60, "work does not count");
        }
        let mut idle = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = idle.id();
        let used = cpu_us(pid);
        idle.kill().unwrap();
        idle.wait().unwrap();
        let used = used.unwrap();
        assert!(
            used > 0.0 && used < 200_000.0,
            "{used} us of a sleeping process"
        );
    }
}

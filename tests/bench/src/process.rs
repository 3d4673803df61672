//! What a process has used, from `/proc`.

use std::fs;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// CPU time of a process so far, user and system, in microseconds. The kernel counts it in ticks of
/// usually 10 ms.
pub fn cpu_us(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let ticks = cpu_ticks(&stat).with_context(|| format!("{path} has no CPU times"))?;
    let per_second = sysconf(SysconfVar::CLK_TCK)
        .context("asking for the clock")?
        .context("no clock")?;
    Ok(ticks as f64 * 1e6 / per_second as f64)
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

/// `utime` and `stime`, fields 14 and 15 (proc(5)); the name in field 2 may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
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
    fn reads_cpu_ticks_past_a_name_with_brackets() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 100 0 0 0 12 34 0 0 20 0 1 0 5 1 1";
        assert_eq!(cpu_ticks(stat), Some(46));
        assert_eq!(cpu_ticks("7 (a) S"), None);
    }

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
        assert!(cpu_us(me).unwrap() >= 0.0);
        assert!(cpu_us(u32::MAX).is_err());
    }
}

//! The two kernel file systems that the mesh works with: bpffs for pins, cgroup2 to attach to.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::workspace::{require_root, say, step};

/// Where the agent keeps its pinned maps and links.
const BPFFS: &str = "/sys/fs/bpf";

/// Where cgroup2 is mounted when the machine has no cgroup2 anywhere.
const PRIVATE_CGROUP2: &str = "/run/karst/cgroup2";

/// Mounts what is not mounted.
pub fn ensure(found: &mut Vec<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    if !mounts(&table).any(|(point, kind)| kind == "bpf" && point == Path::new(BPFFS)) {
        mount("bpf", Path::new(BPFFS))?;
    }
    found.push(format!("bpffs at {BPFFS}"));
    let cgroup2 = match mounts(&table).find(|(_, kind)| *kind == "cgroup2") {
        Some((point, _)) => point,
        None => {
            mount("cgroup2", Path::new(PRIVATE_CGROUP2))?;
            PathBuf::from(PRIVATE_CGROUP2)
        }
    };
    found.push(format!("cgroup2 at {}", cgroup2.display()));
    Ok(())
}

fn mount(kind: &str, point: &Path) -> Result<()> {
    require_root("setup", &format!("mounts {kind} at {}", point.display()))?;
    say(&format!(
        "setup: as root, mounting {kind} at {}",
        point.display()
    ));
    fs::create_dir_all(point).with_context(|| format!("creating {}", point.display()))?;
    step(
        &format!("mount {kind}"),
        Command::new("mount").args(["-t", kind, "none"]).arg(point),
    )
}

/// The mount points and file system types of a `mountinfo` table: the fifth field, and the first
/// after the lone hyphen that ends the optional fields (proc(5)).
fn mounts(table: &str) -> impl Iterator<Item = (PathBuf, &str)> {
    table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?;
        let kind = after.split(' ').next()?;
        Some((PathBuf::from(point), kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_points_and_types_past_optional_fields() {
        let table = "36 35 98:0 / /sys/fs/bpf rw,nosuid shared:1 master:2 - bpf none rw\n\
                     40 35 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let read: Vec<_> = mounts(table).collect();
        assert_eq!(
            read,
            [
                (PathBuf::from("/sys/fs/bpf"), "bpf"),
                (PathBuf::from("/sys/fs/cgroup/unified"), "cgroup2"),
            ]
        );
    }

    #[test]
    fn a_line_it_does_not_understand_is_passed_over() {
        assert_eq!(mounts("nonsense\n1 2 - \n").count(), 0);
    }
}

//! What is mounted on the machine.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// The file system's own options, as the kernel writes them: `rw,cpu`.
    pub options: String,
}

/// This process's mounts, in the kernel's order; fails where there is no `/proc`.
pub fn mounts() -> Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    Ok(table.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(4);
    let mut right = right.split(' ');
    Some(Mount {
        target: PathBuf::from(left.next()?),
        kind: right.next()?.to_owned(),
        options: right.nth(1)?.to_owned(),
    })
}

/// Mounts the BPF file system where it belongs, unless it is there.
pub(crate) fn ensure_bpffs() -> Result<()> {
    let target = Path::new("/sys/fs/bpf");
    if mounts()?
        .iter()
        .any(|m| m.target == target && m.kind == "bpf")
    {
        return Ok(());
    }
    mount(
        Some("bpf"),
        target,
        Some("bpf"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting the BPF file system at /sys/fs/bpf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_mount_with_and_without_optional_fields() {
        let cgroup = "36 29 0:31 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu";
        let expected = Mount {
            target: "/sys/fs/cgroup/cpu".into(),
            kind: "cgroup".into(),
            options: "rw,cpu".into(),
        };
        assert_eq!(parse_mount(cgroup), Some(expected));
        let plain = parse_mount("21 1 0:20 / /proc rw - proc proc rw").unwrap();
        assert_eq!(
            (plain.kind.as_str(), plain.options.as_str()),
            ("proc", "rw")
        );
    }
}

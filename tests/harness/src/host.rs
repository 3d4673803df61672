//! What the lab asks of the machine: root, a few programs, mounts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::unistd::Uid;

/// Fails unless the process may make namespaces, cgroups and mounts.
pub fn require_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "the lab makes network namespaces, cgroups and BPF programs: run it as root"
    );
    Ok(())
}

/// Runs a command to its end; a failure carries what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip -batch` with `script`, in a named network namespace or this process's.
pub fn ip_batch(netns: Option<&str>, script: &str) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip (Debian package iproute2)")?;
    let mut stdin = child.stdin.take().context("ip has no standard input")?;
    stdin.write_all(script.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "ip -batch in {}: {}\n{script}",
        netns.unwrap_or("the root namespace"),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Mounts the BPF file system where it belongs, unless it is there.
pub fn ensure_bpffs() -> Result<()> {
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

/// One line of `/proc/self/mountinfo`.
pub struct Mount {
    /// Where.
    pub target: PathBuf,
    /// The file system's type.
    pub kind: String,
}

/// This process's mounts.
pub fn mounts() -> Result<Vec<Mount>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("reading the mount table")?;
    Ok(table.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(4);
    Some(Mount {
        target: PathBuf::from(left.next()?),
        kind: right.split(' ').next()?.to_owned(),
    })
}

/// Writes a file so that a reader sees the old content or the new, never a part.
pub fn write_atomic(path: &Path, content: &[u8]) -> Result<()> {
    let name = path
        .file_name()
        .and_then(|n| n.to_str())
        .context("a file needs a name")?;
    let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
    fs::write(&temporary, content).with_context(|| format!("writing {}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("renaming to {}", path.display()))
}

/// The directory with Karst's binaries: `KARST_BIN_DIR`, or the nearest directory above this
/// executable that holds `karst-lab-run`.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KARST_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let executable = std::env::current_exe().context("finding this executable")?;
    for dir in executable.ancestors().skip(1).take(3) {
        if dir.join("karst-lab-run").is_file() {
            return Ok(dir.to_owned());
        }
    }
    bail!(
        "karst-lab-run is not beside {}: build the binaries (`cargo build --release`) or set KARST_BIN_DIR",
        executable.display()
    )
}

/// The path of one of Karst's binaries; an error names the package that makes it.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: build it with `cargo build --release`",
        path.display()
    );
    Ok(path)
}

/// The last lines of a log file.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

//! What the cluster asks of the machine: root, a few programs, mounts.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;

/// The crate's helper program.
const HELPER: &str = "karst-cluster-run";

/// Where Debian keeps daemons and programs; nodes and control plane have no other `PATH`.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fails unless the process may make namespaces, cgroups and mounts.
pub fn require_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "the cluster makes namespaces, cgroups and mounts: run it as root"
    );
    Ok(())
}

/// Runs a command to its end; a failure carries what it wrote to standard error.
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, b"")
}

/// The same, with `input` on its standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().context("a program without input")?;
    let written = std::thread::scope(|scope| {
        // A thread, because the program may fill its output before it has read its input.
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        (writer.join(), output)
    });
    let output = written.1?;
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
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]);
    run_with_input(&mut command, script.as_bytes())
        .with_context(|| format!("with this script:\n{script}"))
        .map(drop)
}

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where.
    pub target: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// The file system's own options.
    pub options: String,
}

/// This process's mounts.
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

/// The folder with Karst's binaries: `KARST_BIN_DIR`, or the nearest folder above this executable
/// that holds this crate's helper.
pub fn bin_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("KARST_BIN_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let executable = std::env::current_exe().context("finding this executable")?;
    for dir in executable.ancestors().skip(1).take(3) {
        if dir.join(HELPER).is_file() {
            return Ok(dir.to_owned());
        }
    }
    bail!(
        "{HELPER} is not beside {}: build the binaries (`cargo build --release`) or set KARST_BIN_DIR",
        executable.display()
    )
}

/// The path of one of Karst's binaries.
pub fn binary(name: &str) -> Result<PathBuf> {
    let path = bin_dir()?.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: build it with `cargo build --release`",
        path.display()
    );
    Ok(path)
}

/// This crate's helper, to be given arguments.
pub fn helper() -> Result<Command> {
    Ok(Command::new(binary(HELPER)?))
}

/// The program called `name`, where daemons and programs are.
pub fn find_program(name: &str) -> Result<PathBuf> {
    SEARCH_PATH
        .split(':')
        .map(|dir| Path::new(dir).join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("{name} is not on this machine; `cargo xtask setup` installs what is missing")
        })
}

/// The last lines of a log file.
pub fn tail(log: &Path) -> String {
    const LINES: usize = 15;
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}

/// Writes a file and the folders above it.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
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

    #[test]
    fn a_failure_tells_what_the_program_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "cat >&2; exit 3"]);
        let error = run_with_input(&mut command, b"why")
            .unwrap_err()
            .to_string();
        assert!(error.contains("why") && error.contains("3"), "{error}");
    }
}

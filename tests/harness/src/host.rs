//! Running the machine's programs.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use nix::unistd::Uid;

/// Where Debian keeps daemons and programs: the `PATH` of what must not see the caller's.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Fails unless the process may make namespaces, cgroups and mounts.
pub(crate) fn require_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "the lab makes network namespaces, cgroups and BPF programs: run it as root"
    );
    Ok(())
}

/// Runs a command to its end and gives its standard output; a failure, also a status other than 0,
/// carries what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    what_it_said(command, &output)
}

/// The same, with `input` on its standard input. A program may end without having read all of it.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Result<String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {command:?}"))?;
    let mut stdin = child.stdin.take().context("a program without input")?;
    let output = std::thread::scope(|scope| {
        // A thread, because the program may fill its output before it has read its input. That it
        // did not read all of it is for its status to tell.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output()
    })?;
    what_it_said(command, &output)
}

fn what_it_said(command: &Command, output: &Output) -> Result<String> {
    ensure!(
        output.status.success(),
        "{command:?}: {}: {} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        String::from_utf8_lossy(&output.stdout).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `ip -batch` with `script`, in a named network namespace or this process's; an error
/// carries the script.
pub fn ip_batch(netns: Option<&str>, script: &str) -> Result<()> {
    if script.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]);
    run_with_input(&mut command, script.as_bytes())
        .with_context(|| format!("ip (Debian package iproute2) with this script:\n{script}"))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

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

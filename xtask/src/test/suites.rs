//! Finds the test programs of the workspace and the order to run them in.

use std::{
    io::BufReader,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use cargo_metadata::Message;

use crate::workspace::{Workspace, say, shown};

/// Packages whose tests share kernel state or measure it, in the order in which they run, after all
/// others, with the number of their tests that may run at a time.
const PRIVILEGED: &[(&str, usize)] = &[
    ("karst-bpf-tests", 1),
    ("karst-harness", 1),
    ("karst-lab-tests", 2),
    ("karst-cluster", 2),
];

/// One test program.
#[derive(Debug)]
pub struct Suite {
    /// The package it tests.
    pub package: String,
    target: String,
    folder: PathBuf,
    executable: PathBuf,
}

impl Suite {
    /// Package and target.
    pub fn name(&self) -> String {
        if self.package == self.target {
            self.package.clone()
        } else {
            format!("{} {}", self.package, self.target)
        }
    }

    /// The program as `cargo test` would start it; `binaries` is where the lab finds Karst's own.
    pub fn command(&self, binaries: &Path, filter: Option<&str>) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("KARST_BIN_DIR", binaries)
            .args(filter);
        if let Some((_, threads)) = PRIVILEGED
            .iter()
            .find(|(package, _)| *package == self.package)
        {
            command.arg(format!("--test-threads={threads}"));
        }
        command
    }

    /// Where in the order it runs: unprivileged ones first, by name.
    fn rank(&self) -> (usize, &str, &str) {
        let rank = PRIVILEGED
            .iter()
            .position(|(package, _)| *package == self.package);
        (
            rank.map_or(0, |position| position + 1),
            &self.package,
            &self.target,
        )
    }
}

/// Builds every test program of the default members with one command and returns them in order.
pub fn build(workspace: &Workspace) -> Result<Vec<Suite>> {
    say("build all tests");
    let mut command = workspace.cargo();
    command
        .args([
            "test",
            "--release",
            "--no-run",
            "--message-format=json-render-diagnostics",
        ])
        .stdout(Stdio::piped());
    let mut child = command.spawn().context("starting cargo")?;
    let stdout = child.stdout.take().context("cargo has no output to read")?;
    let mut suites = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) = message.context("reading what cargo says")?
            && artifact.profile.test
            && let Some(executable) = artifact.executable
        {
            let folder = artifact
                .manifest_path
                .parent()
                .context("a manifest without a folder")?;
            suites.push(Suite {
                package: package_name(&artifact.manifest_path)?,
                target: artifact.target.name,
                folder: folder.into(),
                executable: executable.into(),
            });
        }
    }
    if !child.wait().context("waiting for cargo")?.success() {
        bail!("the tests do not build: {}", shown(&command));
    }
    suites.sort_by(|a, b| a.rank().cmp(&b.rank()));
    Ok(suites)
}

/// The `name` of the package in a manifest. Cargo's messages carry it only inside an opaque id.
fn package_name(manifest: &cargo_metadata::camino::Utf8Path) -> Result<String> {
    let text = std::fs::read_to_string(manifest).with_context(|| format!("reading {manifest}"))?;
    name_in(&text).with_context(|| format!("{manifest} names no package"))
}

fn name_in(manifest: &str) -> Option<String> {
    let line = manifest
        .lines()
        .find(|line| line.trim_start().starts_with("name"))?;
    Some(line.split('"').nth(1)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(package: &str, target: &str) -> Suite {
        Suite {
            package: package.into(),
            target: target.into(),
            folder: "/".into(),
            executable: "/bin/true".into(),
        }
    }

    #[test]
    fn privileged_suites_come_last_in_their_order() {
        let mut suites = [
            suite("karst-lab-tests", "capture"),
            suite("karst-tunnel", "karst_tunnel"),
            suite("karst-bpf-tests", "load"),
            suite("karst-core", "karst_core"),
        ];
        suites.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let order: Vec<_> = suites.iter().map(|suite| suite.package.as_str()).collect();
        assert_eq!(
            order,
            [
                "karst-core",
                "karst-tunnel",
                "karst-bpf-tests",
                "karst-lab-tests"
            ]
        );
    }

    #[test]
    fn tests_that_share_kernel_state_run_one_at_a_time() {
        let binaries = Path::new("/bin");
        let arguments = |package| shown(&suite(package, "t").command(binaries, Some("name")));
        assert_eq!(
            arguments("karst-bpf-tests"),
            "/bin/true name --test-threads=1"
        );
        assert_eq!(arguments("karst-core"), "/bin/true name");
    }

    #[test]
    fn reads_the_package_name() {
        assert_eq!(
            name_in("[package]\nname = \"karst-core\"\n").as_deref(),
            Some("karst-core")
        );
        assert_eq!(name_in("[package]\n"), None);
    }
}

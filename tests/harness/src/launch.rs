//! Starting a program somewhere in the lab. The way in is the helper binary `karst-lab-run`,
//! which joins the namespaces and the cgroup and then becomes the program: entering them
//! from a fresh process needs no `unsafe` and leaves no thread of the caller in there.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::files::append_to;
use crate::host::SEARCH_PATH;
use crate::inside::HELPER;
use crate::netns;

/// The variables of the caller's environment that programs in the lab may see.
const PASSED_ON: &[&str] = &[
    "TERM",
    "LANG",
    "RUST_LOG",
    "RUST_BACKTRACE",
    "LLVM_PROFILE_FILE",
    "COLORTERM",
];

/// Where and how to start a program.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The named network namespace to enter.
    pub netns: String,
    /// The cgroup to join.
    pub cgroup: PathBuf,
    /// What stands at `/etc/hosts` and `/etc/resolv.conf`, in a mount namespace of its own;
    /// none for the node's and lab's own programs, which see the machine's files.
    pub name_files: Option<PathBuf>,
    /// The working directory.
    pub directory: PathBuf,
    /// The environment, in addition to `PATH` and what the lab passes on.
    pub env: Vec<(String, String)>,
}

impl Launch {
    /// The command that runs `argv` there, in the caller's session and with its pipes.
    pub fn command<S: AsRef<OsStr>>(&self, argv: &[S]) -> Result<Command> {
        self.build(argv, &[])
    }

    /// Starts `argv` there in a session of its own, writing to the end of `log`: it outlives
    /// the caller.
    pub fn start<S: AsRef<OsStr>>(&self, argv: &[S], log: &Path) -> Result<Child> {
        let log = append_to(log)?;
        self.build(argv, &["--session"])?
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting karst-lab-run")
    }

    fn build<S: AsRef<OsStr>>(&self, argv: &[S], more: &[&str]) -> Result<Command> {
        let mut command = HELPER.command()?;
        command
            .arg("enter")
            .arg("--netns")
            .arg(netns::file(&self.netns));
        command
            .arg("--cgroup")
            .arg(&self.cgroup)
            .arg("--directory")
            .arg(&self.directory);
        if let Some(files) = &self.name_files {
            command.arg("--name-files").arg(files);
        }
        command.args(more).arg("--").args(argv);
        command.env_clear().env("PATH", search_path()?);
        command.envs(
            PASSED_ON
                .iter()
                .filter_map(|key| Some((key, std::env::var_os(key)?))),
        );
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        Ok(command)
    }
}

/// Karst's own binaries first, then where Debian keeps daemons and programs.
fn search_path() -> Result<String> {
    Ok(format!("{}:{SEARCH_PATH}", HELPER.bin_dir()?.display()))
}

//! Helper programs: steps that need a process of their own are done by a binary that is built
//! beside all others, and found there.

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// A crate's helper program. It also tells where all other binaries of Karst are, because they are
/// built into the folder in which it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Helper(&'static str);

#[derive(Parser)]
struct Cli<C: Subcommand> {
    #[command(subcommand)]
    command: C,
}

impl Helper {
    /// The helper whose binary has this name.
    pub const fn new(name: &'static str) -> Self {
        Self(name)
    }

    /// The folder with Karst's binaries: `KARST_BIN_DIR`, or the nearest folder above this
    /// executable that holds the helper; fails if none of the nearest three does.
    pub fn bin_dir(self) -> Result<PathBuf> {
        if let Some(dir) = std::env::var_os("KARST_BIN_DIR") {
            return Ok(PathBuf::from(dir));
        }
        let executable = std::env::current_exe().context("finding this executable")?;
        for dir in executable.ancestors().skip(1).take(3) {
            if dir.join(self.0).is_file() {
                return Ok(dir.to_owned());
            }
        }
        bail!(
            "{} is not beside {}: build the binaries (`cargo build --release`) or set KARST_BIN_DIR",
            self.0,
            executable.display()
        )
    }

    /// The path of one of Karst's binaries; fails, saying what to do, if it is not built.
    pub fn binary(self, name: &str) -> Result<PathBuf> {
        let path = self.bin_dir()?.join(name);
        ensure!(
            path.is_file(),
            "{} is missing: build it with `cargo build --release`",
            path.display()
        );
        Ok(path)
    }

    /// The helper itself, to be given arguments.
    pub fn command(self) -> Result<Command> {
        Ok(Command::new(self.binary(self.0)?))
    }

    /// The whole of the helper's `main`: reads the command `C` from its arguments and answers with
    /// what `run` makes of it. `about` tells people who find the helper what to use instead.
    pub fn main<C: Subcommand>(
        self,
        about: &'static str,
        run: impl FnOnce(C) -> Result<ExitCode>,
    ) -> ExitCode {
        let arguments = Cli::<C>::command().name(self.0).about(about).get_matches();
        let cli = Cli::<C>::from_arg_matches(&arguments).unwrap_or_else(|error| error.exit());
        run(cli.command).unwrap_or_else(|error| {
            eprintln!("{}: {error:#}", self.0);
            // What a shell answers when a program cannot be started.
            ExitCode::from(126)
        })
    }
}

/// Lets this process, and what it starts, open as many files as the machine allows: what a service
/// manager gives a daemon, and a shell does not.
pub fn raise_file_limit() -> Result<()> {
    let (_, most_files) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most_files, most_files).context("raising the limit of files")
}

/// What a guard does: it waits for the end of its standard input, a pipe whose other end the process
/// that it guards for holds, and then runs `tear_down`.
pub fn guard(tear_down: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
    // Input ends when the process that holds the pipe's other end does, however it ends.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    tear_down()?;
    Ok(ExitCode::SUCCESS)
}

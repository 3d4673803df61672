//! Where the workspace and its outputs are, and how a step of a command is run and reported.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context, Result, bail};

use crate::setup::{self, Need};

/// The checked-out workspace and the folder that cargo builds into.
pub struct Workspace {
    root: PathBuf,
    target: PathBuf,
}

impl Workspace {
    /// Finds the workspace from the manifest folder that cargo hands to the programs it runs, so
    /// that a moved clone works with a binary that was built before the move.
    pub fn locate() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("the xtask folder has no parent")?
            .to_path_buf();
        if !root.join("xtask/Cargo.toml").is_file() {
            bail!(
                "{} is not the Karst workspace; run `cargo xtask` inside a clone",
                root.display()
            );
        }
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir));
        Ok(Self { root, target })
    }

    /// The folder that holds the workspace's `Cargo.toml`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The folder cargo builds into (`CARGO_TARGET_DIR`, else `target`).
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Where the release binaries are: with this program, below the folder of the machine's target triple.
    pub fn release(&self) -> Result<PathBuf> {
        let program = env::current_exe().context("finding this program")?;
        let folder = program.parent().context("this program is in no folder")?;
        Ok(folder.to_path_buf())
    }

    /// Where `setup` installs developer tools: in the clone, so that they need not be built again
    /// for another `CARGO_TARGET_DIR`.
    pub fn tools(&self) -> PathBuf {
        self.root.join("target/tools")
    }

    /// The cargo that runs us, in the workspace's root.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.current_dir(&self.root);
        command
    }

    /// Another command of this same program.
    pub fn xtask(&self) -> Result<Command> {
        let mut command = Command::new(env::current_exe().context("finding this program")?);
        command.current_dir(&self.root);
        Ok(command)
    }

    /// Builds binaries as they ship, all if none is named, and gives their folder. Slower to build than those of
    /// [`Self::build_all`], which the tests use.
    pub fn build_dist<'a>(&self, binaries: impl IntoIterator<Item = &'a str>) -> Result<PathBuf> {
        setup::ensure(self, &[Need::Toolchain])?;
        step("build the eBPF programs", self.xtask()?.arg("build-ebpf"))?;
        let mut build = self.cargo();
        build.args(["build", "--profile", "dist"]);
        for binary in binaries {
            build.args(["--bin", binary]);
        }
        step("build what ships (minutes)", &mut build)?;
        Ok(self.release()?.with_file_name("dist"))
    }

    /// Makes sure that the lab can be built and run here, and builds the eBPF object and then every binary, in this
    /// order because the datapath embeds the object. All default members are built by one command: with one selection
    /// cargo resolves the features once, and nothing is compiled twice for the demo, the tests and the lab.
    pub fn build_all(&self) -> Result<()> {
        setup::ensure(self, &[Need::Toolchain, Need::Lab])?;
        step("build the eBPF programs", self.xtask()?.arg("build-ebpf"))?;
        step(
            "build all binaries",
            self.cargo().args(["build", "--release"]),
        )
    }
}

/// Says what is done next. Progress goes to standard error so that standard output holds results only.
pub fn say(line: &str) {
    eprintln!("==> {line}");
}

/// Runs one step, its output passed to standard error, and fails when the program does.
pub fn step(label: &str, command: &mut Command) -> Result<()> {
    say(label);
    let started = Instant::now();
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("{label}: cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{label} failed ({status}): {}", shown(command));
    }
    let took = started.elapsed();
    if took.as_secs() >= 2 {
        eprintln!("    {label}: {:.0} s", took.as_secs_f64());
    }
    Ok(())
}

/// Fails, with the reason, unless this process is root.
pub fn require_root(what: &str, why: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("{what} needs root: it {why}. Run it again as root");
}

/// The command line of `command`, for messages.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// The first file called `program` in the folders of `PATH`, or in the system folders that a
/// login shell of an ordinary user leaves out.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| candidate.is_file())
}

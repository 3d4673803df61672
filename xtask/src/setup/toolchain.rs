//! The compiler and linker of the eBPF programs.
//!
//! Their target has no precompiled `core`, so `core` is built from source by unstable flags: that
//! takes a nightly with `rust-src`, or any compiler with its sources that is told to accept them.
//! Debian ships the second kind. The rest of Karst builds with the stable toolchain.

use std::{
    fmt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages;
use crate::workspace::{Workspace, find_program, say, step};

/// The linker's version is pinned: it must understand the bitcode of the compiler it follows.
const BPF_LINKER_VERSION: &str = "0.10.3";

/// Debian's compiler for what its web browsers need, newer than its `rustc`.
const DEBIAN_PACKAGES: &[&str] = &["rustc-web", "rust-web-src"];
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// The oldest compiler that the eBPF crates build with.
const OLDEST: (u32, u32) = (1, 96);

/// A compiler that can build `core` for the eBPF target.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BpfToolchain {
    /// A rustup toolchain, by name.
    Rustup(String),
    /// A system compiler, by path; unstable flags are unlocked by `RUSTC_BOOTSTRAP`.
    System(PathBuf),
}

impl BpfToolchain {
    /// The toolchain of this machine, if it has one.
    pub fn find() -> Option<Self> {
        rustup_toolchains()
            .into_iter()
            .filter(|name| name.starts_with("nightly"))
            .map(Self::Rustup)
            .chain([Self::System(PathBuf::from(DEBIAN_RUSTC))])
            .find(Self::is_usable)
    }

    /// A cargo command, in the workspace's root, that compiles with this toolchain and finds the
    /// linker.
    pub fn cargo(&self, workspace: &Workspace) -> Command {
        let mut command = workspace.cargo();
        match self {
            Self::Rustup(name) => {
                command = Command::new("rustup");
                command
                    .current_dir(workspace.root())
                    .args(["run", name, "cargo"]);
                // Set by the cargo and rustup that run us; they would pin the stable toolchain.
                for inherited in ["RUSTUP_TOOLCHAIN", "CARGO", "RUSTC", "RUSTDOC"] {
                    command.env_remove(inherited);
                }
            }
            Self::System(rustc) => {
                command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            }
        }
        if let Some(folder) = bpf_linker_folder(workspace) {
            let inherited = std::env::var_os("PATH").unwrap_or_default();
            let folders = [folder]
                .into_iter()
                .chain(std::env::split_paths(&inherited));
            if let Ok(path) = std::env::join_paths(folders) {
                command.env("PATH", path);
            }
        }
        command
    }

    fn rustc(&self) -> Command {
        match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, "rustc"]);
                command
            }
            Self::System(rustc) => Command::new(rustc),
        }
    }

    fn is_usable(&self) -> bool {
        let new_enough = output(self.rustc().arg("--version"))
            .and_then(|line| version(&line))
            .is_some_and(|version| version >= OLDEST);
        new_enough
            && output(self.rustc().args(["--print", "sysroot"])).is_some_and(|sysroot| {
                Path::new(sysroot.trim())
                    .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                    .is_file()
            })
    }
}

impl fmt::Display for BpfToolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup(name) => write!(f, "rustup toolchain {name}"),
            Self::System(rustc) => write!(f, "{}", rustc.display()),
        }
    }
}

/// Finds the toolchain, installing Debian's and the linker when they are missing.
pub fn ensure(workspace: &Workspace, found: &mut Vec<String>) -> Result<()> {
    let toolchain = match BpfToolchain::find() {
        Some(toolchain) => toolchain,
        None => {
            say("setup: no nightly with rust-src for the eBPF programs; taking Debian's compiler");
            packages::install(DEBIAN_PACKAGES)?;
            BpfToolchain::find().with_context(|| {
                format!(
                    "{} are installed, but {DEBIAN_RUSTC} cannot build core",
                    DEBIAN_PACKAGES.join(" and ")
                )
            })?
        }
    };
    found.push(format!("eBPF compiler: {toolchain}"));
    if bpf_linker_folder(workspace).is_none() {
        install_linker(workspace)?;
    }
    found.push(format!("bpf-linker {BPF_LINKER_VERSION}"));
    Ok(())
}

fn install_linker(workspace: &Workspace) -> Result<()> {
    let tools = workspace.tools();
    say(&format!(
        "setup: building bpf-linker {BPF_LINKER_VERSION} into {} (no root; a few minutes, once)",
        tools.display()
    ));
    step(
        "cargo install bpf-linker",
        workspace
            .cargo()
            .args([
                "install",
                "bpf-linker",
                "--locked",
                "--version",
                BPF_LINKER_VERSION,
                "--root",
            ])
            .arg(&tools)
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    if bpf_linker_folder(workspace).is_none() {
        bail!(
            "bpf-linker was installed into {}, but does not run",
            tools.display()
        );
    }
    Ok(())
}

/// The folder with the right bpf-linker: our own tools first, then `PATH`.
pub fn bpf_linker_folder(workspace: &Workspace) -> Option<PathBuf> {
    let ours = workspace.tools().join("bin/bpf-linker");
    [Some(ours), find_program("bpf-linker")]
        .into_iter()
        .flatten()
        .find(|linker| {
            output(Command::new(linker).arg("--version"))
                .is_some_and(|line| line.split_whitespace().nth(1) == Some(BPF_LINKER_VERSION))
        })
        .and_then(|linker| linker.parent().map(Path::to_path_buf))
}

fn rustup_toolchains() -> Vec<String> {
    output(Command::new("rustup").args(["toolchain", "list"]))
        .map(|list| names(&list))
        .unwrap_or_default()
}

/// The first word of each line of `rustup toolchain list`.
fn names(list: &str) -> Vec<String> {
    list.lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Major and minor version in the output of `rustc --version`.
fn version(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_whitespace().nth(1)?.split(['.', '-']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Standard output of a program that ends well; `None` when it is missing or fails.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_toolchain_names() {
        let list = "stable-x86_64-unknown-linux-gnu (active, default)\nnightly-2026-05-19-x86_64-unknown-linux-gnu\n";
        assert_eq!(
            names(list),
            [
                "stable-x86_64-unknown-linux-gnu",
                "nightly-2026-05-19-x86_64-unknown-linux-gnu"
            ]
        );
    }

    #[test]
    fn reads_compiler_versions() {
        assert_eq!(
            version("rustc 1.96.0 (abc 2026-05-25) (built from a source tarball)"),
            Some((1, 96))
        );
        assert_eq!(
            version("rustc 1.97.0-nightly (abc 2026-05-19)"),
            Some((1, 97))
        );
        assert_eq!(version("error: no such toolchain"), None);
    }

    #[test]
    fn a_missing_compiler_is_not_usable() {
        assert!(!BpfToolchain::System(PathBuf::from("/nonexistent/rustc")).is_usable());
    }
}

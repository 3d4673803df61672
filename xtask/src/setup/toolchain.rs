//! The compiler and linker of the eBPF programs.
//!
//! Their target has no precompiled `core`, so `core` is built from source by unstable flags: that
//! takes a nightly with `rust-src`, or any compiler with its sources that is told to accept them.
//! Debian ships the second kind. The rest of Karst builds with the stable toolchain.

use std::{
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

/// A compiler that can build `core` for the eBPF target, told to accept unstable flags
/// (`RUSTC_BOOTSTRAP=1`) where it is not a nightly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BpfCompiler {
    /// The `rustc` to use.
    pub rustc: PathBuf,
}

impl BpfCompiler {
    /// The first one on this machine that is new enough and has the sources of `core`: a rustup
    /// nightly, else Debian's.
    pub fn find() -> Option<Self> {
        rustup_nightlies()
            .into_iter()
            .chain([PathBuf::from(DEBIAN_RUSTC)])
            .map(|rustc| Self { rustc })
            .find(Self::is_usable)
    }

    fn is_usable(&self) -> bool {
        let ask = |arguments: &[&str]| output(Command::new(&self.rustc).args(arguments));
        let new_enough = ask(&["--version"])
            .and_then(|line| version(&line))
            .is_some_and(|version| version >= OLDEST);
        new_enough
            && ask(&["--print", "sysroot"]).is_some_and(|sysroot| {
                Path::new(sysroot.trim())
                    .join("lib/rustlib/src/rust/library/core/src/lib.rs")
                    .is_file()
            })
    }
}

/// Finds the toolchain, installing Debian's and the linker when they are missing.
pub fn ensure(workspace: &Workspace, found: &mut Vec<String>) -> Result<()> {
    let compiler = match BpfCompiler::find() {
        Some(compiler) => compiler,
        None => {
            say("setup: no nightly with rust-src for the eBPF programs; taking Debian's compiler");
            packages::install(DEBIAN_PACKAGES)?;
            BpfCompiler::find().with_context(|| {
                format!(
                    "{} are installed, but {DEBIAN_RUSTC} cannot build core",
                    DEBIAN_PACKAGES.join(" and ")
                )
            })?
        }
    };
    found.push(format!("eBPF compiler {}", compiler.rustc.display()));
    if bpf_linker(workspace).is_none() {
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
            // Outside the workspace, whose settings (a static build above all) are not for this program.
            .current_dir("/")
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    if bpf_linker(workspace).is_none() {
        bail!(
            "bpf-linker was installed into {}, but does not run",
            tools.display()
        );
    }
    Ok(())
}

/// A bpf-linker of the right version: our own first, then one on `PATH`.
pub fn bpf_linker(workspace: &Workspace) -> Option<PathBuf> {
    let ours = workspace.tools().join("bin/bpf-linker");
    [Some(ours), find_program("bpf-linker")]
        .into_iter()
        .flatten()
        .find(|linker| {
            output(Command::new(linker).arg("--version"))
                .is_some_and(|line| line.split_whitespace().nth(1) == Some(BPF_LINKER_VERSION))
        })
}

/// The compilers of rustup's nightlies, by path: a path needs no rustup around it.
fn rustup_nightlies() -> Vec<PathBuf> {
    let list = output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    names(&list)
        .into_iter()
        .filter(|name| name.starts_with("nightly"))
        .filter_map(|name| {
            output(Command::new("rustup").args(["run", &name, "rustc", "--print", "sysroot"]))
        })
        .map(|sysroot| Path::new(sysroot.trim()).join("bin/rustc"))
        .collect()
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
        assert!(
            !BpfCompiler {
                rustc: PathBuf::from("/nonexistent/rustc")
            }
            .is_usable()
        );
    }
}

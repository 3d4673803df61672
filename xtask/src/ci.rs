//! `cargo xtask ci`: what continuous integration runs, cheap checks first.

use anyhow::Result;

use crate::{
    setup::{self, Need},
    test, tidy,
    workspace::{Workspace, require_root, step},
};

/// Arguments of `ci`.
#[derive(clap::Args)]
pub struct Args {
    /// Run the checks but not the tests.
    #[arg(long)]
    checks_only: bool,
}

/// Runs every check, then every test.
pub fn run(args: &Args) -> Result<()> {
    require_root("cargo xtask ci", "runs the privileged tests")?;
    let workspace = Workspace::locate()?;
    step(
        "formatting",
        workspace.cargo().args(["fmt", "--all", "--check"]),
    )?;
    tidy::run(&tidy::Args::default())?;
    step(
        "generated code",
        workspace.xtask()?.args(["codegen", "--check"]),
    )?;
    setup::ensure(&workspace, &[Need::Toolchain])?;
    step(
        "verify the eBPF programs",
        workspace.xtask()?.args(["build-ebpf", "--verify"]),
    )?;
    step(
        "clippy",
        workspace.cargo().args([
            "clippy",
            "--release",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]),
    )?;
    // A command of its own: together with the others, cargo would unify features and pull the
    // standard library into the eBPF crates. The profile because it aborts on a panic, as a crate
    // without the standard library must; for the host, where clippy needs no sources of `core`.
    step(
        "clippy on the eBPF programs",
        workspace
            .cargo()
            .args(["clippy", "--profile", "bpf", "-p", "karst-bpf-programs"])
            .args(["--", "-D", "warnings"])
            .env("RUSTC_BOOTSTRAP", "1"),
    )?;
    if args.checks_only {
        return Ok(());
    }
    test::run(&test::Args::default())
}

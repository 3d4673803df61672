//! `cargo xtask bench`: builds everything and runs the benchmark program, `karst-bench`; `policy`, which needs no
//! mesh, is a benchmark of cargo's own instead, and `scale` has no data plane: neither needs root.
//!
//! What is measured, and how, is said in `tests/bench/README.md`.

use anyhow::{Context, Result, bail};

use crate::{
    setup::{self, Need, envoy},
    workspace::{Workspace, require_root, step},
};

/// Arguments of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// Measure the binaries that the tests use, not what ships: built minutes sooner, and slower.
    #[arg(long)]
    quick: bool,
    /// Use the binaries as they are, without building first.
    #[arg(long)]
    no_build: bool,
    /// What to measure (`tunnel`, `waypoint`, `observe`, `scale` or `policy`), with its options; `tunnel --help` lists them.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "BENCHMARK"
    )]
    arguments: Vec<String>,
}

/// Builds, then hands over to `karst-bench`.
pub fn run(args: &Args) -> Result<()> {
    if let Some((name, options)) = args.arguments.split_first()
        && name == "policy"
    {
        return policy(args, options);
    }
    if args.arguments.first().is_some_and(|name| name == "scale") {
        return scale(args);
    }
    require_root(
        "cargo xtask bench",
        "makes network namespaces and loads eBPF programs",
    )?;
    let workspace = Workspace::locate()?;
    setup::ensure(&workspace, &[Need::Bench, Need::Lab])?;
    let binaries = match (args.quick, args.no_build) {
        (true, false) => {
            workspace.build_all()?;
            workspace.release()?
        }
        (true, true) => workspace.release()?,
        (false, false) => workspace.build_dist([])?,
        (false, true) => workspace.release()?.with_file_name("dist"),
    };
    let mut program = std::process::Command::new(binaries.join("karst-bench"));
    program
        .args(&args.arguments)
        .env("KARST_BIN_DIR", &binaries)
        .env("KARST_ENVOY", envoy::program(&workspace))
        .current_dir(workspace.root());
    let status = program.status().context("starting karst-bench")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

/// Measures a controller with a large cluster: two binaries, no root, no lab.
fn scale(args: &Args) -> Result<()> {
    let workspace = Workspace::locate()?;
    let (profile, binaries) = match args.quick {
        true => ("release", workspace.release()?),
        false => ("dist", workspace.release()?.with_file_name("dist")),
    };
    if !args.no_build {
        let mut build = workspace.cargo();
        build.args(["build", "--profile", profile]);
        build.args(["--bin", "karst-bench", "--bin", "karst-controller"]);
        step("build the controller and the bench", &mut build)?;
    }
    let mut program = std::process::Command::new(binaries.join("karst-bench"));
    program
        .args(&args.arguments)
        .env("KARST_BIN_DIR", &binaries);
    let status = program.status().context("starting karst-bench")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

/// Measures the matcher of authorization policies: one crate, no root, no lab.
fn policy(args: &Args, options: &[String]) -> Result<()> {
    if args.no_build {
        bail!("`policy` takes seconds to build and is always built; leave --no-build out");
    }
    let profile = if args.quick { "release" } else { "dist" };
    let mut bench = Workspace::locate()?.cargo();
    bench
        .args([
            "bench",
            "--package",
            "karst-bpf-common",
            "--bench",
            "policy",
        ])
        .args(["--profile", profile, "--"])
        .args(options);
    let status = bench.status().context("starting cargo")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

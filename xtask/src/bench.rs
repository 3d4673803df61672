//! `cargo xtask bench`: builds everything and runs the benchmark program, `karst-bench`; `policy`, which needs no
//! mesh, is a benchmark of cargo's own instead, `scale` has no data plane, and `stress` is the lab's test of that name
//! for longer.
//!
//! What is measured, and how, is said in `tests/bench/README.md`.

use std::{
    ffi::OsString,
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::{
    setup::{self, Need, envoy},
    workspace::{Workspace, require_root, say, step},
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
    /// What to measure (`tunnel`, `same-node`, `connect`, `waypoint`, `observe`, `scale`, `policy` or `all` of them), with its
    /// options, which `tunnel --help` lists; or `stress --minutes N`, which measures nothing, but checks every byte.
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
    if let Some((name, options)) = args.arguments.split_first()
        && name == "stress"
    {
        return stress(args, options);
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
    let mut program = Command::new(binaries.join("karst-bench"));
    program.args(&args.arguments);
    if wants_policy(&args.arguments) {
        let file = binaries.join("karst-bench.policy.json");
        fs::write(&file, policy_json(args.quick)?)
            .with_context(|| format!("writing {}", file.display()))?;
        program.arg("--result").arg({
            let mut result = OsString::from("policy=");
            result.push(&file);
            result
        });
    }
    program
        .env("KARST_BIN_DIR", &binaries)
        .env("KARST_ENVOY", envoy::program(&workspace))
        .current_dir(workspace.root());
    let status = program.status().context("starting karst-bench")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

/// Whether `all` was asked for, and `policy` is one of all.
fn wants_policy(arguments: &[String]) -> bool {
    let Some((name, options)) = arguments.split_first() else {
        return false;
    };
    let mut only = Vec::new();
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        match option.strip_prefix("--only") {
            Some("") => only.extend(rest.next().map(String::as_str)),
            Some(value) => only.extend(value.strip_prefix('=')),
            None => {}
        }
    }
    name == "all" && (only.is_empty() || only.contains(&"policy"))
}

/// The result of `policy`.
fn policy_json(quick: bool) -> Result<Vec<u8>> {
    say("policy");
    let output = policy_command(quick, &["-j".to_owned()])?
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    if !output.status.success() {
        bail!("the benchmark `policy` failed ({})", output.status);
    }
    Ok(output.stdout)
}

/// The lab's test `stress`, for as long as is asked for.
#[derive(Parser)]
#[command(name = "stress", no_binary_name = true)]
struct Stress {
    /// How long, after a warm-up of 15 seconds.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=24 * 60))]
    minutes: u64,
}

/// Checks every byte of many connections for a while.
fn stress(args: &Args, options: &[String]) -> Result<()> {
    let stress = Stress::try_parse_from(options)?;
    require_root(
        "cargo xtask bench stress",
        "makes network namespaces and loads eBPF programs",
    )?;
    let workspace = Workspace::locate()?;
    if !args.no_build {
        workspace.build_all()?;
    }
    let mut test = workspace.cargo();
    test.args(["test", "--release", "--package", "karst-lab-tests"])
        .args(["--test", "stress", "--", "--nocapture"])
        .env("KARST_BIN_DIR", workspace.release()?)
        .env("KARST_STRESS_SECONDS", (stress.minutes * 60).to_string());
    let status = test.status().context("starting cargo")?;
    if !status.success() {
        bail!("the stress test failed ({status})");
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
    let status = policy_command(args.quick, options)?
        .status()
        .context("starting cargo")?;
    if !status.success() {
        bail!("the benchmark failed ({status})");
    }
    Ok(())
}

fn policy_command(quick: bool, options: &[String]) -> Result<Command> {
    let profile = if quick { "release" } else { "dist" };
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
    Ok(bench)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policy_is_one_of_all() {
        let wants = |line: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            wants_policy(&words)
        };
        assert!(wants("all") && wants("all -j --out x"));
        assert!(wants("all --only tunnel --only policy") && wants("all --only=policy"));
        assert!(!wants("all --only tunnel") && !wants("tunnel"));
    }

    #[test]
    fn a_stress_has_a_length() {
        let parse = |line: &str| Stress::try_parse_from(line.split_whitespace());
        assert_eq!(parse("").unwrap().minutes, 30);
        assert_eq!(parse("--minutes 2").unwrap().minutes, 2);
        assert!(parse("--minutes 0").is_err() && parse("--hours 1").is_err());
    }
}

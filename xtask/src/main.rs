//! Developer commands: `cargo xtask COMMAND`, one file each.
//!
//! This crate builds, checks, shows and measures Karst; it is not part of it: nothing that ships
//! depends on it, and users need none of it. Start with the module named like the command you want
//! to change; [`workspace`] holds what all of them share (where things are, how a step is run).

mod bench;
mod build_ebpf;
mod ci;
mod cluster;
mod codegen;
mod conformance;
mod demo;
mod image;
mod lab;
mod setup;
mod test;
mod tidy;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Karst developer commands"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building and testing Karst needs, and say what is done.
    Setup(setup::Args),
    /// Build the eBPF programs (and with --verify load each into the running kernel's verifier).
    BuildEbpf(build_ebpf::Args),
    /// Show the mesh at work: two nodes, one label, mTLS on the wire (needs root).
    Demo(demo::Args),
    /// Build everything and run every test (needs root).
    Test(test::Args),
    /// Run a two-node mesh in network namespaces on this machine (needs root).
    Lab(lab::Args),
    /// Run a real Kubernetes cluster of two nodes on this machine (needs root).
    Cluster(cluster::Args),
    /// Run the Gateway API's conformance suite, unchanged, on a real Kubernetes cluster (needs root).
    Conformance(conformance::Args),
    /// Measure Karst against a direct connection, or its waypoint beside Envoy (needs root).
    Bench(bench::Args),
    /// Make OCI images of the binaries: static, from nothing, reproducible.
    Image(image::Args),
    /// Regenerate checked-in generated code.
    Codegen(codegen::Args),
    /// Check the rules of the house: dependencies, documented tables, file sizes, unsafe code.
    Tidy(tidy::Args),
    /// Run what continuous integration runs.
    Ci(ci::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::BuildEbpf(args) => build_ebpf::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Cluster(args) => cluster::run(&args),
        Command::Conformance(args) => conformance::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Codegen(args) => codegen::run(&args),
        Command::Tidy(args) => tidy::run(&args),
        Command::Ci(args) => ci::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

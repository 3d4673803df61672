//! The cluster's hidden helper: makes a process a node, enters a node or a network namespace and
//! starts a program there, or takes a cluster down when the process that made it is gone. People use
//! `cargo xtask cluster`; the code behind this is `karst_cluster::inside`.

use std::process::ExitCode;

use clap::Parser;
use karst_cluster::inside::{Command, run};

#[derive(Parser)]
#[command(
    name = "karst-cluster-run",
    about = "The test cluster's helper; use `cargo xtask cluster`"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("karst-cluster-run: {error:#}");
            // What a shell answers when a program cannot be started.
            ExitCode::from(126)
        }
    }
}

//! The lab's hidden helper: enters a pod or node and becomes a program there, probes a pod
//! from its node, or tears a lab down when the process that made it is gone. People use
//! `cargo xtask lab`; the code behind this is `karst_harness::inside`.

use std::process::ExitCode;

use clap::Parser;
use karst_harness::inside::{Command, run};

#[derive(Parser)]
#[command(
    name = "karst-lab-run",
    about = "The lab's helper; use `cargo xtask lab`"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("karst-lab-run: {error:#}");
            // What a shell answers when a program cannot be started.
            ExitCode::from(126)
        }
    }
}

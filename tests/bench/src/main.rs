//! `karst-bench`: measures the mesh against a direct connection, in the lab.
//!
//! It drives programs that people know (iperf3, nginx, wrk) between pods of the mesh and between
//! pods beside it, in the same run, and reports ratios. It says nothing about absolute speed on
//! other machines. `README.md` has the method; [`tunnel`] is the benchmark, [`load`] the load that
//! no ordinary program makes, [`process`] what the agents use.

mod load;
mod process;
mod report;
mod stage;
mod tools;
mod tunnel;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "karst-bench",
    version,
    about = "Measures Karst against a direct connection"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// HBONE between two nodes: throughput, requests, connections, CPU and memory.
    Tunnel(tunnel::Args),
    /// Used inside a pod: HTTP requests at a fixed rate.
    #[command(hide = true)]
    Rate(load::RateArgs),
    /// Used inside a pod: opens idle HTTP connections and holds them until its input ends.
    #[command(hide = true)]
    Hold(load::HoldArgs),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Tunnel(args) => tunnel::run(&args),
        Command::Rate(args) => load::rate(&args),
        Command::Hold(args) => load::hold(&args),
    }
}

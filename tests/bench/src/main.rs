//! `karst-bench`: measures the mesh against a direct connection, and its waypoint beside Envoy, in
//! the lab.
//!
//! It drives programs that people know (iperf3, nginx, wrk, h2load) between pods of the mesh and
//! between pods beside it, in the same run, and reports ratios. It says nothing about absolute speed on
//! other machines. `README.md` has the method; [`tunnel`] and [`waypoint`] are the benchmarks, [`load`]
//! the load that no ordinary program makes, [`process`] what agents and proxies use.

mod cpus;
mod load;
mod observe;
mod own;
mod parts;
mod process;
mod report;
mod scale;
mod stage;
mod tools;
mod tunnel;
mod waypoint;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "karst-bench",
    version,
    about = "Measures Karst against a direct connection and beside others"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// HBONE between two nodes: throughput, requests, connections, CPU and memory.
    Tunnel(tunnel::Args),
    /// A waypoint beside Envoy: requests, latencies, CPU and memory.
    Waypoint(waypoint::Args),
    /// What metrics, access log and tap cost an agent and a waypoint.
    Observe(observe::Args),
    /// A controller with a large cluster, and what an agent keeps of it.
    Scale(scale::Args),
    /// Used by `scale`: an agent's state and control-plane client.
    #[command(hide = true)]
    MeshAgent(scale::agent::Args),
    /// Used by `observe`: what the recorders of agents and waypoints use by themselves.
    #[command(hide = true)]
    Recorders(observe::alone::Args),
    /// Used inside a pod: becomes Envoy, with the pod's certificate.
    #[command(hide = true)]
    Envoy(waypoint::launch::Args),
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
        Command::Waypoint(args) => waypoint::run(&args),
        Command::Observe(args) => observe::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::MeshAgent(args) => scale::agent::run(&args),
        Command::Recorders(args) => observe::alone::run(&args),
        Command::Envoy(args) => waypoint::launch::run(&args),
        Command::Rate(args) => load::rate(&args),
        Command::Hold(args) => load::hold(&args),
    }
}

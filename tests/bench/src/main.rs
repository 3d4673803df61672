//! `karst-bench`: measures the mesh against a direct connection, and its waypoint beside Envoy, in
//! the lab.
//!
//! It drives programs that people know (iperf3, nginx, wrk, h2load) between pods of the mesh and
//! between pods beside it, in the same run, and reports ratios. It says nothing about absolute speed on
//! other machines. `README.md` has the method; [`pairs`] and [`waypoint`] are the benchmarks, [`load`]
//! the load that no ordinary program makes, [`process`] what agents and proxies use.

mod all;
mod chart;
mod connect;
mod counted;
mod cpus;
mod goals;
mod load;
mod observe;
mod output;
mod own;
mod pairs;
mod parts;
mod peer;
mod process;
mod report;
mod scale;
mod spread;
mod stage;
mod tools;
mod usage;
mod waypoint;

use anyhow::Result;
use clap::{Parser, Subcommand};

use stage::Place;

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
    Tunnel(pairs::Args),
    /// Two pods of one node: the same rows, and how many connections bypassed the agent.
    SameNode(pairs::Args),
    /// New connections: how many, how long one takes, what a storm of them does to others and leaves behind.
    Connect(connect::Args),
    /// A waypoint beside Envoy: requests, latencies, CPU and memory.
    Waypoint(waypoint::Args),
    /// What metrics, access log and tap cost an agent and a waypoint.
    Observe(observe::Args),
    /// All of them, and one report.
    All(all::Args),
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
    /// Used inside a pod: new connections with one request each.
    #[command(hide = true)]
    Dial(load::dial::DialArgs),
    /// Used inside a pod: opens idle HTTP connections and holds them until its input ends.
    #[command(hide = true)]
    Hold(load::HoldArgs),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Tunnel(args) => pairs::run(&args, Place::TwoNodes),
        Command::SameNode(args) => pairs::run(&args, Place::OneNode),
        Command::Connect(args) => connect::run(&args),
        Command::Waypoint(args) => waypoint::run(&args),
        Command::Observe(args) => observe::run(&args),
        Command::All(args) => all::run(&args),
        Command::Scale(args) => scale::run(&args),
        Command::MeshAgent(args) => scale::agent::run(&args),
        Command::Recorders(args) => observe::alone::run(&args),
        Command::Envoy(args) => waypoint::launch::run(&args),
        Command::Rate(args) => load::rate(&args),
        Command::Dial(args) => load::dial::dial(&args),
        Command::Hold(args) => load::hold(&args),
    }
}

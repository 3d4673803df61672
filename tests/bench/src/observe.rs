//! `karst-bench observe`: what seeing costs. The CPU that an agent uses for a connection, and a waypoint for a request,
//! with metrics and access log on and off, in the same run.
//!
//! Agents: each node has one with other settings, and a client and a server of its own, so that both ends of a
//! connection are the same agent's. Waypoints: each namespace has one with other settings. Settings take turns, and
//! which comes first changes with the round.

mod report;
mod stage;

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{
    process::cpu_us,
    tools::{Reuse, wrk},
};
use report::{Cost, Report, Row};
use stage::{SETTINGS, Stage};

/// Connections that one load keeps under way.
const CONNECTIONS: u32 = 16;

/// Arguments of `observe`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the result as one JSON object instead of a table.
    #[arg(short, long)]
    json: bool,
    /// Rounds, each with every setting; the result is the median.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
}

/// Raises the lab, measures, and removes it.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: it makes network namespaces"
    );
    let executable = std::env::current_exe().context("finding this program")?;
    let folder = executable.with_file_name("karst-bench.files");
    eprintln!("==> raising the lab");
    let stage = Stage::raise(&folder)?;
    let measured = measure(&stage, args);
    eprintln!("==> removing the lab");
    let downed = stage.down();
    let report = measured?;
    downed?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{}", report.table());
    }
    Ok(())
}

/// What carries the load.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Carrier {
    /// A node agent; the unit is a connection.
    Agent,
    /// A waypoint; the unit is a request.
    Waypoint,
}

impl Carrier {
    fn name(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Waypoint => "waypoint",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Agent => "connections",
            Self::Waypoint => "requests",
        }
    }
}

fn measure(stage: &Stage, args: &Args) -> Result<Report> {
    let mut rows = Vec::new();
    for carrier in [Carrier::Agent, Carrier::Waypoint] {
        let mut costs: Vec<Vec<f64>> = vec![Vec::new(); SETTINGS.len()];
        for round in 0..=args.rounds {
            let mut order: Vec<usize> = (0..SETTINGS.len()).collect();
            order.rotate_left(round as usize % SETTINGS.len());
            for setting in order {
                let name = SETTINGS[setting].name;
                let cost = cost(stage, carrier, setting, args.seconds)
                    .with_context(|| format!("{} with {name}", carrier.name()))?;
                eprintln!(
                    "==> {} with {name}, round {round} of {}: {cost:.1} us",
                    carrier.name(),
                    args.rounds
                );
                // The first round opens tunnels and fills caches.
                if round > 0 {
                    costs[setting].push(cost);
                }
            }
        }
        let costs = SETTINGS
            .iter()
            .zip(costs)
            .map(|(setting, values)| Cost::new(setting.name, values));
        rows.push(Row::new(
            carrier.name(),
            carrier.unit(),
            costs.collect::<Option<_>>().context("no rounds")?,
        ));
    }
    Ok(Report {
        rows,
        rounds: args.rounds,
        seconds: args.seconds,
    })
}

/// Microseconds of CPU for one connection or request.
fn cost(stage: &Stage, carrier: Carrier, setting: usize, seconds: u32) -> Result<f64> {
    let (pid, client, url) = stage.way(carrier, setting)?;
    let reuse = match carrier {
        Carrier::Agent => Reuse::Never,
        Carrier::Waypoint => Reuse::KeepAlive,
    };
    let before = cpu_us(pid)?;
    let achieved = wrk(&stage.lab, &client, &url, CONNECTIONS, reuse, seconds)?;
    let used = cpu_us(pid)? - before;
    ensure!(achieved.total > 0.0, "nothing was answered");
    ensure!(used > 0.0, "no CPU was used, so the load went elsewhere");
    Ok(used / achieved.total)
}

/// The folder's own nginx configuration.
fn nginx(folder: &Path) -> std::path::PathBuf {
    folder.join("observe-nginx.conf")
}

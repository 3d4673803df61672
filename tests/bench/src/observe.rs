//! `karst-bench observe`: what seeing costs. The CPU that an agent uses for a connection, and a waypoint for a request,
//! with metrics, access log and tap on and off, in the same run.
//!
//! Agents: each node has one that is set differently, and a client and a server of its own, so that both ends of a
//! connection are the same agent's. Waypoints: each namespace has one. A tap is begun and ended on one that runs.
//! Settings take turns in many short rounds, and which comes first changes with the round.

pub mod alone;
mod interval;
mod report;
mod settings;
mod stage;
mod written;

use std::{
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    cpus::Cpus,
    output::{ChartFile, Outcome, Output},
    process::cpu_us,
    tools::{Reuse, wrk_with},
};
use alone::{Alone, Used};
use report::{Cost, Report, Row, Sample};
use settings::{SETTINGS, Setting, Tap};
use stage::Stage;
use written::Written;

/// Connections that one load keeps under way.
const CONNECTIONS: u32 = 16;

/// What wrk asks a waypoint for in turn, so that several subscribers of a tap share what there is to read.
const PATHS: &str = "\
local paths, turn = {'/one', '/two'}, 0
request = function()
    turn = turn % #paths + 1
    return wrk.format(nil, paths[turn])
end
";

/// How long it may take until what a load has caused is counted, logged and told.
const SETTLE: Duration = Duration::from_secs(2);

/// Arguments of `observe`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
    /// Rounds, each with every setting; the result is the median. There is no interval with fewer than 6.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Measure only this one; repeatable.
    #[arg(long, value_enum)]
    only: Vec<Carrier>,
}

/// Raises the lab, measures, and removes it.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: it makes network namespaces"
    );
    let executable = std::env::current_exe().context("finding this program")?;
    let folder = executable.with_file_name("karst-bench.files");
    let cpus = Cpus::split()?;
    eprintln!("==> measuring recorders by themselves");
    let recorders = alone::measure()?;
    eprintln!("==> raising the lab");
    let stage = Stage::raise(&folder)?;
    let measured = measure(&stage, &cpus, args, &recorders);
    eprintln!("==> removing the lab");
    let downed = stage.down();
    let report = measured?;
    downed?;
    let outcome = Outcome {
        name: "observe",
        json: serde_json::to_value(&report)?,
        table: report.table(),
        chart: None,
    };
    args.output.put(&outcome, &ChartFile::default())
}

/// What carries the load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
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

    /// How often a unit is counted and logged: an agent does at both ends of a connection.
    fn ends(self) -> f64 {
        match self {
            Self::Agent => 2.0,
            Self::Waypoint => 1.0,
        }
    }

    /// What its recorders use.
    fn of(self, recorders: &Alone) -> &Used {
        match self {
            Self::Agent => &recorders.agent,
            Self::Waypoint => &recorders.waypoint,
        }
    }

    /// Selectors of the subscribers that read all together: one gets at most 10,000 events a second. An agent says
    /// four of a connection; requests to a waypoint go to [`PATHS`] in turn.
    fn taps(self) -> &'static [&'static str] {
        match self {
            Self::Agent => &["direction=outbound", "direction=inbound"],
            Self::Waypoint => &["path=/one", "path=/two"],
        }
    }
}

fn measure(stage: &Stage, cpus: &Cpus, args: &Args, recorders: &Alone) -> Result<Report> {
    let mut rows = Vec::new();
    for carrier in [Carrier::Agent, Carrier::Waypoint] {
        if args.only.is_empty() || args.only.contains(&carrier) {
            let used = carrier.of(recorders);
            rows.push(row(stage, cpus, carrier, args, used)?);
        }
    }
    Ok(Report {
        rows,
        rounds: args.rounds,
        seconds: args.seconds,
    })
}

fn row(stage: &Stage, cpus: &Cpus, carrier: Carrier, args: &Args, used: &Used) -> Result<Row> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); SETTINGS.len()];
    for round in 0..=args.rounds {
        for setting in order(SETTINGS.len(), round) {
            let name = SETTINGS[setting].name;
            let sample = sample(stage, cpus, carrier, &SETTINGS[setting], args.seconds)
                .with_context(|| format!("{} with {name}", carrier.name()))?;
            eprintln!(
                "==> {} with {name}, round {round} of {}: {:.1} us",
                carrier.name(),
                args.rounds,
                sample.cpu_us / sample.units
            );
            // The first round opens tunnels and fills caches.
            if round > 0 {
                samples[setting].push(sample);
            }
        }
    }
    let costs = SETTINGS
        .iter()
        .zip(&samples)
        .map(|(setting, samples)| Cost::new(setting, samples));
    Ok(Row::new(
        carrier.name(),
        carrier.unit(),
        costs.collect::<Option<_>>().context("no rounds")?,
        (used, carrier.ends()),
    ))
}

/// Settings in turn: each is the first one equally often, and comes before each other as often as behind it.
fn order(settings: usize, round: u32) -> Vec<usize> {
    let mut order: Vec<usize> = (0..settings).collect();
    order.rotate_left(round as usize / 2 % settings);
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// One setting for some seconds.
fn sample(
    stage: &Stage,
    cpus: &Cpus,
    carrier: Carrier,
    setting: &Setting,
    seconds: u32,
) -> Result<Sample> {
    let way = stage.way(carrier, setting.process)?;
    let reuse = match carrier {
        Carrier::Agent => Reuse::Never,
        Carrier::Waypoint => Reuse::KeepAlive,
    };
    let taps = match setting.tap {
        Tap::Off => None,
        Tap::ReadAll => Some(stage.tap(&way, carrier.taps())?),
    };
    let alone = cpus.give(way.pid)?;
    way.begin_log()?;
    let counted = Written::read(stage, &way)?;
    let before = cpu_us(way.pid)?;
    let script = stage.paths.display().to_string();
    let more: &[&str] = match carrier {
        Carrier::Agent => &[],
        Carrier::Waypoint => &["-s", &script],
    };
    let (client, url) = (&way.client, &way.url);
    let achieved = wrk_with(&stage.lab, client, url, CONNECTIONS, reuse, seconds, more)?;
    let used = cpu_us(way.pid)? - before;
    drop(alone);
    ensure!(achieved.total > 0.0, "nothing was answered");
    ensure!(used > 0.0, "no CPU was used, so the load went elsewhere");
    let (wanted, ended) = (achieved.total * carrier.ends(), Instant::now());
    let done = loop {
        let written = Written::read(stage, &way)?.since(&counted);
        let done = written.done(setting, wanted)?;
        if done >= report::DONE || ended.elapsed() > SETTLE {
            break done;
        }
        thread::sleep(Duration::from_millis(50));
    };
    if let Some(taps) = taps {
        taps.end()?;
    }
    Ok(Sample {
        units: achieved.total,
        cpu_us: used,
        done,
    })
}

/// The folder's own nginx configuration.
fn nginx(folder: &Path) -> PathBuf {
    folder.join("observe-nginx.conf")
}

#[cfg(test)]
mod tests {
    use super::order;

    #[test]
    fn no_setting_has_a_better_place_than_another() {
        let settings = 5;
        let rounds: Vec<Vec<usize>> = (0..10).map(|round| order(settings, round)).collect();
        for one in 0..settings {
            let first = rounds.iter().filter(|order| order[0] == one).count();
            assert_eq!(first, 2, "{one}");
            for other in (0..settings).filter(|other| *other != one) {
                let at = |order: &[usize], it| order.iter().position(|at| *at == it);
                let before = rounds.iter().filter(|o| at(o, one) < at(o, other));
                assert_eq!(before.count(), 5, "{one} before {other}");
            }
        }
    }
}

//! `karst-bench connect`: new connections. How many a second, and how long one takes; what a storm of 50,000 a minute from
//! one node does to the latency of connections that have nothing to do with it; and what idle connections and storms leave
//! behind in the agents.

mod report;

use std::{env, net::SocketAddr, thread, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    counted::Counted,
    load::{Latency, raise_open_files},
    output::{ChartFile, Outcome, Output},
    own::{self, Pace, Target},
    pairs::{PORT, by_way, hold, measured, settled},
    process::anonymous_bytes,
    report::Ways,
    stage::{Options, Pair, Pin, Place, Stage, Way},
    tools::Achieved,
    usage::Usage,
};
use report::{Held, Phases, Report, Sample, Storm, Times};

/// Connections at a time, as fast as it goes.
const AT_ONCE: [u32; 3] = [1, 16, 64];

/// The bystanders' requests a second, and their connections.
const BYSTANDERS: Pace = Pace {
    rate: 500,
    connections: 8,
    seconds: 0,
};

/// How long a storm blows before and after the bystanders are looked at in it.
const MARGIN: Duration = Duration::from_secs(1);

/// Idle connections, as many as a stock ztunnel was measured with, and those before the first look.
const IDLE_CONNECTIONS: u32 = 4000;
const WARM_CONNECTIONS: u32 = 100;

/// How long agents have to give memory back, as a stock ztunnel had.
const GIVE_BACK: Duration = Duration::from_secs(15);

/// Seconds of each measurement of the round that warms up and is left out.
const WARM_SECONDS: u32 = 1;

/// Arguments of `connect`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    chart: ChartFile,
    /// Rounds, each with every measurement direct and meshed; the result is the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement of new connections.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Seconds in which bystanders are looked at before, in and after each storm.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    storm_seconds: u32,
    /// Connections a minute of a storm.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(60..=600_000))]
    per_minute: u32,
    /// Which CPUs pods and agents run on.
    #[arg(long, value_enum, default_value = "sides")]
    pin: Pin,
    /// A command that captures the pods of a third pair, as another mesh would; it and its arguments are the rest of the
    /// line. README.md says what it is told and what it owes.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    peer: Vec<String>,
}

/// Raises the lab, measures, and removes it.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: it makes network namespaces"
    );
    raise_open_files()?;
    let executable = env::current_exe().context("finding this program")?;
    eprintln!("==> raising the lab");
    let stage = Stage::raise(&Options {
        folder: &executable.with_file_name("karst-bench.files"),
        place: Place::TwoNodes,
        pin: args.pin,
        peer: &args.peer,
        bystanders: true,
    })?;
    let measured = measure(&stage, args);
    eprintln!("==> removing the lab");
    let downed = stage.lab.down();
    let report = measured?;
    downed?;
    let outcome = Outcome {
        name: "connect",
        json: serde_json::to_value(&report).context("writing the result")?,
        table: report.tables(),
        chart: Some(report.chart()),
    };
    args.output.put(&outcome, &args.chart)
}

fn measure(stage: &Stage, args: &Args) -> Result<Report> {
    let held = held(stage)?;
    let mut samples = vec![Vec::new(); AT_ONCE.len()];
    let mut storms = Vec::new();
    let mut quiet = None;
    for round in 0..=args.rounds {
        // The first round opens tunnels and fills caches.
        let warm = round == 0;
        let seconds = if warm { WARM_SECONDS } else { args.seconds };
        for (at_once, samples) in AT_ONCE.into_iter().zip(&mut samples) {
            eprintln!(
                "==> round {round} of {}: {at_once} connections at a time",
                args.rounds
            );
            let sample = by_way(stage, round, |way| fast(stage, way, at_once, seconds))?;
            if !warm {
                samples.push(sample);
            }
        }
        eprintln!(
            "==> round {round} of {}: a storm of {} connections a minute",
            args.rounds, args.per_minute
        );
        let seconds = if warm {
            WARM_SECONDS
        } else {
            args.storm_seconds
        };
        let storm = by_way(stage, round, |way| {
            storm(stage, way, args.per_minute, seconds)
        })?;
        if warm {
            quiet = Some(agents_memory(stage)?);
        } else {
            storms.push(storm);
        }
    }
    thread::sleep(GIVE_BACK);
    Report::new(
        &AT_ONCE,
        &samples,
        &storms,
        held,
        (quiet.context("no rounds")?, agents_memory(stage)?),
        args,
    )
    .context("no rounds")
}

fn target(pair: &Pair) -> Target {
    Target::http1(SocketAddr::new(pair.server, PORT), "/")
}

/// New connections as fast as it goes.
fn fast(stage: &Stage, way: Way, at_once: u32, seconds: u32) -> Result<Sample> {
    let pair = stage.pair(way)?;
    let counted = Counted::now(stage)?;
    let mut times = None;
    let (run, total) = measured(stage, way, || {
        let dialled = own::dial(&stage.lab, &pair.client, &target(pair), at_once, seconds)?;
        times = Some(Times {
            connect: dialled.connect,
            answer: dialled.answer,
        });
        let total = f64::from(dialled.connections);
        Ok(Achieved {
            per_second: total / dialled.seconds,
            total,
            latency: None,
        })
    })?;
    if way == Way::Karst {
        through_mesh(stage, &counted, total)?;
    }
    Ok(Sample {
        per_second: run.per_second,
        cpu: run.cpu,
        times: times.context("nothing was measured")?,
    })
}

/// An error unless the client's agent has counted as many connections as were made, but for a few.
fn through_mesh(stage: &Stage, before: &Counted, made: f64) -> Result<()> {
    let opened = settled(stage, before, made)?.connections.opened;
    ensure!(
        opened >= 0.99 * made,
        "of {made} connections the client's agent has counted {opened}, so they did not pass through the mesh"
    );
    Ok(())
}

/// Bystanders before, in and after a storm.
fn storm(stage: &Stage, way: Way, per_minute: u32, seconds: u32) -> Result<Storm> {
    let (pair, bystander) = (stage.pair(way)?, stage.bystander(way)?);
    let pace = Pace {
        seconds,
        ..BYSTANDERS
    };
    let look = || -> Result<Latency> {
        own::rate(&stage.lab, &bystander.client, &target(bystander), pace)
    };
    let before = look()?;
    let counted = Counted::now(stage)?;
    let used = Usage::now(stage, way)?;
    let blowing = own::storm(&stage.lab, &pair.client, &target(pair), per_minute)?;
    thread::sleep(MARGIN);
    let during = look().context(
        "bystanders got no answer in the storm, which may be more than can be carried here; --per-minute makes it less",
    )?;
    thread::sleep(MARGIN);
    let dialled = blowing.end()?;
    let made = f64::from(dialled.connections);
    let used = Usage::now(stage, way)?.since(&used, made);
    if way == Way::Karst {
        through_mesh(stage, &counted, made)?;
    }
    let after = look()?;
    Ok(Storm {
        bystanders: Phases {
            before,
            during,
            after,
        },
        connections: dialled.connections,
        failed: dialled.failed,
        first_failure: dialled.first_failure,
        per_minute: made * 60.0 / dialled.seconds,
        times: Times {
            connect: dialled.connect,
            answer: dialled.answer,
        },
        agents_us: used.agents_us,
    })
}

fn agents_memory(stage: &Stage) -> Result<Vec<u64>> {
    let agents = stage.agents()?;
    agents.into_iter().map(anonymous_bytes).collect()
}

/// What idle connections take in the agents, and what is given back when they end.
fn held(stage: &Stage) -> Result<Held> {
    eprintln!("==> {IDLE_CONNECTIONS} idle connections");
    let pair = stage.pair(Way::Karst)?;
    let idle = agents_memory(stage)?;
    let _warm = hold(stage, pair, WARM_CONNECTIONS)?;
    let before = agents_memory(stage)?;
    let connections = hold(stage, pair, IDLE_CONNECTIONS)?;
    let with = agents_memory(stage)?;
    drop(connections);
    thread::sleep(GIVE_BACK);
    Ok(Held {
        connections: IDLE_CONNECTIONS,
        seconds: GIVE_BACK.as_secs(),
        idle_anon_bytes: idle,
        before_anon_bytes: before,
        with_anon_bytes: with,
        after_anon_bytes: agents_memory(stage)?,
    })
}

/// Of all ways, what `of` says of each.
fn each<T, U>(ways: &Ways<T>, of: impl Fn(&T) -> U) -> Ways<U> {
    Ways {
        direct: of(&ways.direct),
        karst: of(&ways.karst),
        peer: ways.peer.as_ref().map(of),
    }
}

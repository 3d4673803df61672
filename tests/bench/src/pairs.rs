//! `karst-bench tunnel` and `karst-bench same-node`: the mesh between two nodes, and between two pods of one, against a
//! direct connection, and against another proxy if one is given.

use std::{
    env,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use karst_harness::Running;

use crate::{
    counted::Counted,
    load::{Latency, raise_open_files},
    output::{ChartFile, Outcome, Output},
    own::{self, Pace, Target},
    process::{anonymous_bytes, resident_bytes},
    report::{Connections, FixedRate, MEASURES, Measure, Memory, Report, Row, Run, Sample, Ways},
    stage::{Options, Pair, Pin, Place, Stage, Way},
    tools::{Achieved, Reuse, iperf, wrk},
    usage::Usage,
};

/// Requests a second, and connections that they are spread over, for the latencies. The last is a fifth of what a stock
/// ztunnel manages, so that queues are short and latency is that of the way.
const RATES: [(u32, u32); 2] = [(500, 1), (2000, 8)];

/// The server's.
pub const PORT: u16 = 80;

/// Idle connections whose memory is measured.
const IDLE_CONNECTIONS: u32 = 2000;
/// Connections opened before the first look, so that what is allocated once is not counted.
const WARM_CONNECTIONS: u32 = 100;

/// Seconds of each measurement of the round that warms up and is left out.
const WARM_SECONDS: u32 = 1;

/// How long an agent may take until it has counted what it carried.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `tunnel` and `same-node`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
    #[command(flatten)]
    chart: ChartFile,
    /// Rounds, each with every measurement direct and meshed; the result is the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Which CPUs pods and agents run on; `none` for `tunnel` and `sides` for `same-node` by default.
    #[arg(long, value_enum)]
    pin: Option<Pin>,
    /// A command that captures the pods of a third pair, as another mesh would; it and its arguments are the rest of the
    /// line. README.md says what it is told and what it owes.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "COMMAND")]
    peer: Vec<String>,
}

/// Raises the lab, measures, and removes it.
pub fn run(args: &Args, place: Place) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: it makes network namespaces"
    );
    raise_open_files()?;
    let executable = env::current_exe().context("finding this program")?;
    eprintln!("==> raising the lab");
    let stage = Stage::raise(&Options {
        folder: &executable.with_file_name("karst-bench.files"),
        place,
        pin: args.pin.unwrap_or(match place {
            // The figures of a stock ztunnel are of an arrangement in which nothing was pinned.
            Place::TwoNodes => Pin::None,
            Place::OneNode => Pin::Sides,
        }),
        peer: &args.peer,
        bystanders: false,
    })?;
    let measured = measure(&stage, args);
    eprintln!("==> removing the lab");
    let downed = stage.lab.down();
    let report = measured?;
    downed?;
    let (name, title) = match place {
        Place::TwoNodes => ("tunnel", "Between two nodes"),
        Place::OneNode => ("same-node", "On one node"),
    };
    let outcome = Outcome {
        name,
        json: serde_json::to_value(&report).context("writing the result")?,
        table: report.tables(),
        chart: Some(report.chart(title)),
    };
    args.output.put(&outcome, &args.chart)
}

fn measure(stage: &Stage, args: &Args) -> Result<Report> {
    let mut memory = memory(stage)?;
    let before = Counted::now(stage)?;
    let mut samples = vec![Vec::new(); MEASURES.len()];
    let mut latencies = vec![Vec::new(); RATES.len()];
    for round in 0..=args.rounds {
        // The first round opens tunnels and fills caches.
        let seconds = if round == 0 {
            WARM_SECONDS
        } else {
            args.seconds
        };
        for (measure, samples) in MEASURES.iter().zip(&mut samples) {
            eprintln!("==> round {round} of {}: {}", args.rounds, measure.name);
            let sample = sample(stage, measure, seconds, round)
                .with_context(|| format!("measuring {}", measure.name))?;
            if round > 0 {
                samples.push(sample);
            }
        }
        for ((rate, connections), latencies) in RATES.into_iter().zip(&mut latencies) {
            eprintln!("==> round {round} of {}: {rate} requests/s", args.rounds);
            let pace = Pace {
                rate,
                connections,
                seconds,
            };
            let of_ways = by_way(stage, round, |way| latency(stage, way, pace))?;
            if round > 0 {
                latencies.push(of_ways);
            }
        }
    }
    for pid in stage.agents()? {
        memory
            .after_load_rss_bytes_by_agent
            .push(resident_bytes(pid)?);
        memory
            .after_load_anon_bytes_by_agent
            .push(anonymous_bytes(pid)?);
    }
    let rows = MEASURES
        .iter()
        .zip(&samples)
        .map(|(measure, samples)| Row::new(measure, samples, stage.place));
    let fixed = RATES
        .into_iter()
        .zip(&latencies)
        .map(|((rate, connections), rounds)| FixedRate::new(rate, connections, rounds));
    let fixed_rates: Vec<FixedRate> = fixed.collect::<Option<_>>().context("no rounds")?;
    let mut report = Report {
        rows: rows.collect::<Option<_>>().context("no rounds")?,
        memory,
        fixed_rate: fixed_rates.last().context("no rates")?.clone(),
        fixed_rates,
        bypass_events: Counted::now(stage)?.since(&before).bypass_events,
        goals: Vec::new(),
        peer: args.peer.clone(),
        pin: stage.pin,
        rounds: args.rounds,
        seconds: args.seconds,
        place: Some(stage.place),
    };
    report.judge();
    Ok(report)
}

/// Every way in turn, one right after the other; which comes first changes with the round, so that what the machine
/// does meanwhile favours none.
pub fn by_way<T>(
    stage: &Stage,
    round: u32,
    mut measure: impl FnMut(Way) -> Result<T>,
) -> Result<Ways<T>> {
    let mut ways = stage.ways();
    let first = round as usize % ways.len();
    ways.rotate_left(first);
    let (mut direct, mut karst, mut peer) = (None, None, None);
    for way in ways {
        let place = match way {
            Way::Direct => &mut direct,
            Way::Karst => &mut karst,
            Way::Peer => &mut peer,
        };
        *place = Some(measure(way).with_context(|| format!("the way {way:?}"))?);
    }
    Ok(Ways {
        direct: direct.context("nothing was measured directly")?,
        karst: karst.context("nothing was measured through the mesh")?,
        peer,
    })
}

/// One round of one row.
fn sample(stage: &Stage, measure: &Measure, seconds: u32, round: u32) -> Result<Sample> {
    let mut connections = Connections::default();
    let ways = by_way(stage, round, |way| {
        let pair = stage.pair(way)?;
        if way != Way::Karst {
            return measured(stage, way, || load(stage, measure, pair, seconds))
                .map(|(run, _)| run);
        }
        let counted = Counted::now(stage)?;
        let (run, total) = measured(stage, way, || load(stage, measure, pair, seconds))?;
        let least = if measure.cpu_unit == "connection" {
            total
        } else {
            1.0
        };
        connections = settled(stage, &counted, least)?.connections;
        ensure!(
            connections.opened > 0.0,
            "the client's agent has counted no connection, so the load did not pass through the mesh"
        );
        if stage.place == Place::TwoNodes {
            ensure!(
                run.cpu.agents_us.iter().all(|us| *us > 0.0),
                "an agent used no CPU, so the load did not pass through it"
            );
        }
        Ok(run)
    })?;
    Ok(Sample {
        direct: ways.direct,
        karst: ways.karst,
        peer: ways.peer,
        connections,
    })
}

/// Runs a load, and gives with it the CPU that was used for each unit, and how many units there were.
pub fn measured(
    stage: &Stage,
    way: Way,
    load: impl FnOnce() -> Result<Achieved>,
) -> Result<(Run, f64)> {
    let before = Usage::now(stage, way)?;
    let achieved = load()?;
    let after = Usage::now(stage, way)?;
    ensure!(achieved.total > 0.0, "nothing passed through");
    let run = Run {
        per_second: achieved.per_second,
        cpu: after.since(&before, achieved.total),
        latency: achieved.latency,
    };
    Ok((run, achieved.total))
}

/// What was counted since `before`, once `least` connections are, or after a while: a connection that bypasses an agent
/// is counted when the agent hears of it.
pub fn settled(stage: &Stage, before: &Counted, least: f64) -> Result<Counted> {
    let begun = Instant::now();
    loop {
        let since = Counted::now(stage)?.since(before);
        if since.connections.opened >= least || begun.elapsed() > COUNT_LIMIT {
            return Ok(since);
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn load(stage: &Stage, measure: &Measure, pair: &Pair, seconds: u32) -> Result<Achieved> {
    let (lab, client, server) = (&stage.lab, &pair.client, pair.server.to_string());
    let url = format!("http://{server}/");
    let wrk = |connections, reuse| wrk(lab, client, &url, connections, reuse, seconds);
    match measure.name {
        "throughput_1" => iperf(lab, client, &server, 1, seconds),
        "throughput_8" => iperf(lab, client, &server, 8, seconds),
        "http_c1" => wrk(1, Reuse::KeepAlive),
        "http_c32" => wrk(32, Reuse::KeepAlive),
        "connections_c1" => wrk(1, Reuse::Never),
        "connections_c16" => wrk(16, Reuse::Never),
        other => anyhow::bail!("no load is known for {other}"),
    }
}

fn latency(stage: &Stage, way: Way, pace: Pace) -> Result<Latency> {
    let pair = stage.pair(way)?;
    let target = Target::http1(SocketAddr::new(pair.server, PORT), "/");
    own::rate(&stage.lab, &pair.client, &target, pace)
}

/// Memory of the agents before any load, and how much more of it idle connections take.
fn memory(stage: &Stage) -> Result<Memory> {
    eprintln!("==> memory");
    let agents = stage.agents()?;
    let of = |read: fn(u32) -> Result<u64>| -> Result<Vec<u64>> {
        agents.iter().map(|pid| read(*pid)).collect()
    };
    let (idle, idle_rss) = (of(anonymous_bytes)?, of(resident_bytes)?);
    let pair = stage.pair(Way::Karst)?;
    let _warm = hold(stage, pair, WARM_CONNECTIONS)?;
    let before = of(anonymous_bytes)?;
    let _held = hold(stage, pair, IDLE_CONNECTIONS)?;
    let after = of(anonymous_bytes)?;
    let growth: Vec<i64> = before
        .iter()
        .zip(after)
        .map(|(before, after)| {
            (after.cast_signed() - before.cast_signed()) * 1000 / i64::from(IDLE_CONNECTIONS)
        })
        .collect();
    Ok(Memory {
        idle_anon_bytes: idle.iter().copied().max().unwrap_or(0),
        per_1000_connections_anon_bytes: growth.iter().copied().max().unwrap_or(0),
        idle_anon_bytes_by_agent: idle,
        per_1000_connections_anon_bytes_by_agent: growth,
        idle_rss_bytes_by_agent: idle_rss,
        ..Memory::default()
    })
}

/// Opens connections; they stay open until the result is dropped.
pub fn hold(stage: &Stage, pair: &Pair, connections: u32) -> Result<Running> {
    let target = Target::http1(SocketAddr::new(pair.server, PORT), "/");
    own::hold(&stage.lab, &pair.client, &target, connections)
}

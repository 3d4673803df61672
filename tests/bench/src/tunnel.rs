//! `karst-bench tunnel`: the mesh between two nodes against a direct connection.

use std::{env, net::SocketAddr};

use anyhow::{Context, Result, ensure};
use karst_harness::Running;

use crate::{
    load::Latency,
    own::{self, Pace, Target},
    process::{anonymous_bytes, cpu_us},
    report::{FixedRate, MEASURES, Measure, Memory, Report, Row, Sample, median},
    stage::{Pair, Stage},
    tools::{Achieved, Reuse, iperf, wrk},
};

/// Requests a second for the latencies: a fifth of what a stock ztunnel manages, so that the queue
/// is short and latency is that of the way.
const RATE: u32 = 2000;
const RATE_CONNECTIONS: u32 = 8;

/// The server's.
const PORT: u16 = 80;

/// Idle connections whose memory is measured.
const IDLE_CONNECTIONS: u32 = 2000;
/// Connections opened before the first look, so that what is allocated once is not counted.
const WARM_CONNECTIONS: u32 = 100;

/// Arguments of `tunnel`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the result as one JSON object instead of a table.
    #[arg(short, long)]
    json: bool,
    /// Rounds, each with every measurement direct and meshed; the result is the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
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
    let executable = env::current_exe().context("finding this program")?;
    let folder = executable.with_file_name("karst-bench.files");
    eprintln!("==> raising the lab");
    let stage = Stage::raise(&folder)?;
    let measured = measure(&stage, args);
    eprintln!("==> removing the lab");
    let downed = stage.lab.down();
    let report = measured?;
    downed?;
    if args.json {
        println!(
            "{}",
            serde_json::to_string(&report).context("writing the result")?
        );
    } else {
        println!("{}", report.tables());
    }
    Ok(())
}

fn measure(stage: &Stage, args: &Args) -> Result<Report> {
    let memory = memory(stage)?;
    let mut samples = vec![Vec::new(); MEASURES.len()];
    let mut latencies = Vec::new();
    for round in 0..args.rounds {
        for (measure, samples) in MEASURES.iter().zip(&mut samples) {
            eprintln!(
                "==> round {} of {}: {}",
                round + 1,
                args.rounds,
                measure.name
            );
            samples.push(sample(stage, measure, args.seconds, round)?);
        }
        eprintln!(
            "==> round {} of {}: {RATE} requests/s",
            round + 1,
            args.rounds
        );
        latencies.push((
            latency(stage, &stage.direct, args.seconds)?,
            latency(stage, &stage.meshed, args.seconds)?,
        ));
    }
    let rows = MEASURES
        .iter()
        .zip(&samples)
        .map(|(measure, samples)| Row::new(measure, samples));
    Ok(Report {
        rows: rows.collect::<Option<_>>().context("no rounds")?,
        memory,
        fixed_rate: fixed_rate(&latencies).context("no rounds")?,
        rounds: args.rounds,
        seconds: args.seconds,
    })
}

/// Direct and meshed, one right after the other; which comes first changes with the round, so that
/// what the machine does meanwhile favours neither.
fn sample(stage: &Stage, measure: &Measure, seconds: u32, round: u32) -> Result<Sample> {
    let direct = || load(stage, measure, &stage.direct, seconds);
    let earlier = if round.is_multiple_of(2) {
        Some(direct()?)
    } else {
        None
    };
    let (karst, cpu_us) = meshed(stage, measure, seconds)?;
    let direct = earlier.map_or_else(direct, Ok)?;
    Ok(Sample {
        direct: direct.per_second,
        karst: karst.per_second,
        cpu_us,
    })
}

/// What passes through the mesh, and the CPU time of both agents for each unit of it.
fn meshed(stage: &Stage, measure: &Measure, seconds: u32) -> Result<(Achieved, [f64; 2])> {
    let [source, destination] = stage.agents()?;
    let before = [cpu_us(source)?, cpu_us(destination)?];
    let karst = load(stage, measure, &stage.meshed, seconds)?;
    let used = [
        cpu_us(source)? - before[0],
        cpu_us(destination)? - before[1],
    ];
    ensure!(
        karst.total > 0.0,
        "{}: nothing passed through the mesh",
        measure.name
    );
    ensure!(
        used.iter().all(|us| *us > 0.0),
        "{}: an agent used no CPU, so the load did not pass through it",
        measure.name
    );
    Ok((karst, used.map(|us| us / karst.total)))
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

fn latency(stage: &Stage, pair: &Pair, seconds: u32) -> Result<Latency> {
    let target = Target::http1(SocketAddr::new(pair.server, PORT), "/");
    let pace = Pace {
        rate: RATE,
        connections: RATE_CONNECTIONS,
        seconds,
    };
    own::rate(&stage.lab, &pair.client, &target, pace)
}

fn fixed_rate(latencies: &[(Latency, Latency)]) -> Option<FixedRate> {
    let of = |value: fn(&(Latency, Latency)) -> f64| median(latencies.iter().map(value));
    let direct = Latency {
        p50_us: of(|l| l.0.p50_us)?,
        p99_us: of(|l| l.0.p99_us)?,
    };
    let karst = Latency {
        p50_us: of(|l| l.1.p50_us)?,
        p99_us: of(|l| l.1.p99_us)?,
    };
    Some(FixedRate {
        requests_per_second: RATE,
        connections: RATE_CONNECTIONS,
        direct,
        karst,
        p50_ratio: karst.p50_us / direct.p50_us,
        p99_ratio: karst.p99_us / direct.p99_us,
    })
}

/// Memory of the agents before any load, and how much more of it idle connections take.
fn memory(stage: &Stage) -> Result<Memory> {
    eprintln!("==> memory");
    let agents = stage.agents()?;
    let now =
        || -> Result<[u64; 2]> { Ok([anonymous_bytes(agents[0])?, anonymous_bytes(agents[1])?]) };
    let idle = now()?;
    let _warm = hold(stage, WARM_CONNECTIONS)?;
    let before = now()?;
    let _held = hold(stage, IDLE_CONNECTIONS)?;
    let after = now()?;
    let growth = |agent: usize| {
        (after[agent].cast_signed() - before[agent].cast_signed()) * 1000
            / i64::from(IDLE_CONNECTIONS)
    };
    Ok(Memory {
        idle_anon_bytes: idle[0].max(idle[1]),
        per_1000_connections_anon_bytes: growth(0).max(growth(1)),
    })
}

/// Opens connections through the mesh; they stay open until the result is dropped.
fn hold(stage: &Stage, connections: u32) -> Result<Running> {
    let target = Target::http1(SocketAddr::new(stage.meshed.server, PORT), "/");
    own::hold(&stage.lab, &stage.meshed.client, &target, connections)
}

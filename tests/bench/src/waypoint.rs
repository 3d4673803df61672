//! `karst-bench waypoint`: our waypoint and Envoy in the same place, and a direct connection beside them.

mod count;
mod envoy;
pub mod launch;
mod measure;
mod report;
mod stage;

use std::{env, num::NonZero, path::PathBuf, thread};

use anyhow::{Context, Result, ensure};

use crate::{
    load::{Latency, raise_open_files},
    output::{ChartFile, Outcome, Output},
    own::{self, Pace, Target},
    process::{cpu_us, resident_bytes},
    tools::{Achieved, Reuse, h2load, wrk},
};
use measure::{Measure, Protocol};
use report::{Idle, Report, Row, Sample, Three, Two};
use stage::{Proxy, Stage, Way};

/// Idle connections whose memory is measured.
const IDLE_CONNECTIONS: u32 = 1000;

/// The proxy's own count of requests may miss what was under way when the load ended, by this share.
const COUNT_SLACK: f64 = 0.02;

/// Arguments of `waypoint`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    output: Output,
    /// Rounds, each with every measurement direct and through both proxies; the result is the median.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=60))]
    seconds: u32,
    /// Measure only rows whose name contains this, as in `http1_1k` or `idle`. Repeatable.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Threads of either proxy; one for each CPU by default.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: Option<u16>,
    /// Neither proxy writes an access log.
    #[arg(long)]
    no_access_log: bool,
    /// Envoy's program. `cargo xtask bench` says which.
    #[arg(long, env = "KARST_ENVOY")]
    envoy: PathBuf,
}

/// Raises the lab, measures, and removes it.
pub fn run(args: &Args) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab needs root: it makes network namespaces"
    );
    let measures = measure::selected(&args.only)?;
    raise_open_files()?;
    let executable = env::current_exe().context("finding this program")?;
    let options = stage::Options {
        folder: executable.with_file_name("karst-bench.files"),
        envoy: args.envoy.clone(),
        workers: args.workers.map_or_else(cpus, u32::from),
        access_log: !args.no_access_log,
    };
    eprintln!("==> raising the lab");
    let stage = Stage::raise(&options)?;
    let measured = measure(&stage, &measures, args);
    if measured.is_err() {
        eprintln!("==> what the proxies said last:\n{}", stage.last_words());
    }
    eprintln!("==> removing the lab");
    let downed = stage.lab.down();
    let (rows, idle) = measured?;
    downed?;
    let report = Report {
        floors: report::floors(&rows, &idle),
        rows,
        idle,
        envoy_version: envoy::version(&args.envoy)?,
        workers: options.workers,
        access_log: options.access_log,
        rounds: args.rounds,
        seconds: args.seconds,
    };
    let outcome = Outcome {
        name: "waypoint",
        json: report.json(),
        table: report.tables(),
        chart: None,
    };
    args.output.put(&outcome, &ChartFile::default())
}

fn cpus() -> u32 {
    thread::available_parallelism()
        .ok()
        .and_then(|cpus| u32::try_from(NonZero::get(cpus)).ok())
        .unwrap_or(1)
}

fn measure(stage: &Stage, measures: &[Measure], args: &Args) -> Result<(Vec<Row>, Vec<Idle>)> {
    let idle = idle(stage, &args.only)?;
    let mut samples = vec![Vec::new(); measures.len()];
    for round in 0..args.rounds {
        for (measure, samples) in measures.iter().zip(&mut samples) {
            let name = measure.name();
            eprintln!("==> round {} of {}: {name}", round + 1, args.rounds);
            let sample = sample(stage, measure, args.seconds, round);
            samples.push(sample.with_context(|| name)?);
        }
    }
    let rows = measures
        .iter()
        .zip(&samples)
        .map(|(measure, samples)| Row::new(measure, samples));
    Ok((rows.collect::<Option<_>>().context("no rounds")?, idle))
}

/// Direct and through both, one right after the other; which comes first changes with the round, so
/// that what the machine does meanwhile favours none.
fn sample(stage: &Stage, measure: &Measure, seconds: u32, round: u32) -> Result<Sample> {
    let mut ways = Way::ALL;
    let first = round as usize % ways.len();
    ways.rotate_left(first);
    let mut per_second = Three::default();
    let mut latency = Three::default();
    let (mut cpu, mut rss) = (Two::default(), Two::default());
    for way in ways {
        let done = loaded(stage, measure, way, seconds).with_context(|| way.name())?;
        *per_second.at(way) = done.achieved.per_second;
        if let Some((cpu_us, rss_bytes)) = done.proxy {
            *cpu.at(way)? = cpu_us;
            *rss.at(way)? = rss_bytes;
        }
    }
    for way in ways {
        *latency.at(way) = paced(stage, measure, way, seconds).with_context(|| way.name())?;
    }
    Ok(Sample {
        per_second,
        latency,
        cpu_us: cpu,
        rss_bytes: rss,
    })
}

/// What a load as fast as it goes achieved, and what it cost the proxy in its way.
struct Done {
    achieved: Achieved,
    /// Microseconds of CPU for each request, and resident bytes afterwards.
    proxy: Option<(f64, f64)>,
}

fn loaded(stage: &Stage, measure: &Measure, way: Way, seconds: u32) -> Result<Done> {
    let target = target(stage, measure, way)?;
    let load = || -> Result<Achieved> {
        let (lab, client, url) = (&stage.lab, stage.client(way), target.url());
        let achieved = match measure.protocol {
            Protocol::Http1 => wrk(
                lab,
                &client,
                &url,
                measure.connections,
                Reuse::KeepAlive,
                seconds,
            ),
            Protocol::Http2 => h2load(
                lab,
                &client,
                &url,
                measure.connections,
                measure.streams(),
                seconds,
            ),
        }?;
        ensure!(achieved.total > 0.0, "nothing was answered");
        Ok(achieved)
    };
    let Some(proxy) = stage.proxy(way) else {
        return Ok(Done {
            achieved: load()?,
            proxy: None,
        });
    };
    let before = (proxy.requests()?, cpu_us(proxy.pid)?);
    let achieved = load()?;
    let after = (proxy.requests()?, cpu_us(proxy.pid)?);
    let (requests, cpu) = (after.0 - before.0, after.1 - before.1);
    ensure_passed(requests, achieved.total)?;
    ensure!(cpu > 0.0, "the proxy used no CPU");
    Ok(Done {
        achieved,
        proxy: Some((cpu / requests, resident(proxy)?)),
    })
}

/// Fails unless the proxy itself says that it has answered what the load was answered.
fn ensure_passed(requests: f64, answered: f64) -> Result<()> {
    ensure!(
        requests >= answered * (1.0 - COUNT_SLACK),
        "{answered} requests were answered, but only {requests} passed through the proxy"
    );
    Ok(())
}

fn paced(stage: &Stage, measure: &Measure, way: Way, seconds: u32) -> Result<Latency> {
    let pace = Pace {
        rate: measure.rate(),
        connections: measure.connections,
        seconds,
    };
    own::rate(
        &stage.lab,
        &stage.client(way),
        &target(stage, measure, way)?,
        pace,
    )
}

fn target(stage: &Stage, measure: &Measure, way: Way) -> Result<Target> {
    let address = stage
        .address(way, measure.protocol, measure.routes)
        .context("no such service")?;
    let path = stage::path(measure.body, measure.routes);
    Ok(match measure.protocol {
        Protocol::Http1 => Target::http1(address, &path),
        Protocol::Http2 => Target::http2(address, &path),
    })
}

fn resident(proxy: &Proxy) -> Result<f64> {
    Ok(resident_bytes(proxy.pid)? as f64)
}

/// Memory of the proxies before any load, and with idle connections that each have served a request.
fn idle(stage: &Stage, only: &[String]) -> Result<Vec<Idle>> {
    let names = measure::selected_idle(only);
    let proxies = [Way::Karst, Way::Envoy];
    let mut rows = Vec::new();
    for (name, connections) in [("idle", 0), ("idle_c1000", IDLE_CONNECTIONS)] {
        if !names.contains(&name) {
            continue;
        }
        eprintln!("==> memory: {name}");
        let mut rss = Two::default();
        for way in proxies {
            let proxy = stage.proxy(way).context("no proxy")?;
            let first = Measure::FIRST;
            let before = proxy.requests()?;
            let held = (connections > 0)
                .then(|| {
                    let target = target(stage, &first, way)?;
                    own::hold(&stage.lab, &stage.client(way), &target, connections)
                })
                .transpose()?;
            ensure_passed(proxy.requests()? - before, f64::from(connections))?;
            *rss.at(way)? = resident(proxy)?;
            drop(held);
        }
        rows.push(Idle::new(name, rss));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_pass_through_the_proxy_is_no_result() {
        assert!(ensure_passed(1000.0, 1000.0).is_ok());
        // Connections of the check before the load, or what was under way at its end.
        assert!(ensure_passed(1100.0, 1000.0).is_ok());
        assert!(ensure_passed(990.0, 1000.0).is_ok());
        assert!(ensure_passed(900.0, 1000.0).is_err());
        assert!(ensure_passed(0.0, 1.0).is_err());
    }
}

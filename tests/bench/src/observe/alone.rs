//! What the recorders of agents and waypoints use by themselves: the code that counts and logs, called in a loop in a
//! process of its own.
//!
//! Between two processes that carry traffic a per cent cannot be told from what two processes differ by. Here one
//! process does nothing but record, and turns metrics and log on and off every few milliseconds, so that what the machine
//! does meanwhile is the same for all. Before each call more memory is read than the nearest cache has, so that the
//! recorders do not find there what they left.

mod agent;
mod waypoint;

use std::{
    fs, hint,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use karst_node_agent::access_log::AccessLog;
use karst_process::args::AccessLogFormat;
use nix::unistd::ftruncate;
use serde::{Deserialize, Serialize};

use super::interval::Interval;
use crate::process::cpu_us;

/// What is on in turn.
const SETTINGS: usize = 3;

/// Rounds that are measured.
const ROUNDS: u32 = 200;

/// Calls of a setting in a round: some milliseconds of CPU, and about as many as come between two writes of the log.
const CALLS: u32 = 500;

/// Memory that is read before each call, bytes: more than the nearest cache of a CPU has.
const BETWEEN: usize = 128 << 10;

/// Bytes of a line of a cache.
const CACHE_LINE: usize = 64;

/// Longest wait for the log's writer.
const FLUSH: Duration = Duration::from_secs(5);

/// Where files are in memory.
const MEMORY: &str = "/dev/shm";

/// Arguments of the process that records.
#[derive(clap::Args)]
pub struct Args {
    /// Where the result goes; standard output takes the access log.
    result: PathBuf,
}

/// What recording once uses, in microseconds of CPU, with its interval.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Used {
    /// Counting.
    pub metrics: Interval,
    /// Logging, its writer's share too.
    pub log: Interval,
}

/// What recording uses.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Alone {
    /// At one end of a connection.
    pub agent: Used,
    /// Of a request.
    pub waypoint: Used,
}

/// Something that records.
trait Records {
    /// Records once; `setting` says what is on: nothing, metrics, or metrics and log.
    fn record(&mut self, setting: usize, call: u32);

    /// How many were counted.
    fn counted(&self) -> Result<f64>;
}

/// Measures in a process of its own.
pub fn measure() -> Result<Alone> {
    let folder = tempfile::tempdir_in(MEMORY).with_context(|| format!("a folder in {MEMORY}"))?;
    let (log, result) = (folder.path().join("log"), folder.path().join("result"));
    // As the log of an agent: each write goes to the end, wherever that is now.
    let log = fs::File::options().append(true).create_new(true).open(log);
    let me = std::env::current_exe().context("finding this program")?;
    let status = Command::new(me)
        .arg("recorders")
        .arg(&result)
        .stdin(Stdio::null())
        .stdout(log.context("making a file in memory")?)
        .status()
        .context("starting the recorders")?;
    ensure!(status.success(), "the recorders ended with {status}");
    let said = fs::read(&result).context("reading what the recorders use")?;
    serde_json::from_slice(&said).context("what the recorders use")
}

/// The process that records.
pub fn run(args: &Args) -> Result<()> {
    let log = AccessLog::start(AccessLogFormat::Json).context("starting the access log")?;
    let found = Alone {
        agent: used(&log, agent::Agent::new(&log)?).context("the agent's recorders")?,
        waypoint: used(&log, waypoint::Waypoint::new(&log)?).context("the waypoint's recorders")?,
    };
    fs::write(&args.result, serde_json::to_vec(&found)?).context("writing the result")
}

fn used(log: &AccessLog, mut records: impl Records) -> Result<Used> {
    let memory = vec![1_u8; BETWEEN];
    let (mut metrics, mut logs) = (Vec::new(), Vec::new());
    let out = std::io::stdout();
    for round in 0..=ROUNDS {
        let mut cost = [0.0; SETTINGS];
        for setting in super::order(SETTINGS, round) {
            ftruncate(out.as_fd(), 0).context("emptying the log")?;
            let before = cpu_us(std::process::id())?;
            for call in 0..CALLS {
                let lines = memory.iter().step_by(CACHE_LINE);
                hint::black_box(lines.fold(0_u8, |sum, byte| sum ^ hint::black_box(*byte)));
                records.record(setting, call);
            }
            log.flush(FLUSH);
            let after = cpu_us(std::process::id())?;
            if let Some(cost) = cost.get_mut(setting) {
                *cost = (after - before) / f64::from(CALLS);
            }
            check(setting, out.as_fd())?;
        }
        // The first round makes what the others find.
        if round > 0 {
            let [off, counted, logged] = cost;
            metrics.push(counted - off);
            logs.push(logged - counted);
        }
    }
    ensure!(log.dropped() == 0, "{} lines were dropped", log.dropped());
    let (counted, wanted) = (records.counted()?, f64::from(2 * CALLS * (ROUNDS + 1)));
    ensure!(counted == wanted, "{counted} were counted of {wanted}");
    let interval = |values: &[f64]| Interval::of(values).context("too few rounds");
    Ok(Used {
        metrics: interval(&metrics)?,
        log: interval(&logs)?,
    })
}

/// The log must have a line of each call where it is on, and else none.
fn check(setting: usize, out: impl AsFd) -> Result<()> {
    let path = format!(
        "/proc/self/fd/{}",
        std::os::fd::AsRawFd::as_raw_fd(&out.as_fd())
    );
    let text = fs::read(&path).context("reading the log")?;
    let lines = text.iter().filter(|byte| **byte == b'\n').count();
    let wanted = if setting == SETTINGS - 1 { CALLS } else { 0 };
    ensure!(
        lines == wanted as usize,
        "the log has {lines} lines and not {wanted}"
    );
    Ok(())
}

/// The sum of a counter's samples in a scrape.
fn sum(text: &str, name: &str) -> Result<f64> {
    let samples = text.lines().filter(|line| line.starts_with(name));
    let value = |line: &str| {
        line.rsplit(' ')
            .next()
            .and_then(|value| value.parse::<f64>().ok())
    };
    let values: Option<Vec<f64>> = samples.map(value).collect();
    Ok(values.context("a sample without a value")?.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::{Records, agent::Agent, sum, waypoint::Waypoint};
    use karst_node_agent::access_log::AccessLog;
    use karst_process::args::AccessLogFormat;

    #[test]
    fn what_is_off_counts_nothing() {
        let log = AccessLog::start(AccessLogFormat::Off).unwrap();
        let mut all: [Box<dyn Records>; 2] = [
            Box::new(Agent::new(&log).unwrap()),
            Box::new(Waypoint::new(&log).unwrap()),
        ];
        for records in &mut all {
            for call in 0..100 {
                records.record(0, call);
            }
            assert_eq!(records.counted().unwrap(), 0.0);
            for call in 0..100 {
                records.record(1, call);
                records.record(2, call);
            }
            assert_eq!(records.counted().unwrap(), 200.0);
        }
    }

    #[test]
    fn samples_of_one_counter_are_added() {
        let text = "a_total{x=\"1\"} 3\na_total{x=\"2\"} 4\nab_total 9\n";
        assert_eq!(sum(text, "a_total{").unwrap(), 7.0);
    }
}

//! Many connections at once whose every byte is checked, at both ends.
//!
//! A client draws a [`Plan`] for each connection and tells it to the server in the connection's first bytes: how much each
//! side sends, who waits for whose end, and whether one of them resets. Each direction is a [`stream`] that both sides know
//! from a seed, so that a byte that is lost, doubled, changed or in another place is found where it is, and is followed by
//! its hash. A reset that was not planned is a failure, and so is a planned one that looks like an end.

mod plan;
mod stream;
mod talk;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::client::{Target, addresses};
use crate::{ports, tell};
use plan::{Plan, Reset};
use talk::{Outcome, Side};

/// A connection that is not done after this hangs.
const LIMIT: Duration = Duration::from_secs(60);
/// Different failures that are told.
const MAX_FAILURES: usize = 20;

/// Arguments of `stress`.
#[derive(clap::Args)]
pub struct Stress {
    /// Addresses of servers (`karst-testapp serve`), which take turns at random.
    #[arg(required = true)]
    hosts: Vec<IpAddr>,
    /// Begin connections for so many seconds.
    #[arg(long)]
    seconds: u64,
    /// How many connections at a time.
    #[arg(long, default_value_t = 32)]
    at_once: u64,
    /// The most bytes of one direction.
    #[arg(long, default_value_t = 8 << 20)]
    max_bytes: u64,
    /// Seed of all plans; drawn when it is not given, and told in any case.
    #[arg(long)]
    seed: Option<u64>,
}

/// What came of connections.
#[derive(Default)]
pub struct Totals {
    counts: Mutex<Counts>,
}

#[derive(Clone, Default)]
struct Counts {
    whole: u64,
    reset: u64,
    /// Reset before the plan was there.
    unplanned: u64,
    bytes: u64,
    open: u64,
    by_host: BTreeMap<String, u64>,
    failed: u64,
    failures: BTreeMap<String, u64>,
}

impl Totals {
    fn change(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn note(&self, outcome: Result<Outcome>) {
        self.change(|counts| match outcome {
            Ok(outcome) => {
                counts.bytes += outcome.checked;
                *match outcome.side {
                    Side::Whole => &mut counts.whole,
                    Side::Reset => &mut counts.reset,
                    Side::Unplanned => &mut counts.unplanned,
                } += 1;
            }
            Err(error) => {
                let text = format!("{error:#}");
                tell(&json!({"event": "stress_failure", "error": text}));
                counts.failed += 1;
                if counts.failures.len() < MAX_FAILURES || counts.failures.contains_key(&text) {
                    *counts.failures.entry(text).or_default() += 1;
                }
            }
        });
    }

    fn report(&self) -> Value {
        let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        json!({
            "ok": counts.failed == 0,
            "whole": counts.whole,
            "reset": counts.reset,
            "reset_before_plan": counts.unplanned,
            "open": counts.open,
            "bytes_checked": counts.bytes,
            "by_host": counts.by_host,
            "failed": counts.failed,
            "failures": counts.failures,
        })
    }
}

/// Makes connections for the time that is asked for, and tells what came of them.
pub async fn stress(stress: Stress) -> Result<Value> {
    ensure!(stress.at_once > 0, "at least one connection at a time");
    let seed = stress.seed.unwrap_or_else(rand::random);
    let until = Instant::now() + Duration::from_secs(stress.seconds);
    let stress = Arc::new(stress);
    let totals = Arc::new(Totals::default());
    let mut workers = Vec::new();
    for number in 0..stress.at_once {
        let (stress, totals) = (stress.clone(), totals.clone());
        let mut random = StdRng::seed_from_u64(seed.wrapping_add(number));
        workers.push(tokio::spawn(async move {
            while Instant::now() < until {
                let host = stress.hosts[random.random_range(0..stress.hosts.len())];
                let plan = Plan::draw(&mut random, stress.max_bytes);
                totals.change(|c| *c.by_host.entry(host.to_string()).or_default() += 1);
                let outcome = dial(host, &plan, &mut random).await;
                totals.note(outcome.with_context(|| format!("to {host}: {plan:?}")));
            }
        }));
    }
    for worker in workers {
        worker.await.context("a worker ended")?;
    }
    let mut report = totals.report();
    report["seed"] = json!(seed);
    Ok(report)
}

async fn dial(host: IpAddr, plan: &Plan, random: &mut StdRng) -> Result<Outcome> {
    let port = if plan.server_first {
        ports::STRESS_FIRST
    } else {
        ports::STRESS
    };
    let whole = async {
        let stream = TcpStream::connect(SocketAddr::new(host, port))
            .await
            .context("connecting")?;
        client(stream, plan, random).await
    };
    timeout(LIMIT, whole).await.context("not done in time")?
}

/// A client's side of a connection.
async fn client(
    mut stream: TcpStream,
    plan: &Plan,
    random: &mut (impl Rng + Send),
) -> Result<Outcome> {
    // Without waiting for the greeting, both sides speak first.
    let eager = random.random_bool(0.5);
    let mut greeting = 0;
    if plan.server_first && !eager {
        greeting = talk::hear_greeting(&mut stream).await?;
    }
    let sent = talk::send_plan(&mut stream, plan, random).await;
    sent.context("sending the plan")?;
    if plan.server_first && eager {
        // The server has the plan, and may have reset by now, which overtakes what it has said before.
        greeting = match talk::hear_greeting(&mut stream).await {
            Ok(greeting) => greeting,
            Err(error) if matches!(plan.reset, Reset::ByServer(_)) => {
                return talk::reset_or(error, Side::Reset);
            }
            Err(error) => return Err(error),
        };
    }
    let mut outcome = talk::client(stream, plan, random).await?;
    outcome.checked += greeting;
    Ok(outcome)
}

/// Opens the servers that [`stress`] talks to, and the one that tells what they saw.
pub async fn serve() -> Result<()> {
    let totals = Arc::new(Totals::default());
    for (port, speaks_first) in [(ports::STRESS, false), (ports::STRESS_FIRST, true)] {
        let listener = bind(port).await?;
        tokio::spawn(accept(listener, speaks_first, totals.clone()));
    }
    let listener = bind(ports::STRESS_TOTALS).await?;
    tokio::spawn(async move {
        loop {
            // The peer gave up before it was accepted; the next one asks again.
            if let Ok((mut stream, _)) = listener.accept().await {
                let line = format!("{}\n", totals.report());
                tokio::spawn(async move { stream.write_all(line.as_bytes()).await });
            }
        }
    });
    Ok(())
}

async fn bind(port: u16) -> Result<TcpListener> {
    let bound = TcpListener::bind(("::", port)).await;
    bound.with_context(|| format!("listening on port {port}"))
}

async fn accept(listener: TcpListener, speaks_first: bool, totals: Arc<Totals>) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            continue;
        };
        let totals = totals.clone();
        totals.change(|counts| counts.open += 1);
        tokio::spawn(async move {
            let outcome = timeout(LIMIT, server(stream, speaks_first)).await;
            let outcome = outcome.context("not done in time").and_then(|inner| inner);
            totals.note(outcome.with_context(|| format!("from {from}")));
            totals.change(|counts| counts.open -= 1);
        });
    }
}

/// A server's side of a connection.
async fn server(mut stream: TcpStream, speaks_first: bool) -> Result<Outcome> {
    let mut random = StdRng::from_rng(&mut rand::rng());
    if speaks_first && let Err(error) = talk::greet(&mut stream, &mut random).await {
        return talk::reset_or(error.into(), Side::Unplanned).context("greeting");
    }
    let plan = match talk::hear_plan(&mut stream).await {
        Ok(plan) => plan,
        // A client may reset at once.
        Err(error) => {
            return talk::reset_or(error, Side::Unplanned).context("reading the plan");
        }
    };
    ensure!(plan.server_first == speaks_first, "another port's plan");
    let outcome = talk::server(stream, &plan, &mut random).await;
    outcome.with_context(|| format!("{plan:?}"))
}

/// Asks a server what it saw.
pub async fn totals(target: &Target) -> Result<Value> {
    let address = addresses(target).await?;
    let ask = async {
        let mut stream = TcpStream::connect(&*address).await.context("connecting")?;
        let mut text = String::new();
        let read = stream.read_to_string(&mut text).await;
        read.context("reading the totals")?;
        serde_json::from_str(text.trim()).context("the totals are no JSON")
    };
    timeout(LIMIT, ask).await.context("no totals in time")?
}

//! `scale`: a real controller with a large cluster, its agents simulated; and a real agent's state.
//!
//! The controller is the program that ships, in a process of its own. It follows [`server`], which shows it the cluster
//! of [`model`] as an API server would; [`churn`] replaces pods there, [`subscribers`] are agents that acknowledge and
//! keep nothing, [`agent`] is one that keeps everything. `README.md` has the method.

pub mod agent;
mod churn;
mod controller;
mod model;
mod report;
mod server;
mod subscribers;
mod times;
mod wire;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use karst_harness::Running;
use tempfile::TempDir;
use tokio::{
    sync::watch,
    task::{JoinSet, spawn_blocking},
};

use self::{
    controller::Controller,
    model::{Model, Sizes},
    report::{AgentMemory, Bytes, Latencies, Report, Spent},
    server::Server,
    subscribers::{Seen, Shared},
};
use crate::{load::raise_open_files, own::this_program, process};

/// All subscribers must have been told everything within this time.
const SYNC_LIMIT: Duration = Duration::from_secs(600);

/// Churn goes on for so long before anything counts.
const WARM_UP: Duration = Duration::from_secs(5);

/// After this time without work the memory of an agent is what it keeps.
const SETTLE: Duration = Duration::from_secs(3);

/// What is not delivered this long after the last change is lost.
const DELIVERY_LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `scale`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 1_000)]
    nodes: u32,
    /// Pods, without those of the agents.
    #[arg(long, default_value_t = 100_000)]
    pods: u32,
    /// Services, each of which has the same number of the pods.
    #[arg(long, default_value_t = 10_000)]
    services: u32,
    /// Simulated agents; at most one a node.
    #[arg(long, default_value_t = 1_000)]
    subscribers: u32,
    /// Pods that are replaced each second.
    #[arg(long, default_value_t = 200.0)]
    churn: f64,
    /// How long is measured.
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Print JSON.
    #[arg(short, long)]
    json: bool,
}

impl Args {
    fn check(&self) -> Result<()> {
        ensure!(
            self.nodes > 0 && self.services > 0 && self.pods >= self.services,
            "there must be a node, a Service and a pod of each Service at least"
        );
        ensure!(
            self.subscribers > 0 && self.subscribers <= self.nodes,
            "there must be a subscriber, and not more of them than nodes"
        );
        ensure!(
            self.seconds > 0 && self.churn > 0.0 && self.churn <= 10_000.0,
            "the churn must be above 0 and at most 10000 a second, and last for a second at least"
        );
        ensure!(
            self.nodes <= 10_000 && self.services <= 60_000 && self.pods <= 1_000_000,
            "more than 10000 nodes, 60000 Services or 1000000 pods have no addresses here"
        );
        Ok(())
    }

    fn lasting(&self) -> Duration {
        Duration::from_secs(self.seconds.into())
    }
}

/// Measures and prints.
pub fn run(args: &Args) -> Result<()> {
    let report = measure(args)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.tables());
    }
    Ok(())
}

/// Measures.
pub fn measure(args: &Args) -> Result<Report> {
    args.check()?;
    raise_open_files()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let folder = TempDir::with_prefix("karst-scale-")?;
    let report = runtime.block_on(Run::new(args, folder.path()).whole());
    runtime.shutdown_background();
    report
}

struct Run<'a> {
    args: &'a Args,
    folder: &'a Path,
    model: Arc<Model>,
}

impl<'a> Run<'a> {
    fn new(args: &'a Args, folder: &'a Path) -> Self {
        let sizes = Sizes {
            nodes: args.nodes,
            pods: args.pods,
            services: args.services,
        };
        // Twice the time, and some, for what goes on around the measured part.
        let replaced = args.churn * f64::from(2 * args.seconds + 120);
        Self {
            args,
            folder,
            model: Arc::new(Model::new(sizes, replaced as u32)),
        }
    }

    async fn whole(self) -> Result<Report> {
        let args = self.args;
        say("starting the controller");
        let api = Server::start(self.model.clone()).await?;
        let controller = Controller::start(self.folder, api).await?;
        let start_seconds = controller.start_seconds;
        let resident_alone = process::resident_bytes(controller.pid())?;

        say("a new agent");
        let (first, memory) = self.agent(&controller, 0).await?;
        let roots = fs::read(&controller.roots)?;
        let shared = Arc::new(Shared::new(self.model.clone(), controller.address, &roots)?);
        let (stop, stopped) = watch::channel(false);
        let mut subscribers = JoinSet::new();
        let mut start = |node: u32| {
            subscribers.spawn(subscribers::run(shared.clone(), node, stopped.clone()));
        };
        say("a subscriber");
        start(0);
        let snapshot_seconds = synced(&shared, 1, &mut subscribers).await?;
        let snapshot_bytes = shared.bytes.load(Ordering::Relaxed);
        say("the other subscribers");
        let mut start = |node: u32| {
            subscribers.spawn(subscribers::run(shared.clone(), node, stopped.clone()));
        };
        (1..args.subscribers).for_each(&mut start);
        let all_seconds = match args.subscribers {
            1 => snapshot_seconds,
            all => synced(&shared, all.into(), &mut subscribers).await?,
        };
        let idle = self.spend(&controller, &shared, SETTLE).await?;

        say("churn");
        let stop_churn = Arc::new(AtomicBool::new(false));
        let churn = tokio::spawn({
            let (model, rate, first) = (self.model.clone(), args.churn, args.pods);
            let stop = stop_churn.clone();
            async move { churn::run(&model, rate, first, &stop).await }
        });
        tokio::time::sleep(WARM_UP).await;
        let from = self.model.times.now();
        let window = (from, from + u64::from(args.seconds) * 1_000_000);
        shared.window.1.store(window.1, Ordering::Relaxed);
        shared.window.0.store(window.0, Ordering::Relaxed);
        let before = controller.propagation().await?;
        let churning = self.spend(&controller, &shared, args.lasting()).await?;
        let propagation = controller.propagation().await?.since(&before);
        say("a new agent while pods are replaced");
        let (under_churn, memory_after_churn) = self.agent(&controller, 1).await?;
        stop_churn.store(true, Ordering::Relaxed);
        let replaced = churn.await?;
        tokio::time::sleep(Duration::from_secs(1)).await;

        let changes = self.model.times.changes(window.0, window.1);
        let expected = changes * u64::from(args.subscribers);
        let deadline = Instant::now() + DELIVERY_LIMIT;
        while shared.counted.load(Ordering::Relaxed) < expected && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let resident_max = controller.resident_max()?;
        stop.send_replace(true);
        let mut seen = Seen::default();
        while let Some(one) = subscribers.join_next().await {
            seen.latencies.merge(&one??.latencies);
        }
        let samples = seen.latencies.count();
        // A change that is followed by another one before it was sent is told of once.
        ensure!(
            samples as f64 >= 0.99 * expected as f64,
            "of {changes} changes {} subscribers were told {samples} times: {expected} were to come",
            args.subscribers
        );
        ensure!(replaced > 0, "no pod was replaced");
        Ok(Report {
            nodes: args.nodes,
            pods: args.pods,
            services: args.services,
            subscribers: args.subscribers,
            churn_pods_per_second: args.churn,
            seconds: args.seconds,
            change_to_ack: Latencies::new(&seen.latencies, changes, expected),
            change_to_ack_by_controller: propagation.into(),
            controller_start_seconds: start_seconds,
            controller_resident_bytes_alone: resident_alone,
            controller_resident_bytes_max: resident_max,
            idle,
            churn: churning,
            snapshot: Bytes {
                seconds: snapshot_seconds,
                bytes: snapshot_bytes,
            },
            all_snapshots_seconds: all_seconds,
            new_agent_seconds: first,
            new_agent_seconds_under_churn: under_churn,
            agent: memory,
            agent_after_churn: memory_after_churn,
        })
    }

    /// A new agent: how long it takes to know all, and what it then keeps.
    async fn agent(&self, controller: &Controller, node: u32) -> Result<(f64, AgentMemory)> {
        let token = self.folder.join(format!("token-{node}"));
        fs::write(&token, subscribers::token(node)?)?;
        let mut command = Command::new(this_program()?);
        command
            .arg("mesh-agent")
            .args(["--controller", &controller.address.to_string()])
            .args(["--node", &model::node_name(node)])
            .arg("--roots")
            .arg(&controller.roots)
            .arg("--token")
            .arg(&token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let child = command.spawn().context("starting an agent")?;
        let pid = child.id();
        let mut running = Running::new(child);
        let stdout = running.child()?.stdout.take().context("no output")?;
        let line = spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(SYNC_LIMIT, line)
            .await
            .context("the agent does not get to know all")???;
        let synced: agent::Synced =
            serde_json::from_str(&line).with_context(|| format!("an agent said {line:?}"))?;
        let (pods, services) = (self.args.pods as usize, self.args.services as usize);
        ensure!(
            synced.workloads >= pods && synced.services >= services,
            "an agent knows {} workloads and {} services of {pods} and {services}",
            synced.workloads,
            synced.services
        );
        tokio::time::sleep(SETTLE).await;
        let memory = AgentMemory {
            workloads: synced.workloads,
            resident_bytes: process::resident_bytes(pid)?,
            anonymous_bytes: process::anonymous_bytes(pid)?,
        };
        Ok((synced.seconds, memory))
    }

    /// What is spent and sent in a time.
    async fn spend(
        &self,
        controller: &Controller,
        shared: &Shared,
        lasting: Duration,
    ) -> Result<Spent> {
        let me = std::process::id();
        let read = || -> Result<[f64; 5]> {
            Ok([
                process::cpu_us(controller.pid())?,
                process::cpu_us(me)?,
                shared.bytes.load(Ordering::Relaxed) as f64,
                shared.responses.load(Ordering::Relaxed) as f64,
                shared.resources.load(Ordering::Relaxed) as f64,
            ])
        };
        let (begun, before) = (Instant::now(), read()?);
        tokio::time::sleep(lasting).await;
        let (elapsed, after) = (begun.elapsed().as_secs_f64(), read()?);
        let rate = |at: usize| (after[at] - before[at]) / elapsed;
        Ok(Spent {
            controller_cores: rate(0) / 1e6,
            bench_cores: rate(1) / 1e6,
            bytes_per_second: rate(2),
            responses_per_second: rate(3),
            resources_per_second: rate(4),
        })
    }
}

/// Waits until so many subscribers have been told everything; returns how long that took.
async fn synced(
    shared: &Shared,
    count: u64,
    subscribers: &mut JoinSet<Result<Seen>>,
) -> Result<f64> {
    let begun = Instant::now();
    while shared.synced.load(Ordering::Relaxed) < count {
        if let Some(ended) = subscribers.try_join_next() {
            ended??;
            bail!("a subscriber ended before it was told to");
        }
        ensure!(
            begun.elapsed() < SYNC_LIMIT,
            "{} of {count} subscribers have been told everything",
            shared.synced.load(Ordering::Relaxed)
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(begun.elapsed().as_secs_f64())
}

fn say(what: &str) {
    eprintln!("==> {what}");
}

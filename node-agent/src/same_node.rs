//! Connections between two pods of this node go past the agent, where nothing asks for it to be in between.
//!
//! The programs in the kernel let a connection through by a verdict that was made in advance, from the same state and
//! by the same matcher that decide about every other connection ([`verdicts`]). They resolve services by what is said
//! to them of endpoints here ([`services`]). What they do not find comes to the agent, which decides as ever: a
//! waypoint, a policy that has not come or is on trial, a full table, a pod whose interface is not guarded.
//! The bytes never leave the machine's memory and are not encrypted; `--encrypt-same-node` has them go through the
//! agent all the same.
//!
//! [`SameNode`] is the task that keeps it so: with every change of the mesh the tables change first, and then
//! connections that are not allowed any more are reset. [`flows`] counts and logs.

pub mod flows;
pub mod services;
pub mod table;
pub mod verdicts;

#[cfg(test)]
#[path = "same_node/tests.rs"]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use karst_bpf_common::layout::{Flow as Noted, NetnsCookie};
use karst_datapath::sock_diag::{self, TcpSocket};
use karst_datapath::{Datapath, DatapathError, EnrolledPod, FlowEvents};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::context::Context;
use crate::enrol::PodTable;
use crate::pod::Pod;
use crate::proxy::connection::Refused;
use crate::reason::Reason;
use crate::state::READY_WAIT;
use crate::state::workload::{Protocol, Via};
use crate::worker::{Command, Snapshot, Worker};

use flows::{Flows, is_young};
use table::{Services, Verdicts};
use verdicts::{Decision, LocalPod};

/// How long verdicts hold without an agent that confirms them: longer than an upgrade takes, shorter than the kernel
/// could come to know pods that are there no more.
const HOLD: Duration = Duration::from_secs(60);

/// How often they are confirmed.
const CONFIRM_EVERY: Duration = Duration::from_secs(10);

/// How often records of beginnings and ends are taken. The ring has room for those of 400,000 connections a minute.
const TAKE_EVERY: Duration = Duration::from_millis(100);

/// How often what is known is compared with what the kernel has.
const COMPARE_EVERY: Duration = Duration::from_secs(30);

/// Between two looks for connections that must not go on: one that was let through just before the verdicts changed
/// is noted by then.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Looks in a row at most; after these, another one [`LOOK_LATER`].
const MAX_LOOKS: usize = 5;

/// After a look that could not be made, or did not end what it found.
const LOOK_LATER: Duration = Duration::from_secs(1);

/// Workloads of this node that the programs may connect to past the agent, by uid.
pub type Reachable = ArcSwap<HashSet<Arc<str>>>;

/// What the task works on.
pub struct SameNode {
    context: Arc<Context>,
    datapath: Arc<Datapath>,
    pods: watch::Receiver<Arc<PodTable>>,
    commands: mpsc::UnboundedReceiver<Command>,
    encrypt: bool,
    enrolled: Vec<EnrolledPod>,
    known: HashMap<NetnsCookie, LocalPod>,
    /// The state has been there: what a former agent knew is no longer what holds.
    begun: bool,
    /// The kernel's tables are what they should be.
    held: bool,
    verdicts: Verdicts,
    services: Services,
    flows: Flows,
    events: FlowEvents,
    /// Since when there are connections to a pod that lists a policy which has not come.
    incomplete_since: Option<Instant>,
    /// When to look for connections that must not go on, besides after changes.
    look_at: Option<Instant>,
}

impl SameNode {
    /// A task over `datapath`. With `encrypt` no connection goes past the agent.
    ///
    /// # Errors
    /// The kernel's maps cannot be read.
    pub fn new(
        context: &Arc<Context>,
        datapath: Arc<Datapath>,
        pods: watch::Receiver<Arc<PodTable>>,
        commands: mpsc::UnboundedReceiver<Command>,
        encrypt: bool,
    ) -> Result<Self, DatapathError> {
        // What a former agent knew of services may be long past; verdicts are compared one by one.
        datapath.clear_services()?;
        let worker = Worker::new(Arc::clone(context));
        Ok(Self {
            context: Arc::clone(context),
            verdicts: Verdicts::left(datapath.verdicts()?),
            services: Services::none(datapath.now_ns()),
            events: datapath.flow_events()?,
            datapath,
            pods,
            commands,
            encrypt,
            enrolled: Vec::new(),
            known: HashMap::new(),
            begun: false,
            held: false,
            flows: Flows::new(Rc::clone(&worker)),
            incomplete_since: None,
            look_at: None,
        })
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        let mut published = self.context.state.published();
        let ticks = [CONFIRM_EVERY, TAKE_EVERY, COMPARE_EVERY].map(|every| {
            let mut tick = tokio::time::interval(every);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tick
        });
        let [mut confirm, mut take, mut compare] = ticks;
        self.read_enrolled();
        self.update().await;
        loop {
            let look_at = self.look_at;
            let look = async {
                match look_at {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Ok(()) = published.changed() => {
                    published.mark_unchanged();
                    self.update().await;
                }
                Ok(()) = self.pods.changed() => {
                    self.pods.mark_unchanged();
                    self.read_enrolled();
                    self.update().await;
                }
                command = self.commands.recv() => match command {
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                _ = confirm.tick() => self.confirm(),
                _ = take.tick() => self.take(),
                _ = compare.tick() => self.compare().await,
                () = look => self.sweep().await,
            }
        }
    }

    fn say<T>(&self, done: Result<T, DatapathError>) -> Option<T> {
        let report = |error: &DatapathError| {
            let reason = error.reason();
            tracing::warn!(%error, reason, "connections between pods of this node may go through the agent");
        };
        done.inspect_err(report).ok()
    }

    /// Verdicts that are what they should be go on holding, others end. Before there is a state, those of a former
    /// agent end by themselves.
    fn confirm(&self) {
        let hold = match self.held && !self.encrypt {
            true => HOLD,
            false if self.begun || self.encrypt => Duration::ZERO,
            false => return,
        };
        self.say(self.datapath.confirm_verdicts(hold));
    }

    fn read_enrolled(&mut self) {
        if let Some(enrolled) = self.say(self.datapath.enrolled()) {
            self.enrolled = enrolled;
        }
    }

    /// Brings the kernel's tables to what they should be, and resets what may not go on.
    async fn update(&mut self) {
        self.begun |= self.context.state.is_ready() && self.pods.borrow().settled;
        if !self.begun {
            return self.confirm();
        }
        let pods = self.local_pods();
        let is_known = |pod: &LocalPod| self.known.get(&pod.cookie).is_some_and(|it| it.is(pod));
        let same = self.held && pods.len() == self.known.len() && pods.iter().all(is_known);
        if !same {
            self.known = pods.iter().map(|pod| (pod.cookie, pod.clone())).collect();
        }
        self.held = (same || self.decide_all(&pods)) && self.balance(&pods);
        self.confirm();
        if !same {
            self.sweep().await;
        }
    }

    /// Whether it could be done. What could not is done with the next change, or when tables are compared.
    fn decide_all(&mut self, pods: &[LocalPod]) -> bool {
        let wanted = match self.encrypt {
            true => BTreeMap::new(),
            false => verdicts::all(pods),
        };
        let changed = self.verdicts.become_(&wanted, &*self.datapath);
        let reachable = pods
            .iter()
            .filter(|pod| pod.is_reachable() && !self.encrypt);
        let reachable = reachable.map(|pod| Arc::clone(&pod.workload.uid)).collect();
        self.context.reachable.store(Arc::new(reachable));
        let changed = self.say(changed);
        let left_out = changed.as_ref().map_or(0, |changed| changed.left_out.len());
        if left_out > 0 {
            tracing::warn!(
                pairs = left_out,
                "no room for the verdicts of some pairs of pods, whose connections go through the agent"
            );
        }
        changed.is_some()
    }

    /// Likewise of services. What they are is made anew each time: an address may have become another's.
    fn balance(&mut self, pods: &[LocalPod]) -> bool {
        let state = &self.context.state;
        let wanted = match self.encrypt {
            true => BTreeMap::new(),
            false => services::all(&services::with_endpoints(pods, state), pods, state),
        };
        let left_out = self.services.become_(&wanted, &*self.datapath);
        let left_out = self.say(left_out);
        if let Some(left_out) = left_out.filter(|left_out| *left_out > 0) {
            tracing::warn!(
                left_out,
                "no room for some services in the kernel, which the agent resolves"
            );
        }
        left_out.is_some()
    }

    /// The enrolled pods whose workloads and policies are known.
    fn local_pods(&self) -> Vec<LocalPod> {
        let table = self.pods.borrow();
        let state = &self.context.state;
        let one = |enrolled: &EnrolledPod| {
            let view = table.pods.get(enrolled.uid.as_str())?;
            let pod = view.connections.as_ref().filter(|_| view.enrolled)?;
            let workload = state.workload(&pod.workload_uid)?;
            let here = |ip| {
                let found = state.workload_at(ip);
                found.is_some_and(|found| found.uid == workload.uid)
            };
            let plain = workload.protocol == Protocol::Hbone
                && workload.via == Via::Direct
                && !workload.host_network
                && workload.identity.as_ref() == Some(&pod.identity)
                && pod.addresses.iter().all(|ip| here(*ip));
            Some(LocalPod {
                cookie: enrolled.netns_cookie,
                guarded: enrolled.guarded,
                plain,
                pod: Arc::clone(pod),
                waypoints: Arc::clone(&view.waypoints),
                policies: state.policies.effective(&workload),
                workload,
            })
        };
        self.enrolled.iter().filter_map(one).collect()
    }

    /// Resets connections that may not go on, until a look finds none.
    async fn sweep(&mut self) {
        self.look_at = None;
        for look in 0..MAX_LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let Some(noted) = self.say(self.datapath.flows()) else {
                break;
            };
            let refused = self.refused(&noted);
            if refused.is_empty() {
                if look > 0 {
                    return;
                }
                continue;
            }
            let mut by_pod: HashMap<NetnsCookie, (Arc<Pod>, HashSet<u64>)> = HashMap::new();
            for (socket, source, why) in refused {
                self.flows.cut(socket, why);
                let entry = by_pod.entry(source.cookie);
                let (_, sockets) = entry.or_insert_with(|| (source.pod, HashSet::new()));
                sockets.insert(socket);
            }
            let pods = by_pod.into_values().collect();
            match tokio::task::spawn_blocking(move || reset(pods)).await {
                Ok(Ok(count)) => {
                    tracing::info!(
                        count,
                        "connections between pods of this node reset, which are not allowed any more"
                    );
                }
                Ok(Err(error)) => {
                    tracing::error!(%error, "connections between pods of this node cannot be reset, which are not allowed any more");
                }
                Err(_) => tracing::error!("resetting connections has panicked"),
            }
        }
        self.look_by(Instant::now() + LOOK_LATER);
    }

    fn look_by(&mut self, at: Instant) {
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// Which of these connections may not go on, where from, and why. While a policy has not come they go on for as
    /// long as one would wait for it.
    fn refused(&mut self, noted: &[(u64, Noted)]) -> Vec<(u64, LocalPod, Box<Refused>)> {
        let now = Instant::now();
        let waited = self
            .incomplete_since
            .map(|since| now.saturating_duration_since(since));
        let gave_up = waited.is_some_and(|waited| waited >= READY_WAIT);
        let (mut refused, mut incomplete) = (Vec::new(), false);
        for (socket, flow) in noted {
            let pods = (
                self.known.get(&flow.source),
                self.known.get(&flow.destination),
            );
            let (Some(source), Some(destination)) = pods else {
                // One of them was let go: what lives is its own.
                continue;
            };
            let (from, to) = (&flow.tuple.source, &flow.tuple.destination);
            let ips = (from.ip.to_ip_addr(), to.ip.to_ip_addr());
            let why = match verdicts::decide(source, destination, ips, to.port) {
                Decision::Refused(why) => why,
                Decision::Incomplete => {
                    incomplete = true;
                    if !gave_up {
                        continue;
                    }
                    Box::new(Reason::PolicyUnknown.into())
                }
                Decision::Past | Decision::Agent => continue,
            };
            refused.push((*socket, source.clone(), why));
        }
        self.incomplete_since = incomplete.then(|| self.incomplete_since.unwrap_or(now));
        if let Some(since) = self.incomplete_since.filter(|_| !gave_up) {
            self.look_by(since + READY_WAIT);
        }
        refused
    }

    fn take(&mut self) {
        let now_ns = self.datapath.now_ns();
        let (flows, known) = (&mut self.flows, &self.known);
        self.events.drain(|event| flows.take(event, known, now_ns));
    }

    async fn compare(&mut self) {
        self.take();
        self.read_enrolled();
        self.update().await;
        self.sweep().await;
        let Some(noted) = self.say(self.datapath.flows()) else {
            return;
        };
        let now_ns = self.datapath.now_ns();
        self.flows.compare(&noted, &self.known, now_ns);
        let Some(found) = self.measure(&noted).await else {
            return;
        };
        // A socket that is gone without having told so: nothing was attached at that moment.
        let gone = noted.iter().filter(|(socket, flow)| {
            let looked = found.pods.contains(&flow.source);
            looked && !is_young(flow, now_ns) && !found.sockets.contains(socket)
        });
        let mut forgotten = false;
        for (socket, _) in gone {
            forgotten |= self.say(self.datapath.forget_flow(*socket)).is_some();
        }
        if forgotten {
            self.say(self.datapath.recount_flows());
        }
    }

    /// Asks the kernel for the bytes of these connections, as far as the pods are known that they come from.
    async fn measure(&mut self, noted: &[(u64, Noted)]) -> Option<Found> {
        let mut wanted: HashMap<NetnsCookie, (Arc<Pod>, HashSet<u64>)> = HashMap::new();
        for (socket, flow) in noted {
            if let Some(source) = self.known.get(&flow.source) {
                let entry = wanted.entry(flow.source);
                let (_, sockets) =
                    entry.or_insert_with(|| (Arc::clone(&source.pod), HashSet::new()));
                sockets.insert(*socket);
            }
        }
        let asked = tokio::task::spawn_blocking(move || {
            let (mut pods, mut all) = (HashSet::new(), Vec::new());
            for (cookie, (pod, sockets)) in wanted {
                // A pod that is gone has no connections.
                if let Ok(found) = those_of(&pod, &sockets) {
                    pods.insert(cookie);
                    all.extend(found);
                }
            }
            (pods, all)
        });
        let (pods, all) = asked.await.ok()?;
        self.flows.measured(&all);
        let sockets = all.iter().map(|socket| socket.cookie).collect();
        Some(Found { pods, sockets })
    }

    /// What is known of live connections, up to now.
    async fn catch_up(&mut self) {
        self.take();
        if let Some(noted) = self.say(self.datapath.flows()) {
            self.measure(&noted).await;
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::FlushMetrics(done) => {
                self.catch_up().await;
                let _ = done.send(());
            }
            Command::Snapshot(reply) => {
                self.catch_up().await;
                let snapshot = Snapshot {
                    connections: self.flows.views(),
                    tunnels: Vec::new(),
                };
                let _ = reply.send(snapshot);
            }
            Command::Tap(feed) => {
                self.take();
                self.flows.tap(&feed);
            }
            Command::ForgetSeries => self.flows.forget_series(),
            // The rest is about listeners, and about connections that workers have.
            _ => {}
        }
    }
}

/// What a look at sockets has found.
struct Found {
    /// Where it looked.
    pods: HashSet<NetnsCookie>,
    /// Cookies of those that are there.
    sockets: HashSet<u64>,
}

fn those_of(pod: &Pod, sockets: &HashSet<u64>) -> io::Result<Vec<TcpSocket>> {
    let wanted = |socket: &TcpSocket| sockets.contains(&socket.cookie);
    Ok(sock_diag::tcp_sockets_with(&pod.netns, wanted)?.sockets)
}

/// One pod's failure does not keep the connections of others: the first error comes after all were tried.
fn reset(pods: Vec<(Arc<Pod>, HashSet<u64>)>) -> io::Result<usize> {
    let (mut count, mut failed) = (0, None);
    for (pod, sockets) in pods {
        let done =
            those_of(&pod, &sockets).and_then(|found| sock_diag::destroy(&pod.netns, &found));
        match done {
            Ok(reset) => count += reset,
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(count), Err)
}

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

use std::collections::HashMap;
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
use crate::state::READY_WAIT;
use crate::state::service::Service;
use crate::state::workload::{Protocol, Via};
use crate::worker::{Command, Snapshot, Worker};

use flows::Flows;
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

/// Looks at most.
const MAX_LOOKS: usize = 5;

/// Workloads of this node that the programs may connect to past the agent, by uid.
pub type Reachable = ArcSwap<std::collections::HashSet<Arc<str>>>;

/// What the task works on.
pub struct SameNode {
    context: Arc<Context>,
    datapath: Arc<Datapath>,
    pods: watch::Receiver<Arc<PodTable>>,
    commands: mpsc::UnboundedReceiver<Command>,
    encrypt: bool,
    enrolled: Vec<EnrolledPod>,
    known: HashMap<NetnsCookie, LocalPod>,
    known_services: Vec<u64>,
    verdicts: Verdicts,
    services: Services,
    flows: Flows,
    events: FlowEvents,
    /// When connections are cut whose policies have not come by then.
    recheck_at: Option<Instant>,
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
            known_services: Vec::new(),
            flows: Flows::new(Rc::clone(&worker)),
            recheck_at: None,
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
        if self.encrypt {
            self.say(self.datapath.confirm_verdicts(Duration::ZERO));
        }
        self.read_enrolled();
        self.update().await;
        loop {
            let recheck_at = self.recheck_at;
            let recheck = async {
                match recheck_at {
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
                () = recheck => {
                    self.recheck_at = None;
                    self.sweep(Missing::Refuses).await;
                }
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

    /// Without state verdicts are not confirmed: those of a former agent end by themselves.
    fn confirm(&self) {
        if self.is_ready() && !self.encrypt {
            self.say(self.datapath.confirm_verdicts(HOLD));
        }
    }

    /// Before the state is there, what a former agent knew holds.
    fn is_ready(&self) -> bool {
        self.context.state.is_ready() && self.pods.borrow().settled
    }

    fn read_enrolled(&mut self) {
        if let Some(enrolled) = self.say(self.datapath.enrolled()) {
            self.enrolled = enrolled;
        }
    }

    /// Brings the kernel's tables to what they should be, and resets what may not go on.
    async fn update(&mut self) {
        if !self.is_ready() {
            return;
        }
        let pods = self.local_pods();
        let same = pods.len() == self.known.len()
            && pods
                .iter()
                .all(|pod| self.known.get(&pod.cookie).is_some_and(|it| it.is(pod)));
        let services = services::with_endpoints(&pods, &self.context.state);
        let revisions: Vec<u64> = services.iter().map(|service| service.revision).collect();
        let same_services = revisions == self.known_services;
        if same && same_services {
            return;
        }
        if !same {
            self.known = pods.iter().map(|pod| (pod.cookie, pod.clone())).collect();
            self.decide_all(&pods);
        }
        let complete = self.balance(&services, &pods);
        // What failed is done with the next change, at the latest when pods are looked at again.
        self.known_services = if complete { revisions } else { Vec::new() };
        self.confirm();
        if !same {
            self.sweep(Missing::MayCome).await;
        }
    }

    fn decide_all(&mut self, pods: &[LocalPod]) {
        let wanted = match self.encrypt {
            true => Default::default(),
            false => verdicts::all(pods),
        };
        let changed = self.verdicts.become_(&wanted, &*self.datapath);
        match self.say(changed) {
            Some(changed) => {
                if !changed.left_out.is_empty() {
                    let pairs = changed.left_out.len();
                    tracing::warn!(
                        pairs,
                        "no room for the verdicts of some pairs of pods, whose connections go through the agent"
                    );
                }
            }
            // Nothing must hold that may be out of date; the next change begins again.
            None => {
                self.say(self.datapath.confirm_verdicts(Duration::ZERO));
                self.known.clear();
            }
        }
        let reachable = pods.iter().filter(|pod| pod.guarded && !self.encrypt);
        let reachable = reachable.map(|pod| Arc::clone(&pod.workload.uid)).collect();
        self.context.reachable.store(Arc::new(reachable));
    }

    fn balance(&mut self, services: &[Arc<Service>], pods: &[LocalPod]) -> bool {
        let wanted = match self.encrypt {
            true => Default::default(),
            false => services::all(services, pods, &self.context.state),
        };
        let left_out = self.services.become_(&wanted, &*self.datapath);
        match self.say(left_out) {
            Some(0) => true,
            Some(left_out) => {
                tracing::warn!(
                    left_out,
                    "no room for some services in the kernel, which the agent resolves"
                );
                true
            }
            None => false,
        }
    }

    /// The enrolled pods about which enough is known, and nothing that asks for the agent.
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
            plain.then(|| LocalPod {
                cookie: enrolled.netns_cookie,
                guarded: enrolled.guarded,
                pod: Arc::clone(pod),
                waypoints: Arc::clone(&view.waypoints),
                policies: state.policies.effective(&workload),
                workload,
            })
        };
        self.enrolled.iter().filter_map(one).collect()
    }

    /// Resets connections that may not go on, until a look finds none.
    async fn sweep(&mut self, missing: Missing) {
        for look in 0..MAX_LOOKS {
            if look > 0 {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            let Some(noted) = self.say(self.datapath.flows()) else {
                return;
            };
            let mut refused = HashMap::new();
            for (socket, flow) in &noted {
                let Some((source, destination)) = self.pods_of(flow) else {
                    continue;
                };
                let (from, to) = (&flow.tuple.source, &flow.tuple.destination);
                let ips = (from.ip.to_ip_addr(), to.ip.to_ip_addr());
                let why = match verdicts::decide(source, destination, ips, to.port) {
                    Decision::Refused(why) => why,
                    Decision::Incomplete if missing == Missing::Refuses => {
                        Box::new(crate::reason::Reason::PolicyUnknown.into())
                    }
                    Decision::Incomplete => {
                        self.recheck_at.get_or_insert(Instant::now() + READY_WAIT);
                        continue;
                    }
                    Decision::Past | Decision::Agent => continue,
                };
                refused.insert(*socket, (Arc::clone(&source.pod), why));
            }
            if refused.is_empty() && look > 0 {
                return;
            }
            if refused.is_empty() {
                continue;
            }
            let mut by_pod: HashMap<Arc<str>, (Arc<Pod>, Vec<u64>)> = HashMap::new();
            for (socket, (pod, why)) in refused {
                self.flows.cut(socket, why);
                let entry = by_pod.entry(Arc::clone(&pod.uid));
                entry.or_insert_with(|| (pod, Vec::new())).1.push(socket);
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
    }

    fn pods_of(&self, flow: &Noted) -> Option<(&LocalPod, &LocalPod)> {
        Some((
            self.known.get(&flow.source)?,
            self.known.get(&flow.destination)?,
        ))
    }

    fn take(&mut self) {
        let now_ns = self.datapath.now_ns();
        let (flows, known) = (&mut self.flows, &self.known);
        self.events.drain(|event| flows.take(event, known, now_ns));
    }

    async fn compare(&mut self) {
        self.take();
        if let Some(noted) = self.say(self.datapath.flows()) {
            let now_ns = self.datapath.now_ns();
            self.flows.compare(&noted, &self.known, now_ns);
        }
        self.measure().await;
        // What failed before is tried again.
        self.update().await;
    }

    /// Asks the kernel for the bytes of live connections.
    async fn measure(&mut self) {
        let pods = self.flows.sources();
        if pods.is_empty() {
            return;
        }
        let measured = tokio::task::spawn_blocking(move || {
            let sockets = pods.iter().filter_map(|pod| {
                let found = sock_diag::tcp_sockets(&pod.netns);
                // A pod that is gone has no connections.
                found.ok().map(|found| found.sockets)
            });
            sockets.flatten().collect::<Vec<TcpSocket>>()
        });
        if let Ok(sockets) = measured.await {
            self.flows.measured(&sockets);
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::FlushMetrics(done) => {
                self.take();
                self.measure().await;
                let _ = done.send(());
            }
            Command::Snapshot(reply) => {
                self.take();
                self.measure().await;
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

/// What becomes of live connections while a policy that applies to them has not come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    MayCome,
    Refuses,
}

fn reset(pods: Vec<(Arc<Pod>, Vec<u64>)>) -> io::Result<usize> {
    let mut count = 0;
    for (pod, sockets) in pods {
        let found = sock_diag::tcp_sockets(&pod.netns)?.sockets;
        let found: Vec<TcpSocket> = found
            .into_iter()
            .filter(|socket| sockets.contains(&socket.cookie))
            .collect();
        count += sock_diag::destroy(&pod.netns, &found)?;
    }
    Ok(count)
}

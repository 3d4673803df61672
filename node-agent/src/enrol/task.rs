//! Runs the enrolment state machine: feeds it what happens, publishes what
//! comes of it, answers those who registered a sandbox.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use karst_client::DeltaAds;
use karst_datapath::netns::Netns;
use tokio::sync::{mpsc, oneshot, watch};

use super::attach::{Finding, Missing, SandboxName};
use super::registry::{Registration, Sandbox};
use super::{
    Enrolment, NodePod, POD_UNKNOWN, PodTable, Problem, SANDBOX_DELETED, Standing, Workers, deleted,
};
use crate::egress::Egress;
use crate::pod::Pod;
use crate::sockets::Listeners;
use crate::waypoints::Waypoints;
use crate::worker::Command;

/// How long a registration waits for the pod to be enrolled. Below the usual
/// limits of a container runtime for a CNI call.
const REGISTER_WAIT: Duration = Duration::from_secs(10);

/// How often the kernel maps are compared with what should be there.
const REFRESH: Duration = Duration::from_secs(30);

/// How long the caller of a registration waits.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For the controller to tell of the pod.
    pub unknown: Duration,
    /// For all of it.
    pub total: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            unknown: REGISTER_WAIT,
            total: REGISTER_WAIT,
        }
    }
}

/// Tells a caller whether the pod is enrolled, or why it is not in the wanted state.
pub type EnrolledReply = oneshot::Sender<Result<bool, Problem>>;

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A sandbox was made (CNI ADD).
    Register {
        /// Kubernetes uid of the pod; found by its name once the controller told of it.
        uid: Option<String>,
        /// The sandbox.
        registration: Registration,
        /// How long to wait.
        patience: Patience,
        /// Answered when the pod is in the wanted state, or cannot be in time.
        reply: EnrolledReply,
    },
    /// A sandbox is gone.
    Unregister {
        /// Kubernetes uid of the pod.
        uid: String,
        /// Answered when it is done.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// One sandbox, and no other of its pod, is gone (CNI DEL).
    Detach {
        /// Which.
        sandbox: SandboxName,
        /// Answered when it is done.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// Is a sandbox as it should be (CNI CHECK)?
    Check {
        /// Which.
        sandbox: SandboxName,
        /// Answered at once.
        reply: EnrolledReply,
    },
    /// Sandboxes may have ended unheard (CNI GC).
    Collect,
    /// What discovery found of missing pods.
    Discovered(Vec<(Arc<str>, Finding)>),
    /// The controller's wishes changed; `None` for a pod that is gone.
    NodePods(Vec<(Arc<str>, Option<NodePod>)>),
    /// The controller's list is complete.
    Synced,
    /// Another agent wants to take over: change nothing until it is decided.
    Freeze {
        /// Answered when nothing is being changed any more.
        frozen: oneshot::Sender<()>,
        /// Whether it took over. Dropped, it did not.
        decision: oneshot::Receiver<Decision>,
    },
}

/// What became of a hand-over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The other agent serves now: this one changes nothing any more.
    HandedOver,
    /// It did not: go on.
    Resumed,
}

struct Waiting {
    reply: EnrolledReply,
    /// When to give up if the controller has not told of the pod.
    known_by: Instant,
    /// When to give up.
    until: Instant,
    /// The one of both that holds now.
    wake: Instant,
}

/// A registration whose pod is known by name only.
struct Unnamed {
    registration: Registration,
    waiting: Waiting,
}

/// The task's state.
pub struct EnrolmentTask<W> {
    enrolment: Enrolment<W>,
    events: mpsc::UnboundedReceiver<Event>,
    certificates: watch::Receiver<u64>,
    table: watch::Sender<Arc<PodTable>>,
    ads: DeltaAds,
    waiting: HashMap<Arc<str>, Vec<Waiting>>,
    freeze: Option<(oneshot::Sender<()>, oneshot::Receiver<Decision>)>,
    unnamed: Vec<Unnamed>,
    missing: watch::Sender<Arc<Vec<Missing>>>,
    /// Sandboxes found without the runtime's word, since the start.
    discovered: u64,
    longest_wait: Duration,
}

impl<W: Workers> EnrolmentTask<W> {
    /// A task over `enrolment`. `certificates` moves whenever one was issued.
    pub fn new(
        enrolment: Enrolment<W>,
        events: mpsc::UnboundedReceiver<Event>,
        certificates: watch::Receiver<u64>,
        table: watch::Sender<Arc<PodTable>>,
        ads: DeltaAds,
    ) -> Self {
        Self {
            enrolment,
            events,
            certificates,
            table,
            ads,
            waiting: HashMap::new(),
            freeze: None,
            unnamed: Vec::new(),
            missing: watch::channel(Arc::default()).0,
            discovered: 0,
            longest_wait: Duration::MAX,
        }
    }

    /// Pods without a sandbox, for discovery.
    pub fn missing(&self) -> watch::Receiver<Arc<Vec<Missing>>> {
        self.missing.subscribe()
    }

    /// The same with another limit for registrations.
    #[cfg(test)]
    pub fn waiting_for(mut self, longest_wait: Duration) -> Self {
        self.longest_wait = longest_wait;
        self
    }

    /// Runs until nobody can send events any more, or another agent has taken over.
    pub async fn run(mut self) {
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // What is known already comes before the first step: an agent that takes over must
        // not forget first what it got ready.
        while let Ok(event) = self.events.try_recv() {
            self.note(event);
        }
        let mut retry_at = self.settle();
        loop {
            let unnamed = self.unnamed.iter().map(|u| &u.waiting);
            let waiting = self.waiting.values().flatten().chain(unnamed);
            let wake = waiting.map(|w| w.wake).chain(retry_at).min();
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.note(event),
                    None => return,
                },
                // The sender lives as long as the process.
                Ok(()) = self.certificates.changed() => self.enrolment.note_certificates(),
                _ = refresh.tick() => self.enrolment.refresh(),
                () = sleep => {}
            }
            // A burst (a first push, a node full of pods) is worked off at once.
            while let Ok(event) = self.events.try_recv() {
                self.note(event);
            }
            retry_at = self.settle();
            if let Some((frozen, decision)) = self.freeze.take() {
                // Who asked may have given up meanwhile; then there is no decision either.
                let _ = frozen.send(());
                if decision.await == Ok(Decision::HandedOver) {
                    return;
                }
                retry_at = self.settle();
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Register {
                uid,
                registration,
                patience,
                reply,
            } => {
                let now = Instant::now();
                let known_by = now + patience.unknown.min(self.longest_wait);
                let waiting = Waiting {
                    reply,
                    known_by,
                    until: now + patience.total.min(self.longest_wait),
                    wake: known_by,
                };
                match uid {
                    Some(uid) => self.register(&uid, registration, waiting),
                    None => self.unnamed.push(Unnamed {
                        registration,
                        waiting,
                    }),
                }
            }
            Event::Unregister { uid, reply } => {
                let done = self.unregister(&uid);
                answer(reply, done);
            }
            Event::Detach { sandbox, reply } => {
                let done = match self.enrolment.recorded(&sandbox) {
                    Some(uid) => self.unregister(&uid),
                    None => Ok(()),
                };
                answer(reply, done);
            }
            Event::Check { sandbox, reply } => answer(reply, self.enrolment.check(&sandbox)),
            Event::Collect => self.enrolment.refresh(),
            Event::Discovered(findings) => {
                let new = self.enrolment.discovered(findings);
                self.discovered = self.discovered.saturating_add(new as u64);
            }
            Event::NodePods(changes) => self.enrolment.update_node_pods(changes),
            Event::Freeze { frozen, decision } => self.freeze = Some((frozen, decision)),
            Event::Synced => {
                self.enrolment.set_synced();
                // Now pods that ended while no agent looked can be told.
                self.enrolment.refresh();
            }
        }
    }

    fn register(&mut self, uid: &str, registration: Registration, waiting: Waiting) {
        let sandbox = Sandbox::new(uid, registration);
        match sandbox.and_then(|sandbox| self.enrolment.register(sandbox)) {
            Ok(()) => self
                .waiting
                .entry(Arc::from(uid))
                .or_default()
                .push(waiting),
            Err(error) => answer(waiting.reply, Err((&error).into())),
        }
    }

    /// Torn down when it returns: the caller deletes the namespace next.
    fn unregister(&mut self, uid: &str) -> Result<(), Problem> {
        let done = self.enrolment.unregister(uid);
        for waiting in self.waiting.remove(uid).unwrap_or_default() {
            answer(waiting.reply, Err(deleted()));
        }
        self.enrolment.reconcile(Instant::now());
        done.map_err(|error| (&error).into())
    }

    /// Registers those whose pod's uid is known by now.
    fn name_the_unnamed(&mut self) {
        for unnamed in std::mem::take(&mut self.unnamed) {
            let pod = &unnamed.registration;
            match self.enrolment.uid_of(&pod.namespace, &pod.name) {
                Some(uid) => self.register(&uid, unnamed.registration, unnamed.waiting),
                None if unnamed.waiting.known_by <= Instant::now() => {
                    let message = "the controller has not told this node of a pod of that name yet";
                    let problem = Problem {
                        reason: POD_UNKNOWN,
                        message: message.to_owned(),
                    };
                    answer(unnamed.waiting.reply, Err(problem));
                }
                None => self.unnamed.push(unnamed),
            }
        }
    }

    /// Reconciles, then tells everybody. Returns when to try again.
    fn settle(&mut self) -> Option<Instant> {
        self.name_the_unnamed();
        let retry_at = self.enrolment.reconcile(Instant::now());
        let mut table = self.enrolment.table();
        table.discovered = self.discovered;
        self.table.send_replace(Arc::new(table));
        self.missing.send_if_modified(|known| {
            let missing = self.enrolment.missing();
            let changed = **known != missing;
            if changed {
                *known = Arc::new(missing);
            }
            changed
        });
        if let Some(enrolled) = self.enrolment.report() {
            self.ads.report_enrolment(enrolled);
        }
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for (uid, list) in waiting {
            let standing = self.enrolment.standing(&uid);
            for mut waiting in list {
                let problem = match &standing {
                    Standing::Settled => {
                        let enrolled = self.enrolment.is_enrolled(&uid);
                        answer(waiting.reply, Ok(enrolled));
                        continue;
                    }
                    Standing::Unsettled(problem) => problem,
                };
                waiting.wake = match problem.reason {
                    // It does not come back by itself.
                    SANDBOX_DELETED => now,
                    POD_UNKNOWN => waiting.known_by,
                    _ => waiting.until,
                };
                if waiting.wake <= now {
                    answer(waiting.reply, Err(problem.clone()));
                } else {
                    self.waiting
                        .entry(Arc::clone(&uid))
                        .or_default()
                        .push(waiting);
                }
            }
        }
        retry_at
    }
}

fn answer<T>(reply: oneshot::Sender<Result<T, Problem>>, result: Result<T, Problem>) {
    // The asker may have hung up.
    let _ = reply.send(result);
}

impl From<&super::registry::RegistryError> for Problem {
    fn from(error: &super::registry::RegistryError) -> Self {
        Self {
            reason: error.reason(),
            message: error.to_string(),
        }
    }
}

/// The worker threads, as the enrolment drives them, and beside them whoever follows connections that no worker has.
#[derive(Clone, Debug, Default)]
pub struct WorkerSet {
    workers: Vec<mpsc::UnboundedSender<Command>>,
    beside: Arc<Mutex<Option<mpsc::UnboundedSender<Command>>>>,
}

impl WorkerSet {
    /// These workers.
    pub fn new(workers: Vec<mpsc::UnboundedSender<Command>>) -> Self {
        Self {
            workers,
            beside: Arc::default(),
        }
    }

    /// The worker threads.
    pub fn workers(&self) -> &[mpsc::UnboundedSender<Command>] {
        &self.workers
    }

    /// Has `follower` get every command from now on too.
    pub fn follow(&self, follower: mpsc::UnboundedSender<Command>) {
        *self.beside.lock().unwrap_or_else(PoisonError::into_inner) = Some(follower);
    }

    /// Everybody who has connections.
    pub fn all(&self) -> Vec<mpsc::UnboundedSender<Command>> {
        let beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
        self.workers.iter().chain(beside.iter()).cloned().collect()
    }

    /// Sends a command to everybody.
    pub fn broadcast(&self, command: impl Fn() -> Command) {
        for worker in self.all() {
            // A worker that is gone has no connections left to act on.
            let _ = worker.send(command());
        }
    }
}

impl Workers for WorkerSet {
    fn start(&mut self, pod: &Arc<Pod>, listeners: Vec<Listeners>) {
        for (worker, listeners) in self.workers.iter().zip(listeners) {
            let _ = worker.send(Command::Start(Arc::clone(pod), listeners));
        }
    }

    fn release(&mut self, uid: &Arc<str>) {
        self.broadcast(|| Command::Release(Arc::clone(uid)));
    }

    fn kill(&mut self, uid: &Arc<str>) {
        self.broadcast(|| Command::Kill(Arc::clone(uid)));
    }

    fn require(&mut self, uid: &Arc<str>, waypoints: &Arc<Waypoints>, egress: Egress) {
        self.broadcast(|| Command::Require(Arc::clone(uid), Arc::clone(waypoints), egress));
    }

    fn listen(&self, netns: &Netns, addresses: &[IpAddr]) -> io::Result<Vec<Listeners>> {
        Listeners::open(netns, addresses, self.workers.len())
    }

    fn inherit(
        &self,
        former: Vec<Listeners>,
        netns: &Netns,
        addresses: &[IpAddr],
    ) -> io::Result<Vec<Listeners>> {
        Listeners::spread(former, netns, addresses, self.workers.len())
    }
}

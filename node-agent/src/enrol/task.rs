//! Runs the enrolment state machine: feeds it what happens, publishes what
//! comes of it, answers those who registered a sandbox.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_client::DeltaAds;
use karst_datapath::netns::Netns;
use tokio::sync::{mpsc, oneshot, watch};

use super::registry::{Registration, Sandbox};
use super::{Enrolment, NodePod, PodTable, Problem, Standing, Workers};
use crate::pod::Pod;
use crate::sockets::Listeners;
use crate::worker::Command;

/// How long a registration waits for the pod to be enrolled. Below the usual
/// limits of a container runtime for a CNI call.
const REGISTER_WAIT: Duration = Duration::from_secs(10);

/// How often the kernel maps are compared with what should be there.
const REFRESH: Duration = Duration::from_secs(30);

/// What can happen.
#[derive(Debug)]
pub enum Event {
    /// A sandbox was made (CNI ADD).
    Register {
        /// Kubernetes uid of the pod.
        uid: String,
        /// The sandbox.
        registration: Registration,
        /// Answered when the pod is in the wanted state, or cannot be in time.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
    /// A sandbox is gone (CNI DEL).
    Unregister {
        /// Kubernetes uid of the pod.
        uid: String,
        /// Answered when it is done.
        reply: oneshot::Sender<Result<(), Problem>>,
    },
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
    reply: oneshot::Sender<Result<(), Problem>>,
    until: Instant,
}

/// The task's state.
pub struct EnrolmentTask<W> {
    enrolment: Enrolment<W>,
    events: mpsc::UnboundedReceiver<Event>,
    certificates: watch::Receiver<u64>,
    table: watch::Sender<Arc<PodTable>>,
    ads: DeltaAds,
    waiting: HashMap<Arc<str>, Vec<Waiting>>,
    register_wait: Duration,
    freeze: Option<(oneshot::Sender<()>, oneshot::Receiver<Decision>)>,
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
            register_wait: REGISTER_WAIT,
            freeze: None,
        }
    }

    /// The same with another limit for registrations.
    #[cfg(test)]
    pub fn waiting_for(mut self, register_wait: Duration) -> Self {
        self.register_wait = register_wait;
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
            let deadlines = self.waiting.values().flatten().map(|w| w.until);
            let wake = deadlines.chain(retry_at).min();
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
                reply,
            } => {
                let sandbox = Sandbox::new(&uid, registration);
                let recorded = sandbox.and_then(|sandbox| self.enrolment.register(sandbox));
                match recorded {
                    Ok(()) => {
                        let until = Instant::now() + self.register_wait;
                        let waiting = self.waiting.entry(Arc::from(uid)).or_default();
                        waiting.push(Waiting { reply, until });
                    }
                    Err(error) => answer(reply, Err((&error).into())),
                }
            }
            Event::Unregister { uid, reply } => {
                let done = self
                    .enrolment
                    .unregister(&uid)
                    .map_err(|error| (&error).into());
                let waiting = self.waiting.remove(&*uid).unwrap_or_default();
                let gone = || Problem {
                    reason: "sandbox_deleted",
                    message: "the sandbox was deleted meanwhile".to_owned(),
                };
                waiting
                    .into_iter()
                    .for_each(|w| answer(w.reply, Err(gone())));
                // Torn down before the answer: the caller deletes the namespace next.
                self.enrolment.reconcile(Instant::now());
                answer(reply, done);
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

    /// Reconciles, then tells everybody. Returns when to try again.
    fn settle(&mut self) -> Option<Instant> {
        let retry_at = self.enrolment.reconcile(Instant::now());
        let table = Arc::new(self.enrolment.table());
        self.table.send_replace(table);
        if let Some(enrolled) = self.enrolment.report() {
            self.ads.report_enrolment(enrolled);
        }
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for (uid, list) in waiting {
            let standing = self.enrolment.standing(&uid);
            for waiting in list {
                match &standing {
                    Standing::Settled => answer(waiting.reply, Ok(())),
                    Standing::Unsettled(problem) if waiting.until <= now => {
                        answer(waiting.reply, Err(problem.clone()));
                    }
                    Standing::Unsettled(_) => {
                        self.waiting
                            .entry(Arc::clone(&uid))
                            .or_default()
                            .push(waiting);
                    }
                }
            }
        }
        retry_at
    }
}

fn answer(reply: oneshot::Sender<Result<(), Problem>>, result: Result<(), Problem>) {
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

/// The worker threads, as the enrolment drives them.
#[derive(Clone, Debug)]
pub struct WorkerSet(pub Vec<mpsc::UnboundedSender<Command>>);

impl WorkerSet {
    /// Sends a command to every worker.
    pub fn broadcast(&self, command: impl Fn() -> Command) {
        for worker in &self.0 {
            // A worker that is gone has no connections left to act on.
            let _ = worker.send(command());
        }
    }
}

impl Workers for WorkerSet {
    fn start(&mut self, pod: &Arc<Pod>, listeners: Vec<Listeners>) {
        for (worker, listeners) in self.0.iter().zip(listeners) {
            let _ = worker.send(Command::Start(Arc::clone(pod), listeners));
        }
    }

    fn release(&mut self, uid: &Arc<str>) {
        self.broadcast(|| Command::Release(Arc::clone(uid)));
    }

    fn kill(&mut self, uid: &Arc<str>) {
        self.broadcast(|| Command::Kill(Arc::clone(uid)));
    }

    fn listen(&self, netns: &Netns, addresses: &[IpAddr]) -> io::Result<Vec<Listeners>> {
        Listeners::open(netns, addresses, self.0.len())
    }

    fn inherit(
        &self,
        former: Vec<Listeners>,
        netns: &Netns,
        addresses: &[IpAddr],
    ) -> io::Result<Vec<Listeners>> {
        Listeners::spread(former, netns, addresses, self.0.len())
    }
}

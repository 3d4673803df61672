//! A data-plane thread: one current-thread runtime that drains a whole batch of
//! readiness events before it polls the kernel again. Everything of a connection
//! stays on the worker that accepted it; nothing is shared between workers but
//! counters and the mesh state.
//!
//! Start with [`spawn`]; what a worker does is its [`Command`]s and the proxies.

mod storm;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hashbrown::HashMap;
use http::HeaderValue;
use karst_process::tap::Feed;
use karst_telemetry::export::Spans;
use karst_telemetry::settings::Verdict;
use karst_tunnel::headers::{Baggage, TraceParent, WorkloadKind};
use karst_tunnel::pool::{Dialer, Pool, PoolConfig, PoolConnection, PoolLevels};
use karst_tunnel::server::{Drain, ServerLimits};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;

use crate::access_log::{AccessLog, Record};
use crate::context::Context;
use crate::egress::Egress;
use crate::metrics::connections::WorkerMetrics;
use crate::metrics::traffic::{Parties, Series, SeriesCache};
use crate::observe::NodeTransport;
use crate::pod::Pod;
use crate::proxy::accept::{Gate, Stop, accept_loop};
use crate::proxy::connection::{ConnectionView, Live};
use crate::proxy::target::Source;
use crate::proxy::{Direction, inbound, outbound, plaintext};
use crate::sockets::{self, End, Listeners, Listening};
use crate::state::READY_WAIT;
use crate::state::policy::{Cache, Effective};
use crate::state::workload::Workload;
use crate::waypoints::Waypoints;
use storm::Storm;

/// Ready tasks run between two looks at the kernel's readiness events. Large on
/// purpose: many streams of one tunnel connection then share a write.
const EVENT_INTERVAL: u32 = 256;

/// Tunnel connections one worker accepts for one pod: more than the nodes of a
/// large cluster, each with a few connections.
const MAX_TUNNELS: usize = 8192;

/// After a pod is un-enrolled other agents still believe for a moment that it
/// takes tunnels; for this long they are served.
const HBONE_GRACE: Duration = Duration::from_secs(5);

/// How long spans that wait are still sent after the last connection.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// What the control side asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Serve a pod.
    Start(Arc<Pod>, Listeners),
    /// Take no new connections of a pod; established ones go on.
    Release(Arc<str>),
    /// A pod is gone: end everything of it now.
    Kill(Arc<str>),
    /// Hold connections to and of a pod to these requirements: new ones, and those that are live.
    Require(Arc<str>, Arc<Waypoints>, Egress),
    /// Cut live connections that the policies in force do not allow any more.
    Recheck,
    /// Cut live connections to hosts outside that are not known any more, where they must be.
    RecheckEgress,
    /// Leave new connections of every pod in the listeners' queues, and answer with
    /// copies of the listeners.
    Pause(oneshot::Sender<Vec<PodListeners>>),
    /// Take new connections again.
    Resume,
    /// Another agent has the listeners: close ours without touching their queues. What
    /// was accepted goes on; tunnel peers are told to open new tunnels.
    HandOver,
    /// Let go of pooled tunnels that the mesh state or the certificates no longer justify.
    Retain,
    /// Add the bytes of live connections and the fill of pools to the metrics, then answer.
    FlushMetrics(oneshot::Sender<()>),
    /// List live connections and tunnels.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Tell a subscriber of the tap of live connections.
    Tap(Feed),
    /// Forget cached metric series.
    ForgetSeries,
    /// Take no new connections at all; end after the live ones or at the deadline.
    Shutdown(Duration),
}

/// A pod and the listeners that one worker has for it.
pub type PodListeners = (Arc<Pod>, Listeners);

/// What a worker holds.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Live connections.
    pub connections: Vec<ConnectionView>,
    /// Tunnel connections to other agents, with the pod they belong to.
    pub tunnels: Vec<(Arc<Pod>, PoolConnection)>,
}

/// The control side's end of a worker.
#[derive(Debug)]
pub struct WorkerHandle {
    /// Where commands go.
    pub commands: mpsc::UnboundedSender<Command>,
    /// The thread.
    pub thread: JoinHandle<()>,
}

/// Starts worker `index`.
///
/// # Errors
/// No thread or no runtime can be made.
pub fn spawn(index: usize, context: Arc<Context>) -> io::Result<WorkerHandle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()?;
    let (commands, receiver) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new()
        .name(format!("karst-worker-{index}"))
        .spawn(move || {
            LocalSet::new().block_on(&runtime, run(Worker::new(context), receiver));
        })?;
    Ok(WorkerHandle { commands, thread })
}

/// One worker's state.
pub struct Worker {
    /// Shared with the other threads.
    pub context: Arc<Context>,
    /// Where connections of this worker are logged.
    pub access_log: AccessLog,
    /// What this worker counts for itself.
    pub metrics: Arc<WorkerMetrics>,
    spans: Spans<NodeTransport>,
    series: RefCell<SeriesCache>,
    /// Takes what is not to be counted.
    uncounted: Option<Arc<Series>>,
    live: RefCell<HashMap<u64, Rc<Live>>>,
    next_id: Cell<u64>,
    storm: Storm,
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker")
            .field("live", &self.live.borrow().len())
            .finish_non_exhaustive()
    }
}

impl Worker {
    pub(crate) fn new(context: Arc<Context>) -> Rc<Self> {
        Rc::new(Self {
            uncounted: context.metrics.without_traffic.then(Series::unseen),
            series: RefCell::new(SeriesCache::new(Arc::clone(&context.metrics.traffic))),
            access_log: context.access_log.clone(),
            metrics: context.metrics.connections.worker(),
            spans: Spans::new(
                NodeTransport::new(Arc::clone(&context.state)),
                context.resource.clone(),
                Arc::clone(&context.metrics.telemetry),
            ),
            context,
            live: RefCell::default(),
            next_id: Cell::new(0),
            storm: Storm::default(),
        })
    }

    /// The metric series of these parties.
    pub fn series(&self, parties: &Parties<'_>) -> Arc<Series> {
        match &self.uncounted {
            None => self.series.borrow_mut().get(parties),
            Some(series) => Arc::clone(series),
        }
    }

    /// A connection was established, `after` it was accepted.
    pub fn established(&self, direction: Direction, after: impl FnOnce() -> Duration) {
        if self.uncounted.is_none() {
            self.metrics.established(direction, after());
        }
    }

    /// An established connection has ended, `after` it was accepted; in `trace`, if it is part of one.
    pub fn ended(&self, direction: Direction, after: Duration, trace: Option<TraceParent>) {
        if self.uncounted.is_none() {
            self.metrics.ended(direction, after, trace);
        }
    }

    /// Logs a connection that has ended, if it shall be, and hands its span over, if it has one.
    pub fn report(&self, record: &Record) {
        let Some(observed) = &record.observed else {
            return self.access_log.record(record);
        };
        let telemetry = &self.context.metrics.telemetry;
        if self.access_log.is_on() {
            match observed.verdict(record) {
                Verdict::Log => self.access_log.record(record),
                Verdict::Unknown(error) => {
                    telemetry.unknown();
                    tracing::debug!(error, "a filter of the access log cannot be evaluated");
                    self.access_log.record(record);
                }
                Verdict::Skip(why) => telemetry.skipped(why),
            }
        }
        if let Some((tracing, span)) = observed.span(record) {
            self.spans.record(tracing, span);
        }
    }

    /// Forgets cached metric series, whose workloads may be gone.
    pub fn forget_series(&self) {
        self.series.borrow_mut().clear();
    }

    /// Adds a live connection; the id is for [`Self::untrack`].
    pub fn track(&self, live: Rc<Live>) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        let mut all = self.live.borrow_mut();
        all.insert(id, live);
        self.storm.rose(all.len());
        id
    }

    /// Removes an ended connection.
    pub fn untrack(&self, id: u64) {
        // Dropped last: what hangs on it may come back here.
        let (ended, is_over) = {
            let mut all = self.live.borrow_mut();
            let ended = all.remove(&id);
            let is_over = self.storm.fell(all.len());
            if is_over {
                all.shrink_to_fit();
            }
            (ended, is_over)
        };
        drop(ended);
        if is_over {
            storm::give_back();
        }
    }

    fn live_count(&self) -> usize {
        self.live.borrow().len()
    }
}

/// What becomes of live connections while a policy that applies to them has not come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    /// They go on: a workload may be told of before its policies are.
    MayCome,
    /// They are cut.
    Refuses,
}

/// A pod as one worker serves it.
pub struct LocalPod {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The worker.
    pub worker: Rc<Worker>,
    /// Tunnels from this pod; its own, because they are dialled from inside it.
    pub pool: Pool,
    /// Dials from inside the pod.
    pub dialer: Rc<PodDialer>,
    /// Limits of its tunnel server.
    pub limits: ServerLimits,
    /// Tells its tunnel servers to end.
    pub drain: watch::Sender<Drain>,
    stop_plain: CancellationToken,
    stop_hbone: CancellationToken,
    gate: watch::Sender<Gate>,
    listening: RefCell<Listening>,
    kill: CancellationToken,
    baggage: RefCell<Option<(u64, HeaderValue)>>,
    waypoints: RefCell<Arc<Waypoints>>,
    egress: Cell<Egress>,
    policies: RefCell<Cache>,
}

impl LocalPod {
    pub(crate) fn new(pod: Arc<Pod>, worker: &Rc<Worker>) -> Rc<Self> {
        Rc::new(Self {
            dialer: Rc::new(PodDialer {
                pod: Arc::clone(&pod),
            }),
            waypoints: RefCell::new(Arc::clone(&pod.waypoints)),
            egress: Cell::new(pod.egress),
            pod,
            worker: Rc::clone(worker),
            pool: Pool::new(PoolConfig {
                handshakes: worker.context.metrics.observer(),
                ..PoolConfig::default()
            }),
            limits: ServerLimits {
                handshakes: worker.context.metrics.observer(),
                ..ServerLimits::new(MAX_TUNNELS)
            },
            drain: watch::Sender::new(Drain::Running),
            stop_plain: CancellationToken::new(),
            stop_hbone: CancellationToken::new(),
            gate: watch::Sender::new(Gate::Open),
            listening: RefCell::default(),
            kill: CancellationToken::new(),
            baggage: RefCell::new(None),
            policies: RefCell::default(),
        })
    }

    /// Whether the pod is gone.
    pub fn is_killed(&self) -> bool {
        self.kill.is_cancelled()
    }

    /// Fires when the pod is gone.
    pub fn killed(&self) -> CancellationToken {
        self.kill.clone()
    }

    /// What connections to the pod must satisfy.
    pub fn waypoints(&self) -> Arc<Waypoints> {
        Arc::clone(&self.waypoints.borrow())
    }

    /// The pod as the source of a connection.
    pub fn source(&self) -> Source<'_> {
        Source {
            state: &self.worker.context.state,
            workload_uid: &self.pod.workload_uid,
            namespace: &self.pod.namespace,
            addresses: &self.pod.addresses,
            egress: self.egress.get(),
        }
    }

    /// Holds connections to the pod to `waypoints`, and those that it makes to `egress`: new
    /// ones, and those that are live.
    pub fn require(&self, waypoints: &Arc<Waypoints>, egress: Egress) {
        self.waypoints.replace(Arc::clone(waypoints));
        self.each_live(|live| live.require(waypoints));
        if self.egress.replace(egress) != egress {
            self.hold_to_egress();
        }
    }

    /// Cuts live connections to where the pod may not connect any more.
    fn hold_to_egress(&self) {
        if self.egress.get() == Egress::AllowAny {
            return;
        }
        let source = self.source();
        self.each_live(|live| live.hold_to_egress(source));
    }

    fn each_live(&self, each: impl Fn(&Live)) {
        let live = self.worker.live.borrow();
        live.values()
            .filter(|live| live.pod_uid() == &*self.pod.uid)
            .for_each(|live| each(live));
    }

    /// The policies of this pod's own `workload`.
    pub fn policies(&self, workload: &Workload) -> Arc<Effective> {
        let policies = &self.worker.context.state.policies;
        self.policies.borrow_mut().get(policies, workload)
    }

    /// Holds live connections to the policies in force.
    pub(crate) fn recheck(self: &Rc<Self>) {
        if self.hold_to_policies(Missing::MayCome) {
            return;
        }
        let pod = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(READY_WAIT).await;
            pod.hold_to_policies(Missing::Refuses);
        });
    }

    /// Cuts live connections that policies do not allow; whether all policies were there.
    fn hold_to_policies(&self, missing: Missing) -> bool {
        let state = &self.worker.context.state;
        // Without its workload it is ending, and nothing new comes to it.
        let Some(workload) = state.workload(&self.pod.workload_uid) else {
            return true;
        };
        let policies = self.policies(&workload);
        if policies.is_incomplete() && missing == Missing::MayCome {
            return false;
        }
        self.each_live(|live| live.recheck(&policies));
        true
    }

    /// The `baggage` header that speaks of this pod's own `workload`, built once
    /// for each revision of it.
    pub fn baggage(&self, workload: &Workload) -> Option<HeaderValue> {
        if let Some((revision, value)) = &*self.baggage.borrow()
            && *revision == workload.revision
        {
            return Some(value.clone());
        }
        let value = baggage(workload).to_value()?;
        *self.baggage.borrow_mut() = Some((workload.revision, value.clone()));
        Some(value)
    }

    fn serve(self: &Rc<Self>, listeners: Listeners) {
        let listening = match Listening::new(listeners) {
            Ok(listening) => listening,
            Err(error) => {
                tracing::error!(%error, pod.name = &*self.pod.name, "listeners cannot be used");
                return;
            }
        };
        let stop = |token: &CancellationToken| Stop {
            token: token.clone(),
            gate: self.gate.subscribe(),
        };
        for listener in &listening.outbound {
            let (pod, stop) = (Rc::clone(self), stop(&self.stop_plain));
            let listener = Rc::clone(listener);
            tokio::task::spawn_local(accept_loop(listener, pod, stop, outbound::serve));
        }
        for (_, listener) in &listening.plaintext {
            let (pod, stop) = (Rc::clone(self), stop(&self.stop_plain));
            let listener = Rc::clone(listener);
            tokio::task::spawn_local(accept_loop(listener, pod, stop, plaintext::serve));
        }
        for listener in &listening.hbone {
            let (pod, stop) = (Rc::clone(self), stop(&self.stop_hbone));
            let listener = Rc::clone(listener);
            tokio::task::spawn_local(accept_loop(listener, pod, stop, inbound::serve));
        }
        *self.listening.borrow_mut() = listening;
    }

    /// Takes no new connections, without an end to those that wait; gives copies of
    /// the listeners.
    fn pause(&self) -> io::Result<PodListeners> {
        self.gate.send_replace(Gate::Paused);
        let listeners = self.listening.borrow().copy()?;
        Ok((Arc::clone(&self.pod), listeners))
    }

    fn resume(&self) {
        self.gate.send_replace(Gate::Open);
    }

    /// Closes its copies of listeners that another agent has, and has peers open new
    /// tunnels, which that agent takes.
    fn hand_over(&self) {
        self.gate.send_replace(Gate::HandedOver);
        self.close_listeners();
        self.drain.send_replace(Drain::Graceful);
        self.pool.retain(|_| false);
    }

    /// The accept loops have theirs until they have ended.
    fn close_listeners(&self) {
        self.listening.take();
    }

    /// Un-enrolled: no new connections, tunnels end after a grace time.
    fn release(self: &Rc<Self>) {
        self.stop_plain.cancel();
        self.close_listeners();
        let pod = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(HBONE_GRACE).await;
            pod.end_tunnels();
        });
    }

    fn end_tunnels(&self) {
        self.stop_hbone.cancel();
        self.drain.send_replace(Drain::Graceful);
        // What still runs keeps its connection; nothing new comes.
        self.pool.retain(|_| false);
    }

    fn kill(&self) {
        self.close_listeners();
        self.stop_plain.cancel();
        self.stop_hbone.cancel();
        self.drain.send_replace(Drain::Immediate);
        self.kill.cancel();
        self.pool.retain(|_| false);
    }

    /// Keeps tunnels only to workloads that are still who and where they were,
    /// made with the certificate in use.
    fn retain(&self) {
        let context = &self.worker.context;
        let epoch = context
            .certificates
            .get(&self.pod.identity)
            .map(|c| c.epoch());
        self.pool.retain(|key| {
            // Without a valid certificate there is no newer one to prefer.
            let current = epoch.is_none_or(|epoch| epoch == key.certificate_epoch);
            let workload = context.state.workload(&key.destination_uid);
            let same = workload.is_some_and(|w| {
                w.identity.as_ref() == Some(&key.destination)
                    && w.addresses.contains(&key.address.ip())
            });
            current && same
        });
    }
}

/// Dials from inside a pod's namespace.
#[derive(Debug)]
pub struct PodDialer {
    pod: Arc<Pod>,
}

impl Dialer for PodDialer {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let to = (End::Network, address);
        sockets::connect(&self.pod.netns, to, |_| Ok(())).await
    }
}

fn baggage(workload: &Workload) -> Baggage {
    let workload_kind = match workload.workload_type {
        "deployment" => WorkloadKind::Deployment,
        "cronjob" => WorkloadKind::CronJob,
        "job" => WorkloadKind::Job,
        _ => WorkloadKind::Pod,
    };
    Baggage {
        cluster: workload.locality.cluster.to_string(),
        namespace: workload.namespace.to_string(),
        workload_kind,
        workload_name: workload.workload_name.to_string(),
        service_name: workload.canonical_name.to_string(),
        service_version: workload.canonical_revision.to_string(),
        region: workload.locality.region.to_string(),
        zone: workload.locality.zone.to_string(),
    }
}

pub(crate) async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    let mut pods: HashMap<Arc<str>, Rc<LocalPod>> = HashMap::new();
    // Released pods whose connections go on, so that they are still killed with the pod.
    let mut released: Vec<Rc<LocalPod>> = Vec::new();
    while let Some(command) = commands.recv().await {
        released.retain(|p| Rc::strong_count(p) > 1);
        match command {
            Command::Start(pod, listeners) => {
                let local = LocalPod::new(Arc::clone(&pod), &worker);
                local.serve(listeners);
                if let Some(old) = pods.insert(Arc::clone(&pod.uid), local) {
                    old.end_tunnels();
                    old.stop_plain.cancel();
                    old.close_listeners();
                    released.push(old);
                }
                // One that drains must not take tunnels meant for the new one.
                released
                    .iter()
                    .filter(|p| p.pod.uid == pod.uid)
                    .for_each(|p| p.end_tunnels());
            }
            Command::Release(uid) => {
                if let Some(local) = pods.remove(&uid) {
                    local.release();
                    released.push(local);
                }
            }
            Command::Kill(uid) => {
                pods.remove(&uid).into_iter().for_each(|p| p.kill());
                released
                    .iter()
                    .filter(|p| p.pod.uid == uid)
                    .for_each(|p| p.kill());
            }
            Command::Require(uid, waypoints, egress) => {
                let of_pod = |p: &&Rc<LocalPod>| p.pod.uid == uid;
                let all = pods.values().chain(&released);
                all.filter(of_pod)
                    .for_each(|p| p.require(&waypoints, egress));
            }
            Command::Recheck => pods.values().chain(&released).for_each(|p| p.recheck()),
            Command::RecheckEgress => {
                hold_all_to_egress(released.iter().chain(pods.values()));
            }
            Command::Pause(reply) => {
                let _ = reply.send(pause(&pods));
            }
            Command::Resume => pods.values().for_each(|p| p.resume()),
            Command::HandOver => {
                pods.values().for_each(|p| p.hand_over());
                released.extend(pods.drain().map(|(_, local)| local));
            }
            Command::Retain => pods.values().chain(&released).for_each(|p| p.retain()),
            Command::FlushMetrics(done) => {
                worker.live.borrow().values().for_each(|live| live.flush());
                let pools = pods.values().chain(&released).map(|p| p.pool.levels());
                worker
                    .metrics
                    .pools(pools.fold(PoolLevels::default(), PoolLevels::and));
                // The asker may have given up waiting.
                let _ = done.send(());
            }
            Command::Snapshot(reply) => {
                let _ = reply.send(snapshot(&worker, pods.values().chain(&released)));
            }
            Command::Tap(feed) => {
                let live = worker.live.borrow();
                live.values().for_each(|live| live.tap(&feed));
            }
            Command::ForgetSeries => worker.forget_series(),
            Command::Shutdown(deadline) => {
                let all: Vec<_> = pods.into_values().chain(released).collect();
                shut_down(&worker, &all, deadline).await;
                return worker.spans.finish(LAST_SPANS).await;
            }
        }
    }
}

/// Cuts live connections of all pods to where these may not connect any more, in one walk over the
/// worker's connections.
fn hold_all_to_egress<'a>(pods: impl Iterator<Item = &'a Rc<LocalPod>>) {
    let limited = pods.filter(|pod| pod.egress.get() != Egress::AllowAny);
    let limited: HashMap<&str, &Rc<LocalPod>> = limited.map(|pod| (&*pod.pod.uid, pod)).collect();
    let Some(one) = limited.values().next() else {
        return;
    };
    for live in one.worker.live.borrow().values() {
        if let Some(pod) = limited.get(live.pod_uid()) {
            live.hold_to_egress(pod.source());
        }
    }
}

fn pause(pods: &HashMap<Arc<str>, Rc<LocalPod>>) -> Vec<PodListeners> {
    let copies = pods.values().filter_map(|local| match local.pause() {
        Ok(copies) => Some(copies),
        Err(error) => {
            // No descriptors left. Its connections are refused from the hand-over on, until
            // the other agent has opened listeners of its own.
            tracing::warn!(%error, pod.uid = &*local.pod.uid, "listeners cannot be copied");
            None
        }
    });
    copies.collect()
}

fn snapshot<'a>(worker: &Worker, pods: impl Iterator<Item = &'a Rc<LocalPod>>) -> Snapshot {
    let connections = worker
        .live
        .borrow()
        .values()
        .map(|live| live.view())
        .collect();
    let of = |local: &Rc<LocalPod>| {
        let pod = Arc::clone(&local.pod);
        local
            .pool
            .snapshot()
            .into_iter()
            .map(move |connection| (Arc::clone(&pod), connection))
    };
    Snapshot {
        connections,
        tunnels: pods.flat_map(of).collect(),
    }
}

async fn shut_down(worker: &Worker, pods: &[Rc<LocalPod>], deadline: Duration) {
    /// How often the number of live connections is looked at while draining.
    const LOOK: Duration = Duration::from_millis(20);
    /// How often after the deadline.
    const KILL_LOOKS: usize = 10;
    for pod in pods {
        pod.close_listeners();
        pod.stop_plain.cancel();
        pod.stop_hbone.cancel();
        pod.drain.send_replace(Drain::Graceful);
    }
    let drained = async {
        while worker.live_count() > 0 {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(deadline, drained).await.is_err() {
        tracing::info!(connections = worker.live_count(), "drain deadline reached");
    }
    pods.iter().for_each(|p| p.kill());
    // The killed tasks run once more, so that their ends are counted and logged.
    for _ in 0..KILL_LOOKS {
        if worker.live_count() == 0 {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
}

//! Puts the parts together and runs them until the process is asked to end.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE};
use karst_client::{AdsConfig, AdsTask, ControllerConfig, DeltaAds, InitialSubscription};
use karst_datapath::{DatapathConfig, DatapathError, LAYOUT_VERSION};
use karst_identity::{
    CertificateEvents, CertificateManager, GrpcCa, GrpcCaConfig, IdentityError, ManagerConfig,
    SpiffeId, WorkloadCertificate,
};
use karst_process::http_server::{Reply, reply, serve_tcp, serve_unix};
use karst_process::tap::Tap;
use karst_telemetry::span;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_local};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::context::{Certificates, Context, Kernel, KernelSlot};
use crate::enrol::registry::{Registry, RegistryError};
use crate::enrol::task::{EnrolmentTask, Event, WorkerSet};
use crate::enrol::wishes::Wishes;
use crate::enrol::{Enrolment, PodTable};
use crate::metrics::Metrics;
use crate::metrics::node::NodeMetrics;
use crate::node;
use crate::presence::{HANDED_OVER, Presence};
use crate::process;
use crate::same_node::SameNode;
use crate::seniority::Seniority;
use crate::standby::{Standby, Turn};
use crate::state::MeshState;
use crate::state::store::Store;
use crate::state::workload::Locality;
use crate::takeover;
use crate::takeover::giver::{Giver, Lock};
use crate::takeover::wire::Listener;
use crate::worker::{self, Command, WorkerHandle};
use crate::xds::Handler;

/// How often metric series of gone workloads and policies are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);

/// Longest wait for workers to hand in byte counts for a scrape.
const FLUSH_WAIT: Duration = Duration::from_millis(500);

/// Lifetime to ask for: 24 hours.
const CERTIFICATE_SECONDS: i64 = 24 * 3600;

/// How often a port is tried that the former agent is about to give up.
const BIND_AGAIN: Duration = Duration::from_millis(100);

/// After how long somebody should know that it does not: it takes an agent milliseconds.
const BIND_WARNING: Duration = Duration::from_secs(60);

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// Something of the operating system.
    #[error("{action}: {source}")]
    Io {
        /// What was attempted.
        action: String,
        /// The answer.
        source: io::Error,
    },
    /// The BPF programs.
    #[error("datapath")]
    Datapath(#[from] DatapathError),
    /// The record of sandboxes.
    #[error("record of sandboxes: {0}")]
    Registry(#[from] RegistryError),
    /// Another agent serves this node and does not know how to hand over.
    #[error("another agent runs with {0} and cannot hand over; end it first")]
    OtherAgent(PathBuf),
    /// The crypto provider was set before.
    #[error("a TLS crypto provider is installed already")]
    CryptoProvider,
}

pub(crate) fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> AppError {
    let action = action.into();
    move |source| AppError::Io { action, source }
}

/// Runs the agent until SIGTERM or SIGINT and the drain after it.
///
/// # Errors
/// It cannot start.
pub fn run(config: Config) -> Result<(), AppError> {
    let lock = process::lock_state_dir(&config.state_dir).map_err(io_error("state directory"))?;
    let open_files = process::raise_open_files().map_err(io_error("raise open files"))?;
    let places = config.places.settle().map_err(io_error("find cgroups"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .install_default()
        .map_err(|_| AppError::CryptoProvider)?;
    tracing::info!(
        node = config.node_name,
        open_files,
        workers = config.workers,
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("karst-control")
        .build()
        .map_err(io_error("control runtime"))?;
    serve(&config, &runtime, places, lock)
}

fn serve(
    config: &Config,
    runtime: &Runtime,
    places: DatapathConfig,
    lock: Option<File>,
) -> Result<(), AppError> {
    let agent = Agent::assemble(config, runtime, places)?;
    let (context, workers) = (Arc::clone(&agent.context), agent.workers.clone());
    let ended = LocalSet::new().block_on(runtime, agent.control(lock))?;
    // Workers drain by themselves; control tasks are gone, so nothing new comes.
    workers.broadcast(|| Command::Shutdown(config.drain_deadline));
    drop(workers);
    for handle in ended.threads {
        if handle.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
    context.access_log.flush(Duration::from_secs(1));
    match ended.lock {
        Some(lock) => {
            drop(lock);
            tracing::info!(
                "ended; enrolled pods stay captured and are refused until an agent is back"
            );
        }
        None => tracing::info!("ended; another agent serves this node"),
    }
    Ok(())
}

/// What is left when the control side has ended.
struct Ended {
    threads: Vec<WorkerHandle>,
    /// Held until the connections have ended, unless another agent has it.
    lock: Option<Lock>,
}

struct Agent {
    config: Config,
    context: Arc<Context>,
    places: DatapathConfig,
    kernel: Arc<KernelSlot>,
    manager: CertificateManager,
    workers: WorkerSet,
    threads: Vec<WorkerHandle>,
    ads: (DeltaAds, AdsTask),
}

impl Agent {
    fn assemble(
        config: &Config,
        runtime: &Runtime,
        places: DatapathConfig,
    ) -> Result<Self, AppError> {
        let kernel = Arc::<KernelSlot>::default();
        let metrics = Arc::new(Metrics {
            without_traffic: config.without_traffic_metrics,
            ..Metrics::default()
        });
        let events: Arc<dyn CertificateEvents> = Arc::new(CertificateMetrics(Arc::clone(&metrics)));
        let manager = CertificateManager::new(
            Arc::new(GrpcCa::new(ca_config(config))),
            ManagerConfig::default(),
            events,
            runtime.handle().clone(),
        );
        let access_log = AccessLog::start(config.access_log).map_err(io_error("access log"))?;
        let context = Arc::new(Context {
            state: Arc::new(MeshState::default()),
            kernel: Arc::<KernelSlot>::clone(&kernel) as Arc<dyn Kernel>,
            certificates: Arc::new(manager.clone()) as Arc<dyn Certificates>,
            metrics,
            access_log,
            tap: Tap::new(vec![("node", config.node_name.clone())]),
            reachable: Default::default(),
            resource: span::Resource::new("karst-node-agent")
                .with("k8s.node.name", &config.node_name),
        });
        let threads = (0..config.workers)
            .map(|index| worker::spawn(index, Arc::clone(&context)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(io_error("worker threads"))?;
        let workers = WorkerSet::new(threads.iter().map(|w| w.commands.clone()).collect());
        let ads = DeltaAds::new(ads_config(config));
        let config = config.clone();
        Ok(Self {
            config,
            context,
            places,
            kernel,
            manager,
            workers,
            threads,
            ads,
        })
    }

    /// Runs the control side until a signal. `lock` is there if the node was free.
    async fn control(self, mut lock: Option<File>) -> Result<Ended, AppError> {
        let Self {
            config,
            context,
            places,
            kernel,
            manager,
            workers,
            threads,
            ads: (ads, ads_task),
        } = self;
        let mut signal = std::pin::pin!(wait_for_signal());
        let presence = Rc::<Presence>::default();
        if let Some(socket) = &config.ready_socket {
            let action = format!("readiness socket {}", socket.display());
            presence.serve(socket).map_err(io_error(action))?;
        }
        let seniority = Seniority::find(config.ready_socket.as_deref(), &config.state_dir)
            .map_err(io_error("find out since when this agent is there"))?;
        let (events, received) = mpsc::unbounded_channel();
        let wishes = Rc::new(RefCell::new(Wishes::new(workers.clone())));
        spawn_local(remember(received, Rc::clone(&wishes)));
        spawn_local(announce_sync(
            ads.ready(),
            Arc::clone(&context.state),
            events.clone(),
        ));
        spawn_local(follow_certificates(manager.changes(), workers.clone()));
        spawn_local(expire_series(Arc::clone(&context), workers.clone()));
        let handler = handler(&config, &context, events, workers.clone());
        spawn_local(ads_task.run(handler));
        let kubepods = places.kubepods_cgroup.clone();
        let standby = Standby {
            config: config.clone(),
            places,
            certificates: Arc::clone(&context.certificates),
            wishes: Rc::clone(&wishes),
            kernel,
            seniority: seniority.clone(),
        };
        let serving = Serving {
            config,
            kubepods,
            context,
            manager,
            workers,
            ads,
            wishes,
            presence,
            seniority,
        };
        let (name, held) = loop {
            let turn = tokio::select! {
                name = &mut signal => break (name, None),
                turn = standby.turn(lock.take()) => turn?,
            };
            let held = Rc::clone(&turn.lock);
            // Its tasks, down to connections of the admin socket, end with the turn.
            let tasks = LocalSet::new();
            tokio::select! {
                name = &mut signal => break (name, Some(held)),
                ended = tasks.run_until(serving.turn(turn)) => ended?,
            }
        };
        let signal = name.map_err(io_error("signal handler"))?;
        let deadline = serving.config.drain_deadline.as_secs();
        tracing::info!(signal, deadline_s = deadline, "draining");
        Ok(Ended {
            threads,
            lock: held,
        })
    }
}

fn handler(
    config: &Config,
    context: &Context,
    events: mpsc::UnboundedSender<Event>,
    workers: WorkerSet,
) -> Handler {
    let local = Locality {
        network: Arc::from(config.network.as_str()),
        node: Arc::from(config.node_name.as_str()),
        cluster: Arc::from(config.cluster_id.as_str()),
        ..Locality::default()
    };
    let store = Store::new(Arc::clone(&context.state), local);
    let names = (
        config.network.clone(),
        config.trust_domain.clone(),
        config.root_namespace.clone(),
    );
    Handler::new((store, Arc::clone(&context.state)), names, events, workers)
}

async fn remember(mut events: mpsc::UnboundedReceiver<Event>, wishes: Rc<RefCell<Wishes>>) {
    while let Some(event) = events.recv().await {
        wishes.borrow_mut().note(event);
    }
}

/// What an agent needs while it is its turn to serve the node.
struct Serving {
    config: Config,
    kubepods: PathBuf,
    context: Arc<Context>,
    manager: CertificateManager,
    workers: WorkerSet,
    ads: DeltaAds,
    wishes: Rc<RefCell<Wishes>>,
    presence: Rc<Presence>,
    seniority: Seniority,
}

impl Serving {
    /// Serves the node until another agent has taken over.
    async fn turn(&self, turn: Turn) -> Result<(), AppError> {
        let Turn {
            lock,
            datapath,
            inherited,
        } = turn;
        self.seniority.serves();
        if let Err(error) = datapath.start_logging() {
            tracing::warn!(%error, reason = error.reason(), "no logs of the BPF programs");
        }
        let (events, received) = mpsc::unbounded_channel();
        let (table, pods) = watch::channel(Arc::new(PodTable::default()));
        let ports = match inherited {
            Some(_) => Ports::SoonFree,
            None => Ports::Free,
        };
        let enrolment = Enrolment::new(
            Arc::clone(&self.context.kernel),
            Arc::clone(&self.context.certificates),
            self.workers.clone(),
            Registry::open(&self.config.state_dir)?,
        )?
        .inheriting(inherited.unwrap_or_default());
        let install = node::install_status(&self.config.runtime);
        let admin = Arc::new(Admin {
            node: self.config.node_name.clone(),
            controller: self.config.controller.clone(),
            started: Instant::now(),
            context: Arc::clone(&self.context),
            ads: self.ads.status(),
            xds: self.ads.clone(),
            pods: pods.clone(),
            enrolment: events.clone(),
            workers: self.workers.clone(),
            install: install.clone(),
        });
        let path = takeover::socket(&self.config.state_dir);
        let asked = Listener::bind(&path)
            .map_err(io_error(format!("takeover socket {}", path.display())))?;
        self.wishes.borrow_mut().follow(events.clone());
        let task = EnrolmentTask::new(
            enrolment,
            received,
            self.manager.changes(),
            table,
            self.ads.clone(),
        );
        let links = node::Links {
            events: events.clone(),
            missing: task.missing(),
            metrics: Arc::clone(&self.context.metrics.cni),
            install,
            kubepods: self.kubepods.clone(),
        };
        let (commands, obeyed) = mpsc::unbounded_channel();
        let encrypt = self.config.encrypt_same_node;
        let past = SameNode::new(&self.context, datapath, pods.clone(), obeyed, encrypt)?;
        self.workers.follow(commands);
        spawn_local(past.run());
        // First of all: whoever comes to the CNI socket finds the enrolment at work.
        spawn_local(task.run());
        node::start(&self.config.runtime, links).map_err(io_error("CNI socket"))?;
        serve_http(&self.config, &admin, &self.context, pods, ports).await?;
        self.presence.serving(admin);
        let giver = Giver {
            lock,
            layout: LAYOUT_VERSION,
            user: 0,
            workers: self.workers.clone(),
            enrolment: events,
            certificates: Arc::clone(&self.context.certificates),
            kernel: Arc::clone(&self.context.kernel),
        };
        giver.serve(asked).await;
        self.presence.absent(HANDED_OVER);
        self.wishes.borrow_mut().leave();
        self.ads.withdraw_enrolment();
        Ok(())
    }
}

/// Whether the agent's ports can be had at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ports {
    /// They must be: who has them is somebody else.
    Free,
    /// The former agent gives them up in a moment.
    SoonFree,
}

async fn serve_http(
    config: &Config,
    admin: &Arc<Admin>,
    context: &Arc<Context>,
    pods: watch::Receiver<Arc<PodTable>>,
    ports: Ports,
) -> Result<(), AppError> {
    let socket = &config.admin_socket;
    let listener =
        admin::listen(socket).map_err(io_error(format!("admin socket {}", socket.display())))?;
    let handler = Arc::clone(admin);
    spawn_local(serve_unix(listener, move |request| {
        Arc::clone(&handler).handle(request)
    }));
    for address in &config.readiness_listen {
        let handler = Arc::clone(admin);
        serve_port(*address, ports, move |request| {
            let answer = match request.uri().path() {
                "/healthz/ready" => handler.ready(),
                _ => not_found(),
            };
            std::future::ready(answer)
        })
        .await?;
    }
    let node = NodeMetrics {
        context: Arc::clone(context),
        ads: admin.ads.clone(),
        xds: admin.xds.clone(),
        pods,
        install: admin.install.clone(),
    };
    let registry = Arc::new(context.metrics.registry(node));
    for address in &config.metrics_listen {
        let (registry, workers) = (Arc::clone(&registry), admin.workers.clone());
        serve_port(*address, ports, move |request| {
            let (registry, workers) = (Arc::clone(&registry), workers.clone());
            async move {
                match request.uri().path() {
                    "/metrics" | "/stats/prometheus" => {
                        scrape(&registry, &workers, request.headers()).await
                    }
                    _ => not_found(),
                }
            }
        })
        .await?;
    }
    Ok(())
}

/// Serves `handler` on a port; on one that is soon free without waiting for that.
async fn serve_port<H, F>(address: SocketAddr, ports: Ports, handler: H) -> Result<(), AppError>
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Reply> + 'static,
{
    match TcpListener::bind(address).await {
        Ok(listener) => drop(spawn_local(serve_tcp(listener, handler))),
        Err(error) if ports == Ports::SoonFree && error.kind() == io::ErrorKind::AddrInUse => {
            tracing::info!(%address, "waiting for the former agent to give up a port");
            drop(spawn_local(async move {
                let since = Instant::now();
                let mut told = false;
                loop {
                    tokio::time::sleep(BIND_AGAIN).await;
                    match TcpListener::bind(address).await {
                        Ok(listener) => return serve_tcp(listener, handler).await,
                        Err(error) if !told && since.elapsed() > BIND_WARNING => {
                            tracing::warn!(%error, %address, "nothing is served on this port, somebody else has it");
                            told = true;
                        }
                        Err(_) => {}
                    }
                }
            }));
        }
        Err(error) => return Err(io_error(format!("listen on {address}"))(error)),
    }
    Ok(())
}

fn not_found() -> Reply {
    reply(http::StatusCode::NOT_FOUND, "text/plain", "not found\n")
}

/// Live connections count their bytes where no other thread looks; a scrape
/// collects them first.
async fn scrape(
    registry: &prometheus_client::registry::Registry,
    workers: &WorkerSet,
    asked: &http::HeaderMap,
) -> Reply {
    let mut flushed = Vec::new();
    for worker in workers.all() {
        let (done, wait) = oneshot::channel();
        if worker.send(Command::FlushMetrics(done)).is_ok() {
            flushed.push(wait);
        }
    }
    // Late byte counts come with the next scrape.
    let all = async {
        for wait in flushed {
            let _ = wait.await;
        }
    };
    let _ = tokio::time::timeout(FLUSH_WAIT, all).await;
    karst_process::metrics::scrape(registry, asked)
}

async fn announce_sync(
    synced: impl Future<Output = ()>,
    state: Arc<MeshState>,
    events: mpsc::UnboundedSender<Event>,
) {
    synced.await;
    state.set_ready();
    tracing::info!("mesh state complete");
    // The receiver lives as long as the process.
    let _ = events.send(Event::Synced);
}

/// New certificates get new tunnels; those with an old one end with their streams.
async fn follow_certificates(mut changes: watch::Receiver<u64>, workers: WorkerSet) {
    while changes.changed().await.is_ok() {
        workers.broadcast(|| Command::Retain);
    }
}

async fn expire_series(context: Arc<Context>, workers: WorkerSet) {
    let mut tick = tokio::time::interval(EXPIRE_EVERY);
    loop {
        tick.tick().await;
        if context.metrics.expire(&context.state) {
            workers.broadcast(|| Command::ForgetSeries);
        }
    }
}

async fn wait_for_signal() -> io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

fn ca_config(config: &Config) -> GrpcCaConfig {
    GrpcCaConfig {
        address: config.controller.clone(),
        server_name: config.controller_name.clone(),
        root_file: PathBuf::clone(&config.root_cert),
        token_file: PathBuf::clone(&config.token),
        cluster_id: config.cluster_id.clone(),
        validity_seconds: CERTIFICATE_SECONDS,
    }
}

fn ads_config(config: &Config) -> AdsConfig {
    AdsConfig {
        controller: ControllerConfig {
            address: config.controller.clone(),
            server_name: config.controller_name.clone(),
            root_cert: config.root_cert.clone(),
            token: config.token.clone(),
        },
        client_id: format!("karst-node-agent~{}", config.node_name),
        types: vec![
            (ADDRESS_TYPE, InitialSubscription::Everything),
            (AUTHORIZATION_TYPE, InitialSubscription::Everything),
            (NODE_POD_TYPE, InitialSubscription::Everything),
        ],
    }
}

struct CertificateMetrics(Arc<Metrics>);

impl CertificateEvents for CertificateMetrics {
    fn issued(&self, certificate: &WorkloadCertificate, took: Duration) {
        self.0.certificates_issued.inc();
        tracing::info!(identity = %certificate.id(), ?took, "certificate issued");
    }

    fn failed(&self, id: &SpiffeId, error: &IdentityError) {
        self.0.certificates_failed.inc();
        tracing::warn!(identity = %id, reason = error.reason(), %error, "certificate request failed");
    }
}

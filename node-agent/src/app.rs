//! Puts the parts together and runs them until the process is asked to end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE};
use karst_client::{AdsConfig, AdsTask, ControllerConfig, DeltaAds, InitialSubscription};
use karst_datapath::{Datapath, DatapathError};
use karst_identity::{
    CertificateEvents, CertificateManager, GrpcCa, GrpcCaConfig, IdentityError, ManagerConfig,
    SpiffeId, WorkloadCertificate,
};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_local};

use crate::access_log::AccessLog;
use crate::admin::{self, Admin};
use crate::config::Config;
use crate::context::{Certificates, Context, Kernel};
use crate::enrol::registry::{Registry, RegistryError};
use crate::enrol::task::{EnrolmentTask, Event, WorkerSet};
use crate::enrol::{Enrolment, PodTable};
use crate::http_server::{Reply, reply, serve_tcp, serve_unix};
use crate::metrics::node::NodeMetrics;
use crate::metrics::{self, Metrics};
use crate::node;
use crate::process;
use crate::state::MeshState;
use crate::state::store::Store;
use crate::state::workload::Locality;
use crate::worker::{self, Command, WorkerHandle};
use crate::xds::Handler;

/// How often metric series of gone workloads are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(30);

/// Longest wait for workers to hand in byte counts for a scrape.
const FLUSH_WAIT: Duration = Duration::from_millis(500);

/// Lifetime to ask for: 24 hours.
const CERTIFICATE_SECONDS: i64 = 24 * 3600;

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
    /// The crypto provider was set before.
    #[error("a TLS crypto provider is installed already")]
    CryptoProvider,
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> AppError {
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
    let datapath = Datapath::open(&places)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("karst-control")
        .build()
        .map_err(io_error("control runtime"))?;
    let outcome = serve(&config, &runtime, (datapath, places.kubepods_cgroup));
    drop(lock);
    outcome
}

fn serve(
    config: &Config,
    runtime: &Runtime,
    (datapath, kubepods): (Datapath, PathBuf),
) -> Result<(), AppError> {
    let agent = Agent::assemble(config, runtime, (datapath, kubepods))?;
    let (context, workers) = (Arc::clone(&agent.context), agent.workers.clone());
    let threads = LocalSet::new().block_on(runtime, agent.control())?;
    // Workers drain by themselves; control tasks are gone, so nothing new comes.
    workers.broadcast(|| Command::Shutdown(config.drain_deadline));
    drop(workers);
    for handle in threads {
        if handle.thread.join().is_err() {
            tracing::error!("a worker thread panicked");
        }
    }
    context.access_log.flush(Duration::from_secs(1));
    tracing::info!("ended; enrolled pods stay captured and are refused until an agent is back");
    Ok(())
}

struct Agent {
    config: Config,
    context: Arc<Context>,
    datapath: Arc<Datapath>,
    kubepods: PathBuf,
    manager: CertificateManager,
    workers: WorkerSet,
    threads: Vec<WorkerHandle>,
    registry: Registry,
    ads: (DeltaAds, AdsTask),
}

impl Agent {
    fn assemble(
        config: &Config,
        runtime: &Runtime,
        (datapath, kubepods): (Datapath, PathBuf),
    ) -> Result<Self, AppError> {
        let datapath = Arc::new(datapath);
        let metrics = Arc::new(Metrics::default());
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
            kernel: Arc::<Datapath>::clone(&datapath) as Arc<dyn Kernel>,
            certificates: Arc::new(manager.clone()) as Arc<dyn Certificates>,
            metrics,
            access_log,
        });
        let registry = Registry::open(&config.state_dir)?;
        let threads = (0..config.workers)
            .map(|index| worker::spawn(index, Arc::clone(&context)))
            .collect::<io::Result<Vec<_>>>()
            .map_err(io_error("worker threads"))?;
        let workers = WorkerSet(threads.iter().map(|w| w.commands.clone()).collect());
        let ads = DeltaAds::new(ads_config(config));
        let config = config.clone();
        Ok(Self {
            config,
            context,
            datapath,
            kubepods,
            manager,
            workers,
            threads,
            registry,
            ads,
        })
    }

    /// Runs the control side until a signal; returns the worker threads.
    async fn control(self) -> Result<Vec<WorkerHandle>, AppError> {
        let Self {
            config,
            context,
            datapath,
            kubepods,
            manager,
            workers,
            threads,
            registry,
            ads,
        } = self;
        if let Err(error) = datapath.start_logging() {
            tracing::warn!(%error, reason = error.reason(), "no logs of the BPF programs");
        }
        let (ads, ads_task) = ads;
        let (events, received) = mpsc::unbounded_channel();
        let (table, pods) = watch::channel(Arc::new(PodTable::default()));
        let enrolment = Enrolment::new(
            Arc::clone(&context.kernel),
            Arc::clone(&context.certificates),
            workers.clone(),
            registry,
        )?;
        let install = node::install_status(&config.runtime);
        let admin = Arc::new(Admin {
            node: config.node_name.clone(),
            controller: config.controller.clone(),
            started: Instant::now(),
            context: Arc::clone(&context),
            ads: ads.status(),
            pods: pods.clone(),
            enrolment: events.clone(),
            workers: workers.clone(),
            install: install.clone(),
        });
        serve_http(&config, &admin, &context, pods).await?;
        let changes = manager.changes();
        let task = EnrolmentTask::new(enrolment, received, changes.clone(), table, ads.clone());
        let links = node::Links {
            events: events.clone(),
            missing: task.missing(),
            metrics: Arc::clone(&context.metrics.cni),
            install,
            kubepods,
        };
        node::start(&config.runtime, links).map_err(io_error("CNI socket"))?;
        spawn_local(task.run());
        spawn_local(announce_sync(
            ads.ready(),
            Arc::clone(&context.state),
            events.clone(),
        ));
        spawn_local(follow_certificates(changes, workers.clone()));
        spawn_local(expire_series(Arc::clone(&context), workers.clone()));
        let local = Locality {
            network: Arc::from(config.network.as_str()),
            node: Arc::from(config.node_name.as_str()),
            cluster: Arc::from(config.cluster_id.as_str()),
            ..Locality::default()
        };
        let store = Store::new(Arc::clone(&context.state), local);
        let names = (config.network.clone(), config.trust_domain.clone());
        let handler = Handler::new((store, Arc::clone(&context.state)), names, events, workers);
        spawn_local(ads_task.run(handler));
        let name = wait_for_signal()
            .await
            .map_err(io_error("signal handler"))?;
        let deadline = config.drain_deadline.as_secs();
        tracing::info!(signal = name, deadline_s = deadline, "draining");
        Ok(threads)
    }
}

async fn serve_http(
    config: &Config,
    admin: &Arc<Admin>,
    context: &Arc<Context>,
    pods: watch::Receiver<Arc<PodTable>>,
) -> Result<(), AppError> {
    let socket = &config.admin_socket;
    let listener =
        admin::listen(socket).map_err(io_error(format!("admin socket {}", socket.display())))?;
    let handler = Arc::clone(admin);
    spawn_local(serve_unix(listener, move |request| {
        Arc::clone(&handler).handle(request)
    }));
    for address in &config.readiness_listen {
        let listener = bind(*address).await?;
        let handler = Arc::clone(admin);
        spawn_local(serve_tcp(listener, move |request| {
            let answer = match request.uri().path() {
                "/healthz/ready" => handler.ready(),
                _ => not_found(),
            };
            std::future::ready(answer)
        }));
    }
    let node = NodeMetrics {
        context: Arc::clone(context),
        ads: admin.ads.clone(),
        pods,
        install: admin.install.clone(),
    };
    let registry = Arc::new(context.metrics.registry(node));
    for address in &config.metrics_listen {
        let listener = bind(*address).await?;
        let (registry, workers) = (Arc::clone(&registry), admin.workers.clone());
        spawn_local(serve_tcp(listener, move |request| {
            let (registry, workers) = (Arc::clone(&registry), workers.clone());
            async move {
                match request.uri().path() {
                    "/metrics" | "/stats/prometheus" => scrape(&registry, &workers).await,
                    _ => not_found(),
                }
            }
        }));
    }
    Ok(())
}

async fn bind(address: SocketAddr) -> Result<TcpListener, AppError> {
    TcpListener::bind(address)
        .await
        .map_err(io_error(format!("listen on {address}")))
}

fn not_found() -> Reply {
    reply(http::StatusCode::NOT_FOUND, "text/plain", "not found\n")
}

/// Live connections count their bytes where no other thread looks; a scrape
/// collects them first.
async fn scrape(registry: &prometheus_client::registry::Registry, workers: &WorkerSet) -> Reply {
    let mut flushed = Vec::new();
    for worker in &workers.0 {
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
    match metrics::encode(registry) {
        Ok(text) => reply(http::StatusCode::OK, metrics::CONTENT_TYPE, text),
        Err(error) => reply(
            http::StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
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
        if context
            .metrics
            .traffic
            .expire(|uid| context.state.workload(uid).is_some())
            > 0
        {
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

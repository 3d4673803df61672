//! Puts the parts together and runs them until the process is asked to end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use karst_api::{
    AUTHORIZATION_POLICY_TYPE, BACKEND_TYPE, LISTENER_TYPE, REQUEST_AUTHENTICATION_TYPE,
    ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_client::{
    AdsConfig, ControllerConfig, DeltaAds, InitialSubscription, Resource, ResourceHandler,
};
use karst_identity::{
    CertificateEvents, CertificateManager, GrpcCa, GrpcCaConfig, IdentityError, ManagerConfig,
    SpiffeId, Urgency, WorkloadCertificate,
};
use karst_process::http_server::{Reply, reply, serve_tcp};
use karst_process::tap::Tap;
use karst_telemetry::span;
use karst_tunnel::headers::{Baggage, WorkloadKind};
use karst_tunnel::settings::HBONE_PORT;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{LocalSet, spawn_local};

use crate::access_log::AccessLog;
use crate::admin::Admin;
use crate::args::Config;
use crate::authn::fetch;
use crate::authn::source::KeySources;
use crate::balance::{Clusters, OwnPlace};
use crate::config::Store;
use crate::metrics::process::ProcessMetrics;
use crate::metrics::{Metrics, encode};
use crate::proxy::Proxy;
use crate::readiness::Readiness;
use crate::shared::{Shared, Upstreams};
use crate::sockets;
use crate::worker::Command;

/// Lifetime of certificates to ask for: 24 hours.
const CERTIFICATE_SECONDS: i64 = 24 * 3600;

/// How often silent metric series are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(60);

/// How often it is looked whether the workers have ended.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// Open files that are not for clients' connections: listeners, logs, the controller, the admin port.
const RESERVED_FILES: u64 = 256;

/// Clients' connections at once, however many files may be open: each takes some KB of memory at least.
const MAX_CONNECTIONS: u64 = 500_000;

/// Why the proxy could not start.
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
    /// The identity cannot be kept.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// The crypto provider was set before.
    #[error("a TLS crypto provider is installed already")]
    CryptoProvider,
}

fn io_error(action: impl Into<String>) -> impl FnOnce(io::Error) -> AppError {
    let action = action.into();
    move |source| AppError::Io { action, source }
}

/// Runs the proxy until SIGTERM or SIGINT and the drain after it.
///
/// # Errors
/// It cannot start.
pub fn run(config: Config) -> Result<(), AppError> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .install_default()
        .map_err(|_| AppError::CryptoProvider)?;
    let open_files = sockets::raise_open_files().map_err(io_error("raise open files"))?;
    tracing::info!(
        gateway = %format_args!("{}/{}", config.gateway_namespace, config.gateway_name),
        identity = %config.identity,
        workers = config.workers,
        open_files,
        "starting"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("karst-control")
        .build()
        .map_err(io_error("control runtime"))?;
    let app = App::assemble(config, &runtime, open_files)?;
    app.run(&runtime)
}

struct App {
    config: Config,
    shared: Arc<Shared>,
    manager: CertificateManager,
    proxy: Proxy,
}

impl App {
    fn assemble(config: Config, runtime: &Runtime, open_files: u64) -> Result<Self, AppError> {
        let metrics = Arc::new(Metrics {
            without_traffic: config.without_traffic_metrics,
            ..Metrics::default()
        });
        let events: Arc<dyn CertificateEvents> = Arc::new(CertificateMetrics(Arc::clone(&metrics)));
        let manager = CertificateManager::new(
            Arc::new(GrpcCa::new(ca_config(&config))),
            ManagerConfig::default(),
            events,
            runtime.handle().clone(),
        );
        manager.want(&config.identity, Urgency::Now)?;
        let access_log = AccessLog::start(config.access_log).map_err(io_error("access log"))?;
        let own = OwnPlace {
            node: config.node_name.clone(),
            zone: config.zone.clone(),
        };
        let shared = Arc::new(Shared {
            tables: Arc::default(),
            configured: AtomicBool::new(false),
            clusters: Arc::new(Clusters::new(own)),
            certificate: {
                let (manager, identity) = (manager.clone(), config.identity.clone());
                Box::new(move || manager.get(&identity))
            },
            metrics,
            trusted_hops: config.trusted_hops,
            access_log,
            tap: Tap::new(reporter(&config)),
            resource: resource(&config),
            max_connections: max_connections(open_files),
            baggage: Some(baggage(&config)),
            tunnel_port: HBONE_PORT,
            upstreams: Upstreams::default(),
        });
        let mut proxy =
            Proxy::start(&shared, config.workers).map_err(io_error("worker threads"))?;
        proxy
            .listen(&config.mesh_listen)
            .map_err(io_error("tunnel listeners"))?;
        Ok(Self {
            config,
            shared,
            manager,
            proxy,
        })
    }

    fn run(self, runtime: &Runtime) -> Result<(), AppError> {
        let ended = LocalSet::new().block_on(runtime, self.control());
        self.shared.access_log.flush(Duration::from_secs(1));
        tracing::info!("ended");
        ended
    }

    /// Runs the control side until a signal, while others learn that this proxy ends, and until it has.
    async fn control(&self) -> Result<(), AppError> {
        let mut signals = Signals::new().map_err(io_error("signal handler"))?;
        let (ads, task) = DeltaAds::new(ads_config(&self.config));
        let mut store = Store::new(
            Arc::clone(&self.shared.clusters),
            Arc::clone(&self.shared.tables),
        );
        let listing = store.listing();
        let key_sources = store.key_sources();
        if let Some(new) = store.take_new_key_sources() {
            spawn_local(fetch::run(Arc::clone(&key_sources), new));
        }
        let (changed, changes) = watch::channel(0);
        let readiness = Readiness::new(ads.status(), Arc::clone(&self.shared));
        let ports = self.proxy.ports(self.config.listen_addresses.clone());
        let admin = Arc::new(Admin {
            config: self.config.clone(),
            started: Instant::now(),
            shared: Arc::clone(&self.shared),
            workers: self.proxy.commands(),
            ads: ads.status(),
            xds: ads.clone(),
            listing,
            ports: ports.shown(),
            certificates: self.manager.clone(),
            readiness: readiness.clone(),
        });
        self.serve_http(&admin, &ads, key_sources)?;
        spawn_local(ports.run(changes));
        spawn_local(task.run(Handler { store, changed }));
        let workers = self.proxy.commands();
        spawn_local(follow_certificate(self.manager.changes(), workers));
        spawn_local(expire_series(Arc::clone(&self.shared)));
        spawn_local(announce(ads, Arc::clone(&self.shared)));
        let name = signals.wait().await;
        readiness.drain();
        let delay = self.config.drain_delay;
        tracing::info!(signal = name, delay_s = delay.as_secs(), "draining");
        // Until everybody knows, connections still come, and are served as before.
        let hurried = tokio::select! {
            () = tokio::time::sleep(delay) => false,
            _ = signals.wait() => true,
        };
        if hurried {
            return Ok(());
        }
        self.proxy
            .drain(self.config.drain_deadline.saturating_sub(delay));
        while !self.proxy.is_finished() {
            tokio::select! {
                () = tokio::time::sleep(DRAIN_LOOK) => {}
                // Asked twice, it does not wait any longer.
                _ = signals.wait() => return Ok(()),
            }
        }
        Ok(())
    }

    fn serve_http(
        &self,
        admin: &Arc<Admin>,
        ads: &DeltaAds,
        key_sources: Arc<KeySources>,
    ) -> Result<(), AppError> {
        let pages = Arc::clone(admin);
        let addresses = [self.config.admin_listen];
        serve(&addresses, "admin port", move |request| {
            Arc::clone(&pages).handle(request)
        })?;
        let probed = Arc::clone(admin);
        serve(
            &self.config.readiness_listen,
            "readiness port",
            move |request| {
                let answer = match request.uri().path() {
                    "/healthz/ready" => probed.ready(),
                    // The process answers, so it lives.
                    "/healthz/live" => reply(StatusCode::OK, "text/plain", "ok\n"),
                    _ => not_found(),
                };
                std::future::ready(answer)
            },
        )?;
        let mut registry = encode::registry(&self.shared.metrics);
        registry.register_collector(Box::new(ProcessMetrics {
            shared: Arc::clone(&self.shared),
            ads: ads.status(),
            xds: ads.clone(),
            certificates: self.manager.clone(),
            listing: admin.listing.clone(),
            key_sources,
        }));
        let registry = Arc::new(registry);
        serve(
            &self.config.metrics_listen,
            "metrics port",
            move |request| {
                let answer = match request.uri().path() {
                    "/metrics" | "/stats/prometheus" => {
                        karst_process::metrics::scrape(&registry, request.headers())
                    }
                    _ => not_found(),
                };
                std::future::ready(answer)
            },
        )
    }
}

fn serve<H, F>(addresses: &[SocketAddr], what: &str, handler: H) -> Result<(), AppError>
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Reply> + 'static,
{
    let listeners = sockets::listen_all(addresses.iter().copied(), 1).map_err(io_error(what))?;
    for listener in listeners.into_iter().flatten() {
        let listener = TcpListener::from_std(listener).map_err(io_error(what))?;
        spawn_local(serve_tcp(listener, handler.clone()));
    }
    Ok(())
}

fn not_found() -> Reply {
    reply(StatusCode::NOT_FOUND, "text/plain", "not found\n")
}

/// Hands resources to the store, and says that something has changed.
struct Handler {
    store: Store,
    changed: watch::Sender<u64>,
}

impl ResourceHandler for Handler {
    fn apply(
        &mut self,
        type_url: &str,
        updates: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<(String, String)> {
        let rejected = self.store.apply(type_url, updates, removed);
        for (name, problem) in &rejected {
            tracing::warn!(
                type_url,
                name,
                problem,
                "resource rejected; the last good one stays"
            );
        }
        self.changed.send_modify(|count| *count += 1);
        rejected
    }
}

/// Who we are in spans.
fn resource(config: &Config) -> span::Resource {
    let (name, namespace) = (&config.gateway_name, &config.gateway_namespace);
    span::Resource::new(format!("{name}.{namespace}"))
        .with("k8s.namespace.name", namespace)
        .with("k8s.pod.name", &config.pod_name)
        .with("k8s.node.name", &config.node_name)
        .with("k8s.cluster.name", &config.cluster_id)
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn wait(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// New certificates get new tunnels; those with an old one end with their streams.
async fn follow_certificate(
    mut changes: watch::Receiver<u64>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
) {
    while changes.changed().await.is_ok() {
        for worker in &workers {
            // A worker that is gone takes the process with it.
            let _ = worker.send(Command::CertificateChanged);
        }
    }
}

async fn expire_series(shared: Arc<Shared>) {
    let mut tick = tokio::time::interval(EXPIRE_EVERY);
    loop {
        tick.tick().await;
        let workloads = shared.clusters.workloads();
        shared.metrics.traffic.expire(&workloads);
    }
}

async fn announce(ads: DeltaAds, shared: Arc<Shared>) {
    ads.ready().await;
    shared.configured.store(true, Ordering::Relaxed);
    tracing::info!("configuration complete");
}

/// A client's connection needs a file, and another one towards the application.
fn max_connections(open_files: u64) -> usize {
    let most = open_files.saturating_sub(RESERVED_FILES) / 2;
    usize::try_from(most.clamp(1, MAX_CONNECTIONS)).unwrap_or(usize::MAX)
}

/// What every event of the tap says of this proxy.
fn reporter(config: &Config) -> Vec<(&'static str, String)> {
    let gateway = format!("{}/{}", config.gateway_namespace, config.gateway_name);
    vec![
        ("node", config.node_name.clone()),
        ("proxy", gateway),
        ("proxy.pod", config.pod_name.clone()),
    ]
}

fn baggage(config: &Config) -> Baggage {
    Baggage {
        cluster: config.cluster_id.clone(),
        namespace: config.gateway_namespace.clone(),
        workload_kind: WorkloadKind::Deployment,
        workload_name: config.gateway_name.clone(),
        service_name: config.gateway_name.clone(),
        service_version: "latest".to_owned(),
        region: String::new(),
        zone: config.zone.clone(),
    }
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
    let everything = |type_url| (type_url, InitialSubscription::Everything);
    AdsConfig {
        controller: ControllerConfig {
            address: config.controller.clone(),
            server_name: config.controller_name.clone(),
            root_cert: config.root_cert.clone(),
            token: config.token.clone(),
        },
        client_id: format!(
            "karst-waypoint~{}/{}~{}",
            config.gateway_namespace, config.gateway_name, config.pod_name
        ),
        types: [
            LISTENER_TYPE,
            ROUTE_TYPE,
            BACKEND_TYPE,
            TLS_SECRET_TYPE,
            AUTHORIZATION_POLICY_TYPE,
            REQUEST_AUTHENTICATION_TYPE,
        ]
        .map(everything)
        .to_vec(),
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

#[cfg(test)]
mod tests {
    use super::max_connections;

    #[test]
    fn connections_fit_into_the_limit_of_files() {
        assert_eq!(max_connections(1024), 384);
        assert_eq!(max_connections(10), 1);
        assert_eq!(max_connections(u64::MAX), 500_000);
    }
}

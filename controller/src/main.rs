//! `karst-controller`: reads the cluster's objects, serves the mesh's resources to node agents and to
//! the proxies of Gateways by delta discovery, signs workload certificates, and has proxies run.
//!
//! What the resources are is decided in `karst-core`; this binary has the sources, the servers and
//! the certificate authority. Everything is authenticated: TLS with a certificate of the mesh's own
//! root one way, service-account tokens the other. Start with [`run`].

mod args;
mod auth;
mod ca;
mod cluster;
mod feed;
mod log_level;
mod mesh_config;
mod metrics;
mod serve;
mod source;
mod start;
mod store;
mod xds;

use std::{process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use clap::Parser;
use karst_api::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    node::node_service_server::NodeServiceServer,
};
use karst_core::Index;
use karst_process::logging;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::Server;
use tracing::info;

use crate::{
    args::{Args, Config, LogFormat},
    auth::Callers,
    ca::service::CertificateService,
    metrics::Metrics,
    serve::{certificate::ServingCertificate, http, listener},
    start::Parts,
    store::Store,
    xds::service::{Discovery, DiscoveryServer},
};

/// Objects are read in many small allocations, for which the C library's is slow.
#[cfg(target_arch = "x86_64")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Requests one connection may have open: one stream, and a certificate for each pod of a node.
const MAX_REQUESTS_PER_CONNECTION: u32 = 256;

/// Silent connections are probed this often, so that streams of vanished agents end.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// A probe must be answered within this time.
const PING_LIMIT: Duration = Duration::from_secs(20);

/// Streams and requests are given this long to end after SIGTERM.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = start_log(args.log_format) {
        eprintln!("karst-controller: KARST_LOG: {error}");
        return ExitCode::from(2);
    }
    let config = match args.check() {
        Ok(config) => config,
        Err(mistakes) => {
            eprintln!("karst-controller: the arguments are not right:\n{mistakes}");
            // The exit status that clap itself uses for wrong usage.
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let result = runtime
        .context("starting the runtime")
        .and_then(|runtime| runtime.block_on(run(config)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(
                reason = "controller_failed",
                error = format!("{error:#}"),
                "stopping"
            );
            ExitCode::FAILURE
        }
    }
}

/// Starts the log with the level in `KARST_LOG`, which is `info` if there is none.
fn start_log(format: LogFormat) -> Result<(), logging::LoggingError> {
    let level = std::env::var("KARST_LOG").unwrap_or_else(|_| "info".to_owned());
    let format = match format {
        LogFormat::Text => karst_process::args::LogFormat::Text,
        LogFormat::Json => karst_process::args::LogFormat::Json,
    };
    logging::init(format, &level)
}

/// Runs until SIGTERM or SIGINT.
async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    log_level::follow_signals().context("listening for SIGUSR1 and SIGUSR2")?;
    let metrics = Metrics::default();
    let store = Arc::new(Store::new(Index::new(config.mesh.clone())));
    // The sockets come first: agents may start as soon as they see the roots, and the kubelet asks
    // from the beginning whether all is well.
    let grpc = bind(config.listen).await?;
    let plain = bind(config.metrics_listen).await?;
    let plain_address = plain.local_addr().context("reading the metrics address")?;
    let (ready, is_ready) = watch::channel(false);
    tokio::spawn(http::serve(plain, Arc::new(metrics.registry()), is_ready));
    if let Some(path) = &config.mesh_config {
        // Before policies are served that ask what it describes.
        let file = mesh_config::MeshConfigFile::open(path, store.clone());
        tokio::spawn(file.follow());
    }
    let parts = tokio::select! {
        parts = Parts::start(&config, &store, &metrics) => parts?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let Parts {
        authority,
        authenticator,
        reports,
        background,
    } = parts;
    let (certificate, renew_at) = ServingCertificate::new(authority.clone(), config.serving_names)?;
    tokio::spawn(certificate.clone().renew(renew_at));
    let tls = certificate.server_config()?;
    if let Some(path) = &config.root_cert_out {
        ca::publish_roots(path, &authority)?;
    }

    let (stop, shutdown) = watch::channel(false);
    let callers = Callers::new(config.node_agents, store.clone());
    let discovery = Discovery::new(
        store.clone(),
        authenticator.clone(),
        callers.clone(),
        reports,
        metrics.clone(),
        shutdown.clone(),
    );
    let certificates = CertificateService {
        authority,
        store,
        authenticator,
        callers,
        metrics: metrics.clone(),
    };
    let ads = DiscoveryServer(discovery.clone());
    let listen = grpc.local_addr().context("reading the listening address")?;
    let connections = listener::accept(grpc, TlsAcceptor::from(Arc::new(tls)), metrics.clone());
    let mut stopping = shutdown;
    let server = Server::builder()
        .max_concurrent_streams(MAX_REQUESTS_PER_CONNECTION)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_LIMIT))
        .add_service(ads)
        .add_service(NodeServiceServer::new(discovery))
        .add_service(IstioCertificateServiceServer::new(certificates))
        .serve_with_incoming_shutdown(connections, async move {
            // An error means that the sender is gone, which is as good a reason to stop.
            let _ = stopping.wait_for(|stop| *stop).await;
        });
    let mut server = tokio::spawn(server);
    ready.send_replace(true);
    info!(%listen, metrics = %plain_address, "ready");

    tokio::select! {
        _ = terminate.recv() => info!("SIGTERM: stopping"),
        _ = interrupt.recv() => info!("SIGINT: stopping"),
        ended = &mut server => {
            ended.context("the server's task failed")?.context("serving")?;
            anyhow::bail!("the server ended by itself");
        }
    }
    ready.send_replace(false);
    // The receivers are alive as long as anything is to be told.
    let _ = stop.send(true);
    background.stop().await;
    match tokio::time::timeout(DRAIN_LIMIT, server).await {
        Ok(ended) => ended
            .context("the server's task failed")?
            .context("serving")?,
        Err(_) => info!("some requests did not end in time"),
    }
    info!("stopped");
    Ok(())
}

async fn bind(address: std::net::SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))
}

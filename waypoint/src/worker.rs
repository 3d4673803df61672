//! A data-plane thread: one current-thread runtime that drains a whole batch of readiness events before it polls
//! the kernel again. Everything of a connection stays on the worker that accepted it; nothing is shared between
//! workers but counters, the configuration and the state of endpoints.
//!
//! Start with [`spawn`]; what a worker does is its [`Command`]s, [`crate::mesh`] and [`crate::gateway`].

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hashbrown::HashMap;
use karst_telemetry::export::Spans;
use karst_tunnel::pool::PoolConfig;
use karst_tunnel::pool::PoolConnection;
use karst_tunnel::server::{Drain, ServerLimits};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;

use crate::access_log::{ConnectionRecord, Reporter};
use crate::client::Client;
use crate::http::{HttpLimits, HttpServer};
use crate::metrics::Inside;
use crate::observe::UpstreamTransport;
use crate::reason::Reason;
use crate::shared::Shared;
use crate::telemetry::Recorder;
use crate::upstream::{Upstream, UpstreamSettings};
use crate::workload::WorkloadLabels;
use crate::{gateway, mesh, sockets};

/// Ready tasks run between two looks at the kernel's readiness events. Large on purpose: many streams of one
/// tunnel connection then share a write.
const EVENT_INTERVAL: u32 = 256;

/// Tunnel connections one worker accepts: more than the nodes of a large cluster, each with a few connections.
const MAX_TUNNELS: usize = 8192;

/// What clients' agents say about them is kept once for each; the memory starts afresh when full.
const MAX_WORKLOADS: usize = 4096;

/// How often the number of live connections is looked at while draining.
const LOOK: Duration = Duration::from_millis(20);

/// How long spans that wait are still sent after the last connection.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// How often after the deadline.
const LAST_LOOKS: usize = 10;

/// What the control side asks of a worker.
#[derive(Debug)]
pub enum Command {
    /// Take tunnels.
    Mesh(Vec<std::net::TcpListener>),
    /// Take connections to a gateway's port.
    Open(u16, Vec<std::net::TcpListener>),
    /// Take no more of them; those that are established go on.
    Close(u16),
    /// There is a new certificate.
    CertificateChanged,
    /// List connections to endpoints.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Take no new connections; end after the live ones, or when this time is over.
    Drain(Duration),
}

/// What a worker holds towards endpoints.
#[derive(Debug, serde::Serialize)]
pub struct Snapshot {
    /// Tunnel connections.
    pub tunnels: Vec<PoolConnection>,
    /// Connections of HTTP/1.1 that wait for a request.
    pub idle: usize,
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
pub fn spawn(index: usize, shared: Arc<Shared>) -> io::Result<WorkerHandle> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()?;
    let (commands, receiver) = mpsc::unbounded_channel();
    let thread = std::thread::Builder::new()
        .name(format!("karst-worker-{index}"))
        .spawn(move || {
            LocalSet::new().block_on(&runtime, async move {
                run(Worker::new(shared), receiver).await;
            });
        })?;
    Ok(WorkerHandle { commands, thread })
}

/// One worker's state.
pub struct Worker {
    /// Shared with the other threads.
    pub shared: Arc<Shared>,
    /// Metrics and access log.
    pub recorder: Rc<Recorder>,
    /// Connections to applications.
    pub upstream: Rc<Upstream>,
    /// What HTTP connections have in common.
    pub http: Rc<HttpServer>,
    /// Limits of tunnels.
    pub tunnels: ServerLimits,
    drain: watch::Sender<Drain>,
    stop_mesh: CancellationToken,
    ports: RefCell<HashMap<u16, CancellationToken>>,
    live: Rc<Cell<usize>>,
    workloads: RefCell<HashMap<WorkloadLabels, Arc<WorkloadLabels>>>,
}

impl Worker {
    /// A worker without listeners. Must run inside a `LocalSet`.
    #[must_use]
    pub fn new(shared: Arc<Shared>) -> Rc<Self> {
        let recorder = Recorder::tapped(
            Arc::clone(&shared.metrics),
            shared.access_log.clone(),
            shared.tap.clone(),
        );
        let identity = {
            let shared = Arc::clone(&shared);
            Rc::new(move || (shared.certificate)())
        };
        let settings = UpstreamSettings {
            tunnel_port: shared.tunnel_port,
            baggage: shared.baggage.clone(),
            tunnel: PoolConfig {
                handshakes: shared.metrics.observer(),
                ..PoolConfig::default()
            },
        };
        let upstream = Upstream::new(identity, settings);
        shared.upstreams.add(upstream.metrics());
        recorder.export_by(Spans::new(
            UpstreamTransport::new(Arc::clone(&shared.clusters), Rc::clone(&upstream)),
            shared.resource.clone(),
            Arc::clone(&shared.metrics.telemetry),
        ));
        let http = HttpServer::new(
            Arc::clone(&shared.tables),
            Rc::clone(&upstream),
            Rc::clone(&recorder),
            HttpLimits {
                trusted_hops: shared.trusted_hops,
                ..HttpLimits::default()
            },
        );
        spawn_local(Rc::clone(http.rechecks()).run());
        let tunnels = ServerLimits {
            handshakes: shared.metrics.observer(),
            ..ServerLimits::new(MAX_TUNNELS)
        };
        Rc::new(Self {
            shared,
            recorder,
            upstream,
            http,
            tunnels,
            drain: watch::Sender::new(Drain::Running),
            stop_mesh: CancellationToken::new(),
            ports: RefCell::default(),
            live: Rc::default(),
            workloads: RefCell::default(),
        })
    }

    /// Tells connections to end.
    #[must_use]
    pub fn drain(&self) -> watch::Receiver<Drain> {
        self.drain.subscribe()
    }

    /// Runs something that counts as a live connection until it ends.
    pub fn spawn(&self, connection: impl Future<Output = ()> + 'static) {
        let live = Live::new(&self.live);
        spawn_local(async move {
            connection.await;
            drop(live);
        });
    }

    /// What an agent says about a client, kept once however many connections it makes.
    #[must_use]
    pub fn workload(&self, workload: WorkloadLabels) -> Arc<WorkloadLabels> {
        let mut known = self.workloads.borrow_mut();
        if let Some(known) = known.get(&workload) {
            return Arc::clone(known);
        }
        if known.len() >= MAX_WORKLOADS {
            known.clear();
        }
        let kept = Arc::new(workload.clone());
        known.insert(workload, Arc::clone(&kept));
        kept
    }

    /// Takes an accepted connection, unless there are as many as there may be.
    fn admit(self: &Rc<Self>, reporter: Reporter, stream: TcpStream, from: SocketAddr, port: u16) {
        let metrics = &self.shared.metrics;
        metrics.connections.inc();
        if self.shared.connections() >= self.shared.max_connections {
            let client = Client::new(from, None);
            let mut record = ConnectionRecord::new(reporter, client, format!(":{port}"));
            record.reason = Some(Reason::TooManyConnections);
            self.recorder.connection_refused(record);
            return sockets::reset(stream);
        }
        let worker = Rc::clone(self);
        match reporter {
            Reporter::Waypoint => {
                let inside = metrics.mesh_connections.enter();
                self.spawn(counted(inside, mesh::serve(worker, stream, from)));
            }
            Reporter::Gateway => {
                let inside = metrics.gateway_connections.enter();
                self.spawn(counted(inside, gateway::serve(worker, stream, from, port)));
            }
        }
    }

    fn listen(
        self: &Rc<Self>,
        reporter: Reporter,
        listeners: Vec<std::net::TcpListener>,
        stop: &CancellationToken,
        port: u16,
    ) {
        for listener in listeners {
            let listener = match TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, port, "a listener cannot be used");
                    continue;
                }
            };
            let (worker, stop) = (Rc::clone(self), stop.clone());
            spawn_local(async move {
                let take = |stream, from| worker.admit(reporter, stream, from, port);
                sockets::accept_loop(listener, stop, &worker.shared.metrics, take).await;
            });
        }
    }

    fn close(&self, port: u16) {
        if let Some(stop) = self.ports.borrow_mut().remove(&port) {
            stop.cancel();
        }
    }

    async fn drain_all(&self, deadline: Duration) {
        self.stop_mesh.cancel();
        self.ports
            .borrow()
            .values()
            .for_each(CancellationToken::cancel);
        self.drain.send_replace(Drain::Graceful);
        let drained = async {
            while self.live.get() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        if tokio::time::timeout(deadline, drained).await.is_err() {
            tracing::info!(connections = self.live.get(), "drain deadline reached");
        }
        self.drain.send_replace(Drain::Immediate);
        // The tasks run once more, so that their ends are counted and logged.
        for _ in 0..LAST_LOOKS {
            if self.live.get() == 0 {
                break;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

async fn counted(inside: Inside, connection: impl Future<Output = ()>) {
    connection.await;
    drop(inside);
}

/// Counts a live connection.
struct Live(Rc<Cell<usize>>);

impl Live {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

async fn run(worker: Rc<Worker>, mut commands: mpsc::UnboundedReceiver<Command>) {
    while let Some(command) = commands.recv().await {
        match command {
            Command::Mesh(listeners) => {
                let port = listeners.first().and_then(|l| l.local_addr().ok());
                let port = port.map_or(0, |address| address.port());
                let stop = worker.stop_mesh.clone();
                worker.listen(Reporter::Waypoint, listeners, &stop, port);
            }
            Command::Open(port, listeners) => {
                let stop = CancellationToken::new();
                worker.listen(Reporter::Gateway, listeners, &stop, port);
                if let Some(former) = worker.ports.borrow_mut().insert(port, stop) {
                    former.cancel();
                }
            }
            Command::Close(port) => worker.close(port),
            Command::CertificateChanged => worker.upstream.certificate_changed(),
            Command::Snapshot(reply) => {
                // The asker may have given up waiting.
                let _ = reply.send(Snapshot {
                    tunnels: worker.upstream.tunnels(),
                    idle: worker.upstream.idle(),
                });
            }
            Command::Drain(deadline) => {
                worker.drain_all(deadline).await;
                return worker.recorder.finish_spans(LAST_SPANS).await;
            }
        }
    }
}

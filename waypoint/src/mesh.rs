//! Connections from the mesh: HBONE, with the client's identity proven by its certificate.
//!
//! The peer of a tunnel is the agent of the client's node, which shows the certificate of the client itself: the
//! peer's identity is the client's. Its word on the client's address (`forwarded`) is taken for what it is, the
//! address that the client's own agent, or a gateway of this mesh, gives: nobody else holds the key of that
//! identity. It decides about hashing, what applications are told, and policies that ask for addresses; routes and
//! other policies go by identity.
//!
//! What a stream is for follows from `:authority`; what is spoken on it from what the service's port declares,
//! from the routes that are attached to it, or from its first bytes:
//!
//! | routes | declared | then |
//! |---|---|---|
//! | HTTP | HTTP | HTTP |
//! | HTTP | anything else, or nothing | HTTP; a client that speaks something else is reset with `waypoint_not_http`, because it would pass the routes by |
//! | TLS, TCP | any | bytes, by those routes |
//! | none | HTTP | HTTP |
//! | none | TCP, TLS | bytes |
//! | none | nothing | what the first bytes say: HTTP, or else bytes ([`detect`]) |

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use http::HeaderMap;
use karst_api::waypoint::Protocol;
use karst_identity::SpiffeId;
use karst_tunnel::headers::Authority;
use karst_tunnel::server::{
    self, Answer, ConnectRequest, Drain, InboundHandler, Refusal, RefusalStatus, Taken,
};
use karst_tunnel::{HboneIo, TunnelError};
use tokio::net::TcpStream;

use crate::access_log::{ConnectionRecord, Reporter};
use crate::authz::scope::{Hello, Place, Scope};
use crate::carrier::Prefixed;
use crate::client::Client;
use crate::client_hello;
use crate::detect::{self, Patience, Spoken, detect};
use crate::http::{self as http_server, Entry};
use crate::reason::Reason;
use crate::route::L4Router;
use crate::sockets;
use crate::stream::{self, Way};
use crate::table::{Routes, ServiceFrontend, Table, WorkloadFrontend};
use crate::worker::Worker;
use crate::workload::WorkloadLabels;

/// How long a client is waited for whose port has HTTP routes: it may hold a connection ready for later. As long
/// as HTTP connections are kept without a request.
const HTTP_ONLY_SILENT: Duration = Duration::from_secs(300);

/// Serves one tunnel connection: many streams, one after the other and side by side.
pub async fn serve(worker: Rc<Worker>, stream: TcpStream, from: SocketAddr) {
    let refused = |reason: Reason, error: Option<String>| {
        let client = Client::new(from, None);
        let mut record = ConnectionRecord::new(Reporter::Waypoint, client, String::new());
        record.reason = Some(reason);
        record.error = error;
        worker.recorder.connection_refused(record);
    };
    let Some(certificate) = (worker.shared.certificate)() else {
        refused(Reason::NoCertificate, None);
        return sockets::reset(stream);
    };
    let handler = Rc::new(Handler {
        worker: Rc::clone(&worker),
    });
    let served = server::serve(
        stream,
        certificate,
        &worker.tunnels,
        worker.drain(),
        handler,
    );
    // Boxed: the handshake's state is several KiB that the connection shall not keep.
    match Box::pin(served).await {
        Ok(end) => {
            let requests = end.requests;
            tracing::debug!(peer = %end.peer, cause = ?end.cause, requests, "tunnel ended");
        }
        // Connections come and go, scanners look in: the network's business.
        Err(error @ (TunnelError::Io { .. } | TunnelError::PingTimeout { .. })) => {
            tracing::debug!(%error, reason = error.reason(), src.addr = %from, "tunnel broke");
        }
        Err(error) => refused(Reason::Other(error.reason()), Some(error.to_string())),
    }
}

struct Handler {
    worker: Rc<Worker>,
}

impl InboundHandler for Handler {
    async fn connect(&self, request: ConnectRequest) -> Result<Answer, Refusal> {
        let client = self.client(&request);
        let target = request.authority.to_string();
        let mut record = ConnectionRecord::new(Reporter::Waypoint, client, target);
        record.tls = Some(Arc::clone(&request.tls));
        let table = self.worker.shared.tables.load();
        let Some(frontend) = Frontend::find(&table, &request.authority) else {
            let (reason, status) = if self.worker.shared.configured.load(Ordering::Relaxed) {
                (Reason::UnknownDestination, RefusalStatus::NotFound)
            } else {
                (Reason::NotConfigured, RefusalStatus::Unavailable)
            };
            record.reason = Some(reason);
            self.worker.recorder.connection_refused(record);
            return Err(Refusal {
                status,
                reason: reason.as_str(),
            });
        };
        let worker = Rc::clone(&self.worker);
        Ok(Answer::Take(Taken {
            response_headers: HeaderMap::new(),
            take: Box::new(move |stream| {
                let spawner = Rc::clone(&worker);
                spawner.spawn(async move {
                    serve_stream(worker, HboneIo::new(stream), frontend, record).await;
                });
            }),
        }))
    }

    fn refused(&self, peer: &SpiffeId, peer_addr: SocketAddr, error: &TunnelError) {
        let client = Client::new(peer_addr, Some(peer.clone()));
        let mut record = ConnectionRecord::new(Reporter::Waypoint, client, String::new());
        record.reason = Some(Reason::Other(error.reason()));
        record.error = Some(error.to_string());
        self.worker.recorder.connection_refused(record);
    }
}

impl Handler {
    fn client(&self, request: &ConnectRequest) -> Client {
        let forwarded = request.forwarded.as_ref();
        let address = forwarded.map_or(request.peer_addr, |forwarded| forwarded.client);
        let workload = request.baggage.as_ref().map(WorkloadLabels::from);
        let destination = match &request.authority {
            Authority::Address(address) => Some(sockets::canonical(*address)),
            Authority::Host { .. } => None,
        };
        Client {
            address: sockets::canonical(address),
            destination,
            identity: Some(request.peer.clone()),
            workload: workload.map(|workload| self.worker.workload(workload)),
            trace: request.traceparent,
        }
    }
}

/// What a stream is for.
enum Frontend {
    Service(Arc<ServiceFrontend>),
    Workload(Arc<WorkloadFrontend>, SocketAddr),
}

impl Frontend {
    fn find(table: &Table, authority: &Authority) -> Option<Self> {
        match authority {
            Authority::Address(address) => {
                let address = sockets::canonical(*address);
                if let Some(service) = table.services.get(&address) {
                    return Some(Self::Service(Arc::clone(service)));
                }
                let workload = table.workloads.get(&address.ip())?;
                Some(Self::Workload(Arc::clone(workload), address))
            }
            Authority::Host { name, port } => {
                let name = name.strip_suffix('.').unwrap_or(name);
                let service = table.names.get(&(name.to_owned(), *port))?;
                Some(Self::Service(Arc::clone(service)))
            }
        }
    }

    fn protocol(&self) -> Protocol {
        match self {
            Self::Service(service) => service.protocol,
            Self::Workload(workload, address) => {
                let declared = workload.ports.get(&address.port());
                declared.copied().unwrap_or(Protocol::Undeclared)
            }
        }
    }

    fn routes(&self, client: &Client) -> &Routes {
        match self {
            Self::Service(service) => service.routes(client.namespace()),
            Self::Workload(..) => &Routes::None,
        }
    }

    fn treatment(&self, client: &Client) -> Treatment {
        let protocol = self.protocol();
        match self.routes(client) {
            Routes::Http(_) if is_http(protocol) => Treatment::Http,
            Routes::Http(_) => Treatment::OnlyHttp,
            Routes::L4(router) => Treatment::Routed(Arc::clone(router)),
            Routes::None if is_http(protocol) => Treatment::Http,
            Routes::None if protocol == Protocol::Undeclared => Treatment::Detect,
            Routes::None => Treatment::Bytes,
        }
    }

    /// Where bytes go that no route is for.
    fn way(&self) -> Way {
        match self {
            Self::Service(service) => Way::Cluster(Arc::clone(&service.cluster), None),
            Self::Workload(workload, address) => {
                Way::Cluster(Arc::clone(&workload.cluster), Some(*address))
            }
        }
    }

    /// What decides about connections of bytes. `hello` says whether the client's was read.
    fn scope(&self, hello: Hello) -> Scope {
        let place = match self {
            Self::Service(service) => Place::Service(Arc::clone(service)),
            Self::Workload(_, address) => Place::Workload(*address),
        };
        Scope { place, hello }
    }

    fn entry(self) -> Entry {
        match self {
            Self::Service(service) => Entry::Service(service),
            Self::Workload(workload, address) => Entry::Workload(workload, address),
        }
    }
}

/// What is done with a stream; see the table above.
enum Treatment {
    Http,
    OnlyHttp,
    Routed(Arc<L4Router>),
    Detect,
    Bytes,
}

fn is_http(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Http1 | Protocol::Http2 | Protocol::Grpc | Protocol::Websocket => true,
        Protocol::Undeclared | Protocol::Tcp | Protocol::Tls => false,
    }
}

async fn serve_stream(
    worker: Rc<Worker>,
    io: HboneIo,
    frontend: Frontend,
    record: ConnectionRecord,
) {
    match frontend.treatment(&record.client) {
        Treatment::Http => serve_http(&worker, io, frontend, record.client).await,
        Treatment::Bytes => {
            let scope = frontend.scope(Hello::Unread);
            stream::serve(worker, io, frontend.way(), scope, record).await;
        }
        Treatment::Routed(router) => serve_routed(worker, io, &router, &frontend, record).await,
        Treatment::Detect => {
            let patience = Patience::default();
            detected(worker, io, frontend, record, patience).await;
        }
        Treatment::OnlyHttp => {
            let patience = Patience {
                silent: HTTP_ONLY_SILENT,
                begun: detect::BEGUN,
            };
            detected(worker, io, frontend, record, patience).await;
        }
    }
}

async fn serve_http<IO>(worker: &Worker, io: IO, frontend: Frontend, client: Client)
where
    IO: crate::carrier::Carrier,
{
    let entry = frontend.entry();
    let http = Rc::clone(&worker.http);
    http_server::serve(io, http, entry, client, worker.drain()).await;
}

async fn detected(
    worker: Rc<Worker>,
    mut io: HboneIo,
    frontend: Frontend,
    record: ConnectionRecord,
    patience: Patience,
) {
    let mut read = BytesMut::new();
    let mut drain = worker.drain();
    let spoken = tokio::select! {
        spoken = detect(&mut io, &mut read, patience) => spoken,
        // Who holds a connection ready would hold the end of this process up.
        _ = drain.wait_for(|drain| *drain != Drain::Running), if patience.silent > detect::SILENT => {
            return stream::refuse(&worker, io, record, Reason::Shutdown, None);
        }
    };
    let io = Prefixed::new(read.freeze(), io);
    let only_http = matches!(frontend.treatment(&record.client), Treatment::OnlyHttp);
    match spoken {
        Ok(Spoken::Http) => serve_http(&worker, io, frontend, record.client).await,
        Ok(Spoken::Tls | Spoken::Other) if only_http => {
            stream::refuse(&worker, io, record, Reason::NotHttp, None);
        }
        // A connection that was held ready and not used.
        Ok(Spoken::Silent | Spoken::Closed) if only_http => {}
        Ok(_) => {
            let scope = frontend.scope(Hello::Unread);
            stream::serve(worker, io, frontend.way(), scope, record).await;
        }
        Err(error) => {
            let text = Some(error.to_string());
            stream::refuse(&worker, io, record, Reason::ClientGone, text);
        }
    }
}

async fn serve_routed(
    worker: Rc<Worker>,
    mut io: HboneIo,
    router: &L4Router,
    frontend: &Frontend,
    mut record: ConnectionRecord,
) {
    let mut read = BytesMut::new();
    let mut scope = frontend.scope(Hello::Unread);
    if router.needs_server_name() {
        match client_hello::read(&mut io, &mut read).await {
            Ok(hello) => {
                record.sni = hello.server_name;
                scope.hello = Hello::Read;
            }
            Err(error) => {
                let (reason, text) = (error.reason(), error.to_string());
                return stream::refuse(&worker, io, record, reason, Some(text));
            }
        }
    }
    let io = Prefixed::new(read.freeze(), io);
    match router.route(record.sni.as_deref()) {
        Ok(rule) => {
            let way = Way::Rule(Arc::clone(rule));
            stream::serve(worker, io, way, scope, record).await;
        }
        Err(error) => {
            let (reason, text) = (Reason::Other(error.reason()), error.to_string());
            stream::refuse(&worker, io, record, reason, Some(text));
        }
    }
}

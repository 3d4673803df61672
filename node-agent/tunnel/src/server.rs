//! The receiving end: TLS, HTTP/2 and a CONNECT for each application connection.

mod connection;
mod request;

pub(crate) use connection::StreamCount;

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use karst_identity::{SpiffeId, WorkloadCertificate};
use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};

use crate::headers::{Authority, Baggage, Forwarded, TraceParent};
use crate::relay::RelayEnd;
use crate::{Counters, HboneStream, Observer, TlsInfo, TunnelError, settings};

/// Whether a server goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drain {
    /// It serves.
    #[default]
    Running,
    /// It says GOAWAY; existing streams go on until they end.
    Graceful,
    /// It closes at once; existing streams are reset.
    Immediate,
}

/// A shared count of tunnel connections with a ceiling.
#[derive(Clone, Debug)]
pub struct ConnectionLimit {
    used: Rc<Cell<usize>>,
    limit: usize,
}

impl ConnectionLimit {
    /// At most `limit` connections at once among all users of this value and its clones.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            used: Rc::new(Cell::new(0)),
            limit,
        }
    }

    fn acquire(&self) -> Result<ConnectionSlot, TunnelError> {
        if self.used.get() >= self.limit {
            return Err(TunnelError::TooManyConnections { limit: self.limit });
        }
        self.used.set(self.used.get() + 1);
        Ok(ConnectionSlot(Rc::clone(&self.used)))
    }

    /// Connections held now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.used.get()
    }
}

/// One of the connections a [`ConnectionLimit`] counts.
struct ConnectionSlot(Rc<Cell<usize>>);

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

/// Limits of a server; [`ServerLimits::new`] gives those of production.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for the HTTP/2 preface and SETTINGS.
    pub preface: Duration,
    /// Time a connection without streams is kept.
    pub idle: Duration,
    /// Time between two PINGs on a silent connection.
    pub ping_interval: Duration,
    /// Time for the answer to a PING.
    pub ping_timeout: Duration,
    /// Streams open at once on a connection.
    pub streams: u32,
    /// Bytes of all CONNECT headers together.
    pub header_bytes: usize,
    /// Connections at once.
    pub connections: ConnectionLimit,
    /// Told of handshakes.
    pub handshakes: Observer,
}

impl ServerLimits {
    /// The limits of production with a ceiling of `connections` tunnel connections.
    #[must_use]
    pub fn new(connections: usize) -> Self {
        Self {
            handshake: settings::HANDSHAKE_TIMEOUT,
            preface: settings::PREFACE_TIMEOUT,
            idle: settings::SERVER_IDLE_TIMEOUT,
            ping_interval: settings::PING_INTERVAL,
            ping_timeout: settings::PING_TIMEOUT,
            streams: settings::SERVER_STREAMS,
            header_bytes: crate::headers::MAX_HEADER_BYTES,
            connections: ConnectionLimit::new(connections),
            handshakes: Observer::default(),
        }
    }
}

/// A CONNECT that is well formed, from a peer whose identity is proven.
#[derive(Debug)]
pub struct ConnectRequest {
    /// Who asks.
    pub peer: SpiffeId,
    /// What was negotiated on the tunnel connection.
    pub tls: Arc<TlsInfo>,
    /// Where to.
    pub authority: Authority,
    /// What the peer says about the source workload.
    pub baggage: Option<Baggage>,
    /// The source application's address as the peer gives it.
    pub forwarded: Option<Forwarded>,
    /// Trace of the connection.
    pub traceparent: Option<TraceParent>,
    /// The peer's end of the tunnel connection.
    pub peer_addr: SocketAddr,
    /// Our end of the tunnel connection: a pod's address and the tunnel port.
    pub local_addr: SocketAddr,
}

/// The handler's yes.
pub enum Answer {
    /// The application is connected; the server relays.
    Relay(Accepted),
    /// The handler takes the stream over.
    Take(Taken),
}

/// A stream that the handler wants for itself.
pub struct Taken {
    /// Headers for the 200 response.
    pub response_headers: HeaderMap,
    /// Called on the worker's thread, inside its `LocalSet`, once the 200 response is on its way.
    /// It must not block and owns the stream from then on ([`HboneIo`](crate::HboneIo) makes
    /// reading and writing of it). It is dropped uncalled when the client has given up meanwhile.
    pub take: Box<dyn FnOnce(HboneStream)>,
}

/// An application that is connected.
pub struct Accepted {
    /// Connected to the application.
    pub upstream: TcpStream,
    /// Headers for the 200 response.
    pub response_headers: HeaderMap,
    /// Counted during the relay: `sent` is what the application sent.
    pub counters: Arc<Counters>,
    /// Told when the connection must not go on: both of its ends are then reset.
    pub cut: Option<oneshot::Receiver<()>>,
    /// Called once when the connection has ended; dropped uncalled when it was cut.
    pub on_end: Box<dyn FnOnce(RelayEnd)>,
}

/// Status of a refused CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalStatus {
    /// 400: the request cannot be served by anyone.
    BadRequest,
    /// 401: policy does not allow it.
    Denied,
    /// 404: nothing of that name is served here.
    NotFound,
    /// 503: the application cannot be reached.
    Unavailable,
}

impl RefusalStatus {
    /// The HTTP status on the wire.
    #[must_use]
    pub fn code(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// The handler's no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status the peer gets.
    pub status: RefusalStatus,
    /// Stable label for log and metric; it is not sent.
    pub reason: &'static str,
}

/// Decides about a CONNECT, and connects to the application or takes the stream.
pub trait InboundHandler: 'static {
    /// Authorises the request and, if the server shall relay, opens the connection to the
    /// application. The 200 response is sent after this returned.
    fn connect(&self, request: ConnectRequest) -> impl Future<Output = Result<Answer, Refusal>>;

    /// Told of a request refused before it came to [`Self::connect`], for log and metric.
    fn refused(&self, peer: &SpiffeId, peer_addr: SocketAddr, error: &TunnelError) {
        let _ = (peer, peer_addr, error);
    }
}

/// Why a tunnel connection that got through its handshakes ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndCause {
    /// The peer closed it.
    PeerClosed,
    /// It was drained on our side.
    Drained,
    /// It had no stream for longer than the limit.
    Idle,
}

/// A tunnel connection that ended well.
#[derive(Debug)]
pub struct ServeEnd {
    /// Why.
    pub cause: EndCause,
    /// Who the peer was.
    pub peer: SpiffeId,
    /// What was negotiated.
    pub tls: Arc<TlsInfo>,
    /// CONNECT requests it carried.
    pub requests: u64,
}

/// Serves one accepted TCP connection until it ends. Must run inside a `LocalSet`.
///
/// # Errors
/// Handshake, identity and protocol failures, each with its reason.
pub async fn serve<H: InboundHandler>(
    tcp: TcpStream,
    cert: Arc<WorkloadCertificate>,
    limits: &ServerLimits,
    shutdown: watch::Receiver<Drain>,
    handler: Rc<H>,
) -> Result<ServeEnd, TunnelError> {
    connection::serve(tcp, cert, limits, shutdown, handler).await
}

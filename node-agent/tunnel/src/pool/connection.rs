//! One pooled tunnel connection.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use http::{Method, Request, StatusCode, Uri};
use karst_identity::{IdentityError, WorkloadCertificate, peer_identity};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use super::{Dialer, FirstBytes, OutboundRequest, PoolConfig, PoolConnection, PoolKey};
use crate::keepalive::Keepalive;
use crate::stream::Place;
use crate::tls::{self, TlsHandle, TlsIo};
use crate::{HboneStream, Side, TlsInfo, TunnelError, buffers, settings};

/// Stream resets of our own making after which HTTP/2 ends the connection; see the server's.
const MAX_LOCAL_RESETS: usize = 50_000;
/// Reset streams HTTP/2 remembers so that frames still on their way are not an error.
const REMEMBERED_RESETS: usize = 256;

type Http2 = h2::client::Connection<TlsIo, Bytes>;

/// A connection that is ready for streams.
pub(super) struct Connection {
    /// Gone once the connection is retired: HTTP/2 closes it after the last stream.
    sender: RefCell<Option<SendRequest<Bytes>>>,
    streams: Cell<usize>,
    streams_total: Cell<u64>,
    limit: usize,
    idle_since: Cell<Instant>,
    tls: Arc<TlsInfo>,
}

impl Connection {
    pub(super) fn has_room(&self) -> bool {
        self.streams.get() < self.limit && !self.is_retired()
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Streams it may carry at once.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Whether HTTP/2 would take a stream now: not after GOAWAY, a failure, or the last id.
    pub(super) fn takes_streams(&self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        match self.sender.borrow_mut().as_mut() {
            Some(sender) => !matches!(sender.poll_ready(&mut cx), Poll::Ready(Err(_))),
            None => false,
        }
    }

    fn is_retired(&self) -> bool {
        self.sender.borrow().is_none()
    }

    /// Takes no new streams; ends with the last one.
    pub(super) fn retire(&self) {
        // Taken out first: dropping it wakes the driving task.
        let sender = self.sender.borrow_mut().take();
        drop(sender);
    }

    pub(super) fn describe(&self, key: &PoolKey) -> PoolConnection {
        PoolConnection {
            source: key.source.clone(),
            destination: key.destination.clone(),
            destination_uid: Arc::clone(&key.destination_uid),
            address: key.address,
            certificate_epoch: key.certificate_epoch,
            streams: self.streams.get(),
            stream_limit: self.limit,
            streams_total: self.streams_total.get(),
            draining: !self.takes_streams(),
            tls: Arc::clone(&self.tls),
        }
    }
}

/// A stream's place on a connection, given back when dropped.
pub(crate) struct Lease {
    connection: Rc<Connection>,
}

impl Lease {
    pub(super) fn new(connection: &Rc<Connection>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        connection
            .streams_total
            .set(connection.streams_total.get() + 1);
        Self {
            connection: Rc::clone(connection),
        }
    }

    /// Whether the connection has carried another stream before.
    pub(super) fn is_reused(&self) -> bool {
        self.connection.streams_total.get() > 1
    }

    pub(super) fn retire(&self) {
        self.connection.retire();
    }

    /// Sends the CONNECT and what of the application's comes meanwhile, and waits for the answer.
    pub(super) async fn open(
        self,
        request: &OutboundRequest,
        limit: Duration,
        first: &mut FirstBytes<'_>,
    ) -> Result<HboneStream, Failed> {
        match self.request(request, limit, first).await {
            Ok((send, response)) => {
                let (head, recv) = response.into_parts();
                Ok(HboneStream {
                    send,
                    recv,
                    tls: Arc::clone(&self.connection.tls),
                    response_headers: head.headers,
                    early: first.accepted(),
                    place: Place::Pooled(self),
                })
            }
            Err(error) => Err(Failed { error, lease: self }),
        }
    }

    async fn request(
        &self,
        request: &OutboundRequest,
        limit: Duration,
        first: &mut FirstBytes<'_>,
    ) -> Result<(h2::SendStream<Bytes>, http::Response<h2::RecvStream>), TunnelError> {
        let (response, mut send) = {
            let mut sender = self.connection.sender.borrow_mut();
            let sender = sender.as_mut().ok_or(TunnelError::Draining)?;
            sender.send_request(connect_request(request), false)?
        };
        let mut response = pin!(timeout(limit, response));
        let answer = poll_fn(|cx| {
            first.poll_send(cx, &mut send);
            response.as_mut().poll(cx)
        });
        let response = answer.await.map_err(|_| TunnelError::ResponseTimeout {
            seconds: limit.as_secs(),
        })??;
        match response.status() {
            StatusCode::OK => Ok((send, response)),
            status => Err(TunnelError::Refused { status }),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        let streams = connection.streams.get().saturating_sub(1);
        connection.streams.set(streams);
        if streams == 0 {
            connection.idle_since.set(Instant::now());
        }
    }
}

/// A CONNECT that did not come through.
pub(super) struct Failed {
    pub(super) error: TunnelError,
    pub(super) lease: Lease,
}

impl Failed {
    /// Whether another connection may do better. A pooled connection may have died unnoticed,
    /// e.g. with the peer's node agent; a fresh one that fails says something about the peer.
    pub(super) fn is_worth_another(&self, reused: bool) -> bool {
        let broken = matches!(
            self.error,
            TunnelError::Io { .. } | TunnelError::PingTimeout { .. }
        );
        self.error.is_retryable() || (reused && broken)
    }
}

fn connect_request(request: &OutboundRequest) -> Request<()> {
    let mut head = Request::new(());
    *head.method_mut() = Method::CONNECT;
    *head.uri_mut() = Uri::from(request.authority.clone());
    *head.headers_mut() = request.headers.clone();
    head
}

/// What keeps a connection going.
pub(super) struct Driver {
    http2: Http2,
    io: TlsHandle,
    ping_interval: Duration,
    ping_timeout: Duration,
    idle: Duration,
}

/// Dials, shakes hands, checks who answers, and waits for the peer's SETTINGS.
pub(super) async fn establish<D: Dialer>(
    config: &PoolConfig,
    key: &PoolKey,
    dialer: &D,
    cert: &Arc<WorkloadCertificate>,
) -> Result<(Rc<Connection>, Driver), TunnelError> {
    let tcp = dial(config, key, dialer).await?;
    let since = std::time::Instant::now();
    let shaken = handshake(config, key, cert, tcp).await;
    let told = &config.handshakes;
    told.tell(Side::Client, since, &shaken, |(.., tls)| tls);
    let (io, handle, tls) = shaken?;
    let preface = PrefaceTimeout(config.preface);
    let ready = timeout(config.preface, http2(io, &handle)).await;
    let (sender, http2) = ready.map_err(|_| preface.error())??;
    let limit = http2
        .max_concurrent_send_streams()
        .min(config.streams_per_connection);
    let connection = Connection {
        sender: RefCell::new(Some(sender)),
        streams: Cell::new(0),
        streams_total: Cell::new(0),
        limit,
        idle_since: Cell::new(Instant::now()),
        tls: Arc::new(tls),
    };
    let driver = Driver {
        http2,
        io: handle,
        ping_interval: config.ping_interval,
        ping_timeout: config.ping_timeout,
        idle: config.idle,
    };
    Ok((Rc::new(connection), driver))
}

struct PrefaceTimeout(Duration);

impl PrefaceTimeout {
    fn error(&self) -> TunnelError {
        TunnelError::PrefaceTimeout {
            millis: self.0.as_millis(),
        }
    }
}

async fn dial<D: Dialer>(
    config: &PoolConfig,
    key: &PoolKey,
    dialer: &D,
) -> Result<TcpStream, TunnelError> {
    let failed = |kind, hint| TunnelError::Dial {
        address: key.address,
        kind,
        hint,
    };
    let dialed = timeout(config.dial, dialer.dial(key.address)).await;
    let tcp = dialed
        .map_err(|_| {
            failed(
                io::ErrorKind::TimedOut,
                "; does a network policy keep port 15008 closed?",
            )
        })?
        .map_err(|error| failed(error.kind(), hint(error.kind())))?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}

fn hint(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::ConnectionRefused => "; does the node agent run on the pod's node?",
        io::ErrorKind::TimedOut => "; does a network policy keep port 15008 closed?",
        _ => "",
    }
}

async fn handshake(
    config: &PoolConfig,
    key: &PoolKey,
    cert: &Arc<WorkloadCertificate>,
    tcp: TcpStream,
) -> Result<(TlsIo, TlsHandle, TlsInfo), TunnelError> {
    let connector = TlsConnector::from(cert.client_config(&key.destination)?);
    // The name is never sent; it only tells the sessions of different peers apart.
    let name = ServerName::from(key.address.ip());
    let connected = timeout(config.handshake, connector.connect(name, tcp)).await;
    let (tcp, session) = connected
        .map_err(|_| TunnelError::HandshakeTimeout {
            millis: config.handshake.as_millis(),
        })??
        .into_inner();
    let session = rustls::Connection::Client(session);
    tls::check_alpn(&session)?;
    // Again after the handshake, because a resumed one verifies no certificate.
    let actual = peer_identity(session.peer_certificates().unwrap_or_default(), cert)?;
    if actual != key.destination {
        return Err(TunnelError::Identity(IdentityError::IdentityMismatch {
            actual,
            expected: key.destination.clone(),
        }));
    }
    let info = tls::tls_info(&session, &tcp);
    let (io, handle) = TlsHandle::new(tcp, session);
    Ok((io, handle, info))
}

async fn http2(io: TlsIo, handle: &TlsHandle) -> Result<(SendRequest<Bytes>, Http2), TunnelError> {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings::STREAM_WINDOW)
        .initial_connection_window_size(settings::CONNECTION_WINDOW)
        .max_frame_size(settings::MAX_FRAME)
        .max_header_list_size(settings::CLIENT_HEADER_LIST)
        .max_send_buffer_size(settings::CLIENT_SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        // Stays 0 until the peer's SETTINGS have come, which is how one can tell.
        .initial_max_send_streams(0)
        .enable_push(false);
    let shaken = handle.drive(builder.handshake::<_, Bytes>(io)).await;
    let (sender, mut http2) = shaken
        .map_err(|error| handle.error(error))?
        .map_err(|error| handle.error(error))?;
    let settings = poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut http2).poll(cx) {
            return Poll::Ready(match ended {
                Ok(()) => Err(TunnelError::Draining),
                Err(error) => Err(TunnelError::from(error)),
            });
        }
        if http2.max_concurrent_send_streams() > 0 {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    });
    let settled = handle.drive(settings).await;
    settled
        .map_err(|error| handle.error(error))?
        .map_err(|error| handle.error(error))?;
    Ok((sender, http2))
}

impl Driver {
    /// Runs until the connection has ended.
    pub(super) async fn run(mut self, connection: &Connection) -> Result<(), TunnelError> {
        let mut keepalive = Keepalive::new(self.http2.ping_pong(), self.ping_timeout);
        let interval = self.ping_interval.min(self.idle);
        let mut tick = pin!(sleep_until(Instant::now() + interval));
        loop {
            let ended = tokio::select! {
                biased;
                ended = drive(&mut self.http2, &self.io) => Some(ended),
                () = tick.as_mut() => None,
            };
            match ended {
                Some(ended) => return ended,
                None => {
                    buffers::trim();
                    keepalive.tick(&self.io).await?;
                    let idle = connection.streams.get() == 0;
                    if idle && connection.idle_since.get().elapsed() >= self.idle {
                        connection.retire();
                    }
                    tick.as_mut().reset(Instant::now() + interval);
                }
            }
        }
    }
}

async fn drive(http2: &mut Http2, io: &TlsHandle) -> Result<(), TunnelError> {
    poll_fn(|cx| {
        let ended = Pin::new(&mut *http2).poll(cx);
        match io.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(io.error(error))),
            _ => ended.map(|ended| ended.map_err(|error| io.error(error))),
        }
    })
    .await
}

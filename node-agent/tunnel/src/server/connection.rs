//! One tunnel connection of a server.

use std::cell::Cell;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::{Builder, Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode};
use karst_identity::{SpiffeId, WorkloadCertificate, peer_identity};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use super::request::{Exchange, answer, read_request, relay};
use super::{Drain, EndCause, InboundHandler, ServeEnd, ServerLimits};
use crate::keepalive::Keepalive;
use crate::tls::{self, TlsHandle, TlsIo};
use crate::{Side, TlsInfo, TunnelError, buffers, settings};

/// Stream resets of our own making after which HTTP/2 ends the connection. It bounds the memory
/// a peer can pin by provoking resets and never reading them: each pins about 400 bytes. The
/// usual 1,024 is too low for connections that live for days and carry applications that reset.
const MAX_LOCAL_RESETS: usize = 50_000;
/// Reset streams HTTP/2 remembers so that frames still on their way are not an error.
const REMEMBERED_RESETS: usize = 256;
/// Bytes of the HTTP/2 client preface (24) and the shortest SETTINGS frame (9).
const PREFACE_AND_SETTINGS: u64 = 33;

/// Who the peer is, shared by the streams of a connection.
pub(super) struct Peer {
    pub(super) id: SpiffeId,
    pub(super) tls: Arc<TlsInfo>,
    pub(super) peer_addr: SocketAddr,
    pub(super) local_addr: SocketAddr,
}

pub(super) async fn serve<H: InboundHandler>(
    tcp: TcpStream,
    cert: Arc<WorkloadCertificate>,
    limits: &ServerLimits,
    shutdown: watch::Receiver<Drain>,
    handler: Rc<H>,
) -> Result<ServeEnd, TunnelError> {
    let _slot = limits.connections.acquire()?;
    let opened = Instant::now();
    let shaken = handshake(tcp, &cert, limits).await;
    let told = &limits.handshakes;
    told.tell(Side::Server, opened.into_std(), &shaken, |(.., peer)| {
        &peer.tls
    });
    let (io, handle, peer) = shaken?;
    let http2 = handle.drive(builder(limits).handshake::<_, Bytes>(io));
    let conn = match timeout(limits.preface, http2).await {
        Ok(Ok(Ok(conn))) => conn,
        Ok(Ok(Err(error))) => return Err(handle.error(error)),
        Ok(Err(error)) => return Err(handle.error(error)),
        Err(_) => return Err(preface_timeout(limits)),
    };
    let mut server = Server {
        conn,
        io: handle,
        peer: Rc::new(peer),
        limits,
        handler,
        streams: Rc::new(Cell::new(0)),
        requests: 0,
        idle_since: Some(Instant::now()),
        settings_deadline: Some(opened + limits.handshake + limits.preface),
    };
    let cause = server.run(shutdown).await?;
    Ok(ServeEnd {
        cause,
        peer: server.peer.id.clone(),
        tls: Arc::clone(&server.peer.tls),
        requests: server.requests,
    })
}

async fn handshake(
    tcp: TcpStream,
    cert: &Arc<WorkloadCertificate>,
    limits: &ServerLimits,
) -> Result<(TlsIo, TlsHandle, Peer), TunnelError> {
    let (peer_addr, local_addr) = (tcp.peer_addr()?, tcp.local_addr()?);
    tcp.set_nodelay(true)?;
    // The handshake's state is several KiB that the connection shall not keep.
    let accept = Box::pin(TlsAcceptor::from(cert.server_config()).accept(tcp));
    let accepted = timeout(limits.handshake, accept).await;
    let (tcp, session) = accepted
        .map_err(|_| TunnelError::HandshakeTimeout {
            millis: limits.handshake.as_millis(),
        })??
        .into_inner();
    let session = rustls::Connection::Server(session);
    tls::check_alpn(&session)?;
    let id = peer_identity(session.peer_certificates().unwrap_or_default(), cert)?;
    let tls = Arc::new(tls::tls_info(&session, &tcp));
    let (io, handle) = TlsHandle::new(tcp, session);
    let peer = Peer {
        id,
        tls,
        peer_addr,
        local_addr,
    };
    Ok((io, handle, peer))
}

fn builder(limits: &ServerLimits) -> Builder {
    let mut builder = Builder::new();
    builder
        .initial_window_size(settings::STREAM_WINDOW)
        .initial_connection_window_size(settings::CONNECTION_WINDOW)
        .max_frame_size(settings::MAX_FRAME)
        .max_header_list_size(settings::SERVER_HEADER_LIST)
        .max_concurrent_streams(limits.streams)
        .max_send_buffer_size(settings::SERVER_SEND_BUFFER)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        // A client whose streams were all given up at once is no attack.
        .max_pending_accept_reset_streams(limits.streams as usize)
        .max_local_error_reset_streams(Some(MAX_LOCAL_RESETS));
    builder
}

fn preface_timeout(limits: &ServerLimits) -> TunnelError {
    TunnelError::PrefaceTimeout {
        millis: limits.preface.as_millis(),
    }
}

struct Server<'a, H> {
    conn: Connection<TlsIo, Bytes>,
    io: TlsHandle,
    peer: Rc<Peer>,
    limits: &'a ServerLimits,
    handler: Rc<H>,
    streams: Rc<Cell<usize>>,
    requests: u64,
    idle_since: Option<Instant>,
    /// Until when the peer's SETTINGS must have come.
    settings_deadline: Option<Instant>,
}

type Incoming = (Request<RecvStream>, SendResponse<Bytes>);

#[expect(
    clippy::large_enum_variant,
    reason = "it lives for one turn of the loop; a box would cost an allocation a request"
)]
enum Event {
    Request(Option<Result<Incoming, h2::Error>>),
    Drain(Drain),
    Tick,
}

impl<H: InboundHandler> Server<'_, H> {
    async fn run(&mut self, mut shutdown: watch::Receiver<Drain>) -> Result<EndCause, TunnelError> {
        let mut keepalive = Keepalive::new(self.conn.ping_pong(), self.limits.ping_timeout);
        let mut cause = EndCause::PeerClosed;
        let mut draining = Drain::Running;
        let mut tick = pin!(sleep_until(self.next_tick()));
        loop {
            let event = tokio::select! {
                biased;
                event = next_request(&mut self.conn, &self.io) => Event::Request(event?),
                mode = drain_beyond(&mut shutdown, draining) => Event::Drain(mode),
                () = tick.as_mut() => Event::Tick,
            };
            match event {
                Event::Request(None) => return Ok(cause),
                Event::Request(Some(Ok((request, respond)))) => self.start(request, respond),
                Event::Request(Some(Err(error))) => return self.ended(error, cause),
                Event::Drain(mode) => {
                    draining = mode;
                    cause = EndCause::Drained;
                    self.drain(mode);
                }
                Event::Tick => {
                    buffers::trim();
                    self.check_settings()?;
                    keepalive.tick(&self.io).await?;
                    if self.is_idle() && draining == Drain::Running {
                        draining = Drain::Graceful;
                        cause = EndCause::Idle;
                        self.drain(draining);
                    }
                    tick.as_mut().reset(self.next_tick());
                }
            }
        }
    }

    /// Streams outlive a call to `run` in tasks of their own: a slow application must not hold
    /// up the connection.
    fn start(&mut self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        self.requests += 1;
        let stream = StreamCount::new(&self.streams);
        let peer = Rc::clone(&self.peer);
        let handler = Rc::clone(&self.handler);
        let header_bytes = self.limits.header_bytes;
        // Boxed: what opening needs is given back before the long part, the relay.
        let opened = Box::pin(async move {
            match read_request(&request, &peer, header_bytes) {
                Ok(connect) => {
                    let exchange = Exchange {
                        recv: request.into_body(),
                        respond,
                        stream,
                    };
                    answer(&*handler, connect, exchange).await.map(Box::new)
                }
                Err(error) => {
                    handler.refused(&peer.id, peer.peer_addr, &error);
                    refuse(respond, &error);
                    None
                }
            }
        });
        tokio::task::spawn_local(async move {
            if let Some(open) = opened.await {
                relay(open).await;
            }
        });
    }

    fn drain(&mut self, mode: Drain) {
        match mode {
            Drain::Running => {}
            Drain::Graceful => self.conn.graceful_shutdown(),
            Drain::Immediate => self.conn.abrupt_shutdown(Reason::NO_ERROR),
        }
    }

    fn ended(&self, error: h2::Error, cause: EndCause) -> Result<EndCause, TunnelError> {
        // A peer that is killed resets its connections; with no stream open nothing is lost.
        let quiet = error.is_io() && self.streams.get() == 0;
        let after_drain = error.is_go_away() && cause != EndCause::PeerClosed;
        match self.io.error(error) {
            TunnelError::Io { .. } if quiet => Ok(cause),
            _ if after_drain => Ok(cause),
            error => Err(error),
        }
    }

    fn check_settings(&mut self) -> Result<(), TunnelError> {
        let Some(deadline) = self.settings_deadline else {
            return Ok(());
        };
        if self.io.received() >= PREFACE_AND_SETTINGS {
            self.settings_deadline = None;
        } else if Instant::now() >= deadline {
            return Err(preface_timeout(self.limits));
        }
        Ok(())
    }

    fn is_idle(&mut self) -> bool {
        if self.streams.get() > 0 {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert_with(Instant::now);
        since.elapsed() >= self.limits.idle
    }

    fn next_tick(&self) -> Instant {
        let interval = self.limits.ping_interval.min(self.limits.idle);
        let next = Instant::now() + interval;
        self.settings_deadline
            .map_or(next, |deadline| deadline.min(next))
    }
}

/// The next request; drives all streams of the connection meanwhile.
async fn next_request(
    conn: &mut Connection<TlsIo, Bytes>,
    io: &TlsHandle,
) -> Result<Option<Result<Incoming, h2::Error>>, TunnelError> {
    poll_fn(|cx| {
        let accepted = conn.poll_accept(cx);
        match io.poll_flush(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(io.error(error))),
            _ => accepted.map(Ok),
        }
    })
    .await
}

/// Waits until the server is asked for more than `now`.
async fn drain_beyond(shutdown: &mut watch::Receiver<Drain>, now: Drain) -> Drain {
    let wanted = shutdown.wait_for(|mode| *mode as u8 > now as u8).await;
    match wanted {
        Ok(mode) => *mode,
        // The one who could ask is gone: the listener's owner ended without a word.
        Err(_) => std::future::pending().await,
    }
}

fn refuse(mut respond: SendResponse<Bytes>, error: &TunnelError) {
    let status = match error {
        TunnelError::HeadersTooLarge { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        _ => StatusCode::BAD_REQUEST,
    };
    let mut response = Response::new(());
    *response.status_mut() = status;
    // It fails only when the stream is gone, and then nobody waits for it.
    let _ = respond.send_response(response, true);
}

/// Counts a stream while it lives.
pub(crate) struct StreamCount(Rc<Cell<usize>>);

impl StreamCount {
    fn new(streams: &Rc<Cell<usize>>) -> Self {
        streams.set(streams.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for StreamCount {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

//! Accepts connections and does their TLS handshakes, each with limits.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::metrics::{Metrics, Reason};

/// Connections that may be open at a time, handshakes included.
const MAX_CONNECTIONS: usize = 20_000;

/// A handshake must be done in this time.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Finished handshakes that may wait to be taken over by the server.
const READY_QUEUE: usize = 64;

/// Wait after a failed accept, which is almost always a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An accepted connection after its handshake.
pub struct Connection {
    tls: TlsStream<TcpStream>,
    metrics: Metrics,
    _place: OwnedSemaphorePermit,
}

/// Starts to accept. The stream yields connections that are ready for HTTP/2; it ends when it is
/// dropped.
pub fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    metrics: Metrics,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, queue) = mpsc::channel(READY_QUEUE);
    tokio::spawn(async move {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            // With no place free, connections wait in the kernel's queue.
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = ready.closed() => return,
            };
            match accepted {
                Ok((tcp, peer)) => {
                    tokio::spawn(handshake(
                        tcp,
                        peer,
                        acceptor.clone(),
                        place,
                        ready.clone(),
                        metrics.clone(),
                    ));
                }
                Err(error) => {
                    warn!(reason = "accept_failed", %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    ReceiverStream::new(queue)
}

async fn handshake(
    tcp: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    place: OwnedSemaphorePermit,
    ready: mpsc::Sender<io::Result<Connection>>,
    metrics: Metrics,
) {
    let failed = |reason: &'static str, problem: String| {
        metrics
            .handshakes_failed
            .get_or_create(&Reason { reason })
            .inc();
        debug!(reason, %peer, problem, "TLS handshake failed");
    };
    if let Err(error) = tcp.set_nodelay(true) {
        return failed("tls_handshake_failed", error.to_string());
    }
    let tls = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return failed("tls_handshake_failed", error.to_string()),
        Err(_) => return failed("tls_handshake_timeout", format!("{HANDSHAKE_LIMIT:?}")),
    };
    metrics.connections.inc();
    let connection = Connection {
        tls,
        metrics,
        _place: place,
    };
    // Fails when the server is stopping; the connection is then closed, as it should be.
    let _ = ready.send(Ok(connection)).await;
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

//! A stream that is read and written like a socket.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::AbortHandle;

use crate::relay::queue::Queue;
use crate::stream::Place;
use crate::{HboneStream, TlsInfo, TunnelError};

/// Bytes one write takes at most: what is written is copied, and the copy is held until the
/// connection has sent it.
const MAX_WRITE: usize = 256 << 10;

/// An [`HboneStream`] as a reader and a writer, for users that want a socket.
///
/// Shutting down sends END_STREAM, the other direction goes on. Dropped without that it resets
/// the stream, so that a connection that is given up is not taken for one that ended in order.
/// Dropped after that a server's end still sends all that was written, while a client's end
/// that has not read the end of the other direction may not. The peer may send a window of
/// bytes ([`STREAM_WINDOW`](crate::settings::STREAM_WINDOW)) beyond what has been read.
///
/// # Errors
/// Reading and writing fail with [`io::ErrorKind::ConnectionReset`] after a reset by the peer
/// and with [`io::ErrorKind::ConnectionAborted`] when the tunnel connection broke. The inner
/// error is a [`TunnelError`]. What came before a reset is read first.
pub struct HboneIo {
    send: SendStream<Bytes>,
    /// END_STREAM has been sent.
    shut: bool,
    inbound: Rc<RefCell<Inbound>>,
    pump: AbortHandle,
    tls: Arc<TlsInfo>,
    /// Behind the two directions: the place is free only after the stream is.
    _place: Place,
}

impl HboneIo {
    /// Reads and writes `stream`. Must run inside a `LocalSet`.
    #[must_use]
    pub fn new(stream: HboneStream) -> Self {
        let inbound = Rc::new(RefCell::new(Inbound {
            recv: stream.recv,
            queue: Queue::default(),
            state: State::Open,
            reader: None,
        }));
        let pump = tokio::task::spawn_local(pump(Rc::downgrade(&inbound)));
        Self {
            send: stream.send,
            shut: false,
            inbound,
            pump: pump.abort_handle(),
            tls: stream.tls,
            _place: stream.place,
        }
    }

    /// What was negotiated on the tunnel connection.
    #[must_use]
    pub fn tls(&self) -> &Arc<TlsInfo> {
        &self.tls
    }

    /// Waits until the peer takes bytes; says how many of `wanted`.
    fn poll_room(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.send.reserve_capacity(wanted);
        let mut capacity = self.send.capacity();
        if capacity == 0 {
            capacity = match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Poll::Ready(Err(failure(error))),
                None => return Poll::Ready(Err(self.send_failure(cx))),
            };
        }
        Poll::Ready(Ok(capacity.min(wanted)))
    }

    fn send(&mut self, cx: &mut Context<'_>, bytes: Bytes) -> io::Result<usize> {
        let size = bytes.len();
        match self.send.send_data(bytes, false) {
            Ok(()) => Ok(size),
            Err(_) => Err(self.send_failure(cx)),
        }
    }

    /// Why the stream takes no more bytes.
    fn send_failure(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => io::Error::new(
                io::ErrorKind::ConnectionReset,
                TunnelError::StreamReset { reason },
            ),
            Poll::Ready(Err(error)) => failure(error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl AsyncRead for HboneIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.inbound.borrow_mut().poll_read(cx, buffer)
    }
}

impl AsyncWrite for HboneIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, bytes.len().min(MAX_WRITE)))?;
        let part = Bytes::copy_from_slice(bytes.get(..room).unwrap_or_default());
        Poll::Ready(this.send(cx, part))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(this.poll_room(cx, total.min(MAX_WRITE)))?;
        // One frame of all parts: a head and its body then travel together.
        let mut part = BytesMut::with_capacity(room);
        for slice in slices {
            let fits = slice.len().min(room - part.len());
            part.extend_from_slice(slice.get(..fits).unwrap_or_default());
        }
        Poll::Ready(this.send(cx, part.freeze()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is the connection's to send; nothing waits for a flush.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::replace(&mut this.shut, true) {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(match this.send.send_data(Bytes::new(), true) {
            Ok(()) => Ok(()),
            Err(_) => Err(this.send_failure(cx)),
        })
    }
}

impl Drop for HboneIo {
    fn drop(&mut self) {
        self.pump.abort();
        // After END_STREAM, HTTP/2 itself resets what is still open.
        if !self.shut {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

/// The direction from the peer.
struct Inbound {
    recv: RecvStream,
    /// Received, not read.
    queue: Queue,
    state: State,
    /// Who waits for bytes.
    reader: Option<Waker>,
}

enum State {
    Open,
    /// END_STREAM has been received.
    Ended,
    Failed(TunnelError, io::ErrorKind),
}

impl Inbound {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.queue.is_empty() {
            let read = self.queue.read(buffer);
            // By what was read, so that a slow reader slows the sender down and not this
            // process. A stream that has failed has no window to open.
            let _ = self.recv.flow_control().release_capacity(read);
            return Poll::Ready(Ok(()));
        }
        match &self.state {
            State::Open => {
                match &mut self.reader {
                    Some(reader) => reader.clone_from(cx.waker()),
                    none => *none = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            State::Ended => Poll::Ready(Ok(())),
            State::Failed(error, kind) => Poll::Ready(Err(io::Error::new(*kind, error.clone()))),
        }
    }

    /// Takes all frames that are there, which flow control bounds.
    fn pull(&mut self, cx: &mut Context<'_>) {
        while matches!(self.state, State::Open) {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if !frame.is_empty() {
                        self.queue.push(frame);
                    }
                }
                Poll::Ready(Some(Err(error))) => {
                    let kind = kind_of(&error);
                    self.state = State::Failed(TunnelError::from(error), kind);
                }
                Poll::Ready(None) => self.state = State::Ended,
                Poll::Pending => return,
            }
        }
    }
}

/// Takes frames as they come, whether somebody reads or not: HTTP/2 ends the whole connection,
/// with the streams of everybody else, when too many small ones lie around in it.
async fn pump(inbound: Weak<RefCell<Inbound>>) {
    poll_fn(|cx| {
        let Some(inbound) = inbound.upgrade() else {
            return Poll::Ready(());
        };
        let mut inbound = inbound.borrow_mut();
        inbound.pull(cx);
        let open = matches!(inbound.state, State::Open);
        let reader = if open && inbound.queue.is_empty() {
            None
        } else {
            inbound.reader.take()
        };
        drop(inbound);
        if let Some(reader) = reader {
            reader.wake();
        }
        if open { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

fn failure(error: h2::Error) -> io::Error {
    io::Error::new(kind_of(&error), TunnelError::from(error))
}

fn kind_of(error: &h2::Error) -> io::ErrorKind {
    if error.is_reset() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::ConnectionAborted
    }
}

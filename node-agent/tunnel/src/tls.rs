//! TLS under HTTP/2, with writes gathered for a whole turn of the connection's task.
//!
//! HTTP/2 flushes after every larger frame. Here a flush does nothing; what was written is
//! sealed into records and kept, and the task that drives the connection flushes once after
//! HTTP/2 has nothing more to do. So all streams that had something to say in one batch of
//! readiness events share one system call, and small frames share a record.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use rustls::{Connection, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::{TlsInfo, TunnelError};

/// Plaintext kept back to fill a record with several frames, bytes: one record (RFC 8446, section 5.1).
const STAGE: usize = 16 << 10;
/// Plaintext that HTTP/2 takes in a turn, bytes. What came is then passed on before more is read, so that little of
/// it lies about, and no connection keeps the others of its thread waiting.
const TURN: usize = 128 << 10;
/// Sealed bytes after which a write goes to the socket without waiting for the flush.
const WRITE_THROUGH: usize = 256 << 10;

/// What HTTP/2 reads from and writes to.
pub(crate) struct TlsIo(Rc<RefCell<Session>>);

/// The driving task's hold on the same session.
#[derive(Clone)]
pub(crate) struct TlsHandle(Rc<RefCell<Session>>);

struct Session {
    tcp: TcpStream,
    tls: Connection,
    stage: Vec<u8>,
    /// Bytes sealed and not yet written, about: record overhead is not counted.
    unsent: usize,
    /// Plaintext bytes received.
    received: u64,
    /// Of these, since the last flush.
    turn: usize,
    /// The failure in full; HTTP/2 keeps only its text.
    failure: Option<TunnelError>,
}

impl TlsHandle {
    /// Wraps a connection whose handshake is done.
    pub(crate) fn new(tcp: TcpStream, mut tls: Connection) -> (TlsIo, Self) {
        // Bounded by `WRITE_THROUGH` instead, checked before every write.
        tls.set_buffer_limit(None);
        let session = Rc::new(RefCell::new(Session {
            tcp,
            tls,
            stage: Vec::new(),
            unsent: 0,
            received: 0,
            turn: 0,
            failure: None,
        }));
        (TlsIo(Rc::clone(&session)), Self(session))
    }

    /// Sends what was written. The waker is kept when the socket does not take it all.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.0.borrow_mut();
        session.turn = 0;
        session.seal()?;
        session.poll_write_out(cx, 0)
    }

    /// Plaintext bytes received so far: moves when the peer is alive.
    pub(crate) fn received(&self) -> u64 {
        self.0.borrow().received
    }

    /// The failure behind an error of HTTP/2.
    pub(crate) fn error(&self, error: impl Into<TunnelError>) -> TunnelError {
        match self.0.borrow().failure.clone() {
            Some(failure) => failure,
            None => error.into(),
        }
    }

    /// Runs a future that reads and writes through the session, with a flush after each turn.
    pub(crate) async fn drive<F: Future>(&self, future: F) -> io::Result<F::Output> {
        let mut future = pin!(future);
        poll_fn(|cx| {
            let polled = future.as_mut().poll(cx);
            if let Poll::Ready(Err(error)) = self.poll_flush(cx) {
                return Poll::Ready(Err(error));
            }
            polled.map(Ok)
        })
        .await
    }
}

/// What a handshake has negotiated.
pub(crate) fn tls_info(tls: &Connection, tcp: &TcpStream) -> TlsInfo {
    let text = |value: Option<String>| value.unwrap_or_default().into();
    TlsInfo {
        version: text(tls.protocol_version().map(|v| format!("{v:?}"))),
        cipher: text(
            tls.negotiated_cipher_suite()
                .map(|s| format!("{:?}", s.suite())),
        ),
        key_exchange: text(
            tls.negotiated_key_exchange_group()
                .map(|group| format!("{:?}", group.name())),
        ),
        resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
        local_addr: tcp.local_addr().ok(),
    }
}

/// That the peer agreed to HTTP/2.
pub(crate) fn check_alpn(tls: &Connection) -> Result<(), TunnelError> {
    match tls.alpn_protocol() {
        Some(b"h2") => Ok(()),
        other => Err(TunnelError::NoHttp2 {
            offered: String::from_utf8_lossy(other.unwrap_or_default()).into_owned(),
        }),
    }
}

impl Session {
    /// Puts staged bytes into a record.
    fn seal(&mut self) -> io::Result<()> {
        if !self.stage.is_empty() {
            self.tls.writer().write_all(&self.stage)?;
            self.unsent += self.stage.len();
            self.stage.clear();
        }
        Ok(())
    }

    /// Seals staged bytes and `more`, of `total` bytes, as far as they fill records, and stages the rest.
    fn seal_whole(&mut self, more: &[IoSlice<'_>], total: usize) -> io::Result<()> {
        let staged = self.stage.len();
        let whole = total.saturating_sub((staged + total) % STAGE);
        let mut slices = Vec::with_capacity(1 + more.len());
        slices.push(IoSlice::new(&self.stage));
        let mut left = whole;
        for slice in more {
            let now = slice.get(..left).unwrap_or(slice);
            left -= now.len();
            slices.push(IoSlice::new(now));
        }
        if self.tls.writer().write_vectored(&slices)? != staged + whole {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.unsent += staged + whole;
        self.stage.clear();
        let mut left = whole;
        for slice in more {
            let rest = slice.get(left..).unwrap_or_default();
            left = left.saturating_sub(slice.len());
            self.stage.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Writes records until about `keep` bytes are left.
    fn poll_write_out(&mut self, cx: &mut Context<'_>, keep: usize) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            if keep > 0 && self.unsent <= keep {
                return Poll::Ready(Ok(()));
            }
            let mut socket = Socket {
                tcp: &mut self.tcp,
                cx,
            };
            match self.tls.write_tls(&mut socket) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(written) => self.unsent = self.unsent.saturating_sub(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => {
                    self.fail(TunnelError::Io { kind: error.kind() });
                    return Poll::Ready(Err(error));
                }
            }
        }
        self.unsent = 0;
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.turn >= TURN {
            // Goes on after the others of this thread.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = out.filled().len();
        loop {
            let taken = self.take_plaintext(out);
            let got = out.filled().len() - before;
            match taken {
                Ok(Stream::Goes) if out.remaining() > 0 => {}
                Err(error) if got == 0 => return Poll::Ready(Err(error)),
                // An error is met again by the next call.
                _ => break,
            }
            let mut socket = Socket {
                tcp: &mut self.tcp,
                cx,
            };
            match self.tls.read_tls(&mut socket) {
                // At the end of the file `take_plaintext` tells a clean end from a cut.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if got > 0 {
                        break;
                    }
                    return Poll::Pending;
                }
                Err(error) => {
                    self.fail(TunnelError::Io { kind: error.kind() });
                    return Poll::Ready(Err(error));
                }
            }
            if let Err(error) = self.tls.process_new_packets() {
                // The alert that tells the peer why; it is lost if the socket is full.
                let _ = self.poll_write_out(cx, 0);
                self.fail(TunnelError::Identity(karst_identity::tls_failure(&error)));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
        let got = out.filled().len() - before;
        self.received += got as u64;
        self.turn += got;
        Poll::Ready(Ok(()))
    }

    /// Moves decrypted bytes.
    fn take_plaintext(&mut self, out: &mut ReadBuf<'_>) -> io::Result<Stream> {
        let mut reader = self.tls.reader();
        while out.remaining() > 0 {
            match reader.fill_buf() {
                Ok([]) => return Ok(Stream::Ended),
                Ok(chunk) => {
                    let size = chunk.len().min(out.remaining());
                    out.put_slice(chunk.get(..size).unwrap_or_default());
                    reader.consume(size);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Stream::Goes)
    }

    fn fail(&mut self, error: TunnelError) {
        self.failure.get_or_insert(error);
    }
}

/// Whether the peer has closed its direction.
enum Stream {
    Goes,
    Ended,
}

impl AsyncRead for TlsIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(cx, out)
    }
}

impl AsyncWrite for TlsIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut session = self.0.borrow_mut();
        let session = &mut *session;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if session.unsent >= WRITE_THROUGH {
            ready!(session.poll_write_out(cx, WRITE_THROUGH - 1))?;
        }
        if session.stage.len() + total <= STAGE {
            for slice in slices {
                session.stage.extend_from_slice(slice);
            }
        } else {
            session.seal_whole(slices, total)?;
        }
        Poll::Ready(Ok(total))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // See the module's head: the driving task flushes.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut session = self.0.borrow_mut();
        session.seal()?;
        session.tls.send_close_notify();
        ready!(session.poll_write_out(cx, 0))?;
        Pin::new(&mut session.tcp).poll_shutdown(cx)
    }
}

/// The socket as blocking I/O that answers `WouldBlock` and keeps the waker.
struct Socket<'a, 'b> {
    tcp: &'a mut TcpStream,
    cx: &'a mut Context<'b>,
}

fn or_would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl Read for Socket<'_, '_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(out);
        or_would_block(Pin::new(&mut *self.tcp).poll_read(self.cx, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl Write for Socket<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.tcp).poll_write(self.cx, bytes))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        or_would_block(Pin::new(&mut *self.tcp).poll_write_vectored(self.cx, slices))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

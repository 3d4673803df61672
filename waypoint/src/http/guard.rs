//! The byte stream of a client on its way to hyper: looked at, and stopped where it is malformed.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use super::framing::{Framing, Malformed, Scanned};

/// What a client that speaks HTTP/2 sends first (RFC 9113, section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What follows the last good byte of a malformed stream: no parser takes a NUL in a head, and the empty line
/// makes hyper look at the head at once. It answers 400 and closes.
const POISON: &[u8] = b"\0\r\n\r\n";

/// What guard, requests and the keeper of the time share about a connection.
#[derive(Debug)]
pub struct Activity {
    /// When the head under way began.
    head_since: Cell<Option<Instant>>,
    /// End of the last request.
    idle_since: Cell<Instant>,
    /// Requests under way.
    requests: Cell<u32>,
    /// The last request for an upgrade was answered with something else.
    upgrade_refused: Cell<bool>,
    /// Bytes were taken that nobody looked at, while an upgrade was undecided.
    unseen: Cell<bool>,
    /// Why the stream was stopped.
    malformed: Cell<Option<Malformed>>,
}

impl Activity {
    /// Of a connection that begins now.
    #[must_use]
    pub fn new() -> Rc<Self> {
        Rc::new(Self {
            head_since: Cell::new(None),
            idle_since: Cell::new(Instant::now()),
            requests: Cell::new(0),
            upgrade_refused: Cell::new(false),
            unseen: Cell::new(false),
            malformed: Cell::new(None),
        })
    }

    /// A request begins.
    pub(super) fn begin(&self) {
        self.requests.set(self.requests.get() + 1);
    }

    /// A request has ended.
    pub(super) fn end(&self, now: Instant) {
        self.requests.set(self.requests.get().saturating_sub(1));
        self.idle_since.set(now);
    }

    /// When the head under way began.
    pub(super) fn head_since(&self) -> Option<Instant> {
        self.head_since.get()
    }

    /// Since when there is no request; `None` while there is one.
    pub(super) fn idle_since(&self) -> Option<Instant> {
        (self.requests.get() == 0).then(|| self.idle_since.get())
    }

    /// A request for an upgrade is answered otherwise: what follows is HTTP again. Whether the connection must be
    /// closed, since bytes were passed on that belong to nothing known.
    pub(super) fn refuse_upgrade(&self) -> bool {
        self.upgrade_refused.set(true);
        self.unseen.get()
    }

    /// Why the stream was stopped.
    #[must_use]
    pub fn malformed(&self) -> Option<Malformed> {
        self.malformed.get()
    }

    fn head(&self, framing: &Framing) {
        let under_way = framing.in_head();
        if under_way != self.head_since.get().is_some() {
            self.head_since.set(under_way.then(Instant::now));
        }
    }
}

/// The first bytes, taken to find out what is spoken.
#[derive(Debug, Default)]
struct Detected {
    bytes: [u8; PREFACE.len()],
    /// How many were taken.
    taken: usize,
    /// How many of them were given back.
    given: usize,
}

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 by prior knowledge.
    Http2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Everything is looked at.
    Watching,
    /// Nothing is, for ever: HTTP/2.
    Http2,
    /// Nothing is, until a request for an upgrade is answered with something else.
    Upgrade,
    /// The stream was stopped; that much of [`POISON`] was given.
    Stopped(usize),
}

/// A client's stream that is looked at.
#[derive(Debug)]
pub struct Guard<IO> {
    io: IO,
    detected: Detected,
    framing: Framing,
    mode: Mode,
    activity: Rc<Activity>,
}

impl<IO> Guard<IO> {
    /// Looks at `io` from its first byte.
    pub fn new(io: IO, activity: Rc<Activity>) -> Self {
        Self {
            io,
            detected: Detected::default(),
            framing: Framing::default(),
            mode: Mode::Watching,
            activity,
        }
    }

    /// The stream itself.
    pub fn into_inner(self) -> IO {
        self.io
    }

    /// Looks at what was read behind the first `before` bytes of `buf`.
    fn look(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        if self.mode == Mode::Upgrade {
            if !self.activity.upgrade_refused.get() {
                self.activity.unseen.set(true);
                return;
            }
            self.framing.resume();
            self.mode = Mode::Watching;
        }
        if self.mode != Mode::Watching {
            return;
        }
        match self.framing.scan(&buf.filled()[before..]) {
            Scanned::All => self.activity.head(&self.framing),
            Scanned::Opaque(at) => {
                self.mode = Mode::Upgrade;
                self.activity.upgrade_refused.set(false);
                self.activity.unseen.set(buf.filled().len() > before + at);
                self.activity.head_since.set(None);
            }
            Scanned::Refused(at, why) => {
                self.activity.malformed.set(Some(why));
                self.activity.head_since.set(None);
                buf.set_filled(before + at);
                self.mode = Mode::Stopped(0);
                self.poison(buf);
            }
        }
    }

    fn poison(&mut self, buf: &mut ReadBuf<'_>) {
        if let Mode::Stopped(given) = &mut self.mode {
            let rest = &POISON[*given..];
            let room = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..room]);
            *given += room;
        }
    }
}

impl<IO: AsyncRead + Unpin> Guard<IO> {
    /// Waits for the first bytes and says what they are of.
    ///
    /// # Errors
    /// The stream fails or ends before its first byte.
    pub async fn detect(&mut self) -> io::Result<Spoken> {
        let Detected { bytes, taken, .. } = &mut self.detected;
        while *taken < PREFACE.len() {
            let read = self.io.read(&mut bytes[*taken..]).await?;
            if *taken == 0 {
                if read == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.activity.head_since.set(Some(Instant::now()));
            }
            *taken += read;
            if read == 0 || bytes[..*taken] != PREFACE[..*taken] {
                return Ok(Spoken::Http1);
            }
        }
        self.mode = Mode::Http2;
        self.activity.head_since.set(None);
        Ok(Spoken::Http2)
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Guard<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Mode::Stopped(_) = this.mode {
            // At the end of the poison this reads as the end of the stream.
            this.poison(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = if this.detected.given < this.detected.taken {
            let rest = &this.detected.bytes[this.detected.given..this.detected.taken];
            let room = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..room]);
            this.detected.given += room;
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut this.io).poll_read(cx, buf)
        };
        if read.is_ready() && this.mode != Mode::Http2 && buf.filled().len() > before {
            this.look(buf, before);
        }
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Guard<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

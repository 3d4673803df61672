//! The application's first bytes, sent along with the CONNECT instead of a round trip later.

use std::task::{Context, Poll};

use bytes::Bytes;
use h2::SendStream;
use tokio::net::TcpStream;

use crate::TunnelError;
use crate::buffers::{self, ReadSize};

/// What an application sends while the way to its destination is opened: one read of it, some
/// 16 KiB at most. The bytes are kept until an answer has come, so that another destination can be
/// tried with them.
///
/// A peer passes nothing on to its application before it has accepted the stream. When it is not known
/// whether it had, the bytes are [spent](Self::is_spent): they must not be sent a second time.
pub struct FirstBytes<'a> {
    /// The application's.
    tcp: Option<&'a mut TcpStream>,
    bytes: Bytes,
    /// Sent on the stream that is tried now.
    sent: bool,
    /// Nothing more is to be read before the relay starts.
    done: bool,
    reset: bool,
    spent: bool,
}

/// What of the first bytes a relay begins with.
#[derive(Debug, Default)]
pub struct Early {
    /// Read from the application, and to be sent before anything else.
    pub unsent: Bytes,
    /// Bytes that are sent already and not counted yet.
    pub sent: usize,
    /// The application has reset the connection since.
    pub reset: bool,
}

impl<'a> FirstBytes<'a> {
    /// Those of `tcp`, of which nothing has been read. It belongs to this until the relay starts.
    pub fn of(tcp: &'a mut TcpStream) -> Self {
        Self {
            tcp: Some(tcp),
            ..Self::none()
        }
    }

    /// None: nothing is sent before the peer has accepted the stream.
    pub(super) fn none() -> Self {
        Self {
            tcp: None,
            bytes: Bytes::new(),
            sent: false,
            done: false,
            reset: false,
            spent: false,
        }
    }

    /// Whether an application may have seen them, so that no other one may be tried.
    #[must_use]
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// For a relay that is not of the stream they may have been sent on, such as one in plain text.
    #[must_use]
    pub fn unsent(&mut self) -> Early {
        Early {
            unsent: std::mem::take(&mut self.bytes),
            sent: 0,
            reset: self.reset,
        }
    }

    /// Sends them as soon as they are there.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, send: &mut SendStream<Bytes>) {
        if self.bytes.is_empty() && !self.done {
            self.poll_read(cx);
        }
        if !self.sent && !self.bytes.is_empty() {
            // HTTP/2 keeps what flow control does not let through yet. What it does not take is of a
            // stream that has failed, as its answer is about to say.
            self.sent = send.send_data(self.bytes.clone(), false).is_ok();
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) {
        let Some(tcp) = &mut self.tcp else { return };
        match buffers::poll_read(tcp, cx, &mut ReadSize::default()) {
            // At the end of the file it is empty, and the relay meets the end again.
            Poll::Ready(Ok(bytes)) => self.bytes = bytes,
            // The kernel tells of a reset only once.
            Poll::Ready(Err(_)) => self.reset = true,
            Poll::Pending => return,
        }
        self.done = true;
    }

    /// The stream has been accepted.
    pub(super) fn accepted(&mut self) -> Early {
        let sent = std::mem::take(&mut self.sent);
        let bytes = std::mem::take(&mut self.bytes);
        Early {
            sent: if sent { bytes.len() } else { 0 },
            unsent: if sent { Bytes::new() } else { bytes },
            reset: self.reset,
        }
    }

    /// The stream has not been accepted. Only a refusal proves that no application has seen anything.
    pub(super) fn failed(&mut self, error: &TunnelError) {
        let refused = matches!(error, TunnelError::Refused { .. } | TunnelError::Draining);
        self.spent |= self.sent && !refused;
        self.sent = false;
    }
}

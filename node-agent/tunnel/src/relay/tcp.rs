//! Socket to socket, for traffic that leaves the mesh in plaintext.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::{RelayEnd, reset_on_drop};
use crate::Counters;
use crate::buffers::{self, ReadSize};
use crate::pool::Early;

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 8;

/// Both ends. A relay that is given up has cut the data off, which an application would take for
/// its end if the sockets were only closed.
struct Ends {
    first: TcpStream,
    second: TcpStream,
    ended: bool,
}

impl Drop for Ends {
    fn drop(&mut self) {
        if !self.ended {
            reset_on_drop(&self.first);
            reset_on_drop(&self.second);
        }
    }
}

pub(super) async fn relay(
    first: TcpStream,
    second: TcpStream,
    early: Early,
    counters: &Counters,
) -> RelayEnd {
    let mut ends = Ends {
        first,
        second,
        ended: false,
    };
    let mut out = Direction {
        pending: early.unsent,
        ..Direction::default()
    };
    let mut back = Direction::default();
    let relayed = poll_fn(|cx| {
        let sent = |bytes| counters.add_sent(bytes);
        let received = |bytes| counters.add_received(bytes);
        let Ends { first, second, .. } = &mut ends;
        let out_done = match out.poll(cx, first, second, sent) {
            Poll::Ready(Err(Side::From)) => return Poll::Ready(RelayEnd::LocalReset),
            Poll::Ready(Err(Side::To)) => return Poll::Ready(RelayEnd::RemoteReset),
            other => other.is_ready(),
        };
        let back_done = match back.poll(cx, second, first, received) {
            Poll::Ready(Err(Side::From)) => return Poll::Ready(RelayEnd::RemoteReset),
            Poll::Ready(Err(Side::To)) => return Poll::Ready(RelayEnd::LocalReset),
            other => other.is_ready(),
        };
        if out_done && back_done {
            return Poll::Ready(RelayEnd::Closed);
        }
        Poll::Pending
    });
    let end = match early.reset {
        true => RelayEnd::LocalReset,
        false => relayed.await,
    };
    ends.ended = true;
    match end {
        RelayEnd::Closed => {}
        RelayEnd::LocalReset => reset_on_drop(&ends.second),
        RelayEnd::RemoteReset | RelayEnd::TunnelFailed => reset_on_drop(&ends.first),
    }
    end
}

/// Which socket of a direction failed.
enum Side {
    From,
    To,
}

#[derive(Default)]
struct Direction {
    /// Read and not yet written.
    pending: Bytes,
    read_size: ReadSize,
    ended: bool,
    done: bool,
}

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: impl Fn(usize),
    ) -> Poll<Result<(), Side>> {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        for _ in 0..READS_PER_TURN {
            ready!(self.poll_pending(cx, to, &count)).map_err(|_| Side::To)?;
            if self.ended {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(|_| Side::To)?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            self.pending = ready!(buffers::poll_read(from, cx, &mut self.read_size))
                .map_err(|_| Side::From)?;
            self.ended = self.pending.is_empty();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_pending(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut TcpStream,
        count: &impl Fn(usize),
    ) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
            count(written);
        }
        self.pending = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

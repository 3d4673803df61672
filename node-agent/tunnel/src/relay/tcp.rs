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

/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 8;

pub(super) async fn relay(
    mut first: TcpStream,
    mut second: TcpStream,
    counters: &Counters,
) -> RelayEnd {
    let mut out = Direction::default();
    let mut back = Direction::default();
    let end = poll_fn(|cx| {
        let sent = |bytes| counters.add_sent(bytes);
        let received = |bytes| counters.add_received(bytes);
        let out_done = match out.poll(cx, &mut first, &mut second, sent) {
            Poll::Ready(Err(Side::From)) => return Poll::Ready(RelayEnd::LocalReset),
            Poll::Ready(Err(Side::To)) => return Poll::Ready(RelayEnd::RemoteReset),
            other => other.is_ready(),
        };
        let back_done = match back.poll(cx, &mut second, &mut first, received) {
            Poll::Ready(Err(Side::From)) => return Poll::Ready(RelayEnd::RemoteReset),
            Poll::Ready(Err(Side::To)) => return Poll::Ready(RelayEnd::LocalReset),
            other => other.is_ready(),
        };
        if out_done && back_done {
            return Poll::Ready(RelayEnd::Closed);
        }
        Poll::Pending
    })
    .await;
    match end {
        RelayEnd::Closed => {}
        RelayEnd::LocalReset => reset_on_drop(&second),
        RelayEnd::RemoteReset | RelayEnd::TunnelFailed => reset_on_drop(&first),
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

//! Socket to stream and back, as one state machine without inner tasks.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::queue::Queue;
use super::{RelayEnd, reset_on_drop};
use crate::buffers::{self, ReadSize};
use crate::stream::Place;
use crate::{Counters, HboneStream};

/// Bytes gathered before they are written, while the application's socket takes them.
const GATHER: usize = 256 << 10;
/// Reads in a row before other connections of the thread get their turn.
const READS_PER_TURN: usize = 8;

/// A relay that runs. Not an `async fn`, which would hold what it is given once more beside what it makes
/// of it for as long as the connection lasts.
pub(super) struct Relaying<'a> {
    relay: Option<Relay<'a>>,
    /// The place on the connection, which is free only after the stream is.
    _place: Place,
    /// The application's reset, which was read before.
    reset: bool,
}

pub(super) fn relay(tcp: TcpStream, stream: HboneStream, counters: &Counters) -> Relaying<'_> {
    let HboneStream {
        mut send,
        recv,
        early,
        place,
        ..
    } = stream;
    counters.add_sent(early.sent);
    let up = if early.unsent.is_empty() {
        Up::Reading
    } else {
        send.reserve_capacity(early.unsent.len());
        Up::Sending(early.unsent)
    };
    Relaying {
        relay: Some(Relay {
            tcp,
            send,
            recv,
            counters,
            up,
            read_size: ReadSize::default(),
            queue: Queue::default(),
            down: Down::Open,
            ended: false,
        }),
        _place: place,
        reset: early.reset,
    }
}

impl Future for Relaying<'_> {
    type Output = RelayEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        let reset = self.reset;
        let Some(relay) = &mut self.relay else {
            // Nobody polls a future that has ended; if somebody did, it would still have ended.
            return Poll::Ready(RelayEnd::Closed);
        };
        let end = match reset {
            true => RelayEnd::LocalReset,
            false => ready!(relay.poll(cx)),
        };
        relay.ended = true;
        match end {
            RelayEnd::Closed => {}
            RelayEnd::LocalReset => relay.send.send_reset(Reason::CANCEL),
            RelayEnd::RemoteReset | RelayEnd::TunnelFailed => reset_on_drop(&relay.tcp),
        }
        self.relay = None;
        Poll::Ready(end)
    }
}

/// From the socket to the stream.
enum Up {
    Reading,
    /// Read, and waiting for flow control.
    Sending(Bytes),
    Done,
}

/// From the stream to the socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Down {
    Open,
    /// The stream has ended; what is queued is still to be written.
    Ending,
    Done,
}

struct Relay<'a> {
    tcp: TcpStream,
    send: SendStream<Bytes>,
    recv: RecvStream,
    counters: &'a Counters,
    up: Up,
    read_size: ReadSize,
    queue: Queue,
    down: Down,
    ended: bool,
}

/// A relay that is given up (its pod is gone, the time to drain is over) has cut the data off.
/// An application would take a plain close for the end of it.
impl Drop for Relay<'_> {
    fn drop(&mut self) {
        if !self.ended {
            reset_on_drop(&self.tcp);
            self.send.send_reset(Reason::CANCEL);
        }
    }
}

impl Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<RelayEnd> {
        if let Poll::Ready(Err(end)) = self.poll_down(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(Err(end)) = self.poll_up(cx) {
            return Poll::Ready(end);
        }
        let up_done = matches!(self.up, Up::Done);
        if up_done && self.down == Down::Done {
            return Poll::Ready(RelayEnd::Closed);
        }
        // A reset normally shows when data is polled; after the end of data only here.
        if self.down != Down::Open
            && !up_done
            && let Poll::Ready(reset) = self.send.poll_reset(cx)
        {
            return Poll::Ready(match reset {
                Ok(_) => RelayEnd::RemoteReset,
                Err(error) => end_of(&error),
            });
        }
        Poll::Pending
    }

    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayEnd>> {
        for _ in 0..READS_PER_TURN {
            match &mut self.up {
                Up::Reading => {
                    match ready!(buffers::poll_read(&mut self.tcp, cx, &mut self.read_size)) {
                        Err(_) => return Poll::Ready(Err(RelayEnd::LocalReset)),
                        Ok(bytes) if bytes.is_empty() => {
                            self.send
                                .send_data(Bytes::new(), true)
                                .map_err(|error| end_of(&error))?;
                            self.up = Up::Done;
                            return Poll::Ready(Ok(()));
                        }
                        Ok(bytes) => {
                            self.send.reserve_capacity(bytes.len());
                            self.up = Up::Sending(bytes);
                        }
                    }
                }
                Up::Sending(_) => {}
                Up::Done => return Poll::Ready(Ok(())),
            }
            ready!(self.poll_sending(cx))?;
            self.up = Up::Reading;
        }
        // There may be more to read: let the others of this thread run first.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_sending(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayEnd>> {
        let Up::Sending(bytes) = &mut self.up else {
            return Poll::Ready(Ok(()));
        };
        while !bytes.is_empty() {
            let mut capacity = self.send.capacity();
            if capacity == 0 {
                capacity = match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(error)) => return Poll::Ready(Err(end_of(&error))),
                    None => return Poll::Ready(Err(RelayEnd::RemoteReset)),
                };
            }
            let part = bytes.split_to(capacity.min(bytes.len()));
            self.counters.add_sent(part.len());
            self.send
                .send_data(part, false)
                .map_err(|error| end_of(&error))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), RelayEnd>> {
        if self.down == Down::Done {
            return Poll::Ready(Ok(()));
        }
        loop {
            self.pull(cx, GATHER)?;
            if self.queue.is_empty() {
                if self.down == Down::Open {
                    return Poll::Pending;
                }
                break;
            }
            match self.queue.poll_write(&mut self.tcp, cx) {
                Poll::Ready(Ok(written)) => self.written(written)?,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(RelayEnd::LocalReset)),
                Poll::Pending => {
                    // Keep taking frames, which flow control bounds: HTTP/2 ends the whole
                    // connection when too many small ones lie around in it, and a reset of
                    // this stream would go unnoticed.
                    self.pull(cx, usize::MAX)?;
                    return Poll::Pending;
                }
            }
        }
        // When the application has ended its direction too, closing says the same as a shutdown.
        if !matches!(self.up, Up::Done)
            && ready!(Pin::new(&mut self.tcp).poll_shutdown(cx)).is_err()
        {
            return Poll::Ready(Err(RelayEnd::LocalReset));
        }
        self.down = Down::Done;
        Poll::Ready(Ok(()))
    }

    /// Takes received frames until none is left or `enough` bytes are queued.
    fn pull(&mut self, cx: &mut Context<'_>, enough: usize) -> Result<(), RelayEnd> {
        while self.down == Down::Open && self.queue.len() < enough {
            match self.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    if !frame.is_empty() {
                        self.queue.push(frame);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Err(end_of(&error)),
                Poll::Ready(None) => self.down = Down::Ending,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    /// Opens the window by what the application's socket has taken, so that a slow reader
    /// slows the sender down and not this process.
    fn written(&mut self, bytes: usize) -> Result<(), RelayEnd> {
        self.counters.add_received(bytes);
        self.recv
            .flow_control()
            .release_capacity(bytes)
            .map_err(|error| end_of(&error))
    }
}

fn end_of(error: &h2::Error) -> RelayEnd {
    if error.is_reset() {
        RelayEnd::RemoteReset
    } else {
        RelayEnd::TunnelFailed
    }
}

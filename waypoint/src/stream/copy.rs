//! Copies bytes in both directions, counts them, and notices silence.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::carrier::Carrier;

/// Time without a byte in either direction after which a connection is given up. Applications that are silent for
/// longer keep their connections alive themselves.
const IDLE: Duration = Duration::from_secs(3600);

/// How often the counts are handed on, and silence is looked for.
const LOOK: Duration = Duration::from_secs(15);

/// Bytes read at once, for each direction.
const BUFFER: usize = 16 << 10;

/// How it ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides said that they have no more.
    Done,
    /// Nobody said anything for long.
    Idle,
    /// The client's side broke.
    ClientFailed(io::Error),
    /// The application's side broke.
    UpstreamFailed(io::Error),
}

/// Bytes passed on so far: from the client, and to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Passed(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    received: Cell<u64>,
    sent: Cell<u64>,
    client_failed: Cell<bool>,
}

impl Passed {
    pub(super) fn get(&self) -> (u64, u64) {
        (self.0.received.get(), self.0.sent.get())
    }
}

/// A client and an application that are connected. Dropped before its end it resets both.
pub(super) struct Relay<C: Carrier, U> {
    client: Option<Counted<C>>,
    upstream: U,
    passed: Passed,
}

impl<C: Carrier, U: AsyncRead + AsyncWrite + Unpin> Relay<C, U> {
    pub(super) fn new(client: C, upstream: U) -> Self {
        let passed = Passed::default();
        let client = Counted {
            inner: client,
            passed: passed.clone(),
        };
        Self {
            client: Some(client),
            upstream,
            passed,
        }
    }

    pub(super) fn passed(&self) -> Passed {
        self.passed.clone()
    }

    /// Copies until both directions have ended. `report` is told the bytes in all from time to time.
    pub(super) async fn run(mut self, mut report: impl FnMut(u64, u64)) -> End {
        let Some(client) = self.client.as_mut() else {
            return End::Done;
        };
        let passed = self.passed.clone();
        let silence = async {
            let mut before = passed.get();
            let mut silent = Duration::ZERO;
            while silent < IDLE {
                tokio::time::sleep(LOOK).await;
                let now = passed.get();
                report(now.0, now.1);
                silent = if now == before {
                    silent + LOOK
                } else {
                    Duration::ZERO
                };
                before = now;
            }
        };
        let copying =
            tokio::io::copy_bidirectional_with_sizes(client, &mut self.upstream, BUFFER, BUFFER);
        let copied = tokio::select! {
            copied = copying => copied,
            () = silence => return End::Idle,
        };
        match copied {
            Ok(_) => {
                // Both ends have been shut down in order: nothing is left to reset.
                self.client = None;
                End::Done
            }
            Err(error) if self.passed.0.client_failed.get() => End::ClientFailed(error),
            Err(error) => End::UpstreamFailed(error),
        }
    }
}

impl<C: Carrier, U> Drop for Relay<C, U> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            client.inner.reset();
        }
    }
}

/// The client's side.
struct Counted<C> {
    inner: C,
    passed: Passed,
}

impl<C> Counted<C> {
    fn written(&self, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &outcome {
            Poll::Ready(Ok(count)) => {
                let counts = &self.passed.0;
                counts.sent.set(counts.sent.get() + *count as u64);
            }
            Poll::Ready(Err(_)) => self.passed.0.client_failed.set(true),
            Poll::Pending => {}
        }
        outcome
    }

    fn noted(&self, outcome: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if matches!(outcome, Poll::Ready(Err(_))) {
            self.passed.0.client_failed.set(true);
        }
        outcome
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.inner).poll_read(cx, buffer);
        let counts = &this.passed.0;
        let more = buffer.filled().len() - before;
        counts.received.set(counts.received.get() + more as u64);
        this.noted(outcome)
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write(cx, bytes);
        this.written(outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_write_vectored(cx, slices);
        this.written(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_flush(cx);
        this.noted(outcome)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.noted(outcome)
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;

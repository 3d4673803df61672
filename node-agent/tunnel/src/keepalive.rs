//! PINGs on a connection that is otherwise silent.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::Instant;

use crate::TunnelError;
use crate::tls::TlsHandle;

/// Bytes of a PING frame and its answer. An interval that brought no more than this was silent:
/// the answer to one PING must not stand for the next.
const PING_FRAME: u64 = 17;

/// Watches that the peer is alive. Bytes received count as a sign of life, so that a busy
/// connection sends no PING.
pub(crate) struct Keepalive {
    pings: Option<PingPong>,
    timeout: Duration,
    received: u64,
    sent: Option<Instant>,
}

impl Keepalive {
    pub(crate) fn new(pings: Option<PingPong>, timeout: Duration) -> Self {
        Self {
            pings,
            timeout,
            received: 0,
            sent: None,
        }
    }

    /// Called once an interval.
    pub(crate) async fn tick(&mut self, io: &TlsHandle) -> Result<(), TunnelError> {
        let received = io.received();
        let silent = received - self.received <= PING_FRAME;
        self.received = received;
        poll_fn(|cx| Poll::Ready(self.check(cx, silent))).await
    }

    fn check(&mut self, cx: &mut Context<'_>, silent: bool) -> Result<(), TunnelError> {
        let Some(pings) = &mut self.pings else {
            return Ok(());
        };
        if let Some(sent) = self.sent {
            match pings.poll_pong(cx) {
                Poll::Ready(Ok(_)) => self.sent = None,
                Poll::Ready(Err(error)) => return Err(error.into()),
                // Any byte proves that the peer is alive; a PONG may stand behind much data.
                Poll::Pending if !silent => {
                    self.sent = Some(Instant::now());
                    return Ok(());
                }
                Poll::Pending if sent.elapsed() >= self.timeout => {
                    let seconds = self.timeout.as_secs();
                    return Err(TunnelError::PingTimeout { seconds });
                }
                Poll::Pending => return Ok(()),
            }
        }
        if silent && pings.send_ping(Ping::opaque()).is_ok() {
            self.sent = Some(Instant::now());
        }
        Ok(())
    }
}

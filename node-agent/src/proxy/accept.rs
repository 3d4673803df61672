//! Accept loops that survive everything the kernel answers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::worker::LocalPod;

/// Wait after an accept that failed for lack of resources. Without it the loop
/// would spin, because the connection stays in the queue.
const BACKOFF: Duration = Duration::from_millis(50);

/// Between two lines of the log while accepts go on failing: one a listener is enough to say that
/// it lasts, and the metric counts each.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// After a stop, connections that already wait in the queue are still taken
/// until none has come for this long.
const LINGER: Duration = Duration::from_millis(200);

/// Whether a pod's accept loops take connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// They do.
    Open,
    /// They leave them in the queue, where another agent may come to take them.
    Paused,
    /// Another agent takes them: the loops end and leave the queue as it is.
    HandedOver,
}

/// When an accept loop ends, and when it waits.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Empties the queue, then ends.
    pub token: CancellationToken,
    /// Waits, or ends at once.
    pub gate: watch::Receiver<Gate>,
}

/// Accepts until told to stop, see [`Stop`]. Each connection runs in a task of
/// its own, which ends with the pod.
pub async fn accept_loop<F>(
    listener: Rc<TcpListener>,
    pod: Rc<LocalPod>,
    mut stop: Stop,
    handle: impl Fn(Rc<LocalPod>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let mut logged: Option<Instant> = None;
    loop {
        // The gate's sender is the pod's, so it is there as long as we are.
        let gate = *stop.gate.borrow_and_update();
        match gate {
            Gate::Open => {}
            Gate::Paused => {
                tokio::select! {
                    changed = stop.gate.changed() => if changed.is_err() { return },
                    () = stop.token.cancelled() => return,
                }
                continue;
            }
            Gate::HandedOver => return,
        }
        let accepted = tokio::select! {
            biased;
            Ok(()) = stop.gate.changed() => continue,
            accepted = listener.accept() => accepted,
            () = stop.token.cancelled() => {
                match tokio::time::timeout(LINGER, listener.accept()).await {
                    Ok(accepted) if !pod.is_killed() => accepted,
                    _ => return,
                }
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                // Boxed: inside select! it would be held twice, once to be moved from.
                let task = Box::pin(handle(Rc::clone(&pod), stream, peer));
                let killed = pod.killed();
                tokio::task::spawn_local(async move {
                    tokio::select! {
                        biased;
                        () = killed.cancelled_owned() => {}
                        () = task => {}
                    }
                });
            }
            // The client was gone before we came to it.
            Err(error) if is_of_client(&error) => tracing::debug!(%error, "accept failed"),
            Err(error) => {
                pod.worker.context.metrics.accept_failures.inc();
                if logged.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
                    logged = Some(Instant::now());
                    tracing::warn!(%error, pod.name = &*pod.pod.name, "accept failed, waiting");
                }
                tokio::time::sleep(BACKOFF).await;
            }
        }
    }
}

/// Errors of the one connection that was to be accepted, which leaves the queue with them (accept(2)). All
/// others, the lack of descriptors above all, stay until something is done about them.
fn is_of_client(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw);
    matches!(
        code,
        Some(
            Errno::ECONNABORTED
                | Errno::ECONNRESET
                | Errno::EPERM
                | Errno::EPROTO
                | Errno::ENOPROTOOPT
                | Errno::EOPNOTSUPP
                | Errno::ENETDOWN
                | Errno::ENETUNREACH
                | Errno::EHOSTDOWN
                | Errno::EHOSTUNREACH
                | Errno::ETIMEDOUT
        )
    )
}

#[cfg(test)]
#[path = "accept_tests.rs"]
mod tests;

//! Accept loops that survive everything the kernel answers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::worker::LocalPod;

/// Wait after an accept that failed for lack of resources. Without it the loop
/// would spin, because the connection stays in the queue.
const BACKOFF: Duration = Duration::from_millis(50);

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
            Err(error) if is_scarcity(&error) => {
                pod.worker.context.metrics.accept_failures.inc();
                tracing::warn!(%error, pod.name = &*pod.pod.name, "accept failed, waiting");
                tokio::time::sleep(BACKOFF).await;
            }
            // The client was gone before we came to it.
            Err(error) => tracing::debug!(%error, "accept failed"),
        }
    }
}

/// Errors that stay until something is freed.
fn is_scarcity(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else {
        return true;
    };
    matches!(
        Errno::from_raw(code),
        Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM
    )
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::is_scarcity;

    #[test]
    fn only_scarcity_waits() {
        assert!(is_scarcity(&io::Error::from_raw_os_error(24)), "EMFILE");
        assert!(
            !is_scarcity(&io::Error::from_raw_os_error(103)),
            "ECONNABORTED"
        );
    }
}

//! Accept loops that survive everything the kernel answers.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use crate::worker::LocalPod;

/// Wait after an accept that failed for lack of resources. Without it the loop
/// would spin, because the connection stays in the queue.
const BACKOFF: Duration = Duration::from_millis(50);

/// After a stop, connections that already wait in the queue are still taken
/// until none has come for this long.
const LINGER: Duration = Duration::from_millis(200);

/// Accepts until `stop`, then empties the queue. Each connection runs in a task
/// of its own, which ends with the pod.
pub async fn accept_loop<F>(
    listener: std::net::TcpListener,
    pod: Rc<LocalPod>,
    stop: CancellationToken,
    handle: impl Fn(Rc<LocalPod>, TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, pod.name = &*pod.pod.name, "listener cannot be used");
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => {
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

//! The data plane as a whole: the workers, their listeners, and their end.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::ports::Ports;
use crate::shared::Shared;
use crate::sockets;
use crate::worker::{self, Command, Snapshot, WorkerHandle};

/// Longest wait for a worker to list what it holds.
const SNAPSHOT_WAIT: Duration = Duration::from_secs(2);

/// Running workers. They take tunnels at once, and a gateway's connections as [`Proxy::ports`] says.
pub struct Proxy {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    mesh: Vec<SocketAddr>,
}

impl Proxy {
    /// Starts `workers` threads without listeners.
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(shared: &Arc<Shared>, workers: usize) -> io::Result<Self> {
        let workers = (0..workers)
            .map(|index| worker::spawn(index, Arc::clone(shared)))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            shared: Arc::clone(shared),
            workers,
            mesh: Vec::new(),
        })
    }

    /// Takes tunnels on these addresses from now on.
    ///
    /// # Errors
    /// One cannot be had.
    pub fn listen(&mut self, addresses: &[SocketAddr]) -> io::Result<()> {
        let sets = sockets::listen_all(addresses.iter().copied(), self.workers.len())?;
        let first = sets.first().into_iter().flatten();
        self.mesh = first
            .map(std::net::TcpListener::local_addr)
            .collect::<io::Result<_>>()?;
        for (worker, listeners) in self.workers.iter().zip(sets) {
            // A worker that is gone takes the process with it.
            let _ = worker.commands.send(Command::Mesh(listeners));
        }
        Ok(())
    }

    /// Where tunnels are taken.
    #[must_use]
    pub fn mesh(&self) -> &[SocketAddr] {
        &self.mesh
    }

    /// What opens and closes a gateway's ports, on these addresses; it is to be run.
    #[must_use]
    pub fn ports(&self, addresses: Vec<IpAddr>) -> Ports {
        Ports::new(Arc::clone(&self.shared), self.commands(), addresses)
    }

    /// Where commands to the workers go.
    #[must_use]
    pub fn commands(&self) -> Vec<mpsc::UnboundedSender<Command>> {
        let commands = self.workers.iter();
        commands.map(|worker| worker.commands.clone()).collect()
    }

    /// Tells the workers to take no new connections, and to end after the live ones or at the deadline.
    pub fn drain(&self, deadline: Duration) {
        for worker in &self.workers {
            let _ = worker.commands.send(Command::Drain(deadline));
        }
    }

    /// Whether all workers have ended.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let mut workers = self.workers.iter();
        workers.all(|worker| worker.thread.is_finished())
    }

    /// Drains, and waits for the end. Blocks the calling thread.
    pub fn stop(self, deadline: Duration) {
        self.drain(deadline);
        for worker in self.workers {
            drop(worker.commands);
            if worker.thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
    }
}

/// What each worker holds towards endpoints.
pub async fn pools(workers: &[mpsc::UnboundedSender<Command>]) -> Vec<Snapshot> {
    let mut answers = Vec::new();
    for worker in workers {
        let (reply, answer) = oneshot::channel();
        if worker.send(Command::Snapshot(reply)).is_ok() {
            answers.push(answer);
        }
    }
    let mut all = Vec::new();
    for answer in answers {
        if let Ok(Ok(one)) = tokio::time::timeout(SNAPSHOT_WAIT, answer).await {
            all.push(one);
        }
    }
    all
}

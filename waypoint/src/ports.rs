//! Opens and closes the ports of a gateway as its configuration says.
//!
//! Sockets are made on the control side, one for each worker, so that a port that cannot be had is known once and
//! told once; it is tried again from time to time, and the other ports are not concerned.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};

use crate::shared::Shared;
use crate::sockets;
use crate::worker::Command;

/// How often a port is tried again that could not be opened.
const AGAIN: Duration = Duration::from_secs(2);

/// The ports that are open, and those that should be.
pub struct Ports {
    shared: Arc<Shared>,
    workers: Vec<mpsc::UnboundedSender<Command>>,
    addresses: Vec<IpAddr>,
    /// By port, why it is not open; `None` if it is.
    held: BTreeMap<u16, Option<String>>,
    shown: watch::Sender<Arc<BTreeMap<u16, Option<String>>>>,
}

impl Ports {
    /// No ports yet; they will be opened on these addresses.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        workers: Vec<mpsc::UnboundedSender<Command>>,
        addresses: Vec<IpAddr>,
    ) -> Self {
        Self {
            shared,
            workers,
            addresses,
            held: BTreeMap::new(),
            shown: watch::Sender::default(),
        }
    }

    /// Follows the ports, and why one is not open.
    #[must_use]
    pub fn shown(&self) -> watch::Receiver<Arc<BTreeMap<u16, Option<String>>>> {
        self.shown.subscribe()
    }

    /// Brings them in line with the table of the moment, and again whenever `changed` moves, until it is gone.
    pub async fn run(mut self, mut changed: watch::Receiver<u64>) {
        loop {
            self.settle();
            let failing = self.held.values().any(Option::is_some);
            tokio::select! {
                moved = changed.changed() => if moved.is_err() { return },
                () = tokio::time::sleep(AGAIN), if failing => {}
            }
        }
    }

    /// Opens and closes what the table of the moment asks for.
    pub fn settle(&mut self) {
        let table = self.shared.tables.load();
        let gone = |port: &u16| !table.sockets.contains_key(port);
        let closed: Vec<u16> = self.held.keys().copied().filter(gone).collect();
        for port in closed {
            if matches!(self.held.remove(&port), Some(None)) {
                tracing::info!(port, "port closed");
                self.tell(|| Command::Close(port));
            }
        }
        for port in table.sockets.keys().copied() {
            if !matches!(self.held.get(&port), Some(None)) {
                self.open(port);
            }
        }
        let failed = self.held.values().filter(|problem| problem.is_some());
        let failed = i64::try_from(failed.count()).unwrap_or(i64::MAX);
        self.shared.metrics.ports_failed.set(failed);
        self.shown.send_replace(Arc::new(self.held.clone()));
    }

    fn open(&mut self, port: u16) {
        let problem = match self.listen(port) {
            Ok(()) => {
                tracing::info!(port, "port opened");
                None
            }
            Err(error) => {
                let text = error.to_string();
                if !self.held.contains_key(&port) {
                    tracing::error!(%error, port, "the port cannot be opened; it is tried again");
                }
                Some(text)
            }
        };
        self.held.insert(port, problem);
    }

    fn listen(&self, port: u16) -> io::Result<()> {
        let addresses = self.addresses.iter();
        let addresses = addresses.map(|address| SocketAddr::new(*address, port));
        let sets = sockets::listen_all(addresses, self.workers.len())?;
        for (worker, listeners) in self.workers.iter().zip(sets) {
            // A worker that is gone takes the process with it.
            let _ = worker.send(Command::Open(port, listeners));
        }
        Ok(())
    }

    fn tell(&self, command: impl Fn() -> Command) {
        for worker in &self.workers {
            let _ = worker.send(command());
        }
    }
}

//! The pool's book-keeping: plain state without I/O.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use tokio::sync::oneshot;

use super::connection::{Connection, Lease};
use super::{PoolConfig, PoolConnection, PoolKey, PoolLevels};
use crate::TunnelError;
use crate::error::SharedResult;

/// Answers a stream that waits for a place.
pub(super) type Waiter = oneshot::Sender<SharedResult<Lease>>;

/// Whether the caller has to start a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grow {
    Dial,
    No,
}

pub(super) struct Inner {
    pub(super) config: PoolConfig,
    entries: HashMap<PoolKey, Entry>,
}

/// Everything about one key.
#[derive(Default)]
struct Entry {
    connections: Vec<Rc<Connection>>,
    dials: usize,
    waiters: VecDeque<Waiter>,
}

impl Entry {
    fn least_loaded(&self) -> Option<&Rc<Connection>> {
        self.connections
            .iter()
            .filter(|connection| connection.has_room())
            .min_by_key(|connection| connection.streams())
    }

    fn is_unused(&self) -> bool {
        self.connections.is_empty() && self.dials == 0 && self.waiters.is_empty()
    }

    /// Dials that the waiters need beyond those under way.
    fn missing_dials(&self, config: &PoolConfig) -> usize {
        let needed = self
            .waiters
            .len()
            .div_ceil(config.streams_per_connection.max(1));
        let open = self.connections.len() + self.dials;
        needed
            .saturating_sub(self.dials)
            .min(config.connections_per_key.saturating_sub(open))
    }
}

impl Inner {
    pub(super) fn new(config: PoolConfig) -> Self {
        Self {
            config,
            entries: HashMap::new(),
        }
    }

    /// A place on a connection that is there.
    pub(super) fn lease(&self, key: &PoolKey) -> Option<Lease> {
        let entry = self.entries.get(key)?;
        loop {
            let connection = entry.least_loaded()?;
            if connection.takes_streams() {
                return Some(Lease::new(connection));
            }
            connection.retire();
        }
    }

    /// Queues a stream for the next connection.
    pub(super) fn wait(
        &mut self,
        key: &PoolKey,
    ) -> Result<(oneshot::Receiver<SharedResult<Lease>>, Grow), TunnelError> {
        if !self.entries.contains_key(key) {
            self.drain_older_epochs(key);
        }
        let entry = self.entries.entry(key.clone()).or_default();
        let (answer, waiting) = oneshot::channel();
        entry.waiters.retain(|waiter| !waiter.is_closed());
        entry.waiters.push_back(answer);
        if entry.missing_dials(&self.config) > 0 {
            entry.dials += 1;
            return Ok((waiting, Grow::Dial));
        }
        if entry.dials == 0 {
            entry.waiters.pop_back();
            let limit = self.config.connections_per_key;
            return Err(TunnelError::TooManyConnections { limit });
        }
        Ok((waiting, Grow::No))
    }

    /// A connection is there: takes it in, serves the waiters, and says how many more dials
    /// to start.
    pub(super) fn dialed(&mut self, key: &PoolKey, connection: &Rc<Connection>) -> usize {
        let config = &self.config;
        let entry = self.entries.entry(key.clone()).or_default();
        entry.dials = entry.dials.saturating_sub(1);
        entry.connections.push(Rc::clone(connection));
        while connection.has_room() {
            let Some(waiter) = entry.waiters.pop_front() else {
                break;
            };
            // A waiter that is gone gives its place back at once.
            let _ = waiter.send(Ok(Lease::new(connection)));
        }
        entry.waiters.retain(|waiter| !waiter.is_closed());
        let more = entry.missing_dials(config);
        entry.dials += more;
        more
    }

    /// A dial failed: the waiters to tell. While another dial is under way they wait for it.
    pub(super) fn dial_failed(&mut self, key: &PoolKey) -> Vec<Waiter> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Vec::new();
        };
        entry.dials = entry.dials.saturating_sub(1);
        if entry.dials > 0 {
            return Vec::new();
        }
        let waiters = entry.waiters.drain(..).collect();
        self.forget_unused(key);
        waiters
    }

    pub(super) fn remove(&mut self, key: &PoolKey, gone: &Rc<Connection>) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry
                .connections
                .retain(|connection| !Rc::ptr_eq(connection, gone));
        }
        self.forget_unused(key);
    }

    fn forget_unused(&mut self, key: &PoolKey) {
        if self.entries.get(key).is_some_and(Entry::is_unused) {
            self.entries.remove(key);
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&PoolKey) -> bool) {
        for (_, entry) in self.entries.iter().filter(|(key, _)| !keep(key)) {
            entry.connections.iter().for_each(|c| c.retire());
        }
    }

    /// A certificate was renewed: what was made with an older one takes no new streams.
    fn drain_older_epochs(&self, key: &PoolKey) {
        let older = self.entries.iter().filter(|(other, _)| {
            other.certificate_epoch < key.certificate_epoch && other.source == key.source
        });
        for (_, entry) in older {
            entry.connections.iter().for_each(|c| c.retire());
        }
    }

    pub(super) fn levels(&self) -> PoolLevels {
        let mut levels = PoolLevels::default();
        for entry in self.entries.values() {
            levels.dialing += entry.dials as u64;
            let waits = |waiter: &&Waiter| !waiter.is_closed();
            levels.waiting += entry.waiters.iter().filter(waits).count() as u64;
            for connection in &entry.connections {
                let streams = connection.streams() as u64;
                levels.streams += streams;
                if !connection.takes_streams() {
                    levels.draining += 1;
                    continue;
                }
                levels.capacity += connection.limit() as u64;
                match streams {
                    0 => levels.idle += 1,
                    _ => levels.active += 1,
                }
            }
        }
        levels
    }

    pub(super) fn snapshot(&self) -> Vec<PoolConnection> {
        let connections = self.entries.iter().flat_map(|(key, entry)| {
            let describe = move |connection: &Rc<Connection>| connection.describe(key);
            entry.connections.iter().map(describe)
        });
        connections.collect()
    }
}

impl Drop for Inner {
    /// Nobody can open streams any more: the connections end with those they have.
    fn drop(&mut self) {
        self.retain(|_| false);
    }
}

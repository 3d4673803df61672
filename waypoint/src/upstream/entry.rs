//! The connections of a worker to one endpoint.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use karst_identity::CertificateEpoch;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::http1::Http1;
use super::http2::{Http2, Waiter};
use crate::balance::{Cluster, Endpoint};

/// What must be equal for two requests to share connections.
///
/// The backend is part of it because limits are those of a backend, the epoch because a connection proves
/// the identity of the certificate it was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) cluster: u64,
    pub(super) endpoint: u64,
    pub(super) destination: std::net::SocketAddr,
    /// TLS with the application.
    pub(super) tls: Option<u64>,
    /// Of our certificate, where the endpoint is reached by the tunnel.
    pub(super) epoch: Option<CertificateEpoch>,
}

/// Connections to one endpoint, and the requests that wait for one.
pub(super) struct Entry {
    key: Key,
    cluster: Arc<Cluster>,
    endpoint: Weak<Endpoint>,
    host: String,
    idle_timeout: Cell<Duration>,
    /// Unused ones, the last used at the end.
    idle: RefCell<Vec<Http1>>,
    /// Requests that wait for one of them.
    waiting: Cell<usize>,
    freed: Notify,
    pub(super) http2: RefCell<Vec<Rc<Http2>>>,
    pub(super) waiters: RefCell<VecDeque<Waiter>>,
    pub(super) dialing: Cell<usize>,
    /// Dials that have room for their connection and wait for the application.
    pub(super) connecting: Cell<usize>,
    /// The application was offered HTTP/2 by ALPN and chose HTTP/1.1.
    pub(super) declines_http2: Cell<bool>,
    last_used: Cell<Instant>,
    retired: Cell<bool>,
}

impl Entry {
    pub(super) fn new(key: Key, cluster: &Arc<Cluster>, endpoint: &Arc<Endpoint>) -> Self {
        let settings = cluster.settings();
        let host = if settings.hostname.is_empty() {
            key.destination.to_string()
        } else {
            settings.hostname.to_string()
        };
        Self {
            key,
            cluster: Arc::clone(cluster),
            endpoint: Arc::downgrade(endpoint),
            host,
            idle_timeout: Cell::new(settings.limits.idle_timeout),
            idle: RefCell::default(),
            waiting: Cell::new(0),
            freed: Notify::new(),
            http2: RefCell::default(),
            waiters: RefCell::default(),
            dialing: Cell::new(0),
            connecting: Cell::new(0),
            declines_http2: Cell::new(false),
            last_used: Cell::new(Instant::now()),
            retired: Cell::new(false),
        }
    }

    pub(super) fn key(&self) -> &Key {
        &self.key
    }

    pub(super) fn cluster(&self) -> &Arc<Cluster> {
        &self.cluster
    }

    /// For requests that name no host.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    pub(super) fn used(&self) {
        self.last_used.set(Instant::now());
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The connection used last that would take a request now.
    pub(super) fn take(&self) -> Option<Http1> {
        let now = Instant::now();
        let mut idle = self.idle.borrow_mut();
        while let Some(connection) = idle.pop() {
            if connection.is_ready() && connection.idle_for(now) < self.idle_timeout.get() {
                return Some(connection);
            }
        }
        None
    }

    /// The connection that has been unused longest.
    pub(super) fn oldest(&self) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        (!idle.is_empty()).then(|| idle.remove(0))
    }

    /// Keeps a connection for the next request, unless another one needs its place more.
    pub(super) fn put(&self, connection: Http1) {
        if self.retired.get() {
            return;
        }
        let here = self.waiting.get() > 0;
        if !here && self.cluster.waiting_for_release() > 0 {
            return;
        }
        self.idle.borrow_mut().push(connection);
        if here {
            self.freed.notify_one();
        }
    }

    /// Counts a request that waits for a connection to become free, while the guard lives.
    pub(super) fn wait(&self) -> WaitGuard<'_> {
        self.waiting.set(self.waiting.get() + 1);
        WaitGuard(self)
    }

    /// Waits for a connection that becomes free.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }

    /// Connections take no new requests; they end with those they have.
    pub(super) fn retire(&self) {
        self.retired.set(true);
        let idle = self.idle.take();
        let http2 = self.http2.take();
        drop(idle);
        for connection in http2 {
            connection.retire();
        }
    }

    /// Closes what has been unused for too long or is in others' way. Called about once a second.
    pub(super) fn sweep(&self, now: Instant) {
        self.idle_timeout
            .set(self.cluster.settings().limits.idle_timeout);
        if self.endpoint.strong_count() == 0 {
            self.retire();
        }
        let in_the_way = self.waiting.get() == 0 && self.cluster.waiting_for_release() > 0;
        let timeout = self.idle_timeout.get();
        let keep = |connection: &Http1| {
            !in_the_way && connection.is_ready() && connection.idle_for(now) < timeout
        };
        let kept = self
            .idle
            .take()
            .into_iter()
            .filter(|connection| keep(connection))
            .collect();
        // Nothing has run meanwhile: closing a connection only wakes its task.
        self.idle.replace(kept);
        self.http2.borrow_mut().retain(|connection| {
            if connection
                .idle_for(now)
                .is_some_and(|idle| in_the_way || idle >= timeout)
            {
                connection.retire();
            }
            !connection.is_retired()
        });
    }

    /// Whether nothing is lost by forgetting the entry.
    pub(super) fn is_unused(&self, now: Instant) -> bool {
        self.idle.borrow().is_empty()
            && self.http2.borrow().is_empty()
            && self.dialing.get() == 0
            && now.saturating_duration_since(self.last_used.get()) >= self.idle_timeout.get()
    }

    /// Connections that are unused.
    pub(super) fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}

/// Counts a request that waits.
pub(super) struct WaitGuard<'a>(&'a Entry);

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get().saturating_sub(1));
    }
}

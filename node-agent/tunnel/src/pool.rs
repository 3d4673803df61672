//! Tunnel connections of one worker towards peers, shared by the streams of its applications.

mod connection;
mod entries;
mod first;

pub(crate) use connection::Lease;
pub use first::{Early, FirstBytes};

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::uri::Authority;
use karst_identity::{CertificateEpoch, SpiffeId, WorkloadCertificate};
use tokio::net::TcpStream;

use crate::{HboneStream, Observer, TlsInfo, TunnelError, settings};
use entries::{Grow, Inner};

/// What must be equal for two streams to share a connection.
///
/// The workload uid is part of it because a pod's address is given to another pod later, and
/// the epoch because a connection proves the identity of the certificate it was made with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The identity we show.
    pub source: SpiffeId,
    /// The epoch of its certificate.
    pub certificate_epoch: CertificateEpoch,
    /// The destination workload.
    pub destination_uid: Arc<str>,
    /// The identity the peer must prove.
    pub destination: SpiffeId,
    /// The peer's tunnel listener.
    pub address: SocketAddr,
}

/// Makes TCP connections, in whatever network namespace the caller needs.
pub trait Dialer: 'static {
    /// Connects. The pool limits the time.
    fn dial(&self, address: SocketAddr) -> impl Future<Output = io::Result<TcpStream>>;
}

/// A CONNECT to send.
#[derive(Clone, Debug)]
pub struct OutboundRequest {
    /// `:authority`: where the peer shall connect.
    pub authority: Authority,
    /// `baggage`, `forwarded`, `traceparent`.
    pub headers: HeaderMap,
}

/// Limits of a pool; the default is production's.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Streams on a connection at most; the peer's limit may be lower.
    pub streams_per_connection: usize,
    /// Connections of one key at most.
    pub connections_per_key: usize,
    /// Time a connection without streams is kept.
    pub idle: Duration,
    /// Time for the TCP connect.
    pub dial: Duration,
    /// Time for the TLS handshake.
    pub handshake: Duration,
    /// Time for the HTTP/2 SETTINGS of the peer.
    pub preface: Duration,
    /// Time for the answer to a CONNECT.
    pub response: Duration,
    /// Time between two PINGs on a silent connection.
    pub ping_interval: Duration,
    /// Time for the answer to a PING.
    pub ping_timeout: Duration,
    /// Told of handshakes.
    pub handshakes: Observer,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            streams_per_connection: settings::CLIENT_STREAMS,
            // 25,600 streams of one pod to one other: beyond it, streams wait for a place.
            connections_per_key: 256,
            idle: settings::IDLE_TIMEOUT,
            dial: settings::DIAL_TIMEOUT,
            handshake: settings::HANDSHAKE_TIMEOUT,
            preface: settings::PREFACE_TIMEOUT,
            response: settings::RESPONSE_TIMEOUT,
            ping_interval: settings::PING_INTERVAL,
            ping_timeout: settings::PING_TIMEOUT,
            handshakes: Observer::default(),
        }
    }
}

/// One connection of the pool, for listings.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PoolConnection {
    /// The identity we show.
    pub source: SpiffeId,
    /// The identity the peer proved.
    pub destination: SpiffeId,
    /// The destination workload.
    pub destination_uid: Arc<str>,
    /// The peer's tunnel listener.
    pub address: SocketAddr,
    /// Epoch of our certificate.
    pub certificate_epoch: CertificateEpoch,
    /// Streams open now.
    pub streams: usize,
    /// Streams it may carry at once.
    pub stream_limit: usize,
    /// Streams it has carried in all.
    pub streams_total: u64,
    /// Whether it takes no new streams and ends with the last one.
    pub draining: bool,
    /// What was negotiated.
    pub tls: Arc<TlsInfo>,
}

/// How full pools are. Values of several pools add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolLevels {
    /// Connections that carry streams.
    pub active: u64,
    /// Connections without streams.
    pub idle: u64,
    /// Connections that take no new streams.
    pub draining: u64,
    /// Connections that are being made.
    pub dialing: u64,
    /// Streams open.
    pub streams: u64,
    /// Streams that the connections which take new ones may carry at once.
    pub capacity: u64,
    /// Streams that wait for a place.
    pub waiting: u64,
}

impl PoolLevels {
    /// Adds those of another pool.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            active: self.active + other.active,
            idle: self.idle + other.idle,
            draining: self.draining + other.draining,
            dialing: self.dialing + other.dialing,
            streams: self.streams + other.streams,
            capacity: self.capacity + other.capacity,
            waiting: self.waiting + other.waiting,
        }
    }
}

/// The pool of one worker thread. Cloning shares it.
///
/// Connections to one key share dials: while one is under way, streams wait for it as long as
/// it will have a place for them. Nothing is locked or borrowed while something is awaited.
#[derive(Clone)]
pub struct Pool {
    inner: Rc<RefCell<Inner>>,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        Self {
            inner: Rc::new(RefCell::new(Inner::new(config))),
        }
    }

    /// Opens a stream to the destination of `key`, on a connection of the pool or a new one.
    ///
    /// `cert` must be the certificate of the source identity and epoch in `key`. Must run
    /// inside a `LocalSet`. A stream that the peer refused unseen, or whose pooled connection
    /// turned out to be dead, is tried once more on another connection; nothing of the
    /// application has been sent at that point.
    ///
    /// # Errors
    /// Dial, handshake, identity and protocol failures, and a refusal by the peer.
    pub async fn connect<D: Dialer>(
        &self,
        key: PoolKey,
        dial: &Rc<D>,
        cert: &Arc<WorkloadCertificate>,
        request: OutboundRequest,
    ) -> Result<HboneStream, TunnelError> {
        let mut first = FirstBytes::none();
        self.connect_with(key, dial, cert, request, &mut first)
            .await
    }

    /// As [`Self::connect`], and sends the application's first bytes without waiting for the answer.
    ///
    /// # Errors
    /// As [`Self::connect`]. Unless `first` is [spent](FirstBytes::is_spent) then, no application has
    /// seen any of it, and it can be used for another destination.
    pub async fn connect_with<D: Dialer>(
        &self,
        key: PoolKey,
        dial: &Rc<D>,
        cert: &Arc<WorkloadCertificate>,
        request: OutboundRequest,
        first: &mut FirstBytes<'_>,
    ) -> Result<HboneStream, TunnelError> {
        if cert.id() != &key.source || cert.epoch() != key.certificate_epoch {
            return Err(TunnelError::NoCertificate {
                expected: key.source,
            });
        }
        // Boxed: what opening needs is not to stay with the relay that follows in the same task.
        Box::pin(self.open(&key, dial, cert, &request, first)).await
    }

    async fn open<D: Dialer>(
        &self,
        key: &PoolKey,
        dial: &Rc<D>,
        cert: &Arc<WorkloadCertificate>,
        request: &OutboundRequest,
        first: &mut FirstBytes<'_>,
    ) -> Result<HboneStream, TunnelError> {
        let response = self.inner.borrow().config.response;
        let mut retried = false;
        loop {
            let lease = self.acquire(key, dial, cert).await?;
            let reused = lease.is_reused();
            let failed = match lease.open(request, response, first).await {
                Ok(stream) => return Ok(stream),
                Err(failed) => failed,
            };
            first.failed(&failed.error);
            if retried || first.is_spent() || !failed.is_worth_another(reused) {
                return Err(failed.error);
            }
            failed.lease.retire();
            retried = true;
        }
    }

    /// A place on the least loaded connection of `key`.
    async fn acquire<D: Dialer>(
        &self,
        key: &PoolKey,
        dial: &Rc<D>,
        cert: &Arc<WorkloadCertificate>,
    ) -> Result<Lease, TunnelError> {
        let waiting = {
            let mut inner = self.inner.borrow_mut();
            if let Some(lease) = inner.lease(key) {
                return Ok(lease);
            }
            let (waiting, decision) = inner.wait(key)?;
            if decision == Grow::Dial {
                self.spawn_dial(key.clone(), Rc::clone(dial), Arc::clone(cert));
            }
            waiting
        };
        match waiting.await {
            Ok(result) => result.map_err(|error| TunnelError::clone(&error)),
            Err(_) => Err(TunnelError::PoolClosed),
        }
    }

    /// Dials in a task of its own: the stream that caused it may be given up meanwhile while
    /// others wait for the same connection.
    fn spawn_dial<D: Dialer>(&self, key: PoolKey, dial: Rc<D>, cert: Arc<WorkloadCertificate>) {
        let pool = Rc::downgrade(&self.inner);
        tokio::task::spawn_local(async move {
            let Some(config) = pool.upgrade().map(|inner| inner.borrow().config.clone()) else {
                return;
            };
            // Boxed: a handshake's state is several KiB that the connection shall not keep.
            let dialed = Box::pin(connection::establish(&config, &key, &*dial, &cert)).await;
            let Some(inner) = pool.upgrade() else {
                return;
            };
            let (connection, driver) = match dialed {
                Ok(established) => established,
                Err(error) => {
                    let answers = inner.borrow_mut().dial_failed(&key);
                    let error = Arc::new(error);
                    for waiter in answers {
                        // A waiter that is gone needs no answer.
                        let _ = waiter.send(Err(Arc::clone(&error)));
                    }
                    return;
                }
            };
            let more = inner.borrow_mut().dialed(&key, &connection);
            for _ in 0..more {
                Self {
                    inner: Rc::clone(&inner),
                }
                .spawn_dial(key.clone(), Rc::clone(&dial), Arc::clone(&cert));
            }
            drop(inner);
            let ended = driver.run(&connection).await;
            connection.retire();
            if let Err(error) = ended {
                tracing::debug!(
                    dst.identity = %key.destination,
                    dst.addr = %key.address,
                    reason = error.reason(),
                    %error,
                    "tunnel connection failed"
                );
            }
            if let Some(inner) = pool.upgrade() {
                inner.borrow_mut().remove(&key, &connection);
            }
        });
    }

    /// Drains the connections for which `keep` says no: they take no new streams and end with
    /// their last one.
    pub fn retain(&self, keep: impl Fn(&PoolKey) -> bool) {
        self.inner.borrow_mut().retain(keep);
    }

    /// How full it is.
    #[must_use]
    pub fn levels(&self) -> PoolLevels {
        self.inner.borrow().levels()
    }

    /// All connections.
    #[must_use]
    pub fn snapshot(&self) -> Vec<PoolConnection> {
        self.inner.borrow().snapshot()
    }
}

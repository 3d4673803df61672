//! Connections of one worker to applications, and what is sent on them.
//!
//! Each worker thread has an [`Upstream`] with connections of its own: HTTP/1.1 ones that are kept for the
//! next request, the last used first, and HTTP/2 ones that are shared. Below is the tunnel or plain TCP, in it
//! TLS with the application where a policy asks for it. The limits of a backend hold for all workers
//! together.
//!
//! When a backend has as many connections as it may, a request waits: for a connection to the same endpoint
//! to become free, or for any other of the backend to end. Unused ones in its way are closed: at once on
//! its own worker, within a second on others.
//!
//! Start reading at [`Upstream::send`].

mod body;
mod dial;
mod entry;
mod error;
mod http1;
mod http2;
mod metrics;
mod request;
mod stream;
mod tls;
mod transport;

pub use body::UpstreamBody;
pub use error::UpstreamError;
pub use metrics::{Metrics, UpstreamStats};
pub use stream::UpstreamStream;
pub use tls::BackendTlsConfig;

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashMap;
use http::{Request, Response, Version};
use karst_api::waypoint::Protocol;
use karst_identity::{CertificateEpoch, SpiffeId, WorkloadCertificate};
use karst_tunnel::headers::{Baggage, TRACEPARENT, TraceParent};
use karst_tunnel::pool::{Pool, PoolConfig, PoolConnection};
use karst_tunnel::settings::HBONE_PORT;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep};

use crate::balance::{Picked, Via};
use crate::body::Body;
use crate::client::Client;
use dial::{Target, Tcp};
use entry::{Entry, Key};
use request::RequestBody;
use tls::Offer;

/// Time between two looks at connections that nobody uses.
const SWEEP: Duration = Duration::from_secs(1);

/// Gives our certificate of the moment; `None` while there is none.
pub type Identity = Rc<dyn Fn() -> Option<Arc<WorkloadCertificate>>>;

/// What connections of a worker have in common.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Limits of tunnel connections.
    pub tunnel: PoolConfig,
    /// Port of the tunnel at every endpoint.
    pub tunnel_port: u16,
    /// What we say about ourselves to the other end of a tunnel.
    pub baggage: Option<Baggage>,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            tunnel: PoolConfig::default(),
            tunnel_port: HBONE_PORT,
            baggage: None,
        }
    }
}

/// The connections of one worker thread to endpoints.
pub struct Upstream {
    identity: Identity,
    settings: UpstreamSettings,
    tunnel: Pool,
    dialer: Rc<Tcp>,
    entries: RefCell<HashMap<Key, Rc<Entry>>>,
    metrics: Arc<Metrics>,
}

/// How a request is spoken.
enum Spoken {
    Http1,
    Http2(Offer),
}

impl Upstream {
    /// Without connections. Must run inside a `LocalSet`.
    #[must_use]
    pub fn new(identity: Identity, settings: UpstreamSettings) -> Rc<Self> {
        let this = Rc::new(Self {
            identity,
            tunnel: Pool::new(settings.tunnel.clone()),
            settings,
            dialer: Rc::new(Tcp),
            entries: RefCell::default(),
            metrics: Arc::default(),
        });
        spawn_local(sweep(Rc::downgrade(&this)));
        this
    }

    /// Sends a request to the endpoint and waits for the head of the response; there is no limit to that
    /// time here. A response that comes before the request's body has ended is passed on. Responses with
    /// status 101 can be taken over by `hyper::upgrade::on`.
    ///
    /// `version` is that of the incoming request and is spoken where the backend does not say that it is
    /// HTTP/2, gRPC or WebSocket. A gateway, whose clients know nothing of its backends, gives HTTP/1.1.
    ///
    /// # Errors
    /// Why there is no response, and whether it is safe to try again.
    pub async fn send(
        self: &Rc<Self>,
        picked: &Picked,
        version: Version,
        request: Request<Body>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let settings = picked.cluster().settings();
        let mut target = self.target(picked, settings.tls.clone(), None)?;
        if target.certificate.is_some() {
            let trace = request.headers().get(TRACEPARENT);
            target.trace = trace.and_then(|value| TraceParent::parse(value.as_bytes()));
        }
        let entry = self.entry(picked, &target);
        let (head, body) = request.into_parts();
        let (body, watch) = RequestBody::new(body);
        let request = Request::from_parts(head, body);
        match spoken(settings.protocol, version) {
            Spoken::Http1 => {
                self.send_http1(&entry, &target, picked, request, &watch)
                    .await
            }
            Spoken::Http2(offer) => {
                self.send_http2(&entry, &target, picked, request, &watch, offer)
                    .await
            }
        }
    }

    /// Connects to the endpoint for bytes that are passed on; `client` is named to the other end of a
    /// tunnel.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect(
        self: &Rc<Self>,
        picked: &Picked,
        client: &Client,
    ) -> Result<UpstreamStream, UpstreamError> {
        let settings = picked.cluster().settings();
        let target = self.target(picked, settings.tls.clone(), Some(client))?;
        let entry = self.entry(picked, &target);
        let limits = settings.limits;
        let deadline = Instant::now() + limits.connect_timeout;
        let connect = async {
            let slot = self.pending_slot(&entry, deadline).await?;
            self.dial(&target, Offer::Configured, slot).await
        };
        let dialed = http1::in_time(deadline, &limits, Box::pin(connect)).await?;
        Ok(UpstreamStream::new(dialed.connection))
    }

    /// Connections that were made with another certificate than that of the moment take no new requests.
    /// This happens by itself within a second.
    pub fn certificate_changed(&self) {
        let now = (self.identity)().map(|certificate| certificate.epoch());
        let old = |epoch: Option<CertificateEpoch>| epoch.is_some() && epoch != now;
        let entries = self.entries.borrow();
        let entries: Vec<_> = entries
            .values()
            .filter(|entry| old(entry.key().epoch))
            .collect();
        for entry in entries {
            entry.retire();
        }
        self.tunnel.retain(|key| Some(key.certificate_epoch) == now);
    }

    /// The counts of this worker, for another thread to read.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Our own identity; `None` while there is no certificate.
    #[must_use]
    pub fn own_identity(&self) -> Option<SpiffeId> {
        (self.identity)().map(|certificate| certificate.id().clone())
    }

    /// Connections of HTTP/1.1 that are unused.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.entries
            .borrow()
            .values()
            .map(|entry| entry.idle())
            .sum()
    }

    /// The tunnel connections, for listings.
    #[must_use]
    pub fn tunnels(&self) -> Vec<PoolConnection> {
        self.tunnel.snapshot()
    }

    fn target(
        &self,
        picked: &Picked,
        tls: Option<Arc<BackendTlsConfig>>,
        client: Option<&Client>,
    ) -> Result<Target, UpstreamError> {
        let certificate = match picked.endpoint().via() {
            Via::Plain => None,
            Via::Hbone { .. } => Some((self.identity)().ok_or(UpstreamError::NoCertificate)?),
        };
        Ok(Target {
            endpoint: Arc::clone(picked.endpoint()),
            destination: picked.destination(),
            certificate,
            tls,
            client: client.map(|client| client.address),
            trace: client.and_then(|client| client.trace),
        })
    }

    fn entry(&self, picked: &Picked, target: &Target) -> Rc<Entry> {
        let key = Key {
            cluster: picked.cluster().id(),
            endpoint: target.endpoint.serial(),
            destination: target.destination,
            tls: target.tls.as_ref().map(|tls| tls.id()),
            epoch: target
                .certificate
                .as_ref()
                .map(|certificate| certificate.epoch()),
        };
        let mut entries = self.entries.borrow_mut();
        let entry = entries
            .entry(key)
            .or_insert_with(|| Rc::new(Entry::new(key, picked.cluster(), picked.endpoint())));
        entry.used();
        Rc::clone(entry)
    }

    fn sweep(&self) {
        let epoch = (self.identity)().map(|certificate| certificate.epoch());
        let now = Instant::now();
        let mut outdated = false;
        // A copy: what is closed may run code that looks for an entry.
        let entries: Vec<Rc<Entry>> = self.entries.borrow().values().cloned().collect();
        for entry in &entries {
            outdated |= entry.key().epoch.is_some() && entry.key().epoch != epoch;
            entry.sweep(now);
        }
        drop(entries);
        if outdated && epoch.is_some() {
            self.certificate_changed();
        }
        let keep = |entry: &Rc<Entry>| {
            !(entry.is_unused(now) || entry.is_retired() && Rc::strong_count(entry) == 1)
        };
        self.entries.borrow_mut().retain(|_, entry| keep(entry));
    }
}

/// Which version of HTTP an application is spoken to with.
fn spoken(protocol: Protocol, version: Version) -> Spoken {
    match protocol {
        Protocol::Http2 | Protocol::Grpc => Spoken::Http2(Offer::Http2),
        Protocol::Websocket => Spoken::Http1,
        Protocol::Undeclared | Protocol::Http1 | Protocol::Tcp | Protocol::Tls => match version {
            Version::HTTP_2 => Spoken::Http2(Offer::Either),
            _ => Spoken::Http1,
        },
    }
}

/// Closes what nobody uses, as long as the connections have an owner.
async fn sweep(upstream: Weak<Upstream>) {
    loop {
        sleep(SWEEP).await;
        match upstream.upgrade() {
            Some(upstream) => upstream.sweep(),
            None => return,
        }
    }
}

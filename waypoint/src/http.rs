//! The way of a request: from a client's connection, by the routes of the moment, to an endpoint and back.
//!
//! [`serve`] takes one connection of any kind of stream. Its bytes are looked at on their way to hyper ([`guard`],
//! [`framing`]), each request is brought into one normal form ([`normal`], [`path`]), is routed and changed
//! ([`service`]) if it may come at all ([`authenticate`], [`authorize`]), sent as often as its policy allows ([`forward`]), and recorded when its response has ended
//! ([`exchange`]). Bodies are streams throughout; [`limits`] says what is ever held of them.
//!
//! What a client sends twice or in a form that others might read otherwise is refused with 400. Answers of our
//! own carry the header `karst-reason`; to gRPC clients they are given as gRPC does.

mod authenticate;
mod authorize;
mod connection;
mod download;
mod exchange;
pub mod external;
pub mod forward;
pub mod framing;
mod frontend;
mod guard;
mod headers;
mod keeper;
pub mod limits;
mod messages;
mod mirror;
mod normal;
pub mod path;
mod refused;
mod reply;
mod service;
mod session;
mod upgrade;
pub mod upload;

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;

pub use connection::serve;
pub use limits::HttpLimits;
pub use reply::KARST_REASON;

use crate::access_log::{Destination, Reporter};
use crate::authn::Authenticator;
use crate::authz::recheck::Rechecks;
use crate::balance::Cluster;
use crate::filter::RequestScheme;
use crate::table::{ServiceFrontend, Tables, WorkloadFrontend};
use crate::telemetry::Recorder;
use crate::upstream::Upstream;
use session::Sessions;

/// Backends of which a worker remembers what records say of them.
const MAX_DESTINATIONS: usize = 4096;

/// What a connection is for. Which frontend that is, is looked up anew for every request.
#[derive(Clone)]
pub enum Entry {
    /// A port of a service of the mesh.
    Service(Arc<ServiceFrontend>),
    /// A workload, by the address and port that the client asked for.
    Workload(Arc<WorkloadFrontend>, SocketAddr),
    /// A port of a gateway.
    Gateway {
        /// The port.
        port: u16,
        /// What was agreed on below HTTP; `None` in clear.
        tls: Option<GatewayTls>,
    },
}

/// TLS of a client, ended by a listener of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayTls {
    /// Name of the listener that its SNI chose ([`crate::table::GatewayListener::name`]). Requests for hosts of
    /// other listeners are misdirected.
    pub listener: String,
    /// The name that the client asked for.
    pub server_name: Option<Arc<str>>,
}

impl Entry {
    fn reporter(&self) -> Reporter {
        match self {
            Self::Service(_) | Self::Workload(..) => Reporter::Waypoint,
            Self::Gateway { .. } => Reporter::Gateway,
        }
    }

    fn scheme(&self) -> RequestScheme {
        match self {
            Self::Gateway { tls: Some(_), .. } => RequestScheme::Https,
            _ => RequestScheme::Http,
        }
    }
}

/// What the connections of one worker have in common.
pub struct HttpServer {
    tables: Arc<Tables>,
    upstream: Rc<Upstream>,
    recorder: Rc<Recorder>,
    limits: HttpLimits,
    sessions: RefCell<Sessions>,
    destinations: RefCell<HashMap<u64, Option<Arc<Destination>>>>,
    rechecks: Rc<Rechecks>,
    authenticator: Authenticator,
    /// Mirrored requests under way.
    mirrors: Cell<usize>,
    /// Bytes of requests' bodies that are held back for checks.
    held: Rc<Cell<usize>>,
}

impl HttpServer {
    /// For one worker.
    #[must_use]
    pub fn new(
        tables: Arc<Tables>,
        upstream: Rc<Upstream>,
        recorder: Rc<Recorder>,
        limits: HttpLimits,
    ) -> Rc<Self> {
        Rc::new(Self {
            rechecks: Rechecks::new(Arc::clone(&tables)),
            tables,
            upstream,
            recorder,
            limits,
            sessions: RefCell::default(),
            authenticator: Authenticator::default(),
            destinations: RefCell::default(),
            mirrors: Cell::new(0),
            held: Rc::default(),
        })
    }

    /// What comes back to its decision when policies change; the worker runs it.
    #[must_use]
    pub fn rechecks(&self) -> &Rc<Rechecks> {
        &self.rechecks
    }

    /// What records say of a backend; `None` if it is not a service.
    pub(crate) fn destination(&self, cluster: &Cluster) -> Option<Arc<Destination>> {
        let mut known = self.destinations.borrow_mut();
        if let Some(destination) = known.get(&cluster.id()) {
            return destination.clone();
        }
        let settings = cluster.settings();
        let destination = (settings.port != 0).then(|| {
            Arc::new(Destination {
                namespace: Arc::clone(&settings.namespace),
                name: Arc::clone(&settings.service),
                hostname: Arc::clone(&settings.hostname),
                port: settings.port,
            })
        });
        // A backend that nothing is known of yet may become one of which something is.
        if destination.is_some() {
            if known.len() >= MAX_DESTINATIONS {
                known.clear();
            }
            known.insert(cluster.id(), destination.clone());
        }
        destination
    }
}

#[cfg(test)]
#[path = "http/tests.rs"]
mod tests;

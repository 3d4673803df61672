//! The configuration as a request sees it: compiled, immutable, swapped as a whole.
//!
//! A request loads the table once ([`Tables::load`]) and uses nothing else of the configuration. What changes
//! often and concerns no route, the endpoints of a backend, changes inside a [`Cluster`] that lives on from
//! table to table.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hashbrown::{Equivalent, HashMap};
use karst_api::waypoint::{Endpoint, ListenerProtocol, Protocol};
use karst_telemetry::settings::Reporting;
use tokio::sync::watch;

use crate::authn::Authentication;
use crate::authz::Authorization;
use crate::balance::Cluster;
use crate::filter::Filter;
use crate::route::{HttpRouter, L4Router};

/// Holds the table of the moment.
pub struct Tables {
    current: ArcSwap<Table>,
    generation: AtomicU64,
    changes: watch::Sender<()>,
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            current: ArcSwap::from_pointee(Table::default()),
            generation: AtomicU64::new(0),
            changes: watch::Sender::default(),
        }
    }
}

impl Tables {
    /// The table to serve a request with.
    #[must_use]
    pub fn load(&self) -> Arc<Table> {
        self.current.load_full()
    }

    /// Replaces it for requests that come from now on.
    pub fn store(&self, table: Table) {
        self.current.store(Arc::new(table));
        // Behind the table: who sees the new number gets the new table, or a newer one.
        self.generation.fetch_add(1, Ordering::Release);
        self.changes.send_replace(());
    }

    /// How many tables there have been. Asked before [`Self::load`], it tells later whether there is a newer one.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Tells of each new table.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }
}

/// Everything that is served.
#[derive(Default)]
pub struct Table {
    /// By virtual address and port.
    pub services: HashMap<SocketAddr, Arc<ServiceFrontend>>,
    /// By host name (lower case) and port.
    pub names: HashMap<(String, u16), Arc<ServiceFrontend>>,
    /// By address.
    pub workloads: HashMap<IpAddr, Arc<WorkloadFrontend>>,
    /// By port.
    pub sockets: HashMap<u16, Arc<SocketFrontend>>,
}

impl Table {
    /// The service of a host name and port.
    #[must_use]
    pub fn service(&self, hostname: &str, port: u16) -> Option<&Arc<ServiceFrontend>> {
        self.names.get(&ServiceName(hostname, port))
    }
}

/// A key of [`Table::names`] that is not copied together for each request.
struct ServiceName<'a>(&'a str, u16);

impl Hash for ServiceName<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // As `(String, u16)` does it.
        self.0.hash(state);
        self.1.hash(state);
    }
}

impl Equivalent<(String, u16)> for ServiceName<'_> {
    fn equivalent(&self, key: &(String, u16)) -> bool {
        self.0 == key.0 && self.1 == key.1
    }
}

/// A port of a service of the mesh.
pub struct ServiceFrontend {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Its fully qualified name.
    pub hostname: String,
    /// The port.
    pub port: u16,
    /// What is spoken, as far as declared.
    pub protocol: Protocol,
    /// The service itself.
    pub cluster: Arc<Cluster>,
    /// Routes for clients of one namespace.
    pub consumer_routes: HashMap<String, Routes>,
    /// Routes for all others.
    pub producer_routes: Routes,
    /// Who may use it.
    pub authorization: Authorization,
    /// Whose tokens count.
    pub authentication: Authentication,
    /// What is reported besides metrics; `None` for the default.
    pub reporting: Option<Arc<Reporting>>,
}

impl ServiceFrontend {
    /// The routes for a client.
    #[must_use]
    pub fn routes(&self, client_namespace: Option<&str>) -> &Routes {
        client_namespace
            .and_then(|namespace| self.consumer_routes.get(namespace))
            .unwrap_or(&self.producer_routes)
    }
}

/// Routes attached to something.
#[derive(Default)]
pub enum Routes {
    /// None: what comes goes to the service itself.
    #[default]
    None,
    /// HTTPRoutes or GRPCRoutes. A request that nothing matches is answered with 404.
    Http(Arc<HttpRouter>),
    /// TLSRoutes or TCPRoutes.
    L4(Arc<L4Router>),
}

/// A workload that is reached by its own address.
pub struct WorkloadFrontend {
    /// How to reach it; its port is the one asked for.
    pub endpoint: Endpoint,
    /// Declared protocols.
    pub ports: HashMap<u16, Protocol>,
    /// Clusters of one endpoint each, by port, made when first asked for.
    pub cluster: Arc<Cluster>,
    /// Who may reach it.
    pub authorization: Authorization,
    /// Whose tokens count.
    pub authentication: Authentication,
    /// What is reported besides metrics; `None` for the default.
    pub reporting: Option<Arc<Reporting>>,
}

/// A port of a gateway.
pub struct SocketFrontend {
    /// The port.
    pub port: u16,
    /// The most specific host name first.
    pub listeners: Vec<Arc<GatewayListener>>,
}

/// A listener of a gateway.
pub struct GatewayListener {
    /// `NAMESPACE/NAME/SECTION`.
    pub name: String,
    /// What it is for; `None` for all.
    pub hostname: Option<Hostname>,
    /// What is spoken.
    pub protocol: ListenerProtocol,
    /// Ends TLS, where it is ended. `None` while no certificate is usable: handshakes fail.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Routes attached.
    pub routes: Routes,
    /// Who may use it.
    pub authorization: Authorization,
    /// Whose tokens count.
    pub authentication: Authentication,
    /// What is reported besides metrics; `None` for the default.
    pub reporting: Option<Arc<Reporting>>,
}

/// A host name of a listener or route, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Hostname {
    /// This one.
    Exact(String),
    /// Any with one or more labels in front; the text begins with a dot.
    Suffix(String),
}

/// Length of a host name in bytes (RFC 1035 2.3.4, without the final dot).
pub const MAX_HOSTNAME_BYTES: usize = 253;

impl Hostname {
    /// Reads a host name of a listener or route: a DNS name, with `*.` in front for any number of further labels.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence about the field.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.to_ascii_lowercase();
        let name = lower.strip_suffix('.').unwrap_or(&lower);
        let rest = name.strip_prefix('*').unwrap_or(name);
        let labels = rest.strip_prefix('.').filter(|_| rest.len() < name.len());
        let valid = |label: &str| {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            !label.is_empty() && label.bytes().all(allowed)
        };
        if name.len() > MAX_HOSTNAME_BYTES || !labels.unwrap_or(name).split('.').all(valid) {
            return Err(format!(
                "is {text:?}, which is neither a host name nor one with \"*.\" in front"
            ));
        }
        Ok(match labels {
            Some(_) => Self::Suffix(rest.to_owned()),
            None => Self::Exact(name.to_owned()),
        })
    }

    /// Whether it stands for a host, which is in the form of [`crate::route::host_of`].
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Suffix(suffix) => {
                let label = host.strip_suffix(suffix.as_str());
                label.is_some_and(|label| !label.is_empty())
            }
        }
    }

    /// Orders host names: an exact one is greater than any with a wildcard, a longer one greater than a shorter.
    #[must_use]
    pub fn specificity(&self) -> impl Ord + use<> {
        match self {
            Self::Exact(name) => (1, name.len()),
            Self::Suffix(suffix) => (0, suffix.len()),
        }
    }
}

impl std::fmt::Display for Hostname {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(suffix) => write!(f, "*{suffix}"),
        }
    }
}

/// A rule of an HTTPRoute or GRPCRoute.
pub struct HttpRule {
    /// The route, `KIND/NAMESPACE/NAME`.
    pub route: Arc<str>,
    /// The rule's own name, or its place in the route.
    pub name: String,
    /// Errors are answered as gRPC does.
    pub grpc: bool,
    /// In their order.
    pub filters: Vec<Filter>,
    /// Where requests go.
    pub backends: Backends,
    /// Limit for the whole request.
    pub request_timeout: Option<Duration>,
    /// Limit for an attempt.
    pub backend_timeout: Option<Duration>,
    /// When to try again.
    pub retry: Option<Retry>,
    /// Keeps a client at its endpoint.
    pub session: Option<Session>,
}

/// When to try a request again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Retries besides the first attempt.
    pub attempts: u32,
    /// Status codes worth another attempt, sorted.
    pub codes: Vec<u16>,
    /// Shortest wait before a retry.
    pub backoff: Duration,
}

/// Session persistence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Where the client carries it.
    pub carrier: SessionCarrier,
    /// The session ends after this time whatever happens.
    pub absolute: Option<Duration>,
    /// The cookie outlives the browser's session.
    pub permanent: bool,
}

/// Where a client carries its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionCarrier {
    /// A cookie.
    Cookie(String),
    /// A header.
    Header(http::HeaderName),
}

/// Weighted backends of a rule.
#[derive(Default)]
pub struct Backends {
    /// Those with a weight.
    pub list: Vec<WeightedBackend>,
    /// Sum of the weights.
    pub total: u64,
}

/// A backend with its share.
pub struct WeightedBackend {
    /// Share of the total.
    pub weight: u32,
    /// Where it goes.
    pub target: BackendTarget,
    /// Applied after those of the rule.
    pub filters: Vec<Filter>,
}

/// Where a share of the requests goes.
pub enum BackendTarget {
    /// To a backend.
    Cluster(Arc<Cluster>),
    /// Nowhere, for this stable reason: 500, or a reset below HTTP.
    Invalid(String),
}

impl Backends {
    /// The backend for a `point` that is evenly distributed over all of `u64`; `None` if there is none.
    #[must_use]
    pub fn choose(&self, point: u64) -> Option<&WeightedBackend> {
        if self.total == 0 {
            return None;
        }
        // Multiplying maps the point to 0..total more evenly than a remainder, and without a division.
        let scaled = (u128::from(point) * u128::from(self.total)) >> 64;
        let mut rest = u64::try_from(scaled).unwrap_or(0);
        for backend in &self.list {
            let weight = u64::from(backend.weight);
            if rest < weight {
                return Some(backend);
            }
            rest -= weight;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use hashbrown::HashMap;

    use super::ServiceName;

    #[test]
    fn names_are_found_without_a_copy() {
        let mut map: HashMap<(String, u16), u8> = HashMap::new();
        map.insert(("a.b".to_owned(), 80), 1);
        assert_eq!(map.get(&ServiceName("a.b", 80)), Some(&1));
        assert_eq!(map.get(&ServiceName("a.b", 81)), None);
    }
}

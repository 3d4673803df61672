//! Listeners: checked, and not yet put together with what they refer to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;
use karst_api::convert::{ip_addresses, port};
use karst_api::waypoint as wire;
use karst_api::waypoint::{ListenerProtocol, Protocol};
use karst_telemetry::settings::Reporting;

use super::ConfigError;
use super::attached::{AttachedName, Findings, Layer};
use super::server_tls::{self, Alpn, ServerTls};
use super::{authentications, policies};
use crate::balance::{Cluster, Clusters};
use crate::table::Hostname;

/// A listener, checked.
pub(super) enum Parsed {
    Service(Service),
    Workload(Workload),
    Socket(Socket),
}

/// A port of a service.
pub(super) struct Service {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) hostname: String,
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) backend: String,
    pub(super) cluster: Arc<Cluster>,
    /// By namespace of the clients; empty for all others.
    pub(super) sets: HashMap<String, Vec<AttachedName>>,
    pub(super) policies: Vec<String>,
    pub(super) authentications: Vec<String>,
    pub(super) reporting: Told,
}

/// A workload by its own address.
pub(super) struct Workload {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) endpoint: wire::Endpoint,
    pub(super) ports: HashMap<u16, Protocol>,
    pub(super) cluster: Arc<Cluster>,
    pub(super) policies: Vec<String>,
    pub(super) authentications: Vec<String>,
    pub(super) reporting: Told,
}

/// A port of a gateway.
pub(super) struct Socket {
    pub(super) port: u16,
    pub(super) listeners: Vec<SocketListener>,
}

/// What is reported, and what of that could not be understood.
pub(super) struct Told {
    /// `None` for the default.
    pub(super) reporting: Option<Arc<Reporting>>,
    pub(super) problem: Option<String>,
}

impl Told {
    fn new(wire: Option<&karst_api::telemetry::Reporting>) -> Self {
        let read = wire.map(Reporting::read);
        let (reporting, problem) = read.unwrap_or_default();
        Self {
            reporting: (!reporting.is_default()).then(|| Arc::new(reporting)),
            problem,
        }
    }

    /// What is reported; a problem is said.
    pub(super) fn get(&self, findings: &mut Findings) -> Option<Arc<Reporting>> {
        if let Some(problem) = &self.problem {
            findings.problems.push(format!("telemetry.{problem}"));
        }
        self.reporting.clone()
    }
}

/// A listener on a port of a gateway.
pub(super) struct SocketListener {
    pub(super) name: String,
    pub(super) hostname: Option<Hostname>,
    pub(super) protocol: ListenerProtocol,
    /// What it needs to end TLS; the error is of the configuration, and concerns this listener alone.
    pub(super) tls: Option<Result<ServerTls, ConfigError>>,
    /// What was made of it.
    pub(super) built: Option<server_tls::Built>,
    pub(super) routes: Vec<AttachedName>,
    pub(super) policies: Vec<String>,
    pub(super) authentications: Vec<String>,
    pub(super) reporting: Told,
}

impl Parsed {
    pub(super) fn new(wire: &wire::Listener, clusters: &Clusters) -> Result<Self, ConfigError> {
        match &wire.frontend {
            Some(wire::listener::Frontend::Service(service)) => Service::new(service, clusters)
                .map(Self::Service)
                .map_err(|error| error.within("service")),
            Some(wire::listener::Frontend::Workload(workload)) => Workload::new(workload, clusters)
                .map(Self::Workload)
                .map_err(|error| error.within("workload")),
            Some(wire::listener::Frontend::Socket(socket)) => Socket::new(socket)
                .map(Self::Socket)
                .map_err(|error| error.within("socket")),
            None => Err(ConfigError::new(
                "frontend",
                "is missing, or not known to this version",
            )),
        }
    }

    /// Whether it refers to a route, secret, policy or authentication that has changed.
    pub(super) fn refers_to(
        &self,
        route_changed: impl Fn(&str) -> bool,
        secret_changed: impl Fn(&str) -> bool,
        policy_changed: impl Fn(&str) -> bool,
        authentication_changed: impl Fn(&str) -> bool,
    ) -> bool {
        let any_policy = |policies: &[String], authentications: &[String]| {
            policies.iter().any(|name| policy_changed(name))
                || authentications
                    .iter()
                    .any(|name| authentication_changed(name))
        };
        match self {
            Self::Service(service) => {
                let mut names = service.sets.values().flatten();
                names.any(|name| route_changed(&name.route))
                    || any_policy(&service.policies, &service.authentications)
            }
            Self::Workload(workload) => any_policy(&workload.policies, &workload.authentications),
            Self::Socket(socket) => socket.listeners.iter().any(|listener| {
                let tls = listener.tls.iter().flatten();
                listener
                    .routes
                    .iter()
                    .any(|name| route_changed(&name.route))
                    || tls.flat_map(ServerTls::secrets).any(&secret_changed)
                    || any_policy(&listener.policies, &listener.authentications)
            }),
        }
    }

    /// The backend that it refers to itself.
    pub(super) fn backend(&self) -> Option<&str> {
        match self {
            Self::Service(service) => Some(&service.backend),
            Self::Workload(_) | Self::Socket(_) => None,
        }
    }

    /// Takes what was made of the same TLS settings before, so that sessions of clients go on.
    pub(super) fn inherit(&mut self, former: &mut Self) {
        let (Self::Socket(new), Self::Socket(former)) = (self, former) else {
            return;
        };
        for listener in &mut new.listeners {
            let mut same = former
                .listeners
                .iter_mut()
                .filter(|f| f.name == listener.name);
            if let Some(former) = same.next()
                && let (Some(Ok(new)), Some(Ok(old))) = (&listener.tls, &former.tls)
                && new == old
            {
                listener.built = former.built.take();
            }
        }
    }
}

impl Service {
    fn new(wire: &wire::ServiceFrontend, clusters: &Clusters) -> Result<Self, ConfigError> {
        let port = port("port", wire.port)?;
        let addresses = ip_addresses("addresses", &wire.addresses)?;
        if wire.hostname.is_empty() {
            return Err(ConfigError::new("hostname", "is empty"));
        }
        if wire.backend.is_empty() {
            return Err(ConfigError::new("backend", "is empty"));
        }
        let mut sets = HashMap::new();
        for (index, set) in wire.route_sets.iter().enumerate() {
            let at = |error: ConfigError| error.within(format_args!("route_sets[{index}]"));
            let names = AttachedName::list(&set.routes).map_err(at)?;
            if sets.insert(set.client_namespace.clone(), names).is_some() {
                let problem = format!("is {:?} for the second time", set.client_namespace);
                return Err(at(ConfigError::new("client_namespace", problem)));
            }
        }
        Ok(Self {
            namespace: wire.namespace.clone(),
            name: wire.name.clone(),
            hostname: wire.hostname.to_ascii_lowercase(),
            addresses: addresses
                .into_iter()
                .map(|address| SocketAddr::new(address, port))
                .collect(),
            port,
            protocol: wire.protocol(),
            cluster: clusters.get(&wire.backend),
            backend: wire.backend.clone(),
            sets,
            policies: policies::names(&wire.policies)?,
            authentications: authentications::names(&wire.authentications)?,
            reporting: Told::new(wire.telemetry.as_ref()),
        })
    }

    /// What is spoken, if no route says it.
    pub(super) fn layer(&self) -> Layer {
        match self.protocol {
            Protocol::Tcp | Protocol::Tls => Layer::L4,
            Protocol::Undeclared
            | Protocol::Http1
            | Protocol::Http2
            | Protocol::Grpc
            | Protocol::Websocket => Layer::Http,
        }
    }
}

impl Workload {
    fn new(wire: &wire::WorkloadFrontend, clusters: &Clusters) -> Result<Self, ConfigError> {
        let Some(endpoint) = &wire.endpoint else {
            return Err(ConfigError::new("endpoint", "is missing"));
        };
        let mut ports = HashMap::with_capacity(wire.ports.len());
        for declared in &wire.ports {
            ports.insert(port("ports.port", declared.port)?, declared.protocol());
        }
        Ok(Self {
            addresses: ip_addresses("addresses", &wire.addresses)?,
            endpoint: endpoint.clone(),
            ports,
            cluster: clusters
                .single(endpoint, wire.workload.as_ref())
                .map_err(|error| ConfigError::from(error).within("endpoint"))?,
            policies: policies::names(&wire.policies)?,
            authentications: authentications::names(&wire.authentications)?,
            reporting: Told::new(wire.telemetry.as_ref()),
        })
    }
}

impl Socket {
    fn new(wire: &wire::SocketFrontend) -> Result<Self, ConfigError> {
        let listener = |(index, wire): (usize, &wire::GatewayListener)| {
            SocketListener::new(wire)
                .map_err(|error| error.within(format_args!("listeners[{index}]")))
        };
        Ok(Self {
            port: port("port", wire.port)?,
            listeners: wire
                .listeners
                .iter()
                .enumerate()
                .map(listener)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl SocketListener {
    fn new(wire: &wire::GatewayListener) -> Result<Self, ConfigError> {
        let hostname = match wire.hostname.as_str() {
            "" => None,
            name => Some(
                Hostname::parse(name).map_err(|problem| ConfigError::new("hostname", problem))?,
            ),
        };
        let protocol = wire.protocol();
        let alpn = match protocol {
            ListenerProtocol::ListenerUnspecified => {
                let problem = "is missing, or not known to this version";
                return Err(ConfigError::new("protocol", problem));
            }
            ListenerProtocol::ListenerHttps => Some(Alpn::Http),
            ListenerProtocol::ListenerTlsTerminate => Some(Alpn::Bytes),
            ListenerProtocol::ListenerHttp
            | ListenerProtocol::ListenerTlsPassthrough
            | ListenerProtocol::ListenerTcp => None,
        };
        Ok(Self {
            name: wire.name.clone(),
            hostname,
            protocol,
            tls: alpn.map(|alpn| ServerTls::new(wire, alpn)),
            built: None,
            routes: AttachedName::list(&wire.routes)?,
            policies: policies::names(&wire.policies)?,
            authentications: authentications::names(&wire.authentications)?,
            reporting: Told::new(wire.telemetry.as_ref()),
        })
    }

    pub(super) fn layer(&self) -> Layer {
        match self.protocol {
            ListenerProtocol::ListenerHttp | ListenerProtocol::ListenerHttps => Layer::Http,
            ListenerProtocol::ListenerTlsPassthrough
            | ListenerProtocol::ListenerTlsTerminate
            | ListenerProtocol::ListenerTcp
            | ListenerProtocol::ListenerUnspecified => Layer::L4,
        }
    }
}

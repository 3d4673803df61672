//! Listeners put together with what they refer to: the parts of a table.

use std::cmp::Reverse;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hashbrown::HashMap;

use super::attached::{self, Findings};
use super::authentications::Authentications;
use super::backends::Backends;
use super::listener::{Parsed, Service, Socket, SocketListener, Workload};
use super::policies::Policies;
use super::routes::Routes;
use super::secret::Secrets;
use crate::table::{
    GatewayListener, Hostname, ServiceFrontend, SocketFrontend, Table, WorkloadFrontend,
};

/// What a listener refers to.
pub(super) struct Held<'a> {
    pub(super) routes: &'a Routes,
    pub(super) secrets: &'a Secrets,
    pub(super) backends: &'a Backends,
    pub(super) policies: &'a Policies,
    pub(super) authentications: &'a Authentications,
}

/// A part of a table.
pub(super) enum Frontend {
    Service(Vec<SocketAddr>, Arc<ServiceFrontend>),
    Workload(Vec<IpAddr>, Arc<WorkloadFrontend>),
    Socket(Arc<SocketFrontend>),
}

impl Frontend {
    pub(super) fn new(parsed: &mut Parsed, held: &Held<'_>, findings: &mut Findings) -> Self {
        match parsed {
            Parsed::Service(service) => Self::Service(
                service.addresses.clone(),
                Arc::new(service_frontend(service, held, findings)),
            ),
            Parsed::Workload(workload) => Self::Workload(
                workload.addresses.clone(),
                Arc::new(workload_frontend(workload, held, findings)),
            ),
            Parsed::Socket(socket) => {
                Self::Socket(Arc::new(socket_frontend(socket, held, findings)))
            }
        }
    }

    /// Adds it to a table. Returns what another one has taken already.
    pub(super) fn add_to(&self, table: &mut Table) -> Option<String> {
        let mut taken = None;
        match self {
            Self::Service(addresses, frontend) => {
                for address in addresses {
                    if table.services.contains_key(address) {
                        taken = Some(address.to_string());
                    } else {
                        table.services.insert(*address, Arc::clone(frontend));
                    }
                }
                let name = (frontend.hostname.clone(), frontend.port);
                if !table.names.contains_key(&name) {
                    table.names.insert(name, Arc::clone(frontend));
                }
            }
            Self::Workload(addresses, frontend) => {
                for address in addresses {
                    if table.workloads.contains_key(address) {
                        taken = Some(address.to_string());
                    } else {
                        table.workloads.insert(*address, Arc::clone(frontend));
                    }
                }
            }
            Self::Socket(frontend) => {
                if table.sockets.contains_key(&frontend.port) {
                    taken = Some(format!("port {}", frontend.port));
                } else {
                    table.sockets.insert(frontend.port, Arc::clone(frontend));
                }
            }
        }
        taken
    }
}

fn service_frontend(
    service: &Service,
    held: &Held<'_>,
    findings: &mut Findings,
) -> ServiceFrontend {
    if !held.backends.is_known(&service.backend) {
        findings.missing("backend", &service.backend);
    }
    let mut consumer_routes = HashMap::new();
    let mut producer_routes = crate::table::Routes::None;
    for (namespace, names) in &service.sets {
        let routes = attached::of_service(names, service.layer(), held.routes, findings);
        if namespace.is_empty() {
            producer_routes = routes;
        } else {
            consumer_routes.insert(namespace.clone(), routes);
        }
    }
    ServiceFrontend {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        hostname: service.hostname.clone(),
        port: service.port,
        protocol: service.protocol,
        cluster: Arc::clone(&service.cluster),
        consumer_routes,
        producer_routes,
        authorization: held.policies.attached(&service.policies, findings),
        authentication: held
            .authentications
            .attached(&service.authentications, findings),
        reporting: service.reporting.get(findings),
    }
}

fn workload_frontend(
    workload: &Workload,
    held: &Held<'_>,
    findings: &mut Findings,
) -> WorkloadFrontend {
    WorkloadFrontend {
        endpoint: workload.endpoint.clone(),
        ports: workload.ports.clone(),
        cluster: Arc::clone(&workload.cluster),
        authorization: held.policies.attached(&workload.policies, findings),
        authentication: held
            .authentications
            .attached(&workload.authentications, findings),
        reporting: workload.reporting.get(findings),
    }
}

fn socket_frontend(
    socket: &mut Socket,
    held: &Held<'_>,
    findings: &mut Findings,
) -> SocketFrontend {
    let listeners = socket.listeners.iter_mut();
    let mut listeners: Vec<_> = listeners
        .map(|listener| Arc::new(gateway_listener(listener, held, findings)))
        .collect();
    listeners
        .sort_by_key(|listener| Reverse(listener.hostname.as_ref().map(Hostname::specificity)));
    SocketFrontend {
        port: socket.port,
        listeners,
    }
}

fn gateway_listener(
    listener: &mut SocketListener,
    held: &Held<'_>,
    findings: &mut Findings,
) -> GatewayListener {
    let tls = match &listener.tls {
        None => None,
        Some(Err(error)) => Some(Err(error.clone())),
        Some(Ok(tls)) => {
            for name in tls.secrets().filter(|name| held.secrets.is_missing(name)) {
                findings.missing("certificate", name);
            }
            Some(tls.build(held.secrets, listener.built.take()))
        }
    };
    let tls = match tls {
        None => None,
        Some(Ok(built)) => {
            let config = Arc::clone(&built.config);
            listener.built = Some(built);
            Some(config)
        }
        Some(Err(error)) => {
            let problem = format!("listener {:?} refuses all: {error}", listener.name);
            findings.problems.push(problem);
            None
        }
    };
    GatewayListener {
        name: listener.name.clone(),
        hostname: listener.hostname.clone(),
        protocol: listener.protocol,
        tls,
        routes: attached::put_together(&listener.routes, listener.layer(), held.routes, findings),
        authorization: held.policies.attached(&listener.policies, findings),
        authentication: held
            .authentications
            .attached(&listener.authentications, findings),
        reporting: listener.reporting.get(findings),
    }
}

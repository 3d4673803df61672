//! What a request came to, by the table of the moment.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::StatusCode;
use karst_api::waypoint::ListenerProtocol;
use karst_telemetry::settings::Reporting;

use super::reply::Failure;
use super::{Entry, GatewayTls};
use crate::authn::Authentication;
use crate::authz::Authorization;
use crate::balance::Cluster;
use crate::client::Client;
use crate::reason::Reason;
use crate::route::{Matched, RequestHead};
use crate::table::{GatewayListener, Routes, ServiceFrontend, Table, WorkloadFrontend};

/// What a request came to.
pub(super) enum Frontend<'a> {
    Service(&'a ServiceFrontend),
    Workload(&'a WorkloadFrontend, SocketAddr),
    Listener(&'a GatewayListener, u16),
}

/// Where a request goes that no rule says anything about.
pub(super) struct Plain<'a> {
    pub(super) cluster: &'a Arc<Cluster>,
    /// The workload's port and address, where the client named them.
    pub(super) port: Option<u16>,
    pub(super) address: Option<IpAddr>,
}

impl<'a> Frontend<'a> {
    /// # Errors
    /// The connection's frontend is not served any more, or the host is of another one.
    pub(super) fn find(entry: &Entry, table: &'a Table, host: &str) -> Result<Self, Failure> {
        let gone = || Failure::because(StatusCode::SERVICE_UNAVAILABLE, Reason::UnknownDestination);
        match entry {
            Entry::Service(service) => {
                let service = table.service(&service.hostname, service.port);
                let service = service.ok_or_else(gone)?;
                Ok(Self::Service(service))
            }
            Entry::Workload(_, address) => {
                let workload = table.workloads.get(&address.ip()).ok_or_else(gone)?;
                Ok(Self::Workload(workload, *address))
            }
            Entry::Gateway { port, tls } => {
                let socket = table.sockets.get(port).ok_or_else(gone)?;
                let listener = listener(&socket.listeners, tls.as_ref(), host)?;
                Ok(Self::Listener(listener, *port))
            }
        }
    }

    /// The rule for a request, if there is any to be asked.
    ///
    /// # Errors
    /// No rule matches although there are some.
    pub(super) fn route(
        &self,
        head: &RequestHead<'_>,
        client: &Client,
    ) -> Result<Option<Matched<'a>>, Failure> {
        let routes = match self {
            Self::Service(service) => service.routes(client.namespace()),
            Self::Workload(..) => return Ok(None),
            Self::Listener(listener, _) => &listener.routes,
        };
        match (routes, self) {
            (Routes::Http(router), _) => match router.route(head) {
                Ok(matched) => Ok(Some(matched)),
                Err(none) => Err(Failure::new(none.status(), none.reason())),
            },
            (Routes::None, Self::Listener(..)) => {
                Err(Failure::because(StatusCode::NOT_FOUND, Reason::NoRoute))
            }
            (Routes::None, _) => Ok(None),
            // A route of another kind says where bytes go; requests are not for it to pass on.
            (Routes::L4(_), _) => Err(Failure::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "route_kind_mismatch",
            )),
        }
    }

    /// Where requests go without a rule; `None` at a gateway.
    pub(super) fn plain(&self) -> Option<Plain<'a>> {
        match self {
            Self::Service(service) => Some(Plain {
                cluster: &service.cluster,
                port: None,
                address: None,
            }),
            Self::Workload(workload, address) => Some(Plain {
                cluster: &workload.cluster,
                port: Some(address.port()),
                address: Some(address.ip()),
            }),
            Self::Listener(..) => None,
        }
    }

    /// Who may use it.
    pub(super) fn authorization(&self) -> &'a Authorization {
        match self {
            Self::Service(service) => &service.authorization,
            Self::Workload(workload, _) => &workload.authorization,
            Self::Listener(listener, _) => &listener.authorization,
        }
    }

    /// Whose tokens count.
    pub(super) fn authentication(&self) -> &'a Authentication {
        match self {
            Self::Service(service) => &service.authentication,
            Self::Workload(workload, _) => &workload.authentication,
            Self::Listener(listener, _) => &listener.authentication,
        }
    }

    /// What is reported besides metrics.
    pub(super) fn reporting(&self) -> Option<&'a Arc<Reporting>> {
        let reporting = match self {
            Self::Service(service) => &service.reporting,
            Self::Workload(workload, _) => &workload.reporting,
            Self::Listener(listener, _) => &listener.reporting,
        };
        reporting.as_ref()
    }

    /// The port that the client used.
    pub(super) fn port(&self) -> u16 {
        match self {
            Self::Service(service) => service.port,
            Self::Workload(_, address) => address.port(),
            Self::Listener(_, port) => *port,
        }
    }
}

/// The listener for a host: the most specific one, which must be that of the connection's TLS.
fn listener<'a>(
    listeners: &'a [Arc<GatewayListener>],
    tls: Option<&GatewayTls>,
    host: &str,
) -> Result<&'a GatewayListener, Failure> {
    let protocol = match tls {
        Some(_) => ListenerProtocol::ListenerHttps,
        None => ListenerProtocol::ListenerHttp,
    };
    let listener = listeners.iter().find(|listener| {
        let hostname = listener.hostname.as_ref();
        listener.protocol == protocol && hostname.is_none_or(|name| name.matches(host))
    });
    let listener =
        listener.ok_or_else(|| Failure::because(StatusCode::NOT_FOUND, Reason::NoListener))?;
    match tls {
        Some(tls) if tls.listener != listener.name => Err(Failure::new(
            StatusCode::MISDIRECTED_REQUEST,
            "gateway_misdirected",
        )),
        _ => Ok(listener),
    }
}

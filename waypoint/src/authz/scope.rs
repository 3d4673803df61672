//! What decides about a connection of bytes, now and whenever policies change.

use std::net::SocketAddr;
use std::sync::Arc;

use karst_telemetry::settings::Reporting;

use super::Authorization;
use super::attributes::{Attributes, Destination, ServerName};
use crate::client::Client;
use crate::table::{ServiceFrontend, Table};

/// What a connection came to.
#[derive(Clone)]
pub enum Place {
    /// A port of a service.
    Service(Arc<ServiceFrontend>),
    /// A workload by its own address.
    Workload(SocketAddr),
    /// A listener of a gateway.
    Listener {
        /// The port.
        port: u16,
        /// Name of the listener.
        name: Arc<str>,
    },
}

/// Whether a client's TLS hello was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// It was.
    Read,
    /// It was not; there may be one.
    Unread,
}

/// What decides about a connection.
#[derive(Clone)]
pub struct Scope {
    /// What it came to.
    pub place: Place,
    /// Whether its server name is known.
    pub hello: Hello,
}

impl Scope {
    /// What a client's connection is decided by.
    #[must_use]
    pub fn attributes<'a>(&self, client: &'a Client, sni: Option<&'a str>) -> Attributes<'a> {
        let port = match &self.place {
            Place::Service(service) => service.port,
            Place::Workload(address) => address.port(),
            Place::Listener { port, .. } => *port,
        };
        Attributes {
            client,
            destination: Destination {
                ip: client.destination.map(|address| address.ip()),
                port,
            },
            server_name: match self.hello {
                Hello::Read => ServerName::read(sni),
                Hello::Unread => ServerName::Unread,
            },
            request: None,
        }
    }

    /// What is reported besides metrics, by the table of the moment.
    #[must_use]
    pub fn reporting<'a>(&self, table: &'a Table) -> Option<&'a Arc<Reporting>> {
        let reporting = match &self.place {
            Place::Service(service) => &table.service(&service.hostname, service.port)?.reporting,
            Place::Workload(address) => &table.workloads.get(&address.ip())?.reporting,
            Place::Listener { port, name } => {
                let mut listeners = table.sockets.get(port)?.listeners.iter();
                &listeners
                    .find(|listener| *listener.name == **name)?
                    .reporting
            }
        };
        reporting.as_ref()
    }

    /// The policies of the moment; `None` if this is not served any more.
    #[must_use]
    pub fn authorization<'a>(&self, table: &'a Table) -> Option<&'a Authorization> {
        match &self.place {
            Place::Service(service) => table
                .service(&service.hostname, service.port)
                .map(|service| &service.authorization),
            Place::Workload(address) => {
                let workload = table.workloads.get(&address.ip());
                workload.map(|workload| &workload.authorization)
            }
            Place::Listener { port, name } => {
                let listeners = &table.sockets.get(port)?.listeners;
                let listener = listeners.iter().find(|listener| *listener.name == **name);
                listener.map(|listener| &listener.authorization)
            }
        }
    }
}

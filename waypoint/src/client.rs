//! Who sent a request.

use std::net::SocketAddr;
use std::sync::Arc;

use karst_identity::SpiffeId;
use karst_tunnel::headers::TraceParent;

use crate::workload::WorkloadLabels;

/// The client of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address: of the application, not of the agent that carries it. Of a client in the mesh its own agent says
    /// it, or a gateway, whose word is taken.
    pub address: SocketAddr,
    /// The address it asked for; `None` where it asked for a name.
    pub destination: Option<SocketAddr>,
    /// The identity it has proven: by mutual TLS of the mesh. `None` outside the mesh.
    pub identity: Option<SpiffeId>,
    /// What its agent says about it; for metrics and logs, never for decisions.
    pub workload: Option<Arc<WorkloadLabels>>,
    /// Trace and span of its connection, as its agent says.
    pub trace: Option<TraceParent>,
}

impl Client {
    /// A client of which nothing else is known.
    #[must_use]
    pub fn new(address: SocketAddr, identity: Option<SpiffeId>) -> Self {
        Self {
            address,
            destination: None,
            identity,
            workload: None,
            trace: None,
        }
    }

    /// The namespace of the client's identity; it decides which consumer routes apply.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.identity.as_ref().map(SpiffeId::namespace)
    }
}

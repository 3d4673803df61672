//! Who sent a request.

use std::net::SocketAddr;

use karst_identity::SpiffeId;

/// The client of a connection, as far as it is known.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its address: of the application, not of the agent that carries it.
    pub address: SocketAddr,
    /// The identity it has proven: by mutual TLS of the mesh. `None` outside the mesh.
    pub identity: Option<SpiffeId>,
}

impl Client {
    /// The namespace of the client's identity; it decides which consumer routes apply.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.identity.as_ref().map(SpiffeId::namespace)
    }
}

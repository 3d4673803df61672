//! What the agent asks and tells about one socket: one system call each, on any thread.

use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use karst_bpf_common::Endpoint;
use karst_bpf_common::layout::{SOCKET_ELSEWHERE, SOCKET_ORIGINAL, SOCKET_SOURCE, SocketState};

use crate::error::DatapathError;
use crate::node::Datapath;

/// Where an application wanted to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Original {
    /// The address that it asked for.
    pub address: SocketAddr,
    /// Whether the programs have chosen, of that service's endpoints, one that is not on this node.
    pub elsewhere: bool,
}

impl Datapath {
    /// Where the application wanted to go, asked of a connection accepted on the outbound
    /// listener. `None` when it was not captured: somebody in the pod dialled the listener
    /// itself, and the agent must refuse.
    ///
    /// # Errors
    /// The descriptor is not a socket, or the map cannot be read.
    pub fn original_destination(
        &self,
        accepted: BorrowedFd<'_>,
    ) -> Result<Option<SocketAddr>, DatapathError> {
        let original = self.original(accepted)?;
        Ok(original.map(|original| original.address))
    }

    /// As [`Datapath::original_destination`], with what the programs have chosen.
    ///
    /// # Errors
    /// The descriptor is not a socket, or the map cannot be read.
    pub fn original(&self, accepted: BorrowedFd<'_>) -> Result<Option<Original>, DatapathError> {
        let state = self.maps.sockets.get(&key(accepted))?;
        let state = state.filter(|state| state.flags & SOCKET_ORIGINAL != 0);
        Ok(state.map(|state| Original {
            address: state.endpoint.to_socket_addr(),
            elsewhere: state.flags & SOCKET_ELSEWHERE != 0,
        }))
    }

    /// Makes the application see `client` as its peer, address and port, in `accept()` and
    /// `getpeername()`. Call it before `connect()`, on a socket made in the pod's namespace. An
    /// IPv6 client cannot be shown to an application that listens on an IPv4 socket.
    ///
    /// # Errors
    /// The descriptor is not a socket, or the kernel has no memory for it.
    pub fn set_source(
        &self,
        socket: BorrowedFd<'_>,
        client: SocketAddr,
    ) -> Result<(), DatapathError> {
        let state = SocketState {
            endpoint: Endpoint::from(client),
            flags: SOCKET_SOURCE,
        };
        self.maps.sockets.set(&key(socket), &state)
    }
}

/// Storage of a socket is found by descriptor.
fn key(socket: BorrowedFd<'_>) -> u32 {
    socket.as_raw_fd().cast_unsigned()
}

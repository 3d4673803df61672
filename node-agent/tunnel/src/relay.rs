//! Copies bytes between an application's socket and a stream, or between two sockets.
//!
//! Half-close travels in both directions (end of stream is a FIN and the other way round), and
//! so does a reset: the other application sees ECONNRESET, as without a mesh.

mod hbone;
pub(crate) mod queue;
mod tcp;

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;

use crate::pool::Early;
use crate::{Counters, HboneStream};

/// How a relayed connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayEnd {
    /// Both directions were closed in order.
    Closed,
    /// The first socket (the application's) was reset or failed.
    LocalReset,
    /// The stream or second socket was reset by its other end.
    RemoteReset,
    /// The tunnel connection under the stream broke.
    TunnelFailed,
}

impl RelayEnd {
    /// The stable label for log and metric.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::LocalReset => "reset_by_application",
            Self::RemoteReset => "reset_by_peer",
            Self::TunnelFailed => "tunnel_failed",
        }
    }
}

/// Copies both ways until both directions have ended. `sent` counts bytes from `tcp` to the
/// stream.
pub fn tcp_hbone(
    tcp: TcpStream,
    stream: HboneStream,
    counters: &Counters,
) -> impl Future<Output = RelayEnd> {
    hbone::relay(tcp, stream, counters)
}

/// Copies both ways until both directions have ended. `sent` counts bytes from `first` to
/// `second`.
pub async fn tcp_tcp(first: TcpStream, second: TcpStream, counters: &Counters) -> RelayEnd {
    tcp::relay(first, second, Early::default(), counters).await
}

/// As [`tcp_tcp`], for a first socket of which `early` has been read already.
pub async fn tcp_tcp_after(
    early: Early,
    first: TcpStream,
    second: TcpStream,
    counters: &Counters,
) -> RelayEnd {
    tcp::relay(first, second, early, counters).await
}

/// Makes the application at the other end see a reset when the socket is dropped.
fn reset_on_drop(tcp: &TcpStream) {
    // It fails only for a socket that is no more, which needs no reset.
    let _ = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
}

//! One stream of a tunnel connection, as a client holds it, or a server that took it over.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use crate::pool::{Early, Lease};
use crate::server::StreamCount;

/// What was negotiated on a tunnel connection.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TlsInfo {
    /// Protocol version, e.g. `TLSv1_3`.
    pub version: Arc<str>,
    /// Cipher suite, e.g. `TLS13_AES_128_GCM_SHA256`.
    pub cipher: Arc<str>,
    /// Key exchange, e.g. `X25519MLKEM768`.
    pub key_exchange: Arc<str>,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
    /// This end of the TCP connection that carries it.
    #[serde(skip)]
    pub local_addr: Option<SocketAddr>,
}

/// An accepted CONNECT: bytes sent here reach the destination application.
///
/// Dropping it without end of stream resets the stream.
pub struct HboneStream {
    /// Towards the peer.
    pub send: h2::SendStream<Bytes>,
    /// From the peer.
    pub recv: h2::RecvStream,
    /// What was negotiated on the connection.
    pub tls: Arc<TlsInfo>,
    /// Headers of the 200 response; empty on the server side, which has sent it.
    pub response_headers: HeaderMap,
    /// What of the application's was read before the stream was accepted.
    pub(crate) early: Early,
    /// Keeps the stream counted on its connection. Dropped last, so that the place is free
    /// only after the stream is.
    pub(crate) place: Place,
}

/// A stream's place on its connection, given back when dropped.
#[expect(
    dead_code,
    reason = "what is in it is not read: it counts while it lives"
)]
pub(crate) enum Place {
    /// On a connection of a pool.
    Pooled(Lease),
    /// On a connection of a server.
    Served(StreamCount),
}

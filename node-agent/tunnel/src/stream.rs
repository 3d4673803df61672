//! One stream of a tunnel connection, as a client holds it.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;

use crate::pool::Lease;

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
    /// Headers of the 200 response.
    pub response_headers: HeaderMap,
    /// Keeps the connection's place in the pool counted; `None` on the server side.
    pub(crate) lease: Option<Lease>,
}

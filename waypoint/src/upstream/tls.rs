//! TLS towards an application.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::ClientConfig;
use rustls_pki_types::ServerName;

/// ALPN name of HTTP/2 (RFC 9113).
const H2: &[u8] = b"h2";
/// ALPN name of HTTP/1.1 (RFC 7301).
const HTTP1: &[u8] = b"http/1.1";

/// What an application is offered by ALPN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offer {
    /// What the configuration says: bytes are passed on.
    Configured,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// HTTP/2, else HTTP/1.1.
    Either,
}

/// TLS towards the applications of a backend, inside the mesh's own: whom to trust, which name the
/// certificate must carry, what to show of ourselves.
///
/// Connections of one configuration are never used for another one, equal or not.
#[derive(Clone, Debug)]
pub struct BackendTlsConfig {
    id: u64,
    server_name: ServerName<'static>,
    configured: Arc<ClientConfig>,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    either: Arc<ClientConfig>,
}

impl BackendTlsConfig {
    /// `config` verifies the peer for `server_name`, which is sent as SNI. Its ALPN protocols are for
    /// connections whose bytes are passed on; HTTP has its own.
    #[must_use]
    pub fn new(config: ClientConfig, server_name: ServerName<'static>) -> Self {
        static ID: AtomicU64 = AtomicU64::new(1);
        let offering = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Self {
            id: ID.fetch_add(1, Ordering::Relaxed),
            server_name,
            http1: offering(&[HTTP1]),
            http2: offering(&[H2]),
            either: offering(&[H2, HTTP1]),
            configured: Arc::new(config),
        }
    }

    /// Unique in this process.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn server_name(&self) -> &ServerName<'static> {
        &self.server_name
    }

    pub(super) fn config(&self, offer: Offer) -> &Arc<ClientConfig> {
        match offer {
            Offer::Configured => &self.configured,
            Offer::Http1 => &self.http1,
            Offer::Http2 => &self.http2,
            Offer::Either => &self.either,
        }
    }
}

/// Whether HTTP/2 was agreed on; `None` if nothing was.
pub(super) fn agreed_on_http2(alpn: Option<&[u8]>) -> Option<bool> {
    alpn.map(|name| name == H2)
}

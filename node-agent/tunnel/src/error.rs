//! One error type for the tunnel, with the label logs and metrics share.

use std::io;
use std::sync::Arc;

use http::StatusCode;
use karst_identity::{Fault, IdentityError, SpiffeId};

/// Which limit on CONNECT headers was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderLimit {
    /// All fields together.
    Total,
    /// One field.
    Field(&'static str),
}

/// What can go wrong with a tunnel connection or a stream on it.
///
/// It can be cloned because one failed dial is the answer to every stream that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunnelError {
    /// Identity, certificate or TLS handshake.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The handshake took too long.
    #[error("TLS handshake not finished within {millis} ms")]
    HandshakeTimeout {
        /// The limit in milliseconds.
        millis: u128,
    },
    /// The peer did not agree on HTTP/2 (ALPN `h2`).
    #[error("the peer does not speak HTTP/2 (ALPN {offered:?})")]
    NoHttp2 {
        /// What was agreed on instead.
        offered: String,
    },
    /// The connection broke below TLS.
    #[error("connection failed: {kind}")]
    Io {
        /// What the kernel said.
        kind: io::ErrorKind,
    },
    /// The HTTP/2 preface and SETTINGS took too long.
    #[error("HTTP/2 preface and SETTINGS not received within {millis} ms")]
    PrefaceTimeout {
        /// The limit in milliseconds.
        millis: u128,
    },
    /// The peer broke the HTTP/2 protocol, or says that we did.
    #[error("HTTP/2 failed: {problem}")]
    Http2 {
        /// The HTTP/2 library's description.
        problem: String,
    },
    /// The peer answered no PING in time.
    #[error("the peer did not answer a PING within {seconds} s")]
    PingTimeout {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The peer sent GOAWAY or REFUSED_STREAM before it looked at the stream.
    #[error("the peer is draining and refused the stream")]
    Draining,
    /// The peer reset the stream before it answered.
    #[error("the peer reset the stream: {reason}")]
    StreamReset {
        /// The HTTP/2 error code.
        reason: h2::Reason,
    },
    /// A request with another method than CONNECT.
    #[error("method is not CONNECT")]
    BadMethod,
    /// An `:authority` that is not `host:port`.
    #[error("authority is not host:port")]
    BadAuthority,
    /// CONNECT headers beyond their limits.
    #[error("headers too large ({limit:?})")]
    HeadersTooLarge {
        /// Which limit.
        limit: HeaderLimit,
    },
    /// No TCP connection to the peer's tunnel port.
    #[error("cannot connect to {address}: {kind}{hint}")]
    Dial {
        /// Where to.
        address: std::net::SocketAddr,
        /// What the kernel said.
        kind: io::ErrorKind,
        /// What the operator could look at, or empty.
        hint: &'static str,
    },
    /// The peer refused the CONNECT.
    #[error("the peer refused the connection with status {status}")]
    Refused {
        /// The HTTP status.
        status: StatusCode,
    },
    /// The peer gave no answer to the CONNECT.
    #[error("the peer gave no answer to CONNECT within {seconds} s")]
    ResponseTimeout {
        /// The limit in seconds.
        seconds: u64,
    },
    /// The certificate at hand is not the epoch or the identity the pool key names.
    #[error("the certificate at hand is not the one asked for ({expected})")]
    NoCertificate {
        /// Whose certificate was asked for.
        expected: SpiffeId,
    },
    /// More tunnel connections than this server may hold.
    #[error("more than {limit} tunnel connections")]
    TooManyConnections {
        /// The limit.
        limit: usize,
    },
    /// The pool was closed while a stream waited.
    #[error("the connection pool was closed")]
    PoolClosed,
}

impl TunnelError {
    /// The stable label of this error, shared by log, metric and command line.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Identity(error) => error.reason(),
            Self::HandshakeTimeout { .. } => "tls_handshake_timeout",
            Self::NoHttp2 { .. } => "tls_no_http2",
            Self::Io { .. } => "connection_failed",
            Self::PrefaceTimeout { .. } => "http2_preface_timeout",
            Self::Http2 { .. } => "http2_protocol_error",
            Self::PingTimeout { .. } => "http2_ping_timeout",
            Self::Draining => "peer_draining",
            Self::StreamReset { .. } => "http2_stream_reset",
            Self::BadMethod => "connect_bad_method",
            Self::BadAuthority => "connect_bad_authority",
            Self::HeadersTooLarge { .. } => "connect_headers_too_large",
            Self::Dial { .. } => "tunnel_connect_failed",
            Self::Refused { .. } => "upstream_refused",
            Self::ResponseTimeout { .. } => "connect_timeout",
            Self::NoCertificate { .. } => "no_certificate",
            Self::TooManyConnections { .. } => "too_many_tunnel_connections",
            Self::PoolClosed => "pool_closed",
        }
    }

    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Identity(error) => error.fault(),
            Self::NoCertificate { .. } => Fault::ControlPlane,
            Self::PoolClosed => Fault::Local,
            _ => Fault::Peer,
        }
    }

    /// Whether the same request on a fresh connection may succeed and cannot run twice.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Draining)
    }
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        // A TLS failure travels inside an io::Error; its reason is the one to keep.
        if let Some(tls) = error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        {
            return Self::Identity(karst_identity::tls_failure(tls));
        }
        Self::Io { kind: error.kind() }
    }
}

impl From<h2::Error> for TunnelError {
    fn from(error: h2::Error) -> Self {
        let remote = error.is_remote();
        if error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
            || error.is_go_away() && remote && error.reason() == Some(h2::Reason::NO_ERROR)
        {
            return Self::Draining;
        }
        if let Some(reason) = error.reason().filter(|_| error.is_reset() && remote) {
            return Self::StreamReset { reason };
        }
        let problem = error.to_string();
        match error.into_io() {
            Some(error) => Self::from(error),
            None => Self::Http2 { problem },
        }
    }
}

/// An error several waiters share.
pub(crate) type SharedResult<T> = Result<T, Arc<TunnelError>>;

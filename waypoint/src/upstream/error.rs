//! One error type for the way to an application, with the label that logs and metrics share.

use std::io;
use std::net::SocketAddr;

use karst_tunnel::TunnelError;

use crate::balance::{Limit, Outcome};

/// Why a request has no response, or a connection could not be made.
///
/// It can be cloned because one failed connection is the answer to every request that waited for it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// We have no certificate of our own at the moment, and the endpoint is reached by the tunnel.
    #[error("there is no certificate of our own")]
    NoCertificate,
    /// The tunnel to the endpoint's node.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// No TCP connection.
    #[error("cannot connect to {address}: {kind}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What the kernel said.
        kind: io::ErrorKind,
    },
    /// No connection in time, whatever it waited for.
    #[error("no connection within {millis} ms")]
    ConnectTimeout {
        /// The limit in milliseconds.
        millis: u128,
    },
    /// TLS with the application.
    #[error("TLS with the application failed: {problem}")]
    Tls {
        /// What is wrong.
        problem: String,
    },
    /// HTTP/2 is wanted and the application does not speak it.
    #[error("the application does not speak HTTP/2: {problem}")]
    NotHttp2 {
        /// How one can tell.
        problem: String,
    },
    /// A limit of the backend is reached.
    #[error("the backend is overloaded: {0}")]
    Overloaded(Limit),
    /// A connection that had been unused was closed just when it was used again.
    #[error("an idle connection was closed")]
    IdleClosed {
        /// Whether nothing can be lost by sending the request again.
        safe: bool,
    },
    /// The application refused an HTTP/2 stream before it looked at it.
    #[error("the application refused the stream before looking at it")]
    Refused,
    /// The connection ended before a response.
    #[error("the connection was closed before a response")]
    Closed,
    /// The application reset the HTTP/2 stream, or the connection under a request.
    #[error("the application reset the request: {problem}")]
    Reset {
        /// What the transport said.
        problem: String,
    },
    /// What the application sent is no valid response.
    #[error("the application's response is invalid: {problem}")]
    Protocol {
        /// What is wrong.
        problem: String,
    },
    /// The body of the request broke off on the client's side.
    #[error("the request's body broke off: {problem}")]
    RequestBody {
        /// What the client's connection said.
        problem: String,
    },
    /// The request cannot be put into the form that the application wants.
    #[error("the request cannot be sent: {problem}")]
    Request {
        /// What is wrong.
        problem: String,
    },
}

impl UpstreamError {
    /// The stable label of this error, shared by log, metric and command line.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no_certificate",
            Self::Tunnel(error) => error.reason(),
            Self::Connect { .. } => "upstream_connect_failed",
            Self::ConnectTimeout { .. } => "upstream_connect_timeout",
            Self::Tls { .. } => "upstream_tls_failed",
            Self::NotHttp2 { .. } => "upstream_not_http2",
            Self::Overloaded(limit) => limit.reason(),
            Self::IdleClosed { .. } => "upstream_idle_closed",
            Self::Refused => "upstream_refused_stream",
            Self::Closed => "upstream_closed",
            Self::Reset { .. } => "upstream_reset",
            Self::Protocol { .. } => "upstream_protocol_error",
            Self::RequestBody { .. } => "request_body_failed",
            Self::Request { .. } => "request_not_sendable",
        }
    }

    /// Whether the application has seen nothing of the request, so that it may be sent again, to whichever
    /// endpoint and whatever its method.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::NoCertificate
            | Self::Tunnel(_)
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Tls { .. }
            | Self::NotHttp2 { .. }
            | Self::Refused => true,
            Self::IdleClosed { safe } => *safe,
            // Nothing was sent, but another attempt would only add to the load.
            Self::Overloaded(_)
            | Self::Closed
            | Self::Reset { .. }
            | Self::Protocol { .. }
            | Self::RequestBody { .. }
            | Self::Request { .. } => false,
        }
    }

    /// What it says about the endpoint.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Tunnel(_)
            | Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Tls { .. }
            | Self::NotHttp2 { .. } => Outcome::ConnectFailed,
            Self::Closed | Self::Reset { .. } | Self::Protocol { .. } => Outcome::Reset,
            // Ours, the client's, or an orderly end.
            Self::NoCertificate
            | Self::Overloaded(_)
            | Self::IdleClosed { .. }
            | Self::Refused
            | Self::RequestBody { .. }
            | Self::Request { .. } => Outcome::Cancelled,
        }
    }
}

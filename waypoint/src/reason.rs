//! Why a connection or request was refused or ended: one stable label shared by the access log, the metrics and
//! the command line.

use std::fmt;

/// A reason of this crate's own plumbing, or one of another part, already stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The first configuration is not complete yet.
    NotConfigured,
    /// A tunnel asked for something that this waypoint does not serve.
    UnknownDestination,
    /// The service's port has routes for HTTP, and the client speaks something else.
    NotHttp,
    /// No listener of the gateway's port is for the host name of the TLS client hello.
    NoListener,
    /// The listener has no certificate that can be used.
    NoServerCertificate,
    /// The client's hello was not one, or too large.
    BadClientHello,
    /// The TLS handshake with a client failed.
    TlsFailed,
    /// No route is for this request or connection.
    NoRoute,
    /// The route's backend cannot be used, for a reason of the configuration.
    InvalidBackend,
    /// The proxy is at its limit of connections.
    TooManyConnections,
    /// A peer did not send its first bytes, or end its handshake, in time.
    FirstBytesTimeout,
    /// Nothing was sent in either direction for too long.
    IdleTimeout,
    /// The client went away.
    ClientGone,
    /// The other end broke the connection.
    UpstreamReset,
    /// This proxy has no valid certificate.
    NoCertificate,
    /// The proxy is ending.
    Shutdown,
    /// A reason of another part or library, already stable.
    Other(&'static str),
}

impl Reason {
    /// The label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotConfigured => "state_not_ready",
            Self::UnknownDestination => "waypoint_unknown_destination",
            Self::NotHttp => "waypoint_not_http",
            Self::NoListener => "gateway_no_listener",
            Self::NoServerCertificate => "gateway_no_certificate",
            Self::BadClientHello => "gateway_bad_client_hello",
            Self::TlsFailed => "gateway_tls_failed",
            Self::NoRoute => "no_route",
            Self::InvalidBackend => "backend_invalid",
            Self::TooManyConnections => "too_many_connections",
            Self::FirstBytesTimeout => "first_bytes_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::ClientGone => "client_gone",
            Self::UpstreamReset => "upstream_reset",
            Self::NoCertificate => "no_certificate",
            Self::Shutdown => "shutdown",
            Self::Other(label) => label,
        }
    }

    /// The `response_flags` value of Istio's metrics for it: Envoy's short codes, which its dashboards know.
    #[must_use]
    pub fn response_flag(self) -> &'static str {
        match self.as_str() {
            "no_endpoints" => "UH",
            "no_route"
            | "waypoint_unknown_destination"
            | "gateway_no_listener"
            | "route_not_ready" => "NR",
            "too_many_connections" => "UO",
            "request_timeout" | "backend_timeout" | "upstream_timeout" => "UT",
            "client_gone" => "DC",
            "idle_timeout" => "SI",
            "upstream_reset" => "UR",
            "retries_exhausted" => "URX",
            "waypoint_not_http" | "gateway_bad_client_hello" | "gateway_tls_failed" => "DPE",
            // What Envoy's own authorization refuses has no flag there.
            "policy_denied" | "policy_not_ready" => "-",
            "authentication_not_ready" | "jwks_unavailable" => "-",
            label if label.starts_with("jwt_") => "-",
            // What its external authorization refuses has one.
            label if label.starts_with("custom_") => "UAEX",
            label if label.starts_with("overloaded_") => "UO",
            label if label.starts_with("http_") || label.starts_with("request_") => "DPE",
            _ => "UF",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn flags_follow_the_label() {
        assert_eq!(Reason::Other("no_route").response_flag(), "NR");
        assert_eq!(Reason::Other("no_endpoints").response_flag(), "UH");
        assert_eq!(Reason::Other("backend_timeout").response_flag(), "UT");
        assert_eq!(Reason::Other("connect_timeout").response_flag(), "UF");
    }
}

//! Why a connection was refused or ended: one stable label shared by the access
//! log, the metrics and the CLI.

use std::fmt;

/// A reason of this crate, or one of a library below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// An outbound connection arrived that the kernel did not capture.
    NotCaptured,
    /// A connection to one of the agent's own ports.
    SelfCall,
    /// The agent has not received the mesh's state yet.
    StateNotReady,
    /// The service exists, but not on this port.
    ServicePortUnknown,
    /// The service has no endpoint that can be used.
    NoHealthyUpstream,
    /// The destination is behind a waypoint that is described in a way that cannot be followed.
    WaypointUnsupported,
    /// The mesh knows nothing of the waypoint, or not of its port.
    WaypointUnknown,
    /// The waypoint has no pod that can be used.
    WaypointNoEndpoints,
    /// What should be a waypoint has no tunnel listener.
    WaypointNotHbone,
    /// A waypoint's own connection would go through that waypoint.
    WaypointLoop,
    /// The connection did not come through the waypoint that it must come through.
    WaypointRequired,
    /// The pod may only connect to what the mesh knows, and the destination is nothing of it.
    EgressDenied,
    /// The destination is on another network, which cannot be reached yet.
    NetworkUnsupported,
    /// An authorization policy refuses the connection, or none allows it.
    PolicyDenied,
    /// An authorization policy applies that has not come from the controller.
    PolicyUnknown,
    /// An authorization policy applies that came in a form that cannot be used.
    PolicyUnusable,
    /// This pod has no valid certificate.
    NoCertificate,
    /// The pod is at its limit of connections.
    TooManyConnections,
    /// This node has no file descriptors or kernel memory left for a connection.
    OutOfResources,
    /// The destination did not accept the connection.
    UpstreamConnectFailed,
    /// The real client address could not be given to the application.
    SourceAddressFailed,
    /// The kernel could not say where the application wanted to go.
    OriginalDestinationFailed,
    /// CONNECT names an address that is not the pod's.
    ConnectNotOwnAddress,
    /// CONNECT names one of the agent's own ports.
    ConnectIllegalPort,
    /// CONNECT names something that is not `ip:port`.
    ConnectBadAuthority,
    /// The pod was deleted or the agent is shutting down.
    Shutdown,
    /// A reason of a library, already stable.
    Other(&'static str),
}

impl Reason {
    /// The label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotCaptured => "not_captured",
            Self::SelfCall => "self_call",
            Self::StateNotReady => "state_not_ready",
            Self::ServicePortUnknown => "service_port_unknown",
            Self::NoHealthyUpstream => "no_healthy_upstream",
            Self::WaypointUnsupported => "waypoint_unsupported",
            Self::WaypointUnknown => "waypoint_unknown",
            Self::WaypointNoEndpoints => "waypoint_no_endpoints",
            Self::WaypointNotHbone => "waypoint_not_hbone",
            Self::WaypointLoop => "waypoint_loop",
            Self::WaypointRequired => "waypoint_required",
            Self::EgressDenied => "egress_denied",
            Self::NetworkUnsupported => "network_unsupported",
            Self::PolicyDenied => "policy_denied",
            Self::PolicyUnknown => "policy_unknown",
            Self::PolicyUnusable => "policy_unusable",
            Self::NoCertificate => "no_certificate",
            Self::TooManyConnections => "too_many_connections",
            Self::OutOfResources => "out_of_resources",
            Self::UpstreamConnectFailed => "upstream_connect_failed",
            Self::SourceAddressFailed => "source_address_failed",
            Self::OriginalDestinationFailed => "original_destination_failed",
            Self::ConnectNotOwnAddress => "connect_not_own_address",
            Self::ConnectIllegalPort => "connect_illegal_port",
            Self::ConnectBadAuthority => "connect_bad_authority",
            Self::Shutdown => "shutdown",
            Self::Other(label) => label,
        }
    }

    /// The `response_flags` value of Istio's metrics for it.
    pub fn response_flag(self) -> ResponseFlag {
        match self.as_str() {
            "policy_denied" | "policy_unknown" | "policy_unusable" | "waypoint_required"
            | "egress_denied" => ResponseFlag::Deny,
            "no_certificate" | "trust_domain_mismatch" | "identity_mismatch" => {
                ResponseFlag::Identity
            }
            "http2_protocol_error" => ResponseFlag::Http2,
            label if label.starts_with("tls_") => ResponseFlag::Tls,
            _ => ResponseFlag::Connect,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Values of the `response_flags` label of failed connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum ResponseFlag {
    /// The destination, or the way to it, failed.
    Connect = 0,
    /// Refused by policy.
    Deny = 1,
    /// TLS failed.
    Tls = 2,
    /// HTTP/2 failed.
    Http2 = 3,
    /// Somebody has no or the wrong identity.
    Identity = 4,
}

impl ResponseFlag {
    /// All flags, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::Connect,
        Self::Deny,
        Self::Tls,
        Self::Http2,
        Self::Identity,
    ];

    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "CONNECT",
            Self::Deny => "DENY",
            Self::Tls => "TLS_FAILURE",
            Self::Http2 => "H2_HANDSHAKE_FAILURE",
            Self::Identity => "IDENTITY_ERROR",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Reason, ResponseFlag};

    #[test]
    fn flags_follow_the_label() {
        let flag = |label| Reason::Other(label).response_flag();
        assert_eq!(flag("tls_expired"), ResponseFlag::Tls);
        assert_eq!(flag("identity_mismatch"), ResponseFlag::Identity);
        assert_eq!(Reason::PolicyDenied.response_flag(), ResponseFlag::Deny);
        assert_eq!(
            Reason::NoHealthyUpstream.response_flag(),
            ResponseFlag::Connect
        );
    }

    #[test]
    fn flag_numbers_are_indices() {
        for (index, flag) in ResponseFlag::ALL.iter().enumerate() {
            assert_eq!(*flag as usize, index);
        }
    }
}

//! The `:authority` of a CONNECT.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::TunnelError;

/// Longest host in bytes: that of a DNS name.
const MAX_HOST_BYTES: usize = 253;

/// Where a CONNECT wants to go. The port is never 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// An address.
    Address(SocketAddr),
    /// A host name.
    Host {
        /// The name in lower case.
        name: String,
        /// The port.
        port: u16,
    },
}

impl Authority {
    /// Parses `ip:port`, `[ipv6]:port` or `host:port`; a port is required.
    ///
    /// # Errors
    /// [`TunnelError::BadAuthority`] for anything else, user information and port 0 included.
    pub fn parse(text: &str) -> Result<Self, TunnelError> {
        let (host, port) = text.rsplit_once(':').ok_or(TunnelError::BadAuthority)?;
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port: u16 = match port.parse() {
            Ok(port) if digits && port != 0 => port,
            _ => return Err(TunnelError::BadAuthority),
        };
        if let Some(inner) = host.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(TunnelError::BadAuthority)?;
            let ip = inner.parse().map_err(|_| TunnelError::BadAuthority)?;
            return Ok(Self::Address(SocketAddr::new(IpAddr::V6(ip), port)));
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self::Address(SocketAddr::new(IpAddr::V4(ip), port)));
        }
        if !is_host_name(host) {
            return Err(TunnelError::BadAuthority);
        }
        Ok(Self::Host {
            name: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => *port,
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

fn is_host_name(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    // All digits and dots is an address that did not parse, not a name.
    let numeric = host.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    !host.is_empty() && host.len() <= MAX_HOST_BYTES && !numeric && host.bytes().all(allowed)
}

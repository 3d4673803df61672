//! Conversions between wire fields and Rust types that cannot hold an invalid value.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A field whose value no valid peer sends. The sender is at fault; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct FieldError {
    /// The field, as a path inside its message.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl FieldError {
    /// An error about `field`; `problem` continues the sentence.
    #[must_use]
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }

    /// Stable label for logs and metrics.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        "api_invalid_field"
    }
}

/// Reads an address of 4 (IPv4) or 16 (IPv6) bytes. A v4-mapped IPv6 address becomes IPv4, so that
/// one address has one name.
///
/// # Errors
/// When the length is another one.
pub fn ip_address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, FieldError> {
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        return Ok(Ipv4Addr::from(octets).into());
    }
    if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        return Ok(IpAddr::from(Ipv6Addr::from(octets)).to_canonical());
    }
    Err(FieldError::new(
        field,
        format!("is {} bytes long, an IP address has 4 or 16", bytes.len()),
    ))
}

/// Reads a list of addresses.
///
/// # Errors
/// When one of them is neither 4 nor 16 bytes long.
pub fn ip_addresses(field: &'static str, list: &[Vec<u8>]) -> Result<Vec<IpAddr>, FieldError> {
    list.iter().map(|bytes| ip_address(field, bytes)).collect()
}

/// Writes an address as the wire wants it.
#[must_use]
pub fn address_bytes(ip: IpAddr) -> Vec<u8> {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Reads a TCP port.
///
/// # Errors
/// When it is 0 or above 65535.
pub fn port(field: &'static str, value: u32) -> Result<u16, FieldError> {
    match u16::try_from(value) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(
            field,
            format!("is {value}, a port is 1 to 65535"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_wire() {
        for text in ["10.0.0.1", "fd00::1", "0.0.0.0", "::"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(ip_address("a", &address_bytes(ip)), Ok(ip));
        }
    }

    #[test]
    fn mapped_address_becomes_ipv4() {
        let mapped: Ipv6Addr = "::ffff:10.0.0.1".parse().unwrap();
        let ip = ip_address("a", &mapped.octets()).unwrap();
        assert_eq!(ip, "10.0.0.1".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn odd_lengths_are_refused() {
        for length in [0, 1, 3, 5, 15, 17] {
            let error = ip_address("addresses", &vec![0; length]).unwrap_err();
            assert_eq!(error.field, "addresses");
            assert!(error.problem.contains(&length.to_string()));
        }
    }

    #[test]
    fn ports_are_one_to_65535() {
        assert_eq!(port("p", 1), Ok(1));
        assert_eq!(port("p", 65_535), Ok(65_535));
        assert!(port("p", 0).is_err());
        assert!(port("p", 65_536).is_err());
    }
}

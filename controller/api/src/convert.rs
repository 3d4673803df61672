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

/// Reads an address, or a block as in `10.0.0.0/8`: the address as it is written, and the length of
/// the network's part in bits, if there is one. `None` for other text.
#[must_use]
pub fn parse_block(text: &str) -> Option<(IpAddr, Option<u8>)> {
    let Some((ip, length)) = text.split_once('/') else {
        return Some((text.parse().ok()?, None));
    };
    let ip = ip.parse().ok()?;
    // `parse` takes a sign, which nobody means.
    let is_number = length.bytes().all(|byte| byte.is_ascii_digit());
    let length = length.parse().ok().filter(|_| is_number)?;
    (length <= whole(ip)).then_some((ip, Some(length)))
}

/// The network's part of an address, which is so many bits long: one block has one form. `None` if
/// the address is shorter.
#[must_use]
pub fn network(ip: IpAddr, length: u8) -> Option<IpAddr> {
    let rest = u32::from(whole(ip).checked_sub(length)?);
    Some(match ip {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(rest).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(rest).unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    })
}

/// The length of an address in bits.
#[must_use]
pub fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
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
    fn blocks_are_read_as_written() {
        for (text, ip, length) in [
            ("10.0.0.1", "10.0.0.1", None),
            ("10.0.0.1/8", "10.0.0.1", Some(8)),
            ("0.0.0.0/0", "0.0.0.0", Some(0)),
            ("10.0.0.1/32", "10.0.0.1", Some(32)),
            ("fd00::1/128", "fd00::1", Some(128)),
            ("::ffff:10.0.0.1/104", "::ffff:10.0.0.1", Some(104)),
        ] {
            let ip: IpAddr = ip.parse().unwrap();
            assert_eq!(parse_block(text), Some((ip, length)), "{text}");
        }
        for bad in [
            "",
            "/",
            "/8",
            "10.0.0.1/",
            "10.0.0.1/33",
            "fd00::/129",
            "10.0.0.1/+8",
            "10.0.0.1/-1",
            "10.0.0.1/256",
            "10.0.0.1/8/8",
            "10.0.0.1/ 8",
            "10.0.0.1/٣",
            "10.0.0.1 ",
            "10.0.0",
            "host",
        ] {
            assert_eq!(parse_block(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_network_is_without_the_bits_beyond() {
        for (ip, length, expected) in [
            ("255.255.255.255", 0, Some("0.0.0.0")),
            ("255.255.255.255", 9, Some("255.128.0.0")),
            ("255.255.255.255", 32, Some("255.255.255.255")),
            ("255.255.255.255", 33, None),
            ("ffff::1", 0, Some("::")),
            ("ffff::1", 127, Some("ffff::")),
            ("ffff::1", 128, Some("ffff::1")),
            ("ffff::1", 129, None),
        ] {
            let expected = expected.map(|text| text.parse::<IpAddr>().unwrap());
            assert_eq!(
                network(ip.parse().unwrap(), length),
                expected,
                "{ip}/{length}"
            );
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

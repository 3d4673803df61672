//! Blocks of addresses.

use std::net::IpAddr;

use karst_api::convert::ip_address;
use karst_api::waypoint as wire;
use karst_api::waypoint::attribute_value::Kind;

use super::strings::MAX_VALUES;
use crate::config::{ConfigError, at_most};

/// A block of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    V4 { network: u32, mask: u32 },
    V6 { network: u128, mask: u128 },
}

impl Block {
    pub(super) fn list(
        field: &str,
        wire: &[wire::AttributeValue],
    ) -> Result<Vec<Self>, ConfigError> {
        at_most(field, wire.len(), MAX_VALUES)?;
        let block = |(index, value): (usize, &wire::AttributeValue)| {
            let at = format!("{field}[{index}]");
            match &value.kind {
                Some(Kind::IpBlock(block)) => Self::new(block).map_err(|error| error.within(at)),
                _ => Err(ConfigError::new(
                    at,
                    "is no block of addresses, which this attribute wants",
                )),
            }
        };
        wire.iter().enumerate().map(block).collect()
    }

    fn new(wire: &wire::IpBlock) -> Result<Self, ConfigError> {
        let too_long = |bits: u32| {
            let problem = format!("is {}, the address has {bits} bits", wire.length);
            ConfigError::new("length", problem)
        };
        match ip_address("address", &wire.address)? {
            // An address of IPv4 in IPv6's clothes has lost 96 bits, of which a block of fewer would mean others.
            IpAddr::V4(address) => {
                let bits = if wire.address.len() == 16 {
                    wire.length.checked_sub(96)
                } else {
                    Some(wire.length)
                };
                let bits = bits.filter(|bits| *bits <= u32::BITS);
                let bits = bits.ok_or_else(|| too_long(u32::BITS))?;
                let mask = u32::MAX.checked_shl(u32::BITS - bits).unwrap_or(0);
                let network = address.to_bits() & mask;
                Ok(Self::V4 { network, mask })
            }
            IpAddr::V6(_) if wire.length > u128::BITS => Err(too_long(u128::BITS)),
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(u128::BITS - wire.length).unwrap_or(0);
                let network = address.to_bits() & mask;
                Ok(Self::V6 { network, mask })
            }
        }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match (self, address.to_canonical()) {
            (Self::V4 { network, mask }, IpAddr::V4(address)) => {
                address.to_bits() & mask == *network
            }
            (Self::V6 { network, mask }, IpAddr::V6(address)) => {
                address.to_bits() & mask == *network
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use karst_api::waypoint as wire;

    use super::Block;

    fn block(address: &str, length: u32) -> Result<Block, String> {
        let address = match address.parse().unwrap() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        Block::new(&wire::IpBlock { address, length }).map_err(|error| error.to_string())
    }

    #[test]
    fn blocks_hold_their_addresses() {
        for (network, length, inside, outside) in [
            ("10.1.0.0", 16, "10.1.255.255", "10.2.0.0"),
            ("10.1.2.3", 16, "10.1.0.0", "11.1.2.3"),
            ("10.1.2.3", 32, "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0", 0, "255.1.2.3", "::1"),
            ("fd00::", 8, "fdff::1", "fc00::1"),
            ("::", 0, "fc00::1", "10.0.0.1"),
            ("fd00::1", 128, "fd00::1", "fd00::2"),
            ("::ffff:10.1.0.0", 112, "10.1.2.3", "10.2.0.0"),
        ] {
            let block = block(network, length).unwrap();
            assert!(block.contains(inside.parse().unwrap()), "{network}");
            assert!(!block.contains(outside.parse().unwrap()), "{network}");
        }
        let mapped = "::ffff:10.1.2.3".parse().unwrap();
        assert!(block("10.1.0.0", 16).unwrap().contains(mapped));
    }

    #[test]
    fn lengths_fit_their_family() {
        assert!(block("10.0.0.0", 33).is_err());
        assert!(block("fd00::", 129).is_err());
        assert!(block("::ffff:10.0.0.0", 95).is_err());
    }
}

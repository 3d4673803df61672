// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Addresses as the kernel hands them over: IPv6 words in network order, IPv4 mapped into IPv6.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The third word of `::ffff:a.b.c.d`.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// An IP address of either family. IPv4 is kept as `::ffff:a.b.c.d`, as a dual-stack socket
/// shows it, so that one map serves both families.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ip(pub [u32; 4]);

impl Ip {
    /// `::`, which also stands for "none".
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// From an IPv4 address in network order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, MAPPED, word])
    }

    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Word by word: a slice comparison would become a call that BPF has not got.
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.0[0] == other.0[0]
            && self.0[1] == other.0[1]
            && self.0[2] == other.0[2]
            && self.0[3] == other.0[3]
    }

    /// `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.is_v4() {
            return self.0[3] & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be();
        }
        self.same(&Self([0, 0, 0, 1_u32.to_be()]))
    }

    /// `0.0.0.0` or `::`; connecting to either means loopback.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        self.same(&Self::UNSPECIFIED) || self.same(&Self::from_v4_word(0))
    }

    /// Loopback of the family this address is written in.
    #[inline(always)]
    pub const fn loopback_of_same_family(&self) -> Self {
        if self.is_v4() {
            Self::from_v4_word(0x7f00_0001_u32.to_be())
        } else {
            Self([0, 0, 0, 1_u32.to_be()])
        }
    }

    /// The sixteen bytes, in the order they are written down.
    #[inline(always)]
    pub const fn octets(&self) -> [u8; 16] {
        let a = self.0[0].to_ne_bytes();
        let b = self.0[1].to_ne_bytes();
        let c = self.0[2].to_ne_bytes();
        let d = self.0[3].to_ne_bytes();
        [
            a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1],
            d[2], d[3],
        ]
    }

    /// The address as people know it, IPv4 unmapped.
    pub fn to_ip_addr(self) -> IpAddr {
        Ipv6Addr::from(self.octets()).to_canonical()
    }
}

impl From<Ipv4Addr> for Ip {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Ipv6Addr> for Ip {
    fn from(address: Ipv6Addr) -> Self {
        let octets = address.octets();
        let word =
            |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<IpAddr> for Ip {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => address.into(),
        }
    }
}

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub ip: Ip,
    /// The port, host order.
    pub port: u16,
    /// Always zero: the kernel compares keys byte by byte.
    pub padding: [u8; 2],
}

impl Endpoint {
    /// An address and a port in host order.
    #[inline(always)]
    pub const fn new(ip: Ip, port: u16) -> Self {
        Self {
            ip,
            port,
            padding: [0; 2],
        }
    }

    /// Equal, compared word by word (see [`Ip::same`]).
    #[inline(always)]
    pub const fn same(&self, other: &Self) -> bool {
        self.ip.same(&other.ip) && self.port == other.port
    }

    /// As a socket address, IPv4 unmapped.
    pub fn to_socket_addr(self) -> SocketAddr {
        SocketAddr::new(self.ip.to_ip_addr(), self.port)
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self::new(address.ip().into(), address.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn ip(text: &str) -> Ip {
        text.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn loopback_is_the_whole_of_127_and_one_v6_address() {
        for inside in ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.9.9.9"] {
            assert!(ip(inside).is_loopback(), "{inside}");
        }
        for outside in [
            "126.255.255.255",
            "128.0.0.1",
            "::2",
            "::",
            "0.0.0.0",
            "1::1",
        ] {
            assert!(!ip(outside).is_loopback(), "{outside}");
        }
    }

    #[test]
    fn unspecified_of_both_families() {
        assert!(ip("0.0.0.0").is_unspecified());
        assert!(ip("::").is_unspecified());
        assert!(!ip("::1").is_unspecified());
        assert!(!ip("0.0.0.1").is_unspecified());
    }

    proptest! {
        #[test]
        fn every_v4_address_survives_the_mapping(bits: u32, port: u16) {
            let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::from(bits)), port);
            let endpoint = Endpoint::from(address);
            prop_assert!(endpoint.ip.is_v4());
            prop_assert_eq!(endpoint.to_socket_addr(), address);
        }

        #[test]
        fn every_v6_address_survives(bits: u128, port: u16) {
            let v6 = Ipv6Addr::from(bits);
            let endpoint = Endpoint::from(SocketAddr::new(IpAddr::V6(v6), port));
            prop_assert_eq!(endpoint.ip.octets(), v6.octets());
            prop_assert_eq!(endpoint.to_socket_addr().ip(), v6.to_canonical());
        }

        #[test]
        fn predicates_agree_with_the_standard_library(bits: u128, low: u32, mapped: bool) {
            let address = if mapped { Ipv4Addr::from(low).to_ipv6_mapped() } else { Ipv6Addr::from(bits) };
            let canonical = address.to_canonical();
            let ours = Ip::from(address);
            prop_assert_eq!(ours.is_loopback(), canonical.is_loopback(), "{}", canonical.to_string());
            prop_assert_eq!(ours.is_unspecified(), canonical.is_unspecified());
            prop_assert_eq!(ours.is_v4(), canonical.is_ipv4());
        }
    }
}

//! The address plan, the same in every lab: all of it lives inside the lab's namespaces, so
//! labs side by side do not meet.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result};

/// Host part of the controller's address on the wire.
pub const CONTROL_HOST: u8 = 250;
/// Host part of the external host's address on the wire.
pub const EXTERNAL_HOST: u8 = 254;
/// The external host's own address (TEST-NET-3), outside every pod, service and node range.
pub const EXTERNAL_V4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The external host's own IPv6 address (documentation range).
pub const EXTERNAL_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);
/// The service range's first address; 16 bits long.
const SERVICES_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 0);
/// The IPv6 service range's first address; 112 bits long.
const SERVICES_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0);
/// Pods a node can hold: its IPv4 range less network, gateway and broadcast.
const LAST_POD_HOST: u8 = 254;
/// Service addresses handed out; far more than a lab has services.
const LAST_SERVICE: u16 = 4000;

/// An IPv4 and an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Pair {
    /// Both, IPv4 first.
    pub fn both(self) -> Vec<IpAddr> {
        vec![self.v4.into(), self.v6.into()]
    }
}

/// A host's addresses on the wire (172.30.0.0/24, fd00:172:30::/64).
pub fn wire(host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(172, 30, 0, host),
        v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, u16::from(host)),
    }
}

/// A pod's addresses on node number `node` (10.244.n.0/24, fd00:10:244:n::/64).
pub fn pod(node: u8, host: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(10, 244, node, host),
        v6: Ipv6Addr::new(
            0xfd00,
            0x10,
            0x244,
            u16::from(node),
            0,
            0,
            0,
            u16::from(host),
        ),
    }
}

/// The gateway of a node's pods: the node's own address on its pod bridge.
pub fn gateway(node: u8) -> Pair {
    pod(node, 1)
}

/// A node's pod ranges, IPv4 first.
pub fn pod_ranges(node: u8) -> [String; 2] {
    [
        format!("10.244.{node}.0/24"),
        format!("fd00:10:244:{node:x}::/64"),
    ]
}

/// The lowest free pod address of a node. Lowest first, so that a deleted pod's address goes
/// to the next pod of that node: address reuse is the rule here, not the exception.
pub fn allot_pod(node: u8, taken: &BTreeSet<IpAddr>) -> Result<Pair> {
    (2..=LAST_POD_HOST)
        .map(|host| pod(node, host))
        .find(|pair| !taken.contains(&IpAddr::V4(pair.v4)))
        .with_context(|| format!("node {node} has no free pod address"))
}

/// The lowest free IPv4 service address.
pub fn allot_service_v4(taken: &BTreeSet<IpAddr>) -> Result<IpAddr> {
    (10..LAST_SERVICE)
        .map(|host| IpAddr::V4(Ipv4Addr::from_bits(SERVICES_V4.to_bits() + u32::from(host))))
        .find(|address| !taken.contains(address))
        .context("no free IPv4 service address")
}

/// The lowest free IPv6 service address.
pub fn allot_service_v6(taken: &BTreeSet<IpAddr>) -> Result<IpAddr> {
    (10..LAST_SERVICE)
        .map(|host| {
            IpAddr::V6(Ipv6Addr::from_bits(
                SERVICES_V6.to_bits() + u128::from(host),
            ))
        })
        .find(|address| !taken.contains(address))
        .context("no free IPv6 service address")
}

/// A MAC address made from an IPv4 address, so that a neighbour's cache entry for a reused
/// address is right at once.
pub fn mac(address: Ipv4Addr) -> String {
    let [a, b, c, d] = address.octets();
    format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

//! SYNs written byte by byte, as somebody writes them who wants to get past a check.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{MsgFlags, sendto};
use socket2::{Domain, Socket, Type};

use crate::{Host, World};

/// How a SYN is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// As TCP sends it.
    Plain,
    /// With an option in the IPv4 header, or a destination options header.
    Options,
    /// In two fragments, of which the first has ports and sequence number only.
    TinyFragment,
    /// In two fragments, of which the first has the whole header.
    Fragment,
    /// Behind as many headers as nobody sends; IPv6 alone.
    ManyHeaders,
}

const TCP: u8 = 6;
const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT: u8 = 44;

const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_8021Q: u16 = 0x8100;

/// Puts a SYN with this sequence number on the wire, from an address that need not be the sender's, behind as many
/// tags of VLAN 0.
pub fn syn(
    world: &World,
    sender: Host,
    from: SocketAddr,
    to: SocketAddr,
    way: (Packing, usize),
) -> Result<()> {
    const SEQUENCE: u32 = 1;
    let segment = segment(from, to, SEQUENCE);
    let (packing, tags) = way;
    let (ethertype, packets) = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let packets = v4(from.octets(), to.octets(), &segment, packing)?;
            (ETH_IPV4, packets)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            (ETH_IPV6, v6(from.octets(), to.octets(), &segment, packing))
        }
        _ => bail!("two families"),
    };
    let mut header = [
        world.hardware_address(Host::B)?,
        world.hardware_address(sender)?,
    ]
    .concat();
    for _ in 0..tags {
        header.extend(ETH_8021Q.to_be_bytes());
        header.extend([0, 0]);
    }
    header.extend(u16::to_be_bytes(ethertype));
    let sent = world.app(sender)?.run(|| {
        let links = getifaddrs()?.filter(|one| one.interface_name == "eth0");
        let address = links.filter_map(|one| one.address?.as_link_addr().copied());
        let address = address.last().context("no interface")?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        for packet in packets {
            let frame = [&header[..], &packet].concat();
            sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty())?;
        }
        anyhow::Ok(())
    })?;
    sent.context("send a SYN")
}

/// A TCP header with a checksum, and eight bytes of data so that it can be cut in two.
fn segment(from: SocketAddr, to: SocketAddr, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(from.port().to_be_bytes());
    bytes.extend(to.port().to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend([0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(*b"12345678");
    let mut sum = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (from, to) => [octets(from), octets(to)].concat(),
    };
    sum.extend([0, TCP]);
    sum.extend((bytes.len() as u16).to_be_bytes());
    sum.extend(&bytes);
    let checksum = checksum(&sum);
    bytes[16..18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn v4(from: [u8; 4], to: [u8; 4], segment: &[u8], packing: Packing) -> Result<Vec<Vec<u8>>> {
    let packet = |options: &[u8], fragment: u16, data: &[u8]| {
        let length = 20 + options.len() + data.len();
        let mut bytes = vec![0x40 | (5 + options.len() / 4) as u8, 0];
        bytes.extend((length as u16).to_be_bytes());
        // An identification of its own, so that the fragments belong together.
        bytes.extend([0x4b, 0x53]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, TCP, 0, 0]);
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend(options);
        let checksum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        bytes.extend(data);
        bytes
    };
    const MORE: u16 = 0x2000;
    let cut = |at: usize| {
        let rest = packet(&[], (at / 8) as u16, &segment[at..]);
        vec![packet(&[], MORE, &segment[..at]), rest]
    };
    Ok(match packing {
        Packing::Plain => vec![packet(&[], 0, segment)],
        // No operation, three times, and the end of the options.
        Packing::Options => vec![packet(&[1, 1, 1, 0], 0, segment)],
        Packing::TinyFragment => cut(8),
        Packing::Fragment => cut(24),
        Packing::ManyHeaders => bail!("IPv4 has no such headers"),
    })
}

fn v6(from: [u8; 16], to: [u8; 16], segment: &[u8], packing: Packing) -> Vec<Vec<u8>> {
    let packet = |next: u8, data: &[u8]| {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend((data.len() as u16).to_be_bytes());
        bytes.extend([next, 64]);
        bytes.extend(from);
        bytes.extend(to);
        bytes.extend(data);
        bytes
    };
    // A destination options header that is padding alone.
    let behind = |next: u8, data: &[u8]| [&[next, 0, 1, 4, 0, 0, 0, 0], data].concat();
    let piece = |offset: usize, more: bool, data: &[u8]| {
        let place = (offset as u16 | u16::from(more)).to_be_bytes();
        let header = [TCP, 0, place[0], place[1], 0, 0, 0x4b, 0x53];
        packet(FRAGMENT, &[&header[..], data].concat())
    };
    match packing {
        Packing::Plain => vec![packet(TCP, segment)],
        Packing::Options => vec![packet(DESTINATION_OPTIONS, &behind(TCP, segment))],
        Packing::TinyFragment => vec![
            piece(0, true, &segment[..8]),
            piece(8, false, &segment[8..]),
        ],
        Packing::Fragment => vec![
            piece(0, true, &segment[..24]),
            piece(24, false, &segment[24..]),
        ],
        Packing::ManyHeaders => {
            let innermost = behind(TCP, segment);
            let data = (0..11).fold(innermost, |data, _| behind(DESTINATION_OPTIONS, &data));
            vec![packet(DESTINATION_OPTIONS, &data)]
        }
    }
}

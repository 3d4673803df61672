//! What the kernel tells of network interfaces (`NETLINK_ROUTE`, rtnetlink(7)): whose an address is, what an
//! interface's other end is, and which number one network namespace has in another.
//!
//! These are three short questions, so messages are written and read here; numbers are those of linux/if_link.h,
//! linux/rtnetlink.h and linux/net_namespace.h.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;

use crate::netns::Netns;

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWNSID: u16 = 88;
const RTM_GETNSID: u16 = 90;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_INFO_KIND: u16 = 1;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Bits of an attribute's type that say how it is encoded.
const FLAGS: u16 = 0xc000;

/// `struct nlmsghdr`, `struct ifinfomsg`, `struct ifaddrmsg`, `struct rtgenmsg` with its padding.
const HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const GENERAL_HEADER: usize = 4;

/// Room for one message; the kernel fills at most 32 KiB of it.
const BUFFER_BYTES: usize = 64 << 10;

/// Time for one answer: the kernel looks into its own tables.
const LIMIT: Duration = Duration::from_secs(5);

/// An interface, as far as it is asked about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    /// `veth`, `bridge`, …; empty for hardware.
    pub(crate) kind: String,
    /// Index of its other end, where it has one.
    pub(crate) peer: Option<u32>,
    /// Number of the namespace that the other end is in, as this one counts them; `None` for the same one.
    pub(crate) peer_netns: Option<i32>,
}

/// Asks in one namespace.
pub(crate) struct Route {
    socket: Socket,
    sequence: u32,
}

impl Route {
    pub(crate) fn open(netns: &Netns) -> io::Result<Self> {
        let socket = netns.run_apart(|| Socket::new(NETLINK_ROUTE))??;
        setsockopt(&socket.as_fd(), ReceiveTimeout, &TimeVal::new(1, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Index of the interface with this address.
    pub(crate) fn with_address(&mut self, address: IpAddr) -> io::Result<Option<u32>> {
        let wanted = match address.to_canonical() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut found = None;
        let dump = NLM_F_REQUEST | NLM_F_DUMP;
        self.ask(
            RTM_GETADDR,
            dump,
            &[0; ADDRESS_HEADER],
            &[],
            |kind, body| {
                let is_it = |(name, value): &(u16, &[u8])| {
                    matches!(*name, IFA_ADDRESS | IFA_LOCAL) && *value == wanted
                };
                if kind == RTM_NEWADDR
                    && body
                        .get(ADDRESS_HEADER..)
                        .is_some_and(|rest| attributes(rest).any(|one| is_it(&one)))
                {
                    found = found.or(word(body, 4));
                }
            },
        )?;
        Ok(found)
    }

    /// The interface with this index; `None` when there is none.
    pub(crate) fn interface(&mut self, index: u32) -> io::Result<Option<Interface>> {
        let mut header = [0; LINK_HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut found = None;
        let asked = self.ask(RTM_GETLINK, NLM_F_REQUEST, &header, &[], |kind, body| {
            if kind == RTM_NEWLINK
                && let Some(rest) = body.get(LINK_HEADER..)
            {
                found = Some(interface(rest));
            }
        });
        match asked {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            asked => asked.map(|()| found),
        }
    }

    /// The number that `netns` has in the namespace asked; `None` when it has none.
    pub(crate) fn number_of(&mut self, netns: BorrowedFd<'_>) -> io::Result<Option<i32>> {
        let fd = netns.as_raw_fd().cast_unsigned();
        let mut found = None;
        let header = [0; GENERAL_HEADER];
        let attribute = attribute(NETNSA_FD, &fd.to_ne_bytes());
        self.ask(
            RTM_GETNSID,
            NLM_F_REQUEST,
            &header,
            &attribute,
            |kind, body| {
                if kind == RTM_NEWNSID
                    && let Some(rest) = body.get(GENERAL_HEADER..)
                {
                    let mut numbers = attributes(rest).filter(|(name, _)| *name == NETNSA_NSID);
                    found = numbers
                        .next()
                        .and_then(|(_, value)| word(value, 0))
                        .map(u32::cast_signed);
                }
            },
        )?;
        Ok(found.filter(|number| *number >= 0))
    }

    /// Sends one question and hands each message of the answer to `take`, by its type and what follows its header.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        attributes: &[u8],
        mut take: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = HEADER + header.len() + attributes.len();
        let mut request = Vec::with_capacity(length);
        request.extend((length as u32).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend(flags.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(header);
        request.extend(attributes);
        self.socket.send(&request, 0)?;
        let is_dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let until = Instant::now() + LIMIT;
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let length = self.socket.recv(&mut &mut buffer[..], 0)?;
            let mut rest = buffer.get(..length).unwrap_or_default();
            while let Some(message) = message(rest) {
                rest = rest.get(message.bytes..).unwrap_or_default();
                if message.sequence != self.sequence {
                    // Of a question before, which was given up.
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let code = word(message.body, 0).map_or(0, u32::cast_signed);
                        return match code {
                            0 => Ok(()),
                            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                        };
                    }
                    kind => take(kind, message.body),
                }
                if !is_dump {
                    return Ok(());
                }
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    sequence: u32,
    body: &'a [u8],
    /// Up to the next one.
    bytes: usize,
}

fn message(bytes: &[u8]) -> Option<Message<'_>> {
    let length = word(bytes, 0)? as usize;
    Some(Message {
        kind: half(bytes, 4)?,
        sequence: word(bytes, 8)?,
        body: bytes.get(HEADER..length)?,
        bytes: length.next_multiple_of(4),
    })
}

fn interface(attributes_of: &[u8]) -> Interface {
    let mut found = Interface::default();
    for (name, value) in attributes(attributes_of) {
        match name {
            IFLA_LINK => found.peer = word(value, 0).filter(|index| *index != 0),
            IFLA_LINK_NETNSID => found.peer_netns = word(value, 0).map(u32::cast_signed),
            IFLA_LINKINFO => {
                let kind = attributes(value).find(|(name, _)| *name == IFLA_INFO_KIND);
                let text = kind.map(|(_, value)| value.split(|byte| *byte == 0).next());
                if let Some(Some(text)) = text {
                    found.kind = String::from_utf8_lossy(text).into_owned();
                }
            }
            _ => {}
        }
    }
    found
}

/// Type and value of each; what is cut off ends them.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let name = half(bytes, 2)? & !FLAGS;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((name, value))
    })
}

fn attribute(name: u16, value: &[u8]) -> Vec<u8> {
    let length = 4 + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(name.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*four))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*two))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written_and_never_past_the_end() {
        let mut bytes = attribute(IFLA_LINK, &7u32.to_ne_bytes());
        bytes.extend(attribute(IFLA_LINK_NETNSID, &2u32.to_ne_bytes()));
        let kind = attribute(IFLA_INFO_KIND, b"veth\0");
        bytes.extend(attribute(IFLA_LINKINFO | 0x8000, &kind));
        let expected = Interface {
            kind: "veth".into(),
            peer: Some(7),
            peer_netns: Some(2),
        };
        assert_eq!(interface(&bytes), expected);
        for length in 0..bytes.len() {
            let _ = interface(&bytes[..length]);
        }
        for bytes in [[0; 8], [0xff; 8], [3, 0, 0, 0, 3, 0, 0, 0]] {
            assert_eq!(interface(&bytes), Interface::default());
        }
    }

    #[test]
    fn loopback_is_the_interface_with_its_address_and_has_no_other_end() {
        let here = Netns::current().unwrap();
        let mut route = Route::open(&here).unwrap();
        let index = route.with_address("127.0.0.1".parse().unwrap()).unwrap();
        assert_eq!(index, Some(1));
        let loopback = route.interface(1).unwrap().unwrap();
        assert_eq!((loopback.peer, loopback.kind.as_str()), (None, ""));
        assert_eq!(route.interface(0x7fff_fff0).unwrap(), None);
        let unknown = "203.0.113.77".parse().unwrap();
        assert_eq!(route.with_address(unknown).unwrap(), None);
    }
}

//! The TCP sockets of a network namespace, as the kernel tells of them: listeners, and connections with
//! their TCP_INFO (`NETLINK_SOCK_DIAG`, sock_diag(7)).
//!
//! It is asked on demand only and costs connections nothing. How old a connection is the kernel does not
//! say; who made it, and to what end, only the agent knows. Start with [`tcp_sockets`]; [`destroy`] ends connections.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::{Nla, TcpInfo};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use nix::sys::socket::{setsockopt, sockopt::ReceiveTimeout};
use nix::sys::time::TimeVal;
use serde::Serialize;

use crate::netns::Netns;

/// Sockets of one namespace that are read: twice the connections that an agent serves for one pod (16,384),
/// with both ends of each in the pod. At 300 bytes each this is 20 MB at the most.
pub const MAX_SOCKETS: usize = 65_536;

/// `SOCK_DESTROY` of linux/sock_diag.h, and where a message's type is.
const DESTROY: u16 = 21;
const TYPE_AT: std::ops::Range<usize> = 4..6;

/// Time for one dump: the kernel walks its table in milliseconds.
const LIMIT: Duration = Duration::from_secs(5);

/// Room for one message; the kernel fills at most 32 KiB of it.
const BUFFER_BYTES: usize = 64 << 10;

/// The sockets of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Sockets {
    /// Listeners and connections.
    pub sockets: Vec<TcpSocket>,
    /// Whether there were more than [`MAX_SOCKETS`].
    pub truncated: bool,
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TcpSocket {
    /// `established`, `listen`, …, as `ss` and the kernel name them.
    pub state: &'static str,
    /// Its own end. An IPv4 address of an IPv6 socket is given as IPv4.
    pub local: SocketAddr,
    /// The other end; the unspecified address and port 0 of a listener.
    pub remote: SocketAddr,
    /// User that made it.
    pub uid: u32,
    /// Inode in sockfs, as in `/proc/PID/fd`; 0 when no process has it any more.
    pub inode: u32,
    /// The kernel's number for it, never reused until reboot (`SO_COOKIE`).
    pub cookie: u64,
    /// Bytes that the application has not read; of a listener, connections that wait to be accepted.
    pub receive_queue: u32,
    /// Bytes that are not acknowledged; of a listener, how many connections may wait.
    pub send_queue: u32,
    /// Whether it is an IPv6 socket, which may have IPv4 addresses.
    #[serde(skip)]
    pub is_v6: bool,
    /// Index of the interface that it is bound to; 0 for none.
    #[serde(skip)]
    pub interface: u32,
    /// Measurements; none of a listener, nor of a connection that has ended.
    pub tcp: Option<TcpMeasured>,
}

/// From `struct tcp_info` (tcp(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct TcpMeasured {
    /// Smoothed round trip time, microseconds.
    pub rtt_us: u32,
    /// Its mean deviation, microseconds.
    pub rttvar_us: u32,
    /// Least round trip time of late, microseconds.
    pub min_rtt_us: u32,
    /// Timeouts without an acknowledgement since the last one.
    pub retransmits: u32,
    /// Segments sent again since the connection was made.
    pub retransmits_total: u32,
    /// Segments under way.
    pub unacked: u32,
    /// Segments that are taken for lost.
    pub lost: u32,
    /// Congestion window, segments.
    pub cwnd: u32,
    /// Bytes that the other end has acknowledged.
    pub bytes_acked: u64,
    /// Bytes received.
    pub bytes_received: u64,
    /// Rate at which data arrived of late, bytes a second.
    pub delivery_rate: u64,
    /// Since the last data was sent, milliseconds.
    pub last_data_sent_ms: u32,
    /// Since the last data was received, milliseconds.
    pub last_data_received_ms: u32,
}

impl TcpSocket {
    /// Whether it listens.
    pub fn is_listening(&self) -> bool {
        self.state == "listen"
    }
}

/// Reads the TCP sockets of a namespace, of both families. Blocks for some milliseconds. One that is made or
/// ends meanwhile may be missing.
///
/// # Errors
/// The namespace cannot be entered (no `CAP_SYS_ADMIN`), or the kernel does not answer
/// (`CONFIG_INET_DIAG` and `CONFIG_INET_TCP_DIAG` are needed).
pub fn tcp_sockets(netns: &Netns) -> io::Result<Sockets> {
    tcp_sockets_with(netns, |_| true)
}

/// As [`tcp_sockets`], of those alone for which `keep` says so: how many others there are does not matter then.
///
/// # Errors
/// As [`tcp_sockets`].
pub fn tcp_sockets_with(netns: &Netns, keep: impl Fn(&TcpSocket) -> bool) -> io::Result<Sockets> {
    let socket = open(netns)?;
    let until = Instant::now() + LIMIT;
    let mut found = Sockets::default();
    for family in [AF_INET, AF_INET6] {
        dump(&socket, family, (&mut found, &keep), until)?;
    }
    Ok(found)
}

/// Ends connections as if the machine had lost them: the application gets `ECONNABORTED`, and the other end a reset.
/// Blocks for some microseconds for each. How many were ended; one that has closed since it was read is no error and
/// not counted.
///
/// # Errors
/// The namespace cannot be entered or the caller may not (no `CAP_NET_ADMIN`), or the kernel cannot do it
/// (`CONFIG_INET_DIAG_DESTROY` is needed). Of those before, some may have been ended.
pub fn destroy(netns: &Netns, sockets: &[TcpSocket]) -> io::Result<usize> {
    if sockets.is_empty() {
        return Ok(0);
    }
    let socket = open(netns)?;
    let mut ended = 0;
    let mut buffer = vec![0; BUFFER_BYTES];
    for (sequence, doomed) in (1u32..).zip(sockets) {
        socket.send(&destroy_request(doomed, sequence), 0)?;
        match acknowledgement(&socket, &mut buffer, sequence)? {
            0 => ended += 1,
            libc::ENOENT => {}
            libc::EOPNOTSUPP => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "this kernel cannot end connections: it was built without CONFIG_INET_DIAG_DESTROY",
                ));
            }
            code => return Err(io::Error::from_raw_os_error(code)),
        }
    }
    Ok(ended)
}

fn destroy_request(doomed: &TcpSocket, sequence: u32) -> Vec<u8> {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(v4) if doomed.is_v6 => v4.to_ipv6_mapped().into(),
        ip => ip,
    };
    let family = if doomed.is_v6 { AF_INET6 } else { AF_INET };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: doomed.local.port(),
            destination_port: doomed.remote.port(),
            source_address: address(doomed.local.ip()),
            destination_address: address(doomed.remote.ip()),
            interface_id: doomed.interface,
            cookie: doomed.cookie.to_ne_bytes(),
        },
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    header.sequence_number = sequence;
    let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    // The message is that of a question about one socket, under another type, which the library does not know.
    if let Some(kind) = bytes.get_mut(TYPE_AT) {
        kind.copy_from_slice(&DESTROY.to_ne_bytes());
    }
    bytes
}

/// The error number that the kernel answers with, 0 for none.
fn acknowledgement(socket: &Socket, buffer: &mut [u8], sequence: u32) -> io::Result<i32> {
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let bytes = buffer.get(..length).unwrap_or_default();
        let message = <NetlinkMessage<SockDiagMessage>>::deserialize(bytes)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        if message.header.sequence_number != sequence {
            continue;
        }
        if let NetlinkPayload::Error(error) = message.payload {
            return Ok(error.raw_code().saturating_neg());
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// A netlink socket speaks of the namespace it was made in.
fn open(netns: &Netns) -> io::Result<Socket> {
    let socket = netns.run_apart(|| Socket::new(NETLINK_SOCK_DIAG))??;
    let wait = TimeVal::new(1, 0);
    setsockopt(&socket.as_fd(), ReceiveTimeout, &wait)?;
    Ok(socket)
}

fn dump(
    socket: &Socket,
    family: u8,
    (found, keep): (&mut Sockets, impl Fn(&TcpSocket) -> bool),
    until: Instant,
) -> io::Result<()> {
    let socket_id = match family {
        AF_INET6 => SocketId::new_v6(),
        _ => SocketId::new_v4(),
    };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id,
    };
    let mut packet = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        if Instant::now() > until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = socket.recv(&mut &mut buffer[..], 0)?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let message = <NetlinkMessage<SockDiagMessage>>::deserialize(rest)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            let length = (message.header.length as usize).next_multiple_of(4);
            match message.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let described = describe(&response);
                    if !keep(&described) {
                        // Not asked for.
                    } else if found.sockets.len() < MAX_SOCKETS {
                        found.sockets.push(described);
                    } else {
                        // The rest is read and thrown away, so that the next dump does not meet it.
                        found.truncated = true;
                    }
                }
                NetlinkPayload::Done(_) => return Ok(()),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            rest = rest.get(length.max(1)..).unwrap_or_default();
        }
    }
}

fn describe(response: &InetResponse) -> TcpSocket {
    let header = &response.header;
    let id = &header.socket_id;
    let tcp = response.nlas.iter().find_map(|nla| match nla {
        Nla::TcpInfo(info) => Some(measured(info)),
        _ => None,
    });
    let state = state(header.state);
    TcpSocket {
        state,
        local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
        remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
        uid: header.uid,
        inode: header.inode,
        cookie: u64::from_ne_bytes(id.cookie),
        receive_queue: header.recv_queue,
        send_queue: header.send_queue,
        is_v6: header.family == AF_INET6,
        interface: id.interface_id,
        tcp: tcp.filter(|_| state != "listen"),
    }
}

fn measured(info: &TcpInfo) -> TcpMeasured {
    TcpMeasured {
        rtt_us: info.rtt,
        rttvar_us: info.rttvar,
        min_rtt_us: info.min_rtt,
        retransmits: u32::from(info.retransmits),
        retransmits_total: info.total_retrans,
        unacked: info.unacked,
        lost: info.lost,
        cwnd: info.snd_cwnd,
        bytes_acked: info.bytes_acked,
        bytes_received: info.bytes_received,
        delivery_rate: info.delivery_rate,
        last_data_sent_ms: info.last_data_sent,
        last_data_received_ms: info.last_data_recv,
    }
}

/// The states of include/net/tcp_states.h.
fn state(number: u8) -> &'static str {
    match number {
        1 => "established",
        2 => "syn_sent",
        3 => "syn_recv",
        4 => "fin_wait1",
        5 => "fin_wait2",
        6 => "time_wait",
        7 => "close",
        8 => "close_wait",
        9 => "last_ack",
        10 => "listen",
        11 => "closing",
        12 => "new_syn_recv",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_is_seen_from_both_ends_with_its_bytes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let mut client = TcpStream::connect(at).unwrap();
        let (mut server, from) = listener.accept().unwrap();
        client.write_all(&[7; 1000]).unwrap();
        server.read_exact(&mut [0; 1000]).unwrap();
        let here = Netns::current().unwrap();
        let found = match tcp_sockets(&here) {
            Ok(found) => found.sockets,
            // Entering a namespace, also one's own, needs root: those tests are run by root.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                panic!("needs root: {error}")
            }
            Err(error) => panic!("{error}"),
        };
        let of = |local, remote| {
            found
                .iter()
                .find(|socket| socket.local == local && socket.remote == remote)
                .unwrap()
        };
        let (ours, theirs) = (of(from, at), of(at, from));
        assert_eq!((ours.state, theirs.state), ("established", "established"));
        assert_eq!(ours.tcp.unwrap().bytes_acked, 1001, "with the SYN");
        assert_eq!(theirs.tcp.unwrap().bytes_received, 1000);
        assert!(ours.tcp.unwrap().rtt_us > 0 && ours.inode > 0 && ours.cookie > 0);
        let listening: Vec<_> = found.iter().filter(|one| one.local == at).collect();
        let listens = listening.iter().find(|one| one.is_listening()).unwrap();
        assert!(listens.tcp.is_none() && listens.send_queue > 0);
    }

    #[test]
    fn another_namespace_has_sockets_of_its_own_and_we_come_back() {
        let before = Netns::current().unwrap().id();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        // A namespace of a thread that unshares it.
        let (sender, receiver) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let own = Netns::current().unwrap();
            sender.send(own).unwrap();
            let _ = ended.recv();
        });
        let netns = receiver.recv().unwrap();
        let found = tcp_sockets(&netns).unwrap().sockets;
        assert!(found.iter().all(|socket| socket.local != at), "{found:?}");
        assert_eq!(Netns::current().unwrap().id(), before);
        drop(end);
        other.join().unwrap();
    }
}

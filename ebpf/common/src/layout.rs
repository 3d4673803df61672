// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Keys and values of the maps. Plain bytes without holes: the kernel compares keys byte by
//! byte, and a hole would carry whatever was in memory. Any change here bumps
//! [`crate::LAYOUT_VERSION`].

use core::mem::{align_of, offset_of, size_of};

use crate::UID_BYTES;
use crate::address::{Endpoint, Ip};

/// Key of `PODS`: the cookie of a network namespace, never reused until reboot, and nothing a
/// pod can choose.
pub type NetnsCookie = u64;

/// Value of `PODS`: an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its IPv4 address, mapped; [`Ip::UNSPECIFIED`] for none.
    pub v4: Ip,
    /// Its IPv6 address; [`Ip::UNSPECIFIED`] for none.
    pub v6: Ip,
    /// Bytes of [`Pod::uid`] in use.
    pub uid_length: u32,
    /// The pod's uid, zero padded: who this is, for people and for an agent that comes back.
    pub uid: [u8; UID_BYTES],
    /// Index, in the node's namespace, of the host's end of the pod's interface, if the handshakes that
    /// go to the pod are checked there; else 0, and nothing reaches the pod past the agent.
    pub guard: u32,
}

/// Value of `SKST`, the storage of one socket; it dies with the socket, so nothing leaks.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketState {
    /// The address the flags speak of.
    pub endpoint: Endpoint,
    /// Which of the `SOCKET_*` bits hold.
    pub flags: u32,
}

/// `getpeername()` and `accept()` answer [`SocketState::endpoint`].
pub const SOCKET_PEER: u32 = 1;
/// A captured connection of an application: publish the original destination.
pub const SOCKET_CAPTURED: u32 = 1 << 1;
/// Accepted by the agent: the endpoint is the original destination.
pub const SOCKET_ORIGINAL: u32 = 1 << 2;
/// Set by the agent before it connects to an application: publish the client's address.
pub const SOCKET_SOURCE: u32 = 1 << 3;
/// A node's probe: authorise the handshake to exactly this endpoint.
pub const SOCKET_PROBE: u32 = 1 << 4;
/// A connection to another pod of the node that goes past the agent: authorise the handshake if
/// [`VERDICTS`](VerdictKey) still allow it.
pub const SOCKET_DIRECT: u32 = 1 << 5;
/// Captured, to a service of which the programs chose an endpoint that is not on this node: the
/// agent chooses among those.
pub const SOCKET_ELSEWHERE: u32 = 1 << 6;

/// Key of `PUBLISHED`. Both initial sequence numbers name a connection from both its ends, cannot
/// be chosen by a pod, and differ where ports repeat.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedKey {
    /// The namespace both ends live in.
    pub netns: NetnsCookie,
    /// First sequence number after the connecting end's SYN.
    pub client: u32,
    /// First sequence number after the accepting end's SYN.
    pub server: u32,
}

/// Key of `AUTHORISED`: the four-tuple as seen by the accepting end's namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The connecting end.
    pub source: Endpoint,
    /// The accepting end.
    pub destination: Endpoint,
}

/// [`Authorisation::kind`] of a probe of the node.
pub const AUTHORISED_PROBE: u32 = 0;
/// [`Authorisation::kind`] of a connection between pods of the node.
pub const AUTHORISED_DIRECT: u32 = 1;

/// Value of `AUTHORISED`: whose handshake it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authorisation {
    /// Cookie of the connecting socket: only its own end removes it.
    pub socket: u64,
    /// When, on the monotonic clock, nanoseconds.
    pub at_ns: u64,
    /// The connecting socket's initial sequence number: 32 bits a forger does not know.
    pub isn: u32,
    /// `AUTHORISED_PROBE` or `AUTHORISED_DIRECT`.
    pub kind: u32,
}

/// Key of `VERDICTS`: two enrolled pods of the node, by their namespaces, and a port of the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerdictKey {
    /// The pod that connects.
    pub source: NetnsCookie,
    /// The pod that is connected to.
    pub destination: NetnsCookie,
    /// The port it is connected to, host order; [`ANY_PORT`] for all that have no entry of their own.
    pub port: u32,
    /// Always zero.
    pub padding: u32,
}

/// [`VerdictKey::port`] of what holds for ports without an entry of their own.
pub const ANY_PORT: u32 = 0;

/// Value of `VERDICTS`: the agent decides. The same as no entry, for a port of a pair that has
/// one for [`ANY_PORT`].
pub const VERDICT_ASK: u32 = 0;
/// Value of `VERDICTS`: such connections go past the agent.
pub const VERDICT_ALLOW: u32 = 1;

/// Value of `SERVICES`, whose key is an address and port of a service: its endpoints, as far as they are
/// pods of this node.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// Number of this set in [`EndpointKey`]; never used again for another one.
    pub set: u64,
    /// How many of its endpoints are in `ENDPOINTS`, as slots 0 to `local - 1`.
    pub local: u32,
    /// How many it has, those elsewhere included. At least `local`.
    pub total: u32,
}

/// Key of `ENDPOINTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointKey {
    /// [`ServiceEndpoints::set`].
    pub set: u64,
    /// Which one.
    pub slot: u32,
    /// Always zero.
    pub padding: u32,
}

/// Value of `FLOWS`, whose key is the cookie of the connecting socket: a connection that went past the agent, from
/// just before its SYN leaves until the socket closes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The pod that connects.
    pub source: NetnsCookie,
    /// The pod that is connected to.
    pub destination: NetnsCookie,
    /// When the SYN was about to leave, on the monotonic clock, nanoseconds.
    pub started_ns: u64,
    /// Its ends.
    pub tuple: Tuple,
    /// What the application asked for: the address of a service, or the destination's own.
    pub original: Endpoint,
    /// Always zero.
    pub padding: u32,
}

/// [`FlowEvent::kind`]: the handshake has ended well.
pub const FLOW_OPENED: u32 = 1;
/// [`FlowEvent::kind`]: the connecting socket has closed, established or not.
pub const FLOW_CLOSED: u32 = 2;

/// A record of the ring buffer `FLOW_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowEvent {
    /// `FLOW_OPENED` or `FLOW_CLOSED`.
    pub kind: u32,
    /// Of `FLOW_CLOSED`: the state before it, of include/net/tcp_states.h; 2 (`SYN_SENT`) is a connection
    /// that was never established.
    pub old_state: u32,
    /// Cookie of the connecting socket.
    pub socket: u64,
    /// When, on the monotonic clock, nanoseconds.
    pub at_ns: u64,
    /// Bytes of payload that the connecting end has sent, each counted once.
    pub sent: u64,
    /// Bytes of payload that it has received.
    pub received: u64,
    /// Smoothed round-trip time, microseconds; 0 while none was measured.
    pub rtt_us: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
    /// The connection.
    pub flow: Flow,
}

/// The single value of `CONFIG`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// The node's own network namespace.
    pub host_netns: NetnsCookie,
    /// cgroup of the agent: not captured.
    pub agent_cgroup: u64,
    /// cgroup of the agent before it, which may still finish its connections: not captured
    /// either; 0 if there was none.
    pub former_agent_cgroup: u64,
    /// cgroup above all pods; 0 means unknown, and then no probe is recognised.
    pub kubepods_cgroup: u64,
}

/// Size, alignment and a few offsets are what pinned maps of this layout version have.
const _: () = {
    assert!(size_of::<Ip>() == 16 && align_of::<Ip>() == 4);
    assert!(size_of::<Endpoint>() == 20 && align_of::<Endpoint>() == 4);
    assert!(offset_of!(Endpoint, port) == 16);
    assert!(size_of::<Pod>() == 40 + UID_BYTES && align_of::<Pod>() == 4);
    assert!(offset_of!(Pod, v6) == 16 && offset_of!(Pod, uid) == 36);
    assert!(size_of::<SocketState>() == 24 && offset_of!(SocketState, flags) == 20);
    assert!(size_of::<PublishedKey>() == 16 && align_of::<PublishedKey>() == 8);
    assert!(size_of::<Tuple>() == 40 && offset_of!(Tuple, destination) == 20);
    assert!(size_of::<Authorisation>() == 24 && offset_of!(Authorisation, isn) == 16);
    assert!(size_of::<VerdictKey>() == 24 && offset_of!(VerdictKey, port) == 16);
    assert!(size_of::<ServiceEndpoints>() == 16 && size_of::<EndpointKey>() == 16);
    assert!(size_of::<Flow>() == 88 && offset_of!(Flow, original) == 64);
    assert!(size_of::<FlowEvent>() == 136 && offset_of!(FlowEvent, flow) == 48);
    assert!(size_of::<Config>() == 32 && offset_of!(Config, kubepods_cgroup) == 24);
};

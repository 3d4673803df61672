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
    /// Always zero.
    pub padding: u32,
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
    assert!(size_of::<Pod>() == 36 + UID_BYTES && align_of::<Pod>() == 4);
    assert!(offset_of!(Pod, v6) == 16 && offset_of!(Pod, uid) == 36);
    assert!(size_of::<SocketState>() == 24 && offset_of!(SocketState, flags) == 20);
    assert!(size_of::<PublishedKey>() == 16 && align_of::<PublishedKey>() == 8);
    assert!(size_of::<Tuple>() == 40 && offset_of!(Tuple, destination) == 20);
    assert!(size_of::<Authorisation>() == 24 && offset_of!(Authorisation, isn) == 16);
    assert!(size_of::<Config>() == 32 && offset_of!(Config, kubepods_cgroup) == 24);
};

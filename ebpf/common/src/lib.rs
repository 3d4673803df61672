// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What the BPF programs and their user-space loader agree on: keys and values of the maps,
//! constants, counter labels, and the decisions that need no kernel helper.
//!
//! It loads nothing and touches no map; the programs (`ebpf/programs`) and `karst-datapath` do.
//! The decisions live here so that host tests reach the very code the kernel runs. Start with
//! [`decide`]; every type crossing the boundary is in [`layout`].
#![no_std]
#![cfg_attr(
    feature = "user",
    expect(
        unsafe_code,
        reason = "aya::Pod is the promise that a type is plain bytes"
    )
)]

#[cfg(feature = "alloc")]
extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod address;
pub mod counter;
pub mod decide;
pub mod layout;
pub mod policy;
#[cfg(feature = "user")]
mod user;

pub use address::{Endpoint, Ip};
pub use counter::CounterId;

/// Bumped whenever a key, a value, a flag or the meaning of one changes: pinned maps of another
/// version are never reused as they are.
pub const LAYOUT_VERSION: u32 = 3;

/// The agent's listener for captured outbound connections, on loopback in the pod's namespace.
pub const OUTBOUND_PORT: u16 = 15001;

/// The agent's listener for inbound plaintext connections, on loopback in the pod's namespace.
pub const PLAINTEXT_PORT: u16 = 15006;

/// The agent's HBONE listener, on the pod's own address: never steered.
pub const HBONE_PORT: u16 = 15008;

/// Longest pod uid kept in the kernel, bytes. A Kubernetes uid has 36.
pub const UID_BYTES: usize = 64;

/// Handshakes between the two ends of which an original address is on its way. An entry lives
/// for microseconds; the bound is that of eight full accept queues of 4,096.
pub const PUBLISHED_ENTRIES: u32 = 32_768;

/// Probes of the node and connections between its pods, in their handshake. The oldest is evicted first; an evicted
/// one is taken for a plain client, which the agent decides about.
pub const AUTHORISED_ENTRIES: u32 = 65_536;

/// Pairs of pods of one node and ports that are decided in advance: 250 pods, each pair with four entries. What finds
/// no room is decided by the agent.
pub const VERDICT_ENTRIES: u32 = 262_144;

/// Addresses and ports of services that have an endpoint on the node. What finds no room is resolved by the agent.
pub const SERVICE_ENTRIES: u32 = 16_384;

/// Endpoints on the node, of all these services.
pub const ENDPOINT_ENTRIES: u32 = 131_072;

/// Connections between pods of the node that live at once past the agent. Never evicted, since who is not known
/// here cannot be closed when policies change; beyond this, connections go to the agent.
pub const FLOW_ENTRIES: u32 = 131_072;

/// Entries of `FLOWS` that are kept free for connections that were let through and are not noted there yet.
pub const FLOW_SLACK: u32 = 4_096;

/// Bytes of `FLOW_EVENTS`: some 14,500 records, twice what ends in a second where 400,000 connections a minute do.
pub const FLOW_EVENT_BYTES: u32 = 2 << 20;

/// How long an authorised handshake may take, nanoseconds: six retransmissions of a SYN give up
/// after 127 s (`tcp_syn_retries`).
pub const AUTHORISED_NS: u64 = 130_000_000_000;

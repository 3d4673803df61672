// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The only program that sees packets, at the host's end of a pod's interface: a SYN to the pod on an
//! authorised tuple passes only with the sequence number that was authorised. A neighbour that takes
//! another pod's address over on the bridge does not know it.
//!
//! A SYN must not get past by being packed in another way, so everything that the pod's kernel would unpack
//! is unpacked here: VLAN tags (that of VLAN 0 is ignored by receivers), IPv6 extension headers, fragments.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use karst_bpf_common::decide::is_fresh;
use karst_bpf_common::layout::Tuple;
use karst_bpf_common::{CounterId, Endpoint, Ip};

use crate::maps::{AUTH, count};

/// `TCX_NEXT` of linux/bpf.h: what other programs here say.
const NEXT: i32 = -1;
/// `TCX_DROP`.
const DROP: i32 = 2;

const ETHERTYPE: usize = 12;
const ETHERNET: usize = 14;
const ETH_IPV4: u16 = 0x0800;
const ETH_IPV6: u16 = 0x86dd;
const ETH_8021Q: u16 = 0x8100;
const ETH_8021AD: u16 = 0x88a8;
/// Tags that are looked past: nobody nests more than two.
const TAGS: usize = 4;

const IPV4: usize = 20;
const IPV6: usize = 40;
const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;

/// Extension headers that the kernel walks past on its way to TCP.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
/// More of them than RFC 8200 lets a packet have.
const EXTENSIONS: usize = 8;

/// Offsets in a TCP header.
const SEQUENCE: usize = 4;
const FLAGS: usize = 13;
const TCP: usize = 20;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[inline(always)]
pub fn check(ctx: &TcContext) -> i32 {
    if is_plainly_no_syn(ctx) || examine(ctx).unwrap_or(true) {
        NEXT
    } else {
        count(CounterId::BypassSynDropped);
        DROP
    }
}

/// Nearly all packets end here, after a few loads: TCP without a SYN, or not TCP, and no fragment.
#[inline(always)]
fn is_plainly_no_syn(ctx: &TcContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET + IPV4 + TCP > end {
        return false;
    }
    let ethertype = u16::from_be_bytes([byte(start + ETHERTYPE), byte(start + ETHERTYPE + 1)]);
    let ip = start + ETHERNET;
    let flags = if ethertype == ETH_IPV4 {
        let fragment = byte(ip + 6) & 0x3f | byte(ip + 7);
        if byte(ip) != 0x45 || fragment != 0 {
            return false;
        }
        if byte(ip + 9) != IPPROTO_TCP {
            return true;
        }
        byte(ip + IPV4 + FLAGS)
    } else {
        if ethertype != ETH_IPV6 {
            return false;
        }
        match byte(ip + 6) {
            IPPROTO_TCP if start + ETHERNET + IPV6 + TCP <= end => byte(ip + IPV6 + FLAGS),
            IPPROTO_UDP | IPPROTO_ICMPV6 => return true,
            _ => return false,
        }
    };
    flags & (SYN | ACK) != SYN
}

/// A byte of the packet, which the caller has found to be inside of it.
#[inline(always)]
fn byte(at: usize) -> u8 {
    // SAFETY: the verifier knows the pointer as one into the packet, and checks its bounds.
    unsafe { *(at as *const u8) }
}

/// Whether it may pass; `None` for what is too short to be what it says, which no receiver takes.
#[inline(always)]
fn examine(ctx: &TcContext) -> Option<bool> {
    let mut at = ETHERTYPE;
    let mut ethertype = short(ctx, at)?;
    for _ in 0..TAGS {
        if ethertype != ETH_8021Q && ethertype != ETH_8021AD {
            break;
        }
        at += 4;
        ethertype = short(ctx, at)?;
    }
    match ethertype {
        ETH_IPV4 => examine_v4(ctx, at + 2),
        ETH_IPV6 => examine_v6(ctx, at + 2),
        ETH_8021Q | ETH_8021AD => Some(false),
        _ => Some(true),
    }
}

#[inline(always)]
fn examine_v4(ctx: &TcContext, ip: usize) -> Option<bool> {
    let header = usize::from(load::<u8>(ctx, ip)? & 0x0f) * 4;
    let fragment = short(ctx, ip + 6)?;
    if load::<u8>(ctx, ip + 9)? != IPPROTO_TCP || fragment & 0x1fff != 0 {
        // What follows a first fragment is of no use without it.
        return Some(true);
    }
    let source = Ip::from_v4_word(load(ctx, ip + 12)?);
    let destination = Ip::from_v4_word(load(ctx, ip + 16)?);
    let more = fragment & 0x2000 != 0;
    Some(examine_tcp(ctx, ip + header, &source, &destination, more))
}

#[inline(always)]
fn examine_v6(ctx: &TcContext, ip: usize) -> Option<bool> {
    let source = Ip(load(ctx, ip + 8)?);
    let destination = Ip(load(ctx, ip + 24)?);
    let mut next = load::<u8>(ctx, ip + 6)?;
    let mut at = ip + IPV6;
    let mut more = false;
    for _ in 0..EXTENSIONS {
        if next == IPPROTO_TCP {
            return Some(examine_tcp(ctx, at, &source, &destination, more));
        }
        if !matches!(
            next,
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION
        ) {
            return Some(true);
        }
        // Of a first fragment, all headers must be seen.
        let Some(after) = load::<u8>(ctx, at) else {
            return Some(!more);
        };
        let Some(length) = load::<u8>(ctx, at + 1) else {
            return Some(!more);
        };
        at += match next {
            FRAGMENT => {
                let place = short(ctx, at + 2)?;
                if place & 0xfff8 != 0 {
                    return Some(true);
                }
                more |= place & 1 != 0;
                8
            }
            AUTHENTICATION => (usize::from(length) + 2) * 4,
            _ => (usize::from(length) + 1) * 8,
        };
        next = after;
    }
    Some(false)
}

/// `more` says that it is the first of several fragments. Nobody's SYN comes in fragments, nor a header cut in
/// two; waiting in a receiver's queue, they could be completed at a moment when the tuple is authorised.
#[inline(always)]
fn examine_tcp(ctx: &TcContext, tcp: usize, source: &Ip, destination: &Ip, more: bool) -> bool {
    let Some(flags) = load::<u8>(ctx, tcp + FLAGS) else {
        return !more;
    };
    if flags & (SYN | ACK) != SYN {
        return true;
    }
    if more {
        return false;
    }
    let ports = (short(ctx, tcp), short(ctx, tcp + 2));
    let (Some(source_port), Some(port)) = ports else {
        return true;
    };
    let Some(sequence) = load::<u32>(ctx, tcp + SEQUENCE) else {
        return true;
    };
    let tuple = Tuple {
        source: Endpoint::new(*source, source_port),
        destination: Endpoint::new(*destination, port),
    };
    // SAFETY: words are read at once; a torn copy fails the comparison below.
    let Some(authorisation) = (unsafe { AUTH.get(&tuple) }) else {
        return true;
    };
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    // One too old lets nobody past the agent.
    if authorisation.isn == u32::from_be(sequence) || !is_fresh(authorisation.at_ns, now) {
        return true;
    }
    warn!(
        ctx,
        "bypass_syn_dropped: SYN from {:i} port {} to {:i} port {} with a sequence number that is not the authorised one",
        tuple.source.ip.octets(),
        tuple.source.port,
        tuple.destination.ip.octets(),
        tuple.destination.port
    );
    false
}

/// Of two bytes in network order.
#[inline(always)]
fn short(ctx: &TcContext, at: usize) -> Option<u16> {
    load::<u16>(ctx, at).map(u16::from_be)
}

/// Wherever in the packet it is, also outside its first piece of memory.
#[inline(always)]
fn load<T>(ctx: &TcContext, at: usize) -> Option<T> {
    ctx.load(at).ok()
}

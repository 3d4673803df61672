// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Reading the contexts the way the verifier accepts.

use core::arch::asm;
use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sk_lookup, bpf_sock, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext};
use karst_bpf_common::{Endpoint, Ip};

const AF_INET: u32 = 2;

/// The context field at byte `OFFSET`.
///
/// Written in assembly because LLVM merges loads of different fields on two branches into one
/// load through a computed pointer, which the verifier refuses ("dereference of modified ctx
/// ptr"); `read_volatile` does not stop it.
#[inline(always)]
pub fn field<const OFFSET: usize>(ctx: *mut c_void) -> u32 {
    let value: u64;
    // SAFETY: a 4-byte load of a context field; the verifier checks pointer and offset.
    unsafe {
        asm!("{0} = *(u32 *)({1} + {2})", out(reg) value, in(reg) ctx, const OFFSET,
            options(nostack, readonly, preserves_flags));
    }
    value as u32
}

/// The context field of 8 bytes at byte `OFFSET`; see [`field`].
#[inline(always)]
pub fn long_field<const OFFSET: usize>(ctx: *mut c_void) -> u64 {
    let value: u64;
    // SAFETY: an 8-byte load of a context field; the verifier checks pointer and offset.
    unsafe {
        asm!("{0} = *(u64 *)({1} + {2})", out(reg) value, in(reg) ctx, const OFFSET,
            options(nostack, readonly, preserves_flags));
    }
    value
}

/// Sets the context field at byte `OFFSET`.
///
/// In assembly because LLVM merges neighbouring stores into one of 8 bytes, which the verifier
/// refuses ("invalid bpf_context access").
#[inline(always)]
fn set_field<const OFFSET: usize>(ctx: *mut c_void, value: u32) {
    // SAFETY: a 4-byte store to a context field; the verifier checks pointer, offset and that
    // the field may be written.
    unsafe {
        asm!("*(u32 *)({0} + {1}) = {2}", in(reg) ctx, const OFFSET, in(reg) u64::from(value),
            options(nostack, preserves_flags));
    }
}

/// Cookie of the namespace the socket lives in.
#[inline(always)]
pub fn netns_cookie(ctx: &impl EbpfContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
pub fn addr_socket(ctx: &SockAddrContext) -> *mut bpf_sock {
    // SAFETY: the context outlives the program.
    let fields = unsafe { &*ctx.sock_addr };
    // SAFETY: every view of this union is the socket pointer.
    unsafe { fields.__bindgen_anon_1.sk }
}

#[inline(always)]
pub fn addr_v4(ctx: &SockAddrContext) -> Ip {
    Ip::from_v4_word(field::<{ offset_of!(bpf_sock_addr, user_ip4) }>(
        ctx.as_ptr(),
    ))
}

#[inline(always)]
pub fn addr_v6(ctx: &SockAddrContext) -> Ip {
    v6::<
        { offset_of!(bpf_sock_addr, user_ip6) },
        { offset_of!(bpf_sock_addr, user_ip6) + 4 },
        { offset_of!(bpf_sock_addr, user_ip6) + 8 },
        { offset_of!(bpf_sock_addr, user_ip6) + 12 },
    >(ctx.as_ptr())
}

/// The port being dialled, host order.
#[inline(always)]
pub fn addr_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(field::<{ offset_of!(bpf_sock_addr, user_port) }>(ctx.as_ptr()) as u16)
}

#[inline(always)]
pub fn set_addr_v4(ctx: &SockAddrContext, to: &Endpoint) {
    set_field::<{ offset_of!(bpf_sock_addr, user_ip4) }>(ctx.as_ptr(), to.ip.0[3]);
    set_addr_port(ctx, to.port);
}

#[inline(always)]
pub fn set_addr_v6(ctx: &SockAddrContext, to: &Endpoint) {
    const IP: usize = offset_of!(bpf_sock_addr, user_ip6);
    let c = ctx.as_ptr();
    set_field::<IP>(c, to.ip.0[0]);
    set_field::<{ IP + 4 }>(c, to.ip.0[1]);
    set_field::<{ IP + 8 }>(c, to.ip.0[2]);
    set_field::<{ IP + 12 }>(c, to.ip.0[3]);
    set_addr_port(ctx, to.port);
}

#[inline(always)]
fn set_addr_port(ctx: &SockAddrContext, port: u16) {
    let port = u32::from(port.to_be());
    set_field::<{ offset_of!(bpf_sock_addr, user_port) }>(ctx.as_ptr(), port);
}

#[inline(always)]
pub fn ops_socket(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: the context outlives the program.
    let fields = unsafe { &*ctx.ops };
    // SAFETY: every view of this union is the socket pointer.
    unsafe { fields.__bindgen_anon_2.sk }
}

/// Local and remote end of a `sock_ops` socket.
#[inline(always)]
pub fn ops_ends(ctx: &SockOpsContext) -> (Endpoint, Endpoint) {
    const LOCAL: usize = offset_of!(bpf_sock_ops, local_ip6);
    const REMOTE: usize = offset_of!(bpf_sock_ops, remote_ip6);
    let c = ctx.as_ptr();
    let (local, remote) = if field::<{ offset_of!(bpf_sock_ops, family) }>(c) == AF_INET {
        (
            Ip::from_v4_word(field::<{ offset_of!(bpf_sock_ops, local_ip4) }>(c)),
            Ip::from_v4_word(field::<{ offset_of!(bpf_sock_ops, remote_ip4) }>(c)),
        )
    } else {
        (
            v6::<LOCAL, { LOCAL + 4 }, { LOCAL + 8 }, { LOCAL + 12 }>(c),
            v6::<REMOTE, { REMOTE + 4 }, { REMOTE + 8 }, { REMOTE + 12 }>(c),
        )
    };
    // The kernel gives the remote port as a network-order word, the local one in host order.
    let remote_port = u32::from_be(field::<{ offset_of!(bpf_sock_ops, remote_port) }>(c));
    (
        Endpoint::new(local, ops_local_port(ctx)),
        Endpoint::new(remote, remote_port as u16),
    )
}

/// Host order.
#[inline(always)]
pub fn ops_local_port(ctx: &SockOpsContext) -> u16 {
    field::<{ offset_of!(bpf_sock_ops, local_port) }>(ctx.as_ptr()) as u16
}

/// Local and remote end of a lookup.
#[inline(always)]
pub fn lookup_ends(ctx: &SkLookupContext) -> (Endpoint, Endpoint) {
    const LOCAL: usize = offset_of!(bpf_sk_lookup, local_ip6);
    const REMOTE: usize = offset_of!(bpf_sk_lookup, remote_ip6);
    let c = ctx.as_ptr();
    let (local, remote) = if field::<{ offset_of!(bpf_sk_lookup, family) }>(c) == AF_INET {
        (
            Ip::from_v4_word(field::<{ offset_of!(bpf_sk_lookup, local_ip4) }>(c)),
            Ip::from_v4_word(field::<{ offset_of!(bpf_sk_lookup, remote_ip4) }>(c)),
        )
    } else {
        (
            v6::<LOCAL, { LOCAL + 4 }, { LOCAL + 8 }, { LOCAL + 12 }>(c),
            v6::<REMOTE, { REMOTE + 4 }, { REMOTE + 8 }, { REMOTE + 12 }>(c),
        )
    };
    // Here the remote port is a network-order half word and the local one host order.
    let remote_port = field::<{ offset_of!(bpf_sk_lookup, remote_port) }>(c) as u16;
    let local_port = field::<{ offset_of!(bpf_sk_lookup, local_port) }>(c) as u16;
    (
        Endpoint::new(local, local_port),
        Endpoint::new(remote, u16::from_be(remote_port)),
    )
}

#[inline(always)]
fn v6<const A: usize, const B: usize, const C: usize, const D: usize>(ctx: *mut c_void) -> Ip {
    Ip([
        field::<A>(ctx),
        field::<B>(ctx),
        field::<C>(ctx),
        field::<D>(ctx),
    ])
}

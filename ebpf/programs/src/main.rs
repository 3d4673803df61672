// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The BPF programs of a node: thin entry points, one per hook. The decisions are in
//! `karst-bpf-common`, where host tests reach them; what is here talks to the kernel.
//!
//! They carry no packets: everything happens once a connection, but for a look at each packet's flags
//! in [`syn`]. Start with the hook table in
//! `ebpf/README.md`, then [`connect`], [`established`] and [`lookup`] in the order of a
//! connection's life.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to another place on a stack of 512 bytes"
)]
#![expect(
    unsafe_code,
    reason = "kernel helpers, contexts and map values are raw pointers, checked by the verifier"
)]
#![expect(
    missing_docs,
    reason = "aya's macros make public functions without the documentation of ours"
)]

mod connect;
mod context;
mod direct;
mod established;
mod flows;
mod lookup;
mod maps;
mod peername;
mod state;
mod syn;
mod tcp;

use aya_ebpf::macros::{cgroup_sock_addr, classifier, sk_lookup, sock_ops};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, TcContext};

/// Verdict of a `cgroup_sock_addr` program: go on (the address may have been rewritten).
const ALLOW: i32 = 1;
/// Verdict of a `cgroup_sock_addr` program: the call fails with `EPERM`.
const REFUSE: i32 = 0;

/// The helpers used are for GPL-compatible programs only; aya gives no way to choose the text.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// `connect()` to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn karst_connect4(ctx: SockAddrContext) -> i32 {
    connect::v4(&ctx)
}

/// `connect()` of an IPv6 socket, to a v4-mapped address too.
#[cgroup_sock_addr(connect6)]
pub fn karst_connect6(ctx: SockAddrContext) -> i32 {
    connect::v6(&ctx)
}

/// `getpeername()` and the address `accept()` returns, IPv4 sockets.
#[cgroup_sock_addr(getpeername4)]
pub fn karst_peername4(ctx: SockAddrContext) -> i32 {
    peername::v4(&ctx);
    ALLOW
}

/// `getpeername()` and the address `accept()` returns, IPv6 sockets.
#[cgroup_sock_addr(getpeername6)]
pub fn karst_peername6(ctx: SockAddrContext) -> i32 {
    peername::v6(&ctx);
    ALLOW
}

/// Moments in a TCP socket's life.
#[sock_ops]
pub fn karst_sock_ops(ctx: SockOpsContext) -> u32 {
    established::event(&ctx);
    // The reply only matters to operations that ask for a value; we answer none of them.
    0
}

/// Which socket gets an inbound connection, in an enrolled pod's namespace.
#[sk_lookup]
pub fn karst_sk_lookup(ctx: SkLookupContext) -> u32 {
    lookup::verdict(&ctx)
}

/// Packets on their way to an enrolled pod, at the host's end of its interface.
#[classifier]
pub fn karst_syn_check(ctx: TcContext) -> i32 {
    syn::check(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses any program in which this can be reached.
    loop {}
}

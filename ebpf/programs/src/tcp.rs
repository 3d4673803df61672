// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What a TCP socket of `sock_ops` tells beyond its context, and being told when it closes.

use core::mem::offset_of;
use core::ptr;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_socket_cookie, bpf_skc_to_tcp_sock, bpf_sock_ops_cb_flags_set,
};
use aya_ebpf::programs::SockOpsContext;

use crate::context::field;
use crate::maps::{bytes_retrans_offset, bytes_sent_offset, sock_flags_offset, write_seq_offset};

/// Bit of `SOCK_DONE` in `sk_flags` (`enum sock_flags` of net/sock.h): set when the other end's FIN
/// is taken in, and by nothing else.
const SOCK_DONE: u64 = 1 << 1;

/// Asks to be told when the socket closes. What other programs asked for on it stays asked for.
#[inline(always)]
pub fn watch(ctx: &SockOpsContext) -> bool {
    let asked = field::<{ offset_of!(bpf_sock_ops, bpf_sock_ops_cb_flags) }>(ctx.as_ptr());
    let wanted = asked | BPF_SOCK_OPS_STATE_CB_FLAG;
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_sock_ops_cb_flags_set(ctx.ops, wanted as i32) == 0 }
}

#[inline(always)]
pub fn cookie(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the program's own context.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The next sequence number to be written, which before the SYN is the initial one.
#[inline(always)]
pub fn write_seq(socket: *mut bpf_sock) -> Option<u32> {
    let tcp = tcp_sock(socket)?;
    // SAFETY: the offset is that of a field of this kernel's tcp_sock.
    let field = unsafe { tcp.add(write_seq_offset()) };
    // SAFETY: a 4-byte read inside a kernel structure, checked by the verifier.
    Some(unsafe { ptr::read_volatile(field.cast::<u32>()) })
}

/// Bytes of payload that were sent, each counted once.
#[inline(always)]
pub fn payload_sent(socket: *mut bpf_sock) -> u64 {
    let Some(tcp) = tcp_sock(socket) else {
        return 0;
    };
    word(tcp, bytes_sent_offset()).wrapping_sub(word(tcp, bytes_retrans_offset()))
}

/// Whether the other end's FIN was taken in.
#[inline(always)]
pub fn fin_seen(socket: *mut bpf_sock) -> bool {
    // A tcp_sock begins with its sock.
    tcp_sock(socket).is_some_and(|tcp| word(tcp, sock_flags_offset()) & SOCK_DONE != 0)
}

#[inline(always)]
fn tcp_sock(socket: *mut bpf_sock) -> Option<*const u8> {
    // SAFETY: the verifier knows this pointer as a socket, not null.
    let tcp = unsafe { bpf_skc_to_tcp_sock(socket.cast()) };
    (!tcp.is_null()).then_some(tcp.cast::<u8>().cast_const())
}

#[inline(always)]
fn word(tcp: *const u8, offset: usize) -> u64 {
    // SAFETY: the offset is that of a field of this kernel's tcp_sock.
    let field = unsafe { tcp.add(offset) };
    // SAFETY: an 8-byte read inside a kernel structure, checked by the verifier.
    unsafe { ptr::read_volatile(field.cast::<u64>()) }
}

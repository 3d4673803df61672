// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Storage of one socket.

use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_sock};
use aya_ebpf::cty::c_void;
use aya_ebpf::helpers::generated::bpf_sk_storage_get;
use karst_bpf_common::layout::SocketState;

use crate::maps::SKST;

/// The storage of `socket`, if it has any. Cheap for sockets that never had: one null check in
/// the kernel.
#[inline(always)]
pub fn get(socket: *mut bpf_sock) -> Option<&'static mut SocketState> {
    storage(socket, 0)
}

/// Sets the storage of `socket`; `None` when the kernel has no memory for it.
#[inline(always)]
pub fn set(socket: *mut bpf_sock, state: SocketState) -> Option<()> {
    let stored = storage(socket, u64::from(BPF_SK_STORAGE_GET_F_CREATE))?;
    *stored = state;
    Some(())
}

#[inline(always)]
fn storage(socket: *mut bpf_sock, flags: u64) -> Option<&'static mut SocketState> {
    // aya's own wrapper takes only the context of sock_addr programs.
    let map = ptr::from_ref(&SKST).cast_mut().cast::<c_void>();
    // SAFETY: the verifier checks that this is the map and that the socket is one, or null.
    let found = unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags) };
    // SAFETY: null or this socket's value, valid until the program ends. Other CPUs may run
    // programs on the same socket; fields are whole words and each reader copes with either.
    unsafe { found.cast::<SocketState>().as_mut() }
}

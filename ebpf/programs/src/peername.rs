// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! `getpeername()` and `accept()`: an application sees whom it asked for, or who asked for it.

use aya_ebpf::programs::SockAddrContext;
use karst_bpf_common::Endpoint;
use karst_bpf_common::layout::SOCKET_PEER;

use crate::context::{addr_socket, set_addr_v4, set_addr_v6};
use crate::state;

pub fn v4(ctx: &SockAddrContext) {
    if let Some(peer) = peer(ctx)
        // A client on IPv6 cannot be shown to an application that only knows IPv4.
        && peer.ip.is_v4()
    {
        set_addr_v4(ctx, &peer);
    }
}

pub fn v6(ctx: &SockAddrContext) {
    if let Some(peer) = peer(ctx) {
        set_addr_v6(ctx, &peer);
    }
}

#[inline(always)]
fn peer(ctx: &SockAddrContext) -> Option<Endpoint> {
    let state = state::get(addr_socket(ctx))?;
    (state.flags & SOCKET_PEER != 0).then_some(state.endpoint)
}

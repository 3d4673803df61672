// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Moments of a TCP socket: hand an address from the connecting to the accepting end, and watch
//! over the handshakes that are authorised.

use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_setsockopt};
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::{debug, warn};
use karst_bpf_common::decide::claimed;
use karst_bpf_common::layout::{
    AUTHORISED_DIRECT, AUTHORISED_PROBE, Authorisation, PublishedKey, SOCKET_CAPTURED,
    SOCKET_DIRECT, SOCKET_PROBE, SOCKET_SOURCE, SocketState, Tuple,
};
use karst_bpf_common::{CounterId, OUTBOUND_PORT};

use crate::context::{field, netns_cookie, ops_ends, ops_local_port, ops_socket};
use crate::maps::{AUTH, POD_ADDRESSES, PODS, PUBLISHED, count};
use crate::tcp::{cookie, watch, write_seq};
use crate::{flows, state};

/// Of asm-generic/socket.h.
const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

/// Second argument of a state change: the new state.
const NEW_STATE: usize = offset_of!(bpf_sock_ops, __bindgen_anon_1) + 4;

#[inline(always)]
pub fn event(ctx: &SockOpsContext) {
    let op = field::<{ offset_of!(bpf_sock_ops, op) }>(ctx.as_ptr());
    if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        accepted(ctx);
        return;
    }
    if op != BPF_SOCK_OPS_TCP_CONNECT_CB
        && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB
        && op != BPF_SOCK_OPS_STATE_CB
    {
        return;
    }
    // Sockets without storage, that is all but ours, end here without a map lookup.
    let socket = ops_socket(ctx);
    if socket.is_null() {
        return;
    }
    let Some(state) = state::get(socket) else {
        return;
    };
    if state.flags & SOCKET_DIRECT != 0 {
        if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
            flows::authorise(ctx, socket, state);
        } else if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
            flows::opened(ctx);
        } else {
            flows::state_changed(ctx, socket);
        }
    } else if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        publish(ctx, state);
    } else if state.flags & SOCKET_PROBE != 0 {
        if op == BPF_SOCK_OPS_TCP_CONNECT_CB {
            authorise(ctx, socket, state);
        } else {
            probe_closed(ctx);
        }
    }
}

/// The connecting end of a handshake, which is established strictly before the accepting one
/// exists: what it publishes is there when the other end looks.
#[inline(always)]
fn publish(ctx: &SockOpsContext, state: &SocketState) {
    if state.flags & (SOCKET_CAPTURED | SOCKET_SOURCE) == 0 {
        return;
    }
    let key = PublishedKey {
        netns: netns_cookie(ctx),
        client: snd_nxt(ctx),
        server: rcv_nxt(ctx),
    };
    let copy = *state;
    if PUBLISHED.insert(&key, &copy, 0).is_err() {
        count(CounterId::PublishFailed);
    }
}

/// The accepting end: the agent's, an enrolled application's, or none of ours.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) {
    let netns = netns_cookie(ctx);
    let local_port = ops_local_port(ctx);
    // A pod may be let go in the middle of a handshake; the agent still wants to know where
    // that connection was going. Everything else ends here for pods not enrolled.
    // SAFETY: only whether there is an element matters, not what is in it.
    if local_port != OUTBOUND_PORT && unsafe { PODS.get(&netns) }.is_none() {
        return;
    }
    let key = PublishedKey {
        netns,
        client: rcv_nxt(ctx),
        server: snd_nxt(ctx),
    };
    // SAFETY: the element is copied at once; it can only be reused under us when 32,768 newer
    // handshakes come between.
    if let Some(published) = unsafe { PUBLISHED.get(&key) } {
        let published = *published;
        claim(ctx, &key, &published, local_port);
    } else if local_port != OUTBOUND_PORT {
        authorised_accepted(ctx, key.client);
    }
}

#[inline(always)]
fn claim(ctx: &SockOpsContext, key: &PublishedKey, published: &SocketState, local_port: u16) {
    let Some(state) = claimed(published, local_port) else {
        return;
    };
    let _ = PUBLISHED.remove(key);
    let socket = ops_socket(ctx);
    if socket.is_null() {
        return;
    }
    if state::set(socket, state).is_none() {
        count(CounterId::ClaimFailed);
    } else if local_port == OUTBOUND_PORT {
        count(CounterId::OriginalClaimed);
    } else {
        count(CounterId::SourceClaimed);
    }
}

/// Just before a probe's SYN leaves: port and sequence number are chosen. What was granted at
/// connect is checked against what is really dialled, since another program may have rewritten
/// it after ours, and against a pod let go meanwhile.
#[inline(always)]
fn authorise(ctx: &SockOpsContext, socket: *mut bpf_sock, state: &mut SocketState) {
    let (local, remote) = ops_ends(ctx);
    // SAFETY: only whether there is an element matters, not what is in it.
    let enrolled = unsafe { POD_ADDRESSES.get(&remote.ip) }.is_some();
    if !remote.same(&state.endpoint) || !enrolled {
        state.flags = 0;
        count(CounterId::ProbeNotAuthorised);
        return;
    }
    let Some(isn) = write_seq(socket) else {
        count(CounterId::ProbeAuthoriseFailed);
        return;
    };
    let authorisation = Authorisation {
        socket: cookie(ctx),
        // SAFETY: the helper takes nothing.
        at_ns: unsafe { bpf_ktime_get_ns() },
        isn,
        kind: AUTHORISED_PROBE,
    };
    let tuple = Tuple {
        source: local,
        destination: remote,
    };
    // Asked for before the entry exists: an entry nobody is told to remove must not be made.
    if watch(ctx) && AUTH.insert(&tuple, &authorisation, 0).is_ok() {
        count(CounterId::ProbeAuthorised);
    } else {
        count(CounterId::ProbeAuthoriseFailed);
    }
}

/// The pod's end of an authorised handshake. Removed here and not when the connecting end is established:
/// with SYN cookies the third packet of the handshake does another lookup.
#[inline(always)]
fn authorised_accepted(ctx: &SockOpsContext, client: u32) {
    let (local, remote) = ops_ends(ctx);
    let tuple = Tuple {
        source: remote,
        destination: local,
    };
    // SAFETY: the element is copied at once, and a torn copy fails the comparison below.
    let Some(authorisation) = (unsafe { AUTH.get(&tuple) }) else {
        return;
    };
    let (isn, direct) = (authorisation.isn, authorisation.kind == AUTHORISED_DIRECT);
    if client.wrapping_sub(1) == isn {
        let _ = AUTH.remove(&tuple);
        count(match direct {
            true => CounterId::BypassVerified,
            false => CounterId::ProbeVerified,
        });
        return;
    }
    cut_off(ctx);
    if direct {
        count(CounterId::BypassForged);
        warn!(
            ctx,
            "bypass_forged: {:i} port {} reached {:i} port {} on another pod's tuple with a sequence number that is not that pod's",
            remote.ip.octets(),
            remote.port,
            local.ip.octets(),
            local.port
        );
    } else {
        count(CounterId::ProbeForged);
        warn!(
            ctx,
            "probe_forged: {:i} port {} reached {:i} port {} on a probe's tuple with a sequence number that is not the probe's",
            remote.ip.octets(),
            remote.port,
            local.ip.octets(),
            local.port
        );
    }
}

/// Nothing here can reset a connection, but one bound to loopback hears no packet from outside
/// any more, and the forger's next one is answered with a reset.
#[inline(always)]
fn cut_off(ctx: &SockOpsContext) {
    let mut device = *b"lo\0";
    // SAFETY: the helper takes the program's own context and reads the name given.
    unsafe {
        bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_BINDTODEVICE,
            device.as_mut_ptr().cast(),
            device.len() as i32,
        )
    };
}

/// A probe that never got through (refused, timed out, abandoned) takes its entry along.
#[inline(always)]
fn probe_closed(ctx: &SockOpsContext) {
    if field::<NEW_STATE>(ctx.as_ptr()) != BPF_TCP_CLOSE {
        return;
    }
    let (local, remote) = ops_ends(ctx);
    let tuple = Tuple {
        source: local,
        destination: remote,
    };
    // SAFETY: one word is read at once.
    let Some(authorisation) = (unsafe { AUTH.get(&tuple) }) else {
        return;
    };
    if authorisation.socket == cookie(ctx) {
        let _ = AUTH.remove(&tuple);
        debug!(
            ctx,
            "probe_closed: {:i} port {} did not answer the node's probe",
            remote.ip.octets(),
            remote.port
        );
    }
}

#[inline(always)]
fn snd_nxt(ctx: &SockOpsContext) -> u32 {
    field::<{ offset_of!(bpf_sock_ops, snd_nxt) }>(ctx.as_ptr())
}

#[inline(always)]
fn rcv_nxt(ctx: &SockOpsContext) -> u32 {
    field::<{ offset_of!(bpf_sock_ops, rcv_nxt) }>(ctx.as_ptr())
}

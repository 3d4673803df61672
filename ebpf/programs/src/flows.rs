// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Connections that go past the agent, from just before their SYN until they close: authorised, noted,
//! and told of.

use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_NO_WAKEUP, BPF_TCP_CLOSE, bpf_sock, bpf_sock_ops};
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use karst_bpf_common::CounterId;
use karst_bpf_common::decide::{is_own, payload_received};
use karst_bpf_common::layout::{
    AUTHORISED_DIRECT, Authorisation, FLOW_CLOSED, FLOW_OPENED, Flow, FlowEvent, SOCKET_DIRECT,
    SocketState, Tuple,
};

use crate::context::{field, long_field, netns_cookie, ops_ends};
use crate::direct::{is_allowed, pod_with, verdicts_hold};
use crate::maps::{AUTH, FLOW_EVENTS, FLOWS, PODS, add_flow, count, subtract_flow};
use crate::tcp::{cookie, fin_seen, payload_sent, watch, write_seq};

/// Arguments of a state change: the former state and the new one.
const OLD_STATE: usize = offset_of!(bpf_sock_ops, __bindgen_anon_1);
const NEW_STATE: usize = OLD_STATE + 4;

/// Just before the SYN leaves: port and sequence number are chosen. Where it is not authorised, the SYN
/// leaves all the same and meets the other pod's agent, which decides about it as about any other.
#[inline(always)]
pub fn authorise(ctx: &SockOpsContext, socket: *mut bpf_sock, state: &mut SocketState) {
    let outcome = attempt(ctx, socket, state);
    count(outcome);
    if outcome as u32 != CounterId::BypassAuthorised as u32 {
        state.flags &= !SOCKET_DIRECT;
    }
}

/// What is dialled now is decided about, not what was chosen at connect: another program may have
/// rewritten it since, and a verdict may have been taken back.
#[inline(always)]
fn attempt(ctx: &SockOpsContext, socket: *mut bpf_sock, state: &SocketState) -> CounterId {
    let (local, remote) = ops_ends(ctx);
    let Some(destination) = pod_with(&remote.ip) else {
        return CounterId::BypassRevoked;
    };
    let Some(isn) = write_seq(socket) else {
        return CounterId::BypassAuthoriseFailed;
    };
    // Asked for before there is an entry: one that nobody is told to remove must not be made.
    if !watch(ctx) {
        return CounterId::BypassAuthoriseFailed;
    }
    let socket = cookie(ctx);
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let source = netns_cookie(ctx);
    let flow = Flow {
        source,
        destination,
        started_ns: now,
        tuple: Tuple {
            source: local,
            destination: remote,
        },
        original: state.endpoint,
        padding: 0,
    };
    if FLOWS
        .insert(&socket, &flow, u64::from(BPF_NOEXIST))
        .is_err()
    {
        return CounterId::BypassAuthoriseFailed;
    }
    add_flow();
    // Only now: who takes a verdict back and reads FLOWS afterwards either finds this connection there,
    // or we find that the verdict is gone.
    // The verdict is about the pod's own addresses, and no others that it has or claims to have.
    // SAFETY: elements are freed after a grace period that cannot end while we run.
    let own = unsafe { PODS.get(&source) }.is_some_and(|pod| is_own(pod, &local.ip));
    if !own || !verdicts_hold() || !is_allowed(source, destination, remote.port) {
        forget(socket);
        return CounterId::BypassRevoked;
    }
    let authorisation = Authorisation {
        socket,
        at_ns: now,
        isn,
        kind: AUTHORISED_DIRECT,
    };
    if AUTH.insert(&flow.tuple, &authorisation, 0).is_err() {
        forget(socket);
        return CounterId::BypassAuthoriseFailed;
    }
    CounterId::BypassAuthorised
}

#[inline(always)]
fn forget(socket: u64) {
    if FLOWS.remove(&socket).is_ok() {
        subtract_flow();
    }
}

/// The connecting end is established.
#[inline(always)]
pub fn opened(ctx: &SockOpsContext) {
    let socket = cookie(ctx);
    // SAFETY: only this socket's own end removes the element, and it is not closing.
    if let Some(flow) = unsafe { FLOWS.get(&socket) } {
        tell(ctx, FLOW_OPENED, 0, socket, flow, (0, 0));
    }
}

/// The connecting end changes its state; when it closes, established or not, nothing of it is left.
#[inline(always)]
pub fn state_changed(ctx: &SockOpsContext, of: *mut bpf_sock) {
    if field::<NEW_STATE>(ctx.as_ptr()) != BPF_TCP_CLOSE {
        return;
    }
    let socket = cookie(ctx);
    // SAFETY: only this socket's own end removes the element, below, after its last use.
    let Some(flow) = (unsafe { FLOWS.get(&socket) }) else {
        return;
    };
    // One that never got through, or whose other end has gone, has left its authorisation.
    // SAFETY: one word is read at once.
    let left = unsafe { AUTH.get(&flow.tuple) }.is_some_and(|left| left.socket == socket);
    if left {
        let _ = AUTH.remove(&flow.tuple);
    }
    let counted = long_field::<{ offset_of!(bpf_sock_ops, bytes_received) }>(ctx.as_ptr());
    let bytes = (payload_sent(of), payload_received(counted, fin_seen(of)));
    let old = field::<OLD_STATE>(ctx.as_ptr());
    tell(ctx, FLOW_CLOSED, old, socket, flow, bytes);
    forget(socket);
}

/// Written in place: on the stack there is no room for a record. The agent looks at times of its own.
#[inline(always)]
fn tell(
    ctx: &SockOpsContext,
    kind: u32,
    old_state: u32,
    socket: u64,
    flow: &Flow,
    (sent, received): (u64, u64),
) {
    let Some(mut record) = FLOW_EVENTS.reserve::<FlowEvent>(0) else {
        count(CounterId::BypassEventLost);
        return;
    };
    let c = ctx.as_ptr();
    // The kernel keeps it times eight.
    let rtt_us = field::<{ offset_of!(bpf_sock_ops, srtt_us) }>(c) >> 3;
    let retransmits = field::<{ offset_of!(bpf_sock_ops, total_retrans) }>(c);
    // SAFETY: the helper takes nothing.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: the record is ours until it is submitted, is as large as the type and aligned to 8 bytes; every bit
    // pattern is one of the type, and every field is written.
    let to = unsafe { &mut *record.as_mut_ptr() };
    to.kind = kind;
    to.old_state = old_state;
    to.socket = socket;
    to.at_ns = at_ns;
    to.sent = sent;
    to.received = received;
    to.rtt_us = rtt_us;
    to.retransmits = retransmits;
    to.flow = *flow;
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
}

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! `connect()`: the only place where an application's connection changes its destination.

use core::mem::offset_of;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id};
use aya_ebpf::programs::SockAddrContext;
use aya_log_ebpf::warn;
use karst_bpf_common::decide::{
    KUBEPODS_DEPTH, capture_target, is_agent, is_pods_ancestor, is_tcp, may_leave, may_probe,
    should_capture,
};
use karst_bpf_common::layout::{
    Config, NetnsCookie, SOCKET_CAPTURED, SOCKET_DIRECT, SOCKET_ELSEWHERE, SOCKET_PEER,
    SOCKET_PROBE, SOCKET_SOURCE, SocketState,
};
use karst_bpf_common::{CounterId, Endpoint};

use crate::context::{
    addr_port, addr_socket, addr_v4, addr_v6, field, netns_cookie, set_addr_v4, set_addr_v6,
};
use crate::direct::{Choice, choose};
use crate::maps::{POD_ADDRESSES, PODS, config, count};
use crate::{ALLOW, REFUSE, state};

enum Verdict {
    /// Not ours.
    Leave,
    Rewrite(Endpoint),
    Refuse,
}

pub fn v4(ctx: &SockAddrContext) -> i32 {
    match verdict(ctx, &Endpoint::new(addr_v4(ctx), addr_port(ctx))) {
        Verdict::Leave => ALLOW,
        Verdict::Refuse => REFUSE,
        Verdict::Rewrite(target) => {
            set_addr_v4(ctx, &target);
            ALLOW
        }
    }
}

pub fn v6(ctx: &SockAddrContext) -> i32 {
    match verdict(ctx, &Endpoint::new(addr_v6(ctx), addr_port(ctx))) {
        Verdict::Leave => ALLOW,
        Verdict::Refuse => REFUSE,
        Verdict::Rewrite(target) => {
            set_addr_v6(ctx, &target);
            ALLOW
        }
    }
}

#[inline(always)]
fn verdict(ctx: &SockAddrContext, destination: &Endpoint) -> Verdict {
    let kind = field::<{ offset_of!(bpf_sock_addr, type_) }>(ctx.as_ptr());
    let protocol = field::<{ offset_of!(bpf_sock_addr, protocol) }>(ctx.as_ptr());
    if !is_tcp(kind, protocol) {
        return Verdict::Leave;
    }
    let socket = addr_socket(ctx);
    forget_last(socket);
    if !may_leave(&destination.ip) {
        return Verdict::Leave;
    }
    let Some(config) = config() else {
        return Verdict::Leave;
    };
    let netns = netns_cookie(ctx);
    if netns == config.host_netns {
        authorise_probe(socket, config, destination);
        return Verdict::Leave;
    }
    // SAFETY: elements are freed after a grace period that cannot end while we run.
    let Some(pod) = (unsafe { PODS.get(&netns) }) else {
        return Verdict::Leave;
    };
    if !should_capture(pod, &destination.ip) {
        return Verdict::Leave;
    }
    // SAFETY: the helper takes nothing and reads the current task.
    if is_agent(config, unsafe { bpf_get_current_cgroup_id() }) {
        return Verdict::Leave;
    }
    capture(ctx, socket, netns, destination)
}

/// A socket may dial again, after a refusal or `AF_UNSPEC`: what the last call was granted does
/// not hold for this one. Only the agent's own mark survives, which it sets before connecting.
#[inline(always)]
fn forget_last(socket: *mut bpf_sock) {
    if let Some(state) = state::get(socket)
        && state.flags & SOCKET_SOURCE == 0
    {
        state.flags = 0;
    }
}

#[inline(always)]
fn capture(
    ctx: &SockAddrContext,
    socket: *mut bpf_sock,
    netns: NetnsCookie,
    destination: &Endpoint,
) -> Verdict {
    // SAFETY: the verifier knows this pointer as the socket being connected, never null.
    let device = unsafe { (*socket).bound_dev_if };
    if device != 0 {
        // Its packets may only use that device, so loopback would swallow them in silence.
        count(CounterId::OutboundRefusedBoundDevice);
        warn!(
            ctx,
            "outbound_refused_bound_device: connect to {:i} port {} refused, the socket is bound to device {}",
            destination.ip.octets(),
            destination.port,
            device
        );
        return Verdict::Refuse;
    }
    let elsewhere = match choose(netns, destination) {
        Choice::Direct(endpoint) => match go_directly(socket, destination, &endpoint) {
            Some(verdict) => return verdict,
            None => 0,
        },
        Choice::Elsewhere => SOCKET_ELSEWHERE,
        Choice::Agent => 0,
    };
    let captured = SocketState {
        endpoint: *destination,
        flags: SOCKET_CAPTURED | SOCKET_PEER | elsewhere,
    };
    if state::set(socket, captured).is_none() {
        count(CounterId::OutboundRefusedNoState);
        warn!(
            ctx,
            "outbound_refused_no_state: connect to {:i} port {} refused, no memory for its destination",
            destination.ip.octets(),
            destination.port
        );
        return Verdict::Refuse;
    }
    count(CounterId::OutboundCaptured);
    Verdict::Rewrite(capture_target(&destination.ip))
}

/// Lets a connection go to another pod of the node past the agent; `None` when there is no memory to
/// remember that.
#[inline(always)]
fn go_directly(
    socket: *mut bpf_sock,
    destination: &Endpoint,
    endpoint: &Endpoint,
) -> Option<Verdict> {
    let same = endpoint.same(destination);
    // Where nothing is rewritten, other programs keep their say in what the application sees.
    let peer = if same { 0 } else { SOCKET_PEER };
    let direct = SocketState {
        endpoint: *destination,
        flags: SOCKET_DIRECT | peer,
    };
    state::set(socket, direct)?;
    count(CounterId::BypassChosen);
    Some(if same {
        Verdict::Leave
    } else {
        Verdict::Rewrite(*endpoint)
    })
}

/// A process of the node itself that dials an enrolled pod here is the kubelet probing it. That
/// is known from the task, which no other host can be, and not from its address, which others
/// can share by masquerading. Without storage it is treated as a stranger.
#[inline(always)]
fn authorise_probe(socket: *mut bpf_sock, config: &Config, destination: &Endpoint) {
    // SAFETY: only whether there is an element matters, not what is in it.
    if unsafe { POD_ADDRESSES.get(&destination.ip) }.is_none() {
        return;
    }
    // SAFETY: the helper takes nothing and reads the current task.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if may_probe(config, cgroup) && !is_below_kubepods(config) {
        let probe = SocketState {
            endpoint: *destination,
            flags: SOCKET_PROBE,
        };
        let _ = state::set(socket, probe);
    }
}

/// Depths are tried one by one because the agent cannot know the real one: inside a cgroup
/// namespace paths are cut off, ids are not.
#[inline(always)]
fn is_below_kubepods(config: &Config) -> bool {
    for depth in 1..=KUBEPODS_DEPTH {
        // SAFETY: the helper takes a number and reads the current task; 0 means none so deep.
        let ancestor = unsafe { bpf_get_current_ancestor_cgroup_id(depth) };
        if ancestor == 0 {
            break;
        }
        if is_pods_ancestor(config, ancestor) {
            return true;
        }
    }
    false
}

// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Which connections go past the agent: to pods of the same node, where a verdict made in advance
//! says so. Whatever is unknown here is the agent's to decide.

use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns};
use karst_bpf_common::decide::{Pick, may_bypass, pick};
use karst_bpf_common::layout::{
    ANY_PORT, EndpointKey, NetnsCookie, VERDICT_ALLOW, VERDICT_ASK, VerdictKey,
};
use karst_bpf_common::{CounterId, Endpoint, FLOW_ENTRIES, FLOW_SLACK, Ip};

use crate::maps::{
    ENDPOINTS, POD_ADDRESSES, PODS, SERVICES, VERDICTS, count, flow_count, verdicts_until,
};

/// Where a connection goes.
pub enum Choice {
    Agent,
    /// To the agent, which leaves out the service's endpoints on this node.
    Elsewhere,
    /// To this pod of the node, past the agent.
    Direct(Endpoint),
}

#[inline(always)]
pub fn choose(source: NetnsCookie, destination: &Endpoint) -> Choice {
    let until = verdicts_until();
    if until == 0 {
        return Choice::Agent;
    }
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    let holds = now < until;
    let mut endpoint = *destination;
    // SAFETY: words are read at once; one entry's set and counts are replaced together or are found
    // to be of a set that has no endpoints any more.
    if let Some(service) = unsafe { SERVICES.get(destination) } {
        // SAFETY: the helper takes nothing.
        let random = unsafe { bpf_get_prandom_u32() } as u32;
        let slot = match pick(service, random) {
            Pick::Here(slot) => slot,
            Pick::Elsewhere if holds => return Choice::Elsewhere,
            Pick::Elsewhere | Pick::Nothing => return Choice::Agent,
        };
        let key = EndpointKey {
            set: service.set,
            slot,
            padding: 0,
        };
        // SAFETY: the element is copied at once, and what is dialled is decided about again just
        // before it is.
        let Some(chosen) = (unsafe { ENDPOINTS.get(&key) }) else {
            return Choice::Agent;
        };
        if chosen.ip.is_v4() != destination.ip.is_v4() {
            return Choice::Agent;
        }
        endpoint = *chosen;
    }
    let Some(pod) = pod_with(&endpoint.ip) else {
        return Choice::Agent;
    };
    if !is_allowed(source, pod, endpoint.port) {
        return Choice::Agent;
    }
    if !holds {
        count(CounterId::BypassExpired);
        return Choice::Agent;
    }
    if flow_count() >= u64::from(FLOW_ENTRIES - FLOW_SLACK) {
        count(CounterId::BypassFlowsFull);
        return Choice::Agent;
    }
    Choice::Direct(endpoint)
}

/// The enrolled pod of this node with this address.
#[inline(always)]
pub fn pod_with(ip: &Ip) -> Option<NetnsCookie> {
    // SAFETY: one word is read at once.
    unsafe { POD_ADDRESSES.get(ip) }.copied()
}

/// Whether verdicts hold now.
#[inline(always)]
pub fn verdicts_hold() -> bool {
    // SAFETY: the helper takes nothing.
    let now = unsafe { bpf_ktime_get_ns() };
    now < verdicts_until()
}

/// Whether a verdict lets `source` reach this port of `destination` past the agent, and handshakes
/// to that pod are watched over.
#[inline(always)]
pub fn is_allowed(source: NetnsCookie, destination: NetnsCookie, port: u16) -> bool {
    if source == destination || !may_bypass(port) {
        return false;
    }
    // SAFETY: one word is read at once.
    let guarded = unsafe { PODS.get(&destination) }.is_some_and(|pod| pod.guard != 0);
    if !guarded {
        return false;
    }
    let mut key = VerdictKey {
        source,
        destination,
        port: u32::from(port),
        padding: 0,
    };
    let of_port = verdict(&key);
    let verdict = match of_port {
        Some(verdict) => verdict,
        None => {
            key.port = ANY_PORT;
            verdict(&key).unwrap_or(VERDICT_ASK)
        }
    };
    verdict == VERDICT_ALLOW
}

#[inline(always)]
fn verdict(key: &VerdictKey) -> Option<u32> {
    // SAFETY: one word is read at once.
    unsafe { VERDICTS.get(key) }.copied()
}

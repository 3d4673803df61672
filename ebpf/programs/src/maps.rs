// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The maps; tabled with writers, readers and what happens when full in `ebpf/README.md`.

use core::arch::asm;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SockHash};
use karst_bpf_common::counter::COUNTER_ENTRIES;
use karst_bpf_common::layout::{
    Authorisation, Config, EndpointKey, Flow, NetnsCookie, Pod, PublishedKey, ServiceEndpoints,
    SocketState, Tuple, VerdictKey,
};
use karst_bpf_common::{
    AUTHORISED_ENTRIES, CounterId, ENDPOINT_ENTRIES, Endpoint, FLOW_ENTRIES, FLOW_EVENT_BYTES, Ip,
    PUBLISHED_ENTRIES, SERVICE_ENTRIES, VERDICT_ENTRIES,
};

/// Set by the loader from the node's `max_pods`; this value is never used as it is.
const OVERRIDDEN: u32 = 1;

// Without preallocation a removed element is freed after a grace period and never reused under
// a reader, so a program cannot see half of one pod and half of another.
#[map]
pub static PODS: HashMap<NetnsCookie, Pod> =
    HashMap::with_max_entries(OVERRIDDEN, BPF_F_NO_PREALLOC);

/// Addresses of enrolled pods on this node, with the namespace they live in.
#[map]
pub static POD_ADDRESSES: HashMap<Ip, NetnsCookie> =
    HashMap::with_max_entries(OVERRIDDEN, BPF_F_NO_PREALLOC);

/// The agent's plaintext listener for each pod address.
#[map]
pub static LISTENERS: SockHash<Ip> = SockHash::with_max_entries(OVERRIDDEN, 0);

/// Addresses on their way from the connecting to the accepting end of one handshake.
#[map]
pub static PUBLISHED: LruHashMap<PublishedKey, SocketState> =
    LruHashMap::with_max_entries(PUBLISHED_ENTRIES, 0);

/// Handshakes of the node's own probes, and of connections that go past the agent.
#[map]
pub static AUTH: LruHashMap<Tuple, Authorisation> =
    LruHashMap::with_max_entries(AUTHORISED_ENTRIES, 0);

/// What the agent has decided in advance.
#[map]
pub static VERDICTS: HashMap<VerdictKey, u32> =
    HashMap::with_max_entries(VERDICT_ENTRIES, BPF_F_NO_PREALLOC);

/// Services that have an endpoint on this node, by address and port.
#[map]
pub static SERVICES: HashMap<Endpoint, ServiceEndpoints> =
    HashMap::with_max_entries(SERVICE_ENTRIES, BPF_F_NO_PREALLOC);

/// Their endpoints on this node.
#[map]
pub static ENDPOINTS: HashMap<EndpointKey, Endpoint> =
    HashMap::with_max_entries(ENDPOINT_ENTRIES, BPF_F_NO_PREALLOC);

/// Connections past the agent, by the cookies of their connecting sockets. Never evicted: who is not
/// here cannot be found when a verdict is taken back.
#[map]
pub static FLOWS: HashMap<u64, Flow> = HashMap::with_max_entries(FLOW_ENTRIES, BPF_F_NO_PREALLOC);

/// How many these are; the kernel does not tell programs.
#[map]
static FLOW_COUNT: Array<u64> = Array::with_max_entries(1, 0);

/// Until when verdicts hold, on the monotonic clock.
#[map]
static VERDICTS_UNTIL: Array<u64> = Array::with_max_entries(1, 0);

/// What becomes of these connections, for the agent that loaded this program.
#[map]
pub static FLOW_EVENTS: RingBuf = RingBuf::with_byte_size(FLOW_EVENT_BYTES, 0);

#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(COUNTER_ENTRIES, 0);

/// One entry. Array lookups are inlined by the JIT, so reading it costs a load.
#[map]
static CONFIG: Array<Config> = Array::with_max_entries(1, 0);

/// What we know of one socket.
#[btf_map]
pub static SKST: SkStorage<SocketState> = SkStorage::new();

/// Offset of `write_seq` in the running kernel's `struct tcp_sock`, from its BTF. A constant to
/// the verifier, which refuses variable offsets into kernel structures.
#[unsafe(no_mangle)]
static WRITE_SEQ_OFFSET: Global<u64> = Global::new(0);

/// The same of `bytes_sent` and `bytes_retrans`, and of `skc_flags` in `struct sock_common`, with which a socket begins.
#[unsafe(no_mangle)]
static BYTES_SENT_OFFSET: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static BYTES_RETRANS_OFFSET: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
static SOCK_FLAGS_OFFSET: Global<u64> = Global::new(0);

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn write_seq_offset() -> usize {
    WRITE_SEQ_OFFSET.load() as usize
}

#[inline(always)]
pub fn bytes_sent_offset() -> usize {
    BYTES_SENT_OFFSET.load() as usize
}

#[inline(always)]
pub fn bytes_retrans_offset() -> usize {
    BYTES_RETRANS_OFFSET.load() as usize
}

#[inline(always)]
pub fn sock_flags_offset() -> usize {
    SOCK_FLAGS_OFFSET.load() as usize
}

#[inline(always)]
pub fn verdicts_until() -> u64 {
    VERDICTS_UNTIL.get(0).copied().unwrap_or(0)
}

/// How many connections there are past the agent.
#[inline(always)]
pub fn flow_count() -> u64 {
    let Some(counter) = FLOW_COUNT.get_ptr(0) else {
        return u64::MAX;
    };
    // SAFETY: an aligned word of a map that lives as long as the program, always written as a whole.
    unsafe { ptr::read_volatile(counter) }
}

#[inline(always)]
pub fn add_flow() {
    change_flow_count(1);
}

#[inline(always)]
pub fn subtract_flow() {
    change_flow_count(-1);
}

/// In assembly because `core` has no atomic additions for this target, which has no others.
#[inline(always)]
fn change_flow_count(by: i64) {
    if let Some(counter) = FLOW_COUNT.get_ptr_mut(0) {
        // SAFETY: an atomic addition to an aligned word of a map; the verifier checks the pointer.
        unsafe {
            asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) counter, in(reg) by, options(nostack));
        }
    }
}

#[inline(always)]
pub fn count(id: CounterId) {
    let Some(counter) = COUNTERS.get_ptr_mut(id as u32) else {
        return;
    };
    // SAFETY: the map hands out this CPU's own, aligned u64, which no other program touches
    // while this one runs.
    let counter = unsafe { &mut *counter };
    *counter = counter.wrapping_add(1);
}

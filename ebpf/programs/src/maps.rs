// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The maps; tabled with writers, readers and what happens when full in `ebpf/README.md`.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, SockHash};
use karst_bpf_common::counter::COUNTER_ENTRIES;
use karst_bpf_common::layout::{
    Authorisation, Config, NetnsCookie, Pod, PublishedKey, SocketState, Tuple,
};
use karst_bpf_common::{AUTHORISED_ENTRIES, CounterId, Ip, PUBLISHED_ENTRIES};

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

/// Handshakes of the node's own probes.
#[map]
pub static AUTH: LruHashMap<Tuple, Authorisation> =
    LruHashMap::with_max_entries(AUTHORISED_ENTRIES, 0);

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

#[inline(always)]
pub fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

#[inline(always)]
pub fn write_seq_offset() -> usize {
    WRITE_SEQ_OFFSET.load() as usize
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

//! The bpf(2) commands aya 0.14 has no safe wrapper for, over byte slices and descriptors.
//!
//! Numbers and structures are those of linux/bpf.h; the kernel accepts a structure shorter or
//! longer than its own as long as what it does not know is zero.

pub(crate) mod iterate;
pub(crate) mod ring;
pub(crate) mod route;

use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::slice;

use aya::Pod;

const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const MAP_GET_NEXT_KEY: libc::c_int = 4;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const MAP_GET_FD_BY_ID: libc::c_int = 14;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const ENABLE_STATS: libc::c_int = 32;
/// `BPF_STATS_RUN_TIME`.
const STATS_RUN_TIME: u32 = 0;

/// `enum bpf_attach_type`, as far as we attach.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachType {
    SockOps = 3,
    Connect4 = 10,
    Connect6 = 11,
    Peername4 = 29,
    Peername6 = 30,
    SkLookup = 36,
    TcxEgress = 47,
}

impl AttachType {
    const ALL: [Self; 7] = [
        Self::SockOps,
        Self::Connect4,
        Self::Connect6,
        Self::Peername4,
        Self::Peername6,
        Self::SkLookup,
        Self::TcxEgress,
    ];

    /// Those attached to a cgroup.
    pub(crate) const OF_CGROUPS: [Self; 5] = [
        Self::SockOps,
        Self::Connect4,
        Self::Connect6,
        Self::Peername4,
        Self::Peername6,
    ];

    /// The kernel's name, in lower case.
    pub(crate) fn name(number: u32) -> String {
        match Self::ALL.into_iter().find(|kind| *kind as u32 == number) {
            Some(Self::SockOps) => "cgroup_sock_ops".into(),
            Some(Self::Connect4) => "cgroup_inet4_connect".into(),
            Some(Self::Connect6) => "cgroup_inet6_connect".into(),
            Some(Self::Peername4) => "cgroup_inet4_getpeername".into(),
            Some(Self::Peername6) => "cgroup_inet6_getpeername".into(),
            Some(Self::SkLookup) => "sk_lookup".into(),
            Some(Self::TcxEgress) => "tcx_egress".into(),
            None => number.to_string(),
        }
    }
}

/// `BPF_LINK_TYPE_CGROUP`.
pub(crate) const LINK_CGROUP: u32 = 3;
/// `BPF_LINK_TYPE_NETNS`.
pub(crate) const LINK_NETNS: u32 = 5;
/// `BPF_LINK_TYPE_TCX` (Linux 6.6).
pub(crate) const LINK_TCX: u32 = 11;

/// `BPF_F_BEFORE`: before another program, and where none is named before all.
const BEFORE: u32 = 1 << 3;

#[repr(C)]
#[derive(Clone, Copy)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value_or_next_key: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkCreateAttr {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    /// Of multi-attach hooks of devices: which other program, and how often these were changed; zero for any.
    other: u32,
    padding: u32,
    revision: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkUpdateAttr {
    link: u32,
    new_program: u32,
    flags: u32,
    old_program: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct InfoAttr {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct IdAttr {
    id: u32,
    next_id: u32,
    flags: u32,
}

/// `struct bpf_link_info` with the union as two words: a cgroup link has the cgroup's id in
/// `target` and the attach type in the low half of `rest`; a netns link has inode and attach
/// type in the low and high half of `target`, a TCX link the interface's index and attach type.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    target: u64,
    rest: u64,
}
// SAFETY: integers without holes.
unsafe impl Pod for RawLinkInfo {}

/// What a link is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// Id of the cgroup, 0 once it is gone.
    Cgroup(u64),
    /// Inode of the network namespace, 0 once it is gone.
    Netns(u32),
    /// Index of the interface, 0 once it is gone.
    Interface(u32),
    Other,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pub(crate) target: LinkTarget,
    pub(crate) attach_type: u32,
}

/// Beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) name: [u8; 16],
}
// SAFETY: integers and a byte array without holes.
unsafe impl Pod for MapInfo {}

/// Beginning of `struct bpf_prog_info`; fields without a name here are not used.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawProgramInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    pub(crate) jited_bytes: u32,
    pub(crate) translated_bytes: u32,
    instructions: [u64; 2],
    /// Nanoseconds since the machine's start.
    pub(crate) load_time: u64,
    pub(crate) created_by: u32,
    map_count: u32,
    map_ids: u64,
    pub(crate) name: [u8; 16],
    device: u32,
    /// The lowest bit: the licence is one that all helpers may be used with.
    pub(crate) licence: u32,
    netns: [u64; 2],
    symbol_counts: [u32; 2],
    symbols: [u64; 2],
    btf: [u32; 2],
    functions: u64,
    line_counts: [u32; 2],
    lines: [u64; 2],
    line_sizes: [u32; 4],
    tags: u64,
    pub(crate) run_time_ns: u64,
    pub(crate) run_count: u64,
    recursion_misses: u64,
    pub(crate) verified_instructions: u32,
    attach_btf: u32,
}
// SAFETY: integers and byte arrays without holes.
unsafe impl Pod for RawProgramInfo {}

/// A program and the maps it uses.
#[derive(Clone, Debug)]
pub(crate) struct ProgramInfo {
    pub(crate) raw: RawProgramInfo,
    pub(crate) map_ids: Vec<u32>,
}

/// `BPF_PROG_QUERY`; what follows is for multi-attach hooks of devices.
#[repr(C)]
#[derive(Clone, Copy)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    count: u32,
    padding: u32,
}

/// Most maps a program, and most programs a hook, can be listed with: the kernel allows 64 of
/// either (`MAX_USED_MAPS`, `BPF_CGROUP_MAX_PROGS`).
const LISTED: usize = 64;

/// Bytes of a `T`.
pub(crate) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` promises plain bytes without holes, borrowed for as long as `value`.
    unsafe { slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

pub(crate) fn bytes_of_mut<T: Pod>(value: &mut T) -> &mut [u8] {
    // SAFETY: as in `bytes_of`, and every bit pattern is a valid `T`.
    unsafe { slice::from_raw_parts_mut(std::ptr::from_mut(value).cast::<u8>(), size_of::<T>()) }
}

pub(crate) fn zeroed<T: Pod>() -> T {
    // SAFETY: every bit pattern of a `Pod` is valid, all zeroes too.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// A `T` out of exactly its bytes.
pub(crate) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    let mut value = zeroed::<T>();
    let target = bytes_of_mut(&mut value);
    if target.len() != bytes.len() {
        return None;
    }
    target.copy_from_slice(bytes);
    Some(value)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One bpf(2) call. The caller vouches for every pointer inside `attr`.
///
/// # Safety
/// `attr` is the structure `command` takes, and the addresses in it are of live memory of the
/// size the command reads or writes.
unsafe fn bpf<T: Copy>(command: libc::c_int, attr: &mut T) -> io::Result<RawFd> {
    // SAFETY: `attr` is live and its size is given; what it points to is the caller's promise.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if outcome < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(outcome as RawFd)
    }
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: a descriptor the kernel has just given to us and to nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn missing_is_none(outcome: io::Result<RawFd>) -> io::Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Slices must have the map's own key and value size; [`crate::map::RawMap`] sees to that.
pub(crate) fn map_lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        padding: 0,
        key: key.as_ptr() as u64,
        value_or_next_key: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: both slices are live and of the map's sizes.
    missing_is_none(unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) })
}

/// As [`map_lookup`]; creates or replaces.
pub(crate) fn map_update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        padding: 0,
        key: key.as_ptr() as u64,
        value_or_next_key: value.as_ptr() as u64,
        flags: 0,
    };
    // SAFETY: both slices are live and of the map's sizes.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
}

/// Whether there was such an element.
pub(crate) fn map_delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        padding: 0,
        key: key.as_ptr() as u64,
        value_or_next_key: 0,
        flags: 0,
    };
    // SAFETY: the key is live and of the map's size.
    missing_is_none(unsafe { bpf(MAP_DELETE_ELEM, &mut attr) })
}

/// The key after `key`, or the first; false at the end.
pub(crate) fn map_next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let mut attr = ElementAttr {
        map_fd: raw(map),
        padding: 0,
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value_or_next_key: next.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: both slices are live and of the map's key size.
    missing_is_none(unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) })
}

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: raw(object),
        flags: 0,
    };
    // SAFETY: the path is a live C string.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// The object pinned at `path`; `None` when there is none.
pub(crate) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = path_of(path)?;
    let mut attr = ObjectAttr {
        path: path.as_ptr() as u64,
        fd: 0,
        flags: 0,
    };
    // SAFETY: the path is a live C string.
    match unsafe { bpf(OBJ_GET, &mut attr) } {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Attaches `program` to a cgroup or namespace for as long as the link or a pin of it lives.
pub(crate) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    create(program, raw(target), attach_type, 0)
}

/// The same for an interface of the calling thread's network namespace, before all programs that are there
/// (Linux 6.6).
pub(crate) fn link_create_first(
    program: BorrowedFd<'_>,
    interface: u32,
    attach_type: AttachType,
) -> io::Result<OwnedFd> {
    create(program, interface, attach_type, BEFORE)
}

fn create(
    program: BorrowedFd<'_>,
    target: u32,
    attach_type: AttachType,
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkCreateAttr {
        program: raw(program),
        target,
        attach_type: attach_type as u32,
        flags,
        other: 0,
        padding: 0,
        revision: 0,
    };
    // SAFETY: the structure holds no pointers.
    unsafe { bpf(LINK_CREATE, &mut attr) }.map(owned)
}

/// Makes a link run `program` instead, with no moment in which neither or both run (Linux 5.7).
pub(crate) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: raw(link),
        new_program: raw(program),
        flags: 0,
        old_program: 0,
    };
    // SAFETY: the structure holds no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

fn info<T: Pod>(object: BorrowedFd<'_>) -> io::Result<T> {
    info_into(object, zeroed::<T>())
}

/// `value` may hold addresses of buffers for the kernel to fill; they must be live.
fn info_into<T: Pod>(object: BorrowedFd<'_>, mut value: T) -> io::Result<T> {
    let target = bytes_of_mut(&mut value);
    let mut attr = InfoAttr {
        fd: raw(object),
        length: target.len() as u32,
        info: target.as_mut_ptr() as u64,
    };
    // SAFETY: `target` is live and its length is given.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(value)
}

pub(crate) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

pub(crate) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let found: RawLinkInfo = info(link)?;
    let (target, attach_type) = match found.kind {
        LINK_CGROUP => (LinkTarget::Cgroup(found.target), found.rest as u32),
        LINK_NETNS => (
            LinkTarget::Netns(found.target as u32),
            (found.target >> 32) as u32,
        ),
        LINK_TCX => (
            LinkTarget::Interface(found.target as u32),
            (found.target >> 32) as u32,
        ),
        _ => (LinkTarget::Other, 0),
    };
    Ok(LinkInfo {
        kind: found.kind,
        id: found.id,
        program: found.program,
        target,
        attach_type,
    })
}

/// The program with this id; it may have gone meanwhile.
pub(crate) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        next_id: 0,
        flags: 0,
    };
    // SAFETY: the structure holds no pointers.
    unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }.map(owned)
}

pub(crate) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut map_ids = vec![0u32; LISTED];
    let ask = RawProgramInfo {
        map_count: LISTED as u32,
        map_ids: map_ids.as_mut_ptr() as u64,
        ..zeroed()
    };
    let raw = info_into(program, ask)?;
    map_ids.truncate(raw.map_count as usize);
    Ok(ProgramInfo { raw, map_ids })
}

/// Ids of the programs attached to a cgroup or network namespace at one hook, whoever attached
/// them.
pub(crate) fn attached_programs(
    target: BorrowedFd<'_>,
    attach_type: AttachType,
) -> io::Result<Vec<u32>> {
    let mut ids = vec![0u32; LISTED];
    let mut attr = QueryAttr {
        target: raw(target),
        attach_type: attach_type as u32,
        query_flags: 0,
        attach_flags: 0,
        program_ids: ids.as_mut_ptr() as u64,
        count: LISTED as u32,
        padding: 0,
    };
    // SAFETY: `ids` has room for `count` ids.
    unsafe { bpf(PROG_QUERY, &mut attr) }?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// The map with this id; it may have gone meanwhile.
pub(crate) fn map_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = IdAttr {
        id,
        next_id: 0,
        flags: 0,
    };
    // SAFETY: the structure holds no pointers.
    unsafe { bpf(MAP_GET_FD_BY_ID, &mut attr) }.map(owned)
}

/// A hash of these sizes, for tests of maps that other versions made.
#[cfg(test)]
pub(crate) fn make_hash(key_size: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    const MAP_CREATE: libc::c_int = 0;
    const HASH: u32 = 1;
    let mut attr = [HASH, key_size, value_size, max_entries, 0];
    // SAFETY: the structure holds no pointers.
    unsafe { bpf(MAP_CREATE, &mut attr) }.map(owned)
}

/// Makes the kernel count runs of all programs for as long as the descriptor is open (Linux 5.8).
pub(crate) fn enable_run_stats() -> io::Result<OwnedFd> {
    let mut kind = STATS_RUN_TIME;
    // SAFETY: the structure is one number.
    unsafe { bpf(ENABLE_STATS, &mut kind) }.map(owned)
}

/// A clock's time, nanoseconds.
pub(crate) fn clock(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is live; the call fails only for a clock that the kernel does not know.
    unsafe { libc::clock_gettime(clock, &mut time) };
    let nanoseconds = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    u64::try_from(nanoseconds).unwrap_or(0)
}

//! Looks at a ring buffer without taking anything out of it.
//!
//! The kernel lets anybody who may have the map's descriptor map all of it for reading: a page with
//! the place of the reader, one with the place of the writers, and the records, twice in a row so
//! that none is cut (<https://docs.kernel.org/bpf/ringbuf.html>).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::slice;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bits of a record's length: still being written; given up by its writer.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
/// Length and page number, before each record.
const HEADER: usize = 8;

/// A record that nobody has taken yet.
pub(crate) struct Record {
    /// Place in the ring: it only grows.
    pub(crate) position: u64,
    /// Its bytes; `None` while it is being written, or given up.
    pub(crate) bytes: Option<Vec<u8>>,
}

/// What is in a ring buffer now.
pub(crate) struct Pending {
    /// Bytes of records not taken yet, headers included.
    pub(crate) bytes: u64,
    pub(crate) records: Vec<Record>,
}

/// Unmapped when dropped.
struct Mapping {
    start: *mut libc::c_void,
    length: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by us with this length, and nothing borrowed from it is left.
        unsafe { libc::munmap(self.start, self.length) };
    }
}

/// The records between reader and writers. A reader at work takes some of them away meanwhile; what
/// was overwritten while we looked is left out.
pub(crate) fn pending(map: BorrowedFd<'_>, size: u32) -> io::Result<Pending> {
    // SAFETY: the call takes a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    let page = usize::try_from(page).map_err(io::Error::other)?;
    let data = size as usize;
    let length = 2 * page + 2 * data;
    // SAFETY: a new mapping, for reading, of a descriptor that is open.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            libc::PROT_READ,
            libc::MAP_SHARED,
            map.as_raw_fd(),
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let mapping = Mapping { start, length };
    let position = |offset: usize| {
        // SAFETY: inside of the mapping, and aligned to a page; others write it as a whole word.
        let word = unsafe {
            &*mapping
                .start
                .cast::<u8>()
                .wrapping_add(offset)
                .cast::<AtomicU64>()
        };
        word.load(Ordering::Acquire)
    };
    let (reader, writer) = (position(0), position(page));
    let mut pending = Pending {
        bytes: writer.saturating_sub(reader).min(data as u64),
        records: Vec::new(),
    };
    let mut at = reader;
    while at < writer && data.is_power_of_two() {
        let place = 2 * page + (at as usize & (data - 1));
        // SAFETY: as above, and a header never lies across the end: records are twice in a row.
        let header =
            unsafe { slice::from_raw_parts(mapping.start.cast::<u8>().wrapping_add(place), 4) };
        let Ok(header) = header.try_into().map(u32::from_ne_bytes) else {
            break;
        };
        let bytes = (header & !(BUSY | DISCARDED)) as usize;
        if bytes + HEADER > data {
            break;
        }
        let whole = header & (BUSY | DISCARDED) == 0;
        let copy = whole.then(|| {
            let from = place + HEADER;
            // SAFETY: checked above to be within one length of the ring, which is mapped twice.
            unsafe { slice::from_raw_parts(mapping.start.cast::<u8>().wrapping_add(from), bytes) }
                .to_vec()
        });
        pending.records.push(Record {
            position: at,
            bytes: copy,
        });
        at += (bytes + HEADER).next_multiple_of(HEADER) as u64;
    }
    // What the reader has gone past may have been written over while it was copied.
    let gone = position(0);
    pending.records.retain(|record| record.position >= gone);
    Ok(pending)
}

//! The C library's allocator, told what an agent's memory is used for. It is here because only
//! this crate may call into C.

/// Bytes of free memory at the end of the heap above which it goes back to the kernel, and the
/// size from which a piece is mapped on its own. A relay's largest buffer is 256 KiB and a
/// thread has few of them at a time: 8 MiB hold them all, and are what is kept after a storm.
#[cfg(target_env = "gnu")]
const KEPT_BYTES: libc::c_int = 8 << 20;

/// Keeps the memory of one frame for the next one. By default it is given back and asked for
/// again between two frames, at the price of page faults on every byte that is relayed.
///
/// Call it once, before threads are started. Does nothing where the C library is not glibc.
pub fn tune() {
    #[cfg(target_env = "gnu")]
    for parameter in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: the call takes two numbers; it only fails for ones it does not know.
        let _ = unsafe { libc::mallopt(parameter, KEPT_BYTES) };
    }
}

/// Gives freed memory back to the kernel, also what lies between pieces that are in use: after a storm of
/// connections, pieces of those that go on lie scattered over all that the storm took. It takes milliseconds
/// for each 100 MB or so, and threads that allocate wait meanwhile.
pub fn give_back() {
    return_free();
}

/// Gives freed memory back to the kernel. Loading parses the kernel's BTF, some 14 MB that an
/// agent would otherwise hold for as long as it lives: the allocator keeps them for a second
/// time that never comes.
pub(crate) fn return_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointers and touches free memory only.
    let _ = unsafe { libc::malloc_trim(0) };
}

#[cfg(test)]
#[cfg(target_env = "gnu")]
mod tests {
    use std::fs;
    use std::hint::black_box;

    fn anonymous_kib() -> u64 {
        let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Anonymous:"));
        let words = line.unwrap().split_whitespace();
        words.rev().nth(1).unwrap().parse().unwrap()
    }

    /// Pieces in use between those that are freed keep the allocator from doing it by itself.
    #[test]
    fn what_a_storm_took_goes_back() {
        const PIECES: usize = 64 << 10;
        const PIECE: usize = 1 << 10;
        super::tune();
        let before = anonymous_kib();
        let mut all: Vec<Vec<u8>> = (0..PIECES).map(|_| black_box(vec![1; PIECE])).collect();
        let mut left = Vec::new();
        while let Some(piece) = all.pop() {
            if all.len().is_multiple_of(64) {
                left.push(piece);
            }
        }
        drop(all);
        let freed = anonymous_kib() - before;
        super::give_back();
        let after = anonymous_kib().saturating_sub(before);
        let taken = (PIECES * PIECE / 1024) as u64;
        assert!(
            freed > taken / 2,
            "{freed} KiB held, of {taken}: nothing to show"
        );
        assert!(after < taken / 4, "{after} KiB held after, of {taken}");
        drop(left);
    }
}

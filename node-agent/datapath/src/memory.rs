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

/// Gives freed memory back to the kernel. Loading parses the kernel's BTF, some 14 MB that an
/// agent would otherwise hold for as long as it lives: the allocator keeps them for a second
/// time that never comes.
pub(crate) fn return_free() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes no pointers and touches free memory only.
    let _ = unsafe { libc::malloc_trim(0) };
}

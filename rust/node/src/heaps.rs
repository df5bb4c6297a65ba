//! The heaps of the C library in a worker.

/// The threads of a worker share so many: most of them wait at any time.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS_MAX: libc::c_int = 4;

/// Has the threads of this process share a few heaps of the C library, unless the environment says how many.
///
/// It would give a heap to nearly every thread, each of which keeps as much as its largest burst has taken.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn share_heaps() {
    let tunables = std::env::var_os("GLIBC_TUNABLES").unwrap_or_default();
    let is_set = tunables.to_string_lossy().contains("malloc.arena_max");
    if is_set || std::env::var_os("MALLOC_ARENA_MAX").is_some() {
        return;
    }
    // SAFETY: it takes no pointers, and may be called by any thread at any time.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
    }
}

/// Other C libraries have one heap.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn share_heaps() {}

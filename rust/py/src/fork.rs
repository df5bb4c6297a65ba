//! A fork whose child belongs to the parent of this process: how a template process makes workers.
//!
//! What a worker's parent sees and does (its exit status, signals, the kernel's notice of its parent's end) is then
//! the same as if the parent had started it, and nothing of it depends on the template.

use std::ffi::c_void;
use std::io;

use pyo3::exceptions::PyOSError;
use pyo3::ffi::{PyOS_AfterFork_Child, PyOS_AfterFork_Parent, PyOS_BeforeFork};
use pyo3::prelude::*;

/// Forks this process, which may have one thread only; the child is a child of the parent of this process.
///
/// Returns 0 in the child, its process id here. Fails with an `OSError` where the system does not do this.
#[pyfunction]
pub(crate) fn fork_sibling(_py: Python<'_>) -> PyResult<i32> {
    check_single_thread().map_err(os_error)?;
    let thread_id = thread_id_field().map_err(os_error)?;
    // SAFETY: the interpreter is attached to this thread, as these functions demand, and there is no other thread whose
    // locks or memory the child could find in the middle of something. The C library has cached the number of this
    // thread in `thread_id`, where the kernel writes that of the child's, as it does for the library's own fork
    // (tests/lifecycle/test_template.py).
    unsafe {
        PyOS_BeforeFork();
        let pid = clone_sibling(thread_id);
        if matches!(pid, Ok(0)) {
            PyOS_AfterFork_Child();
        } else {
            PyOS_AfterFork_Parent();
        }
        pid.map_err(os_error)
    }
}

fn os_error(error: io::Error) -> PyErr {
    PyOSError::new_err((error.raw_os_error().unwrap_or(libc::ENOSYS), error.to_string()))
}

fn unsupported() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSYS)
}

fn check_single_thread() -> io::Result<()> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads == 1 { Ok(()) } else { Err(unsupported()) }
}

/// Where the C library keeps the number of this thread, the only one; the kernel was told at the thread's start.
fn thread_id_field() -> io::Result<*mut c_void> {
    const PR_GET_TID_ADDRESS: libc::c_int = 40;
    let mut field: *mut libc::pid_t = std::ptr::null_mut();
    // SAFETY: the kernel writes one pointer, to where it is asked to.
    if unsafe { libc::prctl(PR_GET_TID_ADDRESS, &raw mut field, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if field.is_null() {
        return Err(unsupported());
    }
    // SAFETY: the C library has given this address to the kernel to write to at the end of the thread, which is this
    // one: it is valid as long as it runs. That it holds the number of this thread is what is found out here.
    let is_thread_id = unsafe { i64::from(field.read()) == libc::syscall(libc::SYS_gettid) };
    if is_thread_id {
        Ok(field.cast())
    } else {
        Err(unsupported())
    }
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
unsafe fn clone_sibling(thread_id: *mut c_void) -> io::Result<i32> {
    let flags = libc::CLONE_PARENT | libc::CLONE_CHILD_SETTID | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
    let none: libc::c_long = 0;
    #[cfg(target_arch = "x86_64")]
    let (fourth, fifth) = (thread_id, std::ptr::null_mut::<c_void>());
    #[cfg(target_arch = "aarch64")]
    let (fourth, fifth) = (std::ptr::null_mut::<c_void>(), thread_id);
    // SAFETY: without a stack and without shared memory this is a fork; what the caller promises makes it a safe one.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            none,
            none,
            fourth,
            fifth,
        )
    };
    match i32::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn clone_sibling(_thread_id: *mut c_void) -> io::Result<i32> {
    Err(unsupported())
}

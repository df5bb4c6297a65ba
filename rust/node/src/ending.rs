//! The end of a worker whose head is gone: at once, with whatever it has started, and without Python.

use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;

/// What a worker removes: its socket, that of the head, the file with the cookie, and their folder once it is empty.
struct Leftovers {
    files: [CString; 3],
    folder: CString,
}

static LEFTOVERS: OnceLock<Leftovers> = OnceLock::new();

/// Notes what is to be removed at the end, so that a signal handler can do it.
pub(crate) fn prepare(address: &str) {
    let Some(path) = address.strip_prefix("unix:") else {
        return;
    };
    let Some(folder) = Path::new(path).parent().and_then(Path::to_str) else {
        return;
    };
    let (own, head, cookie, folder) = (
        CString::new(path),
        CString::new(format!("{folder}/1")),
        CString::new(format!("{folder}/cookie")),
        CString::new(folder),
    );
    if let (Ok(own), Ok(head), Ok(cookie), Ok(folder)) = (own, head, cookie, folder) {
        let _ = LEFTOVERS.set(Leftovers {
            files: [own, head, cookie],
            folder,
        });
    }
}

/// Asks the kernel for a signal when the thread that started this process is gone.
pub(crate) fn follow_parent() {
    let signal = libc::SIGRTMAX() - 1;
    // SAFETY: the handler only makes system calls that may be made in a signal handler; the struct is zeroed and
    // then filled, and lives through the call (tests/faults/test_ends.py).
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(signal, &action, std::ptr::null_mut());
        libc::prctl(libc::PR_SET_PDEATHSIG, signal);
    }
}

extern "C" fn on_signal(_signal: libc::c_int) {
    end_with_group()
}

/// Ends this process and, where it leads its process group, the whole group.
pub(crate) fn end_with_group() -> ! {
    // SAFETY: these calls may be made in a signal handler; the strings live as long as the process.
    unsafe {
        if let Some(leftovers) = LEFTOVERS.get() {
            for file in &leftovers.files {
                libc::unlink(file.as_ptr());
            }
            // Fails while other workers still have their sockets there.
            libc::rmdir(leftovers.folder.as_ptr());
        }
        if libc::getpgrp() == libc::getpid() {
            libc::kill(0, libc::SIGKILL);
        }
        libc::_exit(1)
    }
}

//! The end of a worker whose head is gone: at once, with whatever it has started, and without Python.

use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;

/// What a worker removes: its socket, and, where the head is gone, the head's, the file with the cookie, and their
/// folder once it is empty.
struct Leftovers {
    own: CString,
    head: CString,
    cookie: CString,
    folder: CString,
}

/// While the head ends, its socket may still be open when the connections to it are not: so often it is tried.
const TRIES: usize = 4;
const BETWEEN_TRIES_NANOS: i64 = 5_000_000;

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
            own,
            head,
            cookie,
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
            libc::unlink(leftovers.own.as_ptr());
            // It may live, and have ended the connection to this worker alone.
            if !listens(&leftovers.head) {
                libc::unlink(leftovers.head.as_ptr());
                libc::unlink(leftovers.cookie.as_ptr());
                // Fails while other workers still have their sockets there.
                libc::rmdir(leftovers.folder.as_ptr());
            }
        }
        if libc::getpgrp() == libc::getpid() {
            libc::kill(0, libc::SIGKILL);
        }
        libc::_exit(1)
    }
}

/// Whether somebody listens at a Unix socket, after some tries; callable in a signal handler.
fn listens(path: &CString) -> bool {
    for _ in 0..TRIES {
        if !can_connect(path) {
            return false;
        }
        let pause = libc::timespec {
            tv_sec: 0,
            tv_nsec: BETWEEN_TRIES_NANOS,
        };
        // SAFETY: the struct lives through the call, which may be made in a signal handler.
        unsafe { libc::nanosleep(&pause, std::ptr::null_mut()) };
    }
    true
}

fn can_connect(path: &CString) -> bool {
    // SAFETY: an address of zeros is valid.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    if path.as_bytes().len() >= address.sun_path.len() {
        return false;
    }
    for (to, from) in address.sun_path.iter_mut().zip(path.as_bytes()) {
        *to = from.cast_signed();
    }
    let len = size_of_val(&address) as libc::socklen_t;
    // SAFETY: these calls may be made in a signal handler; the address lives through them, and the descriptor is
    // this function's own.
    unsafe {
        let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let socket = libc::socket(libc::AF_UNIX, flags, 0);
        let connected = libc::connect(socket, (&raw const address).cast(), len) == 0;
        // A queue of connections that is full has somebody at its end.
        let listens = connected || *libc::__errno_location() == libc::EAGAIN;
        libc::close(socket);
        listens
    }
}

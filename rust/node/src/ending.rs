//! The end of a worker whose head is gone: at once, with whatever it has started, and without Python.

use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// So long after its connection has ended a head that dies has closed its listener, too.
const CLOSES_ALL: Duration = Duration::from_millis(100);

/// What a worker removes: its socket, and, where the head is gone, the head's, the file with the cookie, and their
/// folder once it is empty.
struct Leftovers {
    own: CString,
    head: CString,
    cookie: CString,
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
    end_with_group(true)
}

/// Ends this process, whose connection to the head is lost, and its group.
///
/// The head may live on: it gives up a worker that was silent. Then it needs its socket.
pub(crate) fn end_without_head() -> ! {
    let is_gone = LEFTOVERS.get().is_some_and(|leftovers| {
        nobody_listens(&leftovers.head) || {
            sleep(CLOSES_ALL);
            nobody_listens(&leftovers.head)
        }
    });
    end_with_group(is_gone)
}

/// Whether a socket is one whose listener has ended.
fn nobody_listens(path: &CString) -> bool {
    let attempt = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path.as_c_str())?)
    };
    attempt() == Err(Errno::CONNREFUSED)
}

/// Ends this process and, where it leads its process group, the whole group; removes what nobody else will.
fn end_with_group(head_is_gone: bool) -> ! {
    // SAFETY: these calls may be made in a signal handler; the strings live as long as the process.
    unsafe {
        if let Some(leftovers) = LEFTOVERS.get() {
            libc::unlink(leftovers.own.as_ptr());
            if head_is_gone {
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

//! How a child process ended, without reaping it: Python's `subprocess` does that.

use std::time::{Duration, Instant};

use pydist_proto::ids::ProcId;
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

/// How long a closed connection waits for the exit status of its process.
pub(crate) const STATUS_WAIT: Duration = Duration::from_millis(700);
/// How often the status is looked for meanwhile.
pub(crate) const STATUS_EVERY: Duration = Duration::from_millis(2);

/// A process whose connection has closed, and whose exit status is awaited.
pub(crate) struct Dying {
    pub(crate) pid: ProcId,
    pub(crate) ospid: u32,
    pub(crate) until: Instant,
    pub(crate) reason: String,
    /// It was not heard any more: its connection was ended here.
    pub(crate) silent: bool,
}

/// What the kernel tells of a process.
pub(crate) enum Fate {
    /// It runs, or is no child whose end could be seen from here.
    Open,
    Ended(String),
    /// It has been reaped already.
    Reaped,
}

/// Finds out how a child ended.
pub(crate) fn fate(ospid: u32) -> Fate {
    let Some(pid) = i32::try_from(ospid).ok().and_then(Pid::from_raw) else {
        return Fate::Open;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = match waitid(WaitId::Pid(pid), options) {
        Ok(Some(status)) => status,
        Err(rustix::io::Errno::CHILD) => return Fate::Reaped,
        _ => return Fate::Open,
    };
    if let Some(signal) = status.terminating_signal() {
        return Fate::Ended(format!("signal {signal}{}", signal_note(signal)));
    }
    status
        .exit_status()
        .map_or(Fate::Open, |code| Fate::Ended(format!("exit code {code}")))
}

fn signal_note(signal: i32) -> &'static str {
    match signal {
        libc::SIGKILL => " (SIGKILL), possibly out of memory",
        libc::SIGSEGV => " (SIGSEGV)",
        libc::SIGABRT => " (SIGABRT)",
        libc::SIGTERM => " (SIGTERM)",
        libc::SIGBUS => " (SIGBUS)",
        libc::SIGFPE => " (SIGFPE)",
        libc::SIGILL => " (SIGILL)",
        libc::SIGINT => " (SIGINT)",
        libc::SIGHUP => " (SIGHUP)",
        _ => "",
    }
}

//! How one thread waits until another has something for it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use rustix::io::Errno;
use rustix::thread::futex;

use crate::driver::{Driver, interrupted, timespec};
use crate::node::Node;

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = 2;
const LEADING: u32 = 3;

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parked {
    Notified,
    TimedOut,
    /// A signal arrived: Python's handlers are to be run.
    Signal,
}

/// The place of one waiting thread.
///
/// ```text
///   EMPTY ── park ──► PARKED (futex) or LEADING (epoll) ── unpark, time, signal ──► EMPTY
///     └── unpark ──► NOTIFIED ── park ──► EMPTY
/// ```
#[derive(Debug, Default)]
pub(crate) struct Parker {
    state: AtomicU32,
}

impl Parker {
    pub(crate) fn unpark(&self, driver: &Driver) {
        match self.state.swap(NOTIFIED, Ordering::SeqCst) {
            PARKED => {
                let _ = futex::wake(&self.state, futex::Flags::PRIVATE, 1);
            }
            // The leader looks at its own state after each event that it handles itself.
            LEADING if !Driver::is_leader() => driver.kick(),
            _ => {}
        }
    }

    /// Waits for an `unpark`, a signal or the deadline; reads the sockets meanwhile if nobody else does.
    pub(crate) fn park(&self, node: &Node, deadline: Option<Instant>, may_lead: bool) -> Parked {
        if self.consume() {
            return Parked::Notified;
        }
        if may_lead && !Driver::is_leader() && node.driver.try_lead() {
            let end = self.lead(node, deadline);
            node.driver.resign();
            return if self.consume() { Parked::Notified } else { end };
        }
        let end = self.sleep(deadline);
        if self.consume() { Parked::Notified } else { end }
    }

    pub(crate) fn is_leading(&self) -> bool {
        self.state.load(Ordering::Relaxed) == LEADING
    }

    fn consume(&self) -> bool {
        self.state.swap(EMPTY, Ordering::SeqCst) == NOTIFIED
    }

    fn enter(&self, state: u32) -> bool {
        self.state
            .compare_exchange(EMPTY, state, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn lead(&self, node: &Node, deadline: Option<Instant>) -> Parked {
        if !self.enter(LEADING) {
            return Parked::Notified;
        }
        let mut events = Vec::with_capacity(8);
        loop {
            let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            match node.driver.wait(timeout, &mut events) {
                Ok(()) => {}
                Err(error) if interrupted(&error) => return Parked::Signal,
                Err(_) => return Parked::Signal,
            }
            let none = events.is_empty();
            for event in events.drain(..) {
                node.handle_event(&event, &|| self.state.load(Ordering::SeqCst) == NOTIFIED);
            }
            if self.state.load(Ordering::SeqCst) == NOTIFIED {
                return Parked::Notified;
            }
            if none && deadline.is_some_and(|at| Instant::now() >= at) {
                return Parked::TimedOut;
            }
        }
    }

    fn sleep(&self, deadline: Option<Instant>) -> Parked {
        if !self.enter(PARKED) {
            return Parked::Notified;
        }
        loop {
            let timeout = deadline.map(|at| timespec(at.saturating_duration_since(Instant::now())));
            match futex::wait(&self.state, futex::Flags::PRIVATE, PARKED, timeout.as_ref()) {
                Err(Errno::INTR) => return Parked::Signal,
                Err(Errno::TIMEDOUT) => return Parked::TimedOut,
                _ => {}
            }
            if self.state.load(Ordering::SeqCst) == NOTIFIED {
                return Parked::Notified;
            }
        }
    }
}

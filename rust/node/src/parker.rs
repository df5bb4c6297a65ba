//! How one thread waits until another has something for it.

use std::time::{Duration, Instant};

use crate::driver::Driver;
use crate::node::Node;
use crate::poll::interrupted;
use crate::rings::Watched;
use crate::spin::{Step, Wait};
use crate::sync::atomic::Ordering;
use crate::sync::{Futex, Woken, now};

const EMPTY: u32 = 0;
const NOTIFIED: u32 = 1;
const PARKED: u32 = 2;
const LEADING: u32 = 3;

/// So often what comes through rings is read before the sockets are looked at again.
const UNPOLLED_MAX: u32 = 16;

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
    state: Futex,
}

impl Parker {
    pub(crate) fn unpark(&self, driver: &Driver) {
        match self.state.swap(NOTIFIED) {
            PARKED => self.state.wake(),
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
            if node.is_closing() {
                // This thread may have seen the kick that was meant to end the reactor.
                node.driver.kick();
            }
            return if self.consume() { Parked::Notified } else { end };
        }
        let end = self.sleep(deadline);
        if self.consume() { Parked::Notified } else { end }
    }

    pub(crate) fn is_leading(&self) -> bool {
        self.state.load(Ordering::Relaxed) == LEADING
    }

    fn consume(&self) -> bool {
        self.state.swap(EMPTY) == NOTIFIED
    }

    fn enter(&self, state: u32) -> bool {
        self.state.exchange(EMPTY, state)
    }

    fn lead(&self, node: &Node, deadline: Option<Instant>) -> Parked {
        if !self.enter(LEADING) {
            return Parked::Notified;
        }
        let mut events = Vec::with_capacity(8);
        let mut wait = Wait::begin();
        let mut rings = Watched::begin(node, wait.spins());
        let mut unpolled = 0;
        let is_notified = || self.state.load(Ordering::SeqCst) == NOTIFIED;
        loop {
            let step = wait.next();
            let mut read = false;
            let timeout = match step {
                Step::Look => {
                    read = rings.look(&is_notified);
                    Some(Duration::ZERO)
                }
                Step::Sleep => {
                    rings.end();
                    deadline.map(|at| at.saturating_duration_since(now()))
                }
            };
            if is_notified() {
                return Parked::Notified;
            }
            if read && unpolled < UNPOLLED_MAX {
                unpolled += 1;
                drop(wait);
                wait = Wait::begin();
                rings.go_on(wait.spins());
                continue;
            }
            unpolled = 0;
            match node.driver.wait(timeout, &mut events) {
                Ok(()) => {}
                Err(error) if interrupted(&error) => return Parked::Signal,
                Err(_) => return Parked::Signal,
            }
            let none = events.is_empty();
            for event in events.drain(..) {
                if step == Step::Look {
                    node.note_spun(event.token);
                }
                node.handle_event(&event, &is_notified);
            }
            if is_notified() {
                return Parked::Notified;
            }
            if !none || read {
                // What has come was for the core: the thread waits anew.
                drop(wait);
                wait = Wait::begin();
                rings.go_on(wait.spins());
            }
            if none && deadline.is_some_and(|at| now() >= at) {
                return Parked::TimedOut;
            }
        }
    }

    fn sleep(&self, deadline: Option<Instant>) -> Parked {
        if !self.enter(PARKED) {
            return Parked::Notified;
        }
        loop {
            let timeout = deadline.map(|at| at.saturating_duration_since(now()));
            match self.state.wait(PARKED, timeout) {
                Woken::Interrupted => return Parked::Signal,
                Woken::TimedOut => return Parked::TimedOut,
                Woken::Perhaps => {}
            }
            if self.state.load(Ordering::SeqCst) == NOTIFIED {
                return Parked::Notified;
            }
        }
    }
}

//! What the machine wakes: a thread that waits for one outcome, or a queue of outcomes.

use crate::sync::atomic::{AtomicBool, Ordering};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use crate::sync::Mutex;
use pydist_proto::record::Outcome;
use rustix::event::{EventfdFlags, eventfd};

use crate::driver::Driver;
use crate::node::Node;
use crate::parker::{Parked, Parker};

/// A wait that another thread can end without an outcome.
pub trait Nudge: Send + Sync {
    /// Ends the wait as a signal does.
    fn nudge(&self, node: &Node);
}

/// One thread's wait for one outcome.
#[derive(Debug, Default)]
pub struct Cell {
    outcome: Mutex<Option<Outcome>>,
    parker: Parker,
    nudged: AtomicBool,
}

impl Nudge for Cell {
    fn nudge(&self, node: &Node) {
        self.nudged.store(true, Ordering::SeqCst);
        self.parker.unpark(&node.driver);
    }
}

impl Cell {
    pub fn new() -> Arc<Cell> {
        Arc::default()
    }

    /// Waits for the outcome, the deadline, a nudge or a signal.
    ///
    /// With `may_lead` the thread reads the sockets meanwhile; a sleep that is known to be long leaves them to others.
    pub fn wait(&self, node: &Node, deadline: Option<Instant>, may_lead: bool) -> Result<Outcome, Parked> {
        loop {
            if let Some(outcome) = self.outcome.lock().take() {
                return Ok(outcome);
            }
            if self.nudged.swap(false, Ordering::SeqCst) {
                return Err(Parked::Signal);
            }
            match self.parker.park(node, deadline, may_lead) {
                Parked::Notified => {}
                end => return self.outcome.lock().take().ok_or(end),
            }
        }
    }

    /// Waits for the outcome that another thread of the core has taken out of the machine for this cell.
    ///
    /// That thread does nothing in between that could block, so neither time nor signals end this.
    pub fn handed_over(&self, node: &Node) -> Outcome {
        loop {
            if let Ok(outcome) = self.wait(node, None, false) {
                return outcome;
            }
        }
    }

    pub fn try_take(&self) -> Option<Outcome> {
        self.outcome.lock().take()
    }

    fn complete(&self, outcome: Outcome, driver: &Driver) {
        *self.outcome.lock() = Some(outcome);
        self.parker.unpark(driver);
    }
}

/// Outcomes of many waits in the order in which they came, each under the key of its wait.
///
/// A thread takes them with [`Queue::wait`], an event loop by watching [`Queue::descriptor`].
#[derive(Debug)]
pub struct Queue {
    ready: Mutex<VecDeque<(u64, Outcome)>>,
    parker: Parker,
    signal: Option<OwnedFd>,
    signalled: AtomicBool,
    nudged: AtomicBool,
}

impl Nudge for Queue {
    fn nudge(&self, node: &Node) {
        self.nudged.store(true, Ordering::SeqCst);
        self.parker.unpark(&node.driver);
    }
}

impl Queue {
    /// Makes a queue; with `pollable` it has a descriptor that is readable while there are outcomes.
    pub fn new(pollable: bool) -> std::io::Result<Arc<Queue>> {
        let signal = if pollable {
            Some(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
        } else {
            None
        };
        Ok(Arc::new(Queue {
            ready: Mutex::default(),
            parker: Parker::default(),
            signal,
            signalled: AtomicBool::new(false),
            nudged: AtomicBool::new(false),
        }))
    }

    pub fn descriptor(&self) -> Option<RawFd> {
        self.signal.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub fn push(&self, key: u64, outcome: Outcome, node: &Node) {
        self.complete(key, outcome, &node.driver);
    }

    fn complete(&self, key: u64, outcome: Outcome, driver: &Driver) {
        self.ready.lock().push_back((key, outcome));
        match &self.signal {
            Some(fd) => {
                if !self.signalled.swap(true, Ordering::SeqCst) {
                    let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
                }
            }
            None => self.parker.unpark(driver),
        }
    }

    /// Whether an outcome has come and not been taken, or a wait for one is under way.
    pub fn expects(self: &Arc<Queue>) -> bool {
        // Each wait holds the queue until its outcome is in it.
        Arc::strong_count(self) > 1 || !self.ready.lock().is_empty()
    }

    /// Takes all outcomes that are there.
    pub fn drain(&self) -> Vec<(u64, Outcome)> {
        if let Some(fd) = &self.signal {
            let _ = rustix::io::read(fd, &mut [0u8; 8]);
            self.signalled.store(false, Ordering::SeqCst);
        }
        self.ready.lock().drain(..).collect()
    }

    /// Waits until there is an outcome and takes all that are there.
    pub fn wait(&self, node: &Node, deadline: Option<Instant>) -> Result<Vec<(u64, Outcome)>, Parked> {
        loop {
            let ready = self.drain();
            if !ready.is_empty() {
                return Ok(ready);
            }
            if self.nudged.swap(false, Ordering::SeqCst) {
                return Err(Parked::Signal);
            }
            match self.parker.park(node, deadline, true) {
                Parked::Notified => {}
                end => {
                    let ready = self.drain();
                    return if ready.is_empty() { Err(end) } else { Ok(ready) };
                }
            }
        }
    }
}

/// What the machine wakes.
#[derive(Clone, Debug)]
pub enum Wake {
    Cell(Arc<Cell>),
    Queue(Arc<Queue>, u64),
}

impl Wake {
    pub(crate) fn complete(self, outcome: Outcome, driver: &Driver) {
        match self {
            Wake::Cell(cell) => cell.complete(outcome, driver),
            Wake::Queue(queue, key) => queue.complete(key, outcome, driver),
        }
    }
}

//! What a process knows of one reference: the slot of its owner, or the view of one who holds it.

use std::sync::Arc;

use crate::body::Body;
use crate::channel::Channel;
use crate::ids::ProcId;
use crate::message::Status;

/// Why a process can be called no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    pub reason: String,
    /// It cannot be reached from here, but is still a member of the cluster.
    pub lives: bool,
}

/// How a wait ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub status: Status,
    pub body: Arc<Body>,
    /// The process that answered, or that is gone.
    pub pid: ProcId,
}

impl Outcome {
    pub fn bare(status: Status, pid: ProcId) -> Outcome {
        Outcome {
            status,
            body: Arc::default(),
            pid,
        }
    }

    /// Whether a Python object that is woken with it keeps it.
    pub fn is_value(&self) -> bool {
        matches!(self.status, Status::Value | Status::Error | Status::Cancelled)
    }

    /// The process is gone, or out of reach.
    pub fn gone(pid: ProcId, departure: &Departure) -> Outcome {
        Outcome {
            status: if departure.lives {
                Status::Lost
            } else {
                Status::Exited
            },
            body: Arc::new(Body::of_bytes(departure.reason.as_bytes().to_vec())),
            pid,
        }
    }
}

/// What a waiter waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The value itself.
    Value,
    /// That there is one.
    Ready,
}

/// Where a waiter is.
#[derive(Debug)]
pub enum Waiter<W> {
    Local { key: u64, want: Want, wake: W },
    Remote { pid: ProcId, req: u64, want: Want },
}

/// Where the value of a reference is.
///
/// ```text
///             value set, or the call ended
///   Pending ───────────────────────────────► Ready        (bytes are here)
///      │ ──────────────────────────────────► ReadyLocal   (a Python object of this process has it)
///      │                                        └─ pickled when asked for ─► Ready
///      └───────────────────────────────────► Elsewhere    (the owner has it; holders only)
///                                               └─ fetched ─► Ready
/// ```
#[derive(Debug)]
pub enum State {
    Pending,
    ReadyLocal,
    Elsewhere,
    Ready(Outcome),
}

/// What a process knows of one reference.
#[derive(Debug)]
pub struct Record<W> {
    pub owner: ProcId,
    /// Handles in this process: Python objects, and bodies that name the reference.
    pub local: u32,
    /// It was pinned in order to be passed on, now or with a value that is kept here.
    pub passed_on: bool,
    /// The holds that the owner counts for this process, by who gave them; given back when the last handle
    /// goes, or the value has come for the only one. There are some as long as the value is not here.
    pub received: Vec<(ProcId, i32)>,
    pub state: State,
    pub waiters: Vec<Waiter<W>>,
    /// Owner only: how often each process (first) has got the reference from each (second). An add may arrive
    /// after the matching delete, so a count can be negative for a while; the slot lives until all are zero.
    pub holders: Vec<((ProcId, ProcId), i32)>,
    /// The owner has heard of the reference from its maker, not only from others.
    pub created: bool,
    /// The call that makes the value tells its caller, who is to be answered without asking.
    pub call: bool,
    /// Holders only: the outstanding request to the owner for the value, and for readiness.
    pub asked_value: Option<u64>,
    pub asked_ready: Option<u64>,
    /// Owner only: Python was asked to pickle the value.
    pub exporting: bool,
    /// Owner only: what the reference names is a channel.
    pub channel: Option<Box<Channel>>,
    /// Owner only: it names a channel that Python keeps, which is to be told when nobody holds it any more.
    pub custom: bool,
}

impl<W> Record<W> {
    pub fn new(owner: ProcId) -> Record<W> {
        Record {
            owner,
            local: 0,
            passed_on: false,
            received: Vec::new(),
            state: State::Pending,
            waiters: Vec::new(),
            holders: Vec::new(),
            created: false,
            call: false,
            asked_value: None,
            asked_ready: None,
            exporting: false,
            channel: None,
            custom: false,
        }
    }

    pub fn is_set(&self) -> bool {
        !matches!(self.state, State::Pending)
    }

    /// The value is in this process, as bytes or as a Python object.
    pub fn is_settled(&self) -> bool {
        matches!(self.state, State::Ready(_) | State::ReadyLocal)
    }

    /// Counts a change of the holds that a process has from `giver`, not below `least`.
    pub fn count(&mut self, holder: ProcId, giver: ProcId, delta: i32, least: i32) {
        // Few processes hold the same reference.
        let at = self.holders.iter().position(|(pair, _)| *pair == (holder, giver));
        let before = at.map_or(0, |at| self.holders[at].1);
        let count = before.saturating_add(delta).max(least);
        match at {
            Some(at) if count == 0 => {
                self.holders.swap_remove(at);
            }
            Some(at) => self.holders[at].1 = count,
            None if count == 0 => {}
            None => self.holders.push(((holder, giver), count)),
        }
    }

    pub fn held_by(&self, holder: ProcId) -> bool {
        self.holders
            .iter()
            .any(|((h, _), count)| *h == holder && *count > 0)
    }

    /// The owner counts one hold more for this process.
    pub fn receive(&mut self, giver: ProcId) {
        match self.received.iter_mut().find(|(from, _)| *from == giver) {
            Some((_, count)) => *count += 1,
            None => self.received.push((giver, 1)),
        }
    }

    /// There is one handle, which passes the reference on to nobody.
    pub fn is_sole(&self) -> bool {
        self.local == 1 && !self.passed_on
    }

    /// Nobody of whom the owner has heard refers to it.
    pub fn is_free(&self) -> bool {
        self.local == 0 && self.holders.is_empty()
    }
}

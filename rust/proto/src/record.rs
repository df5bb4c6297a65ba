//! What a process knows of one reference: the slot of its owner, or the view of one who holds it.

use std::collections::HashMap;
use std::sync::Arc;

use crate::body::Body;
use crate::ids::ProcId;
use crate::message::Status;

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
        Outcome { status, body: Arc::default(), pid }
    }

    pub fn exited(pid: ProcId, reason: &str) -> Outcome {
        Outcome { status: Status::Exited, body: Arc::new(Body::of_bytes(reason.as_bytes().to_vec())), pid }
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
///      │ ──────────────────────────────────► ReadyLocal   (a Python object of this process; owner only)
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
    /// The holds that the owner counts for this process, given back when the last handle goes.
    pub received: i32,
    pub state: State,
    pub waiters: Vec<Waiter<W>>,
    /// Owner only: how often each process holds the reference. An add may arrive after the matching
    /// delete, so a count can be negative for a while; the slot lives until all are zero.
    pub holders: HashMap<ProcId, i32>,
    /// The owner has heard of the reference from its maker, not only from others.
    pub created: bool,
    /// The call that makes the value tells its caller, who is to be answered without asking.
    pub call: bool,
    /// Holders only: the outstanding request to the owner for the value, and for readiness.
    pub asked_value: Option<u64>,
    pub asked_ready: Option<u64>,
    /// Owner only: Python was asked to pickle the value.
    pub exporting: bool,
}

impl<W> Record<W> {
    pub fn new(owner: ProcId) -> Record<W> {
        Record {
            owner,
            local: 0,
            received: 0,
            state: State::Pending,
            waiters: Vec::new(),
            holders: HashMap::new(),
            created: false,
            call: false,
            asked_value: None,
            asked_ready: None,
            exporting: false,
        }
    }

    pub fn is_set(&self) -> bool {
        !matches!(self.state, State::Pending)
    }

    /// Counts a change of a process's holds.
    pub fn count(&mut self, holder: ProcId, delta: i32) {
        let count = self.holders.entry(holder).or_insert(0);
        *count = count.saturating_add(delta);
        if *count == 0 {
            self.holders.remove(&holder);
        }
    }

    pub fn held_by(&self, holder: ProcId) -> bool {
        self.holders.get(&holder).is_some_and(|count| *count > 0)
    }

    /// Nobody in the cluster refers to it any more.
    pub fn is_free(&self) -> bool {
        self.local == 0 && self.holders.is_empty()
    }
}

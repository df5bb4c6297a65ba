//! The state of one process: its members, outstanding calls, running calls and references.
//!
//! Everything that happens is a method call; what is to be done about it is left in a list of
//! [`Output`]s, which the caller takes with [`Machine::take_outputs`] and carries out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use crate::body::Body;
use crate::ids::{HEAD, ProcId, RefId, RemoteRef};
use crate::message::{CallMode, Member, Message, RefDelta, RefOp, Status};
use crate::record::{Departure, Outcome, Record, State, Waiter, Want};
use crate::topology::{Topology, Wiring};

use self::credit::Credit;

mod channels;
mod counts;
mod credit;
mod members;
mod memory;
mod refs;
mod strangers;
mod values;

/// A result up to this size travels to the caller with the news that the call has ended.
pub const EAGER_MAX: usize = 64 << 10;

/// A call that another process asked for.
#[derive(Debug)]
pub struct Incoming {
    pub src: ProcId,
    pub id: u64,
    pub mode: CallMode,
    /// Calls of one lane of a process run one at a time; 0 is no lane.
    pub lane: u64,
    pub body: Body,
}

/// What the caller of the machine has to do.
#[derive(Debug)]
pub enum Output<W> {
    Send(ProcId, Message),
    Wake(W, Outcome),
    Deliver(Incoming),
    /// Interrupt every running call.
    InterruptAll,
    /// Interrupt one running call.
    InterruptCall(ProcId, u64),
    /// Have Python pickle the value of a reference of this process.
    Export(RefId),
    /// Nobody holds a channel any more that Python keeps.
    Freed(RefId),
    /// A process asks what this one runs and waits for.
    Stacks(ProcId, u64),
    /// A process asks what this one does and holds, which the core tells.
    Observe(ProcId, u64),
    /// This process has credit at a channel: [`Machine::return_idle_credit`] is to be called now and then.
    Credited,
    /// Answers are held back: [`Machine::answer_held`] is to be called within milliseconds.
    AnswersHeld,
    /// The head asks this process to end.
    Exit,
    /// A worker answers calls.
    WorkerReady(Member),
    Joined(ProcId),
    Left(ProcId),
}

/// Why a call or an operation cannot be made.
#[derive(thiserror::Error, Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    #[error("there is no process {0}")]
    NoSuchProcess(ProcId),
    #[error("process {0} is not connected to process {1}")]
    NotConnected(ProcId, ProcId),
    #[error("process {0} has exited: {1}")]
    Exited(ProcId, String),
    #[error("process {0} cannot be reached: {1}")]
    Lost(ProcId, String),
    #[error("{0} calls and requests have no answer yet, which is the limit")]
    TooManyCalls(usize),
}

/// What an answer is for.
#[derive(Debug)]
enum Expect<W> {
    /// The value of a fetching call.
    Call(W),
    /// The end of the call behind a future.
    Future(RefId),
    /// The value of a reference.
    Value(RefId),
    /// That a reference has a value.
    Ready(RefId),
    /// The answer to an operation.
    Op(W),
    /// That the head has told of a process all that it knows.
    Word(ProcId),
    /// Nobody waits any more.
    Nothing,
}

#[derive(Debug)]
struct Outstanding<W> {
    pid: ProcId,
    expect: Expect<W>,
}

/// A call that another process asked for, from its arrival to its end.
///
/// ```text
///   Queued ── begin ──► Running ── finish ──► (gone)
///     └──── cancel ───► Cancelled ◄── cancel ──┘ (its result is dropped)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    Queued,
    Running,
    Cancelled,
}

/// Counts that a process tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub refs_owned: usize,
    pub refs_held: usize,
    pub calls_outstanding: usize,
    pub calls_running: usize,
}

/// The answer to a wait on a reference.
#[derive(Debug)]
pub enum Watch {
    Now(Outcome),
    /// The waiter is woken later; the key takes it back.
    Later(u64),
}

/// The state of one process.
pub struct Machine<W> {
    me: ProcId,
    topology: Topology,
    next_id: u64,
    next_key: u64,
    members: BTreeMap<ProcId, Member>,
    departed: BTreeMap<ProcId, Departure>,
    /// Workers that have connected to this process by themselves.
    met: BTreeSet<ProcId>,
    /// Messages to processes that the head was asked for.
    unsent: BTreeMap<ProcId, Vec<Message>>,
    outstanding: FxHashMap<u64, Outstanding<W>>,
    /// So many of them there may be when a call is made.
    calls_max: usize,
    running: FxHashMap<(ProcId, u64), Run>,
    records: FxHashMap<RefId, Record<W>>,
    /// Changes of counts that are to be told to the owners.
    deltas: Vec<(ProcId, RefDelta)>,
    /// Items that have come, whose channels' owners are to be told so.
    confirms: Vec<(ProcId, RefId, u64)>,
    /// Room that the owners of channels elsewhere have set aside for this process.
    credits: FxHashMap<RefId, Credit>,
    /// Channels of this process that hold answers back.
    held: Vec<RefId>,
    /// Counts that were asked for while their giver was still a member: the giver, the owner, the reference.
    recounts: Vec<(ProcId, ProcId, RefId)>,
    /// The references that were freed last, of those that others than their maker have held.
    freed: VecDeque<RefId>,
    /// Handles that are about to be dropped; there is a list where one is being worked off.
    releasing: Option<Vec<RefId>>,
    /// Answers that nobody waited for, and messages of processes that were gone.
    strays: u64,
    outputs: Vec<Output<W>>,
}

impl<W> Machine<W> {
    /// Makes the state of process `me`, its only member.
    pub fn new(me: Member) -> Machine<W> {
        Machine {
            me: me.pid,
            topology: Topology::default(),
            next_id: 1,
            next_key: 1,
            members: BTreeMap::from([(me.pid, me)]),
            departed: BTreeMap::new(),
            met: BTreeSet::new(),
            unsent: BTreeMap::new(),
            outstanding: FxHashMap::default(),
            calls_max: usize::MAX,
            running: FxHashMap::default(),
            records: FxHashMap::default(),
            deltas: Vec::new(),
            confirms: Vec::new(),
            credits: FxHashMap::default(),
            held: Vec::new(),
            recounts: Vec::new(),
            freed: VecDeque::new(),
            releasing: None,
            strays: 0,
            outputs: Vec::new(),
        }
    }

    pub fn me(&self) -> ProcId {
        self.me
    }

    /// Which workers are connected to each other.
    pub fn set_topology(&mut self, topology: Topology) {
        self.topology = topology;
    }

    pub fn topology(&self) -> Topology {
        self.topology
    }

    /// Gives this process, which had none and has done nothing yet, its id.
    pub fn assign(&mut self, pid: ProcId) {
        if let Some(mut member) = self.members.remove(&self.me) {
            member.pid = pid;
            self.members.insert(pid, member);
        }
        self.me = pid;
    }

    /// Takes what is to be done, in order.
    pub fn take_outputs(&mut self) -> Vec<Output<W>> {
        std::mem::take(&mut self.outputs)
    }

    pub fn counts(&self) -> Counts {
        let refs_owned = self.records.values().filter(|r| r.owner == self.me).count();
        Counts {
            refs_owned,
            refs_held: self.records.len() - refs_owned,
            calls_outstanding: self.outstanding.len(),
            calls_running: self.running.len(),
        }
    }

    /// How many messages were dropped so far since they came too late, or twice.
    pub fn strays(&self) -> u64 {
        self.strays
    }

    fn fresh_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Fails unless `pid` is a process that can be called.
    pub fn check_pid(&self, pid: ProcId) -> Result<(), CallError> {
        if self.topology.wiring == Wiring::MasterWorker && self.me != HEAD && pid != HEAD && pid != self.me {
            return Err(CallError::NotConnected(self.me, pid));
        }
        if self.members.contains_key(&pid) {
            return if self.is_connected_to(pid) {
                Ok(())
            } else {
                Err(CallError::NotConnected(self.me, pid))
            };
        }
        Err(match self.departed.get(&pid) {
            Some(Departure { reason, lives: true }) => CallError::Lost(pid, reason.clone()),
            Some(Departure { reason, .. }) => CallError::Exited(pid, reason.clone()),
            None => CallError::NoSuchProcess(pid),
        })
    }

    /// Opens a call whose answer carries the value; the caller sends the frame.
    pub fn open_fetch(&mut self, pid: ProcId, refs: &[RemoteRef], wake: W) -> Result<u64, CallError> {
        self.check_pid(pid)?;
        self.check_calls()?;
        let id = self.fresh_id();
        self.outstanding.insert(
            id,
            Outstanding {
                pid,
                expect: Expect::Call(wake),
            },
        );
        self.share_refs(pid, refs);
        Ok(id)
    }

    /// Opens a call whose value stays there; the caller sends the frame and has one handle of the future.
    pub fn open_future(&mut self, pid: ProcId, refs: &[RemoteRef]) -> Result<RefId, CallError> {
        self.check_pid(pid)?;
        self.check_calls()?;
        let id = RefId {
            whence: self.me,
            id: self.fresh_id(),
        };
        self.outstanding.insert(
            id.id,
            Outstanding {
                pid,
                expect: Expect::Future(id),
            },
        );
        let mut record = Record::new(pid);
        record.local = 1;
        record.receive(self.me);
        record.call = true;
        self.records.insert(id, record);
        self.share_refs(pid, refs);
        Ok(id)
    }

    /// Opens a call without an answer; the caller sends the frame.
    pub fn open_do(&mut self, pid: ProcId, refs: &[RemoteRef]) -> Result<u64, CallError> {
        self.check_pid(pid)?;
        self.share_refs(pid, refs);
        Ok(self.fresh_id())
    }

    /// Drops interest in the answer to a fetching call or an operation.
    pub fn abandon(&mut self, id: u64) {
        if let Some(outstanding) = self.outstanding.get_mut(&id)
            && matches!(outstanding.expect, Expect::Call(_) | Expect::Op(_))
        {
            outstanding.expect = Expect::Nothing;
        }
    }

    /// Cancels a fetching call whose answer nobody waits for any more; one that runs is interrupted.
    pub fn cancel_fetch(&mut self, id: u64) {
        self.abandon(id);
        self.tell_callee(id, RefOp::Cancel);
    }

    /// Takes a fetching call back unless it has begun: it then ends as cancelled.
    pub fn recall(&mut self, id: u64) {
        self.tell_callee(id, RefOp::Recall);
    }

    fn tell_callee(&mut self, id: u64, op: RefOp) {
        let Some(pid) = self.outstanding.get(&id).map(|o| o.pid) else {
            return;
        };
        let target = RefId { whence: self.me, id };
        self.send(
            pid,
            Message::RefOp {
                req: 0,
                op,
                target,
                body: Body::default(),
            },
        );
    }

    /// A queued call is about to run; false where it was cancelled.
    pub fn begin(&mut self, src: ProcId, id: u64) -> bool {
        match self.running.get_mut(&(src, id)) {
            Some(run @ Run::Queued) => {
                *run = Run::Running;
                true
            }
            Some(Run::Running) => true,
            _ => {
                self.running.remove(&(src, id));
                false
            }
        }
    }

    /// A fetching call, or one without an answer, has ended; false where its result is not wanted.
    ///
    /// The caller of this method sends the result.
    pub fn finish(&mut self, src: ProcId, id: u64, refs: &[RemoteRef]) -> bool {
        let wanted =
            self.running.remove(&(src, id)) != Some(Run::Cancelled) && !self.departed.contains_key(&src);
        if wanted {
            self.share_refs(src, refs);
        }
        wanted
    }

    /// The call behind a future has ended: its value stays here, and who waits is told.
    ///
    /// The references that the value names are those of Python objects of this process.
    pub fn finish_future(&mut self, src: ProcId, id: u64, status: Status, body: Body) {
        let cancelled = self.running.remove(&(src, id)) == Some(Run::Cancelled);
        let reference = RefId { whence: src, id };
        let pending = self.records.get(&reference).is_some_and(|r| !r.is_set());
        if !cancelled && pending {
            self.keep_refs(&body.refs);
            self.set(
                reference,
                Outcome {
                    status,
                    body: Arc::new(body),
                    pid: self.me,
                },
            );
        }
    }

    /// A message of another process has arrived; one of a process that is gone, or that the head has not taken up
    /// yet, is dropped.
    pub fn handle_message(&mut self, from: ProcId, message: Message) {
        // What is no member never leaves, so that what it asked for would stay.
        let unready =
            self.me == HEAD && !self.members.contains_key(&from) && !matches!(message, Message::Ready { .. });
        if unready || self.departed.contains_key(&from) {
            self.strays += 1;
            return;
        }
        match message {
            Message::Call { id, mode, lane, body } => self.handle_call(Incoming {
                src: from,
                id,
                mode,
                lane,
                body,
            }),
            Message::Result { id, status, body } => {
                self.handle_result(
                    from,
                    id,
                    Outcome {
                        status,
                        body,
                        pid: from,
                    },
                );
            }
            Message::Done { id } => self.handle_done(from, id),
            Message::RefOp {
                req,
                op,
                target,
                body,
            } => self.handle_ref_op(from, req, op, target, body),
            Message::Withdraw { req, target, how } => self.handle_withdraw(from, req, target, how),
            Message::Confirm { taken } => self.handle_confirm(from, taken),
            Message::Refs { deltas } => self.handle_deltas(&deltas),
            Message::Interrupt => self.outputs.push(Output::InterruptAll),
            Message::Exit if from == HEAD => self.outputs.push(Output::Exit),
            Message::Join { member } if from == HEAD => self.join(member),
            Message::Leave { pid, reason } if from == HEAD => self.leave(pid, &reason),
            Message::Ready { member } => {
                let member = Member { pid: from, ..member };
                self.outputs.push(Output::WorkerReady(member));
            }
            Message::Ping { tick } => self.send(from, Message::Pong { tick }),
            Message::Pong { .. } | Message::Exit | Message::Join { .. } | Message::Leave { .. } => {}
            Message::LookUp { req, pid } => self.tell_of(from, req, pid),
            Message::Stacks { req } => self.outputs.push(Output::Stacks(from, req)),
            Message::Observe { req } => self.outputs.push(Output::Observe(from, req)),
            // Memory files are no matter of the machine, but of whoever maps them; the rest is one of the connection.
            Message::Unmapped { .. }
            | Message::Received { .. }
            | Message::Ring { .. }
            | Message::Heartbeat(_) => {}
        }
    }

    fn handle_call(&mut self, call: Incoming) {
        let Incoming { src, id, mode, .. } = call;
        self.receive_refs(src, &call.body.refs);
        if mode == CallMode::Future {
            let me = self.me;
            let record = self
                .records
                .entry(RefId { whence: src, id })
                .or_insert_with(|| Record::new(me));
            record.created = true;
            record.call = true;
            record.count(src, src, 1, i32::MIN);
            // Another holder may have set the value before the call came.
            self.tell_caller(RefId { whence: src, id });
        }
        self.running.insert((src, id), Run::Queued);
        self.outputs.push(Output::Deliver(call));
        if mode == CallMode::Future {
            self.free_if_unused(RefId { whence: src, id });
        }
    }

    fn handle_result(&mut self, from: ProcId, id: u64, outcome: Outcome) {
        self.receive_refs(from, &outcome.body.refs);
        self.conclude(from, id, outcome);
    }

    /// An answer is here, whose body has its handles: who waits for it is told.
    fn conclude(&mut self, from: ProcId, id: u64, outcome: Outcome) {
        let Some(expect) = self.take_expected(from, id) else {
            self.release_refs(&outcome.body.refs);
            return;
        };
        let mut outcome = outcome;
        if let (Status::Exited | Status::Lost, Expect::Value(reference) | Expect::Ready(reference)) =
            (outcome.status, &expect)
        {
            // The owner lives; it heard that the maker left before its word came.
            outcome.pid = reference.whence;
        }
        match expect {
            Expect::Call(wake) | Expect::Op(wake) => self.outputs.push(Output::Wake(wake, outcome)),
            Expect::Future(reference) | Expect::Value(reference) => self.settle(reference, outcome),
            Expect::Ready(reference) => self.ready_elsewhere(reference, outcome),
            Expect::Word(pid) => self.heard_of(pid),
            Expect::Nothing => self.release_refs(&outcome.body.refs),
        }
    }

    fn handle_done(&mut self, from: ProcId, id: u64) {
        // Where another kind of answer is awaited, whoever waits for that goes on waiting.
        if !matches!(self.outstanding.get(&id), Some(o) if matches!(o.expect, Expect::Future(_))) {
            self.strays += 1;
            return;
        }
        if let Some(Expect::Future(reference)) = self.take_expected(from, id) {
            self.ready_elsewhere(reference, Outcome::bare(Status::Yes, from));
        }
    }

    /// Takes what waits for the answer `id`; nothing, where that was not asked of `from`.
    fn take_expected(&mut self, from: ProcId, id: u64) -> Option<Expect<W>> {
        if self.outstanding.get(&id).is_none_or(|o| o.pid != from) {
            self.strays += 1;
            return None;
        }
        self.outstanding.remove(&id).map(|o| o.expect)
    }

    /// Opens an operation on a reference, whose answer wakes one waiter; the caller sends the frame.
    pub fn open_op(&mut self, target: RemoteRef, refs: &[RemoteRef], wake: W) -> Result<u64, CallError> {
        self.check_pid(target.owner)?;
        let req = self.fresh_id();
        self.outstanding.insert(
            req,
            Outstanding {
                pid: target.owner,
                expect: Expect::Op(wake),
            },
        );
        self.share_refs(target.owner, refs);
        Ok(req)
    }

    /// Asks a process what it runs and waits for.
    pub fn open_stacks(&mut self, pid: ProcId, wake: W) -> Result<u64, CallError> {
        let req = self.open_question(pid, wake)?;
        self.send(pid, Message::Stacks { req });
        Ok(req)
    }

    /// Asks a process what it does and holds.
    pub fn open_observation(&mut self, pid: ProcId, wake: W) -> Result<u64, CallError> {
        let req = self.open_question(pid, wake)?;
        self.send(pid, Message::Observe { req });
        Ok(req)
    }

    fn open_question(&mut self, pid: ProcId, wake: W) -> Result<u64, CallError> {
        self.check_pid(pid)?;
        let req = self.fresh_id();
        let expect = Expect::Op(wake);
        self.outstanding.insert(req, Outstanding { pid, expect });
        Ok(req)
    }

    /// The calls that run here, by who made them and their numbers.
    pub fn running_calls(&self) -> impl Iterator<Item = (ProcId, u64)> {
        let running = self.running.iter().filter(|(_, run)| **run != Run::Queued);
        running.map(|(key, _)| *key)
    }

    fn ask(&mut self, owner: ProcId, op: RefOp, target: RefId, expect: Expect<W>) -> u64 {
        self.ask_with(owner, op, target, Body::default(), expect)
    }

    fn ask_with(&mut self, owner: ProcId, op: RefOp, target: RefId, body: Body, expect: Expect<W>) -> u64 {
        let req = self.fresh_id();
        self.outstanding.insert(req, Outstanding { pid: owner, expect });
        self.send(
            owner,
            Message::RefOp {
                req,
                op,
                target,
                body,
            },
        );
        req
    }

    fn send(&mut self, pid: ProcId, message: Message) {
        if self.is_stranger(pid) || self.unsent.contains_key(&pid) {
            return self.keep_unsent(pid, message);
        }
        self.outputs.push(Output::Send(pid, message));
    }

    fn answer(&mut self, pid: ProcId, req: u64, status: Status) {
        self.send(
            pid,
            Message::Result {
                id: req,
                status,
                body: Arc::default(),
            },
        );
    }

    fn wake(&mut self, waiter: Waiter<W>, outcome: &Outcome) {
        let short = |want| match want {
            Want::Value => outcome.clone(),
            Want::Ready if outcome.status.is_gone() => outcome.clone(),
            Want::Ready => Outcome::bare(Status::Yes, outcome.pid),
        };
        match waiter {
            Waiter::Local { want, wake, .. } => {
                let outcome = short(want);
                self.keep_refs(&outcome.body.refs);
                self.outputs.push(Output::Wake(wake, outcome));
            }
            Waiter::Remote { pid, req, want } => {
                let outcome = short(want);
                self.share_refs(pid, &outcome.body.refs);
                self.send(
                    pid,
                    Message::Result {
                        id: req,
                        status: outcome.status,
                        body: outcome.body,
                    },
                );
            }
        }
    }

    fn state_of(&self, reference: RefId) -> Option<&State> {
        self.records.get(&reference).map(|r| &r.state)
    }
}

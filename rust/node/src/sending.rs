//! What the threads of Python ask of the core: calls, answers, and operations on references.

use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::frame::Header;
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::{CallError, Watch};
use pydist_proto::message::{CallMode, RefOp, Status};
use pydist_proto::record::{Outcome, Want};
use tracing::debug;

use crate::inbox::Item;
use crate::link::SendError;
use crate::log::CALLS;
use crate::node::Node;
use crate::trace::Kind;
use crate::waiter::Wake;

/// Why a call could not be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallFailed {
    NoSuchProcess(ProcId),
    /// The topology does not connect these two.
    NotConnected(ProcId, ProcId),
    Exited(ProcId, String),
    /// It may live, but cannot be reached from here.
    Lost(ProcId, String),
    /// So many calls and requests have no answer yet, which is the limit.
    TooManyCalls(usize),
    /// No connection can be made, as this process has no descriptor left.
    NoDescriptor(ProcId, String),
    /// The sender gave up while it waited for room in the connection; nothing was asked for.
    Signal,
}

impl From<CallError> for CallFailed {
    fn from(error: CallError) -> CallFailed {
        match error {
            CallError::NoSuchProcess(pid) => CallFailed::NoSuchProcess(pid),
            CallError::NotConnected(here, there) => CallFailed::NotConnected(here, there),
            CallError::Exited(pid, reason) => CallFailed::Exited(pid, reason),
            CallError::Lost(pid, reason) => CallFailed::Lost(pid, reason),
            CallError::TooManyCalls(limit) => CallFailed::TooManyCalls(limit),
        }
    }
}

/// The segments and references of a message whose memory belongs to Python.
#[derive(Clone, Copy)]
pub struct Payload<'a> {
    pub segments: &'a [&'a [u8]],
    pub refs: &'a [RemoteRef],
    /// A body of [`Node::keep`] in which all segments but the first lie already, so that they need not be copied again.
    pub kept: Option<&'a Body>,
    /// Asked now and then, while there is no room, whether to give up: a signal has arrived, or the time is over. None for
    /// a small message that is not to wait for room.
    pub signalled: Option<&'a dyn Fn() -> bool>,
}

impl Node {
    /// Whether a small message to a process is taken without waiting, for its connection or for room in it.
    pub fn takes_small(&self, pid: ProcId) -> bool {
        let links = self.links.read();
        links
            .get(&pid)
            .is_some_and(|link| link.is_open() && link.has_room())
    }

    /// Calls; the answer, with the value, wakes `wake`.
    pub fn call_fetch(&self, pid: ProcId, payload: Payload<'_>, wake: Wake) -> Result<u64, CallFailed> {
        self.call_in_lane(pid, 0, payload, wake)
    }

    /// Calls; the calls of one lane of this process run there one at a time. Lane 0 is none.
    pub fn call_in_lane(
        &self,
        pid: ProcId,
        lane: u64,
        payload: Payload<'_>,
        wake: Wake,
    ) -> Result<u64, CallFailed> {
        let id = self.open(|machine| machine.open_fetch(pid, payload.refs, wake.clone()))?;
        debug!(target: CALLS, "call {id} to process {pid} is sent; its value is to come back");
        self.trace.note(Kind::Sent, CallMode::Fetch as u8, pid, id);
        self.send_payload(pid, Header::call(id, CallMode::Fetch).in_lane(lane), payload)
            .inspect_err(|_| self.with_machine(|machine| machine.forget_op(id)))?;
        Ok(id)
    }

    /// Does what `call_in_lane` does, for one of many calls; the caller sees to it that `uncork_calls` follows soon.
    pub fn call_gathered(
        &self,
        pid: ProcId,
        lane: u64,
        payload: Payload<'_>,
        wake: Wake,
    ) -> Result<u64, CallFailed> {
        self.gathering(|| self.call_in_lane(pid, lane, payload, wake))
    }

    /// Calls; the value stays there under the reference, of which the caller has one handle.
    pub fn call_future(&self, pid: ProcId, payload: Payload<'_>) -> Result<RefId, CallFailed> {
        self.keep_up();
        let id = self.open(|machine| machine.open_future(pid, payload.refs))?;
        debug!(target: CALLS, "call {} to process {pid} is sent; its value is to stay there", id.id);
        self.trace.note(Kind::Sent, CallMode::Future as u8, pid, id.id);
        self.bursting(|| self.send_payload(pid, Header::call(id.id, CallMode::Future), payload))
            .inspect_err(|_| self.with_machine(|machine| machine.forget_future(id)))?;
        Ok(id)
    }

    /// Calls without an answer.
    pub fn call_do(&self, pid: ProcId, payload: Payload<'_>) -> Result<(), CallFailed> {
        let id = self.open(|machine| machine.open_do(pid, payload.refs))?;
        debug!(target: CALLS, "call {id} to process {pid} is sent; nothing is to come back");
        self.trace.note(Kind::Sent, CallMode::Do as u8, pid, id);
        self.bursting(|| self.send_payload(pid, Header::call(id, CallMode::Do), payload))
    }

    pub(crate) fn send_payload(
        &self,
        pid: ProcId,
        header: Header,
        payload: Payload<'_>,
    ) -> Result<(), CallFailed> {
        let link = match self.try_link_to(pid) {
            Ok(Some(link)) => link,
            Ok(None) => return self.check_unreachable(pid),
            Err(error) => {
                self.with_machine(|machine| machine.unshare_refs(pid, payload.refs));
                return Err(CallFailed::NoDescriptor(pid, error.to_string()));
            }
        };
        let sent = self.send_shared(pid, &link, header, &payload).unwrap_or_else(|| {
            let hold = Node::holds_back(&link);
            let sent = link.send_borrowed(header, payload.segments, payload.refs, payload.signalled, hold);
            if hold {
                self.held_back(&link);
            }
            sent
        });
        match sent {
            Ok(()) | Err(SendError::Closed) => Ok(()),
            Err(SendError::Signal) => {
                self.with_machine(|machine| machine.unshare_refs(pid, payload.refs));
                Err(CallFailed::Signal)
            }
        }
    }

    /// Where the connection is gone, the loss of the process ends the call; one that was never there cannot be lost.
    fn check_unreachable(&self, pid: ProcId) -> Result<(), CallFailed> {
        let dying = self.dying.lock().iter().any(|d| d.pid == pid);
        let member = self.machine.lock().member(pid).is_some();
        if member && !dying {
            return Err(CallFailed::NotConnected(self.me(), pid));
        }
        Ok(())
    }

    /// Drops interest in an answer.
    pub fn abandon(&self, id: u64) {
        self.with_machine(|machine| machine.abandon(id));
    }

    /// Cancels a fetching call whose answer nobody waits for any more.
    pub fn cancel_fetch(&self, id: u64) {
        self.with_machine(|machine| machine.cancel_fetch(id));
    }

    /// Takes a fetching call back unless it has begun.
    pub fn recall(&self, id: u64) {
        self.with_machine(|machine| machine.recall(id));
    }

    /// A call that was taken is about to run; false where it was cancelled.
    pub fn begin_call(&self, src: ProcId, id: u64) -> bool {
        let wanted = self.with_machine(|machine| machine.begin(src, id));
        debug!(target: CALLS, "call {id} of process {src} {}", if wanted { "starts" } else { "was cancelled" });
        if wanted {
            self.trace.note(Kind::Started, 0, src, id);
            self.count_call();
        } else {
            self.leave_lane(src, id);
        }
        wanted
    }

    /// A call has ended: the next one of its lane may start.
    fn leave_lane(&self, src: ProcId, id: u64) {
        self.wake_executor(&self.inbox.leave_lane(src, id));
    }

    /// Answers a call that fetches.
    pub fn answer_fetch(
        &self,
        src: ProcId,
        id: u64,
        status: Status,
        payload: Payload<'_>,
    ) -> Result<(), CallFailed> {
        debug!(target: CALLS, "call {id} of process {src} has ended: {status:?}");
        self.trace.note(Kind::Ended, status as u8, src, id);
        let sent = self.answering(|| {
            if self.with_machine(|machine| machine.finish(src, id, payload.refs)) {
                self.send_payload(src, Header::result(id, status), payload)
            } else {
                Ok(())
            }
        });
        self.leave_lane(src, id);
        sent
    }

    /// Keeps the value of the call behind a future.
    pub fn answer_future(&self, src: ProcId, id: u64, status: Status, body: Body) {
        debug!(target: CALLS, "call {id} of process {src} has ended: {status:?}");
        self.trace.note(Kind::Ended, status as u8, src, id);
        self.answering(|| self.with_machine(|machine| machine.finish_future(src, id, status, body)));
        self.leave_lane(src, id);
    }

    /// A call without an answer has ended.
    pub fn answer_do(&self, src: ProcId, id: u64, status: Status) {
        debug!(target: CALLS, "call {id} of process {src} has ended");
        self.trace.note(Kind::Ended, status as u8, src, id);
        self.with_machine(|machine| machine.finish(src, id, &[]));
        self.leave_lane(src, id);
    }

    /// Asks the owner for an operation on a reference; its answer wakes `wake`.
    pub fn ref_op(
        &self,
        target: RemoteRef,
        op: RefOp,
        payload: Payload<'_>,
        wake: Wake,
    ) -> Result<u64, CallFailed> {
        let req = self.open(|machine| machine.open_op(target, payload.refs, wake.clone()))?;
        self.trace.note(Kind::Asked, op as u8, target.owner, req);
        self.send_payload(target.owner, Header::ref_op(req, op, target.id), payload)
            .inspect_err(|_| self.with_machine(|machine| machine.forget_op(req)))?;
        Ok(req)
    }

    /// Makes a channel on another process, with one handle here; its answer wakes `wake`.
    pub fn create_channel_at(
        &self,
        owner: ProcId,
        capacity: u64,
        wake: Wake,
    ) -> Result<(RefId, u64), CallFailed> {
        Ok(self.open(|machine| machine.open_channel(owner, capacity, wake.clone()))?)
    }

    /// Makes a channel on this process, with one handle.
    pub fn create_channel(&self, capacity: u64) -> RefId {
        let capacity = usize::try_from(capacity).unwrap_or(usize::MAX);
        self.with_machine(|machine| machine.create_channel(capacity))
    }

    /// Makes the reference of a channel that Python keeps, with one handle.
    pub fn create_custom_channel(&self) -> RefId {
        self.with_machine(|machine| machine.create_custom_channel())
    }

    /// A further handle of a channel of this process, and whether Python keeps it.
    pub fn channel_here(&self, id: RefId) -> Option<bool> {
        self.with_machine(|machine| machine.channel_here(id))
    }

    /// Asks a channel of this process itself; its answer wakes `wake`.
    pub fn ask_own_channel(&self, id: RefId, op: RefOp, body: Body, wake: Wake) -> u64 {
        let req = self.with_machine(|machine| machine.ask_own_channel(id, op, body, wake));
        self.trace.note(Kind::Asked, op as u8, self.me(), req);
        req
    }

    /// Puts an item that names no references into a channel of this process; false where it would have to wait.
    pub fn put_here(&self, id: RefId, body: Body) -> bool {
        let done = self.with_machine(|machine| machine.put_here(id, body));
        if done {
            self.trace
                .note(Kind::Asked, RefOp::ChannelPut as u8, self.me(), 0);
        }
        done
    }

    /// Takes the first item of a channel of this process, where there is one; the caller has the handles of its body.
    pub fn take_here(&self, id: RefId) -> Option<Arc<Body>> {
        let item = self.with_machine(|machine| machine.take_here(id));
        if item.is_some() {
            self.trace
                .note(Kind::Asked, RefOp::ChannelTake as u8, self.me(), 0);
        }
        item
    }

    /// Takes a request to a channel back where it still waits; its answer says whether it did.
    pub fn withdraw(&self, target: RemoteRef, req: u64) {
        self.with_machine(|machine| machine.withdraw_op(target, req));
    }

    /// Nobody waits for a request to a channel any more: what it did is undone. False where its waiter has been woken.
    pub fn unwant(&self, target: RemoteRef, req: u64) -> bool {
        self.with_machine(|machine| machine.unwant(target, req))
    }

    /// The item that a request brought is with its taker.
    pub fn confirm(&self, target: RemoteRef, req: u64) {
        self.with_machine(|machine| machine.confirm(target, req));
    }

    /// The item that a request brought goes back to the front of its channel.
    pub fn give_item_back(&self, target: RemoteRef, req: u64) {
        self.with_machine(|machine| machine.give_item_back(target, req));
    }

    /// Makes an empty future on a process, with one handle here.
    pub fn create_future(&self, owner: ProcId) -> Result<RefId, CallFailed> {
        self.check_pid(owner)?;
        self.keep_up();
        Ok(self.with_machine(|machine| machine.create_at(owner)))
    }

    /// Adds a handle to a reference.
    pub fn hold(&self, reference: RemoteRef) {
        self.with_machine(|machine| machine.hold(reference));
    }

    /// Adds a handle for a reference that is about to be passed on; false where its value is here.
    pub fn pin(&self, id: RefId) -> bool {
        self.with_machine(|machine| machine.pin(id))
    }

    /// Waits on a reference of which this process has a handle.
    pub fn watch(&self, id: RefId, want: Want, wake: Wake) -> Watch {
        self.with_machine(|machine| machine.watch(id, want, wake))
    }

    /// Does what `watch` does; fails where the value is not here, and there is no route to its owner.
    pub fn watch_in_reach(&self, target: RemoteRef, want: Want, wake: Wake) -> Result<Watch, CallFailed> {
        self.with_machine(|machine| {
            if machine.is_out_of_reach(target) {
                return Err(CallFailed::NotConnected(machine.me(), target.owner));
            }
            Ok(machine.watch(target.id, want, wake))
        })
    }

    /// Takes a waiter back; false where it has been woken.
    pub fn unwatch(&self, id: RefId, key: u64) -> bool {
        self.with_machine(|machine| machine.unwatch(id, key))
    }

    /// A value that was waited for was not taken after all.
    pub fn restore(&self, id: RefId, outcome: Outcome) {
        self.with_machine(|machine| machine.restore(id, outcome));
    }

    /// Whether this process knows that a reference has a value.
    pub fn known_ready(&self, id: RefId) -> bool {
        self.machine.lock().known_ready(id)
    }

    /// Whether what came here is not a value but an error.
    pub fn has_failed(&self, id: RefId) -> bool {
        self.machine.lock().has_failed(id)
    }

    /// The value of a reference of this process is a Python object here; false where it has one.
    pub fn put_local(&self, id: RefId) -> bool {
        self.with_machine(|machine| machine.put_local(id))
    }

    /// Python has pickled the value of a reference of this process.
    pub fn exported(&self, id: RefId, status: Status, body: Body) {
        self.with_machine(|machine| machine.exported(id, status, body));
    }

    /// Cancels a call that runs or waits here.
    pub fn cancel_here(&self, id: RefId) -> bool {
        self.with_machine(|machine| machine.cancel(id))
    }

    /// Opens a call to this process itself, whose value is to be under the reference.
    pub fn call_local(&self) -> RefId {
        self.keep_up();
        let id = self.with_machine(|machine| machine.open_local_call());
        self.trace
            .note(Kind::Sent, CallMode::Future as u8, self.me(), id.id);
        id
    }

    /// Hands a call to this process itself to the executors.
    pub fn queue_local(&self, id: RefId) {
        self.trace.note(Kind::Arrived, 0, self.me(), id.id);
        self.push_item(Item::Local(id.id));
    }

    /// A call to this process itself has ended; false where it was cancelled.
    pub fn finish_local(&self, id: RefId) -> bool {
        self.trace
            .note(Kind::Ended, Status::Value as u8, id.whence, id.id);
        self.with_machine(|machine| machine.finish_local_call(id))
    }
}

//! The value of a reference: who sets it, who waits for it, and how it comes to who holds the reference.

use std::sync::Arc;

use crate::body::Body;
use crate::ids::{ProcId, RefId};
use crate::message::{Message, RefOp, Status};
use crate::record::{Outcome, Record, State, Waiter, Want};

use super::{EAGER_MAX, Expect, Machine, Output, Watch};

impl<W> Machine<W> {
    /// The owner's value is there: whoever waits is woken, and the caller behind it hears of it.
    pub(super) fn set(&mut self, id: RefId, outcome: Outcome) {
        let Some(record) = self.records.get_mut(&id) else {
            self.release_refs(&outcome.body.refs);
            return;
        };
        record.state = State::Ready(outcome.clone());
        record.exporting = false;
        let waiters = std::mem::take(&mut record.waiters);
        for waiter in waiters {
            self.wake(waiter, &outcome);
        }
        self.tell_caller(id);
    }

    /// The caller behind a reference that has its value hears of it, with the value where that is small.
    pub(super) fn tell_caller(&mut self, id: RefId) {
        let Some(record) = self.records.get(&id) else {
            return;
        };
        if !record.call || id.whence == self.me || !record.held_by(id.whence) {
            return;
        }
        match &record.state {
            State::Ready(outcome) if outcome.status != Status::Value || outcome.body.size() <= EAGER_MAX => {
                let Outcome { status, body, .. } = outcome.clone();
                self.share_refs(id.whence, &body.refs);
                self.send(
                    id.whence,
                    Message::Result {
                        id: id.id,
                        status,
                        body,
                    },
                );
            }
            State::Ready(_) | State::ReadyLocal => self.send(id.whence, Message::Done { id: id.id }),
            State::Pending | State::Elsewhere => {}
        }
    }

    /// The value has come here, or never will: a holder keeps it and gives its hold back.
    pub(super) fn settle(&mut self, id: RefId, outcome: Outcome) {
        let Some(record) = self.records.get_mut(&id) else {
            self.release_refs(&outcome.body.refs);
            return;
        };
        if record.is_settled() {
            self.release_refs(&outcome.body.refs);
            return;
        }
        let taken = record.owner != self.me
            && outcome.is_value()
            && record.waiters.iter().any(|w| {
                matches!(
                    w,
                    Waiter::Local {
                        want: Want::Value,
                        ..
                    }
                )
            });
        // A further handle needs the owner's value: for itself, or since it is on its way to another process.
        let sole = record.is_sole();
        record.state = match taken {
            true if sole => State::ReadyLocal,
            true => State::Elsewhere,
            false => State::Ready(outcome.clone()),
        };
        record.asked_value = None;
        let asked_ready = record.asked_ready.take();
        let waiters = std::mem::take(&mut record.waiters);
        let owner = record.owner;
        let received = if sole {
            std::mem::take(&mut record.received)
        } else {
            Vec::new()
        };
        if let Some(req) = asked_ready {
            self.withdraw(owner, req, id);
        }
        if owner != self.me {
            self.give_back(id, owner, received);
        }
        for waiter in waiters {
            self.wake(waiter, &outcome);
        }
        if taken {
            self.release_refs(&outcome.body.refs);
        }
        self.free_if_unused(id);
    }

    /// A waiter that was woken with the value did not take it: it stays for the next one.
    pub fn restore(&mut self, id: RefId, outcome: Outcome) {
        match self.records.get_mut(&id) {
            Some(record) if matches!(record.state, State::ReadyLocal) && record.owner != self.me => {
                record.state = State::Ready(outcome);
            }
            _ => self.release_refs(&outcome.body.refs),
        }
    }

    /// The owner has the value: those who wait for that are woken, for the others it is fetched.
    pub(super) fn ready_elsewhere(&mut self, id: RefId, outcome: Outcome) {
        if outcome.status != Status::Yes {
            return self.settle(id, outcome);
        }
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        record.asked_ready = None;
        if record.is_set() {
            return;
        }
        record.state = State::Elsewhere;
        let (ready, value): (Vec<_>, Vec<_>) =
            std::mem::take(&mut record.waiters).into_iter().partition(|w| {
                matches!(
                    w,
                    Waiter::Local {
                        want: Want::Ready,
                        ..
                    }
                )
            });
        let fetch = !value.is_empty() && record.asked_value.is_none();
        record.waiters = value;
        let owner = record.owner;
        for waiter in ready {
            self.wake(waiter, &outcome);
        }
        if fetch {
            self.ask_value(id, owner);
        }
    }

    fn ask_value(&mut self, id: RefId, owner: ProcId) {
        let req = self.ask(owner, RefOp::Fetch, id, Expect::Value(id));
        if let Some(record) = self.records.get_mut(&id) {
            record.asked_value = Some(req);
        }
    }

    fn ask_ready(&mut self, id: RefId, owner: ProcId) {
        let req = self.ask(owner, RefOp::Wait, id, Expect::Ready(id));
        if let Some(record) = self.records.get_mut(&id) {
            record.asked_ready = Some(req);
        }
    }

    /// Waits on a reference of which this process has a handle.
    ///
    /// An outcome that carries a body gives the waiter a hold of the references it names.
    pub fn watch(&mut self, id: RefId, want: Want, wake: W) -> Watch {
        let me = self.me;
        self.settle_if_owner_left(id);
        if self.is_lost(id) {
            return Watch::Now(Outcome::bare(Status::UnknownRef, me));
        }
        let Some(record) = self.records.get_mut(&id) else {
            return Watch::Now(Outcome::bare(Status::UnknownRef, me));
        };
        if record.owner != me
            && want == Want::Value
            && let State::Ready(outcome) = &record.state
            && outcome.is_value()
        {
            let outcome = outcome.clone();
            if record.is_sole() {
                record.state = State::ReadyLocal;
                let (owner, received) = (record.owner, std::mem::take(&mut record.received));
                self.give_back(id, owner, received);
            } else if !record.received.is_empty() {
                record.state = State::Elsewhere;
            } else {
                self.keep_refs(&outcome.body.refs);
            }
            return Watch::Now(outcome);
        }
        match (&record.state, want) {
            (State::Ready(outcome), Want::Value) => {
                let outcome = outcome.clone();
                self.keep_refs(&outcome.body.refs);
                return Watch::Now(outcome);
            }
            (State::Ready(outcome), Want::Ready) if outcome.status.is_gone() => {
                return Watch::Now(outcome.clone());
            }
            (State::Ready(_) | State::ReadyLocal | State::Elsewhere, Want::Ready)
            | (State::ReadyLocal, Want::Value) => {
                return Watch::Now(Outcome::bare(Status::Yes, record.owner));
            }
            (State::Pending, _) | (State::Elsewhere, Want::Value) => {}
        }
        let key = self.next_key;
        self.next_key += 1;
        record.waiters.push(Waiter::Local { key, want, wake });
        let owner = record.owner;
        let pending = matches!(record.state, State::Pending);
        let told = pending && record.call && id.whence == me;
        if owner != me && !told {
            match want {
                Want::Value if record.asked_value.is_none() => self.ask_value(id, owner),
                Want::Ready if record.asked_ready.is_none() => self.ask_ready(id, owner),
                _ => {}
            }
        }
        Watch::Later(key)
    }

    /// A reference that arrived here after its owner had left ends as those that were here before.
    fn settle_if_owner_left(&mut self, id: RefId) {
        let Some(record) = self.records.get(&id) else {
            return;
        };
        if record.is_settled() {
            return;
        }
        if let Some(departure) = self.departed.get(&record.owner) {
            let outcome = Outcome::gone(record.owner, departure);
            self.settle(id, outcome);
        }
    }

    /// Takes a waiter back; a request that waits for nobody else is withdrawn from the owner. False where the
    /// waiter has been woken.
    pub fn unwatch(&mut self, id: RefId, key: u64) -> bool {
        let Some(record) = self.records.get_mut(&id) else {
            return false;
        };
        let before = record.waiters.len();
        record
            .waiters
            .retain(|w| !matches!(w, Waiter::Local { key: k, .. } if *k == key));
        let waited = record.waiters.len() < before;
        if !waited || !record.waiters.is_empty() || record.owner == self.me {
            return waited;
        }
        let owner = record.owner;
        let asked = [record.asked_value.take(), record.asked_ready.take()];
        for req in asked.into_iter().flatten() {
            self.withdraw(owner, req, id);
        }
        true
    }

    /// Whether what came here is not a value but an error.
    pub fn has_failed(&self, id: RefId) -> bool {
        matches!(self.state_of(id), Some(State::Ready(outcome)) if outcome.status != Status::Value)
    }

    /// Whether this process knows that there is a value.
    pub fn known_ready(&self, id: RefId) -> bool {
        self.records.get(&id).is_some_and(Record::is_set)
    }

    /// Sets the value of a reference of this process to bytes; false where it has one.
    pub fn put(&mut self, id: RefId, status: Status, body: Body) -> bool {
        if self.state_of(id).is_none_or(|s| !matches!(s, State::Pending)) || self.is_lost(id) {
            return false;
        }
        self.keep_refs(&body.refs);
        self.set(
            id,
            Outcome {
                status,
                body: Arc::new(body),
                pid: self.me,
            },
        );
        true
    }

    /// The value of a reference of this process is a Python object here; false where it has one.
    pub fn put_local(&mut self, id: RefId) -> bool {
        let me = self.me;
        if self.is_lost(id) {
            return false;
        }
        let Some(record) = self.records.get_mut(&id) else {
            return false;
        };
        if record.is_set() {
            return false;
        }
        record.state = State::ReadyLocal;
        let waiters = std::mem::take(&mut record.waiters);
        self.tell_caller(id);
        let mut export = false;
        for waiter in waiters {
            match waiter {
                Waiter::Remote {
                    want: Want::Value, ..
                } => {
                    export = true;
                    if let Some(record) = self.records.get_mut(&id) {
                        record.waiters.push(waiter);
                    }
                }
                other => self.wake_ready(other, me),
            }
        }
        if export {
            self.export(id);
        }
        true
    }

    fn wake_ready(&mut self, waiter: Waiter<W>, me: ProcId) {
        let outcome = Outcome::bare(Status::Yes, me);
        match waiter {
            Waiter::Local { wake, .. } => self.outputs.push(Output::Wake(wake, outcome)),
            Waiter::Remote { pid, req, .. } => self.answer(pid, req, outcome.status),
        }
    }

    pub(super) fn export(&mut self, id: RefId) {
        if let Some(record) = self.records.get_mut(&id)
            && !record.exporting
        {
            record.exporting = true;
            self.outputs.push(Output::Export(id));
        }
    }

    /// Python has pickled the value of a reference of this process.
    pub fn exported(&mut self, id: RefId, status: Status, body: Body) {
        let me = self.me;
        if let Some(State::ReadyLocal) = self.state_of(id) {
            self.keep_refs(&body.refs);
            self.set(
                id,
                Outcome {
                    status,
                    body: Arc::new(body),
                    pid: me,
                },
            );
        }
    }

    pub(super) fn await_remote(&mut self, from: ProcId, req: u64, target: RefId, want: Want) {
        let me = self.me;
        if !self.is_served(target) {
            return self.answer(from, req, Status::UnknownRef);
        }
        let record = self.records.entry(target).or_insert_with(|| Record::new(me));
        let waiter = Waiter::Remote { pid: from, req, want };
        match (&record.state, want) {
            (State::Ready(outcome), _) => {
                let outcome = outcome.clone();
                self.wake(waiter, &outcome);
            }
            (State::ReadyLocal, Want::Ready) => self.answer(from, req, Status::Yes),
            (State::ReadyLocal, Want::Value) => {
                record.waiters.push(waiter);
                self.export(target);
            }
            _ => record.waiters.push(waiter),
        }
    }
}

//! References: values, waiters, and counting who holds them.
//!
//! Who passes a reference on tells its owner that the receiver holds it once more, before it sends it, and keeps
//! its own hold at least as long. So an owner that counts no hold of anybody knows that none is on its way:
//! whoever could have sent one had a hold, and the delete of that hold comes after the add on the same link.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::body::Body;
use crate::channel::Asker;
use crate::ids::{ProcId, RefId, RemoteRef};
use crate::message::{Message, RefDelta, RefOp, Status};
use crate::record::{Outcome, Record, State, Waiter, Want};

use super::{EAGER_MAX, Expect, Machine, Output, Run, Watch};

/// So many freed references are remembered, so that who got one from a process that died is told.
const FREED_MAX: usize = 4096;

impl<W> Machine<W> {
    /// Makes an empty future on this process, with one handle.
    pub fn create_local(&mut self) -> RefId {
        let id = RefId {
            whence: self.me,
            id: self.fresh_id(),
        };
        let mut record = Record::new(self.me);
        record.local = 1;
        record.created = true;
        self.records.insert(id, record);
        id
    }

    /// Makes an empty future on another process, with one handle here.
    pub fn create_at(&mut self, owner: ProcId) -> RefId {
        if owner == self.me {
            return self.create_local();
        }
        let id = RefId {
            whence: self.me,
            id: self.fresh_id(),
        };
        let mut record = Record::new(owner);
        record.local = 1;
        record.receive(self.me);
        self.records.insert(id, record);
        self.send(
            owner,
            Message::RefOp {
                req: 0,
                op: RefOp::Create,
                target: id,
                body: Body::default(),
            },
        );
        id
    }

    /// Adds a handle to a reference that a body being unpickled names.
    pub fn hold(&mut self, reference: RemoteRef) {
        let record = self
            .records
            .entry(reference.id)
            .or_insert_with(|| Record::new(reference.owner));
        record.local += 1;
    }

    /// Adds a handle that keeps the owner's value until the reference has been passed on; false where the value
    /// has come here already, and is to be passed on itself.
    pub fn pin(&mut self, id: RefId) -> bool {
        match self.records.get_mut(&id) {
            Some(record) if record.owner == self.me || !record.received.is_empty() => {
                record.local += 1;
                record.passed_on = true;
                true
            }
            _ => false,
        }
    }

    /// Drops a handle.
    pub fn release(&mut self, id: RefId) {
        let Some(record) = self.records.get_mut(&id) else {
            return;
        };
        record.local = record.local.saturating_sub(1);
        if record.local > 0 {
            return;
        }
        if record.owner == self.me {
            self.free_if_unused(id);
            return;
        }
        if let Some(record) = self.records.remove(&id) {
            self.give_back(id, record.owner, record.received);
            for req in [record.asked_value, record.asked_ready].into_iter().flatten() {
                self.withdraw(record.owner, req, id);
            }
            if record.call && id.whence == self.me {
                self.outstanding.remove(&id.id);
            }
            for waiter in record.waiters {
                self.wake(waiter, &Outcome::bare(Status::UnknownRef, self.me));
            }
            if let State::Ready(outcome) = record.state {
                self.release_refs(&outcome.body.refs);
            }
        }
    }

    fn give_back(&mut self, id: RefId, owner: ProcId, received: Vec<(ProcId, i32)>) {
        for (giver, count) in received {
            self.tell(
                owner,
                RefDelta {
                    id,
                    holder: self.me,
                    giver,
                    delta: -count,
                },
            );
        }
    }

    /// Notes a change of counts for an owner that still lives.
    fn tell(&mut self, owner: ProcId, delta: RefDelta) {
        if !self.departed.contains_key(&owner) {
            self.deltas.push((owner, delta));
        }
    }

    /// Takes the items that came and the changes of counts that are to be told to owners, a message of each kind
    /// for each owner.
    pub fn take_deltas(&mut self) -> Vec<(ProcId, Message)> {
        let mut by_owner: BTreeMap<ProcId, Vec<RefDelta>> = BTreeMap::new();
        for (owner, delta) in self.deltas.drain(..) {
            by_owner.entry(owner).or_default().push(delta);
        }
        let mut taken: BTreeMap<ProcId, Vec<(RefId, u64)>> = BTreeMap::new();
        for (owner, id, req) in self.confirms.drain(..) {
            taken.entry(owner).or_default().push((id, req));
        }
        let confirms = taken
            .into_iter()
            .map(|(owner, taken)| (owner, Message::Confirm { taken }));
        let counts = by_owner
            .into_iter()
            .map(|(owner, deltas)| (owner, Message::Refs { deltas }));
        confirms.chain(counts).collect()
    }

    /// How many items that came and changes of counts wait to be told.
    pub fn deltas_waiting(&self) -> usize {
        self.deltas.len() + self.confirms.len()
    }

    fn withdraw(&mut self, owner: ProcId, req: u64, target: RefId) {
        if self.outstanding.remove(&req).is_some() {
            self.send(owner, Message::Withdraw { req, target });
        }
    }

    /// A body names these references, and so does a Python object or record of this process from now on.
    pub(super) fn keep_refs(&mut self, refs: &[RemoteRef]) {
        for reference in refs {
            self.hold(*reference);
        }
    }

    /// A body that named these references is gone.
    pub fn release_refs(&mut self, refs: &[RemoteRef]) {
        for reference in refs {
            self.release(reference.id);
        }
    }

    /// A body that names these references has arrived: each has one more hold here.
    pub(super) fn receive_refs(&mut self, from: ProcId, refs: &[RemoteRef]) {
        for reference in refs {
            self.hold(*reference);
            if reference.owner == self.me {
                self.count(reference.id, self.me, from, -1);
            } else if let Some(record) = self.records.get_mut(&reference.id) {
                record.receive(from);
                if matches!(record.state, State::ReadyLocal) {
                    // The handle that has the value may go before this one.
                    record.state = State::Elsewhere;
                }
            }
        }
    }

    /// A body that names these references is about to be sent to `pid`.
    pub(super) fn share_refs(&mut self, pid: ProcId, refs: &[RemoteRef]) {
        for reference in refs {
            let (id, giver) = (reference.id, self.me);
            if reference.owner == self.me {
                self.count(id, pid, giver, 1);
            } else {
                self.tell(
                    reference.owner,
                    RefDelta {
                        id,
                        holder: pid,
                        giver,
                        delta: 1,
                    },
                );
            }
        }
    }

    /// Changes the owner's count of a process's holds.
    pub(super) fn count(&mut self, id: RefId, holder: ProcId, giver: ProcId, delta: i32) {
        self.apply(&RefDelta {
            id,
            holder,
            giver,
            delta,
        });
        self.free_if_unused(id);
    }

    /// Changed counts have come; the slots are looked at after all of them.
    pub(super) fn handle_deltas(&mut self, deltas: &[RefDelta]) {
        deltas.iter().for_each(|d| self.apply(d));
        deltas.iter().for_each(|d| self.free_if_unused(d.id));
    }

    fn apply(&mut self, delta: &RefDelta) {
        let RefDelta {
            id,
            holder,
            giver,
            delta,
        } = *delta;
        if self.departed.contains_key(&holder) {
            return;
        }
        let me = self.me;
        if self.departed.contains_key(&giver) {
            // The adds of a process that is gone may be lost: its counts do not go below zero.
            if let Some(record) = self.records.get_mut(&id) {
                record.count(holder, giver, delta, 0);
            }
            return;
        }
        if !self.is_lost(id) {
            let record = self.records.entry(id).or_insert_with(|| Record::new(me));
            record.count(holder, giver, delta, i32::MIN);
        }
    }

    /// Answers an owner how many holds this process has from a process that is gone.
    fn recount(&mut self, giver: ProcId, owner: ProcId, id: RefId) {
        let received = self
            .records
            .get(&id)
            .map(|r| r.received.as_slice())
            .unwrap_or_default();
        let count = received
            .iter()
            .find(|(from, _)| *from == giver)
            .map_or(0, |(_, count)| *count);
        let holder = self.me;
        self.tell(
            owner,
            RefDelta {
                id,
                holder,
                giver,
                delta: i32::MIN,
            },
        );
        self.tell(
            owner,
            RefDelta {
                id,
                holder,
                giver,
                delta: count,
            },
        );
    }

    /// Answers the owners that asked for counts while `giver` was still a member here.
    pub(super) fn recount_all(&mut self, giver: ProcId) {
        let (now, later) = std::mem::take(&mut self.recounts)
            .into_iter()
            .partition(|(from, ..)| *from == giver);
        self.recounts = later;
        let now: Vec<_> = now;
        for (giver, owner, id) in now {
            self.recount(giver, owner, id);
        }
    }

    pub(super) fn free_if_unused(&mut self, id: RefId) {
        let free = self
            .records
            .get(&id)
            .is_some_and(|r| r.owner == self.me && r.is_free() && (r.created || self.is_lost(id)));
        if free && let Some(record) = self.records.remove(&id) {
            if id.whence != self.me {
                self.remember_freed(id);
            }
            for waiter in record.waiters {
                self.wake(waiter, &Outcome::bare(Status::UnknownRef, self.me));
            }
            if let State::Ready(outcome) = record.state {
                self.release_refs(&outcome.body.refs);
            }
            if let Some(channel) = record.channel {
                self.carry(channel.end());
            }
            if record.custom {
                self.outputs.push(Output::Freed(id));
            }
        }
    }

    fn remember_freed(&mut self, id: RefId) {
        if self.freed.len() == FREED_MAX {
            self.freed.pop_front();
        }
        self.freed.push_back(id);
    }

    /// Whether a reference that has no slot here, or one of which its maker has not told, never gets its value.
    ///
    /// Otherwise the word of the maker is still on its way. Only after a death does anybody ask for what was freed.
    fn is_lost(&self, id: RefId) -> bool {
        let told = self
            .records
            .get(&id)
            .is_some_and(|r| r.created || r.owner != self.me);
        let departed = || self.departed.contains_key(&id.whence);
        !told && (id.whence == self.me || departed() || self.freed.contains(&id))
    }

    /// Whether this process owns a reference, or will once it hears of it.
    fn is_served(&self, id: RefId) -> bool {
        self.records.get(&id).is_none_or(|r| r.owner == self.me) && !self.is_lost(id)
    }

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
            (State::Ready(outcome), Want::Ready) if outcome.status == Status::Exited => {
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
        if let Some(reason) = self.departed.get(&record.owner) {
            let outcome = Outcome::exited(record.owner, reason);
            self.settle(id, outcome);
        }
    }

    /// Takes a waiter back; a request that waits for nobody else is withdrawn from the owner.
    ///
    /// False where the waiter has been woken already, or is about to be.
    pub fn unwatch(&mut self, id: RefId, key: u64) -> bool {
        let Some(record) = self.records.get_mut(&id) else {
            return false;
        };
        let before = record.waiters.len();
        record
            .waiters
            .retain(|w| !matches!(w, Waiter::Local { key: k, .. } if *k == key));
        let waited = record.waiters.len() < before;
        if !record.waiters.is_empty() || record.owner == self.me {
            return waited;
        }
        let owner = record.owner;
        let asked = [record.asked_value.take(), record.asked_ready.take()];
        for req in asked.into_iter().flatten() {
            self.withdraw(owner, req, id);
        }
        waited
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

    fn export(&mut self, id: RefId) {
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

    pub(super) fn handle_ref_op(&mut self, from: ProcId, req: u64, op: RefOp, target: RefId, body: Body) {
        self.receive_refs(from, &body.refs);
        match op {
            RefOp::Fetch => self.await_remote(from, req, target, Want::Value),
            RefOp::Wait => self.await_remote(from, req, target, Want::Ready),
            RefOp::IsReady => {
                let set = self.records.get(&target).is_some_and(Record::is_set);
                self.answer(from, req, if set { Status::Yes } else { Status::No });
            }
            RefOp::Put => {
                if !self.is_served(target) {
                    // Who still may put has the value already, so that the slot is gone.
                    self.release_refs(&body.refs);
                    return self.answer(from, req, Status::AlreadySet);
                }
                let me = self.me;
                // The word of the maker may come later than that of another holder.
                let record = self.records.entry(target).or_insert_with(|| Record::new(me));
                let pending = !record.is_set();
                if pending {
                    self.set(
                        target,
                        Outcome {
                            status: Status::Value,
                            body: Arc::new(body),
                            pid: me,
                        },
                    );
                } else {
                    self.release_refs(&body.refs);
                }
                self.answer(from, req, if pending { Status::Yes } else { Status::AlreadySet });
            }
            RefOp::Cancel => {
                let done = self.cancel(target);
                self.answer(from, req, if done { Status::Yes } else { Status::No });
            }
            RefOp::Create => {
                let me = self.me;
                let record = self.records.entry(target).or_insert_with(|| Record::new(me));
                record.created = true;
                record.count(from, from, 1, i32::MIN);
                self.free_if_unused(target);
            }
            RefOp::Recount => {
                let Ok(giver) = ProcId::try_from(req) else { return };
                if self.departed.contains_key(&giver) {
                    self.recount(giver, from, target);
                } else {
                    self.recounts.push((giver, from, target));
                }
            }
            RefOp::ChannelCreate
            | RefOp::ChannelPut
            | RefOp::ChannelTake
            | RefOp::ChannelFetch
            | RefOp::ChannelWait
            | RefOp::ChannelIsReady
            | RefOp::ChannelIsOpen
            | RefOp::ChannelClose
            | RefOp::ChannelGiveBack => self.channel_op(Asker { pid: from, req }, op, target, body),
        }
    }

    fn await_remote(&mut self, from: ProcId, req: u64, target: RefId, want: Want) {
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

    pub(super) fn handle_withdraw(&mut self, from: ProcId, req: u64, target: RefId) {
        if self.withdraw_from_channel(Asker { pid: from, req }, target) {
            return;
        }
        if let Some(record) = self.records.get_mut(&target) {
            record
                .waiters
                .retain(|w| !matches!(w, Waiter::Remote { pid, req: r, .. } if (*pid, *r) == (from, req)));
            self.free_if_unused(target);
        }
    }

    /// Cancels the call that is to make a value here; true where it had not ended.
    pub fn cancel(&mut self, target: RefId) -> bool {
        let key = (target.whence, target.id);
        let Some(run) = self.running.get_mut(&key) else {
            return false;
        };
        if *run == Run::Cancelled {
            return false;
        }
        if *run == Run::Running {
            self.outputs.push(Output::InterruptCall(key.0, key.1));
        }
        *run = Run::Cancelled;
        if self.state_of(target).is_none() && target.whence != self.me {
            // A call that is fetched has no slot: its caller is told by itself.
            self.answer(target.whence, target.id, Status::Cancelled);
        }
        if matches!(self.state_of(target), Some(State::Pending)) {
            self.set(target, Outcome::bare(Status::Cancelled, self.me));
        }
        true
    }

    /// Registers a call to this process itself, so that it can be cancelled and counted; it has no message.
    pub fn open_local_call(&mut self) -> RefId {
        let id = self.create_local();
        self.running.insert((id.whence, id.id), Run::Queued);
        id
    }

    /// A call to this process itself has ended; false where it was cancelled.
    pub fn finish_local_call(&mut self, id: RefId) -> bool {
        self.running.remove(&(id.whence, id.id)) != Some(Run::Cancelled)
    }
}

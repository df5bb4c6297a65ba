//! Counting who holds a reference.
//!
//! Who passes a reference on tells its owner that the receiver holds it once more, before it sends it, and keeps
//! its own hold at least as long. So an owner that counts no hold of anybody knows that none is on its way:
//! whoever could have sent one had a hold, and the delete of that hold comes after the add on the same link.

use std::collections::BTreeMap;

use crate::ids::{ProcId, RefId, RemoteRef};
use crate::message::{Message, RefDelta, Status, Withdrawal};
use crate::record::{Outcome, Record, State};

use super::{Machine, Output};

/// So many freed references are remembered, so that who got one from a process that died is told.
const FREED_MAX: usize = 4096;

/// So many entries fit into a message that is not streamed, so that no later one overtakes it.
const ENTRIES_MAX: usize = 2048;

/// Splits changes of counts into messages, but not between the two that are one word of how often a process really
/// holds a reference.
fn parts_of(mut deltas: Vec<RefDelta>) -> Vec<Vec<RefDelta>> {
    let mut parts = Vec::new();
    while deltas.len() > ENTRIES_MAX {
        let split = deltas[ENTRIES_MAX - 1].delta == i32::MIN;
        let rest = deltas.split_off(ENTRIES_MAX - usize::from(split));
        parts.push(std::mem::replace(&mut deltas, rest));
    }
    parts.push(deltas);
    parts
}

impl<W> Machine<W> {
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
        self.return_credit(id);
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

    pub(super) fn give_back(&mut self, id: RefId, owner: ProcId, received: Vec<(ProcId, i32)>) {
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
        let confirms = taken.into_iter().flat_map(|(owner, taken)| {
            let parts: Vec<_> = taken.chunks(ENTRIES_MAX).map(<[_]>::to_vec).collect();
            parts
                .into_iter()
                .map(move |taken| (owner, Message::Confirm { taken }))
        });
        let counts = by_owner.into_iter().flat_map(|(owner, deltas)| {
            let parts = parts_of(deltas).into_iter();
            parts.map(move |deltas| (owner, Message::Refs { deltas }))
        });
        let (unsent, told): (Vec<_>, Vec<_>) = confirms
            .chain(counts)
            .partition(|(owner, _)| self.is_stranger(*owner));
        for (owner, message) in unsent {
            self.keep_unsent(owner, message);
        }
        told
    }

    /// How many items that came and changes of counts wait to be told.
    pub fn deltas_waiting(&self) -> usize {
        self.deltas.len() + self.confirms.len()
    }

    pub(super) fn withdraw(&mut self, owner: ProcId, req: u64, target: RefId) {
        if self.outstanding.remove(&req).is_some() {
            let how = Withdrawal::Undo;
            self.send(owner, Message::Withdraw { req, target, how });
        }
    }

    /// A body names these references, and so does a Python object or record of this process from now on.
    pub(super) fn keep_refs(&mut self, refs: &[RemoteRef]) {
        for reference in refs {
            self.hold(*reference);
        }
    }

    /// A body that named these references is gone.
    ///
    /// A value may name a reference whose value names another one, and so on: the list is worked off by the first
    /// call, for a call within a call for each of them would overflow the stack.
    pub fn release_refs(&mut self, refs: &[RemoteRef]) {
        let ids = refs.iter().map(|reference| reference.id);
        if let Some(releasing) = &mut self.releasing {
            releasing.extend(ids);
            return;
        }
        if refs.is_empty() {
            return;
        }
        self.releasing = Some(ids.collect());
        while let Some(id) = self.releasing.as_mut().and_then(Vec::pop) {
            self.release(id);
        }
        self.releasing = None;
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

    /// A body that names these references was not sent to `pid` after all.
    pub fn unshare_refs(&mut self, pid: ProcId, refs: &[RemoteRef]) {
        let (holder, giver, delta) = (pid, self.me, -1);
        for reference in refs {
            let id = reference.id;
            if reference.owner == self.me {
                self.count(id, holder, giver, delta);
            } else {
                let delta = RefDelta {
                    id,
                    holder,
                    giver,
                    delta,
                };
                self.tell(reference.owner, delta);
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
    pub(super) fn recount(&mut self, giver: ProcId, owner: ProcId, id: RefId) {
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
                self.carry(id, channel.end());
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
    pub(super) fn is_lost(&self, id: RefId) -> bool {
        let told = self
            .records
            .get(&id)
            .is_some_and(|r| r.created || r.owner != self.me);
        let departed = || self.departed.contains_key(&id.whence);
        !told && (id.whence == self.me || departed() || self.freed.contains(&id))
    }

    /// Whether this process owns a reference, or will once it hears of it.
    pub(super) fn is_served(&self, id: RefId) -> bool {
        self.records.get(&id).is_none_or(|r| r.owner == self.me) && !self.is_lost(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(delta: i32) -> RefDelta {
        RefDelta {
            id: RefId { whence: 1, id: 2 },
            holder: 3,
            giver: 4,
            delta,
        }
    }

    #[test]
    fn changes_of_counts_are_split_but_not_a_recount() {
        let sizes = |deltas: Vec<RefDelta>| parts_of(deltas).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![delta(1)]), [1]);
        assert_eq!(sizes(vec![delta(1); ENTRIES_MAX]), [ENTRIES_MAX]);
        assert_eq!(
            sizes(vec![delta(1); 2 * ENTRIES_MAX + 1]),
            [ENTRIES_MAX, ENTRIES_MAX, 1]
        );
        let mut deltas = vec![delta(1); ENTRIES_MAX + 5];
        deltas[ENTRIES_MAX - 1] = delta(i32::MIN);
        assert_eq!(sizes(deltas), [ENTRIES_MAX - 1, 6]);
    }
}

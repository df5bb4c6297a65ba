//! Channels: requests to those of this process, and the taker's side of those of others.
//!
//! An item that a taker was sent stays with the owner until the taker has confirmed it; confirmations are told
//! together with the changed counts. The body of an item has its own handles of the references that it names, and
//! so has each copy that was sent.

use std::sync::Arc;

use crate::body::{Body, Segment};
use crate::channel::{Answer, Asker, Channel, Effect, Gauge, Wish};
use crate::ids::{ProcId, RefId, RemoteRef};
use crate::message::{Message, RefOp, Status, Withdrawal};
use crate::record::{Outcome, Record};

use super::{CallError, Expect, Machine, Output, Outstanding};

impl<W> Machine<W> {
    /// Makes a channel on this process, with one handle; `usize::MAX` is unbounded.
    pub fn create_channel(&mut self, capacity: usize) -> RefId {
        let id = self.create_local();
        if let Some(record) = self.records.get_mut(&id) {
            record.channel = Some(Box::new(Channel::new(capacity)));
        }
        id
    }

    /// Makes the reference of a channel that Python keeps, with one handle; [`super::Output::Freed`] tells its end.
    pub fn create_custom_channel(&mut self) -> RefId {
        let id = self.create_local();
        if let Some(record) = self.records.get_mut(&id) {
            record.custom = true;
        }
        id
    }

    /// Opens the making of a channel elsewhere, which is answered with `Yes`; one handle is here.
    pub fn open_channel(&mut self, owner: ProcId, capacity: u64, wake: W) -> Result<(RefId, u64), CallError> {
        self.check_pid(owner)?;
        let id = self.refer_to(owner);
        let body = Body::of_bytes(capacity.to_le_bytes().to_vec());
        let expect = Expect::Op(wake);
        let req = self.ask_with(owner, RefOp::ChannelCreate, id, body, expect);
        Ok((id, req))
    }

    /// The channels of this process as they are now: the newest, at most so many, in the order of their references.
    pub fn gauges(&self, most: usize) -> Vec<(RefId, Gauge)> {
        let channels = self.records.iter().filter_map(|(id, record)| {
            let channel = record.channel.as_ref()?;
            Some((*id, channel.gauge()))
        });
        let mut gauges: Vec<_> = channels.collect();
        gauges.sort_unstable_by_key(|(id, _)| (id.id, id.whence));
        gauges.split_off(gauges.len().saturating_sub(most))
    }

    /// A further handle of a channel of this process, and whether Python keeps it; none where there is no such one.
    pub fn channel_here(&mut self, id: RefId) -> Option<bool> {
        let me = self.me;
        let record = self.records.get_mut(&id).filter(|r| r.owner == me)?;
        if !record.custom && record.channel.is_none() {
            return None;
        }
        record.local += 1;
        Some(record.custom)
    }

    /// Asks a channel of this process itself; the answer wakes one waiter.
    ///
    /// The references that the body names are those of Python objects of this process.
    pub fn ask_own_channel(&mut self, id: RefId, op: RefOp, body: Body, wake: W) -> u64 {
        let req = self.fresh_id();
        let (pid, expect) = (self.me, Expect::Op(wake));
        self.outstanding.insert(req, Outstanding { pid, expect });
        self.keep_refs(&body.refs);
        self.channel_op(Asker { pid, req }, op, id, body);
        req
    }

    /// Puts an item that names no references into a channel of this process; false where it would have to wait.
    pub fn put_here(&mut self, id: RefId, body: Body) -> bool {
        let (pid, req) = (self.me, 0);
        let channel = self.records.get_mut(&id).and_then(|r| r.channel.as_mut());
        let effect = channel.and_then(|c| c.put_now(Asker { pid, req }, &Arc::new(body)));
        effect.map(|effect| self.carry(id, effect)).is_some()
    }

    /// Takes the first item of a channel of this process, where there is one; the caller has the handles of its body.
    pub fn take_here(&mut self, id: RefId) -> Option<Arc<Body>> {
        let channel = self.records.get_mut(&id).and_then(|r| r.channel.as_mut())?;
        let (body, effect) = channel.take_now()?;
        self.carry(id, effect);
        Some(body)
    }

    /// Takes a request back where it still waits; its answer says whether it did.
    pub fn withdraw_op(&mut self, target: RemoteRef, req: u64) {
        if self.outstanding.contains_key(&req) {
            self.take_back(target, req, Withdrawal::IfWaiting);
        }
    }

    /// Nobody waits for a request any more: what it did is undone. False where the waiter has been woken.
    pub fn unwant(&mut self, target: RemoteRef, req: u64) -> bool {
        let waited = self.outstanding.remove(&req).is_some();
        if waited {
            self.take_back(target, req, Withdrawal::Undo);
        }
        waited
    }

    /// The item that a request brought is not wanted: it goes back to the front of the channel.
    pub fn give_item_back(&mut self, target: RemoteRef, req: u64) {
        self.take_back(target, req, Withdrawal::Undo);
    }

    fn take_back(&mut self, RemoteRef { owner, id }: RemoteRef, req: u64, how: Withdrawal) {
        if owner == self.me {
            self.withdraw_from_channel(Asker { pid: owner, req }, id, how);
        } else if !self.departed.contains_key(&owner) {
            let target = id;
            self.send(owner, Message::Withdraw { req, target, how });
        }
    }

    /// An operation was not sent after all.
    pub fn forget_op(&mut self, req: u64) {
        self.outstanding.remove(&req);
    }

    /// The item that a request brought is with its taker.
    pub fn confirm(&mut self, target: RemoteRef, req: u64) {
        if target.owner == self.me {
            let pid = self.me;
            self.on_channel(target.id, |c| c.confirm(Asker { pid, req }));
        } else if !self.departed.contains_key(&target.owner) {
            self.confirms.push((target.owner, target.id, req));
        }
    }

    /// Takers have their items.
    pub(super) fn handle_confirm(&mut self, pid: ProcId, taken: Vec<(RefId, u64)>) {
        for (id, req) in taken {
            self.on_channel(id, |c| c.confirm(Asker { pid, req }));
        }
    }

    /// Takes back a request to a channel; false where the reference is none.
    pub(super) fn withdraw_from_channel(&mut self, asker: Asker, id: RefId, how: Withdrawal) -> bool {
        let is_channel = self.records.get(&id).is_some_and(|r| r.channel.is_some());
        self.on_channel(id, |c| match how {
            Withdrawal::IfWaiting => c.withdraw(asker),
            Withdrawal::Undo => c.undo(asker),
        });
        is_channel
    }

    /// Carries out an operation on a channel of this process; the body has its handles.
    pub(super) fn channel_op(&mut self, from: Asker, op: RefOp, id: RefId, body: Body) {
        if op == RefOp::ChannelCreate {
            return self.create_for(from, id, &body);
        }
        let Some(channel) = self.records.get_mut(&id).and_then(|r| r.channel.as_mut()) else {
            self.release_refs(&body.refs);
            return self.reply(Answer::bare(from, Status::UnknownRef));
        };
        let body = Arc::new(body);
        let effect = match op {
            RefOp::ChannelPut => channel.put(from, body),
            RefOp::ChannelPutOfMany => channel.put_of_many(from, body),
            RefOp::ChannelClose => {
                let mut effect = channel.close(body);
                effect.answers.push(Answer::bare(from, Status::Yes));
                effect
            }
            _ => {
                let mut effect = match op {
                    RefOp::ChannelTake => channel.ask(from, Wish::Take),
                    RefOp::ChannelFetch => channel.ask(from, Wish::Fetch),
                    RefOp::ChannelWait => channel.ask(from, Wish::Ready),
                    RefOp::ChannelIsReady => Answer::bare(from, yes_or_no(channel.is_ready())).into(),
                    _ => Answer::bare(from, yes_or_no(channel.is_open())).into(),
                };
                effect.dropped.push(body);
                effect
            }
        };
        self.carry(id, effect);
    }

    fn create_for(&mut self, from: Asker, id: RefId, body: &Body) {
        self.release_refs(&body.refs);
        let bytes = body.segments.first().map(Segment::as_slice).unwrap_or_default();
        let Ok(capacity) = <[u8; 8]>::try_from(bytes) else {
            return self.reply(Answer::bare(from, Status::UnknownRef));
        };
        let capacity = usize::try_from(u64::from_le_bytes(capacity)).unwrap_or(usize::MAX);
        let me = self.me;
        let known = self.records.get(&id);
        if id.whence != from.pid || known.is_some_and(|r| r.owner != me || r.created) {
            // In the place of another one it would take away what is in that, and who waits for it.
            return self.reply(Answer::bare(from, Status::UnknownRef));
        }
        let record = self.records.entry(id).or_insert_with(|| Record::new(me));
        record.created = true;
        record.channel = Some(Box::new(Channel::new(capacity)));
        record.count(from.pid, from.pid, 1, i32::MIN);
        self.reply(Answer::bare(from, Status::Yes));
        self.free_if_unused(id);
    }

    /// A process is gone: its requests go, and the items that it has not confirmed come back.
    pub(super) fn forget_in_channels(&mut self, pid: ProcId) {
        let channels = self.records.iter().filter(|(_, r)| r.channel.is_some());
        let mut ids: Vec<RefId> = channels.map(|(id, _)| *id).collect();
        ids.sort_unstable();
        for id in ids {
            self.on_channel(id, |c| c.forget(pid));
        }
    }

    /// Gives the answers to puts that were held back.
    pub fn answer_held(&mut self) {
        for id in std::mem::take(&mut self.held) {
            self.on_channel(id, Channel::answer_held);
        }
    }

    pub(super) fn on_channel(&mut self, id: RefId, act: impl FnOnce(&mut Channel) -> Effect) {
        if let Some(channel) = self.records.get_mut(&id).and_then(|r| r.channel.as_mut()) {
            let effect = act(channel);
            self.carry(id, effect);
        }
    }

    /// Tells of credit, gives the answers, then lets the references of the dropped bodies go.
    pub(super) fn carry(&mut self, id: RefId, effect: Effect) {
        if !effect.held.is_empty() {
            if self.held.is_empty() {
                self.outputs.push(Output::AnswersHeld);
            }
            if !self.held.contains(&id) {
                self.held.push(id);
            }
        }
        for (pid, count) in effect.credit {
            self.tell_credit(pid, RefOp::ChannelCredit, id, count);
        }
        for pid in effect.recalled {
            self.tell_credit(pid, RefOp::ChannelRecallCredit, id, 0);
        }
        for answer in effect.answers {
            self.reply(answer);
        }
        for body in effect.dropped {
            self.release_refs(&body.refs);
        }
    }

    fn reply(&mut self, answer: Answer) {
        let Answer { to, status, body } = answer;
        if to.pid == self.me {
            self.keep_refs(&body.refs);
            let pid = self.me;
            return self.conclude(pid, to.req, Outcome { status, body, pid });
        }
        self.share_refs(to.pid, &body.refs);
        let id = to.req;
        self.send(to.pid, Message::Result { id, status, body });
    }
}

fn yes_or_no(yes: bool) -> Status {
    if yes { Status::Yes } else { Status::No }
}

//! References: making them, what others ask of them, and the calls behind them.

use std::sync::Arc;

use crate::body::Body;
use crate::channel::Asker;
use crate::ids::{ProcId, RefId};
use crate::message::{Message, RefOp, Status, Withdrawal};
use crate::record::{Outcome, Record, State, Waiter, Want};

use super::{CallError, Machine, Output, Run};

impl<W> Machine<W> {
    /// Calls are refused while so many calls and requests have no answer yet.
    pub fn limit_calls(&mut self, most: usize) {
        self.calls_max = most;
    }

    pub(super) fn check_calls(&self) -> Result<(), CallError> {
        if self.outstanding.len() >= self.calls_max {
            return Err(CallError::TooManyCalls(self.calls_max));
        }
        Ok(())
    }

    /// The call behind a future was not sent after all: its owner is never to hear of the reference.
    pub fn forget_future(&mut self, id: RefId) {
        self.outstanding.remove(&id.id);
        if let Some(record) = self.records.remove(&id) {
            for waiter in record.waiters {
                self.wake(waiter, &Outcome::bare(Status::UnknownRef, self.me));
            }
        }
    }

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
        let id = self.refer_to(owner);
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

    /// A new reference to what another process is about to keep, with one handle here.
    pub(super) fn refer_to(&mut self, owner: ProcId) -> RefId {
        let id = RefId {
            whence: self.me,
            id: self.fresh_id(),
        };
        let mut record = Record::new(owner);
        record.local = 1;
        record.receive(self.me);
        self.records.insert(id, record);
        id
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
            RefOp::Recall => {
                let queued = self.running.get(&(from, target.id)) == Some(&Run::Queued);
                if queued && target.whence == from {
                    self.cancel(target);
                }
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
            | RefOp::ChannelPutOfMany
            | RefOp::ChannelTake
            | RefOp::ChannelFetch
            | RefOp::ChannelWait
            | RefOp::ChannelIsReady
            | RefOp::ChannelIsOpen
            | RefOp::ChannelClose => self.channel_op(Asker { pid: from, req }, op, target, body),
            RefOp::ChannelPutOnCredit => self.handle_put_on_credit(from, target, body),
            RefOp::ChannelCredit => self.handle_credit(from, target, req),
            RefOp::ChannelRecallCredit => self.return_credit(target),
            RefOp::ChannelReturnCredit => self.handle_returned_credit(from, target, req),
        }
    }

    pub(super) fn handle_withdraw(&mut self, from: ProcId, req: u64, target: RefId, how: Withdrawal) {
        if self.withdraw_from_channel(Asker { pid: from, req }, target, how) {
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

//! Credit for puts, on both ends: what owners of channels have set aside for this process, and what others send on it.

use std::sync::Arc;

use crate::body::Body;
use crate::ids::{ProcId, RefId, RemoteRef};
use crate::message::{Message, RefOp};

use super::{Machine, Output};

/// Room that the owner of a channel elsewhere has set aside for this process.
#[derive(Debug)]
pub(super) struct Credit {
    pub(super) owner: ProcId,
    left: u32,
    /// None of it was used since it was last looked at.
    idle: bool,
}

impl<W> Machine<W> {
    /// Opens a put that needs no answer, where the owner has set room aside; the caller sends the frame.
    ///
    /// The frame is to go behind those that the calling thread has sent to the owner, and must not be streamed.
    pub fn open_put_on_credit(&mut self, target: RemoteRef, refs: &[RemoteRef]) -> bool {
        let Some(credit) = self.credits.get_mut(&target.id) else {
            return false;
        };
        credit.left -= 1;
        credit.idle = false;
        if credit.left == 0 {
            self.credits.remove(&target.id);
        }
        self.share_refs(target.owner, refs);
        true
    }

    /// Gives back the credit of which none was used since the last time; true where some is left.
    pub fn return_idle_credit(&mut self) -> bool {
        let idle = self.credits.iter().filter(|(_, credit)| credit.idle);
        let mut idle: Vec<RefId> = idle.map(|(id, _)| *id).collect();
        idle.sort_unstable();
        for id in idle {
            self.return_credit(id);
        }
        for credit in self.credits.values_mut() {
            credit.idle = true;
        }
        !self.credits.is_empty()
    }

    /// Gives the credit at a channel back.
    pub(super) fn return_credit(&mut self, id: RefId) {
        if let Some(Credit { owner, left, .. }) = self.credits.remove(&id) {
            self.tell_credit(owner, RefOp::ChannelReturnCredit, id, left);
        }
    }

    pub(super) fn tell_credit(&mut self, pid: ProcId, op: RefOp, target: RefId, count: u32) {
        let (req, body) = (u64::from(count), Body::default());
        self.send(
            pid,
            Message::RefOp {
                req,
                op,
                target,
                body,
            },
        );
    }

    /// The owner has set room aside for this process, which may have let go of the channel meanwhile.
    pub(super) fn handle_credit(&mut self, owner: ProcId, id: RefId, count: u64) {
        let Ok(count @ 1..) = u32::try_from(count) else {
            return;
        };
        if self.records.get(&id).is_none_or(|r| r.owner != owner) {
            return self.tell_credit(owner, RefOp::ChannelReturnCredit, id, count);
        }
        if self.credits.is_empty() {
            self.outputs.push(Output::Credited);
        }
        let (left, idle) = (0, false);
        let credit = self.credits.entry(id).or_insert(Credit { owner, left, idle });
        credit.left = credit.left.saturating_add(count);
        credit.idle = false;
    }

    /// An item has come for which there is room; one for which there is none was never allowed.
    pub(super) fn handle_put_on_credit(&mut self, from: ProcId, id: RefId, body: Body) {
        let body = Arc::new(body);
        let channel = self.records.get_mut(&id).and_then(|r| r.channel.as_mut());
        match channel.and_then(|c| c.put_on_credit(from, &body)) {
            Some(effect) => self.carry(id, effect),
            None => {
                self.strays += 1;
                self.release_refs(&body.refs);
            }
        }
    }

    pub(super) fn handle_returned_credit(&mut self, from: ProcId, id: RefId, count: u64) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.on_channel(id, |c| c.give_credit_back(from, count));
    }
}

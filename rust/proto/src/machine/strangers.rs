//! Processes that this one has not heard of: word of them came by another way than that of the head, which is slower.

use crate::ids::{HEAD, ProcId};
use crate::message::{Message, Status};

use super::{Expect, Machine, Outstanding};

impl<W> Machine<W> {
    /// Whether a process has neither joined nor left, as far as this one, which is not the head, has heard.
    pub(super) fn is_stranger(&self, pid: ProcId) -> bool {
        let is_known = |pid| self.members.contains_key(&pid) || self.departed.contains_key(&pid);
        self.me != HEAD && pid != HEAD && !is_known(pid) && !self.departed.contains_key(&HEAD)
    }

    /// Asks the head for a process; once that has answered, this one has heard of it what there is to hear.
    pub fn look_up(&mut self, pid: ProcId, wake: W) -> u64 {
        self.ask_head(pid, Expect::Op(wake))
    }

    /// The head is asked for a process: what it has told of a member is on its way already.
    pub(super) fn tell_of(&mut self, from: ProcId, req: u64, pid: ProcId) {
        if let Some(departure) = self.departed.get(&pid) {
            let reason = departure.reason.clone();
            self.send(from, Message::Leave { pid, reason });
        }
        let status = if self.members.contains_key(&pid) {
            Status::Yes
        } else {
            Status::No
        };
        self.answer(from, req, status);
    }

    /// Keeps a message until the head has told of the process that it is for.
    pub(super) fn keep_unsent(&mut self, pid: ProcId, message: Message) {
        let messages = self.unsent.entry(pid).or_default();
        messages.push(message);
        if messages.len() == 1 {
            self.ask_head(pid, Expect::Word(pid));
        }
    }

    /// What was kept for a process that has joined is sent.
    pub(super) fn send_unsent(&mut self, pid: ProcId) {
        for message in self.unsent.remove(&pid).unwrap_or_default() {
            self.send(pid, message);
        }
    }

    /// The head has told what it knows of a process: one that is still unknown does not exist.
    pub(super) fn heard_of(&mut self, pid: ProcId) {
        if self.is_stranger(pid) {
            self.leave(pid, "process 1 does not know it");
        } else {
            self.send_unsent(pid);
        }
    }

    fn ask_head(&mut self, pid: ProcId, expect: Expect<W>) -> u64 {
        let req = self.fresh_id();
        self.outstanding.insert(req, Outstanding { pid: HEAD, expect });
        self.send(HEAD, Message::LookUp { req, pid });
        req
    }
}

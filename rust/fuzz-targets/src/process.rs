//! A process of a cluster, and what its user does, between members that may say anything.

use std::collections::{BTreeMap, BTreeSet};

use pydist_proto::body::Body;
use pydist_proto::ids::{HEAD, ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Incoming, Machine, Output, Watch};
use pydist_proto::message::{CallMode, Member, Message, RefOp, Status};
use pydist_proto::record::{Outcome, Want};

use crate::frames::written;
use crate::input::Input;

/// What the process waits for.
#[derive(Clone, Copy, Debug)]
enum Waiting {
    Answer,
    Value { reference: RefId, key: u64 },
}

/// A process and what its user has in hand.
pub(crate) struct Process {
    machine: Machine<u64>,
    waiting: BTreeMap<u64, Waiting>,
    next_token: u64,
    handles: Vec<RemoteRef>,
    channels: Vec<RefId>,
    queued: Vec<Incoming>,
    running: Vec<Incoming>,
    exports: Vec<RefId>,
    /// Questions to process 1 for processes that this one does not know.
    look_ups: Vec<u64>,
    /// All processes that a message has named as owners.
    owners: BTreeSet<ProcId>,
}

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

impl Process {
    /// A process with two other members.
    pub(crate) fn new(me: ProcId, others: [ProcId; 2]) -> Process {
        let mut process = Process {
            machine: Machine::new(member(me)),
            waiting: BTreeMap::new(),
            next_token: 0,
            handles: Vec::new(),
            channels: Vec::new(),
            queued: Vec::new(),
            running: Vec::new(),
            exports: Vec::new(),
            look_ups: Vec::new(),
            owners: BTreeSet::from(others),
        };
        for pid in others {
            process.with(|machine| machine.join(member(pid)));
        }
        process
    }

    fn me(&self) -> ProcId {
        self.machine.me()
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Machine<u64>) -> R) -> R {
        let result = act(&mut self.machine);
        for output in self.machine.take_outputs() {
            self.carry_out(output);
        }
        result
    }

    fn carry_out(&mut self, output: Output<u64>) {
        match output {
            Output::Send(_, message) => {
                if let Message::LookUp { req, .. } = message {
                    self.look_ups.push(req);
                }
                drop(written(message));
            }
            Output::Wake(token, outcome) => {
                let waited = self.waiting.remove(&token);
                assert!(waited.is_some(), "a waiter is woken twice");
                self.take(&outcome);
            }
            Output::Deliver(call) => self.queued.push(call),
            Output::Export(id) => self.exports.push(id),
            _ => {}
        }
    }

    /// An outcome gives a handle of each reference that its body names.
    fn take(&mut self, outcome: &Outcome) {
        self.handles.extend(&outcome.body.refs);
    }

    fn token(&mut self, waiting: Waiting) -> u64 {
        self.next_token += 1;
        self.waiting.insert(self.next_token, waiting);
        self.next_token
    }

    /// A message of another process has come.
    pub(crate) fn receive(&mut self, from: ProcId, message: Message) {
        match &message {
            Message::Call { body, .. } | Message::RefOp { body, .. } => self.see(body),
            Message::Result { body, .. } => self.see(body),
            _ => {}
        }
        self.with(|machine| machine.handle_message(from, message));
    }

    fn see(&mut self, body: &Body) {
        self.owners.extend(body.refs.iter().map(|r| r.owner));
    }

    fn handle(&self, input: &mut Input) -> Option<RemoteRef> {
        let at = usize::from(input.u8()).checked_rem(self.handles.len())?;
        Some(self.handles[at])
    }

    fn channel(&self, input: &mut Input) -> Option<RefId> {
        let at = usize::from(input.u8()).checked_rem(self.channels.len())?;
        Some(self.channels[at])
    }

    /// The user does something.
    pub(crate) fn act(&mut self, input: &mut Input, peer: ProcId) {
        match input.u8() % 16 {
            0 => {
                let token = self.token(Waiting::Answer);
                if self.with(|m| m.open_fetch(peer, &[], token)).is_err() {
                    self.waiting.remove(&token);
                }
            }
            1 => {
                if let Ok(id) = self.with(|m| m.open_future(peer, &[])) {
                    self.handles.push(RemoteRef { owner: peer, id });
                }
            }
            2 => self.create(input, peer),
            3 => {
                let id = self.with(|m| m.create_channel(1));
                self.channels.push(id);
            }
            4 | 5 => self.watch(input),
            6 => self.unwatch(),
            7 => self.put(input),
            8 => self.release(input),
            9 | 10 => self.run(input),
            11 => {
                if let Some(target) = self.handle(input) {
                    self.with(|m| m.cancel(target.id));
                }
            }
            12 => drop(self.with(Machine::take_deltas)),
            13 => self.ask_own_channel(input),
            14 => self.operate(input),
            _ => self.export(),
        }
    }

    fn create(&mut self, input: &mut Input, peer: ProcId) {
        let owner = if input.u8().is_multiple_of(2) {
            self.me()
        } else {
            peer
        };
        if self.machine.check_pid(owner).is_ok() {
            let id = self.with(|m| m.create_at(owner));
            self.handles.push(RemoteRef { owner, id });
        }
    }

    fn watch(&mut self, input: &mut Input) {
        let want = [Want::Value, Want::Ready][usize::from(input.u8() % 2)];
        let Some(target) = self.handle(input) else { return };
        let key = 0;
        let reference = target.id;
        let token = self.token(Waiting::Value { reference, key });
        match self.with(|m| m.watch(reference, want, token)) {
            Watch::Now(outcome) => {
                self.waiting.remove(&token);
                self.take(&outcome);
            }
            Watch::Later(key) => {
                if let Some(waiting) = self.waiting.get_mut(&token) {
                    *waiting = Waiting::Value { reference, key };
                }
            }
        }
    }

    fn unwatch(&mut self) {
        let last = self
            .waiting
            .iter()
            .next_back()
            .map(|(token, waiting)| (*token, *waiting));
        if let Some((token, Waiting::Value { reference, key })) = last {
            assert!(
                self.with(|m| m.unwatch(reference, key)),
                "the waiter is still there"
            );
            self.waiting.remove(&token);
        }
    }

    fn put(&mut self, input: &mut Input) {
        let Some(target) = self.handle(input) else { return };
        if input.u8().is_multiple_of(2) {
            self.with(|m| m.put_local(target.id));
        } else {
            // A value that names another reference is what makes chains of them.
            let refs: Vec<RemoteRef> = self.handle(input).into_iter().collect();
            let body = Body {
                refs,
                ..Body::of_bytes(vec![1; 4])
            };
            self.with(|m| m.put(target.id, Status::Value, body));
        }
    }

    /// Drops a handle through which nobody waits.
    fn release(&mut self, input: &mut Input) {
        let Some(target) = self.handle(input) else { return };
        let waited = |w: &Waiting| matches!(w, Waiting::Value { reference, .. } if *reference == target.id);
        if !self.waiting.values().any(waited) {
            let at = self.handles.iter().position(|handle| *handle == target);
            self.handles.swap_remove(at.unwrap());
            self.with(|m| m.release(target.id));
        }
    }

    /// Begins a call, or ends one.
    fn run(&mut self, input: &mut Input) {
        if input.u8().is_multiple_of(2) {
            let Some(call) = self.queued.pop() else { return };
            if self.with(|m| m.begin(call.src, call.id)) {
                self.running.push(call);
            } else {
                self.with(|m| m.release_refs(&call.body.refs));
            }
            return;
        }
        let Some(call) = self.running.pop() else { return };
        let (src, id) = (call.src, call.id);
        let refs: Vec<RemoteRef> = self.handle(input).into_iter().collect();
        if call.mode == CallMode::Future {
            let body = Body {
                refs,
                ..Body::of_bytes(vec![2; 4])
            };
            self.with(|m| m.finish_future(src, id, Status::Value, body));
        } else {
            self.with(|m| m.finish(src, id, &refs));
        }
        self.with(|m| m.release_refs(&call.body.refs));
    }

    fn ask_own_channel(&mut self, input: &mut Input) {
        use RefOp::{ChannelFetch, ChannelPut, ChannelTake, ChannelWait};
        let op = [ChannelPut, ChannelTake, ChannelFetch, ChannelWait][usize::from(input.u8() % 4)];
        let Some(id) = self.channel(input) else { return };
        let token = self.token(Waiting::Answer);
        let refs: Vec<RemoteRef> = self.handle(input).into_iter().collect();
        let body = match op {
            ChannelPut => Body {
                refs,
                ..Body::of_bytes(vec![3; 4])
            },
            _ => Body::default(),
        };
        let req = self.with(|m| m.ask_own_channel(id, op, body, token));
        if op == ChannelTake && !self.waiting.contains_key(&token) {
            let owner = self.me();
            self.with(|m| m.confirm(RemoteRef { owner, id }, req));
        }
    }

    fn operate(&mut self, input: &mut Input) {
        use RefOp::{Cancel, ChannelIsOpen, ChannelTake, IsReady, Put};
        let op = [IsReady, Put, Cancel, ChannelTake, ChannelIsOpen][usize::from(input.u8() % 5)];
        let Some(target) = self.handle(input) else { return };
        if target.owner == self.me() {
            return;
        }
        let token = self.token(Waiting::Answer);
        match self.with(|m| m.open_op(target, &[], token)) {
            Ok(req) => {
                let (id, body) = (target.id, Body::default());
                drop(written(Message::RefOp {
                    req,
                    op,
                    target: id,
                    body,
                }));
            }
            Err(_) => {
                self.waiting.remove(&token);
            }
        }
    }

    fn export(&mut self) {
        if let Some(id) = self.exports.pop() {
            self.with(|m| m.exported(id, Status::Value, Body::of_bytes(vec![4; 4])));
        }
    }

    /// All others leave, and everything here has its value: nobody waits any more (D2).
    pub(crate) fn end(mut self) {
        for owner in std::mem::take(&mut self.owners) {
            if owner != self.me() {
                self.with(|m| m.join(member(owner)));
                self.with(|m| m.leave(owner, "it ends"));
            }
        }
        for id in std::mem::take(&mut self.channels) {
            let token = self.token(Waiting::Answer);
            self.with(|m| m.ask_own_channel(id, RefOp::ChannelClose, Body::default(), token));
        }
        let mut at = 0;
        while at < self.handles.len() {
            let id = self.handles[at].id;
            self.with(|m| m.put_local(id));
            at += 1;
        }
        while !self.exports.is_empty() {
            self.export();
        }
        while let Some(id) = self.look_ups.pop() {
            let (status, body) = (Status::No, Body::default().into());
            self.with(|m| m.handle_message(HEAD, Message::Result { id, status, body }));
        }
        assert!(
            self.waiting.is_empty(),
            "D2: somebody waits for ever: {:?}",
            self.waiting
        );
        assert_eq!(self.machine.counts().calls_outstanding, 0);
        for handle in std::mem::take(&mut self.handles) {
            self.with(|m| m.release(handle.id));
        }
    }
}

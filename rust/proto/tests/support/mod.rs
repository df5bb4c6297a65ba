//! A cluster of machines without sockets: messages lie in queues until a seeded choice delivers them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pydist_proto::body::{Body, Segment};
use pydist_proto::frame::INLINE_MAX;
use pydist_proto::ids::{HEAD, ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Counts, Incoming, Machine, Output, Watch};
use pydist_proto::message::{CallMode, Member, Message, RefOp, Status};
use pydist_proto::record::{Outcome, Want};

mod rng;

pub(crate) use rng::Rng;

/// A value as the simulation knows it: how the wait ended, and the number in its first segment.
type Value = (Status, u64);

/// What a waiter that has not been woken waits for.
#[derive(Clone, Copy, Debug)]
enum Await {
    /// The value of a fetching call.
    Call,
    /// The answer to an operation on a reference, through a handle.
    Op { op: RefOp, handle: u64, req: u64 },
    /// A reference, through a handle; the key takes the waiter back.
    Watch { handle: u64, want: Want, key: u64 },
}

/// A Python object that refers to a value.
struct Handle {
    target: RemoteRef,
    value: Option<Value>,
}

struct Node {
    machine: Machine<u64>,
    handles: BTreeMap<u64, Handle>,
    queued: Vec<Incoming>,
    running: Vec<(ProcId, u64, CallMode)>,
    exports: Vec<RefId>,
    /// Values of references of this process that are Python objects.
    objects: BTreeMap<RefId, Value>,
    /// References that were pinned for a body which is still to be sent.
    pinned: Vec<Vec<RemoteRef>>,
    waiting: BTreeMap<u64, Await>,
}

/// A seeded cluster.
pub(crate) struct Sim {
    rng: Rng,
    nodes: BTreeMap<ProcId, Node>,
    wires: BTreeMap<(ProcId, ProcId), VecDeque<Message>>,
    dead: BTreeSet<ProcId>,
    /// The killed processes of which the head has not heard.
    unheard: Vec<ProcId>,
    /// Every process that had to do with a reference: its maker, its owner, who sent it and to whom.
    touched: BTreeMap<RefId, BTreeSet<ProcId>>,
    /// The value that was seen first: no other may be seen.
    values: BTreeMap<RefId, Value>,
    puts_that_won: BTreeSet<RefId>,
    /// When each reference was made: values name older ones only, since counting frees no cycles.
    age: BTreeMap<RefId, u64>,
    next: u64,
    pub(crate) woken: usize,
    pub(crate) passed_on: usize,
}

pub(crate) fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

fn body_of(message: &Message) -> Option<&Body> {
    match message {
        Message::Call { body, .. } | Message::RefOp { body, .. } => Some(body),
        Message::Result { body, .. } => Some(body),
        _ => None,
    }
}

/// Larger messages are streamed, so that small ones overtake them.
fn is_streamed(message: &Message) -> bool {
    body_of(message).is_some_and(|body| body.size() > INLINE_MAX)
}

fn number(body: &Body) -> u64 {
    let bytes = body.segments.first().map(Segment::as_slice).unwrap_or_default();
    bytes
        .get(..8)
        .map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()))
}

fn value_body(number: u64, refs: Vec<RemoteRef>, large: bool) -> Body {
    let mut bytes = vec![0; if large { INLINE_MAX + 1 } else { 8 }];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    Body {
        refs,
        segments: vec![Segment::Heap(bytes)],
    }
}

impl Sim {
    /// Makes a cluster of `n` processes that know of one another.
    pub(crate) fn new(seed: u64, n: u32) -> Sim {
        let node = |pid| Node {
            machine: Machine::new(member(pid)),
            handles: BTreeMap::new(),
            queued: Vec::new(),
            running: Vec::new(),
            exports: Vec::new(),
            objects: BTreeMap::new(),
            pinned: Vec::new(),
            waiting: BTreeMap::new(),
        };
        let mut sim = Sim {
            rng: Rng(seed),
            nodes: (1..=n).map(|pid| (pid, node(pid))).collect(),
            wires: BTreeMap::new(),
            dead: BTreeSet::new(),
            unheard: Vec::new(),
            touched: BTreeMap::new(),
            values: BTreeMap::new(),
            puts_that_won: BTreeSet::new(),
            age: BTreeMap::new(),
            next: 0,
            woken: 0,
            passed_on: 0,
        };
        for pid in 2..=n {
            sim.with(HEAD, |m| m.join(member(pid)));
            while sim.deliver() {}
        }
        sim
    }

    fn node(&mut self, pid: ProcId) -> &mut Node {
        self.nodes.get_mut(&pid).unwrap()
    }

    /// A number that was not used before, for a waiter, a handle or a value.
    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does something with a machine and carries out what follows.
    fn with<R>(&mut self, pid: ProcId, act: impl FnOnce(&mut Machine<u64>) -> R) -> R {
        let result = act(&mut self.node(pid).machine);
        self.carry_out(pid);
        result
    }

    fn carry_out(&mut self, pid: ProcId) {
        for output in self.node(pid).machine.take_outputs() {
            match output {
                Output::Send(to, message) if to == pid => self.with(pid, |m| m.handle_message(pid, message)),
                Output::Send(to, message) => self.send(pid, to, message),
                Output::Wake(token, outcome) => self.wake(pid, token, outcome),
                Output::Deliver(call) => self.node(pid).queued.push(call),
                Output::Export(id) => self.node(pid).exports.push(id),
                Output::Left(gone) => {
                    assert!(
                        self.node(pid).machine.member(gone).is_none(),
                        "F6: {gone} is a member still"
                    );
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, from: ProcId, to: ProcId, message: Message) {
        if let Some(body) = body_of(&message) {
            for r in &body.refs {
                self.touched
                    .entry(r.id)
                    .or_default()
                    .extend([from, to, r.owner, r.id.whence]);
            }
        }
        if !self.dead.contains(&to) {
            self.wires.entry((from, to)).or_default().push_back(message);
        }
    }

    fn wake(&mut self, pid: ProcId, token: u64, outcome: Outcome) {
        self.woken += 1;
        let awaited = self.node(pid).waiting.remove(&token);
        let awaited = awaited.unwrap_or_else(|| panic!("waiter {token} of process {pid} is woken twice"));
        match awaited {
            Await::Call => {
                let allowed = match outcome.status {
                    Status::Value | Status::Error => true,
                    Status::Exited => self.dead.contains(&outcome.pid),
                    _ => false,
                };
                assert!(allowed, "a call ended with {outcome:?}");
                self.take_handles(pid, &outcome.body.refs);
            }
            Await::Op { op, handle, .. } => {
                let id = self.nodes[&pid].handles[&handle].target.id;
                match outcome.status {
                    Status::Yes if op == RefOp::Put => self.put_won(id),
                    Status::UnknownRef => self.check_may_be_unknown(id),
                    Status::Exited => assert!(self.dead.contains(&outcome.pid)),
                    _ => {}
                }
            }
            Await::Watch { handle, want, .. } => self.ended(pid, handle, want, outcome),
        }
    }

    fn put_won(&mut self, id: RefId) {
        assert!(self.puts_that_won.insert(id), "F52: two puts on {id:?} won");
    }

    fn check_may_be_unknown(&self, id: RefId) {
        let touched = self
            .touched
            .get(&id)
            .is_some_and(|pids| pids.iter().any(|p| self.dead.contains(p)));
        assert!(
            touched,
            "F46: {id:?} was freed while it was held, though none that had to do with it died"
        );
    }

    /// A wait on a reference has ended.
    fn ended(&mut self, pid: ProcId, handle: u64, want: Want, outcome: Outcome) {
        let RemoteRef { owner, id } = self.nodes[&pid].handles[&handle].target;
        match (outcome.status, want) {
            (Status::Exited, _) => {
                assert!(
                    self.dead.contains(&outcome.pid),
                    "F6: process {} lives",
                    outcome.pid
                );
            }
            (Status::UnknownRef, _) => self.check_may_be_unknown(id),
            (Status::Yes, Want::Ready) => {}
            (Status::Yes, Want::Value) => {
                let node = &self.nodes[&pid];
                let here = if owner == pid {
                    node.objects.get(&id).copied()
                } else {
                    node.handles[&handle].value
                };
                self.seen(
                    id,
                    here.unwrap_or_else(|| panic!("no Python object of process {pid} has {id:?}")),
                );
            }
            (Status::Value | Status::Error | Status::Cancelled, Want::Value) => {
                let value = (outcome.status, number(&outcome.body));
                self.seen(id, value);
                if owner != pid && self.rng.one_in(8) {
                    return self.with(pid, |m| m.restore(id, outcome));
                }
                self.take_handles(pid, &outcome.body.refs);
                self.node(pid).handles.get_mut(&handle).unwrap().value = Some(value);
            }
            other => panic!("a wait on {id:?} ended with {other:?}"),
        }
    }

    fn seen(&mut self, id: RefId, value: Value) {
        let first = *self.values.entry(id).or_insert(value);
        assert_eq!(first, value, "F52: {id:?} has two values");
    }

    fn take_handles(&mut self, pid: ProcId, refs: &[RemoteRef]) {
        for target in refs {
            let key = self.fresh();
            self.node(pid).handles.insert(
                key,
                Handle {
                    target: *target,
                    value: None,
                },
            );
        }
    }

    fn living(&self) -> Vec<ProcId> {
        self.nodes.keys().copied().collect()
    }

    fn any(&mut self) -> ProcId {
        let living = self.living();
        living[self.rng.below(living.len())]
    }

    fn handle(&mut self, pid: ProcId) -> Option<u64> {
        let n = self.nodes[&pid].handles.len();
        let at = self.rng.below(n);
        self.nodes[&pid].handles.keys().nth(at).copied()
    }

    /// Pickles some references: they are pinned, unless their value is here and would be pickled itself.
    fn pin_some(&mut self, pid: ProcId) -> Vec<RemoteRef> {
        let mut refs = Vec::new();
        for _ in 0..[0, 0, 1, 1, 2, 3][self.rng.below(6)] {
            let Some(handle) = self.handle(pid) else { break };
            let target = self.nodes[&pid].handles[&handle].target;
            if self.with(pid, |m| m.pin(target.id)) {
                refs.push(target);
            } else {
                self.watch(pid, handle, Want::Value);
                let waits = self.nodes[&pid]
                    .waiting
                    .values()
                    .any(|a| matches!(a, Await::Watch { handle: h, want: Want::Value, .. } if *h == handle));
                assert!(!waits, "a reference that cannot be passed on has its value here");
            }
        }
        self.passed_on += refs.len();
        refs
    }

    /// The references of a body that is sent or stored now: pickled just now, or a while ago.
    fn pinned(&mut self, pid: ProcId) -> Vec<RemoteRef> {
        match self.node(pid).pinned.pop() {
            Some(refs) if self.rng.one_in(2) => refs,
            Some(refs) => {
                self.node(pid).pinned.push(refs);
                self.pin_some(pid)
            }
            None => self.pin_some(pid),
        }
    }

    fn unpin(&mut self, pid: ProcId, refs: &[RemoteRef]) {
        self.with(pid, |m| m.release_refs(refs));
    }

    fn body(&mut self, refs: &[RemoteRef]) -> Body {
        let number = self.fresh();
        let large = self.rng.one_in(4);
        value_body(number, refs.to_vec(), large)
    }

    /// A body for the value of a reference.
    fn value_of(&mut self, id: RefId, refs: &[RemoteRef]) -> Body {
        let older: Vec<_> = refs
            .iter()
            .copied()
            .filter(|r| self.age[&r.id] < self.age[&id])
            .collect();
        self.body(&older)
    }

    /// Delivers one message of a random link; small ones may overtake those that are streamed.
    fn deliver(&mut self) -> bool {
        let links: Vec<_> = self
            .wires
            .iter()
            .filter(|(_, q)| !q.is_empty())
            .map(|(link, _)| *link)
            .collect();
        if links.is_empty() {
            return false;
        }
        let (from, to) = links[self.rng.below(links.len())];
        let overtake = self.rng.one_in(2);
        let queue = self.wires.get_mut(&(from, to)).unwrap();
        let at = if overtake {
            queue.iter().position(|m| !is_streamed(m)).unwrap_or(0)
        } else {
            0
        };
        let message = queue.remove(at).unwrap();
        if self.nodes.contains_key(&to) {
            self.with(to, |m| m.handle_message(from, message));
        }
        true
    }

    /// Makes one random step.
    pub(crate) fn step(&mut self, kills: bool) {
        let pid = self.any();
        match self.rng.below(if kills { 246 } else { 240 }) {
            0..70 => drop(self.deliver()),
            70..85 => self.call(pid),
            85..105 => self.begin(pid),
            105..120 => self.finish(pid),
            120..125 => {
                let refs = self.pin_some(pid);
                self.node(pid).pinned.push(refs);
            }
            125..135 => self.create(pid),
            135..145 => self.put(pid),
            145..165 => {
                let want = if self.rng.one_in(3) {
                    Want::Ready
                } else {
                    Want::Value
                };
                if let Some(handle) = self.handle(pid) {
                    self.watch(pid, handle, want);
                }
            }
            165..168 => self.unwatch(pid),
            168..170 => self.abandon(pid),
            170..200 => {
                if let Some(handle) = self.handle(pid) {
                    self.release(pid, handle);
                }
            }
            200..225 => self.tell(pid),
            225..232 => self.cancel(pid),
            232..240 => drop(self.export(pid)),
            _ => self.kill(pid),
        }
        if !self.unheard.is_empty() && self.rng.one_in(10) {
            self.head_hears();
        }
    }

    fn call(&mut self, pid: ProcId) {
        let to = self.any();
        if to == pid || self.nodes[&pid].machine.check_pid(to).is_err() {
            return;
        }
        let refs = self.pinned(pid);
        let body = self.body(&refs);
        let (id, mode) = match self.rng.below(5) {
            0 => (self.with(pid, |m| m.open_do(to, &refs)).unwrap(), CallMode::Do),
            1 => {
                let token = self.fresh();
                self.node(pid).waiting.insert(token, Await::Call);
                (
                    self.with(pid, |m| m.open_fetch(to, &refs, token)).unwrap(),
                    CallMode::Fetch,
                )
            }
            _ => {
                let id = self.with(pid, |m| m.open_future(to, &refs)).unwrap();
                self.made(pid, RemoteRef { owner: to, id });
                (id.id, CallMode::Future)
            }
        };
        let lane = 0;
        self.send(pid, to, Message::Call { id, mode, lane, body });
        self.unpin(pid, &refs);
    }

    fn made(&mut self, pid: ProcId, r: RemoteRef) {
        let age = self.fresh();
        self.age.insert(r.id, age);
        self.touched.entry(r.id).or_default().extend([pid, r.owner]);
        self.take_handles(pid, &[r]);
    }

    fn begin(&mut self, pid: ProcId) {
        let n = self.node(pid).queued.len();
        if n == 0 {
            return;
        }
        let at = self.rng.below(n);
        let call = self.node(pid).queued.remove(at);
        if self.with(pid, |m| m.begin(call.src, call.id)) {
            self.take_handles(pid, &call.body.refs);
            self.node(pid).running.push((call.src, call.id, call.mode));
        } else {
            self.unpin(pid, &call.body.refs);
        }
    }

    fn finish(&mut self, pid: ProcId) {
        let n = self.node(pid).running.len();
        if n == 0 {
            return;
        }
        let at = self.rng.below(n);
        let (src, id, mode) = self.node(pid).running.remove(at);
        let refs = self.pinned(pid);
        let status = if self.rng.one_in(5) {
            Status::Error
        } else {
            Status::Value
        };
        match mode {
            CallMode::Future => {
                let body = self.value_of(RefId { whence: src, id }, &refs);
                self.with(pid, |m| m.finish_future(src, id, status, body));
            }
            CallMode::Fetch => {
                let body = self.body(&refs);
                if self.with(pid, |m| m.finish(src, id, &body.refs)) {
                    self.send(
                        pid,
                        src,
                        Message::Result {
                            id,
                            status,
                            body: body.into(),
                        },
                    );
                }
            }
            CallMode::Do => drop(self.with(pid, |m| m.finish(src, id, &[]))),
        }
        self.unpin(pid, &refs);
    }

    fn create(&mut self, pid: ProcId) {
        let owner = self.any();
        if self.nodes[&pid].machine.check_pid(owner).is_ok() {
            let id = self.with(pid, |m| m.create_at(owner));
            self.made(pid, RemoteRef { owner, id });
        }
    }

    fn put(&mut self, pid: ProcId) {
        if let Some(handle) = self.handle(pid) {
            self.put_on(pid, handle);
        }
    }

    fn put_on(&mut self, pid: ProcId, handle: u64) {
        let target = self.nodes[&pid].handles[&handle].target;
        let refs = self.pinned(pid);
        let body = self.value_of(target.id, &refs);
        if target.owner != pid {
            self.operate(pid, handle, RefOp::Put, body);
            return self.unpin(pid, &refs);
        }
        let value = (Status::Value, number(&body));
        let won = if self.rng.one_in(2) {
            if !self.nodes[&pid].machine.known_ready(target.id) {
                self.node(pid).objects.insert(target.id, value);
            }
            self.with(pid, |m| m.put_local(target.id))
        } else {
            self.with(pid, |m| m.put(target.id, Status::Value, body))
        };
        if won {
            self.put_won(target.id);
            self.seen(target.id, value);
        }
        self.unpin(pid, &refs);
    }

    fn watch(&mut self, pid: ProcId, handle: u64, want: Want) {
        let id = self.nodes[&pid].handles[&handle].target.id;
        let token = self.fresh();
        match self.node(pid).machine.watch(id, want, token) {
            Watch::Now(outcome) => self.ended(pid, handle, want, outcome),
            Watch::Later(key) => drop(
                self.node(pid)
                    .waiting
                    .insert(token, Await::Watch { handle, want, key }),
            ),
        }
        self.carry_out(pid);
    }

    /// The waiters on references: token, handle and key.
    fn watches(&self, pid: ProcId) -> Vec<(u64, u64, u64)> {
        let watch = |(token, awaited): (&u64, &Await)| match awaited {
            Await::Watch { handle, key, .. } => Some((*token, *handle, *key)),
            _ => None,
        };
        self.nodes[&pid].waiting.iter().filter_map(watch).collect()
    }

    fn unwatch(&mut self, pid: ProcId) {
        let watches = self.watches(pid);
        if watches.is_empty() {
            return;
        }
        let (token, handle, key) = watches[self.rng.below(watches.len())];
        let id = self.nodes[&pid].handles[&handle].target.id;
        self.node(pid).waiting.remove(&token);
        self.with(pid, |m| m.unwatch(id, key));
    }

    /// Drops a handle, unless someone waits through it.
    fn release(&mut self, pid: ProcId, handle: u64) {
        let waits = |awaited: &Await| match awaited {
            Await::Call => false,
            Await::Op { handle: h, .. } | Await::Watch { handle: h, .. } => *h == handle,
        };
        if !self.nodes[&pid].waiting.values().any(waits) {
            let id = self.node(pid).handles.remove(&handle).unwrap().target.id;
            self.with(pid, |m| m.release(id));
        }
    }

    fn tell(&mut self, pid: ProcId) {
        for (owner, message) in self.node(pid).machine.take_deltas() {
            self.send(pid, owner, message);
        }
    }

    fn cancel(&mut self, pid: ProcId) {
        let Some(handle) = self.handle(pid) else { return };
        let target = self.nodes[&pid].handles[&handle].target;
        if target.owner == pid {
            self.with(pid, |m| m.cancel(target.id));
            return;
        }
        self.operate(pid, handle, RefOp::Cancel, Body::default());
    }

    /// Asks the owner for an operation.
    fn operate(&mut self, pid: ProcId, handle: u64, op: RefOp, body: Body) {
        let target = self.nodes[&pid].handles[&handle].target;
        let token = self.fresh();
        let Ok(req) = self.with(pid, |m| m.open_op(target, &body.refs, token)) else {
            return;
        };
        self.node(pid)
            .waiting
            .insert(token, Await::Op { op, handle, req });
        self.send(
            pid,
            target.owner,
            Message::RefOp {
                req,
                op,
                target: target.id,
                body,
            },
        );
    }

    /// Gives up on the answer to an operation.
    fn abandon(&mut self, pid: ProcId) {
        let op = |(token, awaited): (&u64, &Await)| match awaited {
            Await::Op { req, .. } => Some((*token, *req)),
            _ => None,
        };
        if let Some((token, req)) = self.nodes[&pid].waiting.iter().find_map(op) {
            self.node(pid).waiting.remove(&token);
            self.with(pid, |m| m.abandon(req));
        }
    }

    fn export(&mut self, pid: ProcId) -> bool {
        let Some(id) = self.node(pid).exports.pop() else {
            return false;
        };
        let (status, number) = self.nodes[&pid].objects[&id];
        let refs = self.pinned(pid);
        let older = self.value_of(id, &refs).refs;
        let body = value_body(number, older, self.rng.one_in(4));
        self.with(pid, |m| m.exported(id, status, body));
        self.unpin(pid, &refs);
        true
    }

    /// Kills a process; some of what is under way from it is lost, the rest comes late.
    fn kill(&mut self, pid: ProcId) {
        if pid == HEAD {
            return;
        }
        self.nodes.remove(&pid);
        self.dead.insert(pid);
        self.unheard.push(pid);
        self.wires.retain(|(_, to), _| *to != pid);
        for (_, queue) in self.wires.iter_mut().filter(|((from, _), _)| *from == pid) {
            queue.truncate((self.rng.next() % (queue.len() as u64 + 1)) as usize);
        }
    }

    fn head_hears(&mut self) {
        if let Some(pid) = self.unheard.pop() {
            self.with(HEAD, |m| m.leave(pid, "killed"));
        }
    }

    /// Runs what is under way to its end: no message is on a link, no call runs.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while !self.unheard.is_empty() {
                self.head_hears();
            }
            while self.deliver() {
                moved = true;
            }
            for pid in self.living() {
                while !self.node(pid).queued.is_empty() {
                    self.begin(pid);
                    moved = true;
                }
                while !self.node(pid).running.is_empty() {
                    self.finish(pid);
                    moved = true;
                }
                while self.export(pid) {
                    moved = true;
                }
                if self.node(pid).machine.deltas_waiting() > 0 {
                    self.tell(pid);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// Waits through every handle of every process.
    fn watch_all(&mut self, want: Want) {
        for pid in self.living() {
            let handles: Vec<u64> = self.nodes[&pid].handles.keys().copied().collect();
            handles
                .into_iter()
                .for_each(|handle| self.watch(pid, handle, want));
        }
        self.settle();
    }

    /// Sets whatever is referred to, also by the values that this makes known.
    fn put_all(&mut self) {
        let mut done = BTreeSet::new();
        loop {
            let mut new = Vec::new();
            for (pid, node) in &self.nodes {
                for (handle, Handle { target, .. }) in &node.handles {
                    if done.insert((*pid, *target)) {
                        new.push((*pid, *handle));
                    }
                }
            }
            if new.is_empty() {
                return;
            }
            for (pid, handle) in new {
                self.put_on(pid, handle);
            }
            self.settle();
        }
    }

    /// Drops every handle of every process.
    fn release_all(&mut self) {
        for pid in self.living() {
            while let Some(refs) = self.node(pid).pinned.pop() {
                self.unpin(pid, &refs);
            }
            let handles: Vec<u64> = self.nodes[&pid].handles.keys().copied().collect();
            handles.into_iter().for_each(|handle| self.release(pid, handle));
        }
        self.settle();
    }

    /// Ends the simulation: whatever is held gets a value, everybody is woken, and in the end nothing is left.
    pub(crate) fn finish_all(mut self) -> Sim {
        self.settle();
        self.watch_all(Want::Ready);
        self.put_all();
        self.watch_all(Want::Value);
        self.put_all();
        for (pid, node) in &self.nodes {
            assert!(
                node.waiting.is_empty(),
                "D2: process {pid} waits for ever: {:?}",
                node.waiting
            );
        }
        while self
            .nodes
            .values()
            .any(|node| !node.handles.is_empty() || !node.pinned.is_empty())
        {
            self.release_all();
        }
        for (pid, node) in &self.nodes {
            assert_eq!(
                node.machine.counts(),
                Counts::default(),
                "F46: process {pid} keeps something"
            );
        }
        self
    }
}

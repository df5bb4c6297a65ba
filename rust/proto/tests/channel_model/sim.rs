//! Owners and clients of channels without sockets: a seeded choice delivers messages, ends times and kills.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pydist_proto::body::{Body, Segment};
use pydist_proto::frame::INLINE_MAX;
use pydist_proto::ids::{HEAD, ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Counts, Machine, Output};
use pydist_proto::message::{CallMode, Member, Message, RefOp, Status};
use pydist_proto::record::Outcome;

use crate::items::{Items, Told};
use crate::rng::Rng;

/// A capacity at which there is credit.
const ROOMY: u64 = 24;
/// A capacity at which answers are held back, of channels that are almost full from the start.
const TIGHT: u64 = 64;

/// What may happen besides puts, takes and passing on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Calm,
    Timeouts,
    Deaths,
}

/// A request that has not ended.
#[derive(Clone, Copy, Debug)]
struct Request {
    op: RefOp,
    target: RemoteRef,
    handle: u64,
    req: u64,
    /// The item, where it puts one.
    item: u64,
    /// Its time is over, and its owner is asked whether it was put.
    withdrawn: bool,
}

/// An item that has come and is not confirmed yet.
#[derive(Debug)]
struct Received {
    target: RemoteRef,
    req: u64,
    item: u64,
}

struct Node {
    machine: Machine<u64>,
    handles: BTreeMap<u64, RemoteRef>,
    waiting: BTreeMap<u64, Request>,
    received: Vec<Received>,
}

/// A seeded cluster.
pub(crate) struct Sim {
    rng: Rng,
    mode: Mode,
    nodes: BTreeMap<ProcId, Node>,
    wires: BTreeMap<(ProcId, ProcId), VecDeque<Message>>,
    dead: BTreeSet<ProcId>,
    unheard: Vec<ProcId>,
    items: Items,
    /// The item that each request to take has brought.
    brought: BTreeMap<(ProcId, u64), u64>,
    /// Items that were put on credit and have not come to their owner.
    on_credit: BTreeSet<u64>,
    /// Channels that were freed though someone had them from a process that died.
    freed: BTreeSet<RefId>,
    /// When each channel was made: items name older ones only, since counting frees no cycles.
    age: BTreeMap<RefId, u64>,
    next: u64,
    timed_out: usize,
    pub(crate) credited: usize,
}

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

fn size(message: &Message) -> usize {
    match message {
        Message::RefOp { body, .. } | Message::Call { body, .. } => body.size(),
        Message::Result { body, .. } => body.size(),
        _ => 0,
    }
}

fn number(body: &Body) -> u64 {
    let bytes = body.segments.first().map(Segment::as_slice).unwrap_or_default();
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

impl Sim {
    pub(crate) fn new(seed: u64, n: u32, mode: Mode) -> Sim {
        let node = |pid| Node {
            machine: Machine::new(member(pid)),
            handles: BTreeMap::new(),
            waiting: BTreeMap::new(),
            received: Vec::new(),
        };
        let mut sim = Sim {
            rng: Rng(seed),
            mode,
            nodes: (1..=n).map(|pid| (pid, node(pid))).collect(),
            wires: BTreeMap::new(),
            dead: BTreeSet::new(),
            unheard: Vec::new(),
            items: Items::default(),
            brought: BTreeMap::new(),
            on_credit: BTreeSet::new(),
            freed: BTreeSet::new(),
            age: BTreeMap::new(),
            next: 0,
            timed_out: 0,
            credited: 0,
        };
        for pid in 2..=n {
            sim.with(HEAD, |m| m.join(member(pid)));
            while sim.deliver() {}
        }
        for _ in 0..1 + sim.rng.below(2) {
            let pid = sim.any();
            sim.create(pid);
        }
        sim
    }

    fn node(&mut self, pid: ProcId) -> &mut Node {
        self.nodes.get_mut(&pid).unwrap()
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn any(&mut self) -> ProcId {
        let at = self.rng.below(self.nodes.len());
        *self.nodes.keys().nth(at).unwrap()
    }

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
                Output::Deliver(call) => {
                    assert!(self.with(pid, |m| m.begin(call.src, call.id)));
                    call.body.refs.iter().for_each(|target| self.hold(pid, *target));
                    self.with(pid, |m| m.finish(call.src, call.id, &[]));
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, from: ProcId, to: ProcId, message: Message) {
        if !self.dead.contains(&to) {
            self.wires.entry((from, to)).or_default().push_back(message);
        }
    }

    /// A Python object refers to a channel, whose handle the machine has counted.
    fn hold(&mut self, pid: ProcId, target: RemoteRef) {
        let handle = self.fresh();
        self.node(pid).handles.insert(handle, target);
    }

    fn wake(&mut self, pid: ProcId, token: u64, outcome: Outcome) {
        let request = self.node(pid).waiting.remove(&token);
        let request = request.unwrap_or_else(|| panic!("waiter {token} of process {pid} is woken twice"));
        let (op, id) = (request.op, request.target.id);
        match outcome.status {
            Status::Exited => assert!(self.dead.contains(&outcome.pid), "F6: {} lives", outcome.pid),
            Status::UnknownRef => {
                assert!(!self.dead.is_empty(), "F46: {id:?} is freed while it is held");
                self.freed.insert(id);
            }
            Status::Cancelled => assert!(request.withdrawn),
            Status::Closed | Status::Yes | Status::No => {}
            Status::Value => outcome.body.refs.iter().for_each(|r| self.hold(pid, *r)),
            other => panic!("{op:?} ended with {other:?}"),
        }
        if outcome.status != Status::Value {
            self.with(pid, |m| m.release_refs(&outcome.body.refs));
        }
        match (op, outcome.status) {
            (RefOp::ChannelCreate, Status::Yes) => self.hold(pid, request.target),
            (RefOp::ChannelCreate, _) => self.with(pid, |m| m.release(id)),
            (RefOp::ChannelPut, Status::Yes) => self.items.told(request.item, Told::Put),
            (RefOp::ChannelPut, Status::Exited) => self.items.told(request.item, Told::Unknown),
            (RefOp::ChannelPut, _) => self.items.told(request.item, Told::NotPut),
            (RefOp::ChannelTake, Status::Value) => {
                let item = number(&outcome.body);
                let ordered = self.mode == Mode::Calm;
                self.items.took(item, id, pid, ordered);
                self.brought.insert((pid, request.req), item);
                let (target, req) = (request.target, request.req);
                self.node(pid).received.push(Received { target, req, item });
            }
            _ => {}
        }
    }

    /// Delivers one message of a random link; small ones may overtake those that are streamed, except what takes a
    /// put back, which is sent after it.
    fn deliver(&mut self) -> bool {
        let full = self.wires.iter().filter(|(_, queue)| !queue.is_empty());
        let links: Vec<_> = full.map(|(link, _)| *link).collect();
        if links.is_empty() {
            return false;
        }
        let (from, to) = links[self.rng.below(links.len())];
        let overtake = self.rng.one_in(2);
        let queue = self.wires.get_mut(&(from, to)).unwrap();
        let mut at = 0;
        if overtake {
            at = queue.iter().position(|m| size(m) <= INLINE_MAX).unwrap_or(0);
        }
        if let Some(Message::Withdraw { .. } | Message::Refs { .. } | Message::Confirm { .. }) = queue.get(at)
            && self.mode != Mode::Calm
        {
            at = 0;
        }
        let message = queue.remove(at).unwrap();
        if self.nodes.contains_key(&to) {
            if let Message::Confirm { taken } = &message
                && self.nodes[&to].machine.member(from).is_some()
            {
                let brought = taken.iter().map(|(_, req)| self.brought[&(from, *req)]);
                brought.for_each(|item| self.items.confirmed(item));
            }
            if let Message::RefOp {
                op: RefOp::ChannelPutOnCredit,
                body,
                ..
            } = &message
            {
                self.on_credit.remove(&number(body));
            }
            self.with(to, |m| m.handle_message(from, message));
        }
        true
    }

    /// Makes one random step.
    pub(crate) fn step(&mut self) {
        let pid = self.any();
        match self.rng.below(200) {
            0..70 => drop(self.deliver()),
            70..72 => self.create(pid),
            72..98 => self.ask(pid, RefOp::ChannelPut),
            98..120 => self.ask(pid, RefOp::ChannelTake),
            120..125 => {
                let ops = [RefOp::ChannelFetch, RefOp::ChannelWait, RefOp::ChannelIsReady];
                let op = ops[self.rng.below(3)];
                self.ask(pid, op);
            }
            125..126 => self.ask(pid, RefOp::ChannelClose),
            126..140 => drop(self.confirm(pid)),
            140..155 => self.tell(pid),
            155..165 => self.pass_on(pid),
            165..172 => self.release(pid),
            172..190 if self.mode != Mode::Calm => self.time_out(pid),
            190..193 if self.mode != Mode::Calm => self.give_back(pid),
            193..196 if self.mode == Mode::Deaths => self.kill(pid),
            196..198 => self.fill(pid),
            198..199 => drop(self.with(pid, |m| m.return_idle_credit())),
            199..200 => self.with(pid, |m| m.answer_held()),
            _ => self.head_hears(),
        }
    }

    fn create(&mut self, pid: ProcId) {
        let owner = self.any();
        let capacity = [0, 1, 1, 2, 3, ROOMY, ROOMY, TIGHT, u64::MAX][self.rng.below(9)];
        let age = self.fresh();
        if owner == pid {
            let id = self.with(pid, |m| m.create_channel(capacity as usize));
            self.age.insert(id, age);
            let target = RemoteRef { owner, id };
            self.hold(pid, target);
            let handle = self.next;
            for _ in 0..if capacity == TIGHT { TIGHT - 12 } else { 0 } {
                self.ask_through(pid, RefOp::ChannelPut, handle, target);
            }
        } else {
            let token = self.fresh();
            let Ok((id, req)) = self.node(pid).machine.open_channel(owner, capacity, token) else {
                return;
            };
            let target = RemoteRef { owner, id };
            let request = Request {
                op: RefOp::ChannelCreate,
                target,
                handle: 0,
                req,
                item: 0,
                withdrawn: false,
            };
            self.age.insert(id, age);
            self.node(pid).waiting.insert(token, request);
            self.carry_out(pid);
        }
    }

    fn handle(&mut self, pid: ProcId) -> Option<(u64, RemoteRef)> {
        let n = self.nodes[&pid].handles.len();
        let at = self.rng.below(n);
        let handle = self.nodes[&pid].handles.iter().nth(at);
        handle.map(|(handle, target)| (*handle, *target))
    }

    /// Asks a channel, of this process or of another one.
    fn ask(&mut self, pid: ProcId, op: RefOp) {
        if let Some((handle, target)) = self.handle(pid) {
            self.ask_through(pid, op, handle, target);
        }
    }

    fn ask_through(&mut self, pid: ProcId, op: RefOp, handle: u64, target: RemoteRef) {
        let token = self.fresh();
        let mut body = Body::default();
        if op == RefOp::ChannelPut {
            body = self.item(pid, token, target.id);
            self.items.put(token, target.id, pid);
        }
        let refs = body.refs.clone();
        if op == RefOp::ChannelPut && self.may_use_credit(pid, target, &body) {
            return self.put_on_credit(pid, token, target, body);
        }
        let mut request = Request {
            op,
            target,
            handle,
            req: 0,
            item: token,
            withdrawn: false,
        };
        if target.owner == pid {
            // The number is known only once the answer may have come.
            request.req = u64::MAX;
            self.node(pid).waiting.insert(token, request);
            let req = self.node(pid).machine.ask_own_channel(target.id, op, body, token);
            if let Some(request) = self.node(pid).waiting.get_mut(&token) {
                request.req = req;
            }
            self.carry_out(pid);
        } else if let Ok(req) = self.with(pid, |m| m.open_op(target, &refs, token)) {
            request.req = req;
            self.node(pid).waiting.insert(token, request);
            let target_id = target.id;
            let many = op == RefOp::ChannelPut && self.rng.one_in(2);
            let message = Message::RefOp {
                req,
                op: if many { RefOp::ChannelPutOfMany } else { op },
                target: target_id,
                body,
            };
            self.send(pid, target.owner, message);
        } else if op == RefOp::ChannelPut {
            self.items.told(token, Told::NotPut);
        }
        self.with(pid, |m| m.release_refs(&refs));
    }

    /// Puts many items into one channel.
    fn fill(&mut self, pid: ProcId) {
        if let Some((handle, target)) = self.handle(pid) {
            for _ in 0..8 {
                self.ask_through(pid, RefOp::ChannelPut, handle, target);
            }
        }
    }

    /// Whether an item can be put on credit where there is some: it is small, and its putter waits for no other.
    fn may_use_credit(&mut self, pid: ProcId, target: RemoteRef, body: &Body) -> bool {
        let puts = |request: &Request| request.op == RefOp::ChannelPut && request.target == target;
        let waits = self.nodes[&pid].waiting.values().any(puts);
        let may = body.size() <= INLINE_MAX && !waits && !self.rng.one_in(4);
        may && self.with(pid, |m| m.open_put_on_credit(target, &body.refs))
    }

    fn put_on_credit(&mut self, pid: ProcId, n: u64, target: RemoteRef, body: Body) {
        let (req, op, refs) = (0, RefOp::ChannelPutOnCredit, body.refs.clone());
        self.items.told(n, Told::Put);
        self.on_credit.insert(n);
        self.credited += 1;
        let message = Message::RefOp {
            req,
            op,
            target: target.id,
            body,
        };
        self.send(pid, target.owner, message);
        self.with(pid, |m| m.release_refs(&refs));
    }

    /// An item, which may name a channel that is older than the one it is put into.
    fn item(&mut self, pid: ProcId, n: u64, into: RefId) -> Body {
        let mut refs = Vec::new();
        if self.rng.one_in(4)
            && let Some((_, target)) = self.handle(pid)
            && self.age[&target.id] < self.age[&into]
            && self.with(pid, |m| m.pin(target.id))
        {
            refs.push(target);
        }
        let large = self.mode != Mode::Calm && self.rng.one_in(4);
        let mut bytes = vec![0; if large { INLINE_MAX + 1 } else { 8 }];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        let segments = vec![Segment::Heap(bytes)];
        Body { refs, segments }
    }

    /// The taker has its item in its hands.
    fn confirm(&mut self, pid: ProcId) -> bool {
        let n = self.nodes[&pid].received.len();
        if n == 0 {
            return false;
        }
        let at = self.rng.below(n);
        let received = self.node(pid).received.remove(at);
        if received.target.owner == pid {
            self.items.confirmed(received.item);
        }
        self.with(pid, |m| m.confirm(received.target, received.req));
        true
    }

    /// The taker was interrupted after its item had come.
    fn give_back(&mut self, pid: ProcId) {
        if let Some(received) = self.node(pid).received.pop() {
            self.items.gave_back(received.item, pid);
            self.with(pid, |m| m.give_item_back(received.target, received.req));
        }
    }

    /// The time of a request is over.
    fn time_out(&mut self, pid: ProcId) {
        let n = self.nodes[&pid].waiting.len();
        let at = self.rng.below(n);
        let Some((token, request)) = self.nodes[&pid].waiting.iter().nth(at).map(|(t, r)| (*t, *r)) else {
            return;
        };
        let Request { op, target, req, .. } = request;
        match op {
            RefOp::ChannelPut if !request.withdrawn => {
                self.node(pid).waiting.get_mut(&token).unwrap().withdrawn = true;
                self.with(pid, |m| m.withdraw_op(target, req));
            }
            RefOp::ChannelPut | RefOp::ChannelTake | RefOp::ChannelFetch | RefOp::ChannelWait => {
                self.timed_out += 1;
                self.node(pid).waiting.remove(&token);
                assert!(self.with(pid, |m| m.unwant(target, req)), "it waits");
                if op == RefOp::ChannelPut {
                    self.items.told(request.item, Told::Unknown);
                }
            }
            _ => {}
        }
    }

    fn tell(&mut self, pid: ProcId) {
        for (owner, message) in self.node(pid).machine.take_deltas() {
            self.send(pid, owner, message);
        }
    }

    /// Sends a reference to another process.
    fn pass_on(&mut self, pid: ProcId) {
        let to = self.any();
        let Some((_, target)) = self.handle(pid) else {
            return;
        };
        if to == pid || self.nodes[&pid].machine.check_pid(to).is_err() {
            return;
        }
        if !self.with(pid, |m| m.pin(target.id)) {
            return;
        }
        let refs = vec![target];
        let id = self.with(pid, |m| m.open_do(to, &refs)).unwrap();
        let (mode, segments) = (CallMode::Do, Vec::new());
        let body = Body {
            refs: refs.clone(),
            segments,
        };
        self.send(
            pid,
            to,
            Message::Call {
                id,
                mode,
                lane: 0,
                body,
            },
        );
        self.with(pid, |m| m.release_refs(&refs));
    }

    /// Drops a handle, unless someone waits through it.
    fn release(&mut self, pid: ProcId) {
        if let Some((handle, _)) = self.handle(pid) {
            self.release_handle(pid, handle);
        }
    }

    fn release_handle(&mut self, pid: ProcId, handle: u64) {
        let mut waiting = self.nodes[&pid].waiting.values();
        if waiting.all(|request| request.handle != handle) {
            let target = self.node(pid).handles.remove(&handle).unwrap();
            self.with(pid, |m| m.release(target.id));
        }
    }

    /// Kills a process; some of what is under way from it is lost, the rest comes late.
    fn kill(&mut self, pid: ProcId) {
        if pid == HEAD {
            return;
        }
        self.nodes.remove(&pid);
        self.dead.insert(pid);
        self.unheard.push(pid);
        let on_credit = std::mem::take(&mut self.on_credit);
        self.on_credit = self.items.forget_putter(pid, on_credit);
        self.wires.retain(|(_, to), _| *to != pid);
        let rng = &mut self.rng;
        for (_, queue) in self.wires.iter_mut().filter(|((from, _), _)| *from == pid) {
            queue.truncate(rng.below(queue.len() + 1));
        }
    }

    fn head_hears(&mut self) {
        if let Some(pid) = self.unheard.pop() {
            self.with(HEAD, |m| m.leave(pid, "killed"));
        }
    }

    /// Delivers all that is under way, and confirms all that has come.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            while !self.unheard.is_empty() {
                self.head_hears();
            }
            while self.deliver() {
                moved = true;
            }
            let living: Vec<ProcId> = self.nodes.keys().copied().collect();
            for pid in living {
                self.with(pid, |m| m.answer_held());
                while self.confirm(pid) {
                    moved = true;
                }
                if self.nodes[&pid].machine.deltas_waiting() > 0 {
                    self.tell(pid);
                    moved = true;
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// The handles of all processes, one for each channel.
    fn one_handle_each(&self) -> BTreeMap<RefId, (ProcId, u64, RemoteRef)> {
        let mut found = BTreeMap::new();
        for (pid, node) in &self.nodes {
            for (handle, target) in &node.handles {
                found.entry(target.id).or_insert((*pid, *handle, *target));
            }
        }
        found
    }

    /// Closes and empties every channel that somebody has, also those that this brings to light.
    fn drain_all(&mut self) -> BTreeSet<RefId> {
        let mut drained = BTreeSet::new();
        loop {
            let left = self.one_handle_each().into_iter();
            let Some((id, (pid, handle, target))) = left.into_iter().find(|(id, _)| !drained.contains(id))
            else {
                return drained;
            };
            drained.insert(id);
            self.ask_through(pid, RefOp::ChannelClose, handle, target);
            self.settle();
            loop {
                let before = self.items.taken;
                self.ask_through(pid, RefOp::ChannelTake, handle, target);
                self.settle();
                if self.items.taken == before {
                    break;
                }
            }
        }
    }

    /// Ends the simulation: every wait ends, every item is accounted for, and in the end nothing is left.
    ///
    /// Returns how many items were taken, how many requests timed out, how many items were sent again, and how many
    /// were put on credit.
    pub(crate) fn finish(mut self) -> [usize; 4] {
        self.settle();
        let held: BTreeSet<RefId> = self.one_handle_each().into_keys().collect();
        let mut drained = self.drain_all();
        for (pid, node) in &self.nodes {
            let waiting = &node.waiting;
            assert!(
                waiting.is_empty(),
                "D2: process {pid} waits for ever: {waiting:?}"
            );
        }
        // What was in a channel that was freed, or whose owner is dead, went with it.
        let owners: BTreeMap<RefId, ProcId> = self
            .one_handle_each()
            .into_iter()
            .map(|(id, (.., r))| (id, r.owner))
            .collect();
        drained.retain(|id| {
            let owned = self.nodes.contains_key(&owners[id]);
            owned && held.contains(id) && !self.freed.contains(id)
        });
        let living: BTreeSet<ProcId> = self.nodes.keys().copied().collect();
        self.items.check(&drained, &living);
        while let Some((_, (pid, handle, _))) = self.one_handle_each().pop_first() {
            self.release_handle(pid, handle);
            self.settle();
        }
        for (pid, node) in &self.nodes {
            let counts = node.machine.counts();
            assert_eq!(counts, Counts::default(), "F46: process {pid} keeps something");
        }
        let living: Vec<ProcId> = self.nodes.keys().copied().collect();
        for pid in living {
            let credit = self.with(pid, |m| m.return_idle_credit());
            assert!(!credit, "process {pid} keeps credit");
        }
        [
            self.items.taken,
            self.timed_out,
            self.items.redelivered,
            self.credited,
        ]
    }
}

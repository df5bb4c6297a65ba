//! Short histories in every order in which their messages can be delivered (F46, F51, F52).
//!
//! A history is run again and again; each time another choice is made at the last point that has one left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use pydist_proto::body::{Body, Segment};
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Counts, Machine, Output, Watch};
use pydist_proto::message::{CallMode, Member, Message, RefOp, Status};
use pydist_proto::record::{Outcome, Want};

/// The choices of one run: those of the run before up to the last that had another option, then the first of each.
#[derive(Default)]
struct Choices {
    made: Vec<(usize, usize)>,
    at: usize,
}

impl Choices {
    fn choose(&mut self, options: usize) -> usize {
        if self.at == self.made.len() {
            self.made.push((0, options));
        }
        let (choice, known) = self.made[self.at];
        assert_eq!(known, options, "a run is repeated");
        self.at += 1;
        choice
    }

    /// Goes on to the next run; false after the last.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((choice, options)) = self.made.pop() {
            if choice + 1 < options {
                self.made.push((choice + 1, options));
                return true;
            }
        }
        false
    }
}

/// What a process does, at any time after what it did before.
#[derive(Clone, Copy)]
enum Act {
    Now(fn(&mut World, ProcId)),
    /// Once all that it has asked for so far has ended.
    Then(fn(&mut World, ProcId)),
}

use Act::{Now, Then};

struct World {
    machines: BTreeMap<ProcId, Machine<u32>>,
    wires: BTreeMap<(ProcId, ProcId), VecDeque<Message>>,
    acts: BTreeMap<ProcId, VecDeque<Act>>,
    /// The waiters that have not been woken.
    waiting: BTreeSet<(ProcId, u32)>,
    woken: BTreeMap<(ProcId, u32), Outcome>,
    /// Calls that have arrived: the references that their bodies name have a handle there.
    arrived: BTreeSet<ProcId>,
    target: RemoteRef,
    /// The numbers of requests, by the numbers of their waiters.
    reqs: BTreeMap<u32, u64>,
    seen_owned: bool,
    /// Somebody fetches: who has the value gives its hold back, and keeps the handle.
    fetches: bool,
}

const OWNER: ProcId = 1;
/// Who makes the reference.
const MAKER: ProcId = 2;

impl World {
    fn new(acts: &[(ProcId, &[Act])]) -> World {
        let member = |pid| Member {
            pid,
            ..Member::default()
        };
        let machine = |me| {
            let mut machine = Machine::new(member(me));
            (1..=4).for_each(|pid| machine.join(member(pid)));
            machine.take_outputs();
            (me, machine)
        };
        let acts = acts
            .iter()
            .map(|(pid, acts)| (*pid, acts.iter().copied().collect()));
        World {
            machines: (1..=4).map(machine).collect(),
            wires: BTreeMap::new(),
            acts: acts.collect(),
            waiting: BTreeSet::new(),
            woken: BTreeMap::new(),
            arrived: BTreeSet::new(),
            target: RemoteRef {
                owner: OWNER,
                id: RefId { whence: MAKER, id: 1 },
            },
            reqs: BTreeMap::new(),
            seen_owned: false,
            fetches: false,
        }
    }

    fn with<R>(&mut self, pid: ProcId, act: impl FnOnce(&mut Machine<u32>) -> R) -> R {
        let result = act(self.machines.get_mut(&pid).unwrap());
        self.carry_out(pid);
        result
    }

    fn carry_out(&mut self, pid: ProcId) {
        for output in self.machines.get_mut(&pid).unwrap().take_outputs() {
            match output {
                Output::Send(to, message) => self.send(pid, to, message),
                Output::Wake(waiter, outcome) => self.wake(pid, waiter, outcome),
                Output::Deliver(call) => {
                    self.arrived.insert(pid);
                    let machine = self.machines.get_mut(&pid).unwrap();
                    assert!(machine.begin(call.src, call.id));
                    machine.finish(call.src, call.id, &[]);
                    self.carry_out(pid);
                }
                _ => {}
            }
        }
    }

    fn wake(&mut self, pid: ProcId, waiter: u32, outcome: Outcome) {
        self.waiting.remove(&(pid, waiter));
        let twice = self.woken.insert((pid, waiter), outcome);
        assert!(twice.is_none(), "{waiter} of {pid} is woken twice");
    }

    fn send(&mut self, from: ProcId, to: ProcId, message: Message) {
        self.wires.entry((from, to)).or_default().push_back(message);
    }

    /// Sends the reference to another process in the arguments of a call.
    fn pass_on(&mut self, pid: ProcId, to: ProcId) {
        let refs = vec![self.target];
        let id = self.target.id;
        let (call, body) = self.with(pid, |m| {
            assert!(m.pin(id));
            let body = Body {
                refs: refs.clone(),
                segments: Vec::new(),
            };
            (m.open_do(to, &refs).unwrap(), body)
        });
        let mode = CallMode::Do;
        self.send(
            pid,
            to,
            Message::Call {
                id: call,
                mode,
                lane: 0,
                body,
            },
        );
        self.with(pid, |m| m.release_refs(&refs));
    }

    fn drop_handle(&mut self, pid: ProcId) {
        let id = self.target.id;
        self.with(pid, |m| m.release(id));
    }

    fn tell(&mut self, pid: ProcId) {
        let told = self.machines.get_mut(&pid).unwrap().take_deltas();
        told.into_iter()
            .for_each(|(to, message)| self.send(pid, to, message));
    }

    fn ask(&mut self, pid: ProcId, op: RefOp, waiter: u32, body: Body) {
        let target = self.target;
        let req = self.with(pid, |m| m.open_op(target, &[], waiter)).unwrap();
        self.waiting.insert((pid, waiter));
        self.reqs.insert(waiter, req);
        let target = target.id;
        let message = Message::RefOp {
            req,
            op,
            target,
            body,
        };
        self.send(pid, OWNER, message);
    }

    /// Who may do something next: a process whose turn has come, one that has counts to tell, or a link.
    fn options(&self) -> Vec<Next> {
        let acts = self.acts.iter().filter(|(pid, acts)| {
            let starts = **pid == MAKER || self.arrived.contains(pid);
            let waits = self.waiting.iter().any(|(p, _)| p == *pid);
            starts && acts.front().is_some_and(|act| matches!(act, Now(_)) || !waits)
        });
        let telling = self.machines.iter().filter(|(_, m)| m.deltas_waiting() > 0);
        let full = self.wires.iter().filter(|(_, queue)| !queue.is_empty());
        let acts = acts.map(|(pid, _)| Next::Act(*pid));
        let links = full.map(|(link, _)| Next::Deliver(*link));
        acts.chain(telling.map(|(pid, _)| Next::Tell(*pid)))
            .chain(links)
            .collect()
    }

    fn go(&mut self, next: Next) {
        match next {
            Next::Act(pid) => match self.acts.get_mut(&pid).unwrap().pop_front().unwrap() {
                Now(act) | Then(act) => act(self, pid),
            },
            Next::Tell(pid) => self.tell(pid),
            Next::Deliver((from, to)) => {
                let message = self.wires.get_mut(&(from, to)).unwrap().pop_front().unwrap();
                self.with(to, |m| m.handle_message(from, message));
            }
        }
    }

    /// Waits for the value of the reference.
    fn fetch(&mut self, pid: ProcId, waiter: u32) {
        let id = self.target.id;
        self.fetches = true;
        self.waiting.insert((pid, waiter));
        if let Watch::Now(outcome) = self.with(pid, |m| m.watch(id, Want::Value, waiter)) {
            self.wake(pid, waiter, outcome);
        }
    }

    /// The time of a request is over.
    fn undo(&mut self, pid: ProcId, waiter: u32) {
        let (target, req) = (self.target, self.reqs[&waiter]);
        if self.with(pid, |m| m.unwant(target, req)) {
            self.waiting.remove(&(pid, waiter));
        }
    }

    fn withdraw(&mut self, pid: ProcId, waiter: u32) {
        let (target, req) = (self.target, self.reqs[&waiter]);
        self.with(pid, |m| m.withdraw_op(target, req));
    }

    fn told(&self, pid: ProcId, waiter: u32) -> Option<(Status, Option<u8>)> {
        let outcome = self.woken.get(&(pid, waiter))?;
        let segment = outcome.body.segments.first().map(Segment::as_slice);
        let byte = segment.and_then(|bytes| bytes.first()).copied();
        Some((outcome.status, byte))
    }

    /// While some process has a handle, or one is on its way, the owner keeps the reference.
    fn check_kept(&mut self) {
        let owned = self.machines[&OWNER].counts().refs_owned == 1;
        self.seen_owned |= owned;
        let names = |message: &Message| match message {
            Message::Call { body, .. } => !body.refs.is_empty(),
            _ => false,
        };
        let on_its_way = self.wires.values().flatten().any(names);
        let held = self
            .machines
            .iter()
            .any(|(pid, m)| *pid != OWNER && m.counts().refs_held > 0);
        if self.seen_owned && !self.fetches && (on_its_way || held) {
            assert!(owned, "F46: the owner has freed what is held or on its way");
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Next {
    Act(ProcId),
    Tell(ProcId),
    Deliver((ProcId, ProcId)),
}

impl Next {
    /// Whose state it changes.
    fn process(self) -> ProcId {
        match self {
            Next::Act(pid) | Next::Tell(pid) | Next::Deliver((_, pid)) => pid,
        }
    }
}

/// The last step, and what could have been done in its place.
type Last = Option<(Next, Vec<Next>)>;

/// Whether a step is to be tried after the last one. Steps of two processes that could be done in either order
/// have the same effect in both: the process of the lower number goes first then, so that an owner frees as early
/// as it can.
fn is_new(next: Next, last: &Last) -> bool {
    last.as_ref()
        .is_none_or(|(step, options)| next.process() >= step.process() || !options.contains(&next))
}

/// Runs a history in every order that makes a difference; returns how many there are.
fn explore(acts: &[(ProcId, &[Act])], end: impl Fn(&World)) -> usize {
    let mut choices = Choices::default();
    let mut orders = 0;
    loop {
        let mut world = World::new(acts);
        let mut last: Last = None;
        let over = loop {
            let options = world.options();
            let new: Vec<Next> = options
                .iter()
                .copied()
                .filter(|next| is_new(*next, &last))
                .collect();
            if new.is_empty() {
                break options.is_empty();
            }
            let next = new[choices.choose(new.len())];
            world.go(next);
            world.check_kept();
            last = Some((next, options));
        };
        if !over {
            // The same as another order.
            if choices.advance() {
                continue;
            }
            return orders;
        }
        assert!(
            world.acts.values().all(VecDeque::is_empty),
            "everybody has had a turn"
        );
        for (pid, machine) in &world.machines {
            assert_eq!(
                machine.counts(),
                Counts::default(),
                "process {pid} keeps something"
            );
        }
        end(&world);
        orders += 1;
        if !choices.advance() {
            return orders;
        }
    }
}

fn create(world: &mut World, pid: ProcId) {
    let id = world.with(pid, |m| m.create_at(OWNER));
    assert_eq!(id, world.target.id);
}

/// Makes a channel without a buffer; one that uses it waits until it is made.
fn create_channel(world: &mut World, pid: ProcId) {
    let (id, _) = world.with(pid, |m| m.open_channel(OWNER, 0, 0)).unwrap();
    assert_eq!(id, world.target.id);
    world.waiting.insert((pid, 0));
}

fn body(n: u8) -> Body {
    Body::of_bytes(vec![n])
}

/// F46: A makes a reference on an owner and sends it to B, which sends it to C; each drops it at once, C without a
/// look.
#[test]
fn a_reference_goes_from_a_to_b_to_c_with_drops_at_once() {
    let a = [
        Now(create),
        Now(|w, pid| w.pass_on(pid, 3)),
        Now(World::drop_handle),
    ];
    let b = [Now(|w, pid| w.pass_on(pid, 4)), Now(World::drop_handle)];
    let orders = explore(&[(2, &a), (3, &b), (4, &[Now(World::drop_handle)])], |_| {});
    assert!(orders > 1_000, "{orders} orders");
}

/// F46: the same where B sends it back to its owner.
#[test]
fn a_reference_goes_from_a_to_b_to_its_owner_with_drops_at_once() {
    let a = [
        Now(create),
        Now(|w, pid| w.pass_on(pid, 3)),
        Now(World::drop_handle),
    ];
    let b = [Now(|w, pid| w.pass_on(pid, OWNER)), Now(World::drop_handle)];
    let orders = explore(&[(2, &a), (3, &b), (OWNER, &[Now(World::drop_handle)])], |_| {});
    assert!(orders > 100, "{orders} orders");
}

/// F52: two processes put a value, and one fetches: one put wins, and the fetch gets its value.
#[test]
fn two_puts_race_a_fetch() {
    let a = [
        Now(create),
        Now(|w, pid| w.pass_on(pid, 3)),
        Now(|w, pid| w.ask(pid, RefOp::Put, 1, body(1))),
        Then(World::drop_handle),
    ];
    let b = [
        Now(|w, pid| w.ask(pid, RefOp::Put, 3, body(2))),
        Now(|w, pid| w.fetch(pid, 4)),
        Then(World::drop_handle),
    ];
    let orders = explore(&[(2, &a), (3, &b)], |world| {
        let puts = [world.told(2, 1), world.told(3, 3)].map(|told| told.unwrap().0);
        let won = match puts {
            [Status::Yes, Status::AlreadySet] => 1,
            [Status::AlreadySet, Status::Yes] => 2,
            other => panic!("F52: the puts ended with {other:?}"),
        };
        assert_eq!(world.told(3, 4), Some((Status::Value, Some(won))));
    });
    assert!(orders > 1_000, "{orders} orders");
}

/// F51: a take whose time is over races the item, which a second take of the same process then gets.
#[test]
fn a_take_that_is_undone_races_the_item() {
    let a = [
        Now(create_channel),
        Then(|w, pid| w.pass_on(pid, 3)),
        Now(|w, pid| w.ask(pid, RefOp::ChannelPut, 1, body(7))),
        Then(World::drop_handle),
    ];
    let b = [
        Now(|w, pid| w.ask(pid, RefOp::ChannelTake, 2, Body::default())),
        Now(|w, pid| w.undo(pid, 2)),
        Now(|w, pid| {
            if w.told(pid, 2).is_none() {
                w.ask(pid, RefOp::ChannelTake, 3, Body::default());
            }
        }),
        Then(World::drop_handle),
    ];
    let orders = explore(&[(2, &a), (3, &b)], |world| {
        assert_eq!(world.told(2, 1).unwrap().0, Status::Yes);
        let took = [world.told(3, 2), world.told(3, 3)];
        let took: Vec<_> = took.into_iter().flatten().collect();
        assert_eq!(took, [(Status::Value, Some(7))], "F51: taken once");
    });
    assert!(orders > 100, "{orders} orders");
}

/// F51: a put that is withdrawn races the take: it is in time, or the item is taken.
#[test]
fn a_put_that_is_withdrawn_races_the_take() {
    let a = [
        Now(create_channel),
        Then(|w, pid| w.pass_on(pid, 3)),
        Now(|w, pid| w.ask(pid, RefOp::ChannelPut, 1, body(7))),
        Now(|w, pid| w.withdraw(pid, 1)),
        Then(|w, pid| w.ask(pid, RefOp::ChannelClose, 2, Body::default())),
        Then(World::drop_handle),
    ];
    let b = [
        Now(|w, pid| w.ask(pid, RefOp::ChannelTake, 3, Body::default())),
        Then(World::drop_handle),
    ];
    let orders = explore(&[(2, &a), (3, &b)], |world| {
        match (world.told(2, 1).unwrap().0, world.told(3, 3).unwrap()) {
            (Status::Yes, (Status::Value, Some(7))) | (Status::Cancelled, (Status::Closed, _)) => {}
            other => panic!("F51: the put and the take ended with {other:?}"),
        }
    });
    assert!(orders > 100, "{orders} orders");
}

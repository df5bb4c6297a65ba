//! Channels: the state machine against a model, and two processes step by step (F7, F50, F51).

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use pydist_proto::body::Body;
use pydist_proto::channel::{Asker, Channel, Effect, Wish};
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Machine, Output};
use pydist_proto::message::{Member, Message, RefOp, Status};

fn asker(pid: ProcId, req: u64) -> Asker {
    Asker { pid, req }
}

fn item(n: u64) -> Arc<Body> {
    Arc::new(Body::of_bytes(n.to_le_bytes().to_vec()))
}

fn number(body: &Body) -> u64 {
    let bytes = body.segments.first().map(|s| s.as_slice());
    bytes.map_or(0, |b| u64::from_le_bytes(b.try_into().unwrap()))
}

/// The answers as (process, request, status, item).
fn answers(effect: Effect) -> Vec<(ProcId, u64, Status, u64)> {
    let answers = effect.answers.into_iter();
    answers
        .map(|a| (a.to.pid, a.to.req, a.status, number(&a.body)))
        .collect()
}

// --- the channel alone --------------------------------------------------------------------------------------

#[test]
fn items_come_out_in_the_order_in_which_they_went_in() {
    let mut channel = Channel::new(usize::MAX);
    for n in 1..=3 {
        assert_eq!(
            answers(channel.put(asker(2, n), item(n))),
            [(2, n, Status::Yes, 0)]
        );
    }
    for n in 1..=3 {
        let taken = answers(channel.ask(asker(3, n), Wish::Take));
        assert_eq!(taken, [(3, n, Status::Value, n)]);
    }
    assert!(!channel.is_ready());
}

#[test]
fn takers_are_served_in_the_order_in_which_they_came() {
    let mut channel = Channel::new(1);
    assert!(answers(channel.ask(asker(2, 1), Wish::Take)).is_empty());
    assert!(answers(channel.ask(asker(3, 1), Wish::Take)).is_empty());
    assert_eq!(
        answers(channel.put(asker(4, 1), item(7))),
        [(4, 1, Status::Yes, 0), (2, 1, Status::Value, 7)]
    );
    assert_eq!(
        answers(channel.put(asker(4, 2), item(8))),
        [(4, 2, Status::Yes, 0), (3, 1, Status::Value, 8)]
    );
}

#[test]
fn a_full_channel_answers_the_put_once_there_is_room() {
    let mut channel = Channel::new(1);
    channel.put(asker(2, 1), item(1));
    assert!(answers(channel.put(asker(2, 2), item(2))).is_empty());
    let taken = answers(channel.ask(asker(3, 1), Wish::Take));
    assert_eq!(taken, [(3, 1, Status::Value, 1), (2, 2, Status::Yes, 0)]);
}

#[test]
fn an_unbuffered_channel_answers_the_put_with_the_take() {
    let mut channel = Channel::new(0);
    assert!(answers(channel.put(asker(2, 1), item(1))).is_empty());
    assert!(channel.is_ready());
    assert_eq!(
        answers(channel.ask(asker(3, 1), Wish::Fetch)),
        [(3, 1, Status::Value, 1)]
    );
    let taken = answers(channel.ask(asker(3, 2), Wish::Take));
    assert_eq!(taken, [(2, 1, Status::Yes, 0), (3, 2, Status::Value, 1)]);
}

#[test]
fn a_fetch_leaves_the_item_and_a_wait_brings_none() {
    let mut channel = Channel::new(1);
    channel.ask(asker(2, 1), Wish::Ready);
    channel.ask(asker(2, 2), Wish::Fetch);
    assert_eq!(
        answers(channel.put(asker(3, 1), item(5))),
        [
            (3, 1, Status::Yes, 0),
            (2, 1, Status::Yes, 0),
            (2, 2, Status::Value, 5)
        ]
    );
    assert!(channel.is_ready());
}

#[test]
fn closing_fails_putters_now_and_takers_once_it_is_empty() {
    let mut channel = Channel::new(1);
    channel.put(asker(2, 1), item(1));
    channel.put(asker(2, 2), item(2));
    let closed = channel.close(item(9));
    assert_eq!(closed.dropped.len(), 1, "F50: a failed put's value is not in it");
    assert_eq!(answers(closed), [(2, 2, Status::Closed, 9)]);
    assert_eq!(
        answers(channel.put(asker(2, 3), item(3))),
        [(2, 3, Status::Closed, 9)]
    );
    assert_eq!(
        answers(channel.ask(asker(3, 1), Wish::Take)),
        [(3, 1, Status::Value, 1)]
    );
    assert_eq!(
        answers(channel.ask(asker(3, 2), Wish::Take)),
        [(3, 2, Status::Closed, 9)]
    );
    assert!(!channel.is_open());
}

#[test]
fn closing_an_empty_channel_fails_whoever_waits() {
    let mut channel = Channel::new(1);
    channel.ask(asker(2, 1), Wish::Take);
    channel.ask(asker(2, 2), Wish::Ready);
    let closed = answers(channel.close(Arc::default()));
    assert_eq!(closed, [(2, 1, Status::Closed, 0), (2, 2, Status::Closed, 0)]);
    assert_eq!(channel.close(item(3)).dropped.len(), 1, "the first reason stays");
}

#[test]
fn what_is_withdrawn_in_time_is_cancelled_and_nothing_else_is() {
    let mut channel = Channel::new(1);
    channel.put(asker(2, 1), item(1));
    channel.put(asker(2, 2), item(2));
    assert_eq!(
        answers(channel.withdraw(asker(2, 2))),
        [(2, 2, Status::Cancelled, 0)]
    );
    assert!(answers(channel.withdraw(asker(2, 1))).is_empty());
    channel.ask(asker(3, 1), Wish::Take);
    assert!(answers(channel.withdraw(asker(3, 1))).is_empty());
    assert!(!channel.is_ready());
}

#[test]
fn what_a_dead_taker_has_not_confirmed_comes_back_to_the_front_in_order() {
    let mut channel = Channel::new(usize::MAX);
    (1..=5).for_each(|n| drop(channel.put(asker(2, n), item(n))));
    (1..=3).for_each(|n| drop(channel.ask(asker(3, n), Wish::Take)));
    assert_eq!(channel.confirm(asker(3, 1)).dropped.len(), 1);
    channel.forget(3);
    for n in 2..=5 {
        let taken = answers(channel.ask(asker(4, n), Wish::Take));
        assert_eq!(taken, [(4, n, Status::Value, n)]);
    }
}

#[test]
fn the_end_of_a_channel_answers_all_and_drops_all() {
    let mut channel = Channel::new(1);
    (1..=3).for_each(|n| drop(channel.put(asker(2, n), item(n))));
    channel.ask(asker(3, 1), Wish::Take);
    let effect = channel.end();
    assert_eq!(effect.dropped.len(), 3);
    assert_eq!(answers(effect), [(2, 3, Status::UnknownRef, 0)]);
}

/// A channel with room for 100, at which process 2 has credit for 16.
fn with_credit() -> Channel {
    let mut channel = Channel::new(100);
    let effect = channel.put_of_many(asker(2, 1), item(1));
    assert_eq!(effect.credit, [(2, 16)]);
    channel
}

#[test]
fn credit_is_given_where_there_is_much_room_and_grows_with_use() {
    let mut channel = Channel::new(1000);
    assert_eq!(channel.put_of_many(asker(2, 1), item(1)).credit, [(2, 16)]);
    let more: Vec<_> = (2..40)
        .flat_map(|n| channel.put_on_credit(2, &item(n)).unwrap().credit)
        .collect();
    assert_eq!(more, [(2, 24), (2, 48)], "16, then up to 32, then up to 64");
    for capacity in [0, 1, 16] {
        let mut channel = Channel::new(capacity);
        assert!(channel.put_of_many(asker(2, 1), item(1)).credit.is_empty());
    }
}

#[test]
fn room_that_is_set_aside_counts_as_taken_and_is_asked_back_for_others() {
    let mut channel = with_credit();
    let full = (2..=84).map(|n| channel.put(asker(3, n), item(n)));
    assert!(full.map(answers).all(|a| a.len() == 1));
    let effect = channel.put(asker(3, 85), item(85));
    assert_eq!(effect.recalled, [2]);
    assert!(answers(effect).is_empty());
    assert!(channel.put(asker(3, 86), item(86)).recalled.is_empty(), "once");
    assert!(channel.put_on_credit(2, &item(87)).is_some(), "it was on its way");
    let back = answers(channel.give_credit_back(2, 15));
    assert_eq!(back, [(3, 85, Status::Yes, 0), (3, 86, Status::Yes, 0)]);
    assert!(channel.put_on_credit(2, &item(88)).is_none());
}

#[test]
fn a_put_whose_time_is_over_waits_for_room_that_may_come_back() {
    for (used, status) in [(16, Status::Cancelled), (15, Status::Yes)] {
        let mut channel = with_credit();
        (2..=84).for_each(|n| drop(channel.put(asker(3, n), item(n))));
        assert_eq!(channel.put(asker(3, 85), item(85)).recalled, [2]);
        assert!(answers(channel.withdraw(asker(3, 85))).is_empty());
        let mut told = Vec::new();
        (0..used).for_each(|_| told.extend(answers(channel.put_on_credit(2, &item(86)).unwrap())));
        told.extend(answers(channel.give_credit_back(2, 16 - used)));
        assert_eq!(told, [(3, 85, status, 0)]);
    }
}

#[test]
fn where_there_is_little_room_those_who_put_many_hear_of_it_once_there_is_more() {
    let mut channel = Channel::new(64);
    (1..=60).for_each(|n| drop(channel.put(asker(3, n), item(n))));
    let effect = channel.put_of_many(asker(2, 1), item(61));
    assert_eq!(effect.held, [asker(2, 1)]);
    assert!(answers(effect).is_empty());
    let put = answers(channel.put(asker(3, 61), item(62)));
    assert_eq!(put, [(3, 61, Status::Yes, 0)], "others are answered at once");
    for n in 1..=5 {
        let taken = answers(channel.ask(asker(4, n), Wish::Take));
        assert_eq!(taken, [(4, n, Status::Value, n)]);
    }
    let taken = answers(channel.ask(asker(4, 6), Wish::Take));
    assert_eq!(taken, [(4, 6, Status::Value, 6), (2, 1, Status::Yes, 0)]);
}

#[test]
fn an_answer_that_is_held_back_is_given_when_it_is_asked_for_and_on_a_close() {
    let mut channel = Channel::new(64);
    (1..=60).for_each(|n| drop(channel.put(asker(3, n), item(n))));
    (1..=2).for_each(|n| drop(channel.put_of_many(asker(2, n), item(60 + n))));
    let withdrawn = answers(channel.withdraw(asker(2, 1)));
    assert_eq!(withdrawn, [(2, 1, Status::Yes, 0)], "F51: it is in");
    assert_eq!(answers(channel.answer_held()), [(2, 2, Status::Yes, 0)]);
    channel.put_of_many(asker(2, 3), item(63));
    let closed = answers(channel.close(item(0)));
    assert_eq!(closed, [(2, 3, Status::Yes, 0)], "F50: it is in");
}

#[test]
fn the_dead_keep_no_room() {
    let mut channel = with_credit();
    (2..=84).for_each(|n| drop(channel.put(asker(3, n), item(n))));
    channel.put(asker(3, 85), item(85));
    assert_eq!(answers(channel.forget(2)), [(3, 85, Status::Yes, 0)]);
}

#[test]
fn what_was_put_on_credit_before_a_close_was_heard_of_can_be_taken() {
    let mut channel = with_credit();
    assert_eq!(answers(channel.ask(asker(4, 1), Wish::Take)).len(), 1);
    assert_eq!(channel.close(item(9)).recalled, [2]);
    assert!(answers(channel.ask(asker(4, 2), Wish::Take)).is_empty());
    let came = answers(channel.put_on_credit(2, &item(2)).unwrap());
    assert_eq!(came, [(4, 2, Status::Value, 2)]);
    assert!(answers(channel.ask(asker(4, 3), Wish::Take)).is_empty());
    let put = answers(channel.put(asker(3, 1), item(3)));
    assert_eq!(put, [(3, 1, Status::Closed, 9)], "F50: at once");
    let back = answers(channel.give_credit_back(2, 15));
    assert_eq!(back, [(4, 3, Status::Closed, 9)]);
}

// --- against a model ----------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Put(ProcId),
    PutOfMany(ProcId),
    PutOnCredit(ProcId),
    GiveBack(ProcId, u32),
    AnswerHeld,
    Ask(ProcId, Wish),
    Withdraw(usize),
    Confirm(usize),
    Undo(usize),
    Forget(ProcId),
    Close,
}

fn step() -> impl Strategy<Value = Step> {
    let pid = 2..6u32;
    prop_oneof![
        4 => pid.clone().prop_map(Step::Put),
        3 => pid.clone().prop_map(Step::PutOfMany),
        9 => pid.clone().prop_map(Step::PutOnCredit),
        1 => Just(Step::AnswerHeld),
        2 => (pid.clone(), 1..20u32).prop_map(|(p, n)| Step::GiveBack(p, n)),
        5 => pid.clone().prop_map(|p| Step::Ask(p, Wish::Take)),
        1 => pid.clone().prop_map(|p| Step::Ask(p, Wish::Fetch)),
        1 => pid.clone().prop_map(|p| Step::Ask(p, Wish::Ready)),
        2 => any::<usize>().prop_map(Step::Withdraw),
        4 => any::<usize>().prop_map(Step::Confirm),
        3 => any::<usize>().prop_map(Step::Undo),
        1 => pid.prop_map(Step::Forget),
        1 => Just(Step::Close),
    ]
}

/// What each request was and what became of the items, seen from outside.
#[derive(Default)]
struct Seen {
    next: u64,
    waiting: BTreeMap<(ProcId, u64), Option<u64>>,
    /// Items that are in the channel by its own word, in order.
    inside: VecDeque<u64>,
    /// Items on their way, in the order in which they left.
    sent: Vec<((ProcId, u64), u64)>,
    done: BTreeSet<u64>,
    /// Who put each item by a request.
    putters: BTreeMap<u64, ProcId>,
    asked: BTreeMap<(ProcId, u64), Wish>,
    closed: bool,
    /// The room that each process has been given, and did not use or give back, and whether that is asked back.
    credit: BTreeMap<ProcId, (u32, bool)>,
    /// Puts whose items are in, and whose answers are held back.
    held: BTreeSet<(ProcId, u64)>,
    /// Puts whose time is over while they wait.
    withdrawn: BTreeSet<(ProcId, u64)>,
}

impl Seen {
    fn request(&mut self, pid: ProcId, item: Option<u64>) -> Asker {
        self.next += 1;
        self.waiting.insert((pid, self.next), item);
        asker(pid, self.next)
    }

    /// What is to be seen after some request is undone: one that waits, that took an item, or that put one.
    fn undo(&mut self, at: usize) -> Asker {
        let takers = self.sent.iter().map(|(key, _)| *key);
        let putters = self
            .inside
            .iter()
            .filter_map(|n| Some((*self.putters.get(n)?, *n)));
        let known: Vec<_> = self
            .waiting
            .keys()
            .copied()
            .chain(takers)
            .chain(putters)
            .collect();
        let Some((pid, req)) = known.get(at % known.len().max(1)).copied() else {
            return asker(9, 1);
        };
        self.waiting.remove(&(pid, req));
        self.held.remove(&(pid, req));
        if let Some(at) = self.sent.iter().position(|(key, _)| *key == (pid, req)) {
            self.inside.push_front(self.sent.remove(at).1);
        } else {
            self.inside.retain(|n| *n != req);
        }
        asker(pid, req)
    }

    fn reserved(&self) -> usize {
        self.credit.values().map(|(left, _)| *left as usize).sum()
    }

    /// A process uses credit or gives it back, as much as it has.
    fn spend(&mut self, pid: ProcId, count: u32) -> u32 {
        let left = self.credit.get(&pid).map_or(0, |(left, _)| *left);
        let count = count.min(left);
        if let Some((left, _)) = self.credit.get_mut(&pid) {
            *left -= count;
        }
        self.credit.retain(|_, (left, _)| *left > 0);
        count
    }

    /// Notes the items that are in from now on, by answers and by those that are held back; putters are served in order.
    fn accept(&mut self, effect: &mut Effect) {
        let held = std::mem::take(&mut effect.held);
        let held: Vec<_> = held.into_iter().map(|asker| (asker.pid, asker.req)).collect();
        let yes = effect.answers.iter().filter(|a| a.status == Status::Yes);
        let yes = yes.map(|a| (a.to.pid, a.to.req));
        let new = yes
            .chain(held.iter().copied())
            .filter(|key| !self.held.contains(key));
        let items: BTreeSet<u64> = new
            .filter_map(|key| self.waiting.get(&key).copied().flatten())
            .collect();
        self.inside.extend(items);
        for key in held {
            assert!(self.held.insert(key));
        }
    }

    fn check(&mut self, mut effect: Effect) {
        for (pid, count) in std::mem::take(&mut effect.credit) {
            assert!(!self.closed, "credit at a closed channel");
            let credit = self.credit.entry(pid).or_default();
            assert!(!credit.1, "credit for a process that is to give it back");
            credit.0 += count;
        }
        for pid in std::mem::take(&mut effect.recalled) {
            let credit = self.credit.get_mut(&pid).unwrap();
            assert!(!std::mem::replace(&mut credit.1, true), "asked twice");
        }
        self.accept(&mut effect);
        for (pid, req, status, n) in answers(effect) {
            let key = (pid, req);
            let put = self
                .waiting
                .remove(&key)
                .unwrap_or_else(|| panic!("{key:?} is answered twice"));
            let held = self.held.remove(&key);
            match (status, put) {
                (Status::Yes, Some(_)) => {}
                (Status::Yes, None) => assert_eq!(self.asked[&key], Wish::Ready),
                (Status::Value, None) if self.asked[&key] == Wish::Take => {
                    assert_eq!(self.inside.pop_front(), Some(n), "first in, first out");
                    self.sent.push((key, n));
                }
                (Status::Value, None) => {}
                (Status::Cancelled, put) => {
                    assert!(put.is_none() || !held && self.withdrawn.contains(&key));
                }
                (Status::Closed, put) => {
                    assert!(!held, "its item is in");
                    assert!(self.closed);
                    assert!(put.is_some() || self.inside.is_empty() && self.reserved() == 0);
                }
                other => panic!("{key:?} is answered with {other:?}"),
            }
        }
    }
}

/// The capacity of a channel that is almost full from the start, so that answers are held back.
const TIGHT: usize = 64;

fn run(capacity: usize, steps: Vec<Step>) {
    let mut channel = Channel::new(capacity);
    let mut seen = Seen::default();
    if capacity == TIGHT {
        for n in 1..=TIGHT as u64 - 12 {
            let from = seen.request(2, Some(n));
            seen.putters.insert(n, 2);
            let effect = channel.put(from, item(n));
            seen.check(effect);
        }
    }
    for step in steps {
        match step {
            Step::Put(pid) => {
                let n = seen.next + 1;
                let from = seen.request(pid, Some(n));
                seen.putters.insert(n, pid);
                let effect = channel.put(from, item(n));
                seen.check(effect);
            }
            Step::PutOfMany(pid) => {
                let n = seen.next + 1;
                let from = seen.request(pid, Some(n));
                seen.putters.insert(n, pid);
                let effect = channel.put_of_many(from, item(n));
                seen.check(effect);
            }
            Step::PutOnCredit(pid) => {
                let n = seen.next + 1;
                if seen.spend(pid, 1) == 0 {
                    assert!(channel.put_on_credit(pid, &item(n)).is_none());
                    continue;
                }
                seen.next = n;
                seen.inside.push_back(n);
                let effect = channel.put_on_credit(pid, &item(n)).unwrap();
                seen.check(effect);
            }
            Step::AnswerHeld => {
                let effect = channel.answer_held();
                seen.check(effect);
                assert!(seen.held.is_empty());
            }
            Step::GiveBack(pid, count) => {
                let asked = seen.credit.get(&pid).is_some_and(|(_, asked)| *asked);
                let count = seen.spend(pid, if asked { u32::MAX } else { count });
                let effect = channel.give_credit_back(pid, count);
                seen.check(effect);
            }
            Step::Ask(pid, wish) => {
                let from = seen.request(pid, None);
                seen.asked.insert((from.pid, from.req), wish);
                let effect = channel.ask(from, wish);
                seen.check(effect);
            }
            Step::Withdraw(at) if !seen.waiting.is_empty() => {
                let at = at % seen.waiting.len();
                let (pid, req) = *seen.waiting.keys().nth(at).unwrap();
                seen.withdrawn.insert((pid, req));
                let is_out = seen.waiting[&(pid, req)].is_some() && !seen.held.contains(&(pid, req));
                let effect = channel.withdraw(asker(pid, req));
                seen.check(effect);
                let waits = seen.waiting.contains_key(&(pid, req));
                assert_eq!(
                    waits,
                    is_out && seen.reserved() > 0,
                    "it waits for room that may come back"
                );
            }
            Step::Confirm(at) if !seen.sent.is_empty() => {
                let ((pid, req), n) = seen.sent.remove(at % seen.sent.len());
                let dropped = channel.confirm(asker(pid, req)).dropped;
                assert_eq!(dropped.iter().map(|b| number(b)).collect::<Vec<_>>(), [n]);
                assert!(seen.done.insert(n), "{n} has come twice");
            }
            Step::Undo(at) if seen.next > 0 => {
                let request = seen.undo(at);
                let effect = channel.undo(request);
                seen.check(effect);
                assert!(!seen.waiting.contains_key(&(request.pid, request.req)));
            }
            Step::Forget(pid) => {
                seen.waiting.retain(|(p, _), _| *p != pid);
                seen.held.retain(|(p, _)| *p != pid);
                seen.credit.remove(&pid);
                let (back, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut seen.sent)
                    .into_iter()
                    .partition(|((p, _), _)| *p == pid);
                seen.sent = kept;
                back.into_iter()
                    .rev()
                    .for_each(|(_, n)| seen.inside.push_front(n));
                let effect = channel.forget(pid);
                seen.check(effect);
            }
            Step::Close => {
                seen.closed = true;
                let effect = channel.close(item(0));
                seen.check(effect);
            }
            Step::Withdraw(_) | Step::Confirm(_) | Step::Undo(_) => {}
        }
        assert!(seen.held.iter().all(|key| seen.waiting[key].is_some()));
        let putting = seen.waiting.values().flatten().count() > seen.held.len();
        let asking = seen.waiting.values().any(Option::is_none);
        assert_eq!(channel.is_ready(), putting || !seen.inside.is_empty());
        assert!(!(asking && channel.is_ready()), "a taker waits beside an item");
        assert!(
            !putting || seen.inside.len() + seen.reserved() >= capacity,
            "a putter waits beside room"
        );
        let all_asked = seen.credit.values().all(|(_, asked)| *asked);
        assert!(
            !putting && !seen.closed || all_asked,
            "room that somebody waits for is kept"
        );
        assert!(
            !(asking && seen.closed && seen.reserved() == 0),
            "a taker of an empty closed channel waits for nothing"
        );
        let over = |key| seen.withdrawn.contains(key) && seen.waiting[key].is_some();
        assert!(
            seen.reserved() > 0 || !seen.waiting.keys().any(over),
            "waits in vain"
        );
    }
    let left: BTreeSet<u64> = channel.end().dropped.iter().map(|b| number(b)).collect();
    let inside = seen.inside.iter().copied();
    let putting = seen.waiting.iter().filter(|(key, _)| !seen.held.contains(key));
    let putting = putting.filter_map(|(_, put)| *put);
    let expected: BTreeSet<u64> = inside
        .chain(putting)
        .chain(seen.sent.iter().map(|(_, n)| *n))
        .chain(seen.closed.then_some(0))
        .collect();
    assert_eq!(left, expected, "no item is lost");
    assert!(left.is_disjoint(&seen.done), "none is there twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn a_channel_loses_and_doubles_nothing(
        capacity in prop_oneof![0..4usize, 17..60usize, Just(TIGHT), Just(usize::MAX)],
        steps in prop::collection::vec(step(), 0..90),
    ) {
        run(capacity, steps);
    }
}

// --- processes ----------------------------------------------------------------------------------------------

type Node = Machine<&'static str>;

/// A process that knows of the processes 1 to 4.
fn node(me: ProcId) -> Node {
    let member = |pid| Member {
        pid,
        ..Member::default()
    };
    let mut machine = Machine::new(member(me));
    (1..=4).for_each(|pid| machine.join(member(pid)));
    machine.take_outputs();
    machine
}

/// An owner 2 with a channel of capacity 1 that process 3 holds.
fn shared() -> (Node, Node, RemoteRef) {
    let (mut owner, mut taker) = (node(2), node(3));
    let (id, _) = taker.open_channel(2, 1, "made").unwrap();
    exchange(&mut owner, &mut taker);
    assert_eq!(woken(&mut taker), [("made", Status::Yes)]);
    (owner, taker, RemoteRef { owner: 2, id })
}

fn send(from: &mut Node, req: u64, op: RefOp, target: RefId, body: Body) -> Message {
    assert_eq!(from.me(), 3);
    Message::RefOp {
        req,
        op,
        target,
        body,
    }
}

/// Delivers what the two have for each other, and keeps what they woke.
fn exchange(owner: &mut Node, other: &mut Node) {
    for _ in 0..8 {
        pump(owner, other);
        pump(other, owner);
    }
}

thread_local! {
    static WOKEN: std::cell::RefCell<Vec<(ProcId, &'static str, Status)>> = const { std::cell::RefCell::new(Vec::new()) };
}

fn pump(from: &mut Node, to: &mut Node) {
    for output in from.take_outputs() {
        match output {
            Output::Send(pid, message) if pid == to.me() => to.handle_message(from.me(), message),
            Output::Wake(who, outcome) => {
                WOKEN.with_borrow_mut(|w| w.push((from.me(), who, outcome.status)));
                from.release_refs(&outcome.body.refs);
            }
            _ => {}
        }
    }
    for (pid, message) in from.take_deltas() {
        if pid == to.me() {
            to.handle_message(from.me(), message);
        }
    }
}

fn woken(node: &mut Node) -> Vec<(&'static str, Status)> {
    let me = node.me();
    WOKEN.with_borrow_mut(|w| {
        let mine = w
            .iter()
            .filter(|(pid, ..)| *pid == me)
            .map(|(_, who, s)| (*who, *s));
        let mine: Vec<_> = mine.collect();
        w.retain(|(pid, ..)| *pid != me);
        mine
    })
}

/// Asks the owner, from process 3.
fn ask(taker: &mut Node, owner: &mut Node, op: RefOp, target: RemoteRef, who: &'static str) -> u64 {
    let req = taker.open_op(target, &[], who).unwrap();
    let message = send(taker, req, op, target.id, Body::of_bytes(vec![1]));
    owner.handle_message(3, message);
    exchange(owner, taker);
    req
}

#[test]
fn a_put_and_a_take_of_another_process_are_answered() {
    let (mut owner, mut taker, channel) = shared();
    ask(&mut taker, &mut owner, RefOp::ChannelPut, channel, "put");
    let req = ask(&mut taker, &mut owner, RefOp::ChannelTake, channel, "take");
    assert_eq!(woken(&mut taker), [("put", Status::Yes), ("take", Status::Value)]);
    taker.confirm(channel, req);
    exchange(&mut owner, &mut taker);
    owner.leave(3, "killed");
    assert_eq!(owner.counts().refs_owned, 0);
}

#[test]
fn an_item_that_is_not_confirmed_comes_back_when_its_taker_leaves() {
    let (mut owner, mut taker, channel) = shared();
    owner.hold(channel);
    ask(&mut taker, &mut owner, RefOp::ChannelPut, channel, "put");
    ask(&mut taker, &mut owner, RefOp::ChannelTake, channel, "take");
    owner.ask_own_channel(channel.id, RefOp::ChannelTake, Body::default(), "next");
    owner.leave(3, "killed");
    exchange(&mut owner, &mut taker);
    assert_eq!(woken(&mut owner), [("next", Status::Value)]);
}

#[test]
fn a_request_that_is_withdrawn_hears_whether_it_was_in_time() {
    let (mut owner, mut taker, channel) = shared();
    let req = ask(&mut taker, &mut owner, RefOp::ChannelTake, channel, "take");
    taker.withdraw_op(channel, req);
    exchange(&mut owner, &mut taker);
    assert_eq!(woken(&mut taker), [("take", Status::Cancelled)]);
    assert_eq!(taker.counts().calls_outstanding, 0);
}

#[test]
fn a_request_that_nobody_wants_is_undone_without_an_answer() {
    let (mut owner, mut client, channel) = shared();
    owner.hold(channel);
    let put = ask(&mut client, &mut owner, RefOp::ChannelPut, channel, "put");
    let full = ask(&mut client, &mut owner, RefOp::ChannelPut, channel, "full");
    assert_eq!(woken(&mut client), [("put", Status::Yes)]);
    assert!(client.unwant(channel, full));
    assert_eq!(
        client.counts().calls_outstanding,
        0,
        "at once, whatever the owner does"
    );
    assert!(!client.unwant(channel, put), "it has its answer");
    client.give_item_back(channel, put);
    exchange(&mut owner, &mut client);
    owner.ask_own_channel(channel.id, RefOp::ChannelIsReady, Body::default(), "ready");
    exchange(&mut owner, &mut client);
    assert_eq!(woken(&mut owner), [("ready", Status::No)]);
    assert!(woken(&mut client).is_empty());
}

#[test]
fn an_item_that_nobody_wants_goes_back() {
    let (mut owner, mut taker, channel) = shared();
    let req = ask(&mut taker, &mut owner, RefOp::ChannelTake, channel, "take");
    owner.hold(channel);
    owner.ask_own_channel(channel.id, RefOp::ChannelPut, Body::of_bytes(vec![1]), "put");
    assert!(taker.unwant(channel, req));
    exchange(&mut owner, &mut taker);
    assert!(woken(&mut taker).is_empty());
    owner.ask_own_channel(channel.id, RefOp::ChannelIsReady, Body::default(), "ready");
    exchange(&mut owner, &mut taker);
    assert_eq!(woken(&mut owner), [("put", Status::Yes), ("ready", Status::Yes)]);
    assert_eq!(taker.counts().calls_outstanding, 0);
}

#[test]
fn the_references_in_items_go_with_the_channel() {
    let mut owner = node(2);
    let inner = owner.create_local();
    let channel = owner.create_channel(4);
    let body = Body {
        refs: vec![RemoteRef { owner: 2, id: inner }],
        segments: Vec::new(),
    };
    owner.ask_own_channel(channel, RefOp::ChannelPut, body, "put");
    owner.release(inner);
    assert_eq!(owner.counts().refs_owned, 2);
    owner.release(channel);
    assert_eq!(owner.counts().refs_owned, 0);
}

#[test]
fn what_is_no_channel_is_an_unknown_reference() {
    let mut owner = node(2);
    let future = owner.create_local();
    owner.ask_own_channel(future, RefOp::ChannelTake, Body::default(), "take");
    let statuses = owner.take_outputs().into_iter().map(|o| match o {
        Output::Wake(who, outcome) => (who, outcome.status),
        other => panic!("{other:?}"),
    });
    assert_eq!(statuses.collect::<Vec<_>>(), [("take", Status::UnknownRef)]);
    assert_eq!(owner.channel_here(future), None);
}

#[test]
fn the_end_of_a_channel_that_python_keeps_is_told() {
    let mut owner = node(2);
    let channel = owner.create_custom_channel();
    assert_eq!(owner.channel_here(channel), Some(true));
    owner.release(channel);
    assert!(owner.take_outputs().is_empty());
    owner.release(channel);
    let outputs = owner.take_outputs();
    assert!(matches!(outputs.as_slice(), [Output::Freed(id)] if *id == channel));
}

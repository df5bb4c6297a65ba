//! Channels: puts against takes, timeouts, closing, signals and the death of the owner.

use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::{Message, RefOp, Status};
use pydist_proto::record::Outcome;

use super::{assert_rests, body, check, node, number, spawn};
use crate::node::Node;
use crate::parker::Parked;
use crate::sending::Payload;
use crate::waiter::{Cell, Nudge, Wake};

const NOTHING: Payload<'static> = Payload {
    segments: &[],
    refs: &[],
    kept: None,
    signalled: Some(&|| false),
};

/// Waits as Python does: with a timeout that may be over at any step, after which the request is undone.
fn answer(node: &Node, cell: &Cell, target: RemoteRef, req: u64, timed: bool) -> Option<Outcome> {
    let deadline = timed.then(crate::sync::now);
    loop {
        match cell.wait(node, deadline, false) {
            Ok(outcome) => return Some(outcome),
            Err(Parked::TimedOut) if node.unwant(target, req) => return None,
            Err(Parked::TimedOut) => return Some(cell.handed_over(node)),
            Err(_) => {}
        }
    }
}

fn ask(node: &Node, id: RefId, op: RefOp, body: Body, timed: bool) -> Option<(u64, Outcome)> {
    let cell = Cell::new();
    let req = node.ask_own_channel(id, op, body, Wake::Cell(cell.clone()));
    let target = RemoteRef { owner: 1, id };
    answer(node, &cell, target, req, timed).map(|outcome| (req, outcome))
}

/// Puts; true where the item is in the channel, or with a taker.
fn put(node: &Node, id: RefId, n: u64, timed: bool) -> Option<Status> {
    ask(node, id, RefOp::ChannelPut, body(n), timed).map(|(_, outcome)| outcome.status)
}

/// Takes and confirms an item.
fn take(node: &Node, id: RefId, timed: bool) -> Option<u64> {
    let (req, outcome) = ask(node, id, RefOp::ChannelTake, Body::default(), timed)?;
    if outcome.status != Status::Value {
        assert_eq!(outcome.status, Status::Closed);
        return None;
    }
    node.confirm(RemoteRef { owner: 1, id }, req);
    Some(number(&outcome.body))
}

/// Takes what is left in a channel that is closed.
fn rest(node: &Node, id: RefId) -> Vec<u64> {
    ask(node, id, RefOp::ChannelClose, Body::default(), false);
    std::iter::from_fn(|| take(node, id, false)).collect()
}

/// F51: with takers and putters whose time is over at any step, each item that was put is taken once, in order.
#[test]
fn timeouts_lose_and_double_nothing() {
    for capacity in [0, 1] {
        check(9_000, move || {
            let node = node();
            let id = node.create_channel(capacity);
            let putter = spawn(&node, move |node| {
                let came = (1..=2).filter(|n| put(node, id, *n, true).is_some());
                came.collect::<Vec<_>>()
            });
            let takers = [(); 2].map(|()| spawn(&node, move |node| take(node, id, true)));
            let put = putter.join().unwrap();
            let taken = takers.map(|taker| taker.join().unwrap());
            let mut all: Vec<u64> = taken.into_iter().flatten().collect();
            let left = rest(&node, id);
            assert!(left.is_sorted(), "first in, first out: {left:?}");
            all.extend(&left);
            all.sort_unstable();
            assert_eq!(all, put);
            node.drop_handle(id);
            assert_rests(&node);
        });
    }
}

/// F50: closing ends every put and take; what was put before is taken, what failed is not in the channel.
#[test]
fn closing_races_puts_and_takes() {
    check(9_000, || {
        let node = node();
        let id = node.create_channel(1);
        let putters = [1, 2].map(|n| spawn(&node, move |node| (n, put(node, id, n, false))));
        let taker = spawn(&node, move |node| take(node, id, false));
        let closer = spawn(&node, move |node| {
            ask(node, id, RefOp::ChannelClose, Body::default(), false)
        });
        let puts = putters.map(|putter| putter.join().unwrap());
        let taken = taker.join().unwrap();
        assert_eq!(closer.join().unwrap().unwrap().1.status, Status::Yes);
        let mut all: Vec<u64> = taken.into_iter().chain(rest(&node, id)).collect();
        all.sort_unstable();
        let put: Vec<u64> = puts
            .iter()
            .filter(|(_, status)| *status == Some(Status::Yes))
            .map(|(n, _)| *n)
            .collect();
        assert_eq!(all, put);
        node.drop_handle(id);
        assert_rests(&node);
    });
}

/// F45: a taker that is interrupted gives back what came, or comes.
#[test]
fn a_signal_races_the_item() {
    check(9_000, || {
        let node = node();
        let id = node.create_channel(1);
        let cell = Cell::new();
        let nudged = cell.clone();
        let signal = spawn(&node, move |node| nudged.nudge(node));
        let putter = spawn(&node, move |node| put(node, id, 1, false));
        let wake = Wake::Cell(cell.clone());
        let req = node.ask_own_channel(id, RefOp::ChannelTake, Body::default(), wake);
        let target = RemoteRef { owner: 1, id };
        let taken = match cell.wait(&node, None, false) {
            Ok(outcome) => {
                node.confirm(target, req);
                Some(number(&outcome.body))
            }
            Err(end) => {
                assert_eq!(end, Parked::Signal);
                if !node.unwant(target, req) {
                    cell.handed_over(&node);
                    node.give_item_back(target, req);
                }
                None
            }
        };
        signal.join().unwrap();
        assert_eq!(putter.join().unwrap(), Some(Status::Yes));
        let all: Vec<u64> = taken.into_iter().chain(rest(&node, id)).collect();
        assert_eq!(all, [1]);
        node.drop_handle(id);
        assert_rests(&node);
    });
}

/// F6: the owner's answer races its death and the end of the time: the request ends once, and leaves nothing.
#[test]
fn the_death_of_the_owner_races_its_answer() {
    check(9_000, || {
        let node = node();
        let id = node.create_future(2).unwrap();
        let target = RemoteRef { owner: 2, id };
        let cell = Cell::new();
        let req = node
            .ref_op(target, RefOp::ChannelTake, NOTHING, Wake::Cell(cell.clone()))
            .unwrap();
        let answered = spawn(&node, move |node| {
            let (status, body) = (Status::Value, Arc::new(body(7)));
            let result = Message::Result {
                id: req,
                status,
                body,
            };
            node.with_machine(|m| m.handle_message(2, result));
        });
        let dead = spawn(&node, |node| node.with_machine(|m| m.leave(2, "killed")));
        match answer(&node, &cell, target, req, true).map(|outcome| outcome.status) {
            None | Some(Status::Value | Status::Exited) => {}
            other => panic!("ended with {other:?}"),
        }
        answered.join().unwrap();
        dead.join().unwrap();
        assert!(cell.try_take().is_none(), "woken twice");
        node.drop_handle(id);
        assert_rests(&node);
    });
}

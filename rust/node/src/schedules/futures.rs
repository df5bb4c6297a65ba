//! Futures: setting against fetching, timeouts, cancelling and dropping.

use std::sync::Arc;

use pydist_proto::ids::RefId;
use pydist_proto::machine::Watch;
use pydist_proto::message::{Message, Status};
use pydist_proto::record::{Outcome, Want};

use super::{assert_rests, body, check, node, number, spawn};
use crate::node::Node;
use crate::parker::Parked;
use crate::waiter::{Cell, Wake};

/// Fetches as Python does, with a timeout that may be over at any step.
fn fetch(node: &Node, id: RefId, timed: bool) -> Option<Outcome> {
    let cell = Cell::new();
    let key = match node.watch(id, Want::Value, Wake::Cell(cell.clone())) {
        Watch::Now(outcome) => return Some(outcome),
        Watch::Later(key) => key,
    };
    loop {
        match cell.wait(node, timed.then(crate::sync::now), false) {
            Ok(outcome) => return Some(outcome),
            Err(Parked::TimedOut) => return (!node.unwatch(id, key)).then(|| cell.handed_over(node)),
            Err(_) => {}
        }
    }
}

fn put(node: &Node, id: RefId, n: u64) -> bool {
    node.with_machine(|m| m.put(id, Status::Value, body(n)))
}

/// F52: of two puts one wins, and every fetch gets its value, or nothing in time.
#[test]
fn puts_race_fetches() {
    check(9_000, || {
        let node = node();
        let id = node.create_future(1).unwrap();
        let putters = [1, 2].map(|n| spawn(&node, move |node| put(node, id, n).then_some(n)));
        let fetchers = [true, false].map(|timed| spawn(&node, move |node| fetch(node, id, timed)));
        let won: Vec<u64> = putters.into_iter().filter_map(|p| p.join().unwrap()).collect();
        let [timed, patient] = fetchers.map(|fetcher| fetcher.join().unwrap());
        assert_eq!(won.len(), 1, "one put wins");
        assert_eq!(number(&patient.unwrap().body), won[0]);
        assert!(timed.is_none_or(|outcome| number(&outcome.body) == won[0]));
        assert!(node.known_ready(id));
        node.drop_handle(id);
        assert_rests(&node);
    });
}

/// A value that comes once, from its owner, is fetched by who waits, or is still there: a timeout does not lose it.
#[test]
fn a_value_from_its_owner_races_a_timeout() {
    check(9_000, || {
        let node = node();
        let id = node.call_future(2, NOTHING).unwrap();
        let result = move || Message::Result {
            id: id.id,
            status: Status::Value,
            body: Arc::new(body(7)),
        };
        let owner = spawn(&node, move |node| {
            node.with_machine(|m| m.handle_message(2, result()));
        });
        let first = fetch(&node, id, true);
        owner.join().unwrap();
        let value = first.or_else(|| fetch(&node, id, false)).unwrap();
        assert_eq!((value.status, number(&value.body)), (Status::Value, 7));
        node.drop_handle(id);
        node.tell_owners();
        assert_rests(&node);
    });
}

/// F6: cancelling, the end of the call and a fetch race: the fetch ends with the one or the other.
#[test]
fn cancelling_races_the_end_of_the_call() {
    check(9_000, || {
        let node = node();
        let id = node.call_local();
        let canceller = spawn(&node, move |node| node.cancel_here(id));
        let call = spawn(&node, move |node| {
            if node.begin_call(id.whence, id.id) && node.finish_local(id) {
                put(node, id, 7)
            } else {
                false
            }
        });
        let outcome = fetch(&node, id, false).unwrap();
        let cancelled = canceller.join().unwrap();
        let put = call.join().unwrap();
        assert!(cancelled != put, "one of them takes effect");
        let expected = if cancelled {
            Status::Cancelled
        } else {
            Status::Value
        };
        assert_eq!(outcome.status, expected);
        node.drop_handle(id);
        assert_rests(&node);
    });
}

const NOTHING: crate::sending::Payload<'static> = crate::sending::Payload {
    segments: &[],
    refs: &[],
    kept: None,
    signalled: Some(&|| false),
};

//! Timeouts of puts and takes that race the items, with real threads and sockets (F51).
//!
//! `PYDIST_RACES=N` makes N times as many races.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pydist_node::waiter::{Cell, Wake};
use pydist_node::{Node, Parked};
use pydist_proto::body::Body;
use pydist_proto::ids::RemoteRef;
use pydist_proto::message::{RefOp, Status};
use pydist_proto::record::Outcome;
use support::{deadline, pair, payload};

/// Times differ between requests, so that some are over before the answer, some after, and some with it.
fn soon(n: u64, most: u64) -> Option<Instant> {
    let nanoseconds = (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % most;
    Some(Instant::now() + Duration::from_nanos(nanoseconds))
}

fn ask(node: &Node, target: RemoteRef, op: RefOp, bytes: &[u8]) -> (u64, Arc<Cell>) {
    let cell = Cell::new();
    let wake = Wake::Cell(cell.clone());
    let req = if target.owner == node.me() {
        node.ask_own_channel(target.id, op, Body::of_bytes(bytes.to_vec()), wake)
    } else {
        node.ref_op(target, op, payload(&[bytes]), wake).unwrap()
    };
    (req, cell)
}

/// Puts; where the time is over, the owner says whether the item is in the channel.
fn put(node: &Node, target: RemoteRef, n: u64, until: Option<Instant>) -> bool {
    let (req, cell) = ask(node, target, RefOp::ChannelPut, &n.to_le_bytes());
    let outcome = cell.wait(node, until, true).unwrap_or_else(|end| {
        assert_eq!(end, Parked::TimedOut);
        node.withdraw(target, req);
        cell.wait(node, deadline(), true).unwrap()
    });
    match outcome.status {
        Status::Yes => true,
        Status::Cancelled => false,
        other => panic!("a put ended with {other:?}"),
    }
}

/// Takes; where the time is over, nobody waits for the owner.
fn take(node: &Node, target: RemoteRef, until: Option<Instant>) -> Option<Outcome> {
    let (req, cell) = ask(node, target, RefOp::ChannelTake, &[]);
    let outcome = match cell.wait(node, until, true) {
        Ok(outcome) => outcome,
        Err(_) if node.unwant(target, req) => return None,
        Err(_) => cell.handed_over(node),
    };
    if outcome.status == Status::Value {
        node.confirm(target, req);
    }
    Some(outcome)
}

/// Puts and takes with timeouts until so many of them have raced; compares what was put with what was taken.
fn race(putter: &Node, taker: &Node, target: RemoteRef, races: u64, most: u64) {
    let factor = std::env::var("PYDIST_RACES")
        .ok()
        .and_then(|n| n.parse::<u64>().ok());
    let races = races * factor.unwrap_or(1);
    let (over, late) = (AtomicBool::new(false), AtomicU64::new(0));
    let (put, taken) = std::thread::scope(|scope| {
        let putting = scope.spawn(|| {
            let put: Vec<u64> = (0..races)
                .filter(|n| put(putter, target, *n, soon(*n, most)))
                .collect();
            over.store(true, Ordering::SeqCst);
            put
        });
        let mut taken = Vec::new();
        for n in 0.. {
            let last = over.load(Ordering::SeqCst);
            let until = if last {
                Some(Instant::now() + Duration::from_millis(300))
            } else {
                soon(n, most)
            };
            match take(taker, target, until) {
                Some(outcome) => {
                    let bytes = outcome.body.segments[0].as_slice();
                    taken.push(u64::from_le_bytes(bytes.try_into().unwrap()));
                }
                None if last => break,
                None => drop(late.fetch_add(1, Ordering::Relaxed)),
            }
        }
        (putting.join().unwrap(), taken)
    });
    let late = late.load(Ordering::Relaxed);
    eprintln!("{races} puts, {} in time; {late} takes too late", put.len());
    assert!(
        put == taken,
        "{} items were put, {} taken",
        put.len(),
        taken.len()
    );
    assert!(late > 0 || (put.len() as u64) < races, "no time was over");
}

#[test]
fn timeouts_on_a_channel_of_this_process_lose_and_double_nothing() {
    let pair = pair();
    let node = &pair.head;
    let id = node.create_channel(1);
    race(node, node, RemoteRef { owner: 1, id }, 100_000, 8_000);
    node.drop_handle(id);
    assert_eq!(node.stats().counts.refs_owned, 0);
    assert_eq!(node.stats().counts.calls_outstanding, 0);
}

#[test]
fn timeouts_on_a_channel_of_another_process_lose_and_double_nothing() {
    let pair = pair();
    let id = pair.worker.create_channel(1);
    let target = RemoteRef { owner: 2, id };
    race(&pair.head, &pair.head, target, 5_000, 80_000);
    race(&pair.head, &pair.worker, target, 5_000, 40_000);
    assert_eq!(pair.head.stats().counts.calls_outstanding, 0);
    pair.worker.drop_handle(id);
    assert_eq!(pair.worker.stats().counts.refs_owned, 0);
}

//! Calls and futures between two cores.

#![cfg(not(feature = "shuttle"))]
#![allow(clippy::unwrap_used)]

mod support;

use pydist_node::waiter::{Cell, Queue, Wake};
use pydist_proto::ids::RemoteRef;
use pydist_proto::machine::Watch;
use pydist_proto::message::{Member, RefOp, Status};
use pydist_proto::record::Want;
use support::{PATIENCE, address, bytes, call, deadline, echo, eventually, folder, node, pair, payload};

#[test]
fn a_call_brings_back_its_segments() {
    let pair = pair();
    let serving = echo(&pair.worker, true);
    let outcome = call(&pair.head, 2, &[b"pickle", b"", b"buffer"]);
    assert_eq!(outcome.status, Status::Value);
    assert_eq!(
        bytes(&outcome),
        [b"pickle".to_vec(), Vec::new(), b"buffer".to_vec()]
    );
    pair.worker.close();
    serving.join().unwrap();
}

#[test]
fn a_large_message_goes_both_ways_while_small_ones_pass() {
    let pair = pair();
    echo(&pair.worker, true);
    echo(&pair.worker, true);
    let large: Vec<u8> = (0..40_000_000u32).map(|i| (i % 251) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| assert_eq!(bytes(&call(&pair.head, 2, &[b"head", &large]))[1], large));
        for i in 0..500u32 {
            let small = i.to_le_bytes();
            assert_eq!(bytes(&call(&pair.head, 2, &[&small])), [small.to_vec()]);
        }
    });
}

#[test]
fn ten_thousand_calls_may_be_outstanding() {
    let pair = pair();
    let queue = Queue::new(false).unwrap();
    for key in 0..10_000u64 {
        let wake = Wake::Queue(queue.clone(), key);
        pair.head
            .call_fetch(2, payload(&[&key.to_le_bytes()]), wake)
            .unwrap();
    }
    assert_eq!(pair.head.stats().counts.calls_outstanding, 10_000);
    echo(&pair.worker, false);
    let mut seen = 0;
    while seen < 10_000 {
        for (key, outcome) in queue.wait(&pair.head, deadline()).unwrap() {
            assert_eq!(bytes(&outcome), [key.to_le_bytes().to_vec()]);
            seen += 1;
        }
    }
    assert_eq!(pair.head.stats().counts.calls_outstanding, 0);
}

#[test]
fn many_threads_call_at_once() {
    let pair = pair();
    echo(&pair.worker, true);
    std::thread::scope(|scope| {
        for t in 0..8u64 {
            let head = &pair.head;
            scope.spawn(move || {
                for i in 0..300u64 {
                    let sent = (t * 1000 + i).to_le_bytes();
                    assert_eq!(bytes(&call(head, 2, &[&sent])), [sent.to_vec()]);
                }
            });
        }
    });
}

#[test]
fn a_process_whose_executors_are_busy_still_answers_whether_a_future_is_ready() {
    let pair = pair();
    let id = pair.head.create_future(2).unwrap();
    let target = RemoteRef { owner: 2, id };
    let ask = |op| {
        let cell = Cell::new();
        pair.head
            .ref_op(target, op, payload(&[]), Wake::Cell(cell.clone()))
            .unwrap();
        cell.wait(&pair.head, deadline(), true).unwrap().status
    };
    // Nobody runs calls on the worker at all.
    assert_eq!(ask(RefOp::IsReady), Status::No);
    let cell = Cell::new();
    pair.head
        .ref_op(target, RefOp::Put, payload(&[b"value"]), Wake::Cell(cell.clone()))
        .unwrap();
    assert_eq!(
        cell.wait(&pair.head, deadline(), true).unwrap().status,
        Status::Yes
    );
    assert_eq!(ask(RefOp::IsReady), Status::Yes);
    assert_eq!(ask(RefOp::Put), Status::AlreadySet);
    let cell = Cell::new();
    let outcome = match pair.head.watch(id, Want::Value, Wake::Cell(cell.clone())) {
        Watch::Now(outcome) => outcome,
        Watch::Later(_) => cell.wait(&pair.head, deadline(), true).unwrap(),
    };
    assert_eq!(bytes(&outcome), [b"value".to_vec()]);
}

#[test]
fn a_future_is_freed_at_its_owner_when_its_handle_goes() {
    let pair = pair();
    echo(&pair.worker, true);
    for i in 0..1000u32 {
        let id = pair.head.call_future(2, payload(&[&i.to_le_bytes()])).unwrap();
        pair.head.drop_handle(id);
    }
    eventually("references are freed", || {
        pair.head.stats().counts.refs_held == 0 && pair.worker.stats().counts.refs_owned == 0
    });
    eventually("calls have ended", || {
        pair.worker.stats().counts.calls_running == 0
    });
}

#[test]
fn the_loss_of_a_process_ends_every_wait_on_it() {
    let pair = pair();
    let id = pair.head.call_future(2, payload(&[b"never answered"])).unwrap();
    let (fetch, watch) = (Cell::new(), Cell::new());
    pair.head
        .call_fetch(2, payload(&[b"nor this"]), Wake::Cell(fetch.clone()))
        .unwrap();
    assert!(matches!(
        pair.head.watch(id, Want::Value, Wake::Cell(watch.clone())),
        Watch::Later(_)
    ));
    pair.worker.close();
    for cell in [fetch, watch] {
        let outcome = cell.wait(&pair.head, deadline(), true).unwrap();
        assert_eq!((outcome.status, outcome.pid), (Status::Exited, 2));
    }
    assert_eq!(pair.head.member_ids(), [1]);
    assert!(pair.head.check_pid(2).is_err());
}

#[test]
fn a_process_with_another_cookie_does_not_join() {
    let folder = folder();
    let head = node(1, address(&folder, 1), &[9; 32]);
    head.listen(&address(&folder, 1)).unwrap();
    head.expect_worker(Member {
        pid: 2,
        ..Member::default()
    });
    let stranger = node(2, address(&folder, 2), &[8; 32]);
    stranger.dial_head(&address(&folder, 1), [1; 16]).unwrap();
    assert!(stranger.wait_open(PATIENCE).is_err());
    assert_eq!(head.member_ids(), [1]);
    stranger.close();
    head.close();
    std::fs::remove_dir_all(folder).unwrap();
}

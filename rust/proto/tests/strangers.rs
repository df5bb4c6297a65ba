//! Word of a process may come before that of the head: it is asked for, and what was to be sent is kept until it answers.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::{CallError, Machine, Output, Watch};
use pydist_proto::message::{Member, Message, RefOp, Status};
use pydist_proto::record::Want;

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

/// A worker, process 2, that knows process 1 alone, and a head that knows what the worker has not heard of.
fn cluster(others: impl IntoIterator<Item = ProcId>) -> (Machine<u32>, Machine<u32>) {
    let mut head = Machine::new(member(1));
    let mut worker = Machine::new(member(2));
    head.join(member(2));
    worker.join(member(1));
    for pid in others {
        head.join(member(pid));
    }
    head.take_outputs();
    worker.take_outputs();
    (head, worker)
}

fn sent_to(machine: &mut Machine<u32>, to: ProcId) -> Vec<Message> {
    let sent = machine
        .take_outputs()
        .into_iter()
        .filter_map(|output| match output {
            Output::Send(pid, message) if pid == to => Some(message),
            _ => None,
        });
    sent.collect()
}

/// Hands the head what the worker has sent it, and the worker what the head answers.
fn converse(head: &mut Machine<u32>, worker: &mut Machine<u32>) -> Vec<Output<u32>> {
    for message in sent_to(worker, 1) {
        head.handle_message(2, message);
    }
    for message in sent_to(head, 2) {
        worker.handle_message(1, message);
    }
    worker.take_outputs()
}

fn reference(owner: ProcId) -> RemoteRef {
    let id = RefId { whence: 1, id: 9 };
    RemoteRef { owner, id }
}

#[test]
fn the_answer_comes_once_the_head_has_told_of_the_process() {
    let (mut head, mut worker) = cluster([]);
    assert_eq!(
        worker.open_fetch(3, &[], 7).err(),
        Some(CallError::NoSuchProcess(3))
    );
    worker.look_up(3, 8);
    // It joins while the question is on its way, so that the word of it comes before the answer.
    head.join(member(3));
    let outputs = converse(&mut head, &mut worker);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Wake(8, outcome) if outcome.status == Status::Yes))
    );
    worker.open_fetch(3, &[], 7).unwrap();
}

#[test]
fn who_came_later_hears_why_a_process_has_left() {
    let (mut head, mut worker) = cluster([3]);
    head.leave(3, "signal 9");
    head.take_outputs();
    worker.look_up(3, 8);
    let outputs = converse(&mut head, &mut worker);
    assert!(
        outputs
            .iter()
            .any(|o| matches!(o, Output::Wake(8, outcome) if outcome.status == Status::No))
    );
    assert_eq!(
        worker.open_fetch(3, &[], 7).err(),
        Some(CallError::Exited(3, "signal 9".to_owned()))
    );
}

#[test]
fn a_process_that_never_was_is_none_also_after_the_question() {
    let (mut head, mut worker) = cluster([]);
    worker.look_up(3, 8);
    converse(&mut head, &mut worker);
    assert_eq!(
        worker.open_fetch(3, &[], 7).err(),
        Some(CallError::NoSuchProcess(3))
    );
}

#[test]
fn a_request_to_an_owner_that_is_not_known_yet_goes_out_when_it_is() {
    let (mut head, mut worker) = cluster([]);
    let target = reference(3);
    worker.hold(target);
    assert!(matches!(worker.watch(target.id, Want::Value, 7), Watch::Later(_)));
    assert!(matches!(worker.watch(target.id, Want::Ready, 8), Watch::Later(_)));
    worker.join(member(3));
    let asked: Vec<RefOp> = sent_to(&mut worker, 3)
        .into_iter()
        .map(|message| match message {
            Message::RefOp { op, .. } => op,
            other => panic!("sent {other:?}"),
        })
        .collect();
    assert_eq!(asked, [RefOp::Fetch, RefOp::Wait]);
    assert!(converse(&mut head, &mut worker).is_empty());
}

#[test]
fn what_is_kept_is_not_overtaken_where_the_process_dials_in_first() {
    let (mut head, mut worker) = cluster([3]);
    let target = reference(3);
    worker.hold(target);
    worker.watch(target.id, Want::Value, 7);
    let questions = sent_to(&mut worker, 1);
    assert!(worker.meet(3));
    worker.watch(target.id, Want::Ready, 8);
    assert!(sent_to(&mut worker, 3).is_empty());
    for question in questions {
        head.handle_message(2, question);
    }
    for answer in sent_to(&mut head, 2) {
        worker.handle_message(1, answer);
    }
    let asked = sent_to(&mut worker, 3);
    assert!(matches!(
        asked.as_slice(),
        [
            Message::RefOp { op: RefOp::Fetch, .. },
            Message::RefOp { op: RefOp::Wait, .. }
        ]
    ));
}

#[test]
fn who_waits_for_an_owner_that_has_left_or_never_was_hears_of_it() {
    for told in [true, false] {
        let (mut head, mut worker) = cluster(told.then_some(3));
        if told {
            head.leave(3, "signal 9");
            head.take_outputs();
        }
        let target = reference(3);
        worker.hold(target);
        worker.watch(target.id, Want::Value, 7);
        let outputs = converse(&mut head, &mut worker);
        assert!(
            outputs
                .iter()
                .any(|o| matches!(o, Output::Wake(7, outcome) if outcome.status == Status::Exited))
        );
        assert_eq!(worker.counts().calls_outstanding, 0);
    }
}

#[test]
fn holds_of_an_owner_that_is_not_known_yet_are_told_when_it_is() {
    let (_, mut worker) = cluster([]);
    let target = reference(3);
    worker.handle_message(
        1,
        Message::Result {
            id: 99,
            status: Status::Value,
            body: std::sync::Arc::new(pydist_proto::body::Body {
                refs: vec![target],
                segments: Vec::new(),
            }),
        },
    );
    assert!(worker.deltas_waiting() > 0);
    assert!(worker.take_deltas().is_empty());
    worker.join(member(3));
    assert!(matches!(
        sent_to(&mut worker, 3).as_slice(),
        [Message::Refs { .. }]
    ));
}

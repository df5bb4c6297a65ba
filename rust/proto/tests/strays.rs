//! Messages that come too late, twice, or for what nobody asked: they are dropped and counted (F47).

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use proptest::prelude::*;
use pydist_proto::body::Body;
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Counts, Machine, Output};
use pydist_proto::message::{CallMode, Member, Message, RefDelta, RefOp, Status, Withdrawal};

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

/// The head, with the members 2 and 3; 4 has left.
fn head() -> Machine<u32> {
    let mut machine = Machine::new(member(1));
    (2..=4).for_each(|pid| machine.join(member(pid)));
    machine.leave(4, "removed");
    machine.take_outputs();
    machine
}

fn result(id: u64) -> Message {
    let (status, body) = (Status::Value, Arc::new(Body::of_bytes(vec![1])));
    Message::Result { id, status, body }
}

fn woken(machine: &mut Machine<u32>) -> usize {
    let outputs = machine.take_outputs().into_iter();
    outputs
        .filter(|output| matches!(output, Output::Wake(..)))
        .count()
}

#[test]
fn a_result_that_comes_twice_wakes_once() {
    let mut head = head();
    let id = head.open_fetch(2, &[], 7).unwrap();
    head.handle_message(2, result(id));
    head.handle_message(2, result(id));
    assert_eq!((woken(&mut head), head.strays()), (1, 1));
    assert_eq!(head.counts(), Counts::default());
}

#[test]
fn a_result_of_another_process_wakes_nobody() {
    let mut head = head();
    let id = head.open_fetch(2, &[], 7).unwrap();
    head.handle_message(3, result(id));
    assert_eq!((woken(&mut head), head.strays()), (0, 1));
    head.handle_message(2, result(id));
    assert_eq!((woken(&mut head), head.strays()), (1, 1));
}

#[test]
fn what_a_removed_process_sent_comes_late_and_is_dropped() {
    let mut head = head();
    let id = head.open_fetch(3, &[], 7).unwrap();
    head.leave(3, "removed");
    assert_eq!(woken(&mut head), 1, "by the removal");
    for message in [
        result(id),
        Message::Done { id },
        Message::Ready {
            member: Member::default(),
        },
        Message::Interrupt,
    ] {
        head.handle_message(3, message);
    }
    assert!(head.take_outputs().is_empty());
    assert_eq!(head.strays(), 4);
    assert_eq!(head.counts(), Counts::default());
}

#[test]
fn the_answer_to_a_request_that_was_undone_is_dropped_with_its_references() {
    let mut head = head();
    let channel = head.create_at(2);
    let target = RemoteRef {
        owner: 2,
        id: channel,
    };
    let req = head.open_op(target, &[], 7).unwrap();
    assert!(head.unwant(target, req));
    let inner = RemoteRef {
        owner: 2,
        id: RefId { whence: 2, id: 5 },
    };
    let (status, refs) = (Status::Value, vec![inner]);
    let body = Arc::new(Body {
        refs,
        segments: Vec::new(),
    });
    head.handle_message(
        2,
        Message::Result {
            id: req,
            status,
            body,
        },
    );
    assert_eq!((woken(&mut head), head.strays()), (0, 1));
    head.release(channel);
    assert_eq!(head.counts(), Counts::default());
}

fn ref_id() -> impl Strategy<Value = RefId> {
    (1..6u32, 0..6u64).prop_map(|(whence, id)| RefId { whence, id })
}

fn body() -> impl Strategy<Value = Body> {
    let reference = (1..6u32, ref_id()).prop_map(|(owner, id)| RemoteRef { owner, id });
    let bytes = prop::collection::vec(any::<u8>(), 0..12);
    (prop::collection::vec(reference, 0..3), bytes).prop_map(|(refs, bytes)| Body {
        refs,
        ..Body::of_bytes(bytes)
    })
}

fn status() -> impl Strategy<Value = Status> {
    use Status::*;
    prop::sample::select(vec![
        Value, Error, Cancelled, Yes, No, AlreadySet, UnknownRef, Exited, Closed, Lost,
    ])
}

fn ref_op() -> impl Strategy<Value = RefOp> {
    use RefOp::*;
    let values = [Fetch, Wait, IsReady, Put, Cancel, Create, Recount, Recall];
    let channels = [
        ChannelCreate,
        ChannelPut,
        ChannelTake,
        ChannelFetch,
        ChannelWait,
        ChannelIsReady,
        ChannelIsOpen,
        ChannelClose,
        ChannelPutOfMany,
        ChannelPutOnCredit,
        ChannelCredit,
        ChannelRecallCredit,
        ChannelReturnCredit,
    ];
    prop::sample::select(values.into_iter().chain(channels).collect::<Vec<_>>())
}

fn message() -> impl Strategy<Value = Message> {
    let id = 0..6u64;
    let mode = prop::sample::select(vec![CallMode::Fetch, CallMode::Future, CallMode::Do]);
    let how = prop::sample::select(vec![Withdrawal::IfWaiting, Withdrawal::Undo]);
    let delta = (ref_id(), 1..6u32, 1..6u32, any::<i32>()).prop_map(|(id, holder, giver, delta)| RefDelta {
        id,
        holder,
        giver,
        delta,
    });
    prop_oneof![
        2 => (id.clone(), mode, 0..3u64, body()).prop_map(|(id, mode, lane, body)| Message::Call { id, mode, lane, body }),
        4 => (id.clone(), status(), body()).prop_map(|(id, status, body)| {
            let body = Arc::new(body);
            Message::Result { id, status, body }
        }),
        2 => id.clone().prop_map(|id| Message::Done { id }),
        8 => (id.clone(), ref_op(), ref_id(), body()).prop_map(|(req, op, target, body)| Message::RefOp {
            req,
            op,
            target,
            body,
        }),
        3 => (id.clone(), ref_id(), how).prop_map(|(req, target, how)| Message::Withdraw { req, target, how }),
        2 => prop::collection::vec((ref_id(), id.clone()), 0..4).prop_map(|taken| Message::Confirm { taken }),
        2 => prop::collection::vec(delta, 0..4).prop_map(|deltas| Message::Refs { deltas }),
        1 => id.prop_map(|tick| Message::Ping { tick }),
        1 => (1..6u32).prop_map(|pid| Message::Join { member: member(pid) }),
        1 => (2..6u32).prop_map(|pid| Message::Leave { pid, reason: String::new() }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// F47: whatever members, strangers and the departed send, in any order, the process goes on: its own calls
    /// and channels still work.
    #[test]
    fn no_message_ends_the_process(messages in prop::collection::vec((1..6u32, message()), 0..24)) {
        let mut head = head();
        for (from, message) in messages {
            head.handle_message(from, message);
        }
        head.take_outputs();
        let id = head.open_fetch(2, &[], 7);
        if let Ok(id) = id {
            head.handle_message(2, result(id));
            prop_assert_eq!(woken(&mut head), 1);
        }
        let channel = head.create_channel(1);
        head.ask_own_channel(channel, RefOp::ChannelPut, Body::default(), 8);
        head.ask_own_channel(channel, RefOp::ChannelTake, Body::default(), 9);
        prop_assert_eq!(woken(&mut head), 2);
    }
}

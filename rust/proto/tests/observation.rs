//! What a process tells of itself to who watches it: an answer for each question, and the channels as they are.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::channel::{Asker, Channel, Gauge, Wish};
use pydist_proto::ids::ProcId;
use pydist_proto::machine::{CallError, Machine, Output};
use pydist_proto::message::{Member, Message, Status};

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

fn asker(req: u64) -> Asker {
    Asker { pid: 2, req }
}

fn body() -> Arc<Body> {
    Arc::new(Body::of_bytes(vec![1]))
}

#[test]
fn a_question_is_passed_on_and_its_answer_wakes_who_asked() {
    let mut head: Machine<u32> = Machine::new(member(1));
    let mut worker: Machine<u32> = Machine::new(member(2));
    head.join(member(2));
    worker.join(member(1));
    head.take_outputs();
    worker.take_outputs();
    let req = head.open_observation(2, 7).unwrap();
    let mut sent = head.take_outputs();
    let Some(Output::Send(2, question @ Message::Observe { .. })) = sent.pop() else {
        panic!("no question was sent");
    };
    worker.handle_message(1, question);
    let asked = worker.take_outputs();
    assert!(matches!(asked.as_slice(), [Output::Observe(1, asked)] if *asked == req));
    let answer = Message::Result {
        id: req,
        status: Status::Value,
        body: body(),
    };
    head.handle_message(2, answer);
    assert!(
        matches!(head.take_outputs().as_slice(), [Output::Wake(7, outcome)] if outcome.status == Status::Value)
    );
    assert_eq!(head.counts().calls_outstanding, 0);
}

#[test]
fn who_asks_one_that_leaves_hears_that_it_has_left() {
    let mut head: Machine<u32> = Machine::new(member(1));
    head.join(member(2));
    head.open_observation(2, 7).unwrap();
    head.take_outputs();
    head.leave(2, "signal 9");
    let outputs = head.take_outputs();
    assert!(
        outputs
            .iter()
            .any(|output| matches!(output, Output::Wake(7, outcome) if outcome.status == Status::Exited))
    );
    assert_eq!(head.counts().calls_outstanding, 0);
    assert!(matches!(
        head.open_observation(2, 8),
        Err(CallError::Exited(2, _))
    ));
    assert!(matches!(
        head.open_observation(9, 8),
        Err(CallError::NoSuchProcess(9))
    ));
}

#[test]
fn a_gauge_counts_items_and_who_waits() {
    let mut channel = Channel::new(1);
    let empty = Gauge {
        capacity: 1,
        items: 0,
        putters: 0,
        takers: 0,
        is_open: true,
    };
    assert_eq!(channel.gauge(), empty);
    channel.ask(asker(1), Wish::Take);
    channel.ask(asker(2), Wish::Ready);
    assert_eq!(channel.gauge(), Gauge { takers: 2, ..empty });
    for req in 3..=5 {
        channel.put(asker(req), body());
    }
    // The first went to the taker, the second is in the channel, the third waits for room.
    let full = Gauge {
        items: 1,
        putters: 1,
        ..empty
    };
    assert_eq!(channel.gauge(), full);
    channel.close(body());
    let closed = Gauge {
        items: 1,
        is_open: false,
        ..empty
    };
    assert_eq!(channel.gauge(), closed);
}

#[test]
fn the_newest_channels_are_told_of() {
    let mut head: Machine<u32> = Machine::new(member(1));
    let ids: Vec<_> = (0..5).map(|capacity| head.create_channel(capacity)).collect();
    let told = head.gauges(3);
    assert_eq!(told.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids[2..]);
    assert_eq!(
        told.iter().map(|(_, gauge)| gauge.capacity).collect::<Vec<_>>(),
        [2, 3, 4]
    );
    assert_eq!(head.gauges(10).len(), 5);
    assert!(head.gauges(0).is_empty());
}

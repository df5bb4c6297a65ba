//! Peers that have authenticated and say what they should not, and chains that are longer than the stack.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use pydist_proto::body::Body;
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::{Machine, Output, Watch};
use pydist_proto::message::{CallMode, Member, Message, RefDelta, RefOp, Status};
use pydist_proto::record::Want;

type Node = Machine<&'static str>;

const ME: ProcId = 1;
const PEER: ProcId = 2;

fn node() -> Node {
    let member = |pid| Member {
        pid,
        ..Member::default()
    };
    let mut machine = Machine::new(member(ME));
    machine.join(member(PEER));
    machine.take_outputs();
    machine
}

fn woken(machine: &mut Node) -> Vec<(&'static str, Status)> {
    let wake = |output| match output {
        Output::Wake(waiter, outcome) => Some((waiter, outcome.status)),
        _ => None,
    };
    machine.take_outputs().into_iter().filter_map(wake).collect()
}

fn answer(machine: &mut Node) -> Status {
    let sent = machine.take_outputs();
    match sent.as_slice() {
        [Output::Send(PEER, Message::Result { status, .. })] => *status,
        other => panic!("{other:?}"),
    }
}

fn result(id: u64, status: Status) -> Message {
    let body = Body::of_bytes(vec![1]).into();
    Message::Result { id, status, body }
}

/// D2: the news that a call has ended whose value is awaited leaves its waiter there.
#[test]
fn done_for_a_call_that_is_fetched() {
    let mut machine = node();
    let fetched = machine.open_fetch(PEER, &[], "value").unwrap();
    machine.handle_message(PEER, Message::Done { id: fetched });
    assert_eq!(machine.strays(), 1);
    machine.handle_message(PEER, result(fetched, Status::Value));
    assert_eq!(woken(&mut machine), [("value", Status::Value)]);

    let fetched = machine.open_fetch(PEER, &[], "the other").unwrap();
    machine.handle_message(PEER, Message::Done { id: fetched });
    machine.leave(PEER, "killed");
    assert_eq!(woken(&mut machine), [("the other", Status::Exited)]);
}

/// D2: nobody who waits in a channel loses it to one of the same name.
#[test]
fn a_channel_is_not_made_anew() {
    let create = |target| Message::RefOp {
        req: 7,
        op: RefOp::ChannelCreate,
        target,
        body: Body::of_bytes(vec![0; 8]),
    };
    let mut machine = node();
    let own = machine.create_channel(1);
    machine.ask_own_channel(own, RefOp::ChannelTake, Body::default(), "item");
    machine.handle_message(PEER, create(own));
    assert_eq!(answer(&mut machine), Status::UnknownRef);
    machine.ask_own_channel(own, RefOp::ChannelPut, Body::of_bytes(vec![5]), "put");
    assert_eq!(
        woken(&mut machine),
        [("put", Status::Yes), ("item", Status::Value)]
    );

    let theirs = RefId { whence: PEER, id: 3 };
    machine.handle_message(PEER, create(theirs));
    assert_eq!(answer(&mut machine), Status::Yes);
    machine.ask_own_channel(theirs, RefOp::ChannelTake, Body::default(), "item of theirs");
    machine.handle_message(PEER, create(theirs));
    assert_eq!(answer(&mut machine), Status::UnknownRef);
    machine.handle_message(
        PEER,
        Message::RefOp {
            req: 8,
            op: RefOp::ChannelPut,
            target: theirs,
            body: Body::of_bytes(vec![6]),
        },
    );
    assert_eq!(woken(&mut machine), [("item of theirs", Status::Value)]);
}

/// What the head has not taken up leaves nothing behind, for it never leaves the cluster.
#[test]
fn one_that_is_not_ready_is_not_heard() {
    let mut machine = node();
    let stranger = 3;
    let target = RefId {
        whence: stranger,
        id: 1,
    };
    let (op, body) = (RefOp::Create, Body::default());
    machine.handle_message(
        stranger,
        Message::RefOp {
            req: 0,
            op,
            target,
            body,
        },
    );
    let (id, mode, lane, body) = (2, CallMode::Future, 0, Body::default());
    machine.handle_message(stranger, Message::Call { id, mode, lane, body });
    assert!(machine.take_outputs().is_empty());
    assert_eq!(machine.counts().refs_owned, 0);
    assert_eq!(machine.strays(), 2);
    let member = Member::default();
    machine.handle_message(stranger, Message::Ready { member });
    let ready = machine.take_outputs();
    assert!(matches!(&ready[..], [Output::WorkerReady(member)] if member.pid == stranger));
}

const LINKS: u64 = 200_000;

fn naming(owner: ProcId, id: RefId) -> Body {
    Body {
        refs: vec![RemoteRef { owner, id }],
        ..Body::of_bytes(vec![1])
    }
}

/// Each value names the reference before it; the end of the last one is that of all, on a small stack.
fn on_a_small_stack(act: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(64 << 10);
    thread.spawn(act).unwrap().join().unwrap();
}

#[test]
fn a_long_chain_of_values_is_freed_by_its_owner() {
    on_a_small_stack(|| {
        let mut machine = node();
        let mut last = machine.create_local();
        for _ in 0..LINKS {
            let next = machine.create_local();
            assert!(machine.put(next, Status::Value, naming(ME, last)));
            machine.release(last);
            last = next;
        }
        assert_eq!(machine.counts().refs_owned as u64, LINKS + 1);
        machine.release(last);
        assert_eq!(machine.counts().refs_owned, 0);
    });
}

#[test]
fn a_long_chain_of_values_is_freed_when_its_holder_gives_it_back() {
    on_a_small_stack(|| {
        let mut machine = node();
        let mut last = RefId { whence: PEER, id: 1 };
        let call = |id, body| Message::Call {
            id,
            mode: CallMode::Future,
            lane: 0,
            body,
        };
        let delta = |id, delta| RefDelta {
            id,
            holder: PEER,
            giver: PEER,
            delta,
        };
        machine.handle_message(PEER, call(1, Body::default()));
        for id in 2..LINKS {
            machine.handle_message(PEER, call(id, Body::default()));
            let next = RefId { whence: PEER, id };
            assert!(machine.put(next, Status::Value, naming(ME, last)));
            let deltas = vec![delta(last, -1)];
            machine.handle_message(PEER, Message::Refs { deltas });
            last = next;
            machine.take_outputs();
        }
        let deltas = vec![delta(last, -2)];
        machine.handle_message(PEER, Message::Refs { deltas });
        machine.leave(PEER, "exited");
        assert_eq!(machine.counts().refs_owned, 0);
    });
}

#[test]
fn a_long_chain_of_channels_is_freed() {
    on_a_small_stack(|| {
        let mut machine = node();
        let mut last = machine.create_channel(1);
        for _ in 0..LINKS {
            let next = machine.create_channel(1);
            machine.ask_own_channel(next, RefOp::ChannelPut, naming(ME, last), "put");
            machine.release(last);
            last = next;
            machine.take_outputs();
        }
        machine.release(last);
        assert_eq!(machine.counts().refs_owned, 0);
    });
}

/// The same for values that came from elsewhere.
#[test]
fn a_long_chain_of_fetched_values_is_let_go() {
    on_a_small_stack(|| {
        let mut machine = node();
        let mut last = machine.open_future(PEER, &[]).unwrap();
        for _ in 0..LINKS {
            let next = machine.open_future(PEER, &[]).unwrap();
            let body = naming(PEER, last).into();
            let (id, status) = (next.id, Status::Value);
            machine.handle_message(PEER, Message::Result { id, status, body });
            machine.release(last);
            last = next;
            machine.take_outputs();
        }
        assert!(matches!(machine.watch(last, Want::Ready, "ready"), Watch::Now(_)));
        machine.release(last);
        assert_eq!(machine.counts().refs_held, 0);
    });
}

//! F19: a process that cannot be reached from here, but lives: it is gone for this process alone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use pydist_proto::body::Body;
use pydist_proto::ids::{HEAD, ProcId, RefId, RemoteRef};
use pydist_proto::machine::{CallError, Machine, Output, Watch};
use pydist_proto::message::{CallMode, Member, Message, RefOp, Status};
use pydist_proto::record::{Outcome, Want};

const REASON: &str = "no heartbeat for 30 s";

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

/// Who was woken, with what.
fn woken(machine: &mut Node) -> Vec<(&'static str, Outcome)> {
    let woken = machine.take_outputs().into_iter().filter_map(|o| match o {
        Output::Wake(who, outcome) => Some((who, outcome)),
        _ => None,
    });
    woken.collect()
}

fn ends(watch: Watch) -> Outcome {
    match watch {
        Watch::Now(outcome) => outcome,
        Watch::Later(_) => panic!("it waits"),
    }
}

/// Whatever waits for it ends, and says that it may live.
#[test]
fn waits_for_a_lost_process_end() {
    let mut machine = node(2);
    machine.open_fetch(3, &[], "call").unwrap();
    machine.open_fetch(4, &[], "other").unwrap();
    let future = machine.open_future(3, &[]).unwrap();
    assert!(matches!(
        machine.watch(future, Want::Ready, "ready"),
        Watch::Later(_)
    ));
    machine.lose(3, REASON);
    let mut ended = woken(&mut machine);
    ended.sort_unstable_by_key(|(who, _)| *who);
    assert_eq!(
        ended.iter().map(|(who, _)| *who).collect::<Vec<_>>(),
        ["call", "ready"]
    );
    for (_, outcome) in ended {
        assert_eq!((outcome.status, outcome.pid), (Status::Lost, 3));
        assert_eq!(outcome.body.text(), REASON);
    }
    assert_eq!(
        ends(machine.watch(future, Want::Value, "late")).status,
        Status::Lost
    );
    let lost = CallError::Lost(3, REASON.to_owned());
    assert_eq!(machine.open_fetch(3, &[], "late"), Err(lost));
    assert_eq!(machine.counts().calls_outstanding, 1);
}

/// It does not come back, whatever it says; when it has left for all, that is told from then on.
#[test]
fn a_lost_process_stays_lost_until_it_leaves() {
    let mut machine = node(2);
    machine.lose(3, REASON);
    machine.take_outputs();
    assert!(!machine.meet(3));
    let call = Message::Call {
        id: 1,
        mode: CallMode::Do,
        lane: 0,
        body: Body::default(),
    };
    machine.handle_message(3, call);
    assert_eq!((machine.strays(), machine.take_outputs().len()), (1, 0));
    let leave = Message::Leave {
        pid: 3,
        reason: "signal 9".to_owned(),
    };
    machine.handle_message(HEAD, leave);
    assert_eq!(
        machine.check_pid(3),
        Err(CallError::Exited(3, "signal 9".to_owned()))
    );
}

/// What a lost process held is given up by its owner; what others have from it stays.
#[test]
fn references_of_a_lost_process_are_reclaimed() {
    let mut owner = node(3);
    let create = |id| Message::RefOp {
        req: 0,
        op: RefOp::Create,
        target: RefId { whence: 2, id },
        body: Body::default(),
    };
    owner.handle_message(2, create(1));
    owner.handle_message(2, create(2));
    // Process 2 tells that it passes the second one on, and process 4 that it has come.
    let passed_on = pydist_proto::message::RefDelta {
        id: RefId { whence: 2, id: 2 },
        holder: 4,
        giver: 2,
        delta: 1,
    };
    owner.handle_message(
        2,
        Message::Refs {
            deltas: vec![passed_on],
        },
    );
    assert_eq!(owner.counts().refs_owned, 2);
    owner.lose(2, REASON);
    assert_eq!(owner.counts().refs_owned, 1);
    let given_back = pydist_proto::message::RefDelta {
        delta: -1,
        ..passed_on
    };
    owner.handle_message(
        4,
        Message::Refs {
            deltas: vec![given_back],
        },
    );
    assert_eq!(owner.counts().refs_owned, 0);
}

/// A reference that comes from a third process after its owner was lost ends as those that were here.
#[test]
fn a_reference_to_a_lost_process() {
    let mut machine = node(2);
    machine.lose(3, REASON);
    let target = RemoteRef {
        owner: 3,
        id: RefId { whence: 3, id: 1 },
    };
    machine.hold(target);
    let outcome = ends(machine.watch(target.id, Want::Value, "late"));
    assert_eq!((outcome.status, outcome.pid), (Status::Lost, 3));
    machine.release(target.id);
    assert_eq!((machine.counts().refs_held, machine.deltas_waiting()), (0, 0));
}

//! The state machine of one process, step by step: what it does with each message and each call of its owner.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::ids::{HEAD, ProcId, RefId, RemoteRef};
use pydist_proto::machine::{CallError, Counts, EAGER_MAX, Machine, Output, Watch};
use pydist_proto::message::{CallMode, Member, Message, RefDelta, RefOp, Status};
use pydist_proto::record::{Outcome, Want};
use pydist_proto::topology::{Topology, Wiring};

type Node = Machine<&'static str>;

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

/// A process that knows of the processes 1 to 4.
fn node(me: ProcId) -> Node {
    let mut machine = Machine::new(member(me));
    (1..=4).for_each(|pid| machine.join(member(pid)));
    machine.take_outputs();
    machine
}

fn bytes(n: usize) -> Body {
    Body::of_bytes(vec![7; n])
}

fn call(machine: &mut Node, from: ProcId, id: u64, mode: CallMode) -> RefId {
    machine.handle_message(
        from,
        Message::Call {
            id,
            mode,
            lane: 0,
            body: Body::default(),
        },
    );
    RefId { whence: from, id }
}

fn op(machine: &mut Node, from: ProcId, req: u64, op: RefOp, target: RefId, body: Body) {
    machine.handle_message(
        from,
        Message::RefOp {
            req,
            op,
            target,
            body,
        },
    );
}

fn result(machine: &mut Node, from: ProcId, id: u64, status: Status, body: Body) {
    machine.handle_message(
        from,
        Message::Result {
            id,
            status,
            body: Arc::new(body),
        },
    );
}

/// The outputs as text: whom is what sent, who is woken with what.
fn outputs(machine: &mut Node) -> Vec<String> {
    machine
        .take_outputs()
        .into_iter()
        .map(|output| describe(&output))
        .collect()
}

fn describe(output: &Output<&'static str>) -> String {
    match output {
        Output::Send(to, Message::Result { id, status, body }) => {
            format!("result {id} to {to}: {status:?} of {}", body.size())
        }
        Output::Send(to, Message::RefOp { req, op, target, .. }) => {
            format!("{op:?} {req} of {}:{} to {to}", target.whence, target.id)
        }
        Output::Send(to, message) => format!("{message:?} to {to}"),
        Output::Wake(who, outcome) => format!(
            "{who}: {:?} of {} from {}",
            outcome.status,
            outcome.body.size(),
            outcome.pid
        ),
        Output::Deliver(call) => format!("run {} of {}", call.id, call.src),
        other => format!("{other:?}"),
    }
}

fn now(watch: Watch) -> Outcome {
    match watch {
        Watch::Now(outcome) => outcome,
        Watch::Later(_) => panic!("the value is not here"),
    }
}

#[track_caller]
fn later(watch: Watch) -> u64 {
    match watch {
        Watch::Later(key) => key,
        Watch::Now(outcome) => panic!("the wait ended at once: {outcome:?}"),
    }
}

/// A small result travels with the news that the call has ended; a larger one stays until it is fetched.
#[test]
fn a_result_is_eager_up_to_the_limit() {
    for (size, news) in [
        (0, "result 5 to 2: Value of 0".to_owned()),
        (EAGER_MAX, format!("result 5 to 2: Value of {EAGER_MAX}")),
        (EAGER_MAX + 1, "Done { id: 5 } to 2".to_owned()),
    ] {
        let mut owner = node(3);
        call(&mut owner, 2, 5, CallMode::Future);
        assert_eq!(outputs(&mut owner), ["run 5 of 2"]);
        assert!(owner.begin(2, 5));
        owner.finish_future(2, 5, Status::Value, bytes(size));
        assert_eq!(outputs(&mut owner), [news]);
        assert_eq!(
            owner.counts(),
            Counts {
                refs_owned: 1,
                ..Counts::default()
            }
        );
    }
}

/// An eager result makes a later fetch local, and the owner lets go of the value.
#[test]
fn an_eager_result_is_fetched_here() {
    let mut caller = node(2);
    let id = caller.open_future(3, &[]).unwrap();
    result(&mut caller, 3, id.id, Status::Value, bytes(9));
    assert!(caller.known_ready(id));
    let giver_of_hold = RefDelta {
        id,
        holder: 2,
        giver: 2,
        delta: -1,
    };
    let told = caller.take_deltas();
    assert!(matches!(&told[..], [(3, Message::Refs { deltas })] if deltas == &[giver_of_hold]));
    assert_eq!(now(caller.watch(id, Want::Ready, "w")).status, Status::Yes);
    assert_eq!(now(caller.watch(id, Want::Value, "w")).body.size(), 9);
    assert_eq!(
        now(caller.watch(id, Want::Value, "w")).status,
        Status::Yes,
        "Python has the value by now"
    );
    caller.release(id);
    assert_eq!(outputs(&mut caller), [""; 0]);
    assert_eq!((caller.counts(), caller.deltas_waiting()), (Counts::default(), 0));
}

/// After `Done` the value is asked for when it is wanted, once for all who want it.
#[test]
fn a_value_that_stayed_is_fetched_when_it_is_wanted() {
    let mut caller = node(2);
    let id = caller.open_future(3, &[]).unwrap();
    later(caller.watch(id, Want::Ready, "ready"));
    assert_eq!(outputs(&mut caller), [""; 0], "the callee tells by itself");
    caller.handle_message(3, Message::Done { id: id.id });
    assert_eq!(outputs(&mut caller), ["ready: Yes of 0 from 3"]);
    later(caller.watch(id, Want::Value, "a"));
    later(caller.watch(id, Want::Value, "b"));
    assert_eq!(outputs(&mut caller), ["Fetch 2 of 2:1 to 3"]);
    result(&mut caller, 3, 2, Status::Value, bytes(100_000));
    assert_eq!(
        outputs(&mut caller),
        ["a: Value of 100000 from 3", "b: Value of 100000 from 3"]
    );
}

/// Who waits for the value before `Done` gets it fetched on `Done`.
#[test]
fn done_fetches_for_those_who_wait_for_the_value() {
    let mut caller = node(2);
    let id = caller.open_future(3, &[]).unwrap();
    later(caller.watch(id, Want::Value, "value"));
    caller.handle_message(3, Message::Done { id: id.id });
    assert_eq!(outputs(&mut caller), ["Fetch 2 of 2:1 to 3"]);
}

/// F46: what a foreign holder asks may come before the call itself: it waits for the call.
#[test]
fn an_operation_may_arrive_before_the_call() {
    let mut owner = node(3);
    let id = RefId { whence: 2, id: 5 };
    op(&mut owner, 4, 1, RefOp::Fetch, id, Body::default());
    op(&mut owner, 4, 2, RefOp::IsReady, id, Body::default());
    assert_eq!(outputs(&mut owner), ["result 2 to 4: No of 0"]);
    let delta = |giver, delta| Message::Refs {
        deltas: vec![RefDelta {
            id,
            holder: 4,
            giver,
            delta,
        }],
    };
    owner.handle_message(2, delta(2, 1));
    owner.handle_message(4, delta(2, -1));
    call(&mut owner, 2, 5, CallMode::Future);
    owner.begin(2, 5);
    owner.finish_future(2, 5, Status::Value, bytes(1));
    let expected = [
        "run 5 of 2",
        "result 1 to 4: Value of 1",
        "result 5 to 2: Value of 1",
    ];
    assert_eq!(outputs(&mut owner), expected);
}

/// F46, F52: another holder's put may overtake the call, whose caller still hears of the value.
#[test]
fn a_put_may_arrive_before_the_call() {
    let mut owner = node(3);
    let id = RefId { whence: 2, id: 5 };
    op(&mut owner, 4, 1, RefOp::Put, id, bytes(3));
    call(&mut owner, 2, 5, CallMode::Future);
    owner.begin(2, 5);
    owner.finish_future(2, 5, Status::Value, bytes(1));
    assert_eq!(
        outputs(&mut owner),
        [
            "result 1 to 4: Yes of 0",
            "result 5 to 2: Value of 3",
            "run 5 of 2"
        ]
    );
}

/// F47: results for unknown calls, late ones, duplicates and those of the wrong process wake nobody.
#[test]
fn results_that_nobody_waits_for_are_dropped() {
    let mut caller = node(2);
    let named = RemoteRef {
        owner: 4,
        id: RefId { whence: 4, id: 1 },
    };
    let with_ref = || Body {
        refs: vec![named],
        ..bytes(1)
    };
    result(&mut caller, 3, 99, Status::Value, with_ref());
    let id = caller.open_fetch(3, &[], "call").unwrap();
    result(&mut caller, 4, id, Status::Value, with_ref());
    assert_eq!(outputs(&mut caller), [""; 0]);
    result(&mut caller, 3, id, Status::Value, bytes(1));
    result(&mut caller, 3, id, Status::Error, with_ref());
    caller.handle_message(3, Message::Done { id });
    assert_eq!(outputs(&mut caller), ["call: Value of 1 from 3"]);
    let abandoned = caller.open_fetch(3, &[], "gone").unwrap();
    caller.abandon(abandoned);
    result(&mut caller, 3, abandoned, Status::Value, with_ref());
    assert_eq!(outputs(&mut caller), [""; 0]);
    assert_eq!(caller.counts(), Counts::default());
    // Each of the four bodies that were dropped gives back the hold that came with it.
    let told: i32 = match &caller.take_deltas()[..] {
        [(4, Message::Refs { deltas })] => deltas.iter().map(|d| d.delta).sum(),
        other => panic!("{other:?}"),
    };
    assert_eq!(told, -4);
}

/// F47: a future that was dropped before its result came leaves nothing behind when that comes.
#[test]
fn a_result_after_the_last_handle_is_dropped() {
    let mut caller = node(2);
    let id = caller.open_future(3, &[]).unwrap();
    caller.release(id);
    assert_eq!(caller.counts(), Counts::default());
    result(&mut caller, 3, id.id, Status::Value, bytes(1));
    assert_eq!(outputs(&mut caller), [""; 0]);
    assert_eq!(caller.counts(), Counts::default());
}

/// F47: nothing of a process that has left is taken up.
#[test]
fn messages_of_a_process_that_left_are_dropped() {
    let mut owner = node(3);
    owner.leave(2, "killed");
    owner.take_outputs();
    let id = call(&mut owner, 2, 5, CallMode::Future);
    op(&mut owner, 2, 1, RefOp::Create, id, Body::default());
    op(&mut owner, 2, 2, RefOp::Fetch, id, Body::default());
    owner.handle_message(
        2,
        Message::Refs {
            deltas: vec![RefDelta {
                id,
                holder: 4,
                giver: 2,
                delta: 1,
            }],
        },
    );
    assert_eq!(outputs(&mut owner), [""; 0]);
    assert_eq!(owner.counts(), Counts::default());
}

/// F52: the first put wins, whoever makes it; the others are told so.
#[test]
fn a_second_put_is_told_that_there_is_a_value() {
    let mut owner = node(3);
    let id = RefId { whence: 2, id: 5 };
    op(&mut owner, 2, 0, RefOp::Create, id, Body::default());
    op(&mut owner, 2, 1, RefOp::Put, id, bytes(1));
    op(&mut owner, 4, 2, RefOp::Put, id, bytes(2));
    assert!(!owner.put(id, Status::Value, bytes(3)) && !owner.put_local(id));
    op(&mut owner, 4, 3, RefOp::Fetch, id, Body::default());
    let expected = [
        "result 1 to 2: Yes of 0",
        "result 2 to 4: AlreadySet of 0",
        "result 3 to 4: Value of 1",
    ];
    assert_eq!(outputs(&mut owner), expected);
    let own = owner.create_local();
    assert!(owner.put_local(own) && !owner.put(own, Status::Value, bytes(1)));
}

/// F52: a call that ends after somebody has put its value does not change that.
#[test]
fn a_call_does_not_replace_a_value_that_was_put() {
    let mut owner = node(3);
    let id = call(&mut owner, 2, 5, CallMode::Future);
    owner.begin(2, 5);
    op(&mut owner, 4, 1, RefOp::Put, id, bytes(1));
    op(&mut owner, 4, 2, RefOp::Cancel, id, Body::default());
    owner.finish_future(2, 5, Status::Value, bytes(2));
    op(&mut owner, 4, 3, RefOp::Fetch, id, Body::default());
    assert_eq!(outputs(&mut owner).last().unwrap(), "result 3 to 4: Value of 1");
}

/// A call that has not begun never does once it is cancelled.
#[test]
fn a_queued_call_is_cancelled() {
    let mut owner = node(3);
    let id = call(&mut owner, 2, 5, CallMode::Future);
    op(&mut owner, 2, 9, RefOp::Cancel, id, Body::default());
    let expected = [
        "run 5 of 2",
        "result 5 to 2: Cancelled of 0",
        "result 9 to 2: Yes of 0",
    ];
    assert_eq!(outputs(&mut owner), expected);
    assert!(!owner.begin(2, 5));
    assert_eq!(owner.counts().calls_running, 0);
    op(&mut owner, 2, 10, RefOp::Cancel, id, Body::default());
    assert_eq!(outputs(&mut owner), ["result 10 to 2: No of 0"]);
}

/// A call that runs is interrupted, and its result is dropped.
#[test]
fn a_running_call_is_cancelled() {
    let mut owner = node(3);
    let id = call(&mut owner, 2, 5, CallMode::Future);
    assert!(owner.begin(2, 5));
    owner.take_outputs();
    assert!(owner.cancel(id) && !owner.cancel(id), "it is cancelled once");
    assert_eq!(
        outputs(&mut owner),
        ["InterruptCall(2, 5)", "result 5 to 2: Cancelled of 0"]
    );
    owner.finish_future(2, 5, Status::Value, bytes(1));
    assert_eq!(outputs(&mut owner), [""; 0]);
    assert_eq!(
        owner.counts(),
        Counts {
            refs_owned: 1,
            ..Counts::default()
        }
    );
}

/// A call that has ended is not cancelled.
#[test]
fn a_finished_call_is_not_cancelled() {
    let mut owner = node(3);
    let id = call(&mut owner, 2, 5, CallMode::Future);
    owner.begin(2, 5);
    owner.finish_future(2, 5, Status::Value, bytes(1));
    assert!(!owner.cancel(id));
}

/// A fetching call that is cancelled is answered at once, and not again when it ends.
#[test]
fn a_fetching_call_that_is_cancelled_is_answered_once() {
    let mut owner = node(3);
    let id = call(&mut owner, 2, 5, CallMode::Fetch);
    assert!(owner.begin(2, 5));
    owner.take_outputs();
    assert!(owner.cancel(id));
    assert_eq!(
        outputs(&mut owner),
        ["InterruptCall(2, 5)", "result 5 to 2: Cancelled of 0"]
    );
    assert!(!owner.finish(2, 5, &[]));
    assert_eq!(owner.counts(), Counts::default());
}

/// A process that calls before the head has told of it here gets its answer.
#[test]
fn a_caller_that_is_not_known_yet_is_answered() {
    let mut owner = node(3);
    call(&mut owner, 9, 5, CallMode::Fetch);
    assert!(owner.begin(9, 5) && owner.finish(9, 5, &[]));
}

/// F6: the death of a process ends all that waits for it in one step, and nobody is woken while it is a member.
#[test]
fn a_death_ends_all_that_waits_for_it() {
    let mut machine = node(2);
    let target = RemoteRef {
        owner: 3,
        id: RefId { whence: 4, id: 7 },
    };
    machine.open_fetch(3, &[], "call").unwrap();
    machine.open_op(target, &[], "op").unwrap();
    let future = machine.open_future(3, &[]).unwrap();
    later(machine.watch(future, Want::Value, "value"));
    later(machine.watch(future, Want::Ready, "ready"));
    let made = machine.create_at(3);
    later(machine.watch(made, Want::Value, "made"));
    let kept = machine.open_future(3, &[]).unwrap();
    result(&mut machine, 3, kept.id, Status::Value, bytes(5));
    let other = machine.open_future(4, &[]).unwrap();
    later(machine.watch(other, Want::Value, "other"));
    machine.take_outputs();

    machine.handle_message(
        HEAD,
        Message::Leave {
            pid: 3,
            reason: "killed by signal 9".to_owned(),
        },
    );
    assert!(machine.members().all(|m| m.pid != 3));
    let told = outputs(&mut machine);
    assert_eq!(told[0], "Left(3)");
    let mut woken = told[1..].to_vec();
    woken.sort_unstable();
    let expected = ["call", "made", "op", "ready", "value"].map(|who| format!("{who}: Exited of 18 from 3"));
    assert_eq!(woken, expected);

    let exited = now(machine.watch(future, Want::Ready, "again"));
    assert_eq!(
        (exited.status, exited.body.text().as_str()),
        (Status::Exited, "killed by signal 9")
    );
    assert_eq!(
        now(machine.watch(kept, Want::Value, "kept")).body.size(),
        5,
        "what has come stays"
    );
    let gone = CallError::Exited(3, "killed by signal 9".to_owned());
    assert_eq!(machine.open_fetch(3, &[], "late"), Err(gone));
    assert_eq!(machine.open_do(99, &[]), Err(CallError::NoSuchProcess(99)));
}

/// F6: a reference that arrives after its owner has left ends its waiters at once.
#[test]
fn a_reference_that_arrives_after_its_owner_left() {
    let mut machine = node(2);
    machine.leave(3, "killed");
    let late = RemoteRef {
        owner: 3,
        id: RefId { whence: 3, id: 1 },
    };
    let body = Body {
        refs: vec![late],
        ..bytes(1)
    };
    machine.handle_message(
        4,
        Message::Call {
            id: 1,
            mode: CallMode::Do,
            lane: 0,
            body,
        },
    );
    assert_eq!(
        now(machine.watch(late.id, Want::Value, "w")).status,
        Status::Exited
    );
    machine.release(late.id);
    assert_eq!((machine.counts().refs_held, machine.deltas_waiting()), (0, 0));
}

/// F6: a death wakes those who wait here for a call that the dead process was to make.
#[test]
fn the_death_of_the_maker_ends_what_never_arrived() {
    let mut owner = node(3);
    let id = RefId { whence: 2, id: 5 };
    op(&mut owner, 4, 1, RefOp::Fetch, id, Body::default());
    let hold = |delta| Message::Refs {
        deltas: vec![RefDelta {
            id,
            holder: 4,
            giver: HEAD,
            delta,
        }],
    };
    owner.handle_message(HEAD, hold(1));
    owner.leave(2, "killed");
    assert_eq!(outputs(&mut owner), ["Left(2)", "result 1 to 4: Exited of 6"]);
    owner.handle_message(4, hold(-1));
    op(&mut owner, 4, 2, RefOp::Fetch, id, Body::default());
    assert_eq!(outputs(&mut owner), ["result 2 to 4: UnknownRef of 0"]);
    assert_eq!(owner.counts(), Counts::default());

    let mut holder = node(4);
    let refs = vec![RemoteRef { owner: 3, id }];
    holder.handle_message(
        HEAD,
        Message::Call {
            id: 1,
            mode: CallMode::Do,
            lane: 0,
            body: Body { refs, ..bytes(1) },
        },
    );
    later(holder.watch(id, Want::Value, "held"));
    holder.take_outputs();
    result(&mut holder, 3, 1, Status::Exited, bytes(6));
    assert_eq!(
        outputs(&mut holder),
        ["held: Exited of 6 from 2"],
        "the maker has left, not the owner"
    );
}

/// F46: the owner asks what is left of the references that a dead process passed on, and frees what is not held.
#[test]
fn what_a_dead_process_passed_on_is_counted_again() {
    let mut owner = node(3);
    let id = RefId { whence: 2, id: 5 };
    op(&mut owner, 2, 0, RefOp::Create, id, Body::default());
    owner.handle_message(
        2,
        Message::Refs {
            deltas: vec![RefDelta {
                id,
                holder: 4,
                giver: 2,
                delta: 1,
            }],
        },
    );
    owner.leave(2, "killed");
    assert_eq!(outputs(&mut owner), ["Left(2)", "Recount 2 of 2:5 to 4"]);
    assert_eq!(owner.counts().refs_owned, 1);

    let mut holder = node(4);
    op(&mut holder, 3, 2, RefOp::Recount, id, Body::default());
    assert_eq!(
        holder.deltas_waiting(),
        0,
        "what process 2 has sent may still come"
    );
    holder.leave(2, "killed");
    for (to, message) in holder.take_deltas() {
        assert_eq!(to, 3);
        owner.handle_message(4, message);
    }
    assert_eq!(owner.counts(), Counts::default());
}

/// The value of a reference of this process may be a Python object: it is pickled once, when another asks for it.
#[test]
fn a_local_value_is_exported_when_another_process_asks() {
    let mut owner = node(3);
    let id = owner.create_local();
    later(owner.watch(id, Want::Value, "here"));
    op(&mut owner, 4, 1, RefOp::Fetch, id, Body::default());
    op(&mut owner, 4, 2, RefOp::Wait, id, Body::default());
    assert!(owner.put_local(id));
    let told = outputs(&mut owner);
    assert_eq!(told[..2], ["here: Yes of 0 from 3", "result 2 to 4: Yes of 0"]);
    assert!(told.len() == 3 && told[2].starts_with("Export"));
    op(&mut owner, 2, 3, RefOp::Fetch, id, Body::default());
    assert_eq!(outputs(&mut owner), [""; 0], "it is being pickled already");
    assert_eq!(now(owner.watch(id, Want::Value, "again")).status, Status::Yes);
    owner.exported(id, Status::Value, bytes(4));
    assert_eq!(
        outputs(&mut owner),
        ["result 1 to 4: Value of 4", "result 3 to 2: Value of 4"]
    );
}

/// F46: a value that names a reference keeps it alive at its owner, also once it was fetched here.
#[test]
fn a_kept_value_holds_the_references_that_it_names() {
    let mut machine = node(3);
    let inner = machine.open_future(4, &[]).unwrap();
    let outer = call(&mut machine, 2, 5, CallMode::Future);
    machine.begin(2, 5);
    assert!(machine.pin(inner));
    let refs = vec![RemoteRef { owner: 4, id: inner }];
    machine.finish_future(
        2,
        5,
        Status::Value,
        Body {
            refs,
            ..bytes(EAGER_MAX + 1)
        },
    );
    machine.release(inner);
    machine.release(inner);
    machine.take_outputs();
    result(&mut machine, 4, inner.id, Status::Value, bytes(1));
    assert_eq!(
        machine.deltas_waiting(),
        0,
        "process 2 may still ask for the value of process 4"
    );
    let gone = RefDelta {
        id: outer,
        holder: 2,
        giver: 2,
        delta: -1,
    };
    machine.handle_message(2, Message::Refs { deltas: vec![gone] });
    assert_eq!(
        (machine.counts(), machine.deltas_waiting()),
        (Counts::default(), 1)
    );
}

/// A request that nobody waits for any more is withdrawn from the owner, who forgets it.
#[test]
fn a_wait_is_taken_back() {
    let (mut holder, mut owner) = (node(4), node(3));
    let id = holder.create_at(3);
    let first = later(holder.watch(id, Want::Value, "a"));
    let second = later(holder.watch(id, Want::Value, "b"));
    assert_eq!(
        outputs(&mut holder),
        ["Create 0 of 4:1 to 3", "Fetch 2 of 4:1 to 3"]
    );
    op(&mut owner, 4, 0, RefOp::Create, id, Body::default());
    op(&mut owner, 4, 2, RefOp::Fetch, id, Body::default());
    holder.unwatch(id, first);
    assert_eq!(outputs(&mut holder), [""; 0]);
    holder.unwatch(id, second);
    assert_eq!(holder.counts().calls_outstanding, 0);
    for output in holder.take_outputs() {
        match output {
            Output::Send(3, message @ Message::Withdraw { req: 2, .. }) => owner.handle_message(4, message),
            other => panic!("{other:?}"),
        }
    }
    assert!(owner.put(id, Status::Value, bytes(1)));
    assert_eq!(outputs(&mut owner), [""; 0]);
}

/// Only the head adds, removes and ends processes.
#[test]
fn only_the_head_is_obeyed() {
    let mut machine = node(3);
    machine.handle_message(2, Message::Exit);
    machine.handle_message(2, Message::Join { member: member(9) });
    machine.handle_message(
        2,
        Message::Leave {
            pid: 4,
            reason: String::new(),
        },
    );
    assert_eq!(outputs(&mut machine), [""; 0]);
    assert_eq!(machine.members().map(|m| m.pid).collect::<Vec<_>>(), [1, 2, 3, 4]);
    machine.handle_message(HEAD, Message::Join { member: member(9) });
    machine.handle_message(
        HEAD,
        Message::Leave {
            pid: 4,
            reason: String::new(),
        },
    );
    machine.handle_message(HEAD, Message::Exit);
    assert_eq!(outputs(&mut machine), ["Joined(9)", "Left(4)", "Exit"]);
    machine.handle_message(HEAD, Message::Join { member: member(4) });
    assert!(machine.member(4).is_none(), "an id is never used again");
}

/// The head tells everybody of a new process, and the new one of everybody.
#[test]
fn the_head_introduces_processes() {
    let mut head = Machine::<&str>::new(member(HEAD));
    head.join(member(2));
    head.take_outputs();
    head.join(member(3));
    let joins: Vec<(ProcId, ProcId)> = head
        .take_outputs()
        .iter()
        .filter_map(|output| match output {
            Output::Send(to, Message::Join { member }) => Some((*to, member.pid)),
            _ => None,
        })
        .collect();
    assert_eq!(joins, [(3, 1), (3, 2), (2, 3)]);
}

/// Pings are answered; whoever sends a pong gets nothing.
#[test]
fn pings_are_answered() {
    let mut machine = node(3);
    machine.handle_message(2, Message::Ping { tick: 8 });
    machine.handle_message(2, Message::Pong { tick: 8 });
    assert_eq!(outputs(&mut machine), ["Pong { tick: 8 } to 2"]);
}

fn recall(machine: &mut Node, from: ProcId, target: RefId) {
    let body = Body::default();
    let op = RefOp::Recall;
    machine.handle_message(
        from,
        Message::RefOp {
            req: 0,
            op,
            target,
            body,
        },
    );
}

#[test]
fn a_recalled_call_ends_as_cancelled_unless_it_has_begun() {
    let mut machine = node(2);
    let queued = call(&mut machine, 3, 7, CallMode::Fetch);
    let begun = call(&mut machine, 3, 8, CallMode::Fetch);
    assert!(machine.begin(3, 8));
    machine.take_outputs();
    recall(&mut machine, 3, begun);
    recall(&mut machine, 4, queued);
    assert!(
        machine.take_outputs().is_empty(),
        "it runs, or is of another process"
    );
    recall(&mut machine, 3, queued);
    let outputs = machine.take_outputs();
    let answered = |o: &Output<_>| {
        matches!(
            o,
            Output::Send(
                3,
                Message::Result {
                    id: 7,
                    status: Status::Cancelled,
                    ..
                }
            )
        )
    };
    assert!(outputs.len() == 1 && outputs.iter().all(answered), "{outputs:?}");
    assert!(!machine.begin(3, 7));
    assert!(machine.begin(3, 8));
}

#[test]
fn recalling_and_cancelling_are_told_to_who_runs_the_call() {
    let mut machine = node(2);
    let recalled = machine.open_fetch(3, &[], "recalled").unwrap();
    let cancelled = machine.open_fetch(4, &[], "cancelled").unwrap();
    machine.recall(recalled);
    machine.cancel_fetch(cancelled);
    machine.recall(99);
    let told: Vec<_> = machine
        .take_outputs()
        .into_iter()
        .map(|o| match o {
            Output::Send(
                pid,
                Message::RefOp {
                    req: 0, op, target, ..
                },
            ) => (pid, op, target.id),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        told,
        [(3, RefOp::Recall, recalled), (4, RefOp::Cancel, cancelled)]
    );
    // The answer to one that was cancelled wakes nobody.
    for (from, id) in [(3, recalled), (4, cancelled)] {
        let (status, body) = (Status::Cancelled, Arc::default());
        machine.handle_message(from, Message::Result { id, status, body });
    }
    let woken: Vec<_> = machine
        .take_outputs()
        .into_iter()
        .map(|o| match o {
            Output::Wake(wake, outcome) => (wake, outcome.status),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(woken, [("recalled", Status::Cancelled)]);
    assert_eq!(machine.counts().calls_outstanding, 0);
}

#[test]
fn a_custom_topology_connects_those_that_are_named() {
    let custom = Topology {
        wiring: Wiring::Custom,
        eager: false,
    };
    let mut head: Node = Machine::new(member(HEAD));
    let named = |pid, connected: &[ProcId]| Member {
        connected: connected.to_vec(),
        ..member(pid)
    };
    head.set_topology(custom);
    head.join(named(12, &[]));
    head.join(named(13, &[12]));
    head.join(named(14, &[]));
    let mut workers: Vec<_> = [12, 13, 14]
        .map(|pid| {
            let mut worker: Node = Machine::new(member(0));
            worker.assign(pid);
            worker.set_topology(custom);
            worker
        })
        .into();
    for output in head.take_outputs() {
        if let Output::Send(to, message) = output {
            let worker = &mut workers[to as usize - 12];
            worker.handle_message(HEAD, message);
            // An eager one dials when it hears of another, so it knows by then whether they are connected.
            for output in worker.take_outputs() {
                if let Output::Joined(other) = output {
                    let named = matches!((to, other), (12, 13) | (13, 12) | (_, HEAD));
                    assert_eq!(worker.is_connected_to(other), named, "{to} hears of {other}");
                }
            }
        }
    }
    for (from, connected) in [
        (12, [true, true, false]),
        (13, [true, true, false]),
        (14, [false, false, true]),
    ] {
        let worker = &workers[from as usize - 12];
        for (to, connected) in [12, 13, 14].into_iter().zip(connected) {
            let wanted = if connected {
                Ok(())
            } else {
                Err(CallError::NotConnected(from, to))
            };
            assert_eq!(worker.check_pid(to), wanted, "{from} to {to}");
        }
        assert_eq!(worker.check_pid(HEAD), Ok(()));
        assert_eq!(head.check_pid(from), Ok(()));
    }
}

#[test]
fn a_worker_whose_address_stays_on_another_host_is_not_connected() {
    let on = |pid, host: &str, address: &str| Member {
        host: host.to_owned(),
        address: address.to_owned(),
        ..member(pid)
    };
    let mut here: Node = Machine::new(on(2, "a", "tcp:127.0.0.1:1"));
    for (pid, host, address, reached) in [
        (3, "a", "tcp:127.0.0.1:2", true),
        (4, "a", "unix:/tmp/4", true),
        (5, "b", "tcp:127.0.0.1:3", false),
        (6, "b", "tcp:[::1]:3", false),
        (7, "b", "unix:/tmp/7", false),
        (8, "b", "tcp:127.0.0.1:3\ntcp:10.0.0.1:3", true),
        (9, "b", "tcp:[fe80::1]:3", true),
        (10, "b", "", true),
        (11, "b", "tls:127.0.0.1:3", false),
        (12, "b", "tls:10.0.0.1:3", true),
        (HEAD, "b", "unix:/tmp/1", true),
    ] {
        here.join(on(pid, host, address));
        let wanted = if reached {
            Ok(())
        } else {
            Err(CallError::NotConnected(2, pid))
        };
        assert_eq!(here.check_pid(pid), wanted, "{address} on {host}");
    }
    assert!(here.meet(5));
    assert_eq!(here.check_pid(5), Ok(()), "it has dialled this process");
}

#[test]
fn a_topology_goes_through_its_byte() {
    for wiring in [Wiring::AllToAll, Wiring::MasterWorker, Wiring::Custom] {
        for eager in [false, true] {
            let topology = Topology { wiring, eager };
            assert_eq!(Topology::from_byte(topology.to_byte()), Some(topology));
        }
    }
    assert_eq!(Topology::from_byte(3), None);
}

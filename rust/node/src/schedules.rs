//! The hand-over between threads under schedules that shuttle chooses, of the code of this crate itself (F44, F51, F52).
//!
//! `cargo test -p pydist-node --features shuttle --lib` runs them; `PYDIST_SCHEDULES=N` multiplies their number. A
//! failure prints the schedule, which `shuttle::replay` repeats.

#![allow(clippy::unwrap_used, clippy::panic)]

mod channels;
mod futures;
mod rings;
mod wakeups;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::handshake::{Cookie, Initiator, Local, Secrets, Versions};
use pydist_proto::ids::ProcId;
use pydist_proto::machine::Counts;
use pydist_proto::message::Member;
use pydist_proto::topology::Topology;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::thread::JoinHandle;
use shuttle::{Config, MaxSteps, Runner};

use crate::link::{Link, Reading};
use crate::node::Node;

/// A schedule of so many steps means that somebody waits for what does not come.
const STEPS_MAX: usize = 200_000;
/// How many preemptions a schedule of the second kind has.
const DEPTH: usize = 3;

/// Runs a test under random schedules, and a quarter as many of few preemptions.
fn check(schedules: usize, test: impl Fn() + Send + Sync + Clone + 'static) {
    let factor = std::env::var("PYDIST_SCHEDULES")
        .ok()
        .and_then(|n| n.parse().ok());
    let schedules = schedules * factor.unwrap_or(1);
    run(RandomScheduler::new(schedules), test.clone());
    run(PctScheduler::new(DEPTH, schedules / 4), test);
}

fn run(scheduler: impl Scheduler + 'static, test: impl Fn() + Send + Sync + 'static) {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.silence_warnings = true;
    config.stack_size = 0x20000;
    Runner::new(scheduler, config).run(test);
}

fn member(pid: ProcId) -> Member {
    Member {
        pid,
        ..Member::default()
    }
}

/// A process that knows of process 2; what is sent there waits for a handshake that does not go on.
fn node() -> Arc<Node> {
    let config = crate::node::Config {
        me: member(1),
        cookie: Cookie::new(&[9; 32]).unwrap(),
        cluster: [7; 16],
        versions: Versions {
            python: (3, 11, 0),
            package: "0".to_owned(),
        },
        allow_python_mismatch: false,
        topology: Topology::default(),
        message_max: 1 << 32,
        shared_max: 0,
        transport_inst: [3; 16],
    };
    let node = Node::new(config).unwrap();
    let (ours, _) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .unwrap();
    node.links.write().insert(2, Arc::new(link(ours)));
    node.with_machine(|m| m.join(member(2)));
    node
}

/// A connection to process 2 whose handshake has begun.
fn link(fd: OwnedFd) -> Link {
    let versions = Versions {
        python: (3, 11, 0),
        package: "0".to_owned(),
    };
    let local = Local {
        id: 1,
        cluster: [7; 16],
        assigner: None,
        versions,
        allow_python_mismatch: false,
    };
    let secrets = Secrets {
        nonce: [1; 32],
        inst: [2; 16],
        channel_binding: [0; 32],
    };
    let machine = Initiator::new(local, &Cookie::new(&[9; 32]).unwrap(), secrets);
    let reading = Reading::Handshake {
        machine: Box::new(machine.into()),
        deadline: crate::sync::now(),
    };
    Link::new(1, fd, 2, 0, true, true, reading)
}

fn body(n: u64) -> Body {
    Body::of_bytes(n.to_le_bytes().to_vec())
}

fn number(body: &Body) -> u64 {
    let bytes = body.segments.first().map(|s| s.as_slice()).unwrap_or_default();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn spawn<T: Send + 'static>(
    node: &Arc<Node>,
    act: impl FnOnce(&Node) -> T + Send + 'static,
) -> JoinHandle<T> {
    let node = node.clone();
    shuttle::thread::spawn(move || act(&node))
}

/// Nothing is left: no reference, no request.
fn assert_rests(node: &Node) {
    node.collect_dropped();
    assert_eq!(node.machine.lock().counts(), Counts::default());
}

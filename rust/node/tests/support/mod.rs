//! Two processes' cores in one, joined by a Unix socket, with Rust in the place of Python.

#![allow(dead_code, clippy::unwrap_used, reason = "each test uses some of it")]

pub(crate) mod events;
pub(crate) mod strangers;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pydist_node::inbox::{Item, Taken};
use pydist_node::waiter::{Cell, Wake};
use pydist_node::{Config, Node, Payload};
use pydist_proto::handshake::{Cookie, Versions};
use pydist_proto::ids::ProcId;
use pydist_proto::message::{CallMode, Member, Status};
use pydist_proto::record::Outcome;
use pydist_proto::topology::Topology;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) static CLUSTERS: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Pair {
    pub(crate) head: Arc<Node>,
    pub(crate) worker: Arc<Node>,
    pub(crate) folder: std::path::PathBuf,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.worker.close();
        self.head.close();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn node(pid: ProcId, address: String, cookie: &[u8]) -> Arc<Node> {
    node_with(pid, address, cookie, 1 << 30)
}

fn node_with(pid: ProcId, address: String, cookie: &[u8], shared_max: usize) -> Arc<Node> {
    let me = Member {
        pid,
        ospid: 0,
        address,
        inst: [pid as u8; 16],
        host: "here".to_owned(),
        ..Member::default()
    };
    let versions = Versions {
        python: (3, 11, 0),
        package: "0".to_owned(),
    };
    let config = Config {
        me,
        cookie: Cookie::new(cookie).unwrap(),
        cluster: if pid == 0 { [0; 16] } else { [7; 16] },
        versions,
        allow_python_mismatch: false,
        topology: Topology::default(),
        message_max: 1 << 32,
        shared_max,
        transport_inst: [3; 16],
    };
    Node::start(config).unwrap()
}

pub(crate) fn folder() -> std::path::PathBuf {
    let n = CLUSTERS.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("pydist-node-test-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

pub(crate) fn address(folder: &std::path::Path, pid: ProcId) -> String {
    format!("unix:{}", folder.join(pid.to_string()).display())
}

/// A head and a worker that answers each call with the bytes that it got.
pub(crate) fn pair() -> Pair {
    pair_in(folder(), 1 << 30)
}

/// The same, with so many bytes of shared memory at most that are kept.
pub(crate) fn pair_in(folder: std::path::PathBuf, shared_max: usize) -> Pair {
    let head = node_with(1, address(&folder, 1), &[9; 32], shared_max);
    head.listen(&address(&folder, 1)).unwrap();
    let worker = node_with(2, address(&folder, 2), &[9; 32], shared_max);
    worker.listen(&address(&folder, 2)).unwrap();
    let member = Member {
        pid: 2,
        ..Member::default()
    };
    head.expect_worker(member);
    worker.dial_head(&address(&folder, 1), [1; 16]).unwrap();
    worker.wait_open(PATIENCE).unwrap();
    worker.announce_ready(address(&folder, 2));
    assert_eq!(head.worker_arrived(2, PATIENCE), Some(Ok(())));
    Pair { head, worker, folder }
}

/// Answers calls with what they carry, until the node closes.
pub(crate) fn echo(node: &Arc<Node>, leads: bool) -> std::thread::JoinHandle<()> {
    let node = node.clone();
    std::thread::spawn(move || {
        let executor = node.register_executor(true);
        while let Ok(Taken { item, .. }) = node.next_item(&executor, leads) {
            match item {
                Item::Call(call) => {
                    node.begin_call(call.src, call.id);
                    node.call_started(&executor);
                    let segments: Vec<&[u8]> = call.body.segments.iter().map(|s| s.as_slice()).collect();
                    let payload = Payload {
                        segments: &segments,
                        refs: &call.body.refs,
                        kept: None,
                        signalled: Some(&|| false),
                    };
                    match call.mode {
                        CallMode::Fetch => {
                            node.answer_fetch(call.src, call.id, Status::Value, payload)
                                .unwrap();
                        }
                        CallMode::Future => {
                            let body = call.body.try_clone().unwrap();
                            node.answer_future(call.src, call.id, Status::Value, body);
                        }
                        CallMode::Do => node.answer_do(call.src, call.id, Status::Value),
                    }
                    node.drop_refs(call.body.refs);
                }
                Item::Stop => break,
                _ => {}
            }
        }
        node.unregister_executor(&executor);
    })
}

pub(crate) fn payload<'a>(segments: &'a [&'a [u8]]) -> Payload<'a> {
    Payload {
        segments,
        refs: &[],
        kept: None,
        signalled: Some(&|| false),
    }
}

pub(crate) fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

pub(crate) fn call(node: &Node, pid: ProcId, segments: &[&[u8]]) -> Outcome {
    let cell = Cell::new();
    node.call_fetch(pid, payload(segments), Wake::Cell(cell.clone()))
        .unwrap();
    cell.wait(node, deadline(), true).unwrap()
}

pub(crate) fn bytes(outcome: &Outcome) -> Vec<Vec<u8>> {
    outcome
        .body
        .segments
        .iter()
        .map(|s| s.as_slice().to_vec())
        .collect()
}

pub(crate) fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < until, "not in time: {what}");
        std::thread::yield_now();
    }
}

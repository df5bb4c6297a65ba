//! Two processes' cores in one, joined by a Unix socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pydist_node::{Config, Node, Payload, Topology};
use pydist_proto::handshake::{Cookie, Versions};
use pydist_proto::ids::ProcId;
use pydist_proto::message::Member;

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
static CLUSTERS: AtomicUsize = AtomicUsize::new(0);

pub(crate) struct Pair {
    pub(crate) head: Arc<Node>,
    pub(crate) worker: Arc<Node>,
    folder: std::path::PathBuf,
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.worker.close();
        self.head.close();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn node(pid: ProcId, address: String, cookie: &[u8]) -> Arc<Node> {
    let me = Member {
        pid,
        ospid: 0,
        address,
        inst: [pid as u8; 16],
        host: "here".to_owned(),
    };
    let versions = Versions {
        python: (3, 11, 0),
        package: "0".to_owned(),
    };
    let config = Config {
        me,
        cookie: Cookie::new(cookie).unwrap(),
        cluster: [7; 16],
        versions,
        allow_python_mismatch: false,
        topology: Topology::Lazy,
        message_max: 1 << 32,
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
    let folder = folder();
    let head = node(1, address(&folder, 1), &[9; 32]);
    head.listen(&address(&folder, 1)).unwrap();
    let worker = node(2, address(&folder, 2), &[9; 32]);
    worker.listen(&address(&folder, 2)).unwrap();
    let member = Member {
        pid: 2,
        ospid: 0,
        address: address(&folder, 2),
        inst: [2; 16],
        host: "here".to_owned(),
    };
    head.expect_worker(member);
    worker.dial_head(&address(&folder, 1), [1; 16]).unwrap();
    worker.wait_open(PATIENCE).unwrap();
    worker.announce_ready();
    assert_eq!(head.worker_arrived(2, PATIENCE), Some(Ok(())));
    Pair { head, worker, folder }
}

pub(crate) fn payload<'a>(segments: &'a [&'a [u8]]) -> Payload<'a> {
    Payload {
        segments,
        refs: &[],
        signalled: &|| false,
    }
}

pub(crate) fn deadline() -> Option<Instant> {
    Some(Instant::now() + PATIENCE)
}

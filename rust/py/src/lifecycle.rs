//! The node of this process: its start, its members, its end, and what a fork does to it.

use std::collections::BTreeMap;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pydist_node::{Config, JoinError, Node, Topology};
use pydist_proto::handshake::{Cookie, Versions};
use pydist_proto::message::Member;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::errors;

static NODE: OnceLock<Arc<Node>> = OnceLock::new();
static FORKED: AtomicBool = AtomicBool::new(false);
static CLOSED: AtomicBool = AtomicBool::new(false);
/// Threads other than the main one stay asleep when they come back from the core.
static PARKING: AtomicBool = AtomicBool::new(false);

/// The node of this process, or the error that says why there is none.
pub(crate) fn node() -> PyResult<&'static Arc<Node>> {
    if FORKED.load(Ordering::Relaxed) {
        return Err(PyRuntimeError::new_err(
            "pydist cannot be used in a forked child process: the connections belong to its parent; \
             start a new interpreter instead",
        ));
    }
    if CLOSED.load(Ordering::Relaxed) {
        Python::attach(|py| py.detach(sleep_if_closed));
        return Err(PyRuntimeError::new_err(
            "pydist has been shut down in this process",
        ));
    }
    NODE.get()
        .ok_or_else(|| PyRuntimeError::new_err("pydist has not been started in this process"))
}

/// The node for finalizers, which do nothing in a forked child or after the end.
pub(crate) fn node_for_drop() -> Option<&'static Arc<Node>> {
    if FORKED.load(Ordering::Relaxed) {
        None
    } else {
        NODE.get()
    }
}

/// Runs something without the interpreter.
///
/// A thread that comes back after the end of the process has begun stays asleep: taking the interpreter then
/// would end the thread in the middle of Rust code.
pub(crate) fn detached<T: Send>(py: Python<'_>, act: impl FnOnce() -> T + Send) -> T {
    py.detach(|| {
        let result = act();
        sleep_if_closed();
        result
    })
}

pub(crate) fn sleep_if_closed() {
    while PARKING.load(Ordering::SeqCst) && !is_main_thread() {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

pub(crate) fn is_main_thread() -> bool {
    // SAFETY: both calls take nothing and touch no memory of the process.
    unsafe { i64::from(libc::getpid()) == libc::syscall(libc::SYS_gettid) }
}

/// Starts the node of this process.
#[pyfunction]
#[pyo3(signature = (pid, *, ospid, cookie, cluster, inst, address, host, python, package, allow_python_mismatch, topology, message_max, shared_max))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn start(
    pid: u32,
    ospid: u32,
    cookie: &[u8],
    cluster: [u8; 16],
    inst: [u8; 16],
    address: String,
    host: String,
    python: (u8, u8, u8),
    package: String,
    allow_python_mismatch: bool,
    topology: &str,
    message_max: u64,
    shared_max: usize,
) -> PyResult<()> {
    if FORKED.load(Ordering::Relaxed) || NODE.get().is_some() {
        node()?;
        return Err(PyRuntimeError::new_err(
            "pydist has been started in this process already",
        ));
    }
    let cookie = Cookie::new(cookie).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let topology = match topology {
        "lazy" => Topology::Lazy,
        "eager" => Topology::Eager,
        "star" => Topology::Star,
        other => return Err(PyValueError::new_err(format!("unknown topology {other:?}"))),
    };
    let me = Member {
        pid,
        ospid,
        address,
        inst,
        host,
    };
    let versions = Versions { python, package };
    let config = Config {
        me,
        cookie,
        cluster,
        versions,
        allow_python_mismatch,
        topology,
        message_max,
        shared_max,
    };
    let started = Node::start(config).map_err(|error| errors::node_error(&error))?;
    NODE.set(started)
        .map_err(|_| PyRuntimeError::new_err("pydist has been started in this process already"))
}

/// Binds the listener, and returns the address that others dial.
#[pyfunction]
pub(crate) fn listen(address: &str) -> PyResult<String> {
    node()?
        .listen(address)
        .map_err(|error| errors::node_error(&error))
}

/// Dials process 1.
#[pyfunction]
pub(crate) fn dial_head(py: Python<'_>, address: &str, inst: [u8; 16]) -> PyResult<()> {
    let node = node()?;
    detached(py, || node.dial_head(address, inst)).map_err(|error| errors::node_error(&error))
}

/// Waits until the connection to process 1 is open; returns why it is not, or nothing.
#[pyfunction]
pub(crate) fn wait_open(py: Python<'_>, seconds: f64) -> PyResult<Option<String>> {
    let node = node()?;
    Ok(detached(py, || node.wait_open(Duration::from_secs_f64(seconds))).err())
}

/// Tells process 1 that this worker answers calls.
#[pyfunction]
pub(crate) fn announce_ready() -> PyResult<()> {
    node()?.announce_ready();
    Ok(())
}

/// Announces a worker that is going to dial in.
#[pyfunction]
pub(crate) fn expect_worker(pid: u32, address: String, inst: [u8; 16], host: String) -> PyResult<()> {
    node()?.expect_worker(Member {
        pid,
        ospid: 0,
        address,
        inst,
        host,
    });
    Ok(())
}

/// Tells the system's id of a worker that has been announced.
#[pyfunction]
pub(crate) fn set_worker_ospid(pid: u32, ospid: u32) -> PyResult<()> {
    node()?.set_worker_ospid(pid, ospid);
    Ok(())
}

/// Gives up on a worker that was announced.
#[pyfunction]
pub(crate) fn forget_worker(pid: u32) -> PyResult<()> {
    node()?.forget_worker(pid);
    Ok(())
}

/// Waits for a worker that was announced: None while it is on its way, "" once it is up, else what went wrong.
#[pyfunction]
pub(crate) fn worker_arrived(py: Python<'_>, pid: u32, seconds: f64) -> PyResult<Option<String>> {
    let node = node()?;
    let arrived = detached(py, || node.worker_arrived(pid, Duration::from_secs_f64(seconds)));
    Ok(arrived.map(|result| match result {
        Ok(()) => String::new(),
        Err(JoinError::Failed(reason)) => reason,
        Err(other) => format!("{other:?}"),
    }))
}

/// The id of this process.
#[pyfunction]
pub(crate) fn me() -> PyResult<u32> {
    Ok(node()?.me())
}

/// The members: id, the system's id and host of each.
#[pyfunction]
pub(crate) fn members() -> PyResult<Vec<(u32, u32, String)>> {
    Ok(node()?
        .members()
        .into_iter()
        .map(|m| (m.pid, m.ospid, m.host))
        .collect())
}

/// Has executors hear of every process that joins or leaves from now on.
#[pyfunction]
pub(crate) fn watch_members() -> PyResult<()> {
    node()?.watch_members();
    Ok(())
}

/// Raises unless a process can be called.
#[pyfunction]
pub(crate) fn check_pid(py: Python<'_>, pid: u32) -> PyResult<()> {
    node()?
        .check_pid(pid)
        .map_err(|error| errors::call_failed(py, error.into()))
}

/// Asks a worker to end.
#[pyfunction]
pub(crate) fn ask_exit(pid: u32) -> PyResult<()> {
    node()?.ask_exit(pid);
    Ok(())
}

/// Interrupts the calls that run on a process.
#[pyfunction]
pub(crate) fn interrupt(pid: u32) -> PyResult<()> {
    node()?.interrupt(pid);
    Ok(())
}

/// Drops interest in the answer to a call.
#[pyfunction]
pub(crate) fn abandon(id: u64) -> PyResult<()> {
    node()?.abandon(id);
    Ok(())
}

/// What this process holds and has done.
#[pyfunction]
pub(crate) fn stats(py: Python<'_>) -> PyResult<BTreeMap<&'static str, u64>> {
    let node = node()?;
    let s = detached(py, || node.stats());
    Ok(BTreeMap::from([
        ("refs_owned", s.counts.refs_owned as u64),
        ("refs_held", s.counts.refs_held as u64),
        ("calls_outstanding", s.counts.calls_outstanding as u64),
        ("calls_running", s.counts.calls_running as u64),
        ("bytes_sent", s.bytes_sent),
        ("bytes_received", s.bytes_received),
        ("messages_sent", s.messages_sent),
        ("messages_received", s.messages_received),
        ("connections", s.connections as u64),
        ("queued_bytes", s.queued_bytes as u64),
        ("shared_bytes", s.shared_bytes as u64),
        ("share_fallbacks", s.share_fallbacks),
        ("threads", s.executors as u64),
    ]))
}

/// The process is about to end: other threads that wait in pydist hear nothing of it.
#[pyfunction]
pub(crate) fn park_other_threads() {
    PARKING.store(true, Ordering::SeqCst);
}

/// Ends the node: its executors are told to stop, connections are shut down, waiting threads stay asleep.
#[pyfunction]
pub(crate) fn close(py: Python<'_>) {
    if let Ok(node) = node() {
        PARKING.store(true, Ordering::SeqCst);
        CLOSED.store(true, Ordering::SeqCst);
        py.detach(|| node.close());
    }
}

/// Makes the node unusable in a forked child, and closes the child's copies of its descriptors.
#[pyfunction]
pub(crate) fn after_fork_in_child() {
    if !FORKED.swap(true, Ordering::SeqCst)
        && let Some(node) = NODE.get()
    {
        node.close_descriptors_after_fork();
    }
}

/// Has this worker end with its parent: by a signal of the kernel, and when the pipe `parent` hangs up.
#[pyfunction]
pub(crate) fn die_with_parent(parent: i32, parent_ospid: i32) -> PyResult<()> {
    node()?.die_with_thread_of_parent();
    // SAFETY: the descriptor was duplicated for this and belongs to nobody else.
    let pipe = unsafe { std::os::fd::OwnedFd::from_raw_fd(parent) };
    // SAFETY: takes nothing, touches no memory.
    if parent_ospid != 0 && unsafe { libc::getppid() } != parent_ospid {
        node()?.die();
    }
    node()?
        .watch_parent(pipe)
        .map_err(|error| errors::node_error(&error))
}

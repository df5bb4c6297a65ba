//! The node of this process: its start, its members, its end, and what a fork does to it.

use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pydist_node::{Config, Heartbeats, JoinError, Node, TlsFiles};
use pydist_proto::handshake::{Cookie, Versions};
use pydist_proto::message::Member;
use pydist_proto::topology::{Topology, Wiring};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

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

/// Whether this is a forked child of a process of the cluster.
pub(crate) fn is_forked() -> bool {
    FORKED.load(Ordering::Relaxed)
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

/// Does what `detached` does for a thread that has work to do until all workers have ended.
pub(crate) fn detached_until_closed<T: Send>(py: Python<'_>, act: impl FnOnce() -> T + Send) -> T {
    py.detach(|| {
        let result = act();
        while CLOSED.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_secs(3600));
        }
        result
    })
}

pub(crate) fn is_main_thread() -> bool {
    thread_local! {
        // SAFETY: both calls take nothing and touch no memory of the process.
        static IS_MAIN: bool = unsafe { i64::from(libc::getpid()) == libc::syscall(libc::SYS_gettid) };
    }
    IS_MAIN.with(|is_main| *is_main)
}

/// Starts the node of this process.
#[pyfunction]
#[pyo3(signature = (pid, *, ospid, cookie, cluster, inst, address, host, python, package, allow_python_mismatch, topology, lazy, message_max, shared_max, transport_inst))]
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
    lazy: bool,
    message_max: u64,
    shared_max: usize,
    transport_inst: [u8; 16],
) -> PyResult<()> {
    if FORKED.load(Ordering::Relaxed) || NODE.get().is_some() {
        node()?;
        return Err(PyRuntimeError::new_err(
            "pydist has been started in this process already",
        ));
    }
    let cookie = Cookie::new(cookie).map_err(|error| PyValueError::new_err(error.to_string()))?;
    let topology = topology_of(topology, lazy)?;
    let me = Member {
        pid,
        ospid,
        address,
        inst,
        host,
        ..Member::default()
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
        transport_inst,
    };
    let started = Node::start(config).map_err(|error| errors::node_error(&error))?;
    NODE.set(started)
        .map_err(|_| PyRuntimeError::new_err("pydist has been started in this process already"))
}

fn topology_of(name: &str, lazy: bool) -> PyResult<Topology> {
    let wiring = match name {
        "all_to_all" => Wiring::AllToAll,
        "master_worker" => Wiring::MasterWorker,
        "custom" => Wiring::Custom,
        other => return Err(PyValueError::new_err(format!("unknown topology {other:?}"))),
    };
    let eager = !lazy;
    Ok(Topology { wiring, eager })
}

/// Has the threads of this worker share a few heaps of the C library.
#[pyfunction]
pub(crate) fn share_heaps() {
    pydist_node::share_heaps();
}

/// How long a peer may be silent, None for ever, and how often it is to be heard, in seconds.
#[pyfunction]
pub(crate) fn heartbeat() -> PyResult<(Option<f64>, f64)> {
    let settings = node()?.heartbeat();
    let timeout = settings.timeout.map(|timeout| timeout.as_secs_f64());
    Ok((timeout, settings.interval.as_secs_f64()))
}

/// Sets how long a peer may be silent, None for ever, and how often it is to be heard, in seconds.
#[pyfunction]
#[pyo3(signature = (timeout, interval))]
pub(crate) fn set_heartbeat(py: Python<'_>, timeout: Option<f64>, interval: f64) -> PyResult<()> {
    let seconds =
        |value| Duration::try_from_secs_f64(value).map_err(|error| PyValueError::new_err(error.to_string()));
    let settings = Heartbeats {
        timeout: timeout.map(seconds).transpose()?,
        interval: seconds(interval)?,
    };
    let node = node()?;
    py.detach(|| node.set_heartbeat(settings));
    Ok(())
}

/// Binds the listener, and returns the address that others dial.
#[pyfunction]
pub(crate) fn listen(address: &str) -> PyResult<String> {
    node()?
        .listen(address)
        .map_err(|error| errors::node_error(&error))
}

/// Binds a listener; returns its address and its number.
#[pyfunction]
pub(crate) fn bind_listener(address: &str, inst: [u8; 16], admits: bool) -> PyResult<(String, u64)> {
    node()?
        .bind_listener(address, inst, admits)
        .map_err(|error| errors::node_error(&error))
}

/// Accepts connections at a listener from now on.
#[pyfunction]
pub(crate) fn open_listener(number: u64) -> PyResult<()> {
    node()?
        .open_listener(number)
        .map_err(|error| errors::node_error(&error))
}

/// Closes a listener.
#[pyfunction]
pub(crate) fn close_listener(number: u64) -> PyResult<()> {
    node()?.close_listener(number);
    Ok(())
}

/// Takes over the descriptor of a socket to a worker that has no id yet; with TLS on it where `secured`.
#[pyfunction]
pub(crate) fn attach_worker(fd: i32, pid: u32, inst: [u8; 16], secured: bool) -> PyResult<()> {
    node()?
        .attach_worker(own(fd), pid, inst, secured)
        .map_err(|error| errors::node_error(&error))
}

/// Takes over the descriptor of a socket at whose other end another process dials this one.
#[pyfunction]
pub(crate) fn attach_incoming(fd: i32, inst: [u8; 16]) -> PyResult<()> {
    node()?
        .attach_incoming(own(fd), inst)
        .map_err(|error| errors::node_error(&error))
}

pub(crate) fn own(fd: i32) -> OwnedFd {
    // SAFETY: the Python layer hands over a descriptor that it has detached from its object.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Takes ids that nobody else gets; returns the first.
#[pyfunction]
pub(crate) fn take_ids(count: u32) -> PyResult<u32> {
    Ok(node()?.take_ids(count))
}

/// The id that is given next.
#[pyfunction]
pub(crate) fn next_id() -> PyResult<u32> {
    Ok(node()?.next_id())
}

/// Sets which workers are connected to each other, for those that join from now on.
#[pyfunction]
pub(crate) fn set_topology(topology: &str, lazy: bool) -> PyResult<()> {
    node()?.set_topology(topology_of(topology, lazy)?);
    Ok(())
}

/// Changes the secret, for connections that are made from now on.
#[pyfunction]
pub(crate) fn set_cookie(cookie: &[u8]) -> PyResult<()> {
    let cookie = Cookie::new(cookie).map_err(|error| PyValueError::new_err(error.to_string()))?;
    node()?.set_cookie(cookie);
    Ok(())
}

/// Has connections with TLS use the key and the authority in PEM files.
#[pyfunction]
pub(crate) fn use_tls_files(ca: PathBuf, cert: PathBuf, key: PathBuf) -> PyResult<()> {
    node()?
        .use_tls_files(&TlsFiles { ca, cert, key })
        .map_err(|error| errors::node_error(&error))
}

/// The addresses of the interfaces that are up, without those that only this machine or one cable knows.
#[pyfunction]
pub(crate) fn interface_addresses() -> PyResult<Vec<String>> {
    let found = pydist_node::interface_addresses()?;
    Ok(found.iter().map(|ip| ip.to_string()).collect())
}

/// Python connects to workers that have no address from now on.
#[pyfunction]
pub(crate) fn use_transport() -> PyResult<()> {
    node()?.use_transport();
    Ok(())
}

/// Ends the connection to a worker.
#[pyfunction]
pub(crate) fn drop_worker(pid: u32, reason: &str) -> PyResult<()> {
    node()?.drop_worker(pid, reason);
    Ok(())
}

/// The process at the other end of a socket that the core has taken over.
#[pyfunction]
pub(crate) fn peer_of_socket(fd: i32) -> PyResult<Option<u32>> {
    Ok(node()?.peer_of_socket(fd))
}

/// The address, in the system's network, of this end of the connection to a process.
#[pyfunction]
pub(crate) fn own_address_to(pid: u32) -> PyResult<Option<String>> {
    Ok(node()?.own_address_to(pid).map(|ip| ip.to_string()))
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

/// Tells process 1 that this worker answers calls, and where it listens.
#[pyfunction]
pub(crate) fn announce_ready(address: String) -> PyResult<()> {
    node()?.announce_ready(address);
    Ok(())
}

/// Announces a worker: the workers that it is connected to, and what its manager tells of it.
#[pyfunction]
pub(crate) fn expect_worker(pid: u32, connected: Vec<u32>, config: Vec<u8>) -> PyResult<()> {
    node()?.expect_worker(Member {
        pid,
        connected,
        config,
        ..Member::default()
    });
    Ok(())
}

/// Tells the system's id of a worker that is a child of this process.
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

/// What the manager of a worker tells of it, pickled.
#[pyfunction]
pub(crate) fn config_of<'py>(py: Python<'py>, pid: u32) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let members = node()?.members();
    let member = members.into_iter().find(|m| m.pid == pid);
    Ok(member.map(|m| PyBytes::new(py, &m.config)))
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

/// Whether a process can be dialled from here, whatever the topology says.
#[pyfunction]
pub(crate) fn has_route_to(pid: u32) -> PyResult<bool> {
    Ok(node()?.has_route_to(pid))
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
    let node = node()?;
    detached(py, || node.check_pid(pid)).map_err(|error| errors::call_failed(py, error.into()))
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
        ("messages_dropped", s.messages_dropped),
        ("connections_refused", s.connections_refused),
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
    let pipe = unsafe { OwnedFd::from_raw_fd(parent) };
    // SAFETY: takes nothing, touches no memory.
    if parent_ospid != 0 && unsafe { libc::getppid() } != parent_ospid {
        node()?.die();
    }
    node()?
        .watch_parent(pipe)
        .map_err(|error| errors::node_error(&error))
}

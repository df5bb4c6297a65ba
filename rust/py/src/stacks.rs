//! What processes run and wait for.

use pydist_node::waiter::Wake;
use pydist_proto::ids::ProcId;
use pyo3::prelude::*;

use crate::errors;
use crate::lifecycle::{detached, node, own};
use crate::queue::Queue;

/// Asks a process for its stacks, a text that goes to a queue under a key. Returns the id of the request.
#[pyfunction]
pub(crate) fn ask_stacks(py: Python<'_>, pid: ProcId, queue: &Bound<'_, Queue>, key: u64) -> PyResult<u64> {
    let node = node()?;
    let wake = Wake::Queue(queue.get().inner.clone(), key);
    detached(py, || node.ask_stacks(pid, wake)).map_err(|error| errors::call_failed(py, error))
}

/// Tells a process that has asked the stacks of this one.
#[pyfunction]
pub(crate) fn answer_stacks(py: Python<'_>, pid: ProcId, req: u64, text: String) -> PyResult<()> {
    let node = node()?;
    detached(py, || node.answer_stacks(pid, req, text));
    Ok(())
}

/// Has the core get the stacks by a signal, whose handler writes them to a file, where Python is stuck.
#[pyfunction]
pub(crate) fn dump_stacks_by(fd: i32, signal: i32) -> PyResult<()> {
    node()?.dump_stacks_by(own(fd), signal);
    Ok(())
}

/// Has waits that last longer than so many seconds told to Python; 0: none.
#[pyfunction]
pub(crate) fn report_hangs(seconds: f64) {
    crate::waiting::report_hangs(seconds);
}

//! What processes do and hold, as their cores tell it.

use pydist_node::waiter::Wake;
use pydist_proto::ids::ProcId;
use pyo3::prelude::*;

use crate::errors;
use crate::lifecycle::{detached, node};
use crate::queue::Queue;

/// Asks a process what it does and holds, a text as of `observation` that goes to a queue under a key. Returns the id
/// of the request.
#[pyfunction]
pub(crate) fn ask_observation(
    py: Python<'_>,
    pid: ProcId,
    queue: &Bound<'_, Queue>,
    key: u64,
) -> PyResult<u64> {
    let node = node()?;
    let wake = Wake::Queue(queue.get().inner.clone(), key);
    detached(py, || node.ask_observation(pid, wake)).map_err(|error| errors::call_failed(py, error))
}

/// What this process does and holds, as JSON; calls that have ended are told once.
#[pyfunction]
pub(crate) fn observation(py: Python<'_>) -> PyResult<String> {
    let node = node()?;
    Ok(detached(py, || node.observation()))
}

/// A call runs from now on, of a function of this name, which is empty for calls of pydist itself.
#[pyfunction]
pub(crate) fn call_began(key: (ProcId, u64), name: String) -> PyResult<()> {
    node()?.call_began(key, name);
    Ok(())
}

/// A call that began has ended, with an error or without.
#[pyfunction]
#[pyo3(signature = (key, error))]
pub(crate) fn call_ended(key: (ProcId, u64), error: Option<String>) -> PyResult<()> {
    node()?.call_ended(key, error);
    Ok(())
}

/// Nobody watches any more: calls that began, and those that ended, are not told of.
#[pyfunction]
pub(crate) fn forget_calls() -> PyResult<()> {
    node()?.forget_calls();
    Ok(())
}

//! Recording what happens to calls.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::lifecycle::node;

/// Notes from now on what happens to calls, at most so many events: the first are dropped.
#[pyfunction]
pub(crate) fn trace_start(capacity: usize) -> PyResult<()> {
    node()?.trace_start(capacity);
    Ok(())
}

/// Notes no more; gives the events, of 24 bytes each, and how many were dropped.
#[pyfunction]
pub(crate) fn trace_stop(py: Python<'_>) -> PyResult<(Bound<'_, PyBytes>, u64)> {
    let (events, dropped) = node()?.trace_stop();
    Ok((PyBytes::new(py, &events), dropped))
}

/// The clock of the events: nanoseconds, the same on all processes of a machine.
#[pyfunction]
pub(crate) fn trace_clock() -> u64 {
    pydist_node::trace::clock()
}

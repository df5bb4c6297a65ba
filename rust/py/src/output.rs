//! What workers print, read without the interpreter.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pydist_node::output::Outputs;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::lifecycle::{detached, detached_until_closed, own};

static OUTPUTS: OnceLock<Arc<Outputs>> = OnceLock::new();

fn outputs() -> PyResult<&'static Arc<Outputs>> {
    OUTPUTS
        .get()
        .ok_or_else(|| PyRuntimeError::new_err("no output is followed"))
}

/// Takes over the descriptor of what a worker prints to, and reads it from now on; returns its key.
///
/// Callers take turns.
#[pyfunction]
pub(crate) fn follow_output(fd: i32) -> PyResult<u64> {
    let fd = own(fd);
    if OUTPUTS.get().is_none() {
        let _ = OUTPUTS.set(Outputs::start()?);
    }
    Ok(outputs()?.follow(fd)?)
}

/// Waits until a worker has printed something: its key, how many bytes were dropped before, the bytes, whether it was the
/// last. What was taken before has been passed on.
#[pyfunction]
pub(crate) fn take_output(py: Python<'_>) -> PyResult<(u64, u64, Bound<'_, PyBytes>, bool)> {
    let outputs = outputs()?;
    let printed = detached_until_closed(py, || outputs.take());
    let bytes = PyBytes::new(py, &printed.bytes);
    Ok((printed.key, printed.dropped, bytes, printed.ended))
}

/// Waits until all that workers have printed is passed on; false where that takes longer than so many seconds.
#[pyfunction]
pub(crate) fn catch_up_output(py: Python<'_>, seconds: f64) -> PyResult<bool> {
    let Some(outputs) = OUTPUTS.get() else {
        return Ok(true);
    };
    Ok(detached(py, || {
        outputs.catch_up(Duration::from_secs_f64(seconds))
    }))
}

//! The one place where failures of the core become exceptions of Python.

use pydist_node::{CallFailed, NodeError, TlsError};
use pydist_proto::message::Status;
use pydist_proto::record::Outcome;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

/// The exception for a process that has gone, or that `lives` out of reach, made by the Python layer, which knows
/// its host and last output.
fn exited(py: Python<'_>, pid: u32, reason: &str, lives: bool) -> PyErr {
    let made = py
        .import("pydist._cluster")
        .and_then(|module| module.getattr("process_exited")?.call1((pid, reason, lives)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// The exception for an outcome that says that a process is gone.
pub(crate) fn gone(py: Python<'_>, outcome: &Outcome) -> PyErr {
    let lives = outcome.status == Status::Lost;
    exited(py, outcome.pid, &outcome.body.text(), lives)
}

pub(crate) fn call_failed(py: Python<'_>, failed: CallFailed) -> PyErr {
    match failed {
        CallFailed::NoSuchProcess(pid) => {
            PyValueError::new_err(format!("there is no process {pid} in this cluster"))
        }
        CallFailed::Exited(pid, reason) => exited(py, pid, &reason, false),
        CallFailed::Lost(pid, reason) => exited(py, pid, &reason, true),
        CallFailed::NotConnected(here, there) => not_connected(py, here, there),
        CallFailed::Signal => match py.check_signals() {
            Err(error) => error,
            Ok(()) => PyRuntimeError::new_err("interrupted by a signal"),
        },
    }
}

fn not_connected(py: Python<'_>, here: u32, there: u32) -> PyErr {
    let made = py
        .import("pydist._cluster")
        .and_then(|module| module.getattr("not_connected")?.call1((here, there)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

pub(crate) fn node_error(error: &NodeError) -> PyErr {
    if let NodeError::Tls(TlsError::Content(_) | TlsError::InUse(_)) = error {
        return PyValueError::new_err(error.to_string());
    }
    PyOSError::new_err(error.to_string())
}

//! The one place where failures of the core become exceptions of Python.

use pydist_node::{CallFailed, NodeError, TlsError};
use pydist_proto::message::Status;
use pydist_proto::record::Outcome;
use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;

use crate::lifecycle::node;

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
        CallFailed::TooManyCalls(limit) => named(
            py,
            "CallLimitError",
            format!(
                "{limit} calls and requests of process {} have no answer yet, which is the limit: wait for some of \
                 them, or raise the limit with the environment variable PYDIST_MAX_CALLS",
                node().map_or(0, |node| node.me())
            ),
        ),
        CallFailed::NoDescriptor(pid, reason) => PyOSError::new_err((
            libc::EMFILE,
            format!(
                "no connection to process {pid} can be made: {reason}; this process has as many files and \
                 connections open as it may: close some, or raise the limit (`ulimit -n`, resource.RLIMIT_NOFILE)"
            ),
        )),
        CallFailed::Signal => match py.check_signals() {
            Err(error) => error,
            Ok(()) => PyRuntimeError::new_err("interrupted by a signal"),
        },
    }
}

/// An exception of `pydist._errors`.
fn named(py: Python<'_>, class: &str, text: String) -> PyErr {
    let made = py
        .import("pydist._errors")
        .and_then(|module| module.getattr(class)?.call1((text,)));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

/// A message is larger than the limit.
pub(crate) fn too_large(py: Python<'_>, size: u64, limit: u64) -> PyErr {
    let text = format!(
        "a message of {size} bytes is over the limit of {limit}: send it in parts, or raise the limit with the \
         environment variable PYDIST_MESSAGE_MAX, which every process has to be started with"
    );
    named(py, "FrameTooLargeError", text)
}

/// A message has more buffers and references than its head can name.
pub(crate) fn too_many_parts(py: Python<'_>, buffers: usize, refs: usize) -> PyErr {
    let text = format!(
        "a message with {buffers} out-of-band buffers and {refs} references names more of them than one can hold: \
         send it in parts"
    );
    named(py, "FrameTooLargeError", text)
}

/// There was no memory for a message that has come.
pub(crate) fn no_memory(bytes: u64) -> PyErr {
    PyMemoryError::new_err(format!(
        "there is no memory for a message of another process, when {bytes} bytes of it were to be held"
    ))
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

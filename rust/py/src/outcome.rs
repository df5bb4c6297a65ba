//! How a wait ended, as Python sees it.

use std::sync::Arc;

use pydist_proto::body::Body;
use pydist_proto::ids::RemoteRef;

use pydist_proto::message::Status;
use pydist_proto::record;
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use crate::buffer::Buffer;
use crate::errors;
use crate::lifecycle::{node, node_for_drop};

/// Keeps the references alive that a body names, until it has been unpickled.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Hold {
    refs: Vec<RemoteRef>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(node) = node_for_drop() {
            node.drop_refs(std::mem::take(&mut self.refs));
        }
    }
}

/// How a wait ended: a status, who answered, and the body.
#[pyclass(frozen, get_all, module = "pydist._core")]
pub(crate) struct Outcome {
    status: u32,
    pid: u32,
    data: Py<PyAny>,
    buffers: Py<PyList>,
    hold: Option<Py<Hold>>,
}

/// A pickle below this size is copied into a bytes object.
const SMALL: usize = 16 << 10;

/// The pickle and its buffers, and what holds the references that they name.
pub(crate) type Parts = (Py<PyAny>, Py<PyList>, Option<Py<Hold>>);

/// Gives a body to Python: its buffers become objects that own their memory.
pub(crate) fn parts(py: Python<'_>, body: Body) -> PyResult<Parts> {
    if let Some(bytes) = body.lost_bytes() {
        return lost_parts(py, bytes);
    }
    let mut segments = body.segments.into_iter();
    let data = match segments.next() {
        None => PyBytes::new(py, &[]).into_any().unbind(),
        Some(segment) if segment.len() < SMALL => PyBytes::new(py, segment.as_slice()).into_any().unbind(),
        Some(segment) => Py::new(py, Buffer::new(segment))?.into_any(),
    };
    let buffers = PyList::empty(py);
    for segment in segments {
        buffers.append(Py::new(py, Buffer::new(segment))?)?;
    }
    let hold = if body.refs.is_empty() {
        None
    } else {
        Some(Py::new(py, Hold { refs: body.refs })?)
    };
    Ok((data, buffers.unbind(), hold))
}

/// In the place of a body for which there was no memory: the pickled error that says so.
fn lost_parts(py: Python<'_>, bytes: u64) -> PyResult<Parts> {
    let error = errors::no_memory(bytes);
    let dumped = py
        .import("pydist._errors")?
        .getattr("dump_exception")?
        .call1((error.value(py), node()?.me()))?;
    let (data, _, _): (Py<PyAny>, Bound<'_, PyAny>, Bound<'_, PyAny>) = dumped.extract()?;
    Ok((data, PyList::empty(py).unbind(), None))
}

/// Turns an outcome of the core into one of Python; the loss of a process is raised.
pub(crate) fn outcome(py: Python<'_>, outcome: record::Outcome) -> PyResult<Outcome> {
    if outcome.status.is_gone() {
        return Err(errors::gone(py, &outcome));
    }
    outcome_object(py, outcome)
}

/// Turns an outcome of the core into one of Python, the loss of a process included.
pub(crate) fn outcome_object(py: Python<'_>, outcome: record::Outcome) -> PyResult<Outcome> {
    let pid = outcome.pid;
    let status = match outcome.body.lost_bytes() {
        Some(_) => Status::Error as u32,
        None => outcome.status as u32,
    };
    let body = match Arc::try_unwrap(outcome.body) {
        Ok(body) => body,
        Err(shared) => shared
            .try_clone()
            .map_err(|error| PyMemoryError::new_err(error.to_string()))?,
    };
    let (data, buffers, hold) = parts(py, body)?;
    Ok(Outcome {
        status,
        pid,
        data,
        buffers,
        hold,
    })
}

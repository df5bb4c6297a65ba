//! Calls to other processes.

use std::sync::Arc;
use std::time::Instant;

use pydist_node::waiter::{Cell, Wake};
use pydist_node::{CallFailed, Node, Payload};
use pydist_proto::ids::ProcId;
use pydist_proto::message::Status;
use pydist_proto::record;
use pyo3::exceptions::PyTimeoutError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyTuple};

use crate::buffer::{RefTuple, Sent};
use crate::credit::settle_puts;
use crate::errors;
use crate::lifecycle::{detached, node};
use crate::names::encode_call;
use crate::outcome::{Outcome, outcome};
use crate::plain;
use crate::queue::Queue;
use crate::refs::Ref;
use crate::waiting::{Ended, Slot, wait};

/// Sends without the interpreter; what a signal handler raised meanwhile is raised here.
pub(crate) fn sending<T: Send>(
    py: Python<'_>,
    sent: &Sent,
    send: impl FnOnce(Payload<'_>) -> Result<T, CallFailed> + Send,
) -> PyResult<T> {
    sending_until(py, sent, None, send)
}

/// Sends without the interpreter, as long as there is time: a peer that does not read holds nobody up for longer.
pub(crate) fn sending_until<T: Send>(
    py: Python<'_>,
    sent: &Sent,
    until: Option<Instant>,
    send: impl FnOnce(Payload<'_>) -> Result<T, CallFailed> + Send,
) -> PyResult<T> {
    let is_over = || until.is_some_and(|until| Instant::now() >= until);
    let segments = sent.segments();
    let (refs, kept) = (&sent.refs, sent.kept());
    let raised = std::sync::Mutex::new(None);
    let node = node()?;
    let result = detached(py, || {
        let slot = Slot::new(node, until.is_some());
        let signalled = || {
            crate::lifecycle::sleep_if_closed();
            slot.give_back();
            if is_over() {
                return true;
            }
            Python::attach(|py| match slot.raise_sent(py) {
                Ok(()) => false,
                Err(error) => {
                    if let Ok(mut slot) = raised.lock() {
                        *slot = Some(error);
                    }
                    true
                }
            })
        };
        send(Payload {
            segments: &segments,
            refs,
            kept,
            signalled: Some(&signalled),
        })
    });
    if let Ok(mut slot) = raised.lock()
        && let Some(error) = slot.take()
    {
        return Err(error);
    }
    result.map_err(|failed| match failed {
        CallFailed::Signal if is_over() => PyTimeoutError::new_err(
            "the time was over before the other process had read the request; it has no effect there",
        ),
        failed => errors::call_failed(py, failed),
    })
}

/// Calls a function on another process and waits for its value.
#[pyfunction]
pub(crate) fn call_fetch(
    py: Python<'_>,
    pid: ProcId,
    data: &Bound<'_, PyAny>,
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
) -> PyResult<Outcome> {
    let node = node()?;
    settle_puts(py, pid)?;
    let cell = Cell::new();
    let id = {
        let sent = Sent::new(data, buffers, &refs)?;
        sending(py, &sent, |payload| {
            node.call_fetch(pid, payload, Wake::Cell(cell.clone()))
        })?
    };
    outcome(py, await_answer(py, node, cell, id)?)
}

/// Calls a function on another process; its value stays there.
#[pyfunction]
pub(crate) fn call_future(
    py: Python<'_>,
    pid: ProcId,
    data: &Bound<'_, PyAny>,
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
) -> PyResult<Ref> {
    let node = node()?;
    settle_puts(py, pid)?;
    let sent = Sent::new(data, buffers, &refs)?;
    let id = sending(py, &sent, |payload| node.call_future(pid, payload))?;
    Ok(Ref::held(pid, id))
}

/// Calls a function on another process without an answer.
#[pyfunction]
pub(crate) fn call_do(
    py: Python<'_>,
    pid: ProcId,
    data: &Bound<'_, PyAny>,
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
) -> PyResult<()> {
    let node = node()?;
    settle_puts(py, pid)?;
    let sent = Sent::new(data, buffers, &refs)?;
    sending(py, &sent, |payload| node.call_do(pid, payload))
}

/// Calls a function on another process; its value goes to a queue under a key. Returns the id of the call.
///
/// The calls of one lane run there one at a time, in order; lane 0 is none.
#[pyfunction]
#[pyo3(signature = (pid, data, buffers, refs, queue, key, lane=0))]
#[allow(clippy::too_many_arguments)]
pub(crate) fn call_queue(
    py: Python<'_>,
    pid: ProcId,
    data: &Bound<'_, PyAny>,
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
    queue: &Bound<'_, Queue>,
    key: u64,
    lane: u64,
) -> PyResult<u64> {
    let node = node()?;
    settle_puts(py, pid)?;
    let sent = Sent::new(data, buffers, &refs)?;
    let wake = Wake::Queue(queue.get().inner.clone(), key);
    sending(py, &sent, |payload| node.call_in_lane(pid, lane, payload, wake))
}

/// Cancels a call that fetches, whose answer nobody waits for any more; it is interrupted where it runs.
#[pyfunction]
pub(crate) fn cancel_fetch(py: Python<'_>, id: u64) -> PyResult<()> {
    let node = node()?;
    detached(py, || node.cancel_fetch(id));
    Ok(())
}

/// Takes a call that fetches back unless it has begun: its outcome then says that it was cancelled.
#[pyfunction]
pub(crate) fn recall(py: Python<'_>, id: u64) -> PyResult<()> {
    let node = node()?;
    detached(py, || node.recall(id));
    Ok(())
}

/// A small message that is sent without waiting for room.
pub(crate) fn small<'a>(segments: &'a [&'a [u8]]) -> Payload<'a> {
    Payload {
        segments,
        refs: &[],
        kept: None,
        signalled: None,
    }
}

/// A call of a function that goes by its name, with small plain arguments, to a connected process that reads.
///
/// Sending it never waits, so the interpreter is kept: letting it go would have other threads of Python take it in between.
struct PlainCall {
    node: &'static Arc<Node>,
    pid: ProcId,
    pickle: Vec<u8>,
}

impl PlainCall {
    /// Pickles a call; nothing where it is not that simple.
    fn new(
        f: &Bound<'_, PyAny>,
        place: &Bound<'_, PyAny>,
        args: &Bound<'_, PyTuple>,
    ) -> PyResult<Option<PlainCall>> {
        let Ok(place) = place.cast_exact::<PyInt>() else {
            return Ok(None);
        };
        let (Ok(pid), Ok(node)) = (place.extract::<ProcId>(), node()) else {
            return Ok(None);
        };
        // Python tells the names of functions.
        if !node.takes_small(pid) || crate::logs::tells_calls() {
            return Ok(None);
        }
        settle_puts(f.py(), pid)?;
        let pickle = encode_call(f, args)?;
        Ok(pickle.map(|pickle| PlainCall { node, pid, pickle }))
    }

    fn send<T>(
        &self,
        py: Python<'_>,
        send: impl FnOnce(&Node, ProcId, Payload<'_>) -> Result<T, CallFailed>,
    ) -> PyResult<T> {
        send(self.node, self.pid, small(&[&self.pickle])).map_err(|failed| errors::call_failed(py, failed))
    }
}

/// Does what `call_future` does for a plain call; None where it is none.
#[pyfunction]
pub(crate) fn plain_future(
    py: Python<'_>,
    f: &Bound<'_, PyAny>,
    place: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<Option<Ref>> {
    let Some(call) = PlainCall::new(f, place, args)? else {
        return Ok(None);
    };
    let id = call.send(py, |node, pid, payload| node.call_future(pid, payload))?;
    Ok(Some(Ref::held(call.pid, id)))
}

/// Does what `call_do` does for a plain call; false where it is none.
#[pyfunction]
pub(crate) fn plain_do(
    py: Python<'_>,
    f: &Bound<'_, PyAny>,
    place: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<bool> {
    let Some(call) = PlainCall::new(f, place, args)? else {
        return Ok(false);
    };
    call.send(py, |node, pid, payload| node.call_do(pid, payload))?;
    Ok(true)
}

/// Does what `call_fetch` does for a plain call: gives the value in a tuple, or an outcome; None where it is none.
#[pyfunction]
pub(crate) fn plain_fetch(
    py: Python<'_>,
    f: &Bound<'_, PyAny>,
    place: &Bound<'_, PyAny>,
    args: &Bound<'_, PyTuple>,
) -> PyResult<Option<Py<PyAny>>> {
    let Some(call) = PlainCall::new(f, place, args)? else {
        return Ok(None);
    };
    let cell = Cell::new();
    let wake = Wake::Cell(cell.clone());
    let id = call.send(py, |node, pid, payload| node.call_fetch(pid, payload, wake))?;
    let answer = await_answer(py, call.node, cell, id)?;
    if answer.status == Status::Value
        && let [pickle] = answer.body.segments.as_slice()
        && let Some(value) = plain::decode(py, pickle.as_slice())
    {
        return Ok(Some(PyTuple::new(py, [value])?.into_any().unbind()));
    }
    Ok(Some(Py::new(py, outcome(py, answer)?)?.into_any()))
}

fn await_answer(py: Python<'_>, node: &Node, cell: Arc<Cell>, id: u64) -> PyResult<record::Outcome> {
    wait(py, cell.clone(), None, |end| cell.wait(node, end, true)).map_err(|ended| {
        node.abandon(id);
        match ended {
            Ended::Raised(error) => error,
            Ended::TimedOut => PyTimeoutError::new_err(()),
        }
    })
}

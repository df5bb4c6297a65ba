//! Channels: requests to those of this process and of others.

use std::sync::Arc;
use std::time::Instant;

use pydist_node::waiter::{Cell, Wake};
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::{RefOp, Status};
use pydist_proto::record;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use crate::buffer::{RefTuple, Sent};
use crate::calls::sending;
use crate::errors;
use crate::lifecycle::node;
use crate::outcome::{Outcome, outcome};
use crate::queue::Queue;
use crate::refs::Ref;
use crate::waiting::{Ended, deadline, handed_over, wait};

/// A request to a channel, and where its answer comes.
struct Request {
    target: RemoteRef,
    req: u64,
    cell: Arc<Cell>,
}

impl Request {
    /// Waits for the answer; where the time is over, takes the request back and hears whether that came in time.
    fn answer(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<record::Outcome> {
        if let Some(answer) = self.cell.try_take() {
            return Ok(answer);
        }
        let node = node()?;
        let mut until = until;
        loop {
            match wait(py, self.cell.clone(), until, |end| {
                self.cell.wait(node, end, true)
            }) {
                Ok(answer) => return Ok(answer),
                Err(Ended::TimedOut) => {
                    node.withdraw(self.target, self.req);
                    until = None;
                }
                Err(Ended::Raised(error)) => {
                    self.unwant(py)?;
                    return Err(error);
                }
            }
        }
    }

    /// Nobody wants the answer any more: an item that is here already, or comes later, is given back.
    fn unwant(&self, py: Python<'_>) -> PyResult<()> {
        let node = node()?;
        if node.unwant(self.target, self.req) {
            return Ok(());
        }
        if let Some(answer) = handed_over(py, &self.cell)? {
            if answer.status == Status::Value {
                node.give_item_back(self.target, self.req);
            }
            node.drop_refs(answer.body.refs.clone());
        }
        Ok(())
    }
}

fn operation(raw: u32) -> PyResult<RefOp> {
    use RefOp::*;
    [ChannelPut, ChannelTake, ChannelFetch, ChannelWait]
        .into_iter()
        .chain([ChannelIsReady, ChannelIsOpen, ChannelClose])
        .find(|op| *op as u32 == raw)
        .ok_or_else(|| PyValueError::new_err(format!("{raw} is no operation on a channel")))
}

fn ask(py: Python<'_>, target: RemoteRef, op: RefOp, sent: &Sent, wake: Wake) -> PyResult<u64> {
    let node = node()?;
    if target.owner == node.me() {
        let body = sent.to_body()?;
        return Ok(node.ask_own_channel(target.id, op, body, wake));
    }
    sending(py, sent, |payload| node.ref_op(target, op, payload, wake))
}

/// Makes a channel on a process; a capacity of 2^64 - 1 is unbounded.
#[pyfunction]
pub(crate) fn channel_create(py: Python<'_>, owner: u32, capacity: u64) -> PyResult<Ref> {
    let node = node()?;
    if owner == node.me() {
        return Ok(Ref::held(owner, node.create_channel(capacity)));
    }
    let cell = Cell::new();
    let (id, req) = node
        .create_channel_at(owner, capacity, Wake::Cell(cell.clone()))
        .map_err(|failed| errors::call_failed(py, failed))?;
    let made = Ref::held(owner, id);
    let target = made.target();
    outcome(py, Request { target, req, cell }.answer(py, None)?)?;
    Ok(made)
}

/// Makes the reference of a channel that Python keeps here.
#[pyfunction]
pub(crate) fn channel_custom() -> PyResult<Ref> {
    let node = node()?;
    Ok(Ref::held(node.me(), node.create_custom_channel()))
}

/// A handle of a channel of this process, and whether Python keeps it; None where there is no such channel.
#[pyfunction]
pub(crate) fn channel_here(whence: u32, id: u64) -> PyResult<Option<(Ref, bool)>> {
    let node = node()?;
    let id = RefId { whence, id };
    let custom = node.channel_here(id);
    Ok(custom.map(|custom| (Ref::held(node.me(), id), custom)))
}

/// Asks a channel and waits for the answer.
#[pyfunction]
#[pyo3(signature = (channel, op, data, buffers, refs, timeout=None))]
pub(crate) fn channel_ask(
    py: Python<'_>,
    channel: &Ref,
    op: u32,
    data: &Bound<'_, PyAny>,
    buffers: Vec<Bound<'_, PyAny>>,
    refs: Vec<RefTuple>,
    timeout: Option<f64>,
) -> PyResult<Outcome> {
    let until = deadline(timeout)?;
    let (target, op, cell) = (channel.target(), operation(op)?, Cell::new());
    let wake = Wake::Cell(cell.clone());
    let req = ask(py, target, op, &Sent::new(data, buffers, &refs)?, wake)?;
    let answer = Request { target, req, cell }.answer(py, until)?;
    taken(py, channel, op, req, answer, timeout)
}

/// Confirms an item; the end of the time is raised.
fn taken(
    py: Python<'_>,
    channel: &Ref,
    op: RefOp,
    req: u64,
    answer: record::Outcome,
    timeout: Option<f64>,
) -> PyResult<Outcome> {
    if answer.status == Status::Cancelled {
        let seconds = timeout.unwrap_or_default();
        return Err(PyTimeoutError::new_err(format!(
            "the channel did not get to it within {seconds} s"
        )));
    }
    if answer.status == Status::Value && op == RefOp::ChannelTake {
        channel_confirm(channel, req)?;
    }
    outcome(py, answer)
}

/// Asks a channel; the answer goes to a queue under a key. Returns the number of the request.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn channel_tell(
    py: Python<'_>,
    channel: &Ref,
    op: u32,
    data: &Bound<'_, PyAny>,
    buffers: Vec<Bound<'_, PyAny>>,
    refs: Vec<RefTuple>,
    queue: &Bound<'_, Queue>,
    key: u64,
) -> PyResult<u64> {
    let wake = Wake::Queue(queue.get().inner.clone(), key);
    let sent = Sent::new(data, buffers, &refs)?;
    ask(py, channel.target(), operation(op)?, &sent, wake)
}

/// Takes a request back; its answer says whether that came in time.
#[pyfunction]
pub(crate) fn channel_withdraw(channel: &Ref, req: u64) -> PyResult<()> {
    node()?.withdraw(channel.target(), req);
    Ok(())
}

/// Nobody waits for a request any more; false where its answer is in the queue, or about to be.
#[pyfunction]
pub(crate) fn channel_unwant(channel: &Ref, req: u64) -> PyResult<bool> {
    Ok(node()?.unwant(channel.target(), req))
}

/// The item that a request brought has been taken up.
#[pyfunction]
pub(crate) fn channel_confirm(channel: &Ref, req: u64) -> PyResult<()> {
    node()?.confirm(channel.target(), req);
    Ok(())
}

/// The item that a request brought goes back to the front of its channel.
#[pyfunction]
pub(crate) fn channel_give_back(channel: &Ref, req: u64) -> PyResult<()> {
    node()?.give_item_back(channel.target(), req);
    Ok(())
}

//! Channels: requests to those of this process and of others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pydist_node::Payload;
use pydist_node::waiter::{Cell, Wake};
use pydist_proto::body::Body;
use pydist_proto::frame::INLINE_MAX;
use pydist_proto::ids::{RefId, RemoteRef};
use pydist_proto::message::{RefOp, Status};
use pydist_proto::record;
use pyo3::exceptions::{PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyTuple};

use crate::buffer::{RefTuple, Sent};
use crate::calls::{sending_until, small};
use crate::credit::{self, ANYBODY, settle_puts};
use crate::errors;
use crate::lifecycle::{detached, node};
use crate::outcome::{Outcome, outcome};
use crate::plain;
use crate::queue::Queue;
use crate::refs::Ref;
use crate::waiting::{Ended, deadline, wait};

/// A put whose time is over waits so long for the owner's word whether the item is in the channel.
pub(crate) const PUT_GRACE: Duration = Duration::from_secs(1);
/// So long do other requests wait: an owner that runs gives what is there even where the time was shorter than its way.
pub(crate) const ASK_GRACE: Duration = Duration::from_millis(500);

/// A request to a channel, and where its answer comes.
struct Request {
    target: RemoteRef,
    op: RefOp,
    req: u64,
    cell: Arc<Cell>,
    /// The seconds that the caller gave, for messages.
    timeout: Option<f64>,
}

impl Request {
    /// Waits for the answer, and says that the item has come where it is one.
    fn conclude(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<record::Outcome> {
        let answer = self.answer(py, until)?;
        match answer.status {
            Status::Cancelled => return Err(timed_out(self.timeout)),
            Status::Value if self.op == RefOp::ChannelTake => node()?.confirm(self.target, self.req),
            _ => {}
        }
        Ok(answer)
    }

    /// Waits for the answer; where the time is over, takes the request back.
    ///
    /// The owner says whether that came in time; an owner that is silent is not waited for long.
    fn answer(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<record::Outcome> {
        if let Some(answer) = self.cell.try_take() {
            return Ok(answer);
        }
        if let Some(answer) = self.wait(py, until)? {
            return Ok(answer);
        }
        node()?.withdraw(self.target, self.req);
        let is_put = self.op == RefOp::ChannelPut;
        let grace = if is_put { PUT_GRACE } else { ASK_GRACE };
        if let Some(answer) = self.wait(py, Some(Instant::now() + grace))? {
            return Ok(answer);
        }
        self.give_up(py)?.ok_or_else(|| match is_put {
            true => self.unanswered(),
            false => timed_out(self.timeout),
        })
    }

    /// Waits for the answer until the time is over; where the wait raises, the request is undone.
    fn wait(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<Option<record::Outcome>> {
        let node = node()?;
        match wait(py, self.cell.clone(), until, |end| {
            self.cell.wait(node, end, true)
        }) {
            Ok(answer) => Ok(Some(answer)),
            Err(Ended::TimedOut) => Ok(None),
            Err(Ended::Raised(error)) => {
                if let Some(answer) = self.give_up(py)? {
                    if answer.status == Status::Value {
                        node.give_item_back(self.target, self.req);
                    }
                    node.drop_refs(answer.body.refs.clone());
                }
                Err(error)
            }
        }
    }

    /// Waits no longer, and has the owner undo the request, unless the answer has come after all.
    fn give_up(&self, py: Python<'_>) -> PyResult<Option<record::Outcome>> {
        let node = node()?;
        if node.unwant(self.target, self.req) {
            return Ok(None);
        }
        Ok(Some(detached(py, || self.cell.handed_over(node))))
    }

    fn unanswered(&self) -> PyErr {
        PyTimeoutError::new_err(unanswered(self.target.owner, self.timeout))
    }
}

fn unanswered(owner: u32, timeout: Option<f64>) -> String {
    format!(
        "process {owner} has not answered within {} s, nor said in another {} s whether the item was put: it takes \
         the item back out of the channel once it answers, unless some process takes the item first",
        timeout.unwrap_or_default(),
        PUT_GRACE.as_secs()
    )
}

fn timed_out(timeout: Option<f64>) -> PyErr {
    let seconds = timeout.unwrap_or_default();
    PyTimeoutError::new_err(format!("the channel did not get to it within {seconds} s"))
}

fn operation(raw: u32) -> PyResult<RefOp> {
    use RefOp::*;
    [ChannelPut, ChannelTake, ChannelFetch, ChannelWait]
        .into_iter()
        .chain([ChannelIsReady, ChannelIsOpen, ChannelClose])
        .find(|op| *op as u32 == raw)
        .ok_or_else(|| PyValueError::new_err(format!("{raw} is no operation on a channel")))
}

fn ask(
    py: Python<'_>,
    target: RemoteRef,
    op: RefOp,
    sent: &Sent,
    until: Option<Instant>,
    wake: Wake,
) -> PyResult<u64> {
    let node = node()?;
    if target.owner == node.me() {
        settle_puts(py, ANYBODY)?;
        let body = sent.to_body(py)?;
        return Ok(node.ask_own_channel(target.id, op, body, wake));
    }
    settle_puts(py, target.owner)?;
    let op = match (op, &wake) {
        (RefOp::ChannelPut, Wake::Cell(_)) => node.put_operation(target.id),
        (op, _) => op,
    };
    sending_until(py, sent, until, |payload| node.ref_op(target, op, payload, wake))
}

/// Makes a channel on a process; a capacity of 2^64 - 1 is unbounded.
#[pyfunction]
pub(crate) fn channel_create(py: Python<'_>, owner: u32, capacity: u64) -> PyResult<Ref> {
    let node = node()?;
    if owner == node.me() {
        return Ok(Ref::held(owner, node.create_channel(capacity)));
    }
    let cell = Cell::new();
    let wake = Wake::Cell(cell.clone());
    let (id, req) = detached(py, || node.create_channel_at(owner, capacity, wake))
        .map_err(|failed| errors::call_failed(py, failed))?;
    let made = Ref::held(owner, id);
    let target = made.target();
    let op = RefOp::ChannelCreate;
    let request = Request {
        target,
        op,
        req,
        cell,
        timeout: None,
    };
    outcome(py, request.answer(py, None)?)?;
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
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
    timeout: Option<f64>,
) -> PyResult<Outcome> {
    let (target, op, cell) = (channel.target(), operation(op)?, Cell::new());
    let wake = Wake::Cell(cell.clone());
    let until = deadline(timeout)?;
    let sent = Sent::new(data, buffers, &refs)?;
    if op == RefOp::ChannelPut && put_on_credit(py, target, &sent)? {
        return outcome(py, record::Outcome::bare(Status::Yes, target.owner));
    }
    let req = ask(py, target, op, &sent, until, wake)?;
    let request = Request {
        target,
        op,
        req,
        cell,
        timeout,
    };
    outcome(py, request.conclude(py, until)?)
}

/// Puts an item on credit, where it is not streamed, and there is some.
fn put_on_credit(py: Python<'_>, target: RemoteRef, sent: &Sent) -> PyResult<bool> {
    let node = node()?;
    let segments = sent.segments();
    if target.owner == node.me() || segments.iter().map(|s| s.len()).sum::<usize>() > INLINE_MAX {
        return Ok(false);
    }
    let payload = Payload {
        refs: &sent.refs,
        ..small(&segments)
    };
    credit::put_on_credit(py, target, payload)
}

/// Asks a channel something that is small and names no references, and waits for the answer. The interpreter is
/// kept while it is sent; None where that would have to wait for room.
fn ask_plainly(
    py: Python<'_>,
    target: RemoteRef,
    op: RefOp,
    pickle: &[u8],
    timeout: Option<f64>,
) -> PyResult<Option<record::Outcome>> {
    let (node, cell) = (node()?, Cell::new());
    settle_puts(py, target.owner)?;
    let until = deadline(timeout)?;
    let wake = Wake::Cell(cell.clone());
    let req = if target.owner == node.me() {
        node.ask_own_channel(target.id, op, body_of(pickle), wake)
    } else if node.takes_small(target.owner) {
        let sent_op = match op {
            RefOp::ChannelPut => node.put_operation(target.id),
            op => op,
        };
        let segments: &[&[u8]] = if pickle.is_empty() { &[] } else { &[pickle] };
        node.ref_op(target, sent_op, small(segments), wake)
            .map_err(|failed| errors::call_failed(py, failed))?
    } else {
        return Ok(None);
    };
    let request = Request {
        target,
        op,
        req,
        cell,
        timeout,
    };
    request.conclude(py, until).map(Some)
}

fn body_of(pickle: &[u8]) -> Body {
    match pickle {
        [] => Body::default(),
        pickle => Body::of_bytes(pickle.to_vec()),
    }
}

/// Puts an item that is small and plain: true once it is in, or how else that ended; None where it is not plain.
#[pyfunction]
#[pyo3(signature = (channel, value, timeout=None))]
pub(crate) fn plain_put(
    py: Python<'_>,
    channel: &Ref,
    value: &Bound<'_, PyAny>,
    timeout: Option<f64>,
) -> PyResult<Option<Py<PyAny>>> {
    let Some(pickle) = plain::pickled(value) else {
        return Ok(None);
    };
    let (target, node) = (channel.target(), node()?);
    let done = if target.owner == node.me() {
        settle_puts(py, ANYBODY)?;
        node.put_here(target.id, body_of(&pickle))
    } else {
        deadline(timeout)?;
        credit::put_on_credit(py, target, small(&[&pickle]))?
    };
    if done {
        return Ok(Some(yes(py)));
    }
    match ask_plainly(py, target, RefOp::ChannelPut, &pickle, timeout)? {
        None => Ok(None),
        Some(answer) if answer.status == Status::Yes => Ok(Some(yes(py))),
        Some(answer) => Ok(Some(Py::new(py, outcome(py, answer)?)?.into_any())),
    }
}

/// Takes an item: in a tuple where it is small and plain, else how that ended; None where `channel_ask` is to be used.
#[pyfunction]
#[pyo3(signature = (channel, timeout=None))]
pub(crate) fn plain_take(py: Python<'_>, channel: &Ref, timeout: Option<f64>) -> PyResult<Option<Py<PyAny>>> {
    let (target, node) = (channel.target(), node()?);
    let here = (target.owner == node.me())
        .then(|| node.take_here(target.id))
        .flatten();
    let answer = match here {
        Some(body) => record::Outcome {
            status: Status::Value,
            body,
            pid: target.owner,
        },
        None => match ask_plainly(py, target, RefOp::ChannelTake, &[], timeout)? {
            Some(answer) => answer,
            None => return Ok(None),
        },
    };
    if let Some(value) = plain::value_of(py, &answer) {
        return Ok(Some(PyTuple::new(py, [value])?.into_any().unbind()));
    }
    Ok(Some(Py::new(py, outcome(py, answer)?)?.into_any()))
}

fn yes(py: Python<'_>) -> Py<PyAny> {
    PyBool::new(py, true).to_owned().into_any().unbind()
}

/// Asks a channel; the answer goes to a queue under a key. Returns the number of the request.
#[pyfunction]
#[allow(clippy::too_many_arguments)]
pub(crate) fn channel_tell(
    py: Python<'_>,
    channel: &Ref,
    op: u32,
    data: &Bound<'_, PyAny>,
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
    queue: &Bound<'_, Queue>,
    key: u64,
    timeout: Option<f64>,
) -> PyResult<u64> {
    let wake = Wake::Queue(queue.get().inner.clone(), key);
    let sent = Sent::new(data, buffers, &refs)?;
    ask(
        py,
        channel.target(),
        operation(op)?,
        &sent,
        deadline(timeout)?,
        wake,
    )
}

/// Takes a request back where it still waits; its answer says whether it did.
#[pyfunction]
pub(crate) fn channel_withdraw(channel: &Ref, req: u64) -> PyResult<()> {
    node()?.withdraw(channel.target(), req);
    Ok(())
}

/// Nobody waits for a request any more: what it did is undone. False where its answer is in the queue, or about to be.
#[pyfunction]
pub(crate) fn channel_unwant(channel: &Ref, req: u64) -> PyResult<bool> {
    Ok(node()?.unwant(channel.target(), req))
}

/// What a put whose owner is silent tells its caller.
#[pyfunction]
#[pyo3(signature = (channel, timeout))]
pub(crate) fn channel_unanswered(channel: &Ref, timeout: Option<f64>) -> String {
    unanswered(channel.target().owner, timeout)
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

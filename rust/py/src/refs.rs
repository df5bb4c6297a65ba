//! References to values that live on some process.

use pydist_node::waiter::{Cell, Wake};
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::machine::Watch;
use pydist_proto::message::{RefOp, Status};
use pydist_proto::record::{self, Want};
use pyo3::exceptions::{PyRuntimeError, PyTimeoutError};
use pyo3::intern;
use pyo3::prelude::*;

use crate::buffer::{RefTuple, Sent, remote_ref};
use crate::calls::sending;
use crate::credit::{ANYBODY, settle_puts};
use crate::errors;
use crate::lifecycle::{detached, node, node_for_drop};
use crate::outcome::{Outcome, outcome};
use crate::plain;
use crate::queue::Queue;
use crate::waiting::{Ended, deadline, wait};

/// One handle of a reference; when it is dropped, the owner hears of it.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Ref {
    target: RemoteRef,
}

impl Drop for Ref {
    fn drop(&mut self) {
        if let Some(node) = node_for_drop() {
            node.drop_handle(self.target.id);
        }
    }
}

impl Ref {
    /// Wraps a handle that the machine has counted already.
    pub(crate) fn held(owner: ProcId, id: RefId) -> Ref {
        Ref {
            target: RemoteRef { owner, id },
        }
    }

    pub(crate) fn target(&self) -> RemoteRef {
        self.target
    }

    fn watch(&self, py: Python<'_>, want: Want, wake: Wake) -> PyResult<Watch> {
        node()?
            .watch_in_reach(self.target, want, wake)
            .map_err(|failed| errors::call_failed(py, failed))
    }

    fn await_watch(&self, py: Python<'_>, want: Want, timeout: Option<f64>) -> PyResult<record::Outcome> {
        let node = node()?;
        let until = deadline(timeout)?;
        let cell = Cell::new();
        let id = self.target.id;
        let key = match self.watch(py, want, Wake::Cell(cell.clone()))? {
            Watch::Now(outcome) => return Ok(outcome),
            Watch::Later(key) => key,
        };
        match wait(py, cell.clone(), until, |end| cell.wait(node, end, true)) {
            Ok(outcome) => Ok(outcome),
            Err(ended) => {
                let woken = !node.unwatch(id, key);
                let late = woken.then(|| detached(py, || cell.handed_over(node)));
                match (ended, late) {
                    (Ended::TimedOut, Some(outcome)) => Ok(outcome),
                    (Ended::TimedOut, None) => Err(PyTimeoutError::new_err(format!(
                        "no value after {} s; the future can be waited for again",
                        timeout.unwrap_or_default()
                    ))),
                    (Ended::Raised(error), late) => {
                        if let Some(outcome) = late
                            && want == Want::Value
                        {
                            node.restore(id, outcome);
                        }
                        Err(error)
                    }
                }
            }
        }
    }

    fn operation(&self, py: Python<'_>, op: RefOp, sent: &Sent) -> PyResult<record::Outcome> {
        let node = node()?;
        settle_puts(py, self.target.owner)?;
        let cell = Cell::new();
        let wake = Wake::Cell(cell.clone());
        let req = sending(py, sent, |payload| node.ref_op(self.target, op, payload, wake))?;
        wait(py, cell.clone(), None, |end| cell.wait(node, end, true)).map_err(|ended| {
            node.abandon(req);
            match ended {
                Ended::Raised(error) => error,
                Ended::TimedOut => PyTimeoutError::new_err(()),
            }
        })
    }
}

#[pymethods]
impl Ref {
    #[getter]
    fn owner(&self) -> u32 {
        self.target.owner
    }

    #[getter]
    fn whence(&self) -> u32 {
        self.target.id.whence
    }

    #[getter]
    fn id(&self) -> u64 {
        self.target.id.id
    }

    /// Waits for the value and gives it to `holder`, so that no signal comes between: as the attribute `_raw`, or, where
    /// it is plain, as `_outcome` and `_done`.
    ///
    /// False where another thread of Python has it.
    fn fetch(&self, py: Python<'_>, timeout: Option<f64>, holder: &Bound<'_, PyAny>) -> PyResult<bool> {
        let answer = self.await_watch(py, Want::Value, timeout)?;
        if answer.status == Status::Yes {
            return Ok(false);
        }
        if answer.status == Status::Value
            && let [pickle] = answer.body.segments.as_slice()
            && let Some(value) = plain::decode(py, pickle.as_slice())
        {
            holder.setattr(intern!(py, "_outcome"), (value, py.None()))?;
            holder.setattr(intern!(py, "_done"), true)?;
        } else {
            holder.setattr(intern!(py, "_raw"), outcome(py, answer)?)?;
        }
        Ok(true)
    }

    /// Waits until there is a value.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Outcome> {
        let answer = self.await_watch(py, Want::Ready, timeout)?;
        outcome(py, answer)
    }

    /// Has a queue told, under a key, once there is a value, or given the value itself.
    ///
    /// Returns what takes that back, or None where the queue is told already.
    fn tell(&self, py: Python<'_>, queue: &Bound<'_, Queue>, key: u64, value: bool) -> PyResult<Option<u64>> {
        let want = if value { Want::Value } else { Want::Ready };
        let inner = &queue.get().inner;
        match self.watch(py, want, Wake::Queue(inner.clone(), key))? {
            Watch::Later(watch) => Ok(Some(watch)),
            Watch::Now(outcome) => {
                inner.push(key, outcome, node()?);
                Ok(None)
            }
        }
    }

    /// Takes back what `tell` asked for.
    ///
    /// False where the queue has been told, or is about to be.
    fn untell(&self, watch: u64) -> PyResult<bool> {
        Ok(node()?.unwatch(self.target.id, watch))
    }

    /// Whether there is a value, asking the owner where this process does not know.
    fn isready(&self, py: Python<'_>) -> PyResult<bool> {
        let node = node()?;
        if node.known_ready(self.target.id) {
            // It may be known that there never will be a value, which is raised.
            return self.wait(py, None).map(|_| true);
        }
        if self.target.owner == node.me() {
            return Ok(false);
        }
        let nothing = Sent::empty();
        let answer = self.operation(py, RefOp::IsReady, &nothing)?;
        if answer.status.is_gone() {
            return Err(errors::gone(py, &answer));
        }
        Ok(answer.status == Status::Yes)
    }

    /// Whether what came here is not a value but an error.
    fn has_failed(&self) -> PyResult<bool> {
        Ok(node()?.has_failed(self.target.id))
    }

    /// Sets the value at the owner; false where there is one.
    fn put(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        refs: Vec<RefTuple>,
    ) -> PyResult<bool> {
        let sent = Sent::new(data, buffers, &refs)?;
        let answer = self.operation(py, RefOp::Put, &sent)?;
        match answer.status {
            Status::Yes => Ok(true),
            Status::Exited | Status::Lost => Err(errors::gone(py, &answer)),
            _ => Ok(false),
        }
    }

    /// Tells that the value is a Python object of this process, the owner; false where there is one.
    fn put_local(&self, py: Python<'_>) -> PyResult<bool> {
        settle_puts(py, ANYBODY)?;
        Ok(node()?.put_local(self.target.id))
    }

    /// Cancels the call that is to make the value; false where it has ended.
    fn cancel(&self, py: Python<'_>) -> PyResult<bool> {
        let node = node()?;
        if self.target.owner == node.me() {
            return Ok(node.cancel_here(self.target.id));
        }
        let answer = self.operation(py, RefOp::Cancel, &Sent::empty())?;
        if answer.status.is_gone() {
            return Err(errors::gone(py, &answer));
        }
        Ok(answer.status == Status::Yes)
    }

    /// A further handle for passing the reference on; None where the value is here, to be passed on itself.
    fn pin(&self) -> PyResult<Option<Ref>> {
        // A handle that is made is dropped some time: only one that has been counted may be.
        Ok(node()?
            .pin(self.target.id)
            .then(|| Ref::held(self.target.owner, self.target.id)))
    }

    /// Queues the call to this process itself that is to make the value.
    fn queue(&self) -> PyResult<()> {
        node()?.queue_local(self.target.id);
        Ok(())
    }

    /// The call to this process itself has ended; false where it was cancelled.
    fn finish(&self) -> PyResult<bool> {
        Ok(node()?.finish_local(self.target.id))
    }
}

/// Makes an empty future on a process.
#[pyfunction]
pub(crate) fn create_future(py: Python<'_>, owner: u32) -> PyResult<Ref> {
    let node = node()?;
    let id = detached(py, || node.create_future(owner)).map_err(|failed| errors::call_failed(py, failed))?;
    Ok(Ref::held(owner, id))
}

/// A further handle of a reference that a pickle names.
#[pyfunction]
pub(crate) fn reference(owner: u32, whence: u32, id: u64) -> PyResult<Ref> {
    let target = remote_ref((owner, whence, id));
    node()?.hold(target);
    Ok(Ref { target })
}

/// Opens a call to this process itself, whose value is to be under the reference.
#[pyfunction]
pub(crate) fn local_call() -> PyResult<Ref> {
    let node = node()?;
    Ok(Ref::held(node.me(), node.call_local()))
}

/// Hands over the pickled value of a reference of this process.
#[pyfunction]
pub(crate) fn exported(
    py: Python<'_>,
    whence: u32,
    id: u64,
    status: u32,
    data: &Bound<'_, PyAny>,
    buffers: &Bound<'_, PyAny>,
    refs: Vec<RefTuple>,
) -> PyResult<()> {
    let body = Sent::new(data, buffers, &refs)?.to_body(py)?;
    node()?.exported(RefId { whence, id }, value_or_error(status)?, body);
    Ok(())
}

pub(crate) fn value_or_error(status: u32) -> PyResult<Status> {
    match status {
        0 => Ok(Status::Value),
        1 => Ok(Status::Error),
        other => Err(PyRuntimeError::new_err(format!(
            "{other} is no status of a value"
        ))),
    }
}

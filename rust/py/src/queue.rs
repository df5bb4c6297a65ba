//! Outcomes of many waits, in the order in which they come.

use std::os::fd::RawFd;
use std::sync::Arc;

use pydist_node::waiter;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::lifecycle::{detached, node};
use crate::outcome::{Outcome, outcome_object};
use crate::waiting::{Ended, deadline, wait_quietly};

/// Outcomes of many waits, each under the key of its wait.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Queue {
    pub(crate) inner: Arc<waiter::Queue>,
}

fn convert(
    py: Python<'_>,
    ready: Vec<(u64, pydist_proto::record::Outcome)>,
) -> PyResult<Vec<(u64, Outcome)>> {
    ready
        .into_iter()
        .map(|(key, outcome)| Ok((key, outcome_object(py, outcome)?)))
        .collect()
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (pollable=false))]
    fn new(pollable: bool) -> PyResult<Queue> {
        let inner = waiter::Queue::new(pollable).map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Queue { inner })
    }

    /// Waits until there are outcomes and takes all that are there; an empty list once the time is over.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Vec<(u64, Outcome)>> {
        let node = node()?;
        let until = deadline(timeout)?;
        match wait_quietly(py, self.inner.clone(), until, |end| self.inner.wait(node, end)) {
            Ok(ready) => convert(py, ready),
            Err(Ended::TimedOut) => Ok(Vec::new()),
            Err(Ended::Raised(error)) => Err(error),
        }
    }

    /// Takes all outcomes that are there.
    fn drain(&self, py: Python<'_>) -> PyResult<Vec<(u64, Outcome)>> {
        let ready = detached(py, || self.inner.drain());
        convert(py, ready)
    }

    /// Wakes who waits, with an outcome of status Yes under a key.
    fn push(&self, key: u64) -> PyResult<()> {
        let done = pydist_proto::record::Outcome::bare(pydist_proto::message::Status::Yes, 0);
        self.inner.push(key, done, node()?);
        Ok(())
    }

    /// Whether an outcome has come and not been taken, or is still to come; for who alone uses the queue.
    fn expects(&self) -> bool {
        self.inner.expects()
    }

    /// The descriptor that is readable while there are outcomes.
    fn fileno(&self) -> PyResult<RawFd> {
        self.inner
            .descriptor()
            .ok_or_else(|| PyValueError::new_err("the queue is not pollable"))
    }
}

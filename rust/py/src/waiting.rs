//! Waiting without the interpreter: signals, timeouts, and the slot that a waiting call gives back.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pydist_node::Parked;
use pydist_node::inbox::Executor;
use pydist_node::waiter::Cell;
use pydist_proto::message::Status;
use pydist_proto::record::Outcome;
use pyo3::exceptions::{PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;

use crate::lifecycle::{detached, node};

thread_local! {
    static EXECUTOR: RefCell<Option<Arc<Executor>>> = const { RefCell::new(None) };
}

/// Tells which executor the calling thread is.
pub(crate) fn set_executor(executor: Option<Arc<Executor>>) {
    EXECUTOR.with_borrow_mut(|slot| *slot = executor);
}

/// How a wait of Python ended without an outcome.
pub(crate) enum Ended {
    TimedOut,
    Raised(PyErr),
}

/// The time at which a timeout in seconds is over; none for ever.
pub(crate) fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = timeout else { return Ok(None) };
    if seconds.is_nan() {
        return Err(PyValueError::new_err("timeout must be a number of seconds, not NaN"));
    }
    let seconds = seconds.max(0.0);
    Ok(Duration::try_from_secs_f64(seconds).ok().and_then(|d| Instant::now().checked_add(d)))
}

/// Waits without the interpreter until `attempt` gives a result; runs signal handlers in between.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    attempt: impl Fn() -> Result<T, Parked> + Send + Sync,
) -> Result<T, Ended> {
    let executor = EXECUTOR.with_borrow(Clone::clone);
    let node = node().map_err(Ended::Raised)?;
    loop {
        let result = detached(py, || {
            if let Some(executor) = &executor {
                node.block(executor);
            }
            let result = attempt();
            if let Some(executor) = &executor {
                node.unblock(executor);
            }
            result
        });
        match result {
            Ok(value) => return Ok(value),
            Err(Parked::TimedOut) => return Err(Ended::TimedOut),
            Err(_) => py.check_signals().map_err(Ended::Raised)?,
        }
    }
}

/// A sleep that another thread can end: what `time.sleep` is in a worker.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Sleeper {
    cell: Arc<Cell>,
    interrupted: AtomicBool,
}

#[pymethods]
impl Sleeper {
    #[new]
    fn new() -> Sleeper {
        Sleeper { cell: Cell::new(), interrupted: AtomicBool::new(false) }
    }

    /// Sleeps; raises KeyboardInterrupt where `interrupt` is called meanwhile.
    fn sleep(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let until = deadline(Some(seconds))?;
        let node = node()?;
        let slept: Result<Outcome, Ended> = wait(py, || self.cell.wait_asleep(node, until));
        if self.interrupted.swap(false, Ordering::SeqCst) {
            return Err(PyKeyboardInterrupt::new_err(()));
        }
        match slept {
            Err(Ended::Raised(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Ends the sleep.
    fn interrupt(&self) -> PyResult<()> {
        self.interrupted.store(true, Ordering::SeqCst);
        self.cell.finish(Outcome::bare(Status::Yes, 0), node()?);
        Ok(())
    }
}

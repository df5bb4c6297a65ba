//! Waiting without the interpreter: signals, timeouts, and the slot that a waiting call gives back.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pydist_node::inbox::Executor;
use pydist_node::waiter::Nudge;
use pydist_node::{Node, Parked};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::lifecycle::{detached, is_main_thread, node};

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
        return Err(PyValueError::new_err(
            "timeout must be a number of seconds, not NaN",
        ));
    }
    let seconds = seconds.max(0.0);
    Ok(Duration::try_from_secs_f64(seconds)
        .ok()
        .and_then(|d| Instant::now().checked_add(d)))
}

/// How often the main thread looks for signals while it waits. A signal that comes while it waits ends the wait at
/// once; one that comes just before has run its handler in C already, and wakes nobody.
const SIGNALS_EVERY: Duration = Duration::from_millis(50);

/// Raises the exception that another thread has sent to this one, if it has not been raised yet: Python does so where
/// a function of Python begins.
fn raise_pending(py: Python<'_>) -> Result<(), Ended> {
    static NOTHING: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    NOTHING
        .get_or_try_init(py, || py.eval(c"lambda: None", None, None).map(Bound::unbind))
        .and_then(|nothing| nothing.call0(py))
        .map(|_| ())
        .map_err(Ended::Raised)
}

/// After so many milliseconds a wait is told to Python; 0: never.
static HANG_MILLIS: AtomicU64 = AtomicU64::new(0);

/// Has waits that last longer than so many seconds told to Python; 0: none.
pub(crate) fn report_hangs(seconds: f64) {
    HANG_MILLIS.store((seconds * 1000.0) as u64, Ordering::Relaxed);
}

/// The slot of the call that the calling thread runs, which others may have while the call waits for room to send.
pub(crate) struct Slot {
    node: &'static Node,
    executor: Option<Arc<Executor>>,
    /// The wait ends by itself.
    pauses: bool,
    given_back: std::cell::Cell<bool>,
}

impl Slot {
    pub(crate) fn new(node: &'static Node, pauses: bool) -> Slot {
        Slot {
            node,
            executor: EXECUTOR.with_borrow(Clone::clone),
            pauses,
            given_back: std::cell::Cell::new(false),
        }
    }

    /// The call waits: its slot is free until this value is dropped.
    pub(crate) fn give_back(&self) {
        if let Some(executor) = &self.executor
            && !self.given_back.replace(true)
        {
            self.node.block(executor, self.pauses);
        }
    }

    /// Raises what a signal handler raises, or what another thread has sent to this one.
    pub(crate) fn raise_sent(&self, py: Python<'_>) -> PyResult<()> {
        let interrupted = self.executor.as_ref().is_some_and(|e| e.take_interrupt());
        if interrupted && let Err(Ended::Raised(error)) = raise_pending(py) {
            return Err(error);
        }
        py.check_signals()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(executor) = &self.executor
            && self.given_back.get()
        {
            self.node.unblock(executor);
        }
    }
}

/// Waits for what another process or thread is to do; where that takes long, Python is told.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    target: Arc<dyn Nudge>,
    until: Option<Instant>,
    attempt: impl Fn(Option<Instant>) -> Result<T, Parked> + Send + Sync,
) -> Result<T, Ended> {
    let hang = match HANG_MILLIS.load(Ordering::Relaxed) {
        0 => None,
        millis => Instant::now().checked_add(Duration::from_millis(millis)),
    };
    let Some(hang) = hang.filter(|hang| until.is_none_or(|until| *hang < until)) else {
        return wait_quietly(py, target, until, attempt);
    };
    match wait_quietly(py, target.clone(), Some(hang), &attempt) {
        Err(Ended::TimedOut) => {}
        ended => return ended,
    }
    py.import("pydist._stacks")
        .and_then(|module| module.call_method0("warn"))
        .map_err(Ended::Raised)?;
    wait_quietly(py, target, until, attempt)
}

/// Waits without the interpreter until `attempt` gives a result; runs signal handlers in between.
///
/// `attempt` is given the time at which it is to return; `until` is the end of the whole wait. `target` is what `attempt` waits on: an interrupt of the call that waits here nudges it.
pub(crate) fn wait_quietly<T: Send>(
    py: Python<'_>,
    target: Arc<dyn Nudge>,
    until: Option<Instant>,
    attempt: impl Fn(Option<Instant>) -> Result<T, Parked> + Send + Sync,
) -> Result<T, Ended> {
    let main = is_main_thread();
    let executor = EXECUTOR.with_borrow(Clone::clone);
    let node = node().map_err(Ended::Raised)?;
    loop {
        if executor
            .as_ref()
            .is_some_and(|executor| executor.take_interrupt())
        {
            raise_pending(py)?;
        }
        let slice = if main {
            Instant::now().checked_add(SIGNALS_EVERY)
        } else {
            None
        };
        let end = match (slice, until) {
            (Some(slice), Some(until)) => Some(slice.min(until)),
            (slice, until) => slice.or(until),
        };
        let result = detached(py, || match &executor {
            None => {
                node.uncork_calls();
                attempt(end)
            }
            Some(executor) => {
                node.block(executor, until.is_some());
                executor.set_waiting(Some(target.clone()));
                // An interrupt that came before the target was known has nudged nobody.
                let result = if executor.is_interrupted() {
                    Err(Parked::Signal)
                } else {
                    attempt(end)
                };
                executor.set_waiting(None);
                node.unblock(executor);
                result
            }
        });
        match result {
            Ok(value) => return Ok(value),
            Err(Parked::TimedOut) if until.is_some_and(|until| Instant::now() >= until) => {
                return Err(Ended::TimedOut);
            }
            Err(_) => py.check_signals().map_err(Ended::Raised)?,
        }
    }
}

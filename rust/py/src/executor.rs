//! The threads of Python that run calls.

use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::time::Duration;

use pydist_node::inbox::{self, Item, Taken};
use pydist_node::waiter::Cell;
use pydist_proto::body::Body;
use pydist_proto::message::{CallMode, Status};
use pyo3::PyTypeInfo;
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PySet, PyTuple};

use crate::buffer::{RefTuple, Sent};
use crate::calls::{sending, small};
use crate::credit::{ANYBODY, settle_puts};
use crate::errors;
use crate::lifecycle::{detached, node};
use crate::names::decode_call;
use crate::outcome::parts;
use crate::plain;
use crate::refs::value_or_error;
use crate::waiting::{Ended, deadline, set_executor, wait_quietly};

/// One thread of Python that runs calls; it is made on that thread.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Executor {
    inner: Arc<inbox::Executor>,
    /// The calls that run in this process, each with its thread.
    running: Py<PyDict>,
    /// Those of them that an interrupt was sent to.
    interrupted: Py<PySet>,
    thread: u64,
    is_main: bool,
}

#[pymethods]
impl Executor {
    #[new]
    fn new(
        stays: bool,
        running: Py<PyDict>,
        interrupted: Py<PySet>,
        thread: u64,
        is_main: bool,
    ) -> PyResult<Executor> {
        let inner = node()?.register_executor(stays);
        set_executor(Some(inner.clone()));
        Ok(Executor {
            inner,
            running,
            interrupted,
            thread,
            is_main,
        })
    }

    /// Sleeps as `time.sleep` does; an interrupt of the call ends it, and other calls run meanwhile.
    fn sleep(&self, py: Python<'_>, seconds: f64) -> PyResult<()> {
        let node = node()?;
        let until = deadline(Some(seconds))?;
        let cell = Cell::new();
        match wait_quietly(py, cell.clone(), until, |end| cell.wait(node, end, false)) {
            Err(Ended::Raised(error)) => Err(error),
            Ok(_) | Err(Ended::TimedOut) => Ok(()),
        }
    }

    /// Has what the call waits for in pydist, now or later, look for an exception that was sent to its thread.
    fn nudge(&self) -> PyResult<()> {
        node()?.nudge_executor(&self.inner);
        Ok(())
    }

    /// The thread runs no more calls.
    fn leave(&self) {
        set_executor(None);
        if let Ok(node) = node() {
            node.unregister_executor(&self.inner);
        }
    }

    /// Waits for something to do.
    ///
    /// Returns (kind, whether another thread is to be started, what): "call" with (src, id, mode, data, buffers, hold);
    /// "plain call" with ((src, id), mode, function, arguments) of one that has been unpickled; "local", "export" and "freed" with the id of a reference, "interrupt" with None or (src, id), "members", "joined"
    /// with (id, listener) of a worker, "connect" with (id, descriptor), "log" where `next_events` has some, "exit",
    /// "stop", and "signal" after a signal whose handler did not raise; "lost call" with (src, id, mode, error) where
    /// there was no memory for it; "refused call" and "refused local" for those that are not to run since no thread
    /// is left.
    fn next(&self, py: Python<'_>, may_lead: bool) -> PyResult<(&'static str, bool, Py<PyAny>)> {
        let node = match node() {
            Ok(node) => node,
            Err(_) => return Ok(("stop", false, py.None())),
        };
        let taken = py.detach(|| {
            let taken = node.next_item(&self.inner, may_lead);
            if !matches!(&taken, Ok(taken) if matches!(taken.item, Item::Stop)) {
                crate::lifecycle::sleep_if_closed();
            }
            taken
        });
        let Ok(Taken {
            item,
            lonely,
            refused,
            ..
        }) = taken
        else {
            py.check_signals()?;
            return Ok(("signal", false, py.None()));
        };
        let none = py.None();
        Ok(match item {
            Item::Call(call) => {
                if !refused && let Some((f, args)) = decode_call(py, &call.body)? {
                    let what = ((call.src, call.id), call.mode as u32, f, args);
                    return Ok(("plain call", lonely, what.into_pyobject(py)?.into_any().unbind()));
                }
                if let Some(bytes) = call.body.lost_bytes() {
                    let error = errors::no_memory(bytes).into_value(py);
                    let what = (call.src, call.id, call.mode as u32, error);
                    return Ok(("lost call", lonely, what.into_pyobject(py)?.into_any().unbind()));
                }
                let (data, buffers, hold) = parts(py, call.body)?;
                let what = (call.src, call.id, call.mode as u32, data, buffers, hold);
                let kind = if refused { "refused call" } else { "call" };
                (kind, lonely, what.into_pyobject(py)?.into_any().unbind())
            }
            Item::Local(id) => {
                let kind = if refused { "refused local" } else { "local" };
                (kind, lonely, id.into_pyobject(py)?.into_any().unbind())
            }
            Item::Export(id) => (
                "export",
                lonely,
                (id.whence, id.id).into_pyobject(py)?.into_any().unbind(),
            ),
            Item::Freed(id) => (
                "freed",
                lonely,
                (id.whence, id.id).into_pyobject(py)?.into_any().unbind(),
            ),
            Item::Interrupt(which) => ("interrupt", lonely, which.into_pyobject(py)?.into_any().unbind()),
            Item::Members => ("members", lonely, none),
            Item::Silent(pid) => ("silent", lonely, pid.into_pyobject(py)?.into_any().unbind()),
            Item::Stacks(src, req) => (
                "stacks",
                lonely,
                (src, req).into_pyobject(py)?.into_any().unbind(),
            ),
            Item::Log => ("log", lonely, none),
            Item::Joined(pid, listener) => (
                "joined",
                lonely,
                (pid, listener).into_pyobject(py)?.into_any().unbind(),
            ),
            Item::Connect(pid, socket) => (
                "connect",
                lonely,
                (pid, socket.into_raw_fd()).into_pyobject(py)?.into_any().unbind(),
            ),
            Item::Exit => ("exit", lonely, none),
            Item::Stop => ("stop", lonely, none),
        })
    }

    /// Does what `started` does, and notes the call among those that run; None where it starts and is traced.
    fn begin(&self, key: &Bound<'_, PyTuple>) -> PyResult<Option<bool>> {
        self.running.bind(key.py()).set_item(key, self.thread)?;
        let (src, id) = key.extract()?;
        let wanted = self.started(src, id)?;
        Ok(if wanted && node()?.is_traced() {
            None
        } else {
            Some(wanted)
        })
    }

    /// A call that `begin` was told of has ended: an interrupt that comes now is not for what the thread does next.
    fn end(&self, key: &Bound<'_, PyTuple>) -> PyResult<()> {
        let py = key.py();
        let running = self.running.bind(py);
        if running.contains(key)? {
            running.del_item(key)?;
        }
        let interrupted = self.interrupted.bind(py);
        if !interrupted.is_empty() && interrupted.discard(key)? {
            if !self.is_main {
                forget_exception(self.thread);
            }
            self.inner.take_interrupt();
        }
        Ok(())
    }

    /// The call that was taken has been unpickled and starts; false where it was cancelled.
    fn started(&self, src: u32, id: u64) -> PyResult<bool> {
        let node = node()?;
        let wanted = node.begin_call(src, id);
        node.call_started(&self.inner);
        Ok(wanted)
    }

    /// Answers a call with a small plain value; false where it is none.
    fn answer_plain(
        &self,
        py: Python<'_>,
        key: (u32, u64),
        mode: u32,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let node = node()?;
        let (src, id) = key;
        if mode == CallMode::Do as u32 {
            node.answer_do(src, id, Status::Value);
            return Ok(true);
        }
        let Some(pickle) = plain::pickled(value) else {
            return Ok(false);
        };
        settle_puts(py, hears(mode, src))?;
        if mode == CallMode::Future as u32 {
            node.answer_future(src, id, Status::Value, Body::of_bytes(pickle));
        } else {
            node.answer_fetch(src, id, Status::Value, small(&[&pickle]))
                .map_err(|failed| errors::call_failed(py, failed))?;
        }
        Ok(true)
    }

    /// Answers a call: mode 0 sends the value back, mode 1 keeps it here, mode 2 has none.
    #[allow(clippy::too_many_arguments)]
    fn answer(
        &self,
        py: Python<'_>,
        src: u32,
        id: u64,
        mode: u32,
        status: u32,
        data: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        refs: Vec<RefTuple>,
    ) -> PyResult<()> {
        let node = node()?;
        let status = value_or_error(status)?;
        if mode == CallMode::Do as u32 {
            node.answer_do(src, id, status);
            return Ok(());
        }
        settle_puts(py, hears(mode, src))?;
        let sent = Sent::new(data, buffers, &refs)?;
        if mode == CallMode::Future as u32 {
            let body = sent.to_body(py)?;
            detached(py, || node.answer_future(src, id, status, body));
            return Ok(());
        }
        sending(py, &sent, |payload| node.answer_fetch(src, id, status, payload))
    }
}

/// Who is told of the end of a call: its caller, and where that is behind a future whoever waits for it.
fn hears(mode: u32, src: u32) -> u32 {
    if mode == CallMode::Fetch as u32 {
        src
    } else {
        ANYBODY
    }
}

/// There are to be no more threads that run calls than this.
#[pyfunction]
pub(crate) fn limit_threads(limit: usize) -> PyResult<()> {
    node()?.limit_executors(limit);
    Ok(())
}

/// There are no more threads that run calls than this for so many seconds, as the system has no thread for another one.
#[pyfunction]
pub(crate) fn limit_threads_for(limit: usize, seconds: f64) -> PyResult<()> {
    node()?.limit_executors_for(limit, Duration::from_secs_f64(seconds));
    Ok(())
}

/// Calls are refused while so many calls and requests of this process have no answer yet.
#[pyfunction]
pub(crate) fn limit_calls(limit: usize) -> PyResult<()> {
    node()?.limit_calls(limit);
    Ok(())
}

/// Has KeyboardInterrupt raised in the thread that runs a call, if it still does: it cannot end in between, since the
/// interpreter is not let go.
#[pyfunction]
pub(crate) fn interrupt_call(running: &Bound<'_, PyDict>, key: (u32, u64), thread: u64) -> PyResult<bool> {
    let runs = match running.get_item(key)? {
        Some(on) => on.extract::<u64>()? == thread,
        None => false,
    };
    if runs {
        raise_in(thread, PyKeyboardInterrupt::type_object(running.py()).as_ptr());
    }
    Ok(runs)
}

/// Takes back an exception that was sent to a thread and has not been raised yet.
#[pyfunction]
pub(crate) fn forget_exception(thread: u64) {
    raise_in(thread, std::ptr::null_mut());
}

pub(crate) fn raise_in(thread: u64, exception: *mut pyo3::ffi::PyObject) {
    // SAFETY: the interpreter is held by the callers, and `exception` is null or an object that lives through the
    // call, which takes a reference of its own (tests/faults/test_interrupted_waits.py).
    unsafe { pyo3::ffi::PyThreadState_SetAsyncExc(thread as std::ffi::c_long, exception) };
}

//! Exceptions that are to end a call or the process, and have struck a finalizer, which lets none out.

use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;

use crate::executor::raise_in;

/// Stands for `sys.unraisablehook`. What `again` says is to be raised is sent to the thread once more, with nothing of
/// Python running in between that it could strike; the rest is for the hook that was there.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct UnraisableHook {
    again: Py<PyAny>,
    otherwise: Py<PyAny>,
}

#[pymethods]
impl UnraisableHook {
    #[new]
    fn new(again: Py<PyAny>, otherwise: Py<PyAny>) -> Self {
        Self { again, otherwise }
    }

    fn __call__(&self, unraisable: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = unraisable.py();
        let error = unraisable.getattr("exc_value")?;
        let (thread, is_main): (u64, bool) = match self.again.call1(py, (error,))?.extract(py)? {
            Some(found) => found,
            None => return self.otherwise.call1(py, (unraisable,)).map(drop),
        };
        if is_main {
            // SAFETY: it notes that the signal has come, as its handler in C would.
            unsafe { pyo3::ffi::PyErr_SetInterruptEx(libc::SIGINT) };
        } else {
            raise_in(thread, py.get_type::<PyKeyboardInterrupt>().as_ptr());
        }
        Ok(())
    }
}

//! Of which types the items of a long list are, which is asked for each batch of a map.

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyList, PySet, PyTuple, PyType};

/// Whether a list or tuple has only items whose exact types are among these; false for anything else.
#[pyfunction]
pub(crate) fn all_of(values: &Bound<'_, PyAny>, types: &Bound<'_, PySet>) -> PyResult<bool> {
    let item: unsafe extern "C" fn(*mut ffi::PyObject, isize) -> *mut ffi::PyObject =
        if values.is_exact_instance_of::<PyList>() {
            ffi::PyList_GetItem
        } else if values.is_exact_instance_of::<PyTuple>() {
            ffi::PyTuple_GetItem
        } else {
            return Ok(false);
        };
    let mut known: *mut ffi::PyTypeObject = std::ptr::null_mut();
    for at in 0..values.len()? {
        // SAFETY: the interpreter is held, and `values` is of the type for which the function was chosen, which checks the
        // place itself. The item, which is borrowed, is not used once other code may have run (tests/unit/test_kinds.py).
        let class = unsafe {
            let item = item(values.as_ptr(), at as isize);
            if item.is_null() {
                // What compared the types has taken items out.
                drop(PyErr::take(values.py()));
                return Ok(false);
            }
            ffi::Py_TYPE(item)
        };
        if class == known {
            continue;
        }
        // SAFETY: the item that is there keeps its type until the reference is made (tests/unit/test_kinds.py).
        let class_object = unsafe { Bound::from_borrowed_ptr(values.py(), class.cast()) };
        if !types.contains(class_object.cast::<PyType>()?)? {
            return Ok(false);
        }
        known = class;
    }
    Ok(true)
}

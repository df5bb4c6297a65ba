//! Calls of functions that go by their names with small plain arguments: most of what many short calls need.

use pydist_proto::body::Body;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PySet, PyTuple, PyType};

use crate::plain;

static NAMES: PyOnceLock<Names> = PyOnceLock::new();

/// The functions that this process knows by name; the tables are filled by Python (`_plain.py`).
struct Names {
    /// For each function that was called elsewhere: its module, its name, and the opcodes that load it.
    sent: Py<PyDict>,
    /// For the opcodes of each function that was called here: its module, its name, and the function.
    found: Py<PyDict>,
    /// The types of what goes by its name.
    types: [Py<PyType>; 3],
}

/// Tells the tables of functions that go by their names.
#[pyfunction]
pub(crate) fn know_names(py: Python<'_>, sent: Py<PyDict>, found: Py<PyDict>, types: [Py<PyType>; 3]) {
    // The tables are those of a module, which is loaded once.
    let _ = NAMES.set(py, Names { sent, found, types });
}

/// The modules that are loaded.
fn modules(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    // SAFETY: the interpreter is held, and the dictionary of modules, which is borrowed, lives as long as it does
    // (tests/cluster/test_plain_calls.py).
    let modules = unsafe { Bound::from_borrowed_ptr(py, pyo3::ffi::PyImport_GetModuleDict()) };
    Ok(modules.cast_into()?)
}

/// Whether no module is registered with cloudpickle, which is imported when it is needed first.
fn nothing_goes_by_value(py: Python<'_>) -> PyResult<bool> {
    static REGISTERED: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let registered = match REGISTERED.get(py) {
        Some(registered) => registered.bind(py).clone(),
        None => {
            let Some(cloudpickle) = modules(py)?.get_item(intern!(py, "cloudpickle.cloudpickle"))? else {
                return Ok(true);
            };
            let Ok(registered) = cloudpickle.getattr(intern!(py, "_PICKLE_BY_VALUE_MODULES")) else {
                return Ok(false);
            };
            REGISTERED
                .get_or_init(py, || registered.unbind())
                .bind(py)
                .clone()
        }
    };
    Ok(registered.cast::<PySet>().is_ok_and(|modules| modules.is_empty()))
}

/// Whether a module still has an object under a name.
fn is_still(module: &Bound<'_, PyAny>, name: &Bound<'_, PyAny>, object: &Bound<'_, PyAny>) -> PyResult<bool> {
    let Some(module) = modules(object.py())?.get_item(module)? else {
        return Ok(false);
    };
    Ok(module
        .getattr(name.cast::<pyo3::types::PyString>()?)
        .is_ok_and(|found| found.is(object)))
}

impl Names {
    /// The opcodes that load a function elsewhere, where that is known.
    fn opcodes<'py>(&self, f: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let py = f.py();
        let class = f.get_type();
        if !self.types.iter().any(|known| class.is(known)) || !nothing_goes_by_value(py)? {
            return Ok(None);
        }
        let Some(known) = self.sent.bind(py).get_item(f)? else {
            return Ok(None);
        };
        let known = known.cast::<PyTuple>()?;
        if !is_still(&known.get_item(0)?, &known.get_item(1)?, f)? {
            return Ok(None);
        }
        Ok(Some(known.get_item(2)?.cast_into::<PyBytes>()?))
    }
}

/// Makes the pickle of a call; nothing where function or arguments are not that simple.
pub(crate) fn encode_call(f: &Bound<'_, PyAny>, args: &Bound<'_, PyTuple>) -> PyResult<Option<Vec<u8>>> {
    let Some(names) = NAMES.get(f.py()) else {
        return Ok(None);
    };
    let Some(opcodes) = names.opcodes(f)? else {
        return Ok(None);
    };
    let opcodes = opcodes.as_bytes();
    let mut pickle = Vec::with_capacity(opcodes.len() + 64);
    pickle.extend_from_slice(&plain::PROTO);
    pickle.extend_from_slice(opcodes);
    if !plain::encode(args.as_any(), &mut pickle) {
        return Ok(None);
    }
    pickle.extend_from_slice(END);
    Ok(Some(pickle))
}

/// What follows the arguments in the pickle of a call without keywords.
pub(crate) const END: &[u8] = b"}\x87.";

/// Reads a call whose function has come by its name before, and whose arguments are plain.
pub(crate) fn decode_call<'py>(
    py: Python<'py>,
    body: &Body,
) -> PyResult<Option<(Bound<'py, PyAny>, Bound<'py, PyAny>)>> {
    let Some(names) = NAMES.get(py) else {
        return Ok(None);
    };
    let [segment] = body.segments.as_slice() else {
        return Ok(None);
    };
    let opcodes = segment.as_slice().strip_prefix(&plain::PROTO);
    let Some((name, args)) = opcodes.and_then(split_name) else {
        return Ok(None);
    };
    let Some(found) = names.found.bind(py).get_item(PyBytes::new(py, name))? else {
        return Ok(None);
    };
    let Some(args) = plain::decode_opcodes(py, args) else {
        return Ok(None);
    };
    let found = found.cast::<PyTuple>()?;
    let f = found.get_item(2)?;
    let known =
        args.is_exact_instance_of::<PyTuple>() && is_still(&found.get_item(0)?, &found.get_item(1)?, &f)?;
    Ok(known.then_some((f, args)))
}

/// Splits the opcodes of a call into those of a function that goes by its name, and those of the arguments.
fn split_name(opcodes: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = |at: usize| match opcodes.get(at..at + 2)? {
        [plain::SHORT_TEXT, len] => Some(at + 2 + usize::from(*len)),
        _ => None,
    };
    let end = text(text(0)?)?;
    if *opcodes.get(end)? != plain::STACK_GLOBAL {
        return None;
    }
    let (name, rest) = opcodes.split_at(end + 1);
    Some((name, rest.strip_suffix(END)?))
}

//! Memory of the core that Python objects own, and memory of Python that the core borrows.

use std::ffi::c_int;

use pydist_proto::body::{Body, Segment};
use pydist_proto::frame::{TABLES_MAX, tables_size};
use pydist_proto::ids::RemoteRef;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::errors;
use crate::lifecycle::{detached, node};

/// A writable buffer that holds one segment of a message.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Buffer {
    pointer: SegmentPointer,
    len: usize,
}

/// A segment that is only reached through its address.
struct SegmentPointer {
    address: *mut u8,
    /// Keeps the memory alive; never touched while `Buffer` exists.
    _segment: Segment,
}

// SAFETY: the address stays valid wherever the segment moves, as its memory is on the heap or mapped; accesses
// go through the buffer protocol, whose users hold the interpreter (tests/cluster/test_data.py).
unsafe impl Send for SegmentPointer {}
// SAFETY: as above.
unsafe impl Sync for SegmentPointer {}

impl Buffer {
    pub(crate) fn new(mut segment: Segment) -> Buffer {
        let (address, len) = (segment.hand_out(), segment.len());
        Buffer {
            pointer: SegmentPointer {
                address,
                _segment: segment,
            },
            len,
        }
    }
}

#[pymethods]
impl Buffer {
    fn __len__(&self) -> usize {
        self.len
    }

    // SAFETY: `PyBuffer_FillInfo` fills the view that the interpreter passes, and takes a reference to `slf`,
    // which owns the memory for as long as the view exists.
    unsafe fn __getbuffer__(slf: PyRef<'_, Self>, view: *mut ffi::Py_buffer, flags: c_int) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("there is no view to fill"));
        }
        let (address, len) = (slf.pointer.address, slf.len as ffi::Py_ssize_t);
        // SAFETY: see above; the memory is writable and `len` bytes long.
        let result = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), address.cast(), len, 0, flags) };
        if result == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// Buffers that go to several processes: where these are on this machine, they share one copy.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Shared {
    content: Content,
}

enum Content {
    /// Copied into memory of the core: an empty segment in the place of a pickle, and one for each buffer.
    Kept(Body),
    /// Not worth it: they are sent from where they lie.
    Views(Vec<PyBuffer<u8>>),
}

/// Copies buffers once, where they are large, so that they can be sent to several processes.
#[pyfunction]
pub(crate) fn share(py: Python<'_>, buffers: &Bound<'_, PyList>) -> PyResult<Shared> {
    let node = node()?;
    let views = views(buffers)?;
    let mut segments = vec![&[][..]];
    segments.extend(views.iter().map(bytes_of));
    let content = if node.is_worth_sharing(&segments) {
        Content::Kept(kept(py, &segments, &[])?)
    } else {
        Content::Views(views)
    };
    Ok(Shared { content })
}

fn views(buffers: &Bound<'_, PyList>) -> PyResult<Vec<PyBuffer<u8>>> {
    buffers.iter().map(|buffer| PyBuffer::get(&buffer)).collect()
}

fn bytes_of(buffer: &PyBuffer<u8>) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    // SAFETY: the view keeps the exporter alive and its memory in place, and it is contiguous bytes,
    // as `PyBuffer<u8>` of a one-dimensional simple view is; that no thread writes to it while it is
    // sent is up to the user, as with any buffer (tests/cluster/test_data.py).
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }
}

fn kept(py: Python<'_>, segments: &[&[u8]], refs: &[RemoteRef]) -> PyResult<Body> {
    let node = node()?;
    let body = if node.is_worth_sharing(segments) {
        detached(py, || node.keep(segments, refs))
    } else {
        node.keep(segments, refs)
    };
    body.map_err(|error| PyMemoryError::new_err(error.to_string()))
}

/// What Python wants to send: the pickle, its buffers, and the references that it names.
pub(crate) struct Sent {
    data: Option<PyBuffer<u8>>,
    buffers: Buffers,
    pub(crate) refs: Vec<RemoteRef>,
}

enum Buffers {
    Views(Vec<PyBuffer<u8>>),
    Shared(Py<Shared>),
}

/// A reference as Python writes it: owner, whence, id.
pub(crate) type RefTuple = (u32, u32, u64);

impl Sent {
    pub(crate) fn new(
        data: &Bound<'_, PyAny>,
        buffers: &Bound<'_, PyAny>,
        refs: &[RefTuple],
    ) -> PyResult<Sent> {
        let buffers = match buffers.cast::<PyList>() {
            Ok(list) => Buffers::Views(views(list)?),
            Err(_) => Buffers::Shared(buffers.cast::<Shared>()?.clone().unbind()),
        };
        let sent = Sent {
            data: Some(PyBuffer::get(data)?),
            buffers,
            refs: refs.iter().map(|r| remote_ref(*r)).collect(),
        };
        sent.check_size(data.py())?;
        Ok(sent)
    }

    /// Fails where no process would take a message as large as this.
    fn check_size(&self, py: Python<'_>) -> PyResult<()> {
        let lengths = |views: &[PyBuffer<u8>]| (views.len(), views.iter().map(|view| view.len_bytes()).sum());
        let (count, buffered): (usize, usize) = match &self.buffers {
            Buffers::Views(views) => lengths(views),
            Buffers::Shared(shared) => match &shared.get().content {
                Content::Views(views) => lengths(views),
                Content::Kept(body) => (body.segments.len() - 1, body.size()),
            },
        };
        let pickled = self.data.as_ref().map_or(0, |data| data.len_bytes());
        let (size, limit) = ((pickled + buffered) as u64, node()?.message_max());
        if size > limit {
            return Err(errors::too_large(py, size, limit));
        }
        if tables_size(count + 1, self.refs.len()) > TABLES_MAX {
            return Err(errors::too_many_parts(py, count, self.refs.len()));
        }
        Ok(())
    }

    /// Nothing at all.
    pub(crate) fn empty() -> Sent {
        Sent {
            data: None,
            buffers: Buffers::Views(Vec::new()),
            refs: Vec::new(),
        }
    }

    /// The bytes of the pickle and of each buffer.
    pub(crate) fn segments(&self) -> Vec<&[u8]> {
        let mut segments: Vec<&[u8]> = self.data.iter().map(bytes_of).collect();
        match &self.buffers {
            Buffers::Views(views) => segments.extend(views.iter().map(bytes_of)),
            Buffers::Shared(shared) => match &shared.get().content {
                Content::Views(views) => segments.extend(views.iter().map(bytes_of)),
                Content::Kept(body) => segments.extend(body.segments.iter().skip(1).map(Segment::as_slice)),
            },
        }
        segments
    }

    /// The body in which all segments but the first lie already.
    pub(crate) fn kept(&self) -> Option<&Body> {
        match &self.buffers {
            Buffers::Shared(shared) => match &shared.get().content {
                Content::Kept(body) => Some(body),
                Content::Views(_) => None,
            },
            Buffers::Views(_) => None,
        }
    }

    /// Copies everything into memory of the core.
    pub(crate) fn to_body(&self, py: Python<'_>) -> PyResult<Body> {
        kept(py, &self.segments(), &self.refs)
    }
}

pub(crate) fn remote_ref((owner, whence, id): RefTuple) -> RemoteRef {
    RemoteRef {
        owner,
        id: pydist_proto::ids::RefId { whence, id },
    }
}

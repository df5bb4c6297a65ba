//! Memory of the core that Python objects own, and memory of Python that the core borrows.

use std::ffi::c_int;

use pydist_proto::body::{Body, Segment};
use pydist_proto::ids::RemoteRef;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyMemoryError};
use pyo3::ffi;
use pyo3::prelude::*;

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
        let bytes = segment.as_mut_slice();
        let (address, len) = (bytes.as_mut_ptr(), bytes.len());
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

/// What Python wants to send: the pickle, its buffers, and the references that it names.
pub(crate) struct Sent {
    buffers: Vec<PyBuffer<u8>>,
    pub(crate) refs: Vec<RemoteRef>,
}

/// A reference as Python writes it: owner, whence, id.
pub(crate) type RefTuple = (u32, u32, u64);

impl Sent {
    pub(crate) fn new(
        data: &Bound<'_, PyAny>,
        buffers: Vec<Bound<'_, PyAny>>,
        refs: &[RefTuple],
    ) -> PyResult<Sent> {
        let mut views = Vec::with_capacity(1 + buffers.len());
        views.push(PyBuffer::get(data)?);
        for buffer in &buffers {
            views.push(PyBuffer::get(buffer)?);
        }
        Ok(Sent {
            buffers: views,
            refs: refs.iter().map(|r| remote_ref(*r)).collect(),
        })
    }

    /// Nothing at all.
    pub(crate) fn empty() -> Sent {
        Sent {
            buffers: Vec::new(),
            refs: Vec::new(),
        }
    }

    /// The bytes of the pickle and of each buffer.
    pub(crate) fn segments(&self) -> Vec<&[u8]> {
        self.buffers
            .iter()
            .map(|buffer| {
                if buffer.len_bytes() == 0 {
                    return &[][..];
                }
                // SAFETY: the view keeps the exporter alive and its memory in place, and it is contiguous bytes,
                // as `PyBuffer<u8>` of a one-dimensional simple view is; that no thread writes to it while it is
                // sent is up to the user, as with any buffer (tests/cluster/test_data.py).
                unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }
            })
            .collect()
    }

    /// Copies everything into memory of the core.
    pub(crate) fn to_body(&self) -> PyResult<Body> {
        let mut segments = Vec::with_capacity(self.buffers.len());
        for bytes in self.segments() {
            segments
                .push(Segment::copy_of(bytes).map_err(|error| PyMemoryError::new_err(error.to_string()))?);
        }
        Ok(Body {
            refs: self.refs.clone(),
            segments,
        })
    }
}

pub(crate) fn remote_ref((owner, whence, id): RefTuple) -> RemoteRef {
    RemoteRef {
        owner,
        id: pydist_proto::ids::RefId { whence, id },
    }
}

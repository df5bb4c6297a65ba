//! Pickles of small plain values, written and read here: numbers, short texts and bytes, tuples and lists of these.
//!
//! What is written is what pickle reads, and gives the same: an object that is there twice is left to pickle, since it
//! arrives as one. What is read is what pickle writes for such values; anything else is left to pickle too.

use pydist_proto::message::Status;
use pydist_proto::record::Outcome;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyString, PyTuple};

/// Tuples and lists of more parts are left to pickle, as are texts and bytes whose length takes more than a byte.
const PARTS: usize = 32;
/// So many objects with an identity may be in one value.
const SEEN: usize = 8;
const DEPTH: usize = 3;

pub(crate) const PROTO: [u8; 2] = [0x80, 5];
const FRAME: u8 = 0x95;
const MEMOIZE: u8 = 0x94;
const NEWTRUE: u8 = 0x88;
const NEWFALSE: u8 = 0x89;
const LONG1: u8 = 0x8a;
pub(crate) const SHORT_TEXT: u8 = 0x8c;
pub(crate) const STACK_GLOBAL: u8 = 0x93;
const TUPLE1: u8 = 0x85;
pub(crate) const TUPLE3: u8 = 0x87;

struct Encoder<'o> {
    out: &'o mut Vec<u8>,
    seen: [*mut pyo3::ffi::PyObject; SEEN],
    count: usize,
}

/// Appends the opcodes that make a value; false where it is not plain, and then `out` is of no use.
pub(crate) fn encode(value: &Bound<'_, PyAny>, out: &mut Vec<u8>) -> bool {
    Encoder::new(out).write(value, DEPTH)
}

/// The pickle of a small plain value; nothing where it is none.
pub(crate) fn pickled(value: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
    let mut pickle = Vec::with_capacity(16);
    pickle.extend_from_slice(&PROTO);
    if !encode(value, &mut pickle) {
        return None;
    }
    pickle.push(b'.');
    Some(pickle)
}

/// Does what `encode` does for several values, which are parts of one.
pub(crate) fn encode_each<'py>(
    mut values: impl Iterator<Item = Bound<'py, PyAny>>,
    out: &mut Vec<u8>,
) -> bool {
    let mut encoder = Encoder::new(out);
    values.all(|value| encoder.write(&value, DEPTH - 1))
}

impl<'o> Encoder<'o> {
    fn new(out: &'o mut Vec<u8>) -> Encoder<'o> {
        Encoder {
            out,
            seen: [std::ptr::null_mut(); SEEN],
            count: 0,
        }
    }

    fn write(&mut self, value: &Bound<'_, PyAny>, depth: usize) -> bool {
        if value.is_none() {
            self.out.push(b'N');
        } else if let Ok(number) = value.cast_exact::<PyInt>() {
            return self.write_int(number);
        } else if let Ok(text) = value.cast_exact::<PyString>() {
            let Ok(text) = text.to_str() else { return false };
            return self.is_new(value) && self.write_bytes(SHORT_TEXT, text.as_bytes());
        } else if let Ok(number) = value.cast_exact::<PyFloat>() {
            self.out.push(b'G');
            self.out.extend_from_slice(&number.value().to_be_bytes());
        } else if let Ok(truth) = value.cast_exact::<PyBool>() {
            self.out.push(if truth.is_true() { NEWTRUE } else { NEWFALSE });
        } else if let Ok(tuple) = value.cast_exact::<PyTuple>() {
            return depth > 0 && self.write_tuple(tuple, depth);
        } else if let Ok(bytes) = value.cast_exact::<PyBytes>() {
            return self.is_new(value) && self.write_bytes(b'C', bytes.as_bytes());
        } else if let Ok(list) = value.cast_exact::<PyList>() {
            return depth > 0 && self.is_new(value) && self.write_list(list, depth);
        } else {
            return false;
        }
        true
    }

    /// Notes an object that has an identity; false where it has been met before, or there are many.
    fn is_new(&mut self, value: &Bound<'_, PyAny>) -> bool {
        let address = value.as_ptr();
        if self.count == SEEN || self.seen[..self.count].contains(&address) {
            return false;
        }
        self.seen[self.count] = address;
        self.count += 1;
        true
    }

    fn write_int(&mut self, number: &Bound<'_, PyInt>) -> bool {
        let Ok(number) = number.extract::<i64>() else {
            return false;
        };
        if let Ok(byte) = u8::try_from(number) {
            self.out.extend_from_slice(&[b'K', byte]);
        } else if let Ok(number) = i32::try_from(number) {
            self.out.push(b'J');
            self.out.extend_from_slice(&number.to_le_bytes());
        } else {
            self.out.extend_from_slice(&[LONG1, 8]);
            self.out.extend_from_slice(&number.to_le_bytes());
        }
        true
    }

    fn write_bytes(&mut self, opcode: u8, bytes: &[u8]) -> bool {
        let Ok(len) = u8::try_from(bytes.len()) else {
            return false;
        };
        self.out.extend_from_slice(&[opcode, len]);
        self.out.extend_from_slice(bytes);
        true
    }

    fn write_tuple(&mut self, tuple: &Bound<'_, PyTuple>, depth: usize) -> bool {
        let len = tuple.len();
        if len == 0 {
            self.out.push(b')');
            return true;
        }
        if len > PARTS || !self.is_new(tuple.as_any()) {
            return false;
        }
        if len > 3 {
            self.out.push(b'(');
        }
        if !tuple.iter().all(|item| self.write(&item, depth - 1)) {
            return false;
        }
        self.out.push(if len > 3 { b't' } else { TUPLE1 + len as u8 - 1 });
        true
    }

    fn write_list(&mut self, list: &Bound<'_, PyList>, depth: usize) -> bool {
        let len = list.len();
        self.out.push(b']');
        if len == 0 {
            return true;
        }
        if len > PARTS {
            return false;
        }
        self.out.push(b'(');
        if !list.iter().all(|item| self.write(&item, depth - 1)) {
            return false;
        }
        self.out.push(b'e');
        true
    }
}

/// Makes the value of a pickle; nothing where that is to be read by pickle itself.
pub(crate) fn decode<'py>(py: Python<'py>, pickle: &[u8]) -> Option<Bound<'py, PyAny>> {
    let opcodes = pickle.strip_prefix(&PROTO)?.strip_suffix(b".")?;
    decode_opcodes(py, opcodes)
}

/// Makes the value that an answer brings, where it is small and plain.
pub(crate) fn value_of<'py>(py: Python<'py>, answer: &Outcome) -> Option<Bound<'py, PyAny>> {
    match answer.body.segments.as_slice() {
        [pickle] if answer.status == Status::Value => decode(py, pickle.as_slice()),
        _ => None,
    }
}

/// Makes the one value that opcodes leave on the stack.
pub(crate) fn decode_opcodes<'py>(py: Python<'py>, opcodes: &[u8]) -> Option<Bound<'py, PyAny>> {
    let mut decoder = Decoder {
        py,
        rest: opcodes,
        stack: Vec::with_capacity(8),
        marks: Vec::new(),
    };
    while let Some((&opcode, rest)) = decoder.rest.split_first() {
        decoder.rest = rest;
        decoder.step(opcode)?;
    }
    let value = decoder.stack.pop()?;
    (decoder.stack.is_empty() && decoder.marks.is_empty()).then_some(value)
}

fn int(py: Python<'_>, number: i64) -> Bound<'_, PyAny> {
    let Ok(number) = number.into_pyobject(py);
    number.into_any()
}

struct Decoder<'py, 'd> {
    py: Python<'py>,
    rest: &'d [u8],
    stack: Vec<Bound<'py, PyAny>>,
    marks: Vec<usize>,
}

impl<'d> Decoder<'_, 'd> {
    fn step(&mut self, opcode: u8) -> Option<()> {
        let py = self.py;
        let value = match opcode {
            MEMOIZE => return Some(()),
            FRAME => return self.take(8).map(|_| ()),
            b'(' => {
                self.marks.push(self.stack.len());
                return Some(());
            }
            b'e' => return self.extend_list(),
            b'a' => {
                let item = self.stack.pop()?;
                return self.list()?.append(item).ok();
            }
            b'N' => py.None().into_bound(py),
            NEWTRUE => PyBool::new(py, true).to_owned().into_any(),
            NEWFALSE => PyBool::new(py, false).to_owned().into_any(),
            b'K' => int(py, i64::from(self.take(1)?[0])),
            b'M' => int(py, i64::from(u16::from_le_bytes(self.take(2)?.try_into().ok()?))),
            b'J' => int(py, i64::from(i32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            LONG1 => self.long()?,
            b'G' => PyFloat::new(py, f64::from_be_bytes(self.take(8)?.try_into().ok()?)).into_any(),
            SHORT_TEXT => {
                let text = self.counted()?;
                PyString::new(py, std::str::from_utf8(text).ok()?).into_any()
            }
            b'C' => PyBytes::new(py, self.counted()?).into_any(),
            b')' => PyTuple::empty(py).into_any(),
            TUPLE1..=TUPLE3 => self.tuple(usize::from(opcode - TUPLE1) + 1)?,
            b't' => {
                let mark = self.marks.pop()?;
                self.tuple(self.stack.len().checked_sub(mark)?)?
            }
            b']' => PyList::empty(py).into_any(),
            _ => return None,
        };
        self.stack.push(value);
        Some(())
    }

    fn take(&mut self, len: usize) -> Option<&'d [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn counted(&mut self) -> Option<&'d [u8]> {
        let len = self.take(1)?[0];
        self.take(usize::from(len))
    }
}

impl<'py> Decoder<'py, '_> {
    fn long(&mut self) -> Option<Bound<'py, PyAny>> {
        let bytes = self.counted()?;
        let negative = bytes.last().is_some_and(|last| last & 0x80 != 0);
        let mut number = [if negative { 0xff } else { 0 }; 8];
        number.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(int(self.py, i64::from_le_bytes(number)))
    }

    fn tuple(&mut self, len: usize) -> Option<Bound<'py, PyAny>> {
        let from = self.stack.len().checked_sub(len)?;
        if self.marks.last().is_some_and(|mark| *mark > from) {
            return None;
        }
        let tuple = PyTuple::new(self.py, self.stack.drain(from..)).ok()?;
        Some(tuple.into_any())
    }

    fn list(&self) -> Option<&Bound<'py, PyList>> {
        self.stack.last()?.cast_exact::<PyList>().ok()
    }

    fn extend_list(&mut self) -> Option<()> {
        let mark = self.marks.pop()?;
        let items: Vec<_> = self.stack.drain(mark..).collect();
        let list = self.list()?;
        items.into_iter().try_for_each(|item| list.append(item)).ok()
    }
}

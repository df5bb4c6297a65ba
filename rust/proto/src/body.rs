//! The body of a message: the pickle and its out-of-band buffers, in memory that the receiver owns.

use memmap2::MmapMut;

use crate::ids::RemoteRef;

/// From this size on a segment gets pages of its own, which the kernel hands out only as they are filled.
const MAPPED_FROM: usize = 1 << 20;

/// One writable run of bytes.
#[derive(Debug)]
pub enum Segment {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

impl Segment {
    /// Makes a zeroed segment; a large one reserves address space without touching memory.
    pub fn zeroed(len: usize) -> std::io::Result<Segment> {
        if len < MAPPED_FROM {
            Ok(Segment::Heap(vec![0; len]))
        } else {
            MmapMut::map_anon(len).map(Segment::Mapped)
        }
    }

    /// Copies bytes into a segment of their own.
    pub fn copy_of(bytes: &[u8]) -> std::io::Result<Segment> {
        if bytes.len() < MAPPED_FROM {
            return Ok(Segment::Heap(bytes.to_vec()));
        }
        let mut segment = Segment::zeroed(bytes.len())?;
        segment.as_mut_slice().copy_from_slice(bytes);
        Ok(segment)
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Heap(bytes) => bytes,
            Segment::Mapped(map) => map,
        }
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Segment::Heap(bytes) => bytes,
            Segment::Mapped(map) => map,
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The pickle (segment 0) and its buffers, with the references that the pickle names.
#[derive(Debug, Default)]
pub struct Body {
    pub refs: Vec<RemoteRef>,
    pub segments: Vec<Segment>,
}

impl Body {
    /// Makes a body of one segment that names no reference.
    pub fn of_bytes(bytes: Vec<u8>) -> Body {
        Body {
            refs: Vec::new(),
            segments: vec![Segment::Heap(bytes)],
        }
    }

    /// Copies a body, segment by segment.
    pub fn try_clone(&self) -> std::io::Result<Body> {
        let segments = self
            .segments
            .iter()
            .map(|segment| Segment::copy_of(segment.as_slice()))
            .collect::<Result<_, _>>()?;
        Ok(Body {
            refs: self.refs.clone(),
            segments,
        })
    }

    /// The bytes of all segments together.
    pub fn size(&self) -> usize {
        self.segments.iter().map(Segment::len).sum()
    }

    /// The first segment as text, for the reasons that the core itself sends.
    pub fn text(&self) -> String {
        self.segments
            .first()
            .map(|s| String::from_utf8_lossy(s.as_slice()).into_owned())
            .unwrap_or_default()
    }
}

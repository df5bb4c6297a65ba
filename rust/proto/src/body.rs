//! The body of a message: the pickle and its out-of-band buffers, in memory that the receiver owns.

use std::any::Any;
use std::ops::{Deref, DerefMut, Range};
use std::sync::{Arc, OnceLock};

use memmap2::MmapMut;

use crate::ids::RemoteRef;

/// From this size on a segment gets pages of its own, which the kernel hands out only as they are filled.
const MAPPED_FROM: usize = 1 << 20;

/// A private view of memory that other processes see too: what is written to it stays in this process.
///
/// The core never writes to a view; whoever a body is handed out to may.
pub trait View: Any + Send + Sync + std::fmt::Debug {
    fn bytes(&self) -> &[u8];

    /// The first byte, for who is handed the view out to write to it.
    fn address(&self) -> *mut u8;

    /// A further view of what was sent, whatever has been written to this one; fails where there can be none.
    fn again(&self) -> std::io::Result<Arc<dyn View>>;

    /// The view leaves the core, and is not passed on any more.
    fn hand_out(&self);
}

/// Pages of memory for one segment.
#[derive(Debug)]
pub struct Pages(Option<MmapMut>);

static UNMAP: OnceLock<fn(MmapMut)> = OnceLock::new();

impl Pages {
    fn of(len: usize) -> std::io::Result<Pages> {
        MmapMut::map_anon(len).map(|map| Pages(Some(map)))
    }

    /// Says who unmaps pages from now on, wherever a segment is dropped: it takes the system long where they are many.
    pub fn unmapped_by(unmap: fn(MmapMut)) {
        let _ = UNMAP.set(unmap);
    }
}

impl Deref for Pages {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_deref_mut().unwrap_or_default()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        if let (Some(map), Some(unmap)) = (self.0.take(), UNMAP.get()) {
            unmap(map);
        }
    }
}

/// One run of bytes.
#[derive(Debug)]
pub enum Segment {
    Heap(Vec<u8>),
    Mapped(Pages),
    Shared(Arc<dyn View>, Range<usize>),
    /// In the place of all segments of a message for which there was no memory: the bytes that were asked for.
    Lost(u64),
}

impl Segment {
    /// Makes a zeroed segment; a large one reserves address space without touching memory.
    pub fn zeroed(len: usize) -> std::io::Result<Segment> {
        if len < MAPPED_FROM {
            let mut bytes = reserved(len)?;
            bytes.resize(len, 0);
            Ok(Segment::Heap(bytes))
        } else {
            Pages::of(len).map(Segment::Mapped)
        }
    }

    /// Copies bytes into a segment of their own.
    pub fn copy_of(bytes: &[u8]) -> std::io::Result<Segment> {
        if bytes.len() < MAPPED_FROM {
            let mut copy = reserved(bytes.len())?;
            copy.extend_from_slice(bytes);
            return Ok(Segment::Heap(copy));
        }
        let mut segment = Segment::zeroed(bytes.len())?;
        segment.as_mut_slice().copy_from_slice(bytes);
        Ok(segment)
    }

    pub fn as_slice(&self) -> &[u8] {
        match self {
            Segment::Heap(bytes) => bytes,
            Segment::Mapped(pages) => pages,
            Segment::Shared(view, range) => &view.bytes()[range.clone()],
            Segment::Lost(_) => &[],
        }
    }

    /// The bytes for writing; none of a shared segment, which is only written to once it has been handed out.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        match self {
            Segment::Heap(bytes) => bytes,
            Segment::Mapped(pages) => pages,
            Segment::Shared(..) | Segment::Lost(_) => &mut [],
        }
    }

    /// Where the bytes are, for who takes the segment out of the core and may write to it.
    pub fn hand_out(&mut self) -> *mut u8 {
        match self {
            Segment::Heap(bytes) => bytes.as_mut_ptr(),
            Segment::Mapped(pages) => pages.as_mut_ptr(),
            Segment::Shared(view, range) => {
                view.hand_out();
                view.address().wrapping_add(range.start)
            }
            Segment::Lost(_) => std::ptr::NonNull::dangling().as_ptr(),
        }
    }

    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An empty vector with room for so many bytes, where the system has them.
fn reserved(len: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| std::io::ErrorKind::OutOfMemory)?;
    Ok(bytes)
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

    /// Makes the body of a message for which there was no memory, when `len` bytes were asked for.
    pub fn lost(refs: Vec<RemoteRef>, len: u64) -> Body {
        let segments = vec![Segment::Lost(len)];
        Body { refs, segments }
    }

    /// The bytes that were asked for and not to be had, where the content of the body is lost.
    pub fn lost_bytes(&self) -> Option<u64> {
        match self.segments.first() {
            Some(Segment::Lost(len)) => Some(*len),
            _ => None,
        }
    }

    /// Copies a body, segment by segment; shared memory is not copied but viewed once more where that can be.
    pub fn try_clone(&self) -> std::io::Result<Body> {
        let again = self.view().and_then(|view| view.again().ok());
        let segments = self
            .segments
            .iter()
            .map(|segment| match (segment, &again) {
                (Segment::Shared(_, range), Some(view)) => Ok(Segment::Shared(view.clone(), range.clone())),
                (Segment::Lost(len), _) => Ok(Segment::Lost(*len)),
                _ => Segment::copy_of(segment.as_slice()),
            })
            .collect::<Result<_, _>>()?;
        Ok(Body {
            refs: self.refs.clone(),
            segments,
        })
    }

    /// The view in which all shared segments of the body lie.
    pub fn view(&self) -> Option<&Arc<dyn View>> {
        self.segments.iter().find_map(|segment| match segment {
            Segment::Shared(view, _) => Some(view),
            _ => None,
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

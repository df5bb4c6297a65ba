//! Cutting a message whose segments lie in memory of Python into chunks.

/// A position in a list of segments.
pub(crate) struct Cursor<'a> {
    segments: &'a [&'a [u8]],
    index: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// At the beginning.
    pub(crate) fn new(segments: &'a [&'a [u8]]) -> Cursor<'a> {
        Cursor {
            segments,
            index: 0,
            offset: 0,
        }
    }

    /// Takes the next `len` bytes as slices.
    pub(crate) fn take<'b>(&mut self, mut len: usize, out: &mut Vec<&'b [u8]>)
    where
        'a: 'b,
    {
        while len > 0 {
            let segment = self.segments[self.index];
            let n = len.min(segment.len() - self.offset);
            if n > 0 {
                out.push(&segment[self.offset..self.offset + n]);
            }
            len -= n;
            self.offset += n;
            if self.offset == segment.len() {
                self.index += 1;
                self.offset = 0;
            }
        }
    }
}

//! Numbers and bytes out of the input of a target.

/// What is left of an input; numbers beyond its end are 0.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn bytes(&mut self, n: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(n.min(self.0.len()));
        self.0 = tail;
        head
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// A number that is small more often than not, so that it names something that there is.
    pub(crate) fn number(&mut self) -> u64 {
        match self.u8() {
            255 => u64::from_le_bytes(self.array()),
            254 => u64::from(u32::from_le_bytes(self.array())),
            small => u64::from(small),
        }
    }

    pub(crate) fn number32(&mut self) -> u32 {
        self.number() as u32
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.bytes(self.0.len())
    }
}

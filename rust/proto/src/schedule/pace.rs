//! How long elements take and how large they are, as measured, and what fits into a message by that.

use super::Nanos;

/// How much work a message carries where calls are short.
const TARGET: f64 = 4e6;
/// How much work waits at a worker behind what it runs, where messages are smaller than they may be.
const COVER: f64 = 4e6;
/// Batches that take longer than this are sent one at a time: the round trip is nothing beside them.
const PREFETCH_BELOW: f64 = 20e6;
/// A batch is no smaller than this towards the end.
const FLOOR: f64 = 0.5e6;
/// How much larger than all before a batch may be.
const GROWTH: u64 = 8;
/// The largest batch that is made by itself.
const SIZE_MAX: u64 = 1 << 14;
/// The most bytes of a message that has several elements, about.
const BYTES_MAX: f64 = 1e6;
/// Messages under way per worker where each is short.
const WINDOW_MAX: u64 = 64;
/// How much an earlier batch counts beside the next.
const MEMORY: f64 = 0.7;

/// A mean over the last batches, by element.
#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    sum: f64,
    elements: f64,
}

impl Mean {
    fn note(&mut self, elements: u64, sum: f64) {
        self.sum = self.sum * MEMORY + sum;
        self.elements = self.elements * MEMORY + elements as f64;
    }

    fn get(&self) -> Option<f64> {
        (self.elements > 0.0).then(|| self.sum / self.elements)
    }
}

/// What is known of the elements so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    time: Mean,
    bytes: Mean,
    /// The largest batch that has ended.
    grown: u64,
}

impl Pace {
    pub(super) fn note_time(&mut self, elements: u64, nanos: Nanos) {
        if elements > 0 {
            self.time.note(elements, nanos.max(1) as f64);
            self.grown = self.grown.max(elements);
        }
    }

    pub(super) fn note_bytes(&mut self, elements: u64, bytes: u64) {
        if elements > 0 {
            self.bytes.note(elements, bytes as f64);
        }
    }

    /// How long so many elements take; none where nothing has ended yet.
    pub(super) fn expected(&self, elements: u64) -> Option<f64> {
        Some(self.time.get()? * elements as f64)
    }

    /// The elements of a batch that is neither too long nor too large.
    pub(super) fn size(&self) -> u64 {
        let Some(time) = self.time.get() else { return 1 };
        let fitting = (TARGET / time) as u64;
        let light = self
            .bytes
            .get()
            .map_or(SIZE_MAX, |b| (BYTES_MAX / b.max(1.0)) as u64);
        fitting
            .min(light)
            .min(SIZE_MAX)
            .min(self.grown.saturating_mul(GROWTH))
            .max(1)
    }

    /// The elements of a batch that is just worth a message.
    pub(super) fn floor(&self) -> u64 {
        self.time.get().map_or(1, |time| (FLOOR / time) as u64).max(1)
    }

    /// How many batches of this size a worker may have; `grows` where the size fits by itself.
    pub(super) fn window(&self, size: u64, grows: bool) -> u64 {
        match self.expected(size) {
            None => 1,
            Some(time) if time >= PREFETCH_BELOW => 1,
            Some(_) if grows => 2,
            Some(time) => ((COVER / time).ceil() as u64 + 1).clamp(2, WINDOW_MAX),
        }
    }
}

//! Giving memory back to the system without anybody waiting for it.

use memmap2::{MmapMut, UncheckedAdvice};

use crate::reactor::spawn_without_signals;

/// Giving so much back takes the system long enough to be noticed by whoever does it.
const SLOW_FROM: usize = 128 << 20;
/// So much is given back at once: as long as the system does that, no thread of the process can map memory.
const PIECE: usize = 16 << 20;

/// Drops what holds so many bytes; much is dropped by a thread of its own, where the system has one.
pub(crate) fn free<T: Send + 'static>(memory: T, bytes: usize) {
    if bytes >= SLOW_FROM {
        // Without a thread it is dropped here.
        let _ = spawn_without_signals("pydist-free", move || drop(memory));
    }
}

/// Memory whose pages go back piece by piece, and then what outlives it.
pub(crate) struct Unmapped<T> {
    map: MmapMut,
    _then: T,
}

impl<T> Drop for Unmapped<T> {
    fn drop(&mut self) {
        let len = self.map.len();
        if len < SLOW_FROM {
            return;
        }
        for at in (0..len).step_by(PIECE) {
            // SAFETY: nobody reads the memory any more, as it is dropped after this (tests/faults/test_backpressure.py).
            let _ = unsafe {
                self.map
                    .unchecked_advise_range(UncheckedAdvice::DontNeed, at, PIECE.min(len - at))
            };
        }
    }
}

/// Unmaps memory, and drops after that what is to outlive it.
pub(crate) fn unmap<T: Send + 'static>(map: MmapMut, then: T) {
    let bytes = map.len();
    free(Unmapped { map, _then: then }, bytes);
}

/// Unmaps the pages of a segment.
pub(crate) fn unmap_pages(map: MmapMut) {
    unmap(map, ());
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc::{Sender, channel};
    use std::thread::{Thread, current};

    use super::*;

    struct Tells(Sender<Thread>);

    impl Drop for Tells {
        fn drop(&mut self) {
            self.0.send(current()).unwrap();
        }
    }

    #[test]
    fn who_gives_much_back_does_not_wait_for_it() {
        let (send, dropped_by) = channel();
        free(Tells(send.clone()), SLOW_FROM - 1);
        assert_eq!(dropped_by.recv().unwrap().id(), current().id());
        free(Tells(send), SLOW_FROM);
        assert_eq!(dropped_by.recv().unwrap().name(), Some("pydist-free"));
    }

    #[test]
    fn what_outlives_memory_goes_after_it() {
        let (send, dropped_by) = channel();
        unmap(MmapMut::map_anon(PIECE).unwrap(), Tells(send.clone()));
        assert_eq!(dropped_by.recv().unwrap().id(), current().id());
        unmap(MmapMut::map_anon(SLOW_FROM + 1).unwrap(), Tells(send));
        assert_eq!(dropped_by.recv().unwrap().name(), Some("pydist-free"));
    }
}

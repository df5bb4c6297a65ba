//! The calls that have not begun, in bytes: a process of which there are too many is held up.

use pydist_proto::ids::ProcId;
use pydist_proto::machine::Incoming;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// So many bytes of calls of one process wait here before its connection is not read any more, and it is read again once
/// half of them have begun.
pub(super) const WAITING_MAX: usize = 64 << 20;
/// What a call takes besides its body.
const CALL_BYTES: usize = 256;
/// The calls of processes with larger ids are counted together.
const COUNTED_APART: usize = 1 << 16;

/// The calls of each process that have not begun.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    waiting: Vec<Waiting>,
}

/// The calls of one process that have not begun.
#[derive(Clone, Copy, Debug, Default)]
struct Waiting {
    bytes: usize,
    /// They are too many.
    over: bool,
}

fn slot_of(src: ProcId) -> usize {
    (src as usize).min(COUNTED_APART)
}

fn bytes_of(call: &Incoming) -> usize {
    CALL_BYTES + call.body.size()
}

impl Backlog {
    /// A call has come.
    pub(super) fn arrived(&mut self, call: &Incoming, over: &AtomicUsize) {
        let slot = slot_of(call.src);
        if self.waiting.len() <= slot {
            self.waiting.resize(slot + 1, Waiting::default());
        }
        let waiting = &mut self.waiting[slot];
        waiting.bytes += bytes_of(call);
        if waiting.bytes > WAITING_MAX && !waiting.over {
            waiting.over = true;
            over.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// A call has been taken; true where its process has been held up, and need not be any more.
    pub(super) fn begun(&mut self, call: &Incoming, over: &AtomicUsize) -> bool {
        let Some(waiting) = self.waiting.get_mut(slot_of(call.src)) else {
            return false;
        };
        waiting.bytes = waiting.bytes.saturating_sub(bytes_of(call));
        let resumes = waiting.over && waiting.bytes <= WAITING_MAX / 2;
        if resumes {
            waiting.over = false;
            over.fetch_sub(1, Ordering::SeqCst);
        }
        resumes
    }

    /// Whether the calls of a process are too many.
    pub(super) fn is_over(&self, src: ProcId) -> bool {
        self.waiting.get(slot_of(src)).is_some_and(|w| w.over)
    }
}

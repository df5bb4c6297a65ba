//! What a process notes of its calls while a trace is recorded: when each was sent, came, began, ended, was answered.

use std::collections::VecDeque;
use std::sync::PoisonError;
// Not those of the model in the tests of schedules: nothing waits for them.
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use pydist_proto::ids::ProcId;

/// What has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A call of this process is about to be sent to `peer`; `detail` is its mode.
    Sent = 0,
    /// A call of `peer` has come.
    Arrived = 1,
    /// It runs.
    Started = 2,
    /// It has ended, and its value is pickled; `detail` is the status.
    Ended = 3,
    /// The answer of `peer` to a call or request has come; `detail` is the status.
    Replied = 4,
    /// Something is asked of a reference of `peer`; `detail` is the operation.
    Asked = 5,
    /// The process `peer` has left.
    Left = 6,
}

#[derive(Clone, Copy, Debug)]
struct Event {
    kind: Kind,
    detail: u8,
    thread: u16,
    peer: ProcId,
    id: u64,
    /// Nanoseconds of the monotonic clock of the machine.
    at: u64,
}

/// The bytes of an event: kind, detail, thread (2), peer (4), id (8) and time (8), little-endian.
pub const EVENT_BYTES: usize = 24;

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    capacity: usize,
    dropped: u64,
}

/// The latest events of a process, while it is on.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    on: AtomicBool,
    ring: Mutex<Ring>,
}

/// The monotonic clock of the machine, in nanoseconds, which all its processes share.
pub fn clock() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // It counts from the start of the machine, and never is negative.
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// A small number of the calling thread, in this process.
fn thread_number() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(1);
    std::thread_local!(static NUMBER: u16 = NEXT.fetch_add(1, Ordering::Relaxed));
    NUMBER.with(|number| *number)
}

impl Trace {
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Notes that something has happened, if a trace is recorded.
    #[inline]
    pub(crate) fn note(&self, kind: Kind, detail: u8, peer: ProcId, id: u64) {
        if self.is_on() {
            self.keep(kind, detail, peer, id);
        }
    }

    #[cold]
    #[inline(never)]
    fn keep(&self, kind: Kind, detail: u8, peer: ProcId, id: u64) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.events.len() >= ring.capacity {
            ring.events.pop_front();
            ring.dropped += 1;
        }
        if ring.capacity > 0 {
            // Under the lock, so that events are in the order of their times.
            let (thread, at) = (thread_number(), clock());
            ring.events.push_back(Event {
                kind,
                detail,
                thread,
                peer,
                id,
                at,
            });
        }
    }

    /// Starts with nothing noted; of more events than `capacity` the first are dropped.
    pub(crate) fn start(&self, capacity: usize) {
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = Ring {
            capacity,
            ..Ring::default()
        };
        self.on.store(true, Ordering::SeqCst);
    }

    /// Stops, and gives the events, one after the other, and how many were dropped.
    pub(crate) fn stop(&self) -> (Vec<u8>, u64) {
        self.on.store(false, Ordering::SeqCst);
        let ring = std::mem::take(&mut *self.ring.lock().unwrap_or_else(PoisonError::into_inner));
        let mut bytes = Vec::with_capacity(ring.events.len() * EVENT_BYTES);
        for event in &ring.events {
            bytes.extend_from_slice(&[event.kind as u8, event.detail]);
            bytes.extend_from_slice(&event.thread.to_le_bytes());
            bytes.extend_from_slice(&event.peer.to_le_bytes());
            bytes.extend_from_slice(&event.id.to_le_bytes());
            bytes.extend_from_slice(&event.at.to_le_bytes());
        }
        (bytes, ring.dropped)
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_kept_while_it_is_off() {
        let trace = Trace::default();
        trace.note(Kind::Sent, 0, 2, 1);
        assert_eq!(trace.stop(), (vec![], 0));
        trace.start(4);
        trace.note(Kind::Sent, 1, 2, 7);
        let (bytes, dropped) = trace.stop();
        assert_eq!((bytes.len(), dropped), (EVENT_BYTES, 0));
        assert_eq!(bytes[..2], [Kind::Sent as u8, 1]);
        assert_eq!(bytes[4..16], [2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
        trace.note(Kind::Sent, 1, 2, 8);
        assert_eq!(trace.stop(), (vec![], 0));
    }

    #[test]
    fn the_latest_events_are_kept_in_order() {
        let trace = Trace::default();
        trace.start(3);
        for id in 0..10 {
            trace.note(Kind::Arrived, 0, 1, id);
        }
        let (bytes, dropped) = trace.stop();
        let ids: Vec<u8> = bytes.chunks(EVENT_BYTES).map(|event| event[8]).collect();
        assert_eq!((ids, dropped), (vec![7, 8, 9], 7));
        trace.start(0);
        trace.note(Kind::Arrived, 0, 1, 1);
        assert_eq!(trace.stop(), (vec![], 1));
    }
}

//! The schedule of a map, seen from Python. Times are in nanoseconds.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pydist_proto::schedule::{self, Action, Range, Rules};
use pyo3::prelude::*;

/// Which elements of a map run when and where.
#[pyclass(frozen, module = "pydist._core")]
pub(crate) struct Schedule {
    inner: Mutex<schedule::Schedule>,
}

/// (kind, batch, worker, first element, count of elements).
pub(crate) type PyAction = (&'static str, u64, u32, u64, u64);

pub(crate) fn action(action: Action) -> PyAction {
    match action {
        Action::Pull(key, worker, range) => ("pull", key, worker, range.first, range.count),
        Action::Send(key, worker, range) => ("send", key, worker, range.first, range.count),
        Action::Recall(key, worker) => ("recall", key, worker, 0, 0),
        Action::RecallRest(key, worker) => ("recall_rest", key, worker, 0, 0),
    }
}

fn pair(range: Range) -> (u64, u64) {
    (range.first, range.count)
}

impl Schedule {
    pub(crate) fn lock(&self) -> MutexGuard<'_, schedule::Schedule> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Schedule {
    #[new]
    #[pyo3(signature = (*, size, total, bounded, at_once))]
    fn new(size: Option<u64>, total: Option<u64>, bounded: bool, at_once: bool) -> Schedule {
        let rules = Rules {
            size,
            total,
            bounded,
            at_once,
        };
        Schedule {
            inner: Mutex::new(schedule::Schedule::new(rules)),
        }
    }

    /// Takes up a worker.
    fn join(&self, worker: u32, queues: bool) {
        self.lock().join(worker, queues);
    }

    /// A worker is gone: gives (batch, first, count) of what may have begun there.
    fn leave(&self, worker: u32) -> Vec<(u64, u64, u64)> {
        let begun = self.lock().leave(worker);
        begun
            .into_iter()
            .map(|(key, range)| (key, range.first, range.count))
            .collect()
    }

    /// Whether every element has been dealt with.
    fn is_done(&self) -> bool {
        self.lock().is_done()
    }

    /// Whether elements are left and no worker.
    fn needs_workers(&self) -> bool {
        self.lock().needs_workers()
    }

    /// The next thing to be done now: "pull", "send", "recall" or "recall_rest".
    fn poll(&self, now: u64) -> Option<PyAction> {
        self.lock().poll(now).map(action)
    }

    /// When to poll again though nothing has happened.
    fn next_time(&self, now: u64) -> Option<u64> {
        self.lock().next_time(now)
    }

    /// So many fresh elements were there for a batch.
    fn filled(&self, key: u64, count: u64, exhausted: bool) {
        self.lock().filled(key, count, exhausted);
    }

    /// So many bytes were sent, or have come, for so many elements.
    fn note_bytes(&self, elements: u64, bytes: u64) {
        self.lock().note_bytes(elements, bytes);
    }

    /// A batch has ended: gives its first element, and (first, count) of those that run again.
    fn finished(&self, key: u64, done: u64, took: u64, now: u64) -> Option<(u64, u64, u64)> {
        let (first, rest) = self.lock().finished(key, done, took, now)?;
        Some((first, rest.first, rest.count))
    }

    /// A batch was cancelled before it began: gives its elements, which wait again.
    fn cancelled(&self, key: u64, now: u64) -> Option<(u64, u64)> {
        self.lock().cancelled(key, now).map(pair)
    }

    /// A batch could not begin: gives its elements, which run singly.
    fn split(&self, key: u64, now: u64) -> Option<(u64, u64)> {
        self.lock().split(key, now).map(pair)
    }

    /// Elements run again, each in a batch of its own.
    fn run_singly(&self, first: u64, count: u64) {
        self.lock().run_singly(Range { first, count });
    }

    /// A worker gives a batch back but for its first `kept` elements: gives those, which wait again.
    fn given_back(&self, key: u64, kept: Option<u64>, now: u64) -> Option<(u64, u64)> {
        self.lock().given_back(key, kept, now).map(pair)
    }

    /// No fresh element is taken any more.
    fn exhaust(&self) {
        self.lock().exhaust();
    }

    /// Whether workers run what they are sent from now on at once.
    fn run_at_once(&self, at_once: bool) {
        self.lock().run_at_once(at_once);
    }

    /// An element runs again at some time, on another worker first.
    fn retry(&self, element: u64, at: u64, avoid: u32) {
        self.lock().retry(element, at, avoid);
    }

    /// So many results have been consumed.
    fn consumed(&self, count: u64) {
        self.lock().consumed(count);
    }
}

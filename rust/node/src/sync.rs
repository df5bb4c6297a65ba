//! Locks, atomics, the futex and the clock that the rest of the crate uses.
//!
//! With the feature `shuttle` they are those of a model, in which the tests of `schedules` choose which
//! thread goes on at each step (docs/adr/0004-schedules.md).

#[cfg(feature = "shuttle")]
mod model;

#[cfg(feature = "shuttle")]
pub(crate) use model::{Condvar, Futex, Mutex, MutexGuard, RwLock, atomic, is_over, now, thread_local};
#[cfg(not(feature = "shuttle"))]
pub(crate) use system::{Condvar, Futex, Mutex, MutexGuard, RwLock, atomic, now, thread_local};

/// How a wait on a futex ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// By another thread, for no reason, or since the word was another one already.
    Perhaps,
    TimedOut,
    /// A signal arrived.
    Interrupted,
}

#[cfg(not(feature = "shuttle"))]
mod system {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread_local;
    use std::time::{Duration, Instant};

    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
    use rustix::io::Errno;
    use rustix::thread::futex;

    use super::Woken;
    use atomic::{AtomicU32, Ordering};

    pub(crate) fn now() -> Instant {
        Instant::now()
    }

    /// A word on which threads sleep until another one changes it.
    #[derive(Debug, Default)]
    pub(crate) struct Futex(AtomicU32);

    impl Futex {
        pub(crate) fn new(word: u32) -> Futex {
            Futex(AtomicU32::new(word))
        }

        pub(crate) fn load(&self, order: Ordering) -> u32 {
            self.0.load(order)
        }

        pub(crate) fn swap(&self, word: u32) -> u32 {
            self.0.swap(word, Ordering::SeqCst)
        }

        pub(crate) fn add(&self, n: u32) -> u32 {
            self.0.fetch_add(n, Ordering::SeqCst)
        }

        /// Changes the word from `from` to `to`; false where it is another one.
        pub(crate) fn exchange(&self, from: u32, to: u32) -> bool {
            let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
            self.0.compare_exchange(from, to, success, failure).is_ok()
        }

        /// Sleeps while the word is `word`.
        pub(crate) fn wait(&self, word: u32, timeout: Option<Duration>) -> Woken {
            let timeout = timeout.map(crate::poll::timespec);
            match futex::wait(&self.0, futex::Flags::PRIVATE, word, timeout.as_ref()) {
                Err(Errno::INTR) => Woken::Interrupted,
                Err(Errno::TIMEDOUT) => Woken::TimedOut,
                _ => Woken::Perhaps,
            }
        }

        /// Wakes one thread that sleeps on the word.
        pub(crate) fn wake(&self) {
            let _ = futex::wake(&self.0, futex::Flags::PRIVATE, 1);
        }
    }
}

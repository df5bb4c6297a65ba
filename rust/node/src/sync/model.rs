//! The model of [`super`] for the feature `shuttle`: the same interface, where shuttle chooses who goes on.
//!
//! Time stands still, and a wait with a timeout may end at any step: by time, by a signal, or with what it waits for.

use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use shuttle::rand::Rng;
pub(crate) use shuttle::sync::atomic;
use shuttle::sync::{self, PoisonError, TryLockError};
pub(crate) use shuttle::thread_local;

use super::Woken;
use atomic::{AtomicU32, Ordering};

pub(crate) fn now() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}

/// Whether a timeout is over at this step. Lets the others go on first.
pub(crate) fn is_over() -> bool {
    shuttle::thread::yield_now();
    shuttle::rand::thread_rng().gen_range(0..4) == 0
}

#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(sync::Mutex<T>);

/// Empty only while its thread waits on a [`Condvar`].
pub(crate) struct MutexGuard<'a, T> {
    of: &'a Mutex<T>,
    guard: Option<sync::MutexGuard<'a, T>>,
}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex(sync::Mutex::new(value))
    }

    fn guarded<'a>(&'a self, guard: sync::MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        let guard = Some(guard);
        MutexGuard { of: self, guard }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.guarded(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(self.guarded(guard)),
            Err(TryLockError::Poisoned(poisoned)) => Some(self.guarded(poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn try_lock_for(&self, _timeout: Duration) -> Option<MutexGuard<'_, T>> {
        loop {
            let locked = self.try_lock();
            if locked.is_some() || is_over() {
                return locked;
            }
        }
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    #[allow(clippy::expect_used)]
    fn deref(&self) -> &T {
        self.guard.as_ref().expect("no wait is under way")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    #[allow(clippy::expect_used)]
    fn deref_mut(&mut self) -> &mut T {
        self.guard.as_mut().expect("no wait is under way")
    }
}

/// A condition variable all of whose waits have a timeout, so that each may end at any step.
#[derive(Debug, Default)]
pub(crate) struct Condvar;

pub(crate) struct WaitResult(bool);

impl WaitResult {
    pub(crate) fn timed_out(&self) -> bool {
        self.0
    }
}

impl Condvar {
    pub(crate) fn new() -> Condvar {
        Condvar
    }

    pub(crate) fn notify_all(&self) {
        shuttle::thread::yield_now();
    }

    pub(crate) fn wait_for<T>(&self, guard: &mut MutexGuard<'_, T>, _timeout: Duration) -> WaitResult {
        guard.guard = None;
        let timed_out = is_over();
        guard.guard = guard.of.lock().guard;
        WaitResult(timed_out)
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _until: Instant) -> WaitResult {
        self.wait_for(guard, Duration::ZERO)
    }
}

#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(sync::RwLock<T>);

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> RwLock<T> {
        RwLock(sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> sync::RwLockReadGuard<'_, T> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn try_read(&self) -> Option<sync::RwLockReadGuard<'_, T>> {
        self.0.try_read().ok()
    }

    pub(crate) fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A word on which threads sleep until another one changes it; without a timeout, only a wake ends that.
#[derive(Debug, Default)]
pub(crate) struct Futex {
    word: AtomicU32,
    sleepers: sync::Mutex<()>,
    woken: sync::Condvar,
}

impl Futex {
    pub(crate) fn new(word: u32) -> Futex {
        Futex {
            word: AtomicU32::new(word),
            ..Futex::default()
        }
    }

    pub(crate) fn load(&self, order: Ordering) -> u32 {
        self.word.load(order)
    }

    pub(crate) fn swap(&self, word: u32) -> u32 {
        self.word.swap(word, Ordering::SeqCst)
    }

    pub(crate) fn add(&self, n: u32) -> u32 {
        self.word.fetch_add(n, Ordering::SeqCst)
    }

    pub(crate) fn exchange(&self, from: u32, to: u32) -> bool {
        let (success, failure) = (Ordering::SeqCst, Ordering::SeqCst);
        self.word.compare_exchange(from, to, success, failure).is_ok()
    }

    pub(crate) fn wait(&self, word: u32, timeout: Option<Duration>) -> Woken {
        if timeout.is_some() {
            while self.word.load(Ordering::SeqCst) == word {
                if is_over() {
                    let signal = shuttle::rand::thread_rng().gen_range(0..4) == 0;
                    return if signal {
                        Woken::Interrupted
                    } else {
                        Woken::TimedOut
                    };
                }
            }
            return Woken::Perhaps;
        }
        let guard = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        if self.word.load(Ordering::SeqCst) == word {
            drop(self.woken.wait(guard));
        }
        Woken::Perhaps
    }

    pub(crate) fn wake(&self) {
        let _sleepers = self.sleepers.lock();
        self.woken.notify_one();
    }
}

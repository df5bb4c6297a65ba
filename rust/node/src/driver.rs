//! Who reads the sockets: a thread that waits for an answer does so itself, otherwise the reactor thread.
//!
//! All threads share one edge-triggered epoll instance. A waiting thread may become the leader: it sits in
//! `epoll_wait` on its own behalf, so that an answer wakes just the thread that needs it. The kernel wakes the
//! thread that came last, so the reactor, which entered before, stays asleep meanwhile. When the leader
//! leaves, nobody is told: the reactor stands by with a short timeout, and sleeps for long only while one leader stays.
//!
//! A thread that makes many calls reads in passing now and then. The reactor stands by then too, so that it does not
//! take a core, and the locks, from that thread for each answer.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::poll::{Event, Poll};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Futex, Mutex, now};

const STANDBY_FIRST: Duration = Duration::from_millis(1);
const STANDBY_LAST: Duration = Duration::from_secs(5);
/// Twice this is the longest time until the reactor looks, after a thread has read in passing for the last time.
const STANDBY_PASSING: Duration = Duration::from_micros(500);

crate::sync::thread_local! {
    static LEADING: Cell<bool> = const { Cell::new(false) };
}

/// The shared [`Poll`], and who waits in it.
pub(crate) struct Driver {
    poll: Arc<Poll>,
    leading: AtomicBool,
    /// Counts the leaders so far: tells the reactor whether one stayed.
    terms: AtomicU64,
    standby: Futex,
    deep: AtomicBool,
    /// A thread has read in passing since the reactor looked.
    passed: AtomicBool,
    armed: Mutex<Option<Instant>>,
}

impl Driver {
    pub(crate) fn new() -> std::io::Result<Driver> {
        Ok(Driver {
            poll: Arc::new(Poll::new()?),
            leading: AtomicBool::new(false),
            terms: AtomicU64::new(0),
            standby: Futex::new(0),
            deep: AtomicBool::new(false),
            passed: AtomicBool::new(false),
            armed: Mutex::new(None),
        })
    }

    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        self.poll.watch(fd, token)
    }

    pub(crate) fn watch_listener(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        self.poll.watch_listener(fd, token)
    }

    pub(crate) fn poll(&self) -> &Arc<Poll> {
        &self.poll
    }

    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        self.poll.unwatch(fd);
    }

    pub(crate) fn wait(&self, timeout: Option<Duration>, out: &mut Vec<Event>) -> std::io::Result<()> {
        self.poll.wait(timeout, out)
    }

    /// Wakes whoever sits in `wait`.
    pub(crate) fn kick(&self) {
        self.poll.kick();
    }

    pub(crate) fn drain_waker(&self) {
        self.poll.drain_waker();
    }

    /// Has the timer fire at `at` or before.
    pub(crate) fn arm(&self, at: Instant) {
        let mut armed = self.armed.lock();
        if armed.is_none_or(|earlier| at < earlier) {
            *armed = Some(at);
            let delay = at.saturating_duration_since(now());
            self.poll.set_timer(delay.max(Duration::from_micros(1)));
        }
    }

    /// The timer has fired: it is unarmed until the next `arm`.
    pub(crate) fn disarm(&self) {
        self.poll.drain_timer();
        *self.armed.lock() = None;
    }

    pub(crate) fn try_lead(&self) -> bool {
        let won = self
            .leading
            .compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok();
        if won {
            self.terms.fetch_add(1, Ordering::Relaxed);
            LEADING.with(|leading| leading.set(true));
        }
        won
    }

    pub(crate) fn resign(&self) {
        LEADING.with(|leading| leading.set(false));
        self.leading.store(false, Ordering::SeqCst);
        if self.deep.load(Ordering::SeqCst) {
            self.wake_standby();
        }
    }

    pub(crate) fn has_leader(&self) -> bool {
        self.leading.load(Ordering::SeqCst)
    }

    /// Whether the calling thread is the leader.
    pub(crate) fn is_leader() -> bool {
        LEADING.with(Cell::get)
    }

    /// Ends the reactor's stand-by.
    pub(crate) fn wake_standby(&self) {
        self.standby.add(1);
        self.standby.wake();
    }

    /// The calling thread, which is no leader, is about to read, and the reactor need not for a moment.
    pub(crate) fn pass(&self) {
        self.passed.store(true, Ordering::SeqCst);
    }

    /// The reactor waits while a leader reads, or threads do in passing: briefly at first, for long while the same leader
    /// stays.
    pub(crate) fn stand_by(&self) {
        let mut timeout = STANDBY_FIRST;
        let mut term = self.terms.load(Ordering::Relaxed);
        loop {
            if !self.has_leader() {
                if !self.passed.swap(false, Ordering::SeqCst) {
                    break;
                }
                let seen = self.standby.load(Ordering::SeqCst);
                self.deep.store(false, Ordering::SeqCst);
                self.standby.wait(seen, Some(STANDBY_PASSING));
                timeout = STANDBY_FIRST;
                continue;
            }
            let seen = self.standby.load(Ordering::SeqCst);
            let deep = timeout > STANDBY_FIRST;
            self.deep.store(deep, Ordering::SeqCst);
            if deep && !self.has_leader() {
                break;
            }
            self.standby.wait(seen, Some(timeout));
            let latest = self.terms.load(Ordering::Relaxed);
            timeout = if latest == term {
                (timeout * 8).min(STANDBY_LAST)
            } else {
                STANDBY_FIRST
            };
            term = latest;
        }
        self.deep.store(false, Ordering::SeqCst);
    }

    /// The descriptors that a forked child has to close.
    pub(crate) fn descriptors(&self) -> impl IntoIterator<Item = BorrowedFd<'_>> {
        self.poll.descriptors()
    }
}

//! Who reads the sockets: a thread that waits for an answer does so itself, otherwise the reactor thread.
//!
//! All threads share one edge-triggered epoll instance. A waiting thread may become the leader: it sits in
//! `epoll_wait` on its own behalf, so that an answer wakes just the thread that needs it. The kernel wakes the
//! thread that came last, so the reactor, which entered before, stays asleep meanwhile. When the leader
//! leaves, nobody is told: the reactor stands by with a short timeout, and sleeps for long only while one leader stays.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

/// The token of the eventfd that wakes whoever sits in `epoll_wait`.
pub(crate) const WAKER: u64 = u64::MAX;
/// The token of the timer.
pub(crate) const TIMER: u64 = u64::MAX - 1;

const STANDBY_FIRST: Duration = Duration::from_millis(1);
const STANDBY_LAST: Duration = Duration::from_secs(5);
const EVENTS: usize = 32;

thread_local! {
    static LEADING: Cell<bool> = const { Cell::new(false) };
}

/// The shared epoll instance with its waker and timer.
pub(crate) struct Driver {
    epoll: OwnedFd,
    waker: OwnedFd,
    timer: OwnedFd,
    leading: AtomicBool,
    /// Counts the leaders so far: tells the reactor whether one stayed.
    terms: AtomicU64,
    standby: AtomicU32,
    deep: AtomicBool,
    armed: Mutex<Option<Instant>>,
}

/// One event of `epoll_wait`: the token of a connection and whether it has hung up.
pub(crate) struct Event {
    pub(crate) token: u64,
    pub(crate) hung_up: bool,
}

impl Driver {
    pub(crate) fn new() -> std::io::Result<Driver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), flags)?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), flags)?;
        Ok(Driver {
            epoll,
            waker,
            timer,
            leading: AtomicBool::new(false),
            terms: AtomicU64::new(0),
            standby: AtomicU32::new(0),
            deep: AtomicBool::new(false),
            armed: Mutex::new(None),
        })
    }

    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            Driver::interest(),
        )?;
        Ok(())
    }

    /// Watches a listener, whose connections only one thread is to be woken for, level-triggered.
    pub(crate) fn watch_listener(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
        epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN,
        )?;
        Ok(())
    }

    /// Has a connection reported again if it is readable or writable now.
    pub(crate) fn rearm(&self, fd: BorrowedFd<'_>, token: u64) {
        let _ = epoll::modify(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            Driver::interest(),
        );
    }

    pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
        let _ = epoll::delete(&self.epoll, fd);
    }

    fn interest() -> epoll::EventFlags {
        epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET
    }

    /// Waits for events; an interrupted wait is an error of kind `Interrupted`.
    pub(crate) fn wait(&self, timeout: Option<Duration>, out: &mut Vec<Event>) -> std::io::Result<()> {
        let mut buffer: [std::mem::MaybeUninit<epoll::Event>; EVENTS] =
            [const { std::mem::MaybeUninit::uninit() }; EVENTS];
        let timeout = timeout.map(timespec);
        let (events, _) = epoll::wait(&self.epoll, &mut buffer[..], timeout.as_ref())?;
        let gone = epoll::EventFlags::RDHUP | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        out.extend(events.iter().map(|e| {
            let flags = e.flags;
            Event {
                token: e.data.u64(),
                hung_up: flags.intersects(gone),
            }
        }));
        Ok(())
    }

    /// Wakes whoever sits in `epoll_wait`.
    pub(crate) fn kick(&self) {
        let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
    }

    pub(crate) fn drain_waker(&self) {
        let _ = rustix::io::read(&self.waker, &mut [0u8; 8]);
    }

    /// Has the timer fire at `at` or before.
    pub(crate) fn arm(&self, at: Instant) {
        let mut armed = self.armed.lock();
        if armed.is_none_or(|earlier| at < earlier) {
            *armed = Some(at);
            let delay = at
                .saturating_duration_since(Instant::now())
                .max(Duration::from_micros(1));
            let spec = Itimerspec {
                it_interval: timespec(Duration::ZERO),
                it_value: timespec(delay),
            };
            let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
        }
    }

    /// The timer has fired: it is unarmed until the next `arm`.
    pub(crate) fn disarm(&self) {
        let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        *self.armed.lock() = None;
    }

    pub(crate) fn try_lead(&self) -> bool {
        let won = self
            .leading
            .compare_exchange(false, true, Ordering::SeqCst, Ordering::Relaxed)
            .is_ok();
        if won {
            self.terms.fetch_add(1, Ordering::Relaxed);
            LEADING.set(true);
        }
        won
    }

    pub(crate) fn resign(&self) {
        LEADING.set(false);
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
        LEADING.get()
    }

    /// Ends the reactor's stand-by.
    pub(crate) fn wake_standby(&self) {
        self.standby.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(&self.standby, futex::Flags::PRIVATE, 1);
    }

    /// The reactor waits while a leader reads: briefly at first, for long while the same one stays.
    pub(crate) fn stand_by(&self) {
        let mut timeout = STANDBY_FIRST;
        let mut term = self.terms.load(Ordering::Relaxed);
        while self.has_leader() {
            let seen = self.standby.load(Ordering::SeqCst);
            let deep = timeout > STANDBY_FIRST;
            self.deep.store(deep, Ordering::SeqCst);
            if deep && !self.has_leader() {
                break;
            }
            let spec = timespec(timeout);
            let _ = futex::wait(&self.standby, futex::Flags::PRIVATE, seen, Some(&spec));
            let now = self.terms.load(Ordering::Relaxed);
            timeout = if now == term {
                (timeout * 8).min(STANDBY_LAST)
            } else {
                STANDBY_FIRST
            };
            term = now;
        }
        self.deep.store(false, Ordering::SeqCst);
    }

    /// The descriptors that a forked child has to close.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.epoll.as_fd(), self.waker.as_fd(), self.timer.as_fd()]
    }
}

pub(crate) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs().min(i64::MAX as u64 / 4) as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// Whether a system call was interrupted by a signal.
pub(crate) fn interrupted(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(Errno::INTR.raw_os_error())
}

//! The epoll instance that all threads of a process share, with the eventfd and the timer that wake it.

use std::time::Duration;

use rustix::event::Timespec;
use rustix::io::Errno;

#[cfg(feature = "shuttle")]
mod model;

#[cfg(feature = "shuttle")]
pub(crate) use model::Poll;
#[cfg(not(feature = "shuttle"))]
pub(crate) use system::Poll;

/// The token of the eventfd that wakes whoever waits.
pub(crate) const WAKER: u64 = u64::MAX;
/// The token of the timer.
pub(crate) const TIMER: u64 = u64::MAX - 1;

/// One event: the token of a connection and whether it has hung up.
pub(crate) struct Event {
    pub(crate) token: u64,
    pub(crate) hung_up: bool,
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

#[cfg(not(feature = "shuttle"))]
mod system {
    use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
    use std::time::Duration;

    use rustix::event::{EventfdFlags, epoll, eventfd};
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
    };

    use super::{Event, TIMER, WAKER, timespec};

    const EVENTS: usize = 32;

    pub(crate) struct Poll {
        epoll: OwnedFd,
        waker: OwnedFd,
        timer: OwnedFd,
    }

    impl Poll {
        pub(crate) fn new() -> std::io::Result<Poll> {
            let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
            let waker = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let timer = timerfd_create(
                TimerfdClockId::Monotonic,
                TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
            )?;
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            epoll::add(&epoll, &waker, epoll::EventData::new_u64(WAKER), flags)?;
            epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), flags)?;
            Ok(Poll { epoll, waker, timer })
        }

        /// Watches a connection, edge-triggered, also for room to write.
        pub(crate) fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
            let data = epoll::EventData::new_u64(token);
            epoll::add(&self.epoll, fd, data, Poll::interest(true))?;
            Ok(())
        }

        /// Watches a listener, whose connections only one thread is to be woken for, level-triggered.
        pub(crate) fn watch_listener(&self, fd: BorrowedFd<'_>, token: u64) -> std::io::Result<()> {
            let data = epoll::EventData::new_u64(token);
            epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
            Ok(())
        }

        /// Has a connection reported again if it is readable now, or, with `room`, writable.
        pub(crate) fn rearm(&self, fd: BorrowedFd<'_>, token: u64, room: bool) {
            let data = epoll::EventData::new_u64(token);
            let _ = epoll::modify(&self.epoll, fd, data, Poll::interest(room));
        }

        pub(crate) fn unwatch(&self, fd: BorrowedFd<'_>) {
            let _ = epoll::delete(&self.epoll, fd);
        }

        fn interest(room: bool) -> epoll::EventFlags {
            let reading = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
            if room {
                reading | epoll::EventFlags::OUT
            } else {
                reading
            }
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

        /// Wakes one of those who wait.
        pub(crate) fn kick(&self) {
            let _ = rustix::io::write(&self.waker, &1u64.to_ne_bytes());
        }

        pub(crate) fn drain_waker(&self) {
            let _ = rustix::io::read(&self.waker, &mut [0u8; 8]);
        }

        pub(crate) fn set_timer(&self, delay: Duration) {
            let spec = Itimerspec {
                it_interval: timespec(Duration::ZERO),
                it_value: timespec(delay),
            };
            let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec);
        }

        pub(crate) fn drain_timer(&self) {
            let _ = rustix::io::read(&self.timer, &mut [0u8; 8]);
        }

        /// The descriptors that a forked child has to close.
        pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
            [self.epoll.as_fd(), self.waker.as_fd(), self.timer.as_fd()]
        }
    }
}

//! The model of [`super`] for the feature `shuttle`: no connections, a waker, and a timer that fires at some step.

use std::os::fd::BorrowedFd;
use std::sync::PoisonError;
use std::time::Duration;

use shuttle::sync::{Condvar, Mutex, MutexGuard};

use super::{Event, TIMER, WAKER};
use crate::sync::is_over;

#[derive(Clone, Copy, Default)]
struct State {
    /// An edge of the waker that nobody has seen.
    kicked: bool,
    armed: bool,
}

#[derive(Default)]
pub(crate) struct Poll {
    state: Mutex<State>,
    changed: Condvar,
}

impl Poll {
    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn new() -> std::io::Result<Poll> {
        Ok(Poll::default())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn watch(&self, _fd: BorrowedFd<'_>, _token: u64) -> std::io::Result<()> {
        Ok(())
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn watch_listener(&self, _fd: BorrowedFd<'_>, _token: u64) -> std::io::Result<()> {
        Ok(())
    }

    pub(crate) fn rearm(&self, _fd: BorrowedFd<'_>, _token: u64, _room: bool) {}

    pub(crate) fn unwatch(&self, _fd: BorrowedFd<'_>) {}

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn wait(&self, timeout: Option<Duration>, out: &mut Vec<Event>) -> std::io::Result<()> {
        let event = |token| Event {
            token,
            hung_up: false,
        };
        loop {
            let mut state = self.state();
            if std::mem::take(&mut state.kicked) {
                out.push(event(WAKER));
                return Ok(());
            }
            if !state.armed && timeout.is_none() {
                drop(self.changed.wait(state));
                continue;
            }
            drop(state);
            if is_over() {
                if std::mem::take(&mut self.state().armed) {
                    out.push(event(TIMER));
                    return Ok(());
                }
                if timeout.is_some() {
                    return Ok(());
                }
            }
        }
    }

    pub(crate) fn kick(&self) {
        self.state().kicked = true;
        self.changed.notify_one();
    }

    pub(crate) fn drain_waker(&self) {}

    pub(crate) fn set_timer(&self, _delay: Duration) {
        self.state().armed = true;
        self.changed.notify_one();
    }

    pub(crate) fn drain_timer(&self) {}

    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 0] {
        []
    }
}

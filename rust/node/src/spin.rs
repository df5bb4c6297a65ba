//! Brief spinning before a thread sleeps: where an answer is about to come, waking an idle core takes longer than that.
//!
//! A thread that reads the sockets waits anew after each time that something has come, be it for itself or not.
//! It spins only once its last waits have been short, for [`BOUND`] at most, and not where it could run on one
//! core alone. While it spins it offers the core to others; where one takes it, the machine is busy, and nobody here
//! spins for a while. So an idle process spends no time, and a busy machine loses none.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// For how long a thread spins at most.
const BOUND: Duration = Duration::from_micros(50);
/// A wait that ends within this time, the waking of a thread included, is short.
const SHORT: Duration = Duration::from_micros(80);
/// So many short waits in a row make a thread spin.
const SHORT_WAITS: u32 = 4;
/// A core that was offered and has not come back for this long was wanted by others.
const TAKEN: Duration = Duration::from_micros(30);
/// For how long nobody spins after that, at first and at most.
const REST_FIRST: Duration = Duration::from_millis(5);
const REST_LAST: Duration = Duration::from_secs(1);
/// A machine that was not busy for so long after a rest is as good as new.
const FORGIVEN: Duration = Duration::from_secs(2);

/// When threads of this process may spin.
#[derive(Clone, Copy, Debug)]
struct Rest {
    length: Duration,
    until: Option<Instant>,
}

impl Rest {
    const NONE: Rest = Rest {
        length: Duration::ZERO,
        until: None,
    };

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// The machine is busy.
    fn begin(&mut self, now: Instant) {
        let forgiven = self.until.is_none_or(|until| now > until + FORGIVEN);
        let length = if forgiven {
            REST_FIRST
        } else {
            (self.length * 2).clamp(REST_FIRST, REST_LAST)
        };
        *self = Rest {
            length,
            until: Some(now + length),
        };
    }
}

static REST: Mutex<Rest> = Mutex::new(Rest::NONE);

fn has_cores() -> bool {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from)) > 1
}

std::thread_local! {
    /// How many waits of this thread have been short in a row.
    static SHORT_SO_FAR: Cell<u32> = const { Cell::new(0) };
}

/// What is to be done while a thread waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Look again at once, after the core was offered to others.
    Look,
    Sleep,
}

/// One wait of a thread.
#[derive(Debug)]
pub(crate) struct Wait {
    begun: Instant,
    /// When it looked last, while it spins.
    looked: Option<Instant>,
}

impl Wait {
    /// A wait of this thread begins.
    pub(crate) fn begin() -> Wait {
        let now = Instant::now();
        let spins = cfg!(not(feature = "shuttle"))
            && SHORT_SO_FAR.get() >= SHORT_WAITS
            && has_cores()
            && REST.lock().is_over(now);
        Wait {
            begun: now,
            looked: spins.then_some(now),
        }
    }

    /// Whether the thread is to look again and again.
    pub(crate) fn spins(&self) -> bool {
        self.looked.is_some()
    }

    /// Nothing has come so far.
    pub(crate) fn next(&mut self) -> Step {
        if self.looked.is_none() {
            return Step::Sleep;
        }
        let step = self.next_at(Instant::now(), &mut REST.lock());
        if step == Step::Look {
            rustix::thread::sched_yield();
        }
        step
    }

    fn next_at(&mut self, now: Instant, rest: &mut Rest) -> Step {
        let Some(looked) = self.looked.replace(now) else {
            self.looked = None;
            return Step::Sleep;
        };
        if now - looked > TAKEN {
            rest.begin(now);
            self.looked = None;
        } else if now - self.begun > BOUND {
            self.looked = None;
        }
        match self.looked {
            Some(_) => Step::Look,
            None => Step::Sleep,
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let short = self.begun.elapsed() < SHORT;
        SHORT_SO_FAR.set(if short {
            SHORT_SO_FAR.get().saturating_add(1)
        } else {
            0
        });
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    use super::*;

    fn wait(begun: Instant) -> Wait {
        Wait {
            begun,
            looked: Some(begun),
        }
    }

    #[test]
    fn it_is_bounded() {
        let (begun, mut rest) = (Instant::now(), Rest::NONE);
        let mut wait = wait(begun);
        let looks = (1..1000)
            .take_while(|i| wait.next_at(begun + Duration::from_micros(10) * *i, &mut rest) == Step::Look)
            .count();
        assert_eq!(looks, 5);
        assert!(rest.is_over(begun));
        assert_eq!(wait.next_at(begun, &mut rest), Step::Sleep);
    }

    #[test]
    fn it_stops_where_others_want_the_core_and_rests_longer_each_time() {
        let (mut now, mut rest) = (Instant::now(), Rest::NONE);
        let mut lengths = Vec::new();
        for _ in 0..12 {
            let mut wait = wait(now);
            assert_eq!(
                wait.next_at(now + Duration::from_micros(1), &mut rest),
                Step::Look
            );
            now += Duration::from_micros(45);
            assert_eq!(wait.next_at(now, &mut rest), Step::Sleep);
            assert!(!rest.is_over(now));
            lengths.push(rest.length);
            now += rest.length;
            assert!(rest.is_over(now));
        }
        assert_eq!(lengths[0], REST_FIRST);
        assert!(lengths.is_sorted());
        assert_eq!(lengths[11], REST_LAST);
        rest.begin(now + FORGIVEN + Duration::from_micros(1));
        assert_eq!(rest.length, REST_FIRST);
    }
}

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
/// Nobody spins for so many times as long after that: the time that spinning loses is a fiftieth at most.
const REST_TIMES: u32 = 50;
/// But for so long at most: a core that was taken once for very long tells nothing about what comes.
const REST_MAX: Duration = Duration::from_millis(250);

/// When threads of this process may spin.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Option<Instant>,
}

impl Rest {
    const NONE: Rest = Rest { until: None };

    fn is_over(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now >= until)
    }

    /// Others have just had the core for so long.
    fn begin(&mut self, now: Instant, taken: Duration) {
        let until = now + (taken * REST_TIMES).min(REST_MAX);
        self.until = self.until.max(Some(until));
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
    /// It has looked once, before the core is offered.
    has_looked: bool,
    /// It has spun to the end.
    in_vain: bool,
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
            has_looked: false,
            in_vain: false,
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
        if !std::mem::replace(&mut self.has_looked, true) {
            return Step::Look;
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
        let taken = now - looked;
        if taken > TAKEN {
            rest.begin(now, taken);
            self.looked = None;
        } else if now - self.begun > BOUND {
            self.looked = None;
            self.in_vain = true;
        }
        match self.looked {
            Some(_) => Step::Look,
            None => Step::Sleep,
        }
    }

    /// Whether it was short. What comes only once the thread sleeps has waited for its core.
    fn end_at(&self, now: Instant, rest: &mut Rest) -> bool {
        let short = now - self.begun < SHORT;
        if short && self.in_vain {
            rest.begin(now, BOUND);
        }
        short
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let short = self.end_at(Instant::now(), &mut REST.lock());
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
            has_looked: false,
            in_vain: false,
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
    fn it_rests_where_sleeping_brings_what_spinning_did_not() {
        let (begun, mut rest) = (Instant::now(), Rest::NONE);
        let at = |micros| begun + Duration::from_micros(micros);
        let spun = |rest: &mut Rest| {
            let mut wait = wait(begun);
            let ends = (1..=6).map(|i| wait.next_at(at(10 * i), rest)).last();
            assert_eq!(ends, Some(Step::Sleep));
            wait
        };
        assert!(!spun(&mut rest).end_at(at(500), &mut rest));
        assert!(rest.is_over(at(500)));
        assert!(spun(&mut rest).end_at(at(70), &mut rest));
        assert_eq!(rest.until, Some(at(70) + BOUND * REST_TIMES));
        let mut rest = Rest::NONE;
        assert!(wait(begun).end_at(at(5), &mut rest));
        assert!(rest.is_over(at(5)));
    }

    /// What is left of a rest at `now` after a wait whose second look came so late.
    fn rest_after(taken: Duration, begun: Instant, rest: &mut Rest) -> Duration {
        let mut wait = wait(begun);
        let first = begun + Duration::from_micros(1);
        assert_eq!(wait.next_at(first, rest), Step::Look);
        assert_eq!(wait.next_at(first + taken, rest), Step::Sleep);
        rest.until.map_or(Duration::ZERO, |until| until - (first + taken))
    }

    #[test]
    fn it_rests_in_proportion_to_what_others_took() {
        let begun = Instant::now();
        for taken in [TAKEN + Duration::from_micros(1), Duration::from_millis(3)] {
            let mut rest = Rest::NONE;
            assert_eq!(rest_after(taken, begun, &mut rest), taken * REST_TIMES);
        }
        let mut rest = Rest::NONE;
        assert_eq!(rest_after(Duration::from_secs(1), begun, &mut rest), REST_MAX);
    }

    /// However long others had kept the machine busy, what comes after is not held against it.
    #[test]
    fn a_rest_does_not_depend_on_those_before() {
        let (mut now, mut rest) = (Instant::now(), Rest::NONE);
        let taken = Duration::from_micros(40);
        for _ in 0..100 {
            let length = rest_after(taken, now, &mut rest);
            assert_eq!(length, taken * REST_TIMES);
            now += Duration::from_micros(1) + taken + length;
            assert!(rest.is_over(now));
        }
    }

    #[test]
    fn a_short_rest_does_not_end_a_longer_one() {
        let (begun, mut rest) = (Instant::now(), Rest::NONE);
        let long = begun + rest_after(Duration::from_secs(1), begun, &mut rest);
        rest_after(TAKEN * 2, begun, &mut rest);
        assert!(!rest.is_over(long));
    }
}

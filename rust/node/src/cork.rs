//! Answers that wait for those behind them, so that many short calls are answered in one write.
//!
//! An executor that has more calls before it holds an answer back; it goes out with the ones after it once the
//! executor has nothing more to do, blocks, or has held answers back for [`HOLD`]. A call that takes long in between
//! cannot keep them: the timer that looks for stalled calls sends them off.
//!
//! Calls of a thread that makes many of them without waiting are held back alike, but not the first ones: they go out
//! together once there are enough, the thread waits for something, any message comes, or the timer fires.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::link::Link;
use crate::node::Node;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};

/// For how long one executor holds answers back before it writes one at once.
const HOLD: Duration = Duration::from_micros(100);
/// So many bytes are worth a write.
const BYTES: usize = 32 << 10;

/// Calls that follow each other within this time are a burst.
const BURST_GAP: Duration = Duration::from_micros(40);
/// So many calls of a burst are sent at once.
const BURST_HEAD: u32 = 8;
/// For how long the calls of a burst are held back at most while the thread goes on making them.
const BURST_HOLD: Duration = Duration::from_micros(100);
/// So many bytes of calls are worth a write: the other end is to begin soon.
const BURST_BYTES: usize = 4 << 10;

crate::sync::thread_local! {
    /// What the thread sends is an answer that is to be held back.
    static HOLDING: Cell<bool> = const { Cell::new(false) };
    /// It is a call that is to be held back.
    static BURSTING: Cell<bool> = const { Cell::new(false) };
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
    static BURST: Cell<Option<Burst>> = const { Cell::new(None) };
}

/// The calls that a thread has made one right after the other.
#[derive(Clone, Copy)]
struct Burst {
    calls: u32,
    last: Instant,
    held_since: Option<Instant>,
}

/// The connections with messages that are held back.
#[derive(Default)]
pub(crate) struct Cork {
    any: AtomicBool,
    links: Mutex<Vec<Arc<Link>>>,
}

impl Cork {
    /// Remembers a connection; true where the timer is to be armed.
    fn add(&self, link: &Arc<Link>) -> bool {
        let mut links = self.links.lock();
        if !links.iter().any(|l| Arc::ptr_eq(l, link)) {
            links.push(link.clone());
        }
        !self.any.swap(true, Ordering::SeqCst)
    }

    fn flush(&self) {
        if self.any.load(Ordering::SeqCst) {
            let links = {
                let mut links = self.links.lock();
                self.any.store(false, Ordering::SeqCst);
                std::mem::take(&mut *links)
            };
            for link in links {
                link.flush();
            }
        }
    }
}

impl Node {
    /// Does what answers a call; the answer may be held back while more calls wait to be run.
    pub(crate) fn answering<R>(&self, act: impl FnOnce() -> R) -> R {
        let now = crate::sync::now();
        let since = SINCE.with(Cell::get).unwrap_or(now);
        let hold = now - since < HOLD && self.inbox.has_calls();
        SINCE.with(|cell| cell.set(hold.then_some(since)));
        HOLDING.with(|cell| cell.set(hold));
        let result = act();
        HOLDING.with(|cell| cell.set(false));
        if !hold {
            self.uncork();
        }
        result
    }

    /// Makes a call that nobody waits for yet; its message may be held back if the thread makes many.
    pub(crate) fn bursting<R>(&self, act: impl FnOnce() -> R) -> R {
        let now = crate::sync::now();
        let before = BURST.with(Cell::get).filter(|burst| now - burst.last < BURST_GAP);
        let calls = before.map_or(0, |burst| burst.calls.saturating_add(1));
        let since = before.and_then(|burst| burst.held_since).unwrap_or(now);
        let hold = calls >= BURST_HEAD && now - since < BURST_HOLD;
        BURST.with(|cell| {
            cell.set(Some(Burst {
                calls,
                last: now,
                held_since: hold.then_some(since),
            }));
        });
        BURSTING.with(|cell| cell.set(hold));
        let result = act();
        BURSTING.with(|cell| cell.set(false));
        if !hold {
            self.calls_cork.flush();
            if calls > BURST_HEAD {
                self.read_in_passing();
            }
        }
        result
    }

    /// Makes a call whose message is held back while there is little to send.
    pub(crate) fn gathering<R>(&self, act: impl FnOnce() -> R) -> R {
        BURSTING.with(|cell| cell.set(true));
        let result = act();
        BURSTING.with(|cell| cell.set(false));
        result
    }

    /// Whether what the calling thread sends on a connection is to be held back.
    pub(crate) fn holds_back(link: &Link) -> bool {
        let most = match (HOLDING.with(Cell::get), BURSTING.with(Cell::get)) {
            (true, _) => BYTES,
            (false, true) => BURST_BYTES,
            (false, false) => return false,
        };
        link.may_hold(most)
    }

    /// A message has been queued on a connection and is held back.
    pub(crate) fn held_back(&self, link: &Arc<Link>) {
        let cork = if HOLDING.with(Cell::get) {
            &self.cork
        } else {
            &self.calls_cork
        };
        if cork.add(link) {
            self.driver.arm(crate::sync::now() + crate::inbox::STALL);
        }
    }

    /// Sends the calls that are held back.
    pub fn uncork_calls(&self) {
        self.calls_cork.flush();
    }

    /// Sends all that is held back.
    pub(crate) fn uncork(&self) {
        self.cork.flush();
        self.calls_cork.flush();
    }
}

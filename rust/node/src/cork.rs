//! Answers that wait for those behind them, so that many short calls are answered in one write.
//!
//! An executor that has more calls before it holds an answer back; it goes out with the ones after it once the
//! executor has nothing more to do, blocks, or has held answers back for [`HOLD`]. A call that takes long in between
//! cannot keep them: the timer that looks for stalled calls sends them off.

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

crate::sync::thread_local! {
    static HOLDING: Cell<bool> = const { Cell::new(false) };
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The connections with answers that are held back.
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

    /// Whether what the calling thread sends on a connection is to be held back.
    pub(crate) fn holds_back(link: &Link) -> bool {
        HOLDING.with(Cell::get) && link.queued_bytes() <= BYTES
    }

    /// A message has been queued on a connection and is held back.
    pub(crate) fn held_back(&self, link: &Arc<Link>) {
        if self.cork.add(link) {
            self.driver.arm(crate::sync::now() + crate::inbox::STALL);
        }
    }

    /// Sends the answers that are held back.
    pub(crate) fn uncork(&self) {
        if self.cork.any.load(Ordering::SeqCst) {
            let links = {
                let mut links = self.cork.links.lock();
                self.cork.any.store(false, Ordering::SeqCst);
                std::mem::take(&mut *links)
            };
            for link in links {
                link.flush();
            }
        }
    }
}

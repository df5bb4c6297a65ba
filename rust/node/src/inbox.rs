//! The calls that wait for a thread of Python, and the threads that wait for calls.
//!
//! One executor at a time takes calls while they are short. When the calls behind a running one have
//! waited for [`STALL`], another executor is woken, so that a call which blocks holds up no other. A call
//! is taken only once the one before it has ended, waits, or has run for that time, so that calls start in the order
//! in which they came: a thread of Python may lose the interpreter just as it begins.

mod backlog;
mod item;

use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::Mutex;
use pydist_proto::ids::ProcId;

pub use self::item::{Item, Taken};

use self::backlog::Backlog;
use crate::driver::Driver;
use crate::lanes::Lanes;
use crate::node::Node;
use crate::parker::Parker;
use crate::waiter::Nudge;

/// How long calls wait behind a running one before another executor is woken.
pub(crate) const STALL: Duration = Duration::from_micros(500);

/// Executors that are kept when there is nothing to do.
const IDLE_MAX: usize = 16;

/// One thread of Python that runs calls.
#[derive(Default)]
pub struct Executor {
    pub(crate) parker: Parker,
    stays: bool,
    state: Mutex<ExecutorState>,
    /// What its call waits for.
    waiting: Mutex<Option<Arc<dyn Nudge>>>,
    interrupted: AtomicBool,
}

impl Executor {
    /// Its call waits from now on, or no longer.
    pub fn set_waiting(&self, wait: Option<Arc<dyn Nudge>>) {
        *self.waiting.lock() = wait;
    }

    /// Has the wait of its call, or the next one, look for an exception that was sent to its thread.
    pub(crate) fn interrupt(&self, node: &Node) {
        self.interrupted.store(true, Ordering::SeqCst);
        let waiting = self.waiting.lock();
        match &*waiting {
            Some(wait) => wait.nudge(node),
            None => self.parker.unpark(&node.driver),
        }
    }

    /// Whether its wait was interrupted, or the next one is to be.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Whether its wait was interrupted; asking takes the interrupt.
    pub fn take_interrupt(&self) -> bool {
        self.interrupted.swap(false, Ordering::SeqCst)
    }
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct ExecutorState {
    /// It runs a call that is not blocked in a wait of pydist.
    active: bool,
    /// It has taken a call that has not ended.
    occupied: bool,
    /// It has taken a call that has not started.
    starting: bool,
    /// The number of its call, from the start of that until it ends or waits.
    fresh: Option<u64>,
    /// It has taken an interrupt, and has not come back for more.
    interrupting: bool,
    /// Its call is blocked in a wait that ends by itself: it sleeps, or has a timeout.
    pausing: bool,
    /// It has been woken for a call, and has not come for it yet.
    woken: bool,
}

#[derive(Debug, Default)]
struct State {
    urgent: VecDeque<Item>,
    queue: VecDeque<Item>,
    lanes: Lanes,
    idle: Vec<Arc<Executor>>,
    executors: usize,
    /// The most executors that there may be; none for no limit. The last idle one of them runs no calls: it does what
    /// is urgent, and refuses calls for which no thread will be free.
    limit: Option<usize>,
    /// That limit is lower than it is to be until then, as the system had no thread.
    short: Option<(Instant, Option<usize>)>,
    occupied: usize,
    active: usize,
    pausing: usize,
    woken: usize,
    /// A call has been taken and has not started yet.
    starting: bool,
    /// The number of the call that has started last, until it ends, waits, or holds up others.
    fresh: Option<u64>,
    /// Executors that interrupt the calls that run: one that came later is not to be among them.
    interrupting: usize,
    /// Counts calls taken: tells the stall check whether anything moved.
    taken: u64,
    taken_at_check: u64,
    stopped: bool,
    backlog: Backlog,
}

impl State {
    /// Whether just one executor is free, and is kept back since there are as many as there may be.
    fn only_reserve(&self) -> bool {
        self.limit.is_some_and(|limit| self.executors >= limit) && self.executors <= self.occupied + 1
    }

    /// Whether every call that runs waits for another process, or for another call, without end.
    fn is_stuck(&self) -> bool {
        self.active == 0 && self.pausing == 0 && !self.starting
    }

    /// The executor has come for what there is, or comes no more.
    fn came(&mut self, own: &mut ExecutorState) {
        if std::mem::take(&mut own.woken) {
            self.woken -= 1;
        }
    }

    /// Picks an executor that is to be woken for a call.
    fn pick_for_call(&mut self) -> Option<Arc<Executor>> {
        let executor = pick(&mut self.idle)?;
        if !std::mem::replace(&mut executor.state.lock().woken, true) {
            self.woken += 1;
        }
        Some(executor)
    }

    /// The executor does nothing from now on, or does what is none of a call.
    fn rest(&mut self, own: &mut ExecutorState) {
        if std::mem::take(&mut own.starting) {
            self.starting = false;
        }
        if own.fresh.is_some() && own.fresh.take() == self.fresh {
            self.fresh = None;
        }
        if std::mem::take(&mut own.active) {
            self.active -= 1;
        }
        if std::mem::take(&mut own.interrupting) {
            self.interrupting -= 1;
        }
    }

    fn next_urgent(&mut self, own: &mut ExecutorState) -> Option<Taken> {
        let item = self.urgent.pop_front()?;
        if matches!(item, Item::Interrupt(_)) {
            own.interrupting = true;
            self.interrupting += 1;
        }
        Some(Taken::new(item))
    }

    fn next_call(&mut self, own: &mut ExecutorState) -> Option<Taken> {
        if self.starting || self.fresh.is_some() || self.interrupting > 0 {
            return None;
        }
        if self.only_reserve() {
            if !self.is_stuck() {
                return None;
            }
            let refused = true;
            return self.queue.pop_front().map(|item| Taken {
                refused,
                ..Taken::new(item)
            });
        }
        let item = self.queue.pop_front()?;
        self.starting = true;
        own.starting = true;
        own.active = true;
        self.active += 1;
        own.occupied = true;
        self.occupied += 1;
        self.taken += 1;
        Some(Taken::new(item))
    }
}

/// The queue of calls and the executors that serve it.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    /// How many processes have too many calls waiting.
    over: AtomicUsize,
}

/// Takes the executor that reads the sockets already, or else the one that was busy last.
fn pick(idle: &mut Vec<Arc<Executor>>) -> Option<Arc<Executor>> {
    match idle.iter().position(|e| e.parker.is_leading()) {
        Some(at) => Some(idle.swap_remove(at)),
        None => idle.pop(),
    }
}

impl State {
    /// A call has been queued: an executor is woken unless one is at work, or has been woken for the call before.
    fn pushed(&mut self) -> Pushed {
        let wake = if self.active == 0 && !self.starting && self.woken == 0 {
            self.pick_for_call()
        } else {
            None
        };
        Pushed {
            check: wake.is_none(),
            wake,
        }
    }
}

/// What pushing an item asks of the caller.
pub(crate) struct Pushed {
    /// The executor to wake.
    pub(crate) wake: Option<Arc<Executor>>,
    /// The stall check is to be run after [`STALL`].
    pub(crate) check: bool,
}

impl Inbox {
    pub(crate) fn register(&self, stays: bool) -> Arc<Executor> {
        self.state.lock().executors += 1;
        Arc::new(Executor {
            stays,
            ..Executor::default()
        })
    }

    pub(crate) fn unregister(&self, executor: &Arc<Executor>) {
        let mut state = self.state.lock();
        let mut own = executor.state.lock();
        state.came(&mut own);
        state.rest(&mut own);
        if std::mem::take(&mut own.occupied) {
            state.occupied -= 1;
        }
        state.executors -= 1;
        state.idle.retain(|e| !Arc::ptr_eq(e, executor));
    }

    pub(crate) fn push(&self, item: Item) -> Pushed {
        let mut state = self.state.lock();
        let item = match item {
            Item::Call(call) => {
                state.backlog.arrived(&call, &self.over);
                match state.lanes.enter(call) {
                    Some(call) => Item::Call(call),
                    None => return Pushed::NOTHING,
                }
            }
            other => other,
        };
        if item.is_urgent() {
            state.urgent.push_back(item);
            return Pushed {
                wake: pick(&mut state.idle),
                check: true,
            };
        }
        state.queue.push_back(item);
        state.pushed()
    }

    /// A call has ended: where it had a lane, the next one of that may be taken.
    pub(crate) fn leave_lane(&self, src: ProcId, id: u64) -> Pushed {
        let mut state = self.state.lock();
        let Some(next) = state.lanes.leave(src, id) else {
            return Pushed::NOTHING;
        };
        state.queue.push_back(Item::Call(next));
        state.pushed()
    }

    pub(crate) fn stop(&self) -> Vec<Arc<Executor>> {
        let mut state = self.state.lock();
        state.stopped = true;
        std::mem::take(&mut state.idle)
    }

    /// Takes the next item for an executor, or puts it among the idle ones.
    pub(crate) fn take(&self, executor: &Arc<Executor>) -> Option<Taken> {
        let mut state = self.state.lock();
        let mut own = executor.state.lock();
        state.came(&mut own);
        state.rest(&mut own);
        if std::mem::take(&mut own.occupied) {
            state.occupied -= 1;
        }
        if state.stopped {
            return Some(Taken::new(Item::Stop));
        }
        let taken = match state.next_urgent(&mut own) {
            Some(taken) => Some(taken),
            None => state.next_call(&mut own),
        };
        match taken {
            Some(mut taken) => {
                if let Item::Call(call) = &taken.item {
                    taken.resumes = state.backlog.begun(call, &self.over);
                }
                state.idle.retain(|e| !Arc::ptr_eq(e, executor));
                let room = state.limit.is_none_or(|limit| state.executors < limit);
                taken.lonely = state.idle.is_empty() && room;
                Some(taken)
            }
            None if !executor.stays && state.idle.len() >= IDLE_MAX => Some(Taken::new(Item::Stop)),
            None => {
                if !state.idle.iter().any(|e| Arc::ptr_eq(e, executor)) {
                    state.idle.push(executor.clone());
                }
                None
            }
        }
    }

    /// There are to be no more executors than this.
    pub(crate) fn limit(&self, executors: usize) {
        let mut state = self.state.lock();
        state.limit = Some(executors);
        state.short = None;
    }

    /// There are no more executors than this for a while, as the system has no thread.
    pub(crate) fn limit_until(&self, executors: usize, until: Instant) {
        let mut state = self.state.lock();
        let usual = state.short.map_or(state.limit, |(_, usual)| usual);
        state.short = Some((until, usual));
        state.limit = Some(executors);
    }

    /// The call that the executor has taken starts; true where others wait behind it.
    pub(crate) fn started(&self, executor: &Executor) -> bool {
        let mut state = self.state.lock();
        let mut own = executor.state.lock();
        if !own.starting {
            return false;
        }
        own.starting = false;
        state.starting = false;
        own.fresh = Some(state.taken);
        state.fresh = own.fresh;
        !state.queue.is_empty()
    }

    /// The executor's call blocks in a wait of pydist, and gives its slot back.
    ///
    /// `pauses` tells that the wait ends by itself.
    pub(crate) fn block(&self, executor: &Executor, pauses: bool) -> Option<Arc<Executor>> {
        let mut state = self.state.lock();
        let mut own = executor.state.lock();
        state.rest(&mut own);
        if pauses && !own.pausing {
            own.pausing = true;
            state.pausing += 1;
        }
        if state.active == 0 && state.woken == 0 && !state.queue.is_empty() {
            drop(own);
            state.pick_for_call()
        } else {
            None
        }
    }

    /// The wait of the executor's call has ended.
    pub(crate) fn unblock(&self, executor: &Executor) {
        let mut state = self.state.lock();
        let mut own = executor.state.lock();
        if std::mem::take(&mut own.pausing) {
            state.pausing -= 1;
        }
        if !own.active {
            own.active = true;
            state.active += 1;
        }
    }

    /// Finds an executor for calls that have waited since the last check.
    pub(crate) fn check_stall(&self) -> Pushed {
        let mut state = self.state.lock();
        if let Some((until, usual)) = state.short
            && crate::sync::now() >= until
        {
            state.limit = usual;
            state.short = None;
        }
        if state.queue.is_empty() && state.urgent.is_empty() {
            return Pushed::NOTHING;
        }
        let stalled = state.taken == state.taken_at_check || !state.urgent.is_empty();
        state.taken_at_check = state.taken;
        if stalled {
            state.fresh = None;
        }
        let free = !(state.starting || state.interrupting > 0) || !state.urgent.is_empty();
        let in_vain = state.urgent.is_empty() && state.only_reserve() && !state.is_stuck();
        let wake = if stalled && free && !in_vain {
            state.pick_for_call()
        } else {
            None
        };
        if wake.is_some() && state.urgent.is_empty() {
            // It takes one, which may stall as well.
            state.taken_at_check += 1;
        }
        Pushed { wake, check: true }
    }

    /// Whether too many calls of a process have not begun.
    pub(crate) fn is_over(&self, src: ProcId) -> bool {
        let some = self.over.load(Ordering::SeqCst) > 0;
        some && self.state.lock().backlog.is_over(src)
    }

    /// Whether calls wait behind those that run.
    pub(crate) fn has_calls(&self) -> bool {
        !self.state.lock().queue.is_empty()
    }

    /// Gives back the room of a long queue that has become short.
    pub(crate) fn shrink(&self) {
        self.state.lock().queue.shrink_to(IDLE_MAX);
    }

    pub(crate) fn executors(&self) -> usize {
        self.state.lock().executors
    }
}

impl Pushed {
    const NOTHING: Pushed = Pushed {
        wake: None,
        check: false,
    };

    pub(crate) fn wake(&self, driver: &Driver) {
        if let Some(executor) = &self.wake {
            executor.parker.unpark(driver);
        }
    }
}

#[cfg(all(test, not(feature = "shuttle")))]
mod tests {
    #![allow(clippy::unwrap_used)]

    use pydist_proto::machine::Incoming;

    use super::backlog::WAITING_MAX;
    use super::*;

    fn local(inbox: &Inbox, executor: &Arc<Executor>) -> Option<u64> {
        match inbox.take(executor).map(|taken| taken.item) {
            Some(Item::Local(key)) => Some(key),
            _ => None,
        }
    }

    #[test]
    fn calls_wait_while_those_that_run_are_interrupted() {
        let inbox = Inbox::default();
        let (one, two) = (inbox.register(false), inbox.register(false));
        inbox.push(Item::Interrupt(None));
        assert!(matches!(inbox.take(&one).unwrap().item, Item::Interrupt(None)));
        inbox.push(Item::Local(7));
        assert_eq!(local(&inbox, &two), None);
        assert!(inbox.check_stall().wake.is_none());
        // It has interrupted them, and comes back.
        assert_eq!(local(&inbox, &one), Some(7));
        inbox.started(&one);
        inbox.push(Item::Local(8));
        assert_eq!(local(&inbox, &one), Some(8));
    }

    #[test]
    fn a_call_waits_until_the_one_before_has_ended_or_waits_or_stalls() {
        let inbox = Inbox::default();
        let executors = [(); 4].map(|()| inbox.register(false));
        let [one, two, three, four] = &executors;
        for call in 1..=4 {
            inbox.push(Item::Local(call));
        }
        assert_eq!(local(&inbox, one), Some(1));
        assert_eq!(local(&inbox, two), None);
        inbox.started(one);
        assert_eq!(local(&inbox, two), None);
        // It waits.
        assert!(inbox.block(one, false).is_some());
        assert_eq!(local(&inbox, two), Some(2));
        inbox.started(two);
        assert_eq!(local(&inbox, three), None);
        // It has run for long.
        assert!(inbox.check_stall().wake.is_none());
        assert!(inbox.check_stall().wake.is_some());
        assert_eq!(local(&inbox, three), Some(3));
        inbox.started(three);
        assert_eq!(local(&inbox, four), None);
        // The end of an older one changes nothing.
        inbox.unblock(one);
        assert_eq!(local(&inbox, one), None);
        assert!(inbox.check_stall().wake.is_some());
        assert_eq!(local(&inbox, four), Some(4));
    }

    #[test]
    fn calls_that_come_together_wake_one_executor() {
        let inbox = Inbox::default();
        let (one, two) = (inbox.register(false), inbox.register(false));
        assert_eq!((local(&inbox, &one), local(&inbox, &two)), (None, None));
        let woken = |item| inbox.push(item).wake;
        let first = woken(Item::Local(1)).unwrap();
        assert!(woken(Item::Local(2)).is_none());
        // What is urgent waits for none of them.
        let other = woken(Item::Members).unwrap();
        assert!(!Arc::ptr_eq(&first, &other));
        assert!(matches!(inbox.take(&other).unwrap().item, Item::Members));
        assert_eq!(local(&inbox, &first), Some(1));
        inbox.started(&first);
        assert_eq!(local(&inbox, &first), Some(2));
        inbox.started(&first);
        assert_eq!((local(&inbox, &first), local(&inbox, &other)), (None, None));
        // One that was woken and ends instead holds up none that come later.
        inbox.unregister(&woken(Item::Local(3)).unwrap());
        assert!(woken(Item::Local(4)).is_some());
    }

    fn call_of(src: ProcId, bytes: usize) -> Item {
        Item::Call(Incoming {
            src,
            id: 1,
            mode: pydist_proto::message::CallMode::Do,
            lane: 0,
            body: pydist_proto::body::Body::of_bytes(vec![0; bytes]),
        })
    }

    /// F20: the process whose calls are too many is held up until half of them have begun, and no other is.
    #[test]
    fn too_many_bytes_of_calls_hold_their_process_up() {
        let inbox = Inbox::default();
        let executor = inbox.register(false);
        let (calls, size) = (9, WAITING_MAX / 8);
        inbox.push(call_of(3, size));
        (0..calls).for_each(|_| drop(inbox.push(call_of(2, size))));
        assert!(inbox.is_over(2) && !inbox.is_over(3) && !inbox.is_over(7));
        let mut resumed = Vec::new();
        while let Some(taken) = inbox.take(&executor) {
            inbox.started(&executor);
            resumed.push(taken.resumes);
        }
        // The first one was of process 3; half of 64 MiB are left after the sixth of process 2.
        let expected: Vec<bool> = (0..=calls).map(|taken| taken == 6).collect();
        assert_eq!(resumed, expected);
        assert!(!inbox.is_over(2));
    }

    /// F33: a limit for want of threads ends by itself.
    #[test]
    fn a_limit_for_a_while_ends() {
        let inbox = Inbox::default();
        let executors = [(); 3].map(|()| inbox.register(false));
        inbox.limit(10);
        inbox.limit_until(2, crate::sync::now() + Duration::from_secs(60));
        inbox.limit_until(3, crate::sync::now());
        assert_eq!(inbox.state.lock().limit, Some(3));
        inbox.check_stall();
        assert_eq!(inbox.state.lock().limit, Some(10));
        drop(executors);
    }

    #[test]
    fn an_executor_that_ends_holds_up_no_call() {
        let inbox = Inbox::default();
        let (one, two) = (inbox.register(false), inbox.register(false));
        inbox.push(Item::Interrupt(None));
        inbox.take(&one);
        inbox.push(Item::Local(7));
        inbox.unregister(&one);
        assert_eq!(local(&inbox, &two), Some(7));
    }
}

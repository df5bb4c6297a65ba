//! Which elements of a map run when and where: batches, credits, recalls and retries, without a clock.
//!
//! The elements are known by their numbers alone. Whoever drives a schedule asks [`Schedule::poll`] for what is to
//! be done, until there is nothing, and tells what has happened:
//!
//! ```text
//!  fresh ── Pull ──► batch of a worker ── finished ──► (gone)
//!    waiting ─ Send ─►  │   ▲      └──── given back, cancelled, finished in part, left ──► waiting
//!       ▲               └───┘ Recall: a worker idles                                         │
//!       └───────────────────────── delayed ◄── retry ◄───────────────────────────────────────┘
//! ```
//!
//! A worker runs its batches one after the other in the order in which they were sent, unless the rules say that
//! they run at once. Batches grow towards some milliseconds of work while calls are short, and shrink towards the
//! end where that is known. A worker that idles while another has a queue is given a part of it: a batch that has
//! not begun, or of one that has the elements that have not.

use std::collections::{BTreeMap, VecDeque};

mod pace;

use pace::Pace;

/// A moment or a length of time, in nanoseconds.
pub type Nanos = u64;
/// The number of a worker.
pub type WorkerId = u32;
/// The number of a batch, used for no other.
pub type Key = u64;

/// A batch that waits behind another is worth a recall if that goes on for longer than this.
const QUEUED_WAIT: f64 = 1e6;
/// The rest of a running batch is worth a recall if that goes on for longer than this.
const RUNNING_WAIT: f64 = 2e6;
/// Elements that a worker may have where they run at once.
const AT_ONCE_MAX: u64 = 256;
/// Elements of a batch where they run at once.
const AT_ONCE_SIZE: u64 = 16;
/// With bounded look-ahead, so many elements of each worker may be under way whatever they take.
const AHEAD_MIN: u64 = 4;
/// With bounded look-ahead, so many elements of each worker may be under way to outlast a long one.
const AHEAD_MAX: u64 = 1000;
/// With bounded look-ahead, how long a worker can go on while the results wait for one that takes long.
const AHEAD_TIME: f64 = 1e9;

/// How a map is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The elements of a batch; none: as many as fit.
    pub size: Option<u64>,
    /// How many elements there are, where that is known.
    pub total: Option<u64>,
    /// A bounded number of elements is under way beyond those whose results were consumed.
    pub bounded: bool,
    /// A worker runs all that it has at once.
    pub at_once: bool,
}

/// Elements with successive numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: u64,
    pub count: u64,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take so many fresh elements, the first of which has this number, tell with [`Schedule::filled`], send them.
    Pull(Key, WorkerId, Range),
    /// Send elements that were taken before.
    Send(Key, WorkerId, Range),
    /// Ask for a batch that has not begun, which ends as cancelled.
    Recall(Key, WorkerId),
    /// Ask for the elements of a running batch that have not begun; [`Schedule::given_back`] tells them.
    RecallRest(Key, WorkerId),
}

/// Elements that wait for a worker.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    range: Range,
    /// Where they failed: another worker is better.
    avoid: Option<WorkerId>,
    /// Each runs in a batch of its own.
    singly: bool,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    worker: WorkerId,
    range: Range,
    /// All batches like this that its worker has run at once.
    at_once: bool,
    /// It is not asked for again.
    recalled: bool,
    /// The worker has been asked for it, and has not answered.
    asked: bool,
    /// It is not asked for again before this time.
    not_before: Nanos,
}

#[derive(Clone, Debug)]
struct Worker {
    id: WorkerId,
    /// It queues batches; otherwise it is sent one at a time.
    queues: bool,
    batches: VecDeque<Key>,
    elements: u64,
    /// Since when the first of its batches has been the first.
    since: Nanos,
}

/// The state of one map.
#[derive(Debug)]
pub struct Schedule {
    rules: Rules,
    /// The size of batches where elements run at once, while they do not; else 1.
    size_one_by_one: Option<u64>,
    pace: Pace,
    workers: Vec<Worker>,
    batches: BTreeMap<Key, Batch>,
    next_key: Key,
    /// The number of the next fresh element.
    next: u64,
    /// No fresh element is left.
    exhausted: bool,
    consumed: u64,
    waiting: VecDeque<Waiting>,
    delayed: BTreeMap<(Nanos, u64), Waiting>,
    next_delayed: u64,
    /// Batches that have been asked for and not answered.
    asked: usize,
}

impl Schedule {
    pub fn new(rules: Rules) -> Schedule {
        Schedule {
            rules,
            size_one_by_one: Some(1),
            pace: Pace::default(),
            workers: Vec::new(),
            batches: BTreeMap::new(),
            next_key: 1,
            next: 0,
            exhausted: false,
            consumed: 0,
            waiting: VecDeque::new(),
            delayed: BTreeMap::new(),
            next_delayed: 0,
            asked: 0,
        }
    }

    /// Takes up a worker; one that does not queue is sent a batch at a time.
    pub fn join(&mut self, id: WorkerId, queues: bool) {
        if self.workers.iter().all(|w| w.id != id) {
            self.workers.push(Worker {
                id,
                queues,
                batches: VecDeque::new(),
                elements: 0,
                since: 0,
            });
        }
    }

    /// A worker is gone. Gives the batches that may have begun; the others wait for another worker.
    pub fn leave(&mut self, id: WorkerId) -> Vec<(Key, Range)> {
        let Some(at) = self.workers.iter().position(|w| w.id == id) else {
            return Vec::new();
        };
        let worker = self.workers.remove(at);
        let mut begun = Vec::new();
        for (place, key) in worker.batches.iter().enumerate().rev() {
            let Some(batch) = self.batches.remove(key) else {
                continue;
            };
            self.asked -= usize::from(batch.asked);
            if place == 0 || batch.at_once {
                begun.push((*key, batch.range));
            } else {
                self.wait_first(batch.range);
            }
        }
        begun.reverse();
        begun
    }

    /// Whether every element has been dealt with.
    pub fn is_done(&self) -> bool {
        self.exhausted && self.batches.is_empty() && self.waiting.is_empty() && self.delayed.is_empty()
    }

    /// Whether elements are left that only a worker could deal with.
    pub fn needs_workers(&self) -> bool {
        self.workers.is_empty() && !self.is_done()
    }

    /// The next thing to be done now, if any.
    pub fn poll(&mut self, now: Nanos) -> Option<Action> {
        while let Some(entry) = self.delayed.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let waiting = entry.remove();
            self.waiting.push_back(waiting);
        }
        if let Some(waiting) = self.waiting.front().copied() {
            let at = self.freest(waiting.avoid)?;
            return Some(self.send_waiting(at, waiting, now));
        }
        if !self.exhausted
            && let Some(at) = self.freest(None)
            && let count @ 1.. = self.fresh_size()
        {
            let range = Range {
                first: self.next,
                count,
            };
            let (key, worker) = self.add_batch(at, range, now);
            return Some(Action::Pull(key, worker, range));
        }
        self.recall(now)
    }

    /// When to poll again though nothing has happened.
    pub fn next_time(&self, now: Nanos) -> Option<Nanos> {
        let delayed = self.delayed.first_key_value().map(|((at, _), _)| *at);
        let victim = self.idles().then(|| {
            let victims = self.workers.iter().filter_map(|w| self.victim(w, now));
            victims.map(|v| v.due).min()
        });
        [delayed, victim.flatten()].into_iter().flatten().min()
    }

    /// So many fresh elements were there for a batch; with `exhausted` there are no more.
    pub fn filled(&mut self, key: Key, count: u64, exhausted: bool) {
        self.exhausted |= exhausted;
        let Some(batch) = self.batches.get_mut(&key) else {
            return;
        };
        let missing = batch.range.count.saturating_sub(count);
        batch.range.count -= missing;
        self.next += batch.range.count;
        let worker = batch.worker;
        if let Some(worker) = self.workers.iter_mut().find(|w| w.id == worker) {
            worker.elements -= missing;
        }
        if count == 0 {
            self.remove(key, 0);
        }
    }

    /// So many bytes were sent, or have come, for so many elements.
    pub fn note_bytes(&mut self, elements: u64, bytes: u64) {
        self.pace.note_bytes(elements, bytes);
    }

    /// A batch has ended: its first `done` elements have been dealt with, in so much time. Gives the number of its
    /// first element and how many are to be run again, after those done; nothing where the batch is not known.
    pub fn finished(&mut self, key: Key, done: u64, took: Nanos, now: Nanos) -> Option<(u64, Range)> {
        let batch = self.remove(key, now)?;
        let done = done.min(batch.range.count);
        self.pace.note_time(done, took);
        let rest = Range {
            first: batch.range.first + done,
            count: batch.range.count - done,
        };
        self.wait_first(rest);
        Some((batch.range.first, rest))
    }

    /// A batch was cancelled before it began; its elements wait again.
    pub fn cancelled(&mut self, key: Key, now: Nanos) -> Option<Range> {
        let batch = self.remove(key, now)?;
        self.wait_first(batch.range);
        Some(batch.range)
    }

    /// A batch failed as a whole before it began; its elements run again, each in a batch of its own.
    pub fn split(&mut self, key: Key, now: Nanos) -> Option<Range> {
        let batch = self.remove(key, now)?;
        self.run_singly(batch.range);
        Some(batch.range)
    }

    /// Elements run again, each in a batch of its own.
    pub fn run_singly(&mut self, range: Range) {
        self.waiting.push_front(Waiting {
            range,
            avoid: None,
            singly: true,
        });
    }

    /// The worker gives a running batch back but for its first `kept` elements; none where it has no such batch
    /// now. Gives the elements, which wait again.
    pub fn given_back(&mut self, key: Key, kept: Option<u64>, now: Nanos) -> Option<Range> {
        let batch = self.batches.get_mut(&key)?;
        self.asked -= usize::from(std::mem::take(&mut batch.asked));
        let Some(kept) = kept else {
            // It has not been unpickled yet, or has just ended.
            batch.recalled = false;
            batch.not_before = now + RUNNING_WAIT as Nanos;
            let id = batch.worker;
            if let Some(worker) = self.workers.iter_mut().find(|w| w.id == id) {
                worker.since = now;
            }
            return None;
        };
        let given = batch.range.count.saturating_sub(kept);
        batch.range.count -= given;
        let range = Range {
            first: batch.range.first + batch.range.count,
            count: given,
        };
        let id = batch.worker;
        if let Some(worker) = self.workers.iter_mut().find(|w| w.id == id) {
            worker.elements -= given;
        }
        self.wait_first(range);
        (given > 0).then_some(range)
    }

    /// An element is to run again, at some time, on another worker than this if there is one.
    pub fn retry(&mut self, element: u64, at: Nanos, avoid: WorkerId) {
        let waiting = Waiting {
            range: Range {
                first: element,
                count: 1,
            },
            avoid: Some(avoid),
            singly: true,
        };
        self.delayed.insert((at, self.next_delayed), waiting);
        self.next_delayed += 1;
    }

    /// So many results have been consumed, from the first on.
    pub fn consumed(&mut self, count: u64) {
        self.consumed = self.consumed.max(count);
    }

    /// No fresh element is taken any more.
    pub fn exhaust(&mut self) {
        self.exhausted = true;
    }

    /// Whether workers run what they are sent from now on at once; otherwise they run one element at a time.
    pub fn run_at_once(&mut self, at_once: bool) {
        if self.rules.at_once != at_once {
            self.rules.at_once = at_once;
            std::mem::swap(&mut self.rules.size, &mut self.size_one_by_one);
        }
    }

    fn wait_first(&mut self, range: Range) {
        if range.count > 0 {
            self.waiting.push_front(Waiting {
                range,
                avoid: None,
                singly: false,
            });
        }
    }

    /// Forgets a batch.
    fn remove(&mut self, key: Key, now: Nanos) -> Option<Batch> {
        let batch = self.batches.remove(&key)?;
        self.asked -= usize::from(batch.asked);
        if let Some(worker) = self.workers.iter_mut().find(|w| w.id == batch.worker) {
            if worker.batches.front() == Some(&key) {
                worker.since = now;
            }
            worker.batches.retain(|k| *k != key);
            worker.elements -= batch.range.count;
        }
        Some(batch)
    }

    fn add_batch(&mut self, at: usize, range: Range, now: Nanos) -> (Key, WorkerId) {
        let key = self.next_key;
        self.next_key += 1;
        let worker = &mut self.workers[at];
        if worker.batches.is_empty() {
            worker.since = now;
        }
        worker.batches.push_back(key);
        worker.elements += range.count;
        let id = worker.id;
        self.batches.insert(
            key,
            Batch {
                worker: id,
                range,
                at_once: self.rules.at_once,
                recalled: false,
                asked: false,
                not_before: 0,
            },
        );
        (key, id)
    }

    fn send_waiting(&mut self, at: usize, waiting: Waiting, now: Nanos) -> Action {
        let idle = self.workers.iter().filter(|w| w.batches.is_empty()).count() as u64;
        let share = waiting.range.count.div_ceil(idle.max(1));
        let count = if waiting.singly { 1 } else { share.min(self.size()) };
        let range = Range {
            first: waiting.range.first,
            count,
        };
        let left = waiting.range.count - count;
        if let Some(front) = self.waiting.front_mut() {
            front.range.first += count;
            front.range.count = left;
        }
        if left == 0 {
            self.waiting.pop_front();
        }
        let (key, worker) = self.add_batch(at, range, now);
        Action::Send(key, worker, range)
    }

    /// The worker with the shortest queue among those that may have one more batch; `avoid` comes last.
    fn freest(&self, avoid: Option<WorkerId>) -> Option<usize> {
        let all = self.workers.iter().enumerate();
        all.filter(|(_, w)| self.has_credit(w))
            .min_by_key(|(_, w)| (Some(w.id) == avoid, w.batches.len(), w.elements))
            .map(|(at, _)| at)
    }

    fn has_credit(&self, worker: &Worker) -> bool {
        if worker.batches.is_empty() {
            return true;
        }
        if self.rules.at_once && self.rules.size.is_none() {
            return worker.elements < AT_ONCE_MAX;
        }
        let window = self.pace.window(self.size(), self.rules.size.is_none());
        worker.queues && (worker.batches.len() as u64) < window
    }

    /// The elements of a batch, wherever they come from.
    fn size(&self) -> u64 {
        match self.rules.size {
            Some(size) => size,
            None if self.rules.at_once => AT_ONCE_SIZE,
            None => self.pace.size(),
        }
    }

    /// The fresh elements of the next batch; 0 where the look-ahead is used up.
    fn fresh_size(&self) -> u64 {
        let workers = self.workers.len().max(1) as u64;
        let mut size = self.size();
        if self.rules.size.is_none() {
            let floor = if self.rules.at_once { 1 } else { self.pace.floor() };
            if let Some(total) = self.rules.total {
                let left = total.saturating_sub(self.next);
                size = size.min(left.div_ceil(2 * workers).max(floor));
            } else if self.rules.at_once {
                size = size.min(self.next / workers + 1);
            }
        }
        if self.rules.bounded {
            let ahead = self.next - self.consumed;
            size = size.min(self.ahead_max(workers).saturating_sub(ahead));
        }
        size
    }

    /// How many elements may be under way, or have results that are not consumed.
    fn ahead_max(&self, workers: u64) -> u64 {
        if self.rules.at_once && self.rules.size.is_none() {
            return 2 * AT_ONCE_MAX * workers;
        }
        let size = self.size();
        let queued = 2 * size * self.pace.window(size, self.rules.size.is_none());
        let outlast = self
            .pace
            .expected(1)
            .map_or(AHEAD_MIN, |t| (AHEAD_TIME / t) as u64);
        workers * queued.max(outlast.min(AHEAD_MAX)).max(AHEAD_MIN)
    }
}

/// A worker whose queue another could take over in part.
struct Victim {
    key: Key,
    running: bool,
    /// How much it has to do, about.
    backlog: f64,
    /// When that is worth it.
    due: Nanos,
}

impl Schedule {
    /// Whether a worker idles that could take over what another has, beyond those that are about to.
    fn idles(&self) -> bool {
        !self.rules.at_once && self.workers.iter().filter(|w| w.batches.is_empty()).count() > self.asked
    }

    fn recall(&mut self, now: Nanos) -> Option<Action> {
        if !self.idles() {
            return None;
        }
        let victims = self
            .workers
            .iter()
            .filter_map(|w| Some((w.id, self.victim(w, now)?)));
        let (id, victim) = victims
            .filter(|(_, v)| v.due <= now)
            .max_by(|(_, a), (_, b)| a.backlog.total_cmp(&b.backlog))?;
        if let Some(batch) = self.batches.get_mut(&victim.key) {
            batch.recalled = true;
            batch.asked = true;
            self.asked += 1;
        }
        Some(match victim.running {
            true => Action::RecallRest(victim.key, id),
            false => Action::Recall(victim.key, id),
        })
    }

    /// What can be taken over from a worker: its last batch, or the rest of the one that runs.
    fn victim(&self, worker: &Worker, now: Nanos) -> Option<Victim> {
        let front = self.batches.get(worker.batches.front()?)?;
        let (place, key) = worker
            .batches
            .iter()
            .enumerate()
            .rev()
            .find(|(_, key)| self.batches.get(key).is_some_and(|b| !b.recalled))?;
        let running = place == 0;
        if running && front.range.count < 2 {
            return None;
        }
        let expected = self.pace.expected(front.range.count).unwrap_or(0.0);
        let elapsed = now.saturating_sub(worker.since) as f64;
        // What takes longer than expected may well go on for as long again.
        let goes_on = if elapsed < expected {
            expected - elapsed
        } else {
            elapsed
        };
        let worth = if running { RUNNING_WAIT } else { QUEUED_WAIT };
        let queued = worker.elements - front.range.count;
        let due = if goes_on >= worth {
            now
        } else {
            worker.since + expected.max(worth) as Nanos
        };
        Some(Victim {
            key: *key,
            running,
            backlog: goes_on + self.pace.expected(queued).unwrap_or(0.0),
            due: due
                .max(if goes_on >= worth { now } else { now + 1 })
                .max(self.batches.get(key)?.not_before),
        })
    }
}

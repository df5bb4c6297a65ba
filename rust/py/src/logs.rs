//! Events of the core on their way to Python's `logging`, through a queue that never makes their emitter wait.
//!
//! Who emits one may hold locks of the core, or have no interpreter: it only appends a text, or counts it where the queue is
//! full. A thread of Python takes the texts; without one, an executor is asked to.

use std::fmt::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use pydist_node::inbox::Item;
use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::lifecycle::{is_forked, node_for_drop};

/// The beginning of all targets of the core.
const ROOT: &str = "pydist.";
/// What is told unless anything else is asked for.
const DEFAULT: LevelFilter = LevelFilter::INFO;
/// So many events wait where little is told; and where a thread of Python is there for them.
const FEW: usize = 64;
const MANY: usize = 4096;

static QUEUE: OnceLock<ArrayQueue<Told>> = OnceLock::new();
/// Events for which there was no room, since the last time that Python was told how many.
static DROPPED: AtomicU64 = AtomicU64::new(0);
/// The thread of Python that takes events.
static READER: OnceLock<Thread> = OnceLock::new();
/// An executor has been asked to take events, and has not begun to.
static ASKED: AtomicBool = AtomicBool::new(false);
static STOPPED: AtomicBool = AtomicBool::new(false);
static ABANDONED: AtomicBool = AtomicBool::new(false);

struct Told {
    target: &'static str,
    level: Level,
    text: String,
    at: Instant,
}

/// What Python gets of an event: the name of the logger, the level, the text, and its age in seconds.
type Row = (&'static str, u8, String, f64);

/// Hands over the events of the targets and levels that are asked for.
struct Bridge {
    levels: Vec<(String, LevelFilter)>,
}

impl Bridge {
    /// The level of the longest name that is the target's, or the beginning of it.
    fn level_of(&self, target: &str) -> LevelFilter {
        if !target.starts_with(ROOT) {
            return LevelFilter::OFF;
        }
        let covers = |name: &str| {
            target
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.levels
            .iter()
            .filter(|(name, _)| covers(name))
            .max_by_key(|(name, _)| name.len())
            .map_or(DEFAULT, |(_, level)| *level)
    }
}

impl Subscriber for Bridge {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level_of(metadata.target())
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        self.levels
            .iter()
            .map(|(_, level)| *level)
            .max()
            .max(Some(DEFAULT))
    }

    fn event(&self, event: &Event<'_>) {
        if is_forked() {
            return;
        }
        let mut text = Text(String::new());
        event.record(&mut text);
        push(Told {
            target: event.metadata().target(),
            level: *event.metadata().level(),
            text: text.0,
            at: Instant::now(),
        });
    }

    // The core has no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The text of an event.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}

fn push(told: Told) {
    let Some(queue) = QUEUE.get() else { return };
    if queue.push(told).is_err() {
        DROPPED.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(reader) = READER.get() {
        reader.unpark();
    } else if let Some(node) = node_for_drop()
        && !ASKED.swap(true, Ordering::SeqCst)
    {
        node.push_item(Item::Log);
    }
}

/// Has events kept for `next_events` from now on: of the names of loggers and the levels of Python that are given, else
/// those that are at least informative. With `many`, a thread takes them.
#[pyfunction]
pub(crate) fn keep_events(levels: Vec<(String, u8)>, many: bool) {
    let levels = levels
        .into_iter()
        .map(|(name, level)| (name, filter(level)))
        .collect();
    let first = QUEUE.set(ArrayQueue::new(if many { MANY } else { FEW })).is_ok();
    if first {
        // There is no other subscriber in this module's copy of the crate.
        let _ = tracing::subscriber::set_global_default(Bridge { levels });
    }
}

/// The events of a level of Python and above.
fn filter(level: u8) -> LevelFilter {
    match level {
        0..10 => LevelFilter::TRACE,
        10..20 => LevelFilter::DEBUG,
        20..30 => LevelFilter::INFO,
        30..40 => LevelFilter::WARN,
        40..=50 => LevelFilter::ERROR,
        _ => LevelFilter::OFF,
    }
}

fn python_level(level: Level) -> u8 {
    match level {
        Level::TRACE => 5,
        Level::DEBUG => 10,
        Level::INFO => 20,
        Level::WARN => 30,
        Level::ERROR => 40,
    }
}

/// Takes the events that are there, and tells how many had no room; with `wait`, once there are any, or none will come: None.
#[pyfunction]
pub(crate) fn next_events(py: Python<'_>, wait: bool) -> Option<(Vec<Row>, u64)> {
    ASKED.store(false, Ordering::SeqCst);
    let queue = QUEUE.get()?;
    if wait {
        READER.get_or_init(std::thread::current);
        if queue.is_empty() {
            if STOPPED.load(Ordering::SeqCst) {
                return None;
            }
            py.detach(|| await_events(queue));
        }
    }
    let rows = std::iter::from_fn(|| queue.pop())
        .take(queue.capacity())
        .map(|told| {
            (
                told.target,
                python_level(told.level),
                told.text,
                told.at.elapsed().as_secs_f64(),
            )
        })
        .collect();
    Some((rows, DROPPED.swap(0, Ordering::Relaxed)))
}

fn await_events(queue: &ArrayQueue<Told>) {
    while queue.is_empty() && !STOPPED.load(Ordering::SeqCst) {
        std::thread::park();
    }
    // The interpreter may be ending: taking it then would end the thread in the middle of Rust code.
    while ABANDONED.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_secs(3600));
    }
}

/// Has the thread that takes events come to its end once it has taken all; with `abandoned`, it is not to come back.
#[pyfunction]
pub(crate) fn stop_events(abandoned: bool) {
    STOPPED.store(true, Ordering::SeqCst);
    ABANDONED.store(abandoned, Ordering::SeqCst);
    if let Some(reader) = READER.get() {
        reader.unpark();
    }
}

/// Whether calls are told of one by one.
pub(crate) fn tells_calls() -> bool {
    tracing::enabled!(target: "pydist.core.calls", Level::DEBUG)
}

//! What a process does and holds, told by its core to who watches it, whatever its Python does.

use std::collections::VecDeque;
use std::fmt::Write;
use std::time::{Duration, Instant};

use pydist_proto::ids::ProcId;
use rustc_hash::FxHashMap;

use crate::node::Node;
use crate::sending::CallFailed;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::waiter::Wake;

/// Ended calls that are kept until they are told; the oldest go first.
const ENDED_MAX: usize = 256;
/// Running calls that are told of.
const RUNNING_MAX: usize = 64;
/// Channels that are told of.
const CHANNELS_MAX: usize = 256;
/// Calls of one function that follow each other this closely are told as one ...
const GAP: Duration = Duration::from_millis(5);
/// ... which lasts at most this long.
const SPAN: Duration = Duration::from_millis(200);

type Key = (ProcId, u64);

/// A call that has ended, or several short ones of the same function.
struct Ended {
    key: Key,
    name: String,
    began: Instant,
    ended: Instant,
    error: Option<String>,
    count: u64,
}

impl Ended {
    /// Whether a call that has ended is told with this one.
    fn takes(&self, other: &Ended) -> bool {
        self.error.is_none()
            && other.error.is_none()
            && self.name == other.name
            && other.began.saturating_duration_since(self.ended) < GAP
            && other.ended.saturating_duration_since(self.began) < SPAN
    }
}

/// The calls that Python has told of.
#[derive(Default)]
struct Calls {
    running: FxHashMap<Key, (String, Instant)>,
    ended: VecDeque<Ended>,
    /// Those that were dropped untold.
    dropped: u64,
}

/// The calls of this process; Python tells of them while somebody watches it.
#[derive(Default)]
pub(crate) struct Observing {
    calls: Mutex<Calls>,
    /// All calls that have begun, watched or not.
    begun: AtomicU64,
}

impl Node {
    /// Asks a process what it does and holds; a text wakes `wake`.
    pub fn ask_observation(&self, pid: ProcId, wake: Wake) -> Result<u64, CallFailed> {
        Ok(self.open(|machine| machine.open_observation(pid, wake.clone()))?)
    }

    pub(crate) fn tell_observer(&self, from: ProcId, req: u64) {
        self.answer_text(from, req, self.observation());
    }

    pub(crate) fn count_call(&self) {
        self.observing.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A call runs from now on, of a function of this name; one without a name is told of only while it runs.
    pub fn call_began(&self, key: Key, name: String) {
        let now = crate::sync::now();
        self.observing.calls.lock().running.insert(key, (name, now));
    }

    /// A call that began has ended; one that was not told of is passed over.
    pub fn call_ended(&self, key: Key, error: Option<String>) {
        let ended = crate::sync::now();
        let mut calls = self.observing.calls.lock();
        let Some((name, began)) = calls.running.remove(&key) else {
            return;
        };
        if name.is_empty() {
            return;
        }
        let call = Ended {
            key,
            name,
            began,
            ended,
            error,
            count: 1,
        };
        match calls.ended.back_mut().filter(|last| last.takes(&call)) {
            Some(last) => {
                last.ended = last.ended.max(ended);
                last.count += 1;
            }
            None => calls.ended.push_back(call),
        }
        if calls.ended.len() > ENDED_MAX {
            calls.dropped += calls.ended.pop_front().map_or(0, |first| first.count);
        }
    }

    /// Nobody watches any more.
    pub fn forget_calls(&self) {
        *self.observing.calls.lock() = Calls::default();
    }

    /// What this process does and holds, as JSON; calls that have ended are told once.
    pub fn observation(&self) -> String {
        let stats = self.stats();
        let machine = self.machine.lock();
        let running: Vec<Key> = machine.running_calls().collect();
        let gauges = machine.gauges(CHANNELS_MAX);
        drop(machine);
        let mut text = String::with_capacity(1024);
        let _ = write!(
            text,
            "{{\"cpu\":{:.6},\"rss\":{},\"threads\":{},\"running\":{},\"queued\":{},\"bytes_sent\":{},\
             \"bytes_received\":{},\"messages_sent\":{},\"messages_received\":{},\"queued_bytes\":{},\
             \"shared_bytes\":{},\"refs\":{}",
            cpu_seconds(),
            resident_bytes(),
            stats.executors,
            running.len(),
            stats.counts.calls_running.saturating_sub(running.len()),
            stats.bytes_sent,
            stats.bytes_received,
            stats.messages_sent,
            stats.messages_received,
            stats.queued_bytes,
            stats.shared_bytes,
            stats.counts.refs_owned,
        );
        self.write_calls(&mut text, &running);
        text.push_str(",\"channels\":[");
        for (index, (id, gauge)) in gauges.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let capacity = match gauge.capacity {
                usize::MAX => "null".to_owned(),
                bounded => bounded.to_string(),
            };
            let _ = write!(
                text,
                "{comma}[{},{},{capacity},{},{},{},{}]",
                id.whence, id.id, gauge.items, gauge.putters, gauge.takers, gauge.is_open,
            );
        }
        text.push_str("]}");
        text
    }

    fn write_calls(&self, text: &mut String, running: &[Key]) {
        let now = crate::sync::now();
        let mut calls = self.observing.calls.lock();
        text.push_str(",\"calls\":[");
        for (index, key) in running.iter().take(RUNNING_MAX).enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let _ = write!(text, "{comma}[{},{},", key.0, key.1);
            match calls.running.get(key) {
                Some((name, began)) => {
                    write_string(text, name);
                    let ago = now.saturating_duration_since(*began);
                    let _ = write!(text, ",{:.6}]", ago.as_secs_f64());
                }
                None => text.push_str("null,null]"),
            }
        }
        let ended = std::mem::take(&mut calls.ended);
        let (begun, dropped) = (self.observing.begun.load(Ordering::Relaxed), calls.dropped);
        drop(calls);
        text.push_str("],\"ended\":[");
        for (index, call) in ended.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let ago = now.saturating_duration_since(call.began).as_secs_f64();
            let took = call.ended.saturating_duration_since(call.began).as_secs_f64();
            let _ = write!(text, "{comma}[{},{},", call.key.0, call.key.1);
            write_string(text, &call.name);
            let _ = write!(text, ",{ago:.6},{took:.6},{},", call.count);
            match &call.error {
                Some(error) => write_string(text, error),
                None => text.push_str("null"),
            }
            text.push(']');
        }
        let _ = write!(text, "],\"calls_begun\":{begun},\"calls_dropped\":{dropped}");
    }
}

/// Writes a string of JSON.
fn write_string(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' | '\\' => text.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

/// The processor time of this process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// The memory of this process that is in use now; 0 where the system does not tell.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn call(name: &str, base: Instant, from_ms: u64, to_ms: u64, error: Option<&str>) -> Ended {
        Ended {
            key: (1, from_ms),
            name: name.to_owned(),
            began: base + Duration::from_millis(from_ms),
            ended: base + Duration::from_millis(to_ms),
            error: error.map(str::to_owned),
            count: 1,
        }
    }

    #[test]
    fn strings_are_escaped() {
        let mut text = String::new();
        write_string(&mut text, "a\"b\\c\n\u{1}é\u{85}");
        assert_eq!(text, r#""a\"b\\c\u000a\u0001é\u0085""#);
    }

    #[test]
    fn only_short_calls_that_follow_each_other_are_told_as_one() {
        let base = Instant::now();
        let first = call("f", base, 0, 2, None);
        assert!(first.takes(&call("f", base, 3, 4, None)));
        assert!(!first.takes(&call("g", base, 3, 4, None)));
        assert!(!first.takes(&call("f", base, 3, 4, Some("ValueError"))));
        assert!(!first.takes(&call("f", base, 20, 21, None)));
        assert!(!first.takes(&call("f", base, 3, 500, None)));
        assert!(!call("f", base, 0, 2, Some("ValueError")).takes(&call("f", base, 3, 4, None)));
    }

    #[test]
    fn memory_and_processor_time_are_told() {
        assert!(resident_bytes() > 1 << 16);
        assert!(cpu_seconds() > 0.0);
    }
}

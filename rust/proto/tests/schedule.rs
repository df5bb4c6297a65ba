//! The schedule of a map: its rules one by one, and whole runs in virtual time.

#![allow(clippy::unwrap_used)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use pydist_proto::schedule::{Action, Key, Nanos, Range, Rules, Schedule, WorkerId};

const US: Nanos = 1_000;
const MS: Nanos = 1_000_000;
const S: Nanos = 1_000_000_000;

fn range(first: u64, count: u64) -> Range {
    Range { first, count }
}

fn schedule(workers: u32, rules: Rules) -> Schedule {
    let mut schedule = Schedule::new(rules);
    (2..2 + workers).for_each(|id| schedule.join(id, true));
    schedule
}

fn sized(size: u64) -> Rules {
    Rules {
        size: Some(size),
        ..Rules::default()
    }
}

/// Polls until there is nothing to do; every fresh element is there.
fn poll_all(schedule: &mut Schedule, now: Nanos) -> Vec<Action> {
    let mut actions = Vec::new();
    while let Some(action) = schedule.poll(now) {
        if let Action::Pull(key, _, range) = action {
            schedule.filled(key, range.count, false);
        }
        actions.push(action);
    }
    actions
}

#[test]
fn the_first_elements_go_to_all_workers_one_each() {
    let mut schedule = schedule(3, Rules::default());
    let actions = poll_all(&mut schedule, 0);
    let expected: Vec<Action> = (0..3)
        .map(|i| Action::Pull(i + 1, 2 + i as u32, range(i, 1)))
        .collect();
    assert_eq!(actions, expected);
}

#[test]
fn an_empty_input_is_done_at_once() {
    let mut schedule = schedule(2, Rules::default());
    let Some(Action::Pull(key, 2, _)) = schedule.poll(0) else {
        panic!()
    };
    assert!(!schedule.is_done());
    schedule.filled(key, 0, true);
    assert!(schedule.is_done());
    assert_eq!(schedule.poll(0), None);
}

#[test]
fn batches_grow_while_calls_are_short_and_not_when_they_are_long() {
    for (each, size) in [(US, 8), (MS, 4), (3 * MS, 1), (S, 1)] {
        let mut schedule = schedule(1, Rules::default());
        let Some(Action::Pull(key, ..)) = schedule.poll(0) else {
            panic!()
        };
        schedule.filled(key, 1, false);
        schedule.finished(key, 1, each, each).unwrap();
        let Some(Action::Pull(_, _, next)) = schedule.poll(each) else {
            panic!()
        };
        assert_eq!(next, range(1, size), "{each} ns each");
    }
}

#[test]
fn large_elements_keep_batches_small() {
    let mut schedule = schedule(1, Rules::default());
    let Some(Action::Pull(key, ..)) = schedule.poll(0) else {
        panic!()
    };
    schedule.filled(key, 1, false);
    schedule.note_bytes(1, 500_000);
    schedule.finished(key, 1, US, US).unwrap();
    let Some(Action::Pull(_, _, next)) = schedule.poll(US) else {
        panic!()
    };
    assert_eq!(next, range(1, 2));
}

#[test]
fn one_long_call_at_a_time_is_at_a_worker() {
    let mut schedule = schedule(2, sized(1));
    let sent = poll_all(&mut schedule, 0);
    let Action::Pull(key, ..) = sent[0] else { panic!() };
    schedule.finished(key, 1, S, S).unwrap();
    assert_eq!(poll_all(&mut schedule, S).len(), 1);
    assert_eq!(poll_all(&mut schedule, S), []);
}

#[test]
fn many_short_messages_are_under_way_with_a_fixed_size() {
    let mut schedule = schedule(1, sized(1));
    let Action::Pull(key, ..) = poll_all(&mut schedule, 0)[0] else {
        panic!()
    };
    schedule.finished(key, 1, US, US).unwrap();
    assert_eq!(poll_all(&mut schedule, US).len(), 64);
}

#[test]
fn batches_shrink_towards_a_known_end() {
    let total = 40_000;
    let mut schedule = schedule(
        2,
        Rules {
            total: Some(total),
            ..Rules::default()
        },
    );
    let mut sizes = Vec::new();
    let mut now = 0;
    let mut last = Vec::new();
    loop {
        let mut sent = Vec::new();
        while let Some(action) = schedule.poll(now) {
            let Action::Pull(key, _, range) = action else {
                break;
            };
            let count = range.count.min(total - range.first);
            schedule.filled(key, count, count < range.count || range.first + count == total);
            if count > 0 {
                sent.push((key, count));
                sizes.push(count);
            }
        }
        last.extend(sent);
        if last.is_empty() {
            break;
        }
        let (key, count) = last.remove(0);
        now += count * US;
        schedule.finished(key, count, count * US, now);
    }
    assert!(schedule.is_done());
    assert_eq!(sizes.iter().sum::<u64>(), total);
    assert_eq!(*sizes.iter().max().unwrap(), 4000);
    // Half a millisecond of work is still worth a message.
    let tail: Vec<u64> = sizes.iter().rev().copied().skip(1).take(2).collect();
    assert!(tail.iter().all(|n| (500..1500).contains(n)), "{sizes:?}");
}

#[test]
fn look_ahead_is_bounded_where_results_are_not_consumed() {
    let rules = Rules {
        bounded: true,
        ..Rules::default()
    };
    let mut schedule = schedule(2, rules);
    let mut sent = 0;
    let mut now = 0;
    let mut under_way = VecDeque::new();
    for _ in 0..100_000 {
        while let Some(Action::Pull(key, _, range)) = schedule.poll(now) {
            schedule.filled(key, range.count, false);
            under_way.push_back((key, range.count));
            sent += range.count;
        }
        let Some((key, count)) = under_way.pop_front() else {
            break;
        };
        now += count * US;
        schedule.finished(key, count, count * US, now);
    }
    assert!(under_way.is_empty(), "it goes on without being consumed");
    assert!((2_000..100_000).contains(&sent), "{sent}");
    schedule.consumed(sent);
    assert!(matches!(schedule.poll(now), Some(Action::Pull(..))));
}

#[test]
fn asynchronous_elements_are_under_way_in_great_number() {
    let rules = Rules {
        at_once: true,
        total: Some(100),
        ..Rules::default()
    };
    let mut schedule = schedule(2, rules);
    let mut sent = 0;
    while let Some(action) = schedule.poll(0) {
        let Action::Pull(key, _, range) = action else {
            panic!()
        };
        let count = range.count.min(100 - range.first);
        schedule.filled(key, count, range.first + count == 100);
        sent += count;
    }
    assert_eq!(sent, 100);
}

#[test]
fn elements_that_had_not_begun_run_elsewhere_after_a_death() {
    let mut schedule = schedule(2, sized(1));
    let first = poll_all(&mut schedule, 0);
    for action in first {
        let Action::Pull(key, ..) = action else { panic!() };
        schedule.finished(key, 1, MS, MS).unwrap();
    }
    let queued = poll_all(&mut schedule, MS);
    let of_2: Vec<u64> = queued
        .iter()
        .filter_map(|a| match a {
            Action::Pull(_, 2, range) => Some(range.first),
            _ => None,
        })
        .collect();
    assert!(of_2.len() >= 2);
    schedule.exhaust();
    let begun = schedule.leave(2);
    assert_eq!(begun.iter().map(|(_, r)| r.first).collect::<Vec<_>>(), of_2[..1]);
    assert_eq!(schedule.leave(2), []);
    let mut others: Vec<Key> = queued
        .iter()
        .filter_map(|a| match a {
            Action::Pull(key, 3, _) => Some(*key),
            _ => None,
        })
        .collect();
    let mut again = Vec::new();
    while let Some(key) = others.pop() {
        schedule.finished(key, 1, MS, 2 * MS);
        while let Some(Action::Send(key, 3, range)) = schedule.poll(2 * MS) {
            again.push(range.first);
            others.push(key);
        }
    }
    assert_eq!(again, of_2[1..]);
    assert!(schedule.is_done());
}

#[test]
fn everything_may_have_begun_where_elements_run_at_once() {
    let rules = Rules {
        at_once: true,
        ..Rules::default()
    };
    let mut schedule = schedule(1, rules);
    let sent = poll_all(&mut schedule, 0).len();
    assert!(sent > 1);
    assert_eq!(schedule.leave(2).len(), sent);
}

#[test]
fn a_retry_waits_for_its_time_and_takes_another_worker_first() {
    let mut schedule = schedule(2, sized(1));
    for action in poll_all(&mut schedule, 0) {
        let Action::Pull(key, ..) = action else { panic!() };
        schedule.finished(key, 1, S, S);
    }
    schedule.exhaust();
    schedule.retry(0, 3 * S, 2);
    assert_eq!(schedule.poll(2 * S), None);
    assert_eq!(schedule.next_time(2 * S), Some(3 * S));
    assert!(!schedule.is_done());
    let Some(Action::Send(key, 3, again)) = schedule.poll(3 * S) else {
        panic!()
    };
    assert_eq!(again, range(0, 1));
    // The same one, where no other is free.
    schedule.retry(1, 3 * S, 2);
    assert!(matches!(schedule.poll(3 * S), Some(Action::Send(_, 2, _))));
    schedule.finished(key, 1, S, 4 * S);
}

#[test]
fn a_batch_that_could_not_begin_runs_element_by_element() {
    let mut schedule = schedule(1, sized(3));
    let Some(Action::Pull(key, ..)) = schedule.poll(0) else {
        panic!()
    };
    schedule.filled(key, 3, true);
    assert_eq!(schedule.split(key, 0), Some(range(0, 3)));
    for first in 0..3 {
        let Some(Action::Send(key, 2, one)) = schedule.poll(0) else {
            panic!()
        };
        assert_eq!(one, range(first, 1));
        schedule.finished(key, 1, MS, 0);
    }
    assert!(schedule.is_done());
}

#[test]
fn an_idle_worker_takes_over_what_waits_behind_a_long_call() {
    let mut schedule = schedule(2, sized(1));
    for action in poll_all(&mut schedule, 0) {
        let Action::Pull(key, ..) = action else { panic!() };
        schedule.finished(key, 1, 2 * MS, 2 * MS);
    }
    let queued = poll_all(&mut schedule, 2 * MS);
    schedule.exhaust();
    let last_of_2 = queued
        .iter()
        .rev()
        .find_map(|a| match a {
            Action::Pull(key, 2, _) => Some(*key),
            _ => None,
        })
        .unwrap();
    for action in &queued {
        if let Action::Pull(key, 3, _) = action {
            schedule.finished(*key, 1, 2 * MS, 10 * MS);
        }
    }
    assert_eq!(schedule.poll(10 * MS), Some(Action::Recall(last_of_2, 2)));
    // One worker idles: it is given one thing at a time.
    assert_eq!(schedule.poll(10 * MS), None);
    let given = schedule.cancelled(last_of_2, 11 * MS).unwrap();
    assert!(matches!(schedule.poll(11 * MS), Some(Action::Send(_, 3, again)) if again == given));
}

#[test]
fn an_idle_worker_takes_over_the_rest_of_a_running_batch() {
    let mut schedule = schedule(2, sized(100));
    let Some(Action::Pull(key, 2, _)) = schedule.poll(0) else {
        panic!()
    };
    schedule.filled(key, 100, true);
    assert_eq!(schedule.poll(0), None);
    let due = schedule.next_time(0).unwrap();
    assert!(due <= 5 * MS);
    assert_eq!(schedule.poll(due), Some(Action::RecallRest(key, 2)));
    assert_eq!(schedule.poll(due), None);
    assert_eq!(schedule.given_back(key, Some(10), due), Some(range(10, 90)));
    let Some(Action::Send(other, 3, given)) = schedule.poll(due) else {
        panic!()
    };
    assert_eq!(given, range(10, 90));
    assert_eq!(schedule.finished(key, 10, S, S), Some((0, range(10, 0))));
    assert_eq!(schedule.finished(other, 90, S, S), Some((10, range(100, 0))));
    assert!(schedule.is_done());
}

#[test]
fn a_batch_that_could_not_be_given_back_is_not_asked_for_at_once() {
    let mut schedule = schedule(2, sized(100));
    let Some(Action::Pull(first, 2, _)) = schedule.poll(0) else {
        panic!()
    };
    schedule.filled(first, 100, false);
    let Some(Action::Pull(key, 3, _)) = schedule.poll(0) else {
        panic!()
    };
    schedule.filled(key, 100, true);
    // What is left takes as long again, as far as can be told.
    schedule.finished(first, 100, S, S);
    assert_eq!(schedule.poll(S), Some(Action::RecallRest(key, 3)));
    assert_eq!(schedule.given_back(key, None, S), None);
    assert_eq!(schedule.poll(S), None);
    let due = schedule.next_time(S).unwrap();
    assert!(due > S);
    assert_eq!(schedule.poll(due), Some(Action::RecallRest(key, 3)));
}

#[test]
fn a_batch_that_ends_before_the_recall_arrives_has_its_rest_run_again() {
    let mut schedule = schedule(2, sized(100));
    let Some(Action::Pull(key, 2, _)) = schedule.poll(0) else {
        panic!()
    };
    schedule.filled(key, 100, true);
    assert!(matches!(schedule.poll(S), Some(Action::RecallRest(..))));
    assert_eq!(schedule.finished(key, 60, S, S), Some((0, range(60, 40))));
    assert_eq!(schedule.given_back(key, Some(60), S), None);
    assert!(matches!(schedule.poll(S), Some(Action::Send(..))));
}

// --- whole runs ---------------------------------------------------------------------------------------------

/// One way from process to process.
const LATENCY: Nanos = 60 * US;
/// What a message costs the worker.
const PER_MESSAGE: Nanos = 30 * US;
/// Until a worker that runs Python looks at a recall of the rest.
const PYTHON_WAKES: Nanos = MS;

enum Event {
    Arrives(WorkerId, Key, Range),
    ElementEnds(WorkerId),
    RecallArrives(WorkerId, Key),
    RecallRestArrives(WorkerId, Key),
    Finished(Key, u64, Nanos),
    Cancelled(Key),
    GivenBack(Key, Option<u64>),
    Look,
}

#[derive(Default)]
struct SimWorker {
    queue: VecDeque<(Key, Range)>,
    /// The batch that runs, its elements that have begun, and since when it runs.
    running: Option<(Key, Range, u64, Nanos)>,
}

/// A cluster in virtual time.
struct Simulation<'a> {
    times: &'a [Nanos],
    schedule: Schedule,
    workers: BTreeMap<WorkerId, SimWorker>,
    events: BinaryHeap<Reverse<(Nanos, usize)>>,
    what: Vec<Option<Event>>,
    now: Nanos,
    ran: Vec<u32>,
    sized: bool,
}

impl<'a> Simulation<'a> {
    fn new(times: &'a [Nanos], workers: u32, sized: bool, size: Option<u64>) -> Simulation<'a> {
        let total = sized.then_some(times.len() as u64);
        Simulation {
            times,
            schedule: schedule(
                workers,
                Rules {
                    size,
                    total,
                    ..Rules::default()
                },
            ),
            workers: (2..2 + workers).map(|id| (id, SimWorker::default())).collect(),
            events: BinaryHeap::new(),
            what: Vec::new(),
            now: 0,
            ran: vec![0; times.len()],
            sized,
        }
    }

    fn at(&mut self, when: Nanos, event: Event) {
        self.events.push(Reverse((when, self.what.len())));
        self.what.push(Some(event));
    }

    /// Runs to the end and returns when that is.
    fn run(mut self) -> Nanos {
        self.act();
        while !self.schedule.is_done() {
            let Reverse((when, number)) = self.events.pop().unwrap();
            self.now = when;
            let event = self.what[number].take().unwrap();
            self.handle(event);
        }
        assert!(self.ran.iter().all(|n| *n == 1), "every element runs once");
        self.now
    }

    fn act(&mut self) {
        while let Some(action) = self.schedule.poll(self.now) {
            match action {
                Action::Pull(key, worker, range) => {
                    let total = self.times.len() as u64;
                    let count = range.count.min(total - range.first);
                    let end = count < range.count || (self.sized && range.first + count == total);
                    self.schedule.filled(key, count, end);
                    if count > 0 {
                        let range = Range { count, ..range };
                        self.at(self.now + LATENCY, Event::Arrives(worker, key, range));
                    }
                }
                Action::Send(key, worker, range) => {
                    self.at(self.now + LATENCY, Event::Arrives(worker, key, range));
                }
                Action::Recall(key, worker) => {
                    self.at(self.now + LATENCY, Event::RecallArrives(worker, key));
                }
                Action::RecallRest(key, worker) => {
                    self.at(
                        self.now + LATENCY + PYTHON_WAKES,
                        Event::RecallRestArrives(worker, key),
                    );
                }
            }
        }
        if let Some(when) = self.schedule.next_time(self.now) {
            assert!(when > self.now, "what is due has been done");
            self.at(when, Event::Look);
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrives(worker, key, range) => {
                self.workers
                    .get_mut(&worker)
                    .unwrap()
                    .queue
                    .push_back((key, range));
                self.start(worker);
            }
            Event::ElementEnds(worker) => self.element_ends(worker),
            Event::RecallArrives(worker, key) => {
                let queue = &mut self.workers.get_mut(&worker).unwrap().queue;
                let before = queue.len();
                queue.retain(|(k, _)| *k != key);
                if queue.len() < before {
                    self.at(self.now + LATENCY, Event::Cancelled(key));
                }
            }
            Event::RecallRestArrives(worker, key) => {
                let running = &mut self.workers.get_mut(&worker).unwrap().running;
                let kept = match running {
                    Some((k, range, begun, _)) if *k == key => {
                        range.count = *begun;
                        Some(*begun)
                    }
                    _ => None,
                };
                self.at(self.now + LATENCY, Event::GivenBack(key, kept));
            }
            Event::Finished(key, done, took) => {
                self.schedule.finished(key, done, took, self.now);
                self.act();
            }
            Event::Cancelled(key) => {
                self.schedule.cancelled(key, self.now);
                self.act();
            }
            Event::GivenBack(key, kept) => {
                self.schedule.given_back(key, kept, self.now);
                self.act();
            }
            Event::Look => self.act(),
        }
    }

    fn start(&mut self, id: WorkerId) {
        let worker = self.workers.get_mut(&id).unwrap();
        if worker.running.is_some() {
            return;
        }
        let Some((key, range)) = worker.queue.pop_front() else {
            return;
        };
        let begin = self.now + PER_MESSAGE;
        worker.running = Some((key, range, 1, begin));
        self.run_element(id, range.first, begin);
    }

    fn run_element(&mut self, id: WorkerId, element: u64, begin: Nanos) {
        self.ran[element as usize] += 1;
        self.at(begin + self.times[element as usize], Event::ElementEnds(id));
    }

    fn element_ends(&mut self, id: WorkerId) {
        let now = self.now;
        let running = &mut self.workers.get_mut(&id).unwrap().running;
        let (key, range, begun, since) = running.as_mut().unwrap();
        if *begun < range.count {
            let element = range.first + *begun;
            *begun += 1;
            self.run_element(id, element, now);
        } else {
            let finished = Event::Finished(*key, range.count, now - *since);
            *running = None;
            self.at(now + LATENCY, finished);
            self.start(id);
        }
    }
}

/// When the last of these elements ends where each goes to the first worker that is free, at no cost.
fn ideal(times: &[Nanos], workers: u32) -> Nanos {
    let mut free: BinaryHeap<Reverse<Nanos>> = (0..workers).map(|_| Reverse(0)).collect();
    let mut end = 0;
    for time in times {
        let Reverse(begin) = free.pop().unwrap();
        end = end.max(begin + time);
        free.push(Reverse(begin + time));
    }
    end
}

/// A small generator of numbers below `n`.
fn random(state: &mut u64, n: u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
    (*state >> 33) % n
}

#[test]
fn calls_of_a_millisecond_take_98_per_cent_of_the_ideal_at_least() {
    for workers in [2, 4, 16] {
        for sized in [true, false] {
            let times = vec![MS; 4000];
            let took = Simulation::new(&times, workers, sized, None).run();
            let ideal = ideal(&times, workers);
            assert!(
                took * 98 <= ideal * 100,
                "{workers} workers, total known {sized}: {took} beside {ideal} ns"
            );
        }
    }
}

#[test]
fn long_and_short_calls_cost_little_beside_the_ideal() {
    for (each, n, percent) in [
        (US, 200_000, 80),
        (100 * US, 10_000, 95),
        (20 * MS, 400, 98),
        (S, 20, 99),
    ] {
        let times = vec![each; n];
        let took = Simulation::new(&times, 4, true, None).run();
        let ideal = ideal(&times, 4);
        assert!(
            ideal * 100 >= took * percent,
            "{each} ns each: {took} beside {ideal} ns"
        );
    }
}

#[test]
fn uneven_work_ends_within_a_tenth_of_the_ideal() {
    for short in [100 * US, MS, 10 * MS] {
        for seed in 0..60 {
            let workers = [2, 4, 8][seed as usize % 3];
            let sized = seed % 2 == 0;
            let mut state = seed * 7919 + 1;
            let mut times = vec![short; 1000];
            for _ in 0..10 {
                times[random(&mut state, 1000) as usize] = 1000 * short;
            }
            let took = Simulation::new(&times, workers, sized, None).run();
            let ideal = ideal(&times, workers);
            assert!(
                took * 10 <= ideal * 11,
                "{short} ns, seed {seed}, {workers} workers: {took} beside {ideal} ns"
            );
        }
    }
}

#[test]
fn uneven_work_in_large_batches_is_taken_over() {
    for seed in 0..20 {
        let mut state = seed + 1;
        let mut times = vec![MS; 1000];
        for _ in 0..10 {
            times[random(&mut state, 1000) as usize] = S;
        }
        let took = Simulation::new(&times, 4, true, Some(100)).run();
        let ideal = ideal(&times, 4);
        assert!(took * 100 <= ideal * 135, "seed {seed}: {took} beside {ideal} ns");
    }
}

#[test]
fn every_element_runs_once_whatever_they_take() {
    for seed in 0..200 {
        let mut state = seed + 1;
        let n = 1 + random(&mut state, 400) as usize;
        let times: Vec<Nanos> = (0..n)
            .map(|_| [US, 50 * US, MS, 30 * MS][random(&mut state, 4) as usize])
            .collect();
        let workers = 1 + random(&mut state, 5) as u32;
        let size = [None, None, Some(1), Some(7)][random(&mut state, 4) as usize];
        Simulation::new(&times, workers, seed % 2 == 0, size).run();
    }
}

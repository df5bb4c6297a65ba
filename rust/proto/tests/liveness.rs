//! Heartbeats in virtual time (F13 to F19): when silence is noticed, and when it means nothing.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use pydist_proto::liveness::{HEAD_PATIENCE, Liveness, Round, Seen, Settings, Watched};

const H: Duration = Duration::from_millis(1500);
const INTERVAL: Duration = Duration::from_millis(250);
const STEP: Duration = Duration::from_millis(1);

fn settings() -> Settings {
    Settings {
        timeout: Some(H),
        interval: INTERVAL,
    }
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One process with one connection, to peer 7.
struct Node {
    liveness: Liveness,
    heard: Duration,
    sent: u64,
    beats: Vec<Duration>,
    silent: Option<Duration>,
}

impl Node {
    fn new(watched: Watched, wants: Option<Duration>) -> Node {
        let mut liveness = Liveness::new(settings());
        liveness.open(7, watched, Duration::ZERO);
        liveness.told(7, wants, true, Duration::ZERO);
        Node {
            liveness,
            heard: Duration::ZERO,
            sent: 0,
            beats: Vec::new(),
            silent: None,
        }
    }

    fn round(&mut self, now: Duration) -> Round {
        let seen = [Seen {
            peer: 7,
            heard: self.heard,
            sent: self.sent,
        }];
        let round = self.liveness.round(now, &seen);
        for _ in &round.beat {
            self.beats.push(now);
            self.sent += 48;
        }
        if !round.silent.is_empty() && self.silent.is_none() {
            self.silent = Some(now);
        }
        round
    }

    /// Does what is due; true where it sent a heartbeat.
    fn run(&mut self, now: Duration) -> bool {
        let is_due = self.liveness.due().is_some_and(|due| now >= due);
        is_due && !self.round(now).beat.is_empty()
    }
}

/// F13: a peer that is silent from some moment on is given up in [H, H + interval] after that, not before.
#[test]
fn silence_is_noticed_in_the_window() {
    for stop in (400..=800).step_by(7) {
        let (mut judge, mut peer) = (
            Node::new(Watched::Peer, None),
            Node::new(Watched::No, Some(INTERVAL)),
        );
        let mut now = Duration::ZERO;
        while judge.silent.is_none() {
            now += STEP;
            if now < ms(stop) && peer.run(now) {
                judge.heard = now;
            }
            judge.run(now);
            assert!(now < ms(stop) + H + INTERVAL * 2, "never given up");
        }
        let after = judge.silent.unwrap() - ms(stop);
        assert!(after >= H && after <= H + INTERVAL + STEP, "after {after:?}");
    }
}

/// One that has nothing else to say sends a heartbeat every interval, and no more.
#[test]
fn one_that_idles_beats_once_an_interval() {
    let mut node = Node::new(Watched::No, Some(INTERVAL));
    for now in 1..=10_000 {
        node.run(ms(now));
    }
    let gaps: Vec<Duration> = node.beats.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(gaps.iter().all(|gap| *gap == INTERVAL), "{gaps:?}");
    assert_eq!(node.beats.len(), 10_000 / 250);
}

/// One that sends something all the time never adds a heartbeat.
#[test]
fn one_that_talks_does_not_beat() {
    let mut node = Node::new(Watched::No, Some(INTERVAL));
    for now in 1..=10_000 {
        if now % 100 == 0 {
            node.sent += 1;
        }
        node.run(ms(now));
    }
    assert_eq!(node.beats, []);
}

/// A process that nobody listens to, and that watches nobody, has no rounds at all.
#[test]
fn one_that_nobody_listens_to_has_no_rounds() {
    let node = Node::new(Watched::No, None);
    assert_eq!(node.liveness.due(), None);
    let mut off = Liveness::new(Settings {
        timeout: None,
        interval: INTERVAL,
    });
    off.open(7, Watched::Peer, Duration::ZERO);
    assert_eq!(off.due(), None);
    assert!(!off.watches(7));
}

/// F16: a worker outlasts the silence of a stopped process 1 for four times as long, and no longer.
#[test]
fn f16_the_head_may_be_silent_for_longer() {
    let mut worker = Node::new(Watched::Head, None);
    let limit = H * HEAD_PATIENCE;
    let mut now = Duration::ZERO;
    while worker.silent.is_none() {
        now += STEP;
        worker.run(now);
        assert!(now <= limit + INTERVAL + STEP);
    }
    assert!(now >= limit);
}

/// F17: a process that was frozen itself gives the others time to speak again, however long it was away.
#[test]
fn f17_one_that_was_frozen_judges_nobody_at_once() {
    for frozen in [1, 2, 10, 1000] {
        let mut node = Node::new(Watched::Peer, None);
        let mut now = Duration::ZERO;
        while now < ms(600) {
            now += STEP;
            node.run(now);
        }
        now += H * frozen;
        node.run(now);
        assert_eq!(node.silent, None, "at its first round after {frozen} H");
        let thawed = now;
        while now < thawed + INTERVAL * 2 - STEP {
            now += STEP;
            node.run(now);
        }
        assert_eq!(node.silent, None, "while the others wake up after {frozen} H");
        while node.silent.is_none() {
            now += STEP;
            node.run(now);
            assert!(
                now < thawed + H + INTERVAL * 2,
                "a dead peer is given up after all"
            );
        }
        // Of its time it has used up 600 ms before, and up to one round's time at the beginning.
        let left = H + INTERVAL - ms(600) - INTERVAL / 2;
        assert!(
            now >= thawed + left,
            "the time that it was away counted: {:?}",
            now - thawed
        );
    }
}

/// What a peer says passes through Python: its silence means nothing (F15).
#[test]
fn f15_the_silence_of_a_pump_means_nothing() {
    let mut node = Node::new(Watched::Peer, None);
    node.liveness.told(7, Some(INTERVAL), false, Duration::ZERO);
    for now in 1..=60_000 {
        node.run(ms(now));
    }
    assert_eq!(node.silent, None);
}

/// Other settings count from now on; nobody is given up by the change itself.
#[test]
fn a_shorter_timeout_counts_from_its_setting() {
    let mut node = Node::new(Watched::Peer, None);
    for now in 1..=1400 {
        node.run(ms(now));
    }
    let shorter = Settings {
        timeout: Some(ms(300)),
        interval: ms(50),
    };
    node.liveness.set(shorter, ms(1400));
    let mut now = ms(1400);
    while node.silent.is_none() {
        now += STEP;
        node.run(now);
    }
    assert!(now >= ms(1700) && now <= ms(1751), "{now:?}");
}

/// One of two connections is given up, the other one stays (F19).
#[test]
fn f19_each_connection_is_judged_by_itself() {
    let mut liveness = Liveness::new(settings());
    liveness.open(1, Watched::Peer, Duration::ZERO);
    liveness.open(2, Watched::Peer, Duration::ZERO);
    let mut given_up = Vec::new();
    for now in (1..5000).map(ms) {
        if liveness.due().is_some_and(|due| now >= due) {
            let seen = |peer, heard| Seen { peer, heard, sent: 0 };
            let round = liveness.round(now, &[seen(1, now), seen(2, ms(1))]);
            round.silent.iter().for_each(|peer| liveness.close(*peer));
            given_up.extend(round.silent);
        }
    }
    assert_eq!(given_up, [2]);
}

/// What happens to two processes that watch each other.
#[derive(Clone, Debug)]
enum Event {
    /// Nothing for so many milliseconds.
    Pass(u64),
    /// The first or the second does not run for so long: stopped, or starved by others.
    Stall(bool, u64),
    /// Neither runs for so long, and the clock goes on: a machine that was frozen.
    Freeze(u64),
    /// From now on messages need so long.
    Delay(u64),
    /// One sends something else than a heartbeat.
    Talk(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1u64..2000).prop_map(Event::Pass),
        // Below H less what a message needs: no fault.
        2 => (any::<bool>(), 1u64..1200).prop_map(|(who, n)| Event::Stall(who, n)),
        1 => (1u64..100_000).prop_map(Event::Freeze),
        1 => (0u64..250).prop_map(Event::Delay),
        2 => any::<bool>().prop_map(Event::Talk),
    ]
}

/// Two processes, and what is on its way between them.
struct Pair {
    nodes: [Node; 2],
    /// For each: when messages to it arrive.
    coming: [Vec<Duration>; 2],
    delay: Duration,
    now: Duration,
}

impl Pair {
    fn new() -> Pair {
        let node = || Node::new(Watched::Peer, Some(INTERVAL));
        Pair {
            nodes: [node(), node()],
            coming: [Vec::new(), Vec::new()],
            delay: ms(1),
            now: Duration::ZERO,
        }
    }

    /// Lets time pass in which those that `run` do what is due; bytes wait in the socket of the others.
    fn pass(&mut self, time: Duration, run: [bool; 2]) {
        let until = self.now + time;
        while self.now < until {
            self.now += STEP;
            for (who, runs) in run.into_iter().enumerate() {
                if runs {
                    self.read(who);
                    if self.nodes[who].run(self.now) {
                        self.send(who);
                    }
                }
            }
        }
    }

    fn read(&mut self, who: usize) {
        let now = self.now;
        let before = self.coming[who].len();
        self.coming[who].retain(|at| *at > now);
        if self.coming[who].len() < before {
            self.nodes[who].heard = now;
        }
    }

    fn send(&mut self, who: usize) {
        self.coming[1 - who].push(self.now + self.delay);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(
        std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(200)
    ))]

    /// F13, F16, F17: delays, stalls below H and frozen machines part nobody; a death does, in the window.
    #[test]
    fn only_death_parts(events in vec(event(), 1..40), victim in 0usize..2) {
        let mut pair = Pair::new();
        for event in events {
            match event {
                Event::Pass(n) => pair.pass(ms(n), [true, true]),
                Event::Stall(who, n) => pair.pass(ms(n), [!who, who]),
                Event::Freeze(n) => pair.now += ms(n),
                Event::Delay(n) => pair.delay = ms(n),
                Event::Talk(who) => {
                    pair.nodes[usize::from(who)].sent += 1;
                    pair.send(usize::from(who));
                }
            }
            // What one could not say while it was stalled has to come before the next stall.
            pair.pass(INTERVAL * 2, [true, true]);
            prop_assert_eq!(pair.nodes[0].silent.or(pair.nodes[1].silent), None);
        }
        let death = pair.now;
        let mut run = [true, true];
        run[victim] = false;
        pair.pass(H + INTERVAL + pair.delay + STEP, run);
        let noticed = pair.nodes[1 - victim].silent;
        prop_assert!(noticed.is_some_and(|at| at >= death + H), "{noticed:?} for {death:?}");
    }
}

//! Heartbeats: when a peer that is silent is to hear from this process, and when one is lost that was not heard.
//!
//! The time is that since some start, and the owner says it: `round` is to be called when it is `due`. A peer is
//! lost once it has been silent for its limit and one interval more, which is the time that its last word may have
//! been before the fault. Time in which this process itself did not run counts against nobody.

use std::collections::BTreeMap;
use std::time::Duration;

/// How long a peer may be silent, and how often it is to be heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// None: nobody is ever lost for being silent.
    pub timeout: Option<Duration>,
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            timeout: Some(Duration::from_secs(30)),
            interval: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// How long a peer may be silent.
    pub fn limit(&self, watched: Watched) -> Option<Duration> {
        match watched {
            Watched::No => None,
            Watched::Peer => self.timeout,
            Watched::Head => self.timeout.map(|timeout| timeout * HEAD_PATIENCE),
        }
    }
}

/// A worker outlasts so many times the silence of process 1, which may have been stopped for a while.
pub const HEAD_PATIENCE: u32 = 4;

/// Whether a peer is lost once it is silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watched {
    No,
    Peer,
    /// It is process 1.
    Head,
}

/// What is seen of one connection at a round.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub peer: u64,
    /// When something came last.
    pub heard: Duration,
    /// A number that changes when something is sent.
    pub sent: u64,
}

/// What follows from a round.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// The peers that are to hear from this process now.
    pub beat: Vec<u64>,
    /// The peers that were silent for too long; they are judged again until they are closed.
    pub silent: Vec<u64>,
}

#[derive(Debug)]
struct Peer {
    watched: Watched,
    heard: Duration,
    /// Time since then that does not count.
    pardoned: Duration,
    sent: u64,
    /// Nothing was sent since then, or since later.
    quiet_since: Duration,
    /// How often it wants to hear something.
    wants: Option<Duration>,
}

/// The connections of one process.
#[derive(Debug)]
pub struct Liveness {
    settings: Settings,
    peers: BTreeMap<u64, Peer>,
    last_round: Duration,
    due: Option<Duration>,
    /// Nobody is lost before.
    truce: Duration,
}

impl Liveness {
    pub fn new(settings: Settings) -> Liveness {
        Liveness {
            settings,
            peers: BTreeMap::new(),
            last_round: Duration::ZERO,
            due: None,
            truce: Duration::ZERO,
        }
    }

    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// Changes the settings; what was silent so far may be so for a whole limit more.
    pub fn set(&mut self, settings: Settings, now: Duration) {
        self.settings = settings;
        for peer in self.peers.values_mut() {
            peer.heard = peer.heard.max(now);
        }
        self.schedule(now);
    }

    /// A connection is open.
    pub fn open(&mut self, peer: u64, watched: Watched, now: Duration) {
        let known = Peer {
            watched,
            heard: now,
            pardoned: Duration::ZERO,
            sent: 0,
            quiet_since: now,
            wants: None,
        };
        self.peers.insert(peer, known);
        self.schedule(now);
    }

    pub fn close(&mut self, peer: u64) {
        self.peers.remove(&peer);
    }

    /// A peer says how often it wants to hear something, and whether its silence means anything.
    pub fn told(&mut self, peer: u64, wants: Option<Duration>, means_anything: bool, now: Duration) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.wants = wants;
            if !means_anything {
                peer.watched = Watched::No;
            }
            self.schedule(now);
        }
    }

    /// Whether a peer is lost once it is silent.
    pub fn watches(&self, peer: u64) -> bool {
        self.settings.timeout.is_some() && self.peers.get(&peer).is_some_and(|p| p.watched != Watched::No)
    }

    /// When the next round is to be.
    pub fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Looks at all connections.
    pub fn round(&mut self, now: Duration, seen: &[Seen]) -> Round {
        let period = self.period();
        let late = self.due.map_or(Duration::ZERO, |due| now.saturating_sub(due));
        let was_away = period.is_some_and(|period| late > period);
        if was_away {
            // The others may have been away as well: each has time for its next word.
            self.truce = now + self.settings.interval * 2;
        }
        let next = now + period.unwrap_or_default();
        let mut round = Round::default();
        for seen in seen {
            let Some(peer) = self.peers.get_mut(&seen.peer) else {
                continue;
            };
            if seen.heard > peer.heard {
                peer.heard = seen.heard;
                peer.pardoned = Duration::ZERO;
            }
            if was_away && self.due.is_some_and(|due| peer.heard <= due) {
                peer.pardoned += late;
            }
            if seen.sent != peer.sent {
                peer.sent = seen.sent;
                peer.quiet_since = self.last_round;
            }
            if peer.wants.is_some_and(|wants| next > peer.quiet_since + wants) {
                round.beat.push(seen.peer);
            }
            if expiry(&self.settings, self.truce, peer).is_some_and(|at| now >= at) {
                round.silent.push(seen.peer);
            }
        }
        self.last_round = now;
        self.due = None;
        self.schedule(now);
        round
    }

    /// Has the next round be in time for all that there is.
    fn schedule(&mut self, now: Duration) {
        let Some(period) = self.period() else {
            self.due = None;
            return;
        };
        let regular = now + period;
        let expiries = self
            .peers
            .values()
            .filter_map(|peer| expiry(&self.settings, self.truce, peer))
            .filter(|at| *at > now);
        let next = expiries.min().map_or(regular, |at| at.min(regular));
        self.due = Some(self.due.map_or(next, |due| due.min(next)));
    }

    /// The time between two rounds: half of the shortest interval, so that what was sent just after one is not
    /// followed by a longer silence than that interval.
    fn period(&self) -> Option<Duration> {
        let judging =
            self.settings.timeout.is_some() && self.peers.values().any(|peer| peer.watched != Watched::No);
        let own = judging.then_some(self.settings.interval);
        let wanted = self.peers.values().filter_map(|peer| peer.wants);
        wanted.chain(own).min().map(|interval| interval / 2)
    }
}

/// When a peer is lost unless something comes from it before.
fn expiry(settings: &Settings, truce: Duration, peer: &Peer) -> Option<Duration> {
    let limit = settings.limit(peer.watched)?;
    Some((peer.heard + peer.pardoned + limit + settings.interval).max(truce))
}

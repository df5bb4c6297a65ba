//! Heartbeats on the connections of a process, and what follows from silence.
//!
//! The rules are in [`pydist_proto::liveness`]; here are the clock, the sockets and the deaths. The ends of a Unix
//! socket see when the other one dies, but not when it is stopped: process 1 watches its local workers, which need not
//! watch it, nor each other. Over a network both ends watch.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pydist_proto::ids::{HEAD, ProcId};
use pydist_proto::liveness::{Seen, Settings, Watched};
use pydist_proto::message::Heartbeat;
use rustix::io::Errno;

use crate::link::Link;
use crate::node::Node;
use crate::sync::atomic::Ordering;

/// The system itself ends a connection over TCP whose other end is silent for this long, where heartbeats are off.
const WITHOUT_HEARTBEATS: Duration = Duration::from_secs(120);

/// Every reason for the loss of a silent peer begins with this, also where the system has found it out.
pub(crate) const SILENCE: &str = "no heartbeat";

/// A worker waits so long for process 1 to tell that the silent peer is gone for all.
pub(crate) const WORD_OF_HEAD: Duration = Duration::from_millis(400);

impl Node {
    /// How long a peer may be silent, and how often it is to be heard.
    pub fn heartbeat(&self) -> Settings {
        self.liveness.lock().settings()
    }

    /// Changes how long a peer may be silent, and tells the peers.
    pub fn set_heartbeat(&self, settings: Settings) {
        let mut liveness = self.liveness.lock();
        liveness.set(settings, self.age());
        drop(liveness);
        let links: Vec<Arc<Link>> = self.connections.read().values().cloned().collect();
        for link in links.iter().filter(|link| link.is_open()) {
            self.limit_silence(link);
            self.introduce(link);
        }
        self.arm_liveness();
    }

    /// The time since the process started, which is that of the state machine.
    fn age(&self) -> Duration {
        self.age_at(crate::sync::now())
    }

    fn age_at(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.born)
    }

    /// Something has come on a connection.
    pub(crate) fn heard(&self, link: &Link) {
        let age = u64::try_from(self.age().as_micros()).unwrap_or(u64::MAX);
        link.heard.store(age, Ordering::Relaxed);
    }

    /// A connection is open: its peer is watched from now on, and told what it is to do.
    pub(crate) fn watch_life(&self, link: &Arc<Link>) {
        let watched = self.watched(link);
        self.heard(link);
        self.liveness.lock().open(link.token, watched, self.age());
        self.limit_silence(link);
        self.introduce(link);
        self.arm_liveness();
    }

    /// A connection has ended.
    pub(crate) fn unwatch_life(&self, link: &Link) {
        self.liveness.lock().close(link.token);
    }

    fn watched(&self, link: &Link) -> Watched {
        match (self.me(), link.peer()) {
            _ if link.is_pumped() => Watched::No,
            (HEAD, _) => Watched::Peer,
            _ if link.is_local() => Watched::No,
            (_, HEAD) => Watched::Head,
            _ => Watched::Peer,
        }
    }

    /// Has the system end a connection over TCP whose other end does not acknowledge what it is sent.
    fn limit_silence(&self, link: &Link) {
        let limit = self.heartbeat().limit(match link.peer() {
            HEAD => Watched::Head,
            _ => Watched::Peer,
        });
        crate::listener::limit_silence(link.fd(), limit.unwrap_or(WITHOUT_HEARTBEATS));
    }

    /// Tells a peer what it is to do, where it would not do so by itself.
    fn introduce(&self, link: &Arc<Link>) {
        if self.me() == HEAD || !link.is_local() {
            self.beat(link);
        }
    }

    fn beat(&self, link: &Arc<Link>) {
        let (settings, listens) = {
            let liveness = self.liveness.lock();
            (liveness.settings(), liveness.watches(link.token))
        };
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let timeout = settings.timeout.map_or(0, millis);
        link.beat(Heartbeat {
            interval_ms: millis(settings.interval),
            timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
            listens,
            pumped: link.is_pumped(),
        });
    }

    /// A heartbeat has come. Workers take over the settings of process 1.
    pub(crate) fn handle_heartbeat(&self, link: &Link, beat: Heartbeat) {
        let interval = Duration::from_millis(beat.interval_ms.max(1));
        let timeout = Some(Duration::from_millis(beat.timeout_ms.into())).filter(|t| !t.is_zero());
        let settings = Settings { timeout, interval };
        let wants = beat.listens.then_some(interval);
        let mut liveness = self.liveness.lock();
        liveness.told(link.token, wants, !beat.pumped, self.age());
        let changed = link.peer() == HEAD && liveness.settings() != settings;
        drop(liveness);
        if changed {
            self.set_heartbeat(settings);
        } else {
            self.arm_liveness();
        }
    }

    fn arm_liveness(&self) {
        if let Some(due) = self.liveness.lock().due() {
            self.driver.arm(self.born + due);
        }
    }

    /// Sends heartbeats, and ends the connections that were silent for too long.
    pub(crate) fn look_for_silence(&self, now: Instant) {
        let age = self.age_at(now);
        match self.liveness.lock().due() {
            None => return,
            Some(due) if due > age => return self.driver.arm(self.born + due),
            Some(_) => {}
        }
        let links: Vec<Arc<Link>> = self.connections.read().values().cloned().collect();
        let seen: Vec<Seen> = links
            .iter()
            .filter(|link| link.is_open())
            .map(|link| Seen {
                peer: link.token,
                heard: Duration::from_micros(link.heard.load(Ordering::Relaxed)),
                sent: link.bytes_sent.load(Ordering::Relaxed),
            })
            .collect();
        let round = self.liveness.lock().round(age, &seen);
        let of = |token: &u64| links.iter().find(|link| link.token == *token);
        for link in round.beat.iter().filter_map(of) {
            self.beat(link);
        }
        for link in round.silent.iter().filter_map(of) {
            self.silent(link);
        }
        self.arm_liveness();
    }

    /// Ends a connection, unless what has come and was not read yet shows that its peer lives.
    fn silent(&self, link: &Arc<Link>) {
        if link.paused.load(Ordering::SeqCst) {
            // It is this process that does not listen.
            return self.heard(link);
        }
        let before = link.heard.load(Ordering::Relaxed);
        self.read_link(link, &|| false);
        if link.heard.load(Ordering::Relaxed) != before || link.is_closed() {
            return;
        }
        let timeout = self.heartbeat().limit(self.watched(link)).unwrap_or_default();
        let reason = format!("{SILENCE} for {} s", timeout.as_secs_f64());
        self.end_link(link, &reason, true);
    }

    /// Why a connection broke, in words.
    pub(crate) fn broken(error: Errno) -> String {
        match error {
            // The system has found out what heartbeats were about to.
            Errno::TIMEDOUT | Errno::HOSTUNREACH | Errno::NETUNREACH => format!("{SILENCE}: {error}"),
            _ => error.to_string(),
        }
    }

    /// Whether a worker whose connection has ended may still be there, to be put an end to by its manager.
    pub(crate) fn is_to_be_killed(&self, pid: ProcId, silent: bool) -> bool {
        silent && self.me() == HEAD && pid != HEAD
    }
}

impl Link {
    /// Says that this process lives, unless bytes that say so are under way already.
    pub(crate) fn beat(&self, beat: Heartbeat) {
        self.write_if_idle(&pydist_proto::frame::encode_heartbeat(beat));
    }

    /// A pump of Python stands between this socket and the peer: it has the other end of a pair without names. A
    /// program that forwards, such as ssh, listens at a path.
    pub(crate) fn is_pumped(&self) -> bool {
        !self.is_local() && crate::link::is_unix(self.fd()) && !has_named_peer(self.fd())
    }
}

fn has_named_peer(socket: BorrowedFd<'_>) -> bool {
    let Ok(Some(peer)) = rustix::net::getpeername(socket) else {
        return false;
    };
    rustix::net::SocketAddrUnix::try_from(peer)
        .is_ok_and(|peer| peer.path().is_some() || peer.abstract_name().is_some())
}

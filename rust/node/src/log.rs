//! What the core tells of itself: the targets of its events, and lines that come once a second at most.
//!
//! Events tell who does what with whom, never the cookie, proofs, or what is in a message. Who takes them up may hand an item
//! to the executors: none is emitted with the lock of the inbox or of the driver held.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use pydist_proto::message::Message;

use crate::link::Link;
use crate::node::Node;

pub(crate) const HANDSHAKE: &str = "pydist.core.handshake";
pub(crate) const CONNECTIONS: &str = "pydist.core.connections";
pub(crate) const MEMBERS: &str = "pydist.core.members";
pub(crate) const CALLS: &str = "pydist.core.calls";
pub(crate) const MESSAGES: &str = "pydist.core.messages";

/// Lines of one kind are this far apart.
const EVERY: Duration = Duration::from_secs(1);

/// Lets one line through a second, and counts what it leaves out.
#[derive(Default)]
pub(crate) struct Limit {
    last: Option<Instant>,
    left_out: u64,
}

impl Limit {
    /// How many lines were left out before this one, which may go out; nothing where it is left out, too.
    fn pass(&mut self, now: Instant) -> Option<u64> {
        if self.is_early(now) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }

    fn is_early(&self, now: Instant) -> bool {
        self.last.is_some_and(|last| now.duration_since(last) < EVERY)
    }
}

/// Connections that a listener has accepted and that were not let in.
#[derive(Default)]
pub(crate) struct Refusals {
    limit: Limit,
    pub(crate) total: u64,
    /// Who was refused last, and why, where no line has told it.
    untold: Option<(String, String)>,
}

impl Node {
    /// Warns, at most once a second; what is left out is counted.
    pub(crate) fn note(&self, text: &str) {
        let passed = self.noted.lock().pass(crate::sync::now());
        match passed {
            None => {}
            Some(0) => tracing::warn!(target: CONNECTIONS, "{text}"),
            Some(n) => tracing::warn!(target: CONNECTIONS, "{text} ({n} such lines left out)"),
        }
    }

    /// Tells of a connection that was not let in: at once, or with others within a second.
    pub(crate) fn note_refusal(&self, link: &Link, reason: &str) {
        let peer = origin(link);
        let now = crate::sync::now();
        let mut refusals = self.refusals.lock();
        refusals.total += 1;
        let passed = refusals.limit.pass(now);
        refusals.untold = passed.is_none().then(|| (peer.clone(), reason.to_owned()));
        let at = refusals.limit.last.map_or(now, |last| last + EVERY);
        drop(refusals);
        match passed {
            None => self.driver.arm(at),
            Some(0) => tracing::info!(target: HANDSHAKE, "refused a connection from {peer}: {reason}"),
            Some(n) => tracing::info!(
                target: HANDSHAKE,
                "refused {} more connections, the last from {peer}: {reason}",
                n + 1
            ),
        }
    }

    /// Tells of the connections that were refused within a second of the last line.
    pub(crate) fn tell_refusals(&self, now: Instant) {
        let mut refusals = self.refusals.lock();
        if refusals.untold.is_none() {
            return;
        }
        if refusals.limit.is_early(now) {
            let at = refusals.limit.last.map_or(now, |last| last + EVERY);
            drop(refusals);
            return self.driver.arm(at);
        }
        let count = refusals.limit.pass(now).unwrap_or(0);
        let untold = refusals.untold.take();
        drop(refusals);
        if let Some((peer, reason)) = untold {
            tracing::info!(target: HANDSHAKE, "refused {count} more connections, the last from {peer}: {reason}");
        }
    }
}

/// Who is at the other end of a connection: its address, or the process behind a Unix socket.
fn origin(link: &Link) -> String {
    if let Some(address) = link.origin.get() {
        return address.to_string();
    }
    let mut peer = libc::ucred {
        pid: 0,
        uid: 0,
        gid: 0,
    };
    let mut size = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is open as long as the link lives; the kernel writes at most `size` bytes to `peer`.
    let result = unsafe {
        libc::getsockopt(
            link.fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut size,
        )
    };
    if result == 0 && link.listener != 0 {
        format!("process {} of user {} at a Unix socket", peer.pid, peer.uid)
    } else {
        "a transport of a cluster manager".to_owned()
    }
}

/// The kind of a message, without anything of what is in it.
pub(crate) fn name_of(message: &Message) -> &'static str {
    match message {
        Message::Call { .. } => "Call",
        Message::Result { .. } => "Result",
        Message::Done { .. } => "Done",
        Message::RefOp { .. } => "RefOp",
        Message::Withdraw { .. } => "Withdraw",
        Message::Confirm { .. } => "Confirm",
        Message::Refs { .. } => "Refs",
        Message::Unmapped { .. } => "Unmapped",
        Message::Received { .. } => "Received",
        Message::Observe { .. } => "Observe",
        Message::LookUp { .. } => "LookUp",
        Message::Interrupt => "Interrupt",
        Message::Exit => "Exit",
        Message::Join { .. } => "Join",
        Message::Leave { .. } => "Leave",
        Message::Ready { .. } => "Ready",
        Message::Ping { .. } => "Ping",
        Message::Pong { .. } => "Pong",
        Message::Stacks { .. } => "Stacks",
        Message::Ring { .. } => "Ring",
        Message::Heartbeat(_) => "Heartbeat",
    }
}

//! What happens when a socket is readable: handshakes, messages, and the end of a connection.

use crate::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Duration;

use pydist_proto::codec::Decoder;
use pydist_proto::ids::{HEAD, ProcId};
use pydist_proto::machine::{Machine, Output};
use pydist_proto::message::{Member, Message, Status};
use tracing::{debug, trace};

use crate::death::{Dying, STATUS_WAIT};
use crate::inbox::Item;
use crate::link::{Came, Link, Reading};
use crate::liveness::{SILENCE, WORD_OF_HEAD};
use crate::log::{CONNECTIONS, HANDSHAKE, MEMBERS, MESSAGES, name_of};
use crate::node::{Arrival, Node, TELL_AFTER};
use crate::poll::{Event, TIMER, WAKER};
use crate::shared::Received;
use crate::tls::Failure;
use crate::trace::Kind;
use crate::waiter::Wake;

/// The tokens of listening sockets begin here.
pub(crate) const LISTENERS: u64 = 1 << 63;
/// The token of the pipe to the parent.
pub(crate) const PARENT: u64 = u64::MAX - 3;
/// What needs a descriptor, where there is none left, is tried again after this time.
pub(crate) const WITHOUT_DESCRIPTORS: Duration = Duration::from_millis(100);
/// Changes of counts that are told without waiting for the timer.
const TELL_AT: usize = 4096;

/// How reading from a connection ended.
enum Read {
    /// The socket has nothing more for now.
    Drained,
    /// The reader has what it wants; there may be more.
    Left,
    /// Too many calls of the peer have not begun: it is not read until they have.
    Paused,
    /// The connection is over, with the reason.
    Over(String),
}

impl Node {
    /// Handles one event; stops reading a busy connection once `enough` says so.
    pub(crate) fn handle_event(&self, event: &Event, enough: &dyn Fn() -> bool) {
        match event.token {
            WAKER => {
                self.driver.drain_waker();
                self.settle_returned();
                self.read_resumed(enough);
                if self.dropped_signalled.load(Ordering::SeqCst) {
                    self.driver.arm(crate::sync::now() + TELL_AFTER);
                }
            }
            TIMER => self.run_timers(),
            PARENT if event.hung_up => self.die(),
            PARENT => {}
            token if token >= LISTENERS => self.accept_all(token),
            token => {
                let link = self.connections.read().get(&token).cloned();
                if let Some(link) = link {
                    if event.hung_up {
                        link.hung_up.store(true, Ordering::SeqCst);
                    }
                    link.flush();
                    self.read_link(&link, enough);
                    self.uncork_calls();
                }
            }
        }
    }

    /// Does something with the machine, then carries out what follows from it.
    pub(crate) fn with_machine<R>(&self, act: impl FnOnce(&mut Machine<Wake>) -> R) -> R {
        let mut machine = self.machine.lock();
        let result = act(&mut machine);
        let outputs = machine.take_outputs();
        let deltas = machine.deltas_waiting();
        let oversized = machine.is_oversized();
        drop(machine);
        for output in outputs {
            self.carry_out(output);
        }
        if deltas >= TELL_AT {
            self.tell_owners();
        } else if deltas > 0 {
            self.driver.arm(crate::sync::now() + TELL_AFTER);
        }
        if oversized {
            self.shrink_later();
        }
        result
    }

    /// Tells the owners of references how often this and other processes hold them.
    pub(crate) fn tell_owners(&self) {
        let _in_order = self.telling.lock();
        let messages = self.with_machine(Machine::take_deltas);
        for (pid, message) in messages {
            self.send_message(pid, message);
        }
    }

    fn carry_out(&self, output: Output<Wake>) {
        match output {
            Output::Send(pid, message) => self.send_message(pid, message),
            Output::Wake(wake, outcome) => wake.complete(outcome, &self.driver),
            Output::Deliver(call) => {
                self.trace.note(Kind::Arrived, 0, call.src, call.id);
                self.push_item(Item::Call(call));
            }
            Output::InterruptAll => self.push_item(Item::Interrupt(None)),
            Output::InterruptCall(src, id) => self.push_item(Item::Interrupt(Some((src, id)))),
            Output::Export(id) => self.push_item(Item::Export(id)),
            Output::Freed(id) => self.push_item(Item::Freed(id)),
            Output::Stacks(from, req) => self.stacks_asked(from, req),
            Output::Observe(from, req) => self.tell_observer(from, req),
            Output::AnswersHeld => self.driver.arm(crate::sync::now() + crate::credit::HELD),
            Output::Credited => self.watch_credit(),
            Output::Exit => self.push_item(Item::Exit),
            Output::WorkerReady(member) => self.worker_ready(member),
            Output::Joined(pid) => {
                debug!(target: MEMBERS, "process {pid} has joined");
                // The one that came later dials.
                let machine = self.machine.lock();
                let wanted = machine.topology().eager && pid != HEAD && machine.is_connected_to(pid);
                drop(machine);
                if wanted && pid < self.me() {
                    self.link_to(pid);
                }
                self.members_changed();
            }
            Output::Left(pid) => {
                debug!(target: MEMBERS, "process {pid} has left");
                self.trace.note(Kind::Left, 0, pid, 0);
                self.members_changed();
                if let Some(link) = self.links.write().remove(&pid) {
                    self.retire(&link);
                }
            }
        }
    }

    fn worker_ready(&self, told: Member) {
        let pid = told.pid;
        let (expected, listener) = match self.arrivals.lock().get(&pid) {
            Some(Arrival::Expected(member, listener)) => (member.clone(), *listener),
            _ => return,
        };
        let member = Member {
            connected: expected.connected,
            config: expected.config,
            ..told
        };
        self.with_machine(|machine| machine.join(member));
        if self.is_admitting(listener) {
            // It was not announced, so nobody waits for it.
            self.arrivals.lock().remove(&pid);
            self.push_item(Item::Joined(pid, listener));
        } else {
            self.arrivals.lock().insert(pid, Arrival::Ready);
            self.arrived.notify_all();
        }
    }

    pub(crate) fn read_link(&self, link: &Arc<Link>, enough: &dyn Fn() -> bool) {
        self.read_ways(link, enough, false);
    }

    /// Reads what came through the ring of a connection.
    pub(crate) fn read_ring(&self, link: &Arc<Link>, enough: &dyn Fn() -> bool) {
        self.read_ways(link, enough, true);
        self.uncork_calls();
    }

    /// Reads a connection; with `ring_alone` its socket only where it has been reported meanwhile.
    fn read_ways(&self, link: &Arc<Link>, enough: &dyn Fn() -> bool, mut ring_alone: bool) {
        loop {
            let is_over = || link.hung_up.load(Ordering::SeqCst) || link.is_closed();
            if link.paused.load(Ordering::SeqCst) && !is_over() {
                return;
            }
            link.again.store(true, Ordering::SeqCst);
            let Some(mut reading) = link.reading.try_lock() else {
                return;
            };
            link.again.store(false, Ordering::SeqCst);
            let read = self.read_locked(link, &mut reading, enough, ring_alone);
            if matches!(read, Read::Over(_)) {
                *reading = Reading::Closed;
            }
            drop(reading);
            match read {
                Read::Over(reason) => return self.fail_link(link, &reason),
                Read::Left => return link.rearm(),
                Read::Paused if link.paused.load(Ordering::SeqCst) => return,
                Read::Paused => {}
                Read::Drained if !link.again.load(Ordering::SeqCst) => return,
                // Who was turned away is told again of the socket, but not of a ring at which it has stopped to look.
                Read::Drained if enough() && link.has_empty_ring() => return link.rearm(),
                Read::Drained => {}
            }
            ring_alone = false;
        }
    }

    fn read_locked(
        &self,
        link: &Arc<Link>,
        reading: &mut Reading,
        enough: &dyn Fn() -> bool,
        ring_alone: bool,
    ) -> Read {
        loop {
            match reading {
                Reading::Closed => return Read::Drained,
                Reading::Dialling { .. } => match self.go_on_dialling(link, reading) {
                    Ok(true) => {}
                    Ok(false) => return Read::Drained,
                    Err(reason) => return Read::Over(reason),
                },
                Reading::Securing { .. } => match self.go_on_securing(link, reading) {
                    Ok(true) => {}
                    Ok(false) => return Read::Drained,
                    Err(reason) => return Read::Over(reason),
                },
                Reading::Handshake { .. } => match self.read_handshake(link, reading) {
                    Ok(true) => {}
                    Ok(false) => return Read::Drained,
                    Err(reason) => return Read::Over(reason),
                },
                Reading::Open(decoder) => return self.read_messages(link, decoder, enough, ring_alone),
            }
        }
    }

    /// A descriptor came with the bytes that were read last.
    pub(crate) fn attach(&self, link: &Arc<Link>, decoder: &mut Decoder, came: Came) -> Result<(), String> {
        let Some(node) = self.this.upgrade() else {
            return Ok(());
        };
        let link = Arc::downgrade(link);
        let fd = match came {
            Came::File(fd) => Some(fd),
            Came::Lost => None,
        };
        let file = Box::new(Received { node, link, fd });
        decoder.attach(file).map_err(|error| error.to_string())
    }

    fn read_messages(
        &self,
        link: &Arc<Link>,
        decoder: &mut Decoder,
        enough: &dyn Fn() -> bool,
        ring_alone: bool,
    ) -> Read {
        loop {
            let spare = match decoder.spare() {
                Ok(spare) => spare,
                Err(error) => return Read::Over(error.to_string()),
            };
            let room = spare.len();
            let (n, file, more) = match link.receive_in_order(spare, ring_alone) {
                Ok((0, ..)) => return Read::Over(link.end_reason()),
                Ok(received) => received,
                Err(Failure::Again) => return Read::Drained,
                Err(Failure::Interrupted) => continue,
                Err(Failure::Broken(reason)) => return Read::Over(reason),
            };
            self.heard(link);
            self.bytes_received.fetch_add(n as u64, Ordering::Relaxed);
            let attached = file.is_some();
            if let Some(fd) = file
                && let Err(reason) = self.attach(link, decoder, fd)
            {
                return Read::Over(reason);
            }
            decoder.advance(n);
            if let Err(reason) = self.deliver_all(link, decoder) {
                return Read::Over(reason);
            }
            link.tell_received();
            if self.pauses(link) {
                return Read::Paused;
            }
            // A short read means that the socket is empty, unless it stopped at a descriptor or at the end of a record, or
            // the end is to be seen.
            let stopped = attached || more || link.is_secured();
            if n < room && !stopped && !link.hung_up.load(Ordering::SeqCst) {
                return Read::Drained;
            }
            if !enough() {
                continue;
            }
            if ring_alone {
                return Read::Drained;
            }
            // What a session has read ahead, or was put aside for the ring, would not be reported again.
            if (n < room || !link.is_secured()) && !link.ways.has_aside() {
                return Read::Left;
            }
        }
    }

    /// Whether a connection is not to be read for now, as too many calls of its peer have not begun.
    fn pauses(&self, link: &Link) -> bool {
        if !self.inbox.is_over(link.peer()) || link.hung_up.load(Ordering::SeqCst) {
            return false;
        }
        link.paused.store(true, Ordering::SeqCst);
        // They may have begun before that was to be seen.
        if self.inbox.is_over(link.peer()) {
            return true;
        }
        link.paused.store(false, Ordering::SeqCst);
        false
    }

    /// Reads the connections again that have waited for calls to begin.
    fn read_resumed(&self, enough: &dyn Fn() -> bool) {
        if !self.resumed.swap(false, Ordering::SeqCst) {
            return;
        }
        let waiting: Vec<Arc<Link>> = self
            .connections
            .read()
            .values()
            .filter(|link| link.paused.load(Ordering::SeqCst) && !self.inbox.is_over(link.peer()))
            .cloned()
            .collect();
        for link in waiting {
            link.paused.store(false, Ordering::SeqCst);
            self.read_link(&link, enough);
        }
    }

    pub(crate) fn deliver_all(&self, link: &Link, decoder: &mut Decoder) -> Result<(), String> {
        let peer = link.peer();
        loop {
            match decoder.poll_message() {
                Ok(None) => return Ok(()),
                Ok(Some(Message::Heartbeat(beat))) => self.handle_heartbeat(link, beat),
                Ok(Some(message)) => {
                    trace!(target: MESSAGES, "{} from process {peer}", name_of(&message));
                    self.messages_received.fetch_add(1, Ordering::Relaxed);
                    match message {
                        Message::Unmapped { files } => self.handle_unmapped(link.token, &files),
                        Message::Received { bytes } => link.peer_has_read(bytes),
                        Message::Ring { file } => link.use_ring(file)?,
                        message => {
                            self.trace_answer(peer, &message);
                            self.with_machine(|machine| machine.handle_message(peer, message));
                        }
                    }
                }
                Err(error) => {
                    self.note(&format!("process {peer} broke the protocol: {error}"));
                    return Err(error.to_string());
                }
            }
        }
    }

    #[inline]
    fn trace_answer(&self, peer: ProcId, message: &Message) {
        if !self.trace.is_on() {
            return;
        }
        match message {
            Message::Result { id, status, .. } => self.trace.note(Kind::Replied, *status as u8, peer, *id),
            Message::Done { id } => self.trace.note(Kind::Replied, Status::Value as u8, peer, *id),
            _ => {}
        }
    }

    /// Ends a connection; what waits for its process ends too.
    pub(crate) fn fail_link(&self, link: &Arc<Link>, reason: &str) {
        self.end_link(link, reason, reason.starts_with(SILENCE));
    }

    /// Ends a connection, which has failed or whose peer is `silent`.
    pub(crate) fn end_link(&self, link: &Arc<Link>, reason: &str, silent: bool) {
        if !self.retire(link) {
            return;
        }
        let peer = link.peer();
        if self.is_closing() {
            return;
        }
        if link.is_open() {
            debug!(target: CONNECTIONS, "the connection to process {peer} has ended: {reason}");
        } else if link.dialled {
            debug!(target: HANDSHAKE, "connection {} to process {peer} has failed: {reason}", link.token);
        } else {
            self.note_refusal(link, reason);
        }
        if peer == 0 {
            return;
        }
        let primary = {
            let mut links = self.links.write();
            let primary = links.get(&peer).is_some_and(|l| Arc::ptr_eq(l, link));
            if primary {
                links.remove(&peer);
            }
            primary
        };
        if primary || link.is_open() {
            self.lost(peer, reason, silent);
        }
    }

    /// Closes a connection and forgets it; true the first time.
    fn retire(&self, link: &Arc<Link>) -> bool {
        if !link.close() {
            return false;
        }
        self.driver.unwatch(link.fd());
        self.rings.remove(link);
        self.unwatch_life(link);
        let last = {
            let mut connections = self.connections.write();
            connections.remove(&link.token);
            connections.is_empty()
        };
        self.forget_lent(link.token);
        if last {
            self.trim_pool(crate::sync::now());
        }
        self.closed_sent
            .fetch_add(link.bytes_sent.load(Ordering::Relaxed), Ordering::Relaxed);
        self.closed_messages
            .fetch_add(link.messages_sent.load(Ordering::Relaxed), Ordering::Relaxed);
        true
    }

    fn lost(&self, pid: ProcId, reason: &str, silent: bool) {
        if pid == HEAD && self.me() != HEAD {
            if self.exit_on_head_loss.load(Ordering::SeqCst) {
                self.die();
            }
            *self.head_error.lock() = Some(reason.to_owned());
            self.arrived.notify_all();
            return;
        }
        let now = crate::sync::now();
        let mut arrivals = self.arrivals.lock();
        match arrivals.get_mut(&pid) {
            Some(Arrival::Expected(_, listener)) if self.is_admitting(*listener) => {
                arrivals.remove(&pid);
            }
            Some(arrival @ Arrival::Expected(..)) => {
                *arrival = Arrival::Failed(reason.to_owned());
                self.arrived.notify_all();
            }
            _ => {}
        }
        drop(arrivals);
        let ospid = self.children.lock().remove(&pid).unwrap_or(0);
        self.dying.lock().push(Dying {
            pid,
            ospid,
            until: match self.me() {
                // It hears nothing more of one that is no child of it, or that is stopped.
                HEAD if silent || ospid == 0 => now,
                HEAD => now + STATUS_WAIT,
                _ if silent => now + WORD_OF_HEAD,
                _ => now + STATUS_WAIT,
            },
            reason: reason.to_owned(),
            silent,
        });
        self.driver.arm(now);
    }

    /// The head is gone, or has given this worker up, which ends at once with whatever it has started, without Python.
    pub fn die(&self) -> ! {
        crate::ending::end_without_head()
    }

    /// Has the kernel end this worker, and what it has started, with the thread that started it.
    pub fn die_with_thread_of_parent(&self) {
        crate::ending::prepare(&self.config.me.address);
        crate::ending::follow_parent();
    }

    /// Sends a message of the core; one to a process that is gone is dropped.
    pub(crate) fn send_message(&self, pid: ProcId, message: Message) {
        if pid == self.me() {
            return self.with_machine(|machine| machine.handle_message(pid, message));
        }
        let link = match self.try_link_to(pid) {
            Ok(Some(link)) if !self.has_deferred(pid) => link,
            Ok(None) => return,
            _ => return self.defer(pid, message),
        };
        trace!(target: MESSAGES, "{} to process {pid}", name_of(&message));
        let encoded = pydist_proto::frame::encode(message);
        let body = encoded.body.into_body();
        if self.send_shared_body(pid, &link, encoded.header, &body) {
            return;
        }
        let hold = Node::holds_back(&link);
        link.send_owned(encoded.header, body, hold);
        if hold {
            self.held_back(&link);
        }
    }

    /// The connection to a process, made now where there is none.
    pub(crate) fn link_to(&self, pid: ProcId) -> Option<Arc<Link>> {
        self.try_link_to(pid).ok().flatten()
    }

    /// The connection to a process, made now where there is none; an error where this process has no descriptor left
    /// for it, which may change.
    pub(crate) fn try_link_to(&self, pid: ProcId) -> std::io::Result<Option<Arc<Link>>> {
        if let Some(link) = self.links.read().get(&pid) {
            return Ok(Some(link.clone()));
        }
        if self.dying.lock().iter().any(|d| d.pid == pid) {
            return Ok(None);
        }
        let machine = self.machine.lock();
        let member = machine.member(pid).cloned();
        let has_route = machine.has_route_to(pid);
        drop(machine);
        let Some(member) = member.filter(|_| has_route) else {
            return Ok(None);
        };
        let dialled = if !member.address.is_empty() {
            self.dial_peer(pid, &member.address, member.inst)
        } else if self.has_transport() && !member.config.is_empty() {
            self.connect_by_manager(pid)
        } else {
            return Ok(None);
        };
        match dialled {
            Ok(link) => Ok(Some(link)),
            Err(error) if is_out_of_descriptors(&error) => Err(error),
            Err(error) => {
                self.lost(pid, &format!("cannot connect: {error}"), false);
                Ok(None)
            }
        }
    }

    /// Whether messages to a process wait for a descriptor, which those that follow are not to overtake.
    fn has_deferred(&self, pid: ProcId) -> bool {
        self.any_deferred.load(Ordering::SeqCst) && self.deferred.lock().iter().any(|(to, _)| *to == pid)
    }

    /// Keeps a message until this process has a descriptor for the connection.
    fn defer(&self, pid: ProcId, message: Message) {
        self.deferred.lock().push((pid, message));
        self.any_deferred.store(true, Ordering::SeqCst);
        self.driver.arm(crate::sync::now() + WITHOUT_DESCRIPTORS);
    }

    /// Tries again to send what was kept for want of a descriptor.
    pub(crate) fn send_deferred(&self) {
        if !self.any_deferred.load(Ordering::SeqCst) {
            return;
        }
        let _in_order = self.telling.lock();
        self.any_deferred.store(false, Ordering::SeqCst);
        let messages = std::mem::take(&mut *self.deferred.lock());
        for (pid, message) in messages {
            self.send_message(pid, message);
        }
    }
}

/// Whether a process has as many files and connections open as it may.
pub(crate) fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

//! What happens when a socket is readable: handshakes, messages, and the end of a connection.

use crate::sync::atomic::Ordering;
use std::sync::Arc;

use pydist_proto::codec::Decoder;
use pydist_proto::ids::{HEAD, ProcId};
use pydist_proto::machine::{Machine, Output};
use pydist_proto::message::{Member, Message};

use crate::death::{Dying, STATUS_WAIT};
use crate::inbox::Item;
use crate::link::{Came, Link, Reading};
use crate::liveness::{SILENCE, WORD_OF_HEAD};
use crate::node::{Arrival, Node, TELL_AFTER};
use crate::poll::{Event, TIMER, WAKER};
use crate::shared::Received;
use crate::tls::Failure;
use crate::waiter::Wake;

/// The tokens of listening sockets begin here.
pub(crate) const LISTENERS: u64 = 1 << 63;
/// The token of the pipe to the parent.
pub(crate) const PARENT: u64 = u64::MAX - 3;
/// Changes of counts that are told without waiting for the timer.
const TELL_AT: usize = 4096;

/// How reading from a connection ended.
enum Read {
    /// The socket has nothing more for now.
    Drained,
    /// The reader has what it wants; there may be more.
    Left,
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
            self.driver.arm(crate::sync::now() + crate::reactor::SHRINK_AFTER);
        }
        result
    }

    /// Tells the owners of references how often this and other processes hold them.
    pub(crate) fn tell_owners(&self) {
        let _in_order = self.telling.lock();
        let messages = self.machine.lock().take_deltas();
        for (pid, message) in messages {
            self.send_message(pid, message);
        }
    }

    fn carry_out(&self, output: Output<Wake>) {
        match output {
            Output::Send(pid, message) => self.send_message(pid, message),
            Output::Wake(wake, outcome) => wake.complete(outcome, &self.driver),
            Output::Deliver(call) => self.push_item(Item::Call(call)),
            Output::InterruptAll => self.push_item(Item::Interrupt(None)),
            Output::InterruptCall(src, id) => self.push_item(Item::Interrupt(Some((src, id)))),
            Output::Export(id) => self.push_item(Item::Export(id)),
            Output::Freed(id) => self.push_item(Item::Freed(id)),
            Output::Stacks(from, req) => self.stacks_asked(from, req),
            Output::Exit => self.push_item(Item::Exit),
            Output::WorkerReady(member) => self.worker_ready(member),
            Output::Joined(pid) => {
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
        loop {
            link.again.store(true, Ordering::SeqCst);
            let Some(mut reading) = link.reading.try_lock() else {
                return;
            };
            link.again.store(false, Ordering::SeqCst);
            let read = self.read_locked(link, &mut reading, enough);
            if matches!(read, Read::Over(_)) {
                *reading = Reading::Closed;
            }
            drop(reading);
            match read {
                Read::Over(reason) => return self.fail_link(link, &reason),
                Read::Left => return link.rearm(),
                Read::Drained if !link.again.load(Ordering::SeqCst) => return,
                Read::Drained => {}
            }
        }
    }

    fn read_locked(&self, link: &Arc<Link>, reading: &mut Reading, enough: &dyn Fn() -> bool) -> Read {
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
                Reading::Open(decoder) => return self.read_messages(link, decoder, enough),
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

    fn read_messages(&self, link: &Arc<Link>, decoder: &mut Decoder, enough: &dyn Fn() -> bool) -> Read {
        loop {
            let spare = match decoder.spare() {
                Ok(spare) => spare,
                Err(error) => return Read::Over(error.to_string()),
            };
            let room = spare.len();
            let (n, file) = match link.receive(spare) {
                Ok((0, _)) => return Read::Over(link.end_reason()),
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
            // A short read means that the socket is empty, unless it stopped at a descriptor or at the end of a record, or
            // the end is to be seen.
            let stopped = attached || link.is_secured();
            if n < room && !stopped && !link.hung_up.load(Ordering::SeqCst) {
                return Read::Drained;
            }
            if enough() {
                return Read::Left;
            }
        }
    }

    pub(crate) fn deliver_all(&self, link: &Link, decoder: &mut Decoder) -> Result<(), String> {
        let peer = link.peer();
        loop {
            match decoder.poll_message() {
                Ok(None) => return Ok(()),
                Ok(Some(Message::Heartbeat(beat))) => self.handle_heartbeat(link, beat),
                Ok(Some(message)) => {
                    self.messages_received.fetch_add(1, Ordering::Relaxed);
                    if let Message::Unmapped { files } = message {
                        self.handle_unmapped(link.token, &files);
                        continue;
                    }
                    self.with_machine(|machine| machine.handle_message(peer, message));
                }
                Err(error) => {
                    self.note(format!("process {peer} broke the protocol: {error}"));
                    return Err(error.to_string());
                }
            }
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
        if !link.is_open() {
            self.note(format!("a connection was refused: {reason}"));
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
        if let Some(link) = self.link_to(pid) {
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
    }

    /// The connection to a process, made now where there is none.
    pub(crate) fn link_to(&self, pid: ProcId) -> Option<Arc<Link>> {
        if let Some(link) = self.links.read().get(&pid) {
            return Some(link.clone());
        }
        if self.dying.lock().iter().any(|d| d.pid == pid) {
            return None;
        }
        let machine = self.machine.lock();
        let member = machine.member(pid).cloned()?;
        let has_route = machine.has_route_to(pid);
        drop(machine);
        if !has_route {
            return None;
        }
        let dialled = if !member.address.is_empty() {
            self.dial_peer(pid, &member.address, member.inst)
        } else if self.has_transport() && !member.config.is_empty() {
            self.connect_by_manager(pid)
        } else {
            return None;
        };
        match dialled {
            Ok(link) => Some(link),
            Err(error) => {
                self.lost(pid, &format!("cannot connect: {error}"), false);
                None
            }
        }
    }
}

//! What happens when a socket is readable: handshakes, messages, and the end of a connection.

use crate::sync::atomic::Ordering;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use pydist_proto::codec::Decoder;
use pydist_proto::handshake::{
    Acceptor, HANDSHAKE_DEADLINE_MS, Handshake, Initiator, Local, PRE_AUTH_LIMIT, Secrets,
};
use pydist_proto::ids::{HEAD, ProcId};
use pydist_proto::machine::{Machine, Output};
use pydist_proto::message::Message;
use rustix::io::Errno;

use crate::death::{Dying, STATUS_WAIT};
use crate::inbox::Item;
use crate::link::{Came, Link, Reading};
use crate::node::{Arrival, Node, TELL_AFTER, Topology};
use crate::poll::{Event, TIMER, WAKER};
use crate::shared::Received;
use crate::waiter::Wake;

/// The token of the listening socket.
pub(crate) const LISTENER: u64 = u64::MAX - 2;
/// The token of the pipe to the parent.
pub(crate) const PARENT: u64 = u64::MAX - 3;
/// Connections that may be in their handshake at once; the oldest gives way.
const HALF_OPEN_MAX: usize = 64;
/// A listener without descriptors left waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
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
            LISTENER => self.accept_all(),
            PARENT if event.hung_up => self.die(),
            PARENT => {}
            token => {
                let link = self.connections.read().get(&token).cloned();
                if let Some(link) = link {
                    if event.hung_up {
                        link.hung_up.store(true, Ordering::SeqCst);
                    }
                    link.flush();
                    self.read_link(&link, enough);
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
            Output::Exit => self.push_item(Item::Exit),
            Output::WorkerReady(pid) => self.worker_ready(pid),
            Output::Joined(pid) => {
                // The one that came later dials.
                if self.config.topology == Topology::Eager && pid != HEAD && pid < self.me() {
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

    fn worker_ready(&self, pid: ProcId) {
        let member = match self.arrivals.lock().get(&pid) {
            Some(Arrival::Expected(member)) => member.clone(),
            _ => return,
        };
        self.with_machine(|machine| machine.join(member));
        self.arrivals.lock().insert(pid, Arrival::Ready);
        self.arrived.notify_all();
    }

    fn accept_all(&self) {
        let listener = self.listener.read();
        let Some(listener) = &*listener else { return };
        loop {
            match listener.accept() {
                Ok((fd, _from)) => self.accepted(fd),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(error) => {
                    self.note(format!("cannot accept connections for now: {error}"));
                    self.driver.unwatch(listener.fd());
                    self.listener_paused.store(true, Ordering::SeqCst);
                    self.driver.arm(crate::sync::now() + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Watches the listener again after a pause.
    pub(crate) fn resume_listener(&self) {
        if self.listener_paused.swap(false, Ordering::SeqCst)
            && let Some(listener) = &*self.listener.read()
        {
            let _ = self.driver.watch_listener(listener.fd(), LISTENER);
        }
    }

    fn accepted(&self, fd: OwnedFd) {
        let half_open: Vec<Arc<Link>> = self
            .connections
            .read()
            .values()
            .filter(|l| !l.is_open() && !l.dialled)
            .cloned()
            .collect();
        if half_open.len() >= HALF_OPEN_MAX
            && let Some(oldest) = half_open.iter().min_by_key(|l| l.token)
        {
            self.fail_link(oldest, "too many connections are in their handshake");
        }
        if let Ok(secrets) = self.secrets(self.config.me.inst) {
            let machine = Acceptor::new(self.local(), &self.config.cookie, secrets);
            let _ = self.add_connection(fd, 0, machine.into());
        }
    }

    /// Dials a process; the link queues messages until its handshake has ended.
    pub(crate) fn dial_peer(&self, pid: ProcId, address: &str, inst: [u8; 16]) -> std::io::Result<Arc<Link>> {
        let fd = crate::listener::dial(address)?;
        let machine = Initiator::new(self.local(), &self.config.cookie, self.secrets(inst)?);
        let mut links = self.links.write();
        if let Some(link) = links.get(&pid) {
            return Ok(link.clone());
        }
        let link = self.add_connection(fd, pid, machine.into())?;
        links.insert(pid, link.clone());
        Ok(link)
    }

    fn add_connection(
        &self,
        fd: OwnedFd,
        peer: ProcId,
        mut machine: Handshake,
    ) -> std::io::Result<Arc<Link>> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let deadline = crate::sync::now() + Duration::from_millis(HANDSHAKE_DEADLINE_MS);
        let hello = machine.poll_output();
        let link = Arc::new(Link::new(token, fd, peer, machine, deadline));
        if let Some(hello) = hello {
            link.send_raw(&hello);
        }
        self.connections.write().insert(token, link.clone());
        self.driver.watch(link.fd(), token)?;
        self.driver.arm(deadline);
        Ok(link)
    }

    fn local(&self) -> Local {
        Local {
            id: self.me(),
            cluster: self.config.cluster,
            versions: self.config.versions.clone(),
            allow_python_mismatch: self.config.allow_python_mismatch,
        }
    }

    fn secrets(&self, inst: [u8; 16]) -> std::io::Result<Secrets> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Secrets {
            nonce,
            inst,
            channel_binding: [0; 32],
        })
    }

    fn read_link(&self, link: &Arc<Link>, enough: &dyn Fn() -> bool) {
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
                Read::Left => return self.driver.rearm(link.fd(), link.token),
                Read::Drained if !link.again.load(Ordering::SeqCst) => return,
                Read::Drained => {}
            }
        }
    }

    fn read_locked(&self, link: &Arc<Link>, reading: &mut Reading, enough: &dyn Fn() -> bool) -> Read {
        loop {
            match reading {
                Reading::Closed => return Read::Drained,
                Reading::Handshake { .. } => match self.read_handshake(link, reading) {
                    Ok(true) => {}
                    Ok(false) => return Read::Drained,
                    Err(reason) => return Read::Over(reason),
                },
                Reading::Open(decoder) => return self.read_messages(link, decoder, enough),
            }
        }
    }

    /// Reads a part of the handshake; true where it has ended or there may be more.
    fn read_handshake(&self, link: &Arc<Link>, reading: &mut Reading) -> Result<bool, String> {
        let mut buffer = [0; PRE_AUTH_LIMIT];
        let (n, file) = match link.receive(&mut buffer) {
            Ok((0, _)) => return Err("the connection ended in its handshake".to_owned()),
            Ok(received) => received,
            Err(Errno::AGAIN) => return Ok(false),
            Err(Errno::INTR) => return Ok(true),
            Err(error) => return Err(error.to_string()),
        };
        let Reading::Handshake { machine, .. } = reading else {
            return Ok(true);
        };
        let fed = machine.handle_bytes(&buffer[..n]);
        while let Some(output) = machine.poll_output() {
            if !link.send_raw(&output) {
                return Err("the connection broke in its handshake".to_owned());
            }
        }
        let used = fed.map_err(|error| error.to_string())?;
        if !machine.is_finished() {
            return Ok(true);
        }
        let Reading::Handshake { machine, .. } = std::mem::replace(reading, Reading::Closed) else {
            return Ok(true);
        };
        let authenticated = machine.finish().map_err(|error| error.to_string())?;
        let peer = authenticated.peer_id();
        let mut decoder = Decoder::new(authenticated, self.config.message_max);
        self.admit(link, peer)?;
        if let Some(fd) = file {
            self.attach(link, &mut decoder, fd)?;
        }
        let mut rest = &buffer[used..n];
        while !rest.is_empty() {
            let spare = decoder.spare().map_err(|error| error.to_string())?;
            let n = spare.len().min(rest.len());
            spare[..n].copy_from_slice(&rest[..n]);
            decoder.advance(n);
            rest = &rest[n..];
        }
        self.deliver_all(link, &mut decoder)?;
        *reading = Reading::Open(Box::new(decoder));
        Ok(true)
    }

    /// Takes up a peer that has proved itself, if it is one that may connect.
    fn admit(&self, link: &Arc<Link>, peer: ProcId) -> Result<(), String> {
        if link.dialled {
            if peer != link.peer() {
                return Err(format!(
                    "process {peer} answered where process {} was expected",
                    link.peer()
                ));
            }
        } else {
            let accepted = self
                .connections
                .read()
                .values()
                .any(|l| l.token != link.token && l.is_open() && !l.dialled && l.peer() == peer);
            if accepted || peer == self.me() {
                return Err(format!("process {peer} is connected already"));
            }
            if self.me() == HEAD {
                if !matches!(self.arrivals.lock().get(&peer), Some(Arrival::Expected(_))) {
                    return Err(format!("no process {peer} was expected"));
                }
            } else if !self.machine.lock().meet(peer) {
                return Err(format!("process {peer} has left the cluster"));
            }
            self.links.write().entry(peer).or_insert_with(|| link.clone());
        }
        link.opened(peer);
        if link.dialled && peer == HEAD && self.me() != HEAD {
            self.exit_on_head_loss.store(true, Ordering::SeqCst);
            self.arrived.notify_all();
        }
        Ok(())
    }

    /// A descriptor came with the bytes that were read last.
    fn attach(&self, link: &Arc<Link>, decoder: &mut Decoder, came: Came) -> Result<(), String> {
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
                Ok((0, _)) => return Read::Over("the connection ended".to_owned()),
                Ok(received) => received,
                Err(Errno::AGAIN) => return Read::Drained,
                Err(Errno::INTR) => continue,
                Err(error) => return Read::Over(error.to_string()),
            };
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
            // A short read means that the socket is empty, unless it stopped at a descriptor or the end is to be seen.
            if n < room && !attached && !link.hung_up.load(Ordering::SeqCst) {
                return Read::Drained;
            }
            if enough() {
                return Read::Left;
            }
        }
    }

    fn deliver_all(&self, link: &Link, decoder: &mut Decoder) -> Result<(), String> {
        let peer = link.peer();
        loop {
            match decoder.poll_message() {
                Ok(None) => return Ok(()),
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
            self.lost(peer, reason);
        }
    }

    /// Closes a connection and forgets it; true the first time.
    fn retire(&self, link: &Arc<Link>) -> bool {
        if !link.close() {
            return false;
        }
        self.driver.unwatch(link.fd());
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

    fn lost(&self, pid: ProcId, reason: &str) {
        if pid == HEAD && self.me() != HEAD {
            if self.exit_on_head_loss.load(Ordering::SeqCst) {
                self.die();
            }
            *self.head_error.lock() = Some(reason.to_owned());
            self.arrived.notify_all();
            return;
        }
        let now = crate::sync::now();
        let ospid = self.machine.lock().member(pid).map_or(0, |m| m.ospid);
        if let Some(arrival @ Arrival::Expected(_)) = self.arrivals.lock().get_mut(&pid) {
            *arrival = Arrival::Failed(reason.to_owned());
            self.arrived.notify_all();
        }
        let ospid = if self.me() == HEAD { ospid } else { 0 };
        self.dying.lock().push(Dying {
            pid,
            ospid,
            until: now + STATUS_WAIT,
            reason: reason.to_owned(),
        });
        self.driver.arm(now);
    }

    /// The head is gone: this worker and whatever it has started end at once, without Python.
    pub fn die(&self) -> ! {
        crate::ending::end_with_group()
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
        let member = self.machine.lock().member(pid).cloned()?;
        if member.address.is_empty() {
            return None;
        }
        match self.dial_peer(pid, &member.address, member.inst) {
            Ok(link) => Some(link),
            Err(error) => {
                self.lost(pid, &format!("cannot connect to {}: {error}", member.address));
                None
            }
        }
    }
}

//! Connections until they are open: accepting, dialling, the handshake, and who is let in.

use crate::sync::atomic::Ordering;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pydist_proto::codec::Decoder;
use pydist_proto::handshake::{
    Assigner, Assignment, Authenticated, HANDSHAKE_DEADLINE_MS, HandshakeError, Local, PRE_AUTH_LIMIT,
    Secrets,
};
use pydist_proto::ids::{HEAD, ProcId};
use pydist_proto::message::Member;
use pydist_proto::topology::Topology;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tracing::debug;

use crate::dialing::{Dial, Progress, progress};
use crate::dispatch::WITHOUT_DESCRIPTORS;
use crate::inbox::Item;
use crate::link::{Link, Reading};
use crate::listener::Listener;
use crate::log::HANDSHAKE;
use crate::node::{Arrival, Node, NodeError};
use crate::opening::Opening;
use crate::tls::Failure;

/// Connections of one listener that may be in their handshake at once; the oldest gives way.
const HALF_OPEN_MAX: usize = 64;
/// So many connections are accepted at a time.
const ACCEPTED_MAX: usize = 16;
/// The first bytes of records of TLS that begin a connection, or refuse one.
const TLS_ALERT: u8 = 0x15;
const TLS_HANDSHAKE: u8 = 0x16;
/// The time that a handshake has over a transport that Python makes, the making included.
const TRANSPORT_PATIENCE: Duration = Duration::from_secs(60);

impl Node {
    /// Binds a listener; returns its address and its token. Nobody is accepted before [`Node::open_listener`].
    ///
    /// Who dials has to know the tag `inst`. Where the listener `admits`, processes that have no id are given one.
    pub fn bind_listener(
        &self,
        address: &str,
        inst: [u8; 16],
        admits: bool,
    ) -> Result<(String, u64), NodeError> {
        let (listener, bound) =
            Listener::bind(address, inst, admits).map_err(|e| NodeError::Listen(address.to_owned(), e))?;
        let token = crate::dispatch::LISTENERS + self.next_token.fetch_add(1, Ordering::Relaxed);
        self.listeners.write().insert(token, Arc::new(listener));
        Ok((bound, token))
    }

    /// Accepts connections at a listener from now on.
    pub fn open_listener(&self, token: u64) -> Result<(), NodeError> {
        let listener = self.listeners.read().get(&token).cloned();
        if let Some(listener) = listener {
            self.driver.watch_listener(listener.fd(), token)?;
        }
        Ok(())
    }

    /// Closes a listener; connections that it accepted stay.
    pub fn close_listener(&self, token: u64) {
        let listener = self.listeners.write().remove(&token);
        if let Some(listener) = listener {
            self.driver.unwatch(listener.fd());
        }
    }

    /// Binds the listener on which other members dial this process, and opens it; returns its address.
    pub fn listen(&self, address: &str) -> Result<String, NodeError> {
        let (bound, token) = self.bind_listener(address, self.config.me.inst, false)?;
        self.open_listener(token)?;
        Ok(bound)
    }

    pub(crate) fn accept_all(&self, token: u64) {
        let Some(listener) = self.listeners.read().get(&token).cloned() else {
            return;
        };
        // Others wait to be read: what is left is reported again.
        for _ in 0..ACCEPTED_MAX {
            match listener.accept() {
                Ok((fd, origin)) => self.accepted(fd, origin, token, &listener),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => {}
                Err(error) => {
                    self.note(&format!("cannot accept connections for now: {error}"));
                    self.driver.unwatch(listener.fd());
                    listener.paused.store(true, Ordering::SeqCst);
                    self.driver.arm(crate::sync::now() + WITHOUT_DESCRIPTORS);
                    return;
                }
            }
        }
    }

    /// Watches the listeners again after a pause.
    pub(crate) fn resume_listeners(&self) {
        for (token, listener) in &*self.listeners.read() {
            if listener.paused.swap(false, Ordering::SeqCst) {
                let _ = self.driver.watch_listener(listener.fd(), *token);
            }
        }
    }

    fn accepted(&self, fd: OwnedFd, origin: Option<SocketAddr>, token: u64, listener: &Listener) {
        let half_open: Vec<Arc<Link>> = self
            .connections
            .read()
            .values()
            .filter(|l| !l.is_open() && l.listener == token)
            .cloned()
            .collect();
        if half_open.len() >= HALF_OPEN_MAX
            && let Some(oldest) = half_open.iter().min_by_key(|l| l.token)
        {
            self.fail_link(oldest, "too many connections are in their handshake");
        }
        if let Err(error) = self.take_up(fd, origin, token, listener) {
            self.note(&format!("a connection cannot be taken up: {error}"));
        }
    }

    fn take_up(
        &self,
        fd: OwnedFd,
        origin: Option<SocketAddr>,
        token: u64,
        listener: &Listener,
    ) -> Result<(), NodeError> {
        let mut opening = self.opening(false, listener.inst)?;
        if listener.admits {
            opening.local.assigner = Some(self.assigner(None));
        }
        let link = self.new_link(fd, 0, token, &opening);
        if let Some(origin) = origin {
            let _ = link.origin.set(origin);
        }
        self.start_link(&link, opening, listener.is_tls, handshake_time())?;
        Ok(())
    }

    /// Dials a process; the link queues messages until its handshake has ended.
    pub(crate) fn dial_peer(
        &self,
        pid: ProcId,
        addresses: &str,
        inst: [u8; 16],
    ) -> std::io::Result<Arc<Link>> {
        let (dial, fd) = Dial::start(addresses)?;
        let opening = self.opening(true, inst)?;
        let mut links = self.links.write();
        if let Some(link) = links.get(&pid) {
            return Ok(link.clone());
        }
        let deadline = dial.deadline;
        let reading = Reading::Dialling {
            dial: Box::new(dial),
            opening: Box::new(opening),
        };
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        debug!(target: HANDSHAKE, "connection {token}: dialling process {pid} at {}", addresses.replace('\n', ", "));
        let link = Arc::new(Link::new(token, fd, pid, 0, true, true, reading));
        self.watch_link(&link, deadline)?;
        links.insert(pid, link.clone());
        Ok(link)
    }

    /// Takes over a connected socket to a process that has no id yet, which is given `pid`; with TLS where `secured`.
    pub fn attach_worker(
        &self,
        fd: OwnedFd,
        pid: ProcId,
        inst: [u8; 16],
        secured: bool,
    ) -> Result<(), NodeError> {
        let mut opening = self.opening(true, inst)?;
        opening.local.assigner = Some(self.assigner(Some(pid)));
        self.take_over(fd, pid, opening, secured)
    }

    /// Takes over a connected socket at whose other end another process dials this one.
    pub fn attach_incoming(&self, fd: OwnedFd, inst: [u8; 16]) -> Result<(), NodeError> {
        self.take_over(fd, 0, self.opening(false, inst)?, false)
    }

    fn take_over(&self, fd: OwnedFd, pid: ProcId, opening: Opening, secured: bool) -> Result<(), NodeError> {
        rustix::io::ioctl_fionbio(&fd, true).map_err(std::io::Error::from)?;
        crate::listener::tune(fd.as_fd())?;
        let mut links = self.links.write();
        let deadline = crate::sync::now() + TRANSPORT_PATIENCE;
        let link = self.add_connection(fd, pid, 0, opening, secured, deadline)?;
        if pid != 0 {
            links.insert(pid, link);
        }
        Ok(())
    }

    /// Has Python connect to a worker that its manager reaches in a way of its own.
    pub(crate) fn connect_by_manager(&self, pid: ProcId) -> std::io::Result<Arc<Link>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::io::ioctl_fionbio(&theirs, false)?;
        let inst = self.config.transport_inst;
        let opening = self.opening(true, inst)?;
        let mut links = self.links.write();
        if let Some(link) = links.get(&pid) {
            return Ok(link.clone());
        }
        let deadline = crate::sync::now() + TRANSPORT_PATIENCE;
        let link = self.add_connection(ours, pid, 0, opening, false, deadline)?;
        links.insert(pid, link.clone());
        drop(links);
        self.push_item(Item::Connect(pid, theirs));
        Ok(link)
    }

    fn add_connection(
        &self,
        fd: OwnedFd,
        peer: ProcId,
        listener: u64,
        opening: Opening,
        secured: bool,
        deadline: Instant,
    ) -> std::io::Result<Arc<Link>> {
        let link = self.new_link(fd, peer, listener, &opening);
        self.start_link(&link, opening, secured, deadline)?;
        Ok(link)
    }

    fn new_link(&self, fd: OwnedFd, peer: ProcId, listener: u64, opening: &Opening) -> Arc<Link> {
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        // Behind a socket that Python has made there may be a pump.
        let direct = listener != 0;
        let dialled = opening.initiates;
        Arc::new(Link::new(
            token,
            fd,
            peer,
            listener,
            dialled,
            direct,
            Reading::Closed,
        ))
    }

    fn start_link(
        &self,
        link: &Arc<Link>,
        opening: Opening,
        secured: bool,
        deadline: Instant,
    ) -> std::io::Result<()> {
        match link.origin.get() {
            Some(origin) => debug!(target: HANDSHAKE, "connection {}: accepted from {origin}", link.token),
            None => debug!(target: HANDSHAKE, "connection {}: begun", link.token),
        }
        let begun = self.begin(link, opening, secured, deadline);
        *link.reading.lock() = begun.map_err(std::io::Error::other)?;
        self.watch_link(link, deadline)
    }

    /// Begins the handshake of a connection that stands, or TLS before it.
    fn begin(
        &self,
        link: &Link,
        opening: Opening,
        secured: bool,
        deadline: Instant,
    ) -> Result<Reading, String> {
        if !secured {
            return Ok(begin_handshake(link, opening, [0; 32], deadline));
        }
        let tls = self.tls().map_err(|error| error.to_string())?;
        let session = if opening.initiates {
            tls.connect()
        } else {
            tls.accept()
        };
        link.secure(session.map_err(|error| error.to_string())?);
        Ok(Reading::Securing {
            opening: Box::new(opening),
            deadline,
        })
    }

    /// Goes on agreeing on TLS; true once that is done, and the handshake has begun.
    pub(crate) fn go_on_securing(&self, link: &Link, reading: &mut Reading) -> Result<bool, String> {
        let binding = match link.agree() {
            Ok(binding) => binding,
            Err(Failure::Again) => return Ok(false),
            Err(Failure::Interrupted) => return Ok(true),
            Err(Failure::Broken(reason)) => return Err(reason),
        };
        let Reading::Securing { opening, deadline } = std::mem::replace(reading, Reading::Closed) else {
            return Ok(true);
        };
        debug!(target: HANDSHAKE, "connection {}: TLS is agreed on", link.token);
        *reading = begin_handshake(link, *opening, binding, deadline);
        Ok(true)
    }

    fn opening(&self, initiates: bool, inst: [u8; 16]) -> std::io::Result<Opening> {
        Ok(Opening {
            local: self.local(),
            cookie: self.cookie.read().clone(),
            secrets: self.secrets(inst)?,
            initiates,
        })
    }

    fn watch_link(&self, link: &Arc<Link>, deadline: Instant) -> std::io::Result<()> {
        self.connections.write().insert(link.token, link.clone());
        link.watched_by(self.driver.poll().clone());
        self.driver.watch(link.fd(), link.token)?;
        self.driver.arm(deadline);
        Ok(())
    }

    fn local(&self) -> Local {
        Local {
            id: self.me(),
            cluster: *self.cluster.lock(),
            assigner: None,
            versions: self.config.versions.clone(),
            allow_python_mismatch: self.config.allow_python_mismatch,
        }
    }

    /// Gives ids to processes that have none: `fixed`, or the next one.
    fn assigner(&self, fixed: Option<ProcId>) -> Assigner {
        let ids = self.ids.clone();
        let topology = self.topology.load(Ordering::SeqCst);
        let cluster = *self.cluster.lock();
        Assigner::new(move || Assignment {
            id: fixed.unwrap_or_else(|| ids.fetch_add(1, Ordering::SeqCst)),
            topology,
            cluster,
        })
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

    /// Looks whether a dialled connection stands, and goes on to the next address where it does not.
    pub(crate) fn go_on_dialling(&self, link: &Arc<Link>, reading: &mut Reading) -> Result<bool, String> {
        let reason = match progress(link.fd()) {
            Progress::UnderWay => return Ok(false),
            Progress::Connected => {
                let Reading::Dialling { dial, opening } = std::mem::replace(reading, Reading::Closed) else {
                    return Ok(true);
                };
                let deadline = handshake_time();
                *reading = self.begin(link, *opening, dial.is_tls(), deadline)?;
                self.driver.arm(deadline);
                return Ok(true);
            }
            Progress::Failed(reason) => reason,
        };
        self.dial_next(link, reading, &reason).map(|()| false)
    }

    /// Goes on to the next address of a connection that is being dialled.
    pub(crate) fn dial_next(
        &self,
        link: &Arc<Link>,
        reading: &mut Reading,
        reason: &str,
    ) -> Result<(), String> {
        let Reading::Dialling { dial, .. } = reading else {
            return Ok(());
        };
        let Some(fd) = dial.give_up_current(reason) else {
            return Err(dial.failure());
        };
        self.driver.unwatch(link.fd());
        link.replace_fd(&fd).map_err(|error| error.to_string())?;
        self.driver
            .watch(link.fd(), link.token)
            .map_err(|error| error.to_string())?;
        self.driver.arm(dial.deadline);
        Ok(())
    }

    /// Reads a part of the handshake; true where it has ended or there may be more.
    pub(crate) fn read_handshake(&self, link: &Arc<Link>, reading: &mut Reading) -> Result<bool, String> {
        let mut buffer = [0; PRE_AUTH_LIMIT];
        let (n, file) = match link.receive(&mut buffer) {
            Ok((0, _)) => return Err("the connection ended in its handshake".to_owned()),
            Ok(received) => received,
            Err(Failure::Again) => return Ok(false),
            Err(Failure::Interrupted) => return Ok(true),
            Err(Failure::Broken(reason)) => return Err(reason),
        };
        let Reading::Handshake { machine, .. } = reading else {
            return Ok(true);
        };
        let fed = machine.handle_bytes(&buffer[..n]);
        debug!(target: HANDSHAKE, "connection {}: received {n} bytes, now {:?}", link.token, machine.state());
        while let Some(output) = machine.poll_output() {
            debug!(target: HANDSHAKE, "connection {}: sends {} bytes", link.token, output.len());
            if !link.send_raw(&output) {
                return Err("the connection broke in its handshake".to_owned());
            }
        }
        let used = fed.map_err(|error| explain(&error, link, &buffer[..n]))?;
        if !machine.is_finished() {
            return Ok(true);
        }
        let Reading::Handshake { machine, .. } = std::mem::replace(reading, Reading::Closed) else {
            return Ok(true);
        };
        let authenticated = machine.finish().map_err(|error| error.to_string())?;
        self.admit(link, &authenticated)?;
        let mut decoder = Decoder::new(authenticated, self.config.message_max);
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
    fn admit(&self, link: &Arc<Link>, authenticated: &Authenticated) -> Result<(), String> {
        let peer = authenticated.peer_id();
        if link.dialled {
            if peer != link.peer() {
                return Err(format!(
                    "process {peer} answered where process {} was expected",
                    link.peer()
                ));
            }
        } else {
            self.admit_accepted(link, authenticated)?;
            self.links.write().entry(peer).or_insert_with(|| link.clone());
        }
        if let Some(assignment) = authenticated.assigned() {
            self.accept_assignment(peer, assignment)?;
        }
        crate::ahead::bound_unread(link.fd());
        link.opened(peer);
        debug!(
            target: HANDSHAKE,
            "connection {}: process {peer} has proved that it knows the cookie; it has {}",
            link.token,
            authenticated.peer_versions()
        );
        self.watch_life(link);
        if peer == HEAD && self.me() != HEAD {
            self.exit_on_head_loss.store(true, Ordering::SeqCst);
            self.arrived.notify_all();
        }
        Ok(())
    }

    fn admit_accepted(&self, link: &Arc<Link>, authenticated: &Authenticated) -> Result<(), String> {
        let peer = authenticated.peer_id();
        let accepted = self
            .connections
            .read()
            .values()
            .any(|l| l.token != link.token && l.is_open() && !l.dialled && l.peer() == peer);
        let second_head = peer == HEAD && self.exit_on_head_loss.load(Ordering::SeqCst);
        if accepted || second_head || peer == self.me() {
            return Err(format!("process {peer} is connected already"));
        }
        if self.me() == HEAD {
            if authenticated.assigned_peer() {
                let member = Member {
                    pid: peer,
                    ..Member::default()
                };
                let arrival = Arrival::Expected(member, link.listener);
                self.arrivals.lock().insert(peer, arrival);
            } else if !matches!(self.arrivals.lock().get(&peer), Some(Arrival::Expected(..))) {
                return Err(format!("no process {peer} was expected"));
            }
        } else if peer != HEAD && !self.machine.lock().meet(peer) {
            return Err(format!("process {peer} has left the cluster"));
        }
        Ok(())
    }

    /// Takes the id that the head gives this process.
    fn accept_assignment(&self, peer: ProcId, assignment: &Assignment) -> Result<(), String> {
        if peer != HEAD {
            return Err(format!("process {peer} gives ids, which process 1 alone may"));
        }
        let topology = Topology::from_byte(assignment.topology)
            .ok_or_else(|| "process 1 has a topology that this process does not know".to_owned())?;
        let mut machine = self.machine.lock();
        let given = self
            .pid
            .compare_exchange(0, assignment.id, Ordering::SeqCst, Ordering::SeqCst);
        if given.is_err() {
            return Err("this process has an id already".to_owned());
        }
        machine.assign(assignment.id);
        machine.set_topology(topology);
        drop(machine);
        *self.cluster.lock() = assignment.cluster;
        self.topology.store(assignment.topology, Ordering::SeqCst);
        Ok(())
    }

    /// The process at the other end of a socket: one that the core has taken over, or a duplicate of it.
    pub fn peer_of_socket(&self, fd: i32) -> Option<ProcId> {
        // SAFETY: the descriptor is only asked what it stands for; where it is none, that fails.
        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        let wanted = rustix::fs::fstat(fd).ok()?;
        self.connections
            .read()
            .values()
            .find(|link| {
                rustix::fs::fstat(link.fd())
                    .is_ok_and(|s| (s.st_dev, s.st_ino) == (wanted.st_dev, wanted.st_ino))
            })
            .map(|link| link.peer())
    }

    /// The address of this end of the connection to a process, where that is one over TCP.
    pub fn own_address_to(&self, pid: ProcId) -> Option<std::net::IpAddr> {
        let link = self.links.read().get(&pid)?.clone();
        let address = rustix::net::getsockname(link.fd()).ok()?;
        SocketAddr::try_from(address).ok().map(|a| a.ip())
    }

    pub(crate) fn listener_descriptors(&self) -> Vec<i32> {
        self.listeners.try_read().map_or_else(Vec::new, |listeners| {
            listeners.values().map(|l| l.fd().as_raw_fd()).collect()
        })
    }
}

fn begin_handshake(link: &Link, opening: Opening, binding: [u8; 32], deadline: Instant) -> Reading {
    let mut machine = opening.begin(binding);
    if let Some(hello) = machine.poll_output() {
        debug!(target: HANDSHAKE, "connection {}: sends {} bytes, now {:?}", link.token, hello.len(), machine.state());
        link.send_raw(&hello);
    }
    Reading::Handshake {
        machine: Box::new(machine),
        deadline,
    }
}

/// Says what is wrong, also where one end speaks TLS and the other does not.
fn explain(error: &HandshakeError, link: &Link, received: &[u8]) -> String {
    let is_record = matches!(received.first(), Some(&(TLS_ALERT | TLS_HANDSHAKE)));
    if *error == HandshakeError::BadMagic && is_record && !link.is_secured() {
        return "the other side speaks TLS, and this connection is without".to_owned();
    }
    error.to_string()
}

fn handshake_time() -> Instant {
    crate::sync::now() + Duration::from_millis(HANDSHAKE_DEADLINE_MS)
}

//! One process of the cluster: its state machine, connections, executors and reactor.

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, RwLock};
use pydist_proto::body::Pages;
use pydist_proto::handshake::{Cookie, Versions};
use pydist_proto::ids::{HEAD, ProcId, RefId};
use pydist_proto::liveness::{Liveness, Settings};
use pydist_proto::machine::{CallError, Counts, Machine};
use pydist_proto::message::{Member, Message};
use pydist_proto::topology::Topology;
use rustc_hash::FxHashMap;

use crate::cork::Cork;
use crate::credit::OnCredit;
use crate::death::Dying;
use crate::driver::Driver;
use crate::inbox::{Executor, Inbox, Item, Pushed, Taken};
use crate::link::Link;
use crate::listener::Listener;
use crate::log::{Limit, Refusals};
use crate::observing::Observing;
use crate::parker::Parked;
use crate::rings::Rings;
use crate::shared::Sharing;
use crate::stacks::Stacks;
use crate::tls::{Key, Tls, TlsError, TlsFiles};
use crate::trace::Trace;
use crate::waiter::Wake;

/// What a process needs to know to start.
pub struct Config {
    pub me: Member,
    pub cookie: Cookie,
    /// The public name of the cluster.
    pub cluster: [u8; 16],
    pub versions: Versions,
    pub allow_python_mismatch: bool,
    pub topology: Topology,
    /// Messages over this many bytes are refused.
    pub message_max: u64,
    /// Bytes of shared memory that are kept for further messages; 0: large buffers are streamed, not shared.
    pub shared_max: usize,
    /// The tag of connections over transports of managers, which both ends know with the cookie.
    pub transport_inst: [u8; 16],
}

/// The process could not start or connect.
#[derive(thiserror::Error, Debug)]
pub enum NodeError {
    #[error("cannot listen on {0}: {1}")]
    Listen(String, std::io::Error),
    #[error("cannot connect to {0}: {1}")]
    Dial(String, std::io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// Why a worker did not join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JoinError {
    TimedOut,
    Signal,
    /// The handshake failed, or the connection broke before the worker was ready.
    Failed(String),
}

/// How far a worker that was announced has come.
pub(crate) enum Arrival {
    /// With the token of the listener at which it dialled in; 0 before that.
    Expected(Member, u64),
    Ready,
    Failed(String),
}

/// Running totals and gauges of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatsSnapshot {
    pub counts: Counts,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub messages_sent: u64,
    pub messages_received: u64,
    pub connections: usize,
    pub queued_bytes: usize,
    /// Bytes of the memory files in use: own ones until all have let go of them, and received ones.
    pub shared_bytes: usize,
    /// Large messages that were streamed since memory could not be shared.
    pub share_fallbacks: u64,
    pub executors: usize,
    /// Messages that were dropped since they came too late, or twice.
    pub messages_dropped: u64,
    /// Connections that were accepted and not let in.
    pub connections_refused: u64,
}

/// One process of the cluster.
pub struct Node {
    pub(crate) this: Weak<Node>,
    pub(crate) config: Config,
    /// The id of this process, 0 until the head has given it one.
    pub(crate) pid: AtomicU32,
    pub(crate) cookie: RwLock<Cookie>,
    /// The key of TLS sessions.
    tls_key: Mutex<Key>,
    pub(crate) cluster: Mutex<[u8; 16]>,
    pub(crate) topology: AtomicU8,
    /// The next id that the head gives.
    pub(crate) ids: Arc<AtomicU32>,
    /// The system's ids of workers that are children of this process.
    pub(crate) children: Mutex<FxHashMap<ProcId, u32>>,
    /// Python connects to workers that have no address.
    transport: AtomicBool,
    pub(crate) driver: Driver,
    pub(crate) machine: Mutex<Machine<Wake>>,
    /// Which connections have rings that are read here.
    pub(crate) rings: Rings,
    pub(crate) sharing: Sharing,
    /// The connection on which messages to a process are sent.
    pub(crate) links: RwLock<FxHashMap<ProcId, Arc<Link>>>,
    /// Every connection, by its token.
    pub(crate) connections: RwLock<FxHashMap<u64, Arc<Link>>>,
    pub(crate) next_token: AtomicU64,
    /// By their tokens.
    pub(crate) listeners: RwLock<FxHashMap<u64, Arc<Listener>>>,
    pub(crate) inbox: Inbox,
    /// Answers that are held back, and calls.
    pub(crate) cork: Cork,
    pub(crate) calls_cork: Cork,
    pub(crate) on_credit: OnCredit,
    pub(crate) arrivals: Mutex<FxHashMap<ProcId, Arrival>>,
    pub(crate) arrived: Condvar,
    pub(crate) dying: Mutex<Vec<Dying>>,
    pub(crate) liveness: Mutex<Liveness>,
    pub(crate) stacks: Stacks,
    pub(crate) trace: Trace,
    pub(crate) observing: Observing,
    /// The start of the process, from which its state machines count time.
    pub(crate) born: Instant,
    /// References whose handles finalizers have dropped.
    pub(crate) dropped: crossbeam_queue::SegQueue<Dropped>,
    pub(crate) dropped_signalled: AtomicBool,
    /// One thread at a time tells owners of changed counts, so that they stay in order.
    pub(crate) telling: Mutex<()>,
    pub(crate) bytes_received: AtomicU64,
    pub(crate) messages_received: AtomicU64,
    /// Totals of connections that have closed.
    pub(crate) closed_sent: AtomicU64,
    pub(crate) closed_messages: AtomicU64,
    pub(crate) closing: AtomicBool,
    pub(crate) exit_on_head_loss: AtomicBool,
    pub(crate) noted: Mutex<Limit>,
    pub(crate) refusals: Mutex<Refusals>,
    /// Why the connection to the head could not be made.
    pub(crate) head_error: Mutex<Option<String>>,
    /// The pipe whose other end only the parent has.
    pub(crate) parent: Mutex<Option<std::os::fd::OwnedFd>>,
    /// Python is to hear of those that join and leave.
    pub(crate) members_watched: AtomicBool,
    /// Connections that were not read may be read again.
    pub(crate) resumed: AtomicBool,
    /// When tables that have become too large are to shrink.
    pub(crate) shrink_at: Mutex<Option<Instant>>,
    /// Messages to processes to which no connection could be made, as this process had no descriptor left.
    pub(crate) deferred: Mutex<Vec<(ProcId, Message)>>,
    pub(crate) any_deferred: AtomicBool,
}

/// What a finalizer leaves behind.
pub(crate) enum Dropped {
    Handle(RefId),
    Body(Vec<pydist_proto::ids::RemoteRef>),
}

/// Changed counts are told to owners after this time at most.
pub(crate) const TELL_AFTER: Duration = Duration::from_millis(3);

impl Node {
    /// Starts the process: its reactor thread runs from now on.
    pub fn start(config: Config) -> Result<Arc<Node>, NodeError> {
        let node = Node::new(config)?;
        crate::reactor::spawn(node.clone())?;
        Ok(node)
    }

    /// Makes the process's state; nobody reads its sockets yet.
    pub(crate) fn new(config: Config) -> Result<Arc<Node>, NodeError> {
        Pages::unmapped_by(crate::freeing::unmap_pages);
        let driver = Driver::new()?;
        let node = Arc::new_cyclic(|this| Node {
            this: this.clone(),
            driver,
            rings: Rings::default(),
            sharing: Sharing::new(config.shared_max),
            machine: Mutex::new(Machine::new(config.me.clone())),
            pid: AtomicU32::new(config.me.pid),
            cookie: RwLock::new(config.cookie.clone()),
            tls_key: Mutex::default(),
            cluster: Mutex::new(config.cluster),
            topology: AtomicU8::new(config.topology.to_byte()),
            ids: Arc::new(AtomicU32::new(HEAD + 1)),
            children: Mutex::default(),
            transport: AtomicBool::new(false),
            config,
            links: RwLock::default(),
            connections: RwLock::default(),
            next_token: AtomicU64::new(1),
            listeners: RwLock::default(),
            inbox: Inbox::default(),
            cork: Cork::default(),
            calls_cork: Cork::default(),
            on_credit: OnCredit::default(),
            arrivals: Mutex::default(),
            arrived: Condvar::new(),
            dying: Mutex::default(),
            liveness: Mutex::new(Liveness::new(Settings::default())),
            stacks: Stacks::default(),
            trace: Trace::default(),
            observing: Observing::default(),
            born: crate::sync::now(),
            dropped: crossbeam_queue::SegQueue::new(),
            dropped_signalled: AtomicBool::new(false),
            telling: Mutex::new(()),
            bytes_received: AtomicU64::new(0),
            messages_received: AtomicU64::new(0),
            closed_sent: AtomicU64::new(0),
            closed_messages: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            exit_on_head_loss: AtomicBool::new(false),
            noted: Mutex::default(),
            refusals: Mutex::default(),
            head_error: Mutex::default(),
            parent: Mutex::default(),
            members_watched: AtomicBool::new(false),
            resumed: AtomicBool::new(false),
            shrink_at: Mutex::new(None),
            deferred: Mutex::default(),
            any_deferred: AtomicBool::new(false),
        });
        node.machine.lock().set_topology(node.config.topology);
        Ok(node)
    }

    pub fn me(&self) -> ProcId {
        self.pid.load(Ordering::Relaxed)
    }

    /// Takes the next `count` ids, which nobody else gets; returns the first.
    pub fn take_ids(&self, count: u32) -> ProcId {
        self.ids.fetch_add(count, Ordering::SeqCst)
    }

    /// The id that is given next.
    pub fn next_id(&self) -> ProcId {
        self.ids.load(Ordering::SeqCst)
    }

    /// Sets which workers are connected to each other, for those that join from now on.
    pub fn set_topology(&self, topology: Topology) {
        self.topology.store(topology.to_byte(), Ordering::SeqCst);
    }

    /// Changes the secret, for connections that are made from now on.
    pub fn set_cookie(&self, cookie: Cookie) {
        *self.cookie.write() = cookie;
    }

    /// Has connections with TLS use the key and the authority of the user, in place of a key made in memory.
    pub fn use_tls_files(&self, files: &TlsFiles) -> Result<(), NodeError> {
        Ok(self.tls_key.lock().use_files(files)?)
    }

    pub(crate) fn tls(&self) -> Result<Arc<Tls>, TlsError> {
        self.tls_key.lock().tls()
    }

    /// Python connects to workers that have no address from now on.
    pub fn use_transport(&self) {
        self.transport.store(true, Ordering::SeqCst);
    }

    pub(crate) fn has_transport(&self) -> bool {
        self.transport.load(Ordering::SeqCst)
    }

    pub(crate) fn is_admitting(&self, listener: u64) -> bool {
        listener != 0 && self.listeners.read().get(&listener).is_none_or(|l| l.admits)
    }

    /// Dials the head, at one of several addresses; whether it has joined is told by [`Node::wait_open`].
    pub fn dial_head(&self, address: &str, inst: [u8; 16]) -> Result<(), NodeError> {
        self.dial_peer(HEAD, address, inst)
            .map(|_| ())
            .map_err(|e| NodeError::Dial(address.to_owned(), e))
    }

    /// Waits until the connection to the head is open, or says why it is not.
    pub fn wait_open(&self, wait: Duration) -> Result<(), String> {
        let until = crate::sync::now() + wait;
        let mut error = self.head_error.lock();
        loop {
            if let Some(error) = error.take() {
                return Err(error);
            }
            if self.exit_on_head_loss.load(Ordering::SeqCst) {
                return Ok(());
            }
            if crate::sync::now() >= until {
                return Err("process 1 did not answer in time".to_owned());
            }
            self.arrived.wait_for(&mut error, Duration::from_millis(20));
        }
    }

    /// Tells the head that this worker answers calls from now on, and where it listens.
    pub fn announce_ready(&self, address: String) {
        let member = Member {
            pid: self.me(),
            address,
            ..self.config.me.clone()
        };
        self.send_message(HEAD, Message::Ready { member });
    }

    /// Ends this process when a descriptor hangs up: the pipe whose other end only the parent has.
    pub fn watch_parent(&self, pipe: std::os::fd::OwnedFd) -> Result<(), NodeError> {
        use std::os::fd::AsFd;
        self.driver.watch(pipe.as_fd(), crate::dispatch::PARENT)?;
        *self.parent.lock() = Some(pipe);
        Ok(())
    }

    /// Asks a worker to end.
    pub fn ask_exit(&self, pid: ProcId) {
        self.send_message(pid, Message::Exit);
    }

    /// Interrupts the calls that run on a process.
    pub fn interrupt(&self, pid: ProcId) {
        if pid == self.me() {
            self.push_item(Item::Interrupt(None));
        } else {
            self.send_message(pid, Message::Interrupt);
        }
    }

    /// Announces a worker that is going to dial in.
    pub fn expect_worker(&self, member: Member) {
        self.arrivals
            .lock()
            .insert(member.pid, Arrival::Expected(member, 0));
    }

    /// Tells the system's id of a worker that is a child of this process, whose exit status is to be known.
    pub fn set_worker_ospid(&self, pid: ProcId, ospid: u32) {
        self.children.lock().insert(pid, ospid);
    }

    /// Ends the connection to a worker, and with it the worker.
    pub fn drop_worker(&self, pid: ProcId, reason: &str) {
        let link = self.links.read().get(&pid).cloned();
        if let Some(link) = link {
            self.fail_link(&link, reason);
        }
    }

    /// Gives up on a worker that was announced.
    pub fn forget_worker(&self, pid: ProcId) {
        self.arrivals.lock().remove(&pid);
        self.children.lock().remove(&pid);
    }

    /// How a worker that was announced is doing: `None` while it is on its way.
    pub fn worker_arrived(&self, pid: ProcId, wait: Duration) -> Option<Result<(), JoinError>> {
        let until = crate::sync::now() + wait;
        let mut arrivals = self.arrivals.lock();
        loop {
            match arrivals.get(&pid) {
                Some(Arrival::Ready) => {
                    arrivals.remove(&pid);
                    return Some(Ok(()));
                }
                Some(Arrival::Failed(reason)) => return Some(Err(JoinError::Failed(reason.clone()))),
                Some(Arrival::Expected(..)) => {}
                None => return Some(Err(JoinError::Failed("it was not announced".to_owned()))),
            }
            if self.arrived.wait_until(&mut arrivals, until).timed_out() {
                return None;
            }
        }
    }

    /// The members in the order of their ids.
    pub fn members(&self) -> Vec<Member> {
        self.machine.lock().members().cloned().collect()
    }

    pub fn member_ids(&self) -> Vec<ProcId> {
        self.machine.lock().members().map(|m| m.pid).collect()
    }

    /// Whether a process can be dialled from here, whatever the topology says.
    pub fn has_route_to(&self, pid: ProcId) -> bool {
        self.machine.lock().has_route_to(pid)
    }

    /// Fails unless `pid` can be called.
    pub fn check_pid(&self, pid: ProcId) -> Result<(), CallError> {
        self.open(|machine| machine.check_pid(pid))
    }

    /// Registers the calling thread as one that runs calls.
    ///
    /// One that is to stay is never told to stop for want of work.
    pub fn register_executor(&self, stays: bool) -> Arc<Executor> {
        self.inbox.register(stays)
    }

    pub fn unregister_executor(&self, executor: &Arc<Executor>) {
        self.inbox.unregister(executor);
    }

    /// There are to be no more executors than this; calls that would need more are refused where all are stuck.
    pub fn limit_executors(&self, limit: usize) {
        self.inbox.limit(limit);
    }

    /// There are no more executors than this for a while, as the system has no thread for another one.
    pub fn limit_executors_for(&self, limit: usize, time: Duration) {
        let until = crate::sync::now() + time;
        self.inbox.limit_until(limit, until);
        self.driver.arm(until);
    }

    /// Calls are refused while so many calls and requests of this process have no answer yet.
    pub fn limit_calls(&self, most: usize) {
        self.machine.lock().limit_calls(most);
    }

    /// The most bytes that the segments of a message may have.
    pub fn message_max(&self) -> u64 {
        self.config.message_max
    }

    /// Waits for something to do; `Err` is a signal.
    pub fn next_item(&self, executor: &Arc<Executor>, may_lead: bool) -> Result<Taken, Parked> {
        loop {
            if let Some(taken) = self.inbox.take(executor) {
                if taken.resumes {
                    self.resumed.store(true, Ordering::SeqCst);
                    self.wake_reader();
                }
                return Ok(taken);
            }
            self.uncork();
            if executor.parker.park(self, None, may_lead) == Parked::Signal || executor.take_interrupt() {
                return Err(Parked::Signal);
            }
        }
    }

    /// The call that the executor has taken starts.
    pub fn call_started(&self, executor: &Executor) {
        if self.inbox.started(executor) {
            self.driver.arm(crate::sync::now() + crate::inbox::STALL);
        }
    }

    /// Has the wait of an executor's call look for an exception that was sent to its thread; one that waits later
    /// looks then.
    pub fn nudge_executor(&self, executor: &Executor) {
        executor.interrupt(self);
    }

    /// The executor's call is about to block in a wait of pydist, which ends by itself if it `pauses`.
    pub fn block(&self, executor: &Executor, pauses: bool) {
        self.uncork();
        if let Some(other) = self.inbox.block(executor, pauses) {
            other.parker.unpark(&self.driver);
        }
    }

    /// The executor's call goes on.
    pub fn unblock(&self, executor: &Executor) {
        self.inbox.unblock(executor);
    }

    /// Hands an item to the executors.
    pub fn push_item(&self, item: Item) {
        self.wake_executor(&self.inbox.push(item));
    }

    pub(crate) fn wake_executor(&self, pushed: &Pushed) {
        if pushed.check {
            self.driver.arm(crate::sync::now() + crate::inbox::STALL);
        }
        pushed.wake(&self.driver);
    }

    /// A finalizer drops the handle of a reference: callable from any thread at any moment.
    pub fn drop_handle(&self, id: RefId) {
        self.leave_dropped(Dropped::Handle(id));
    }

    /// A finalizer drops a body that named references.
    pub fn drop_refs(&self, refs: Vec<pydist_proto::ids::RemoteRef>) {
        if !refs.is_empty() {
            self.leave_dropped(Dropped::Body(refs));
        }
    }

    fn leave_dropped(&self, dropped: Dropped) {
        self.dropped.push(dropped);
        if !self.dropped_signalled.swap(true, Ordering::SeqCst) {
            self.wake_reader();
        }
    }

    /// Has whoever reads the sockets look at the timers.
    pub(crate) fn wake_reader(&self) {
        self.driver.kick();
        if self.driver.has_leader() {
            self.driver.wake_standby();
        }
    }

    pub fn stats(&self) -> StatsSnapshot {
        self.collect_dropped();
        let machine = self.machine.lock();
        let (counts, messages_dropped) = (machine.counts(), machine.strays());
        drop(machine);
        let connections_refused = self.refusals.lock().total;
        let links = self.connections.read();
        StatsSnapshot {
            counts,
            bytes_sent: self.closed_sent.load(Ordering::Relaxed)
                + links
                    .values()
                    .map(|l| l.bytes_sent.load(Ordering::Relaxed))
                    .sum::<u64>(),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            messages_sent: self.closed_messages.load(Ordering::Relaxed)
                + links
                    .values()
                    .map(|l| l.messages_sent.load(Ordering::Relaxed))
                    .sum::<u64>(),
            messages_received: self.messages_received.load(Ordering::Relaxed),
            connections: links.values().filter(|l| l.is_open()).count(),
            queued_bytes: links.values().map(|l| l.queued_bytes()).sum(),
            shared_bytes: self.sharing.bytes(),
            share_fallbacks: self.sharing.fallbacks.load(Ordering::Relaxed),
            executors: self.inbox.executors(),
            messages_dropped,
            connections_refused,
        }
    }

    /// Notes from now on what happens to calls; of more events than `capacity` the first are dropped.
    pub fn trace_start(&self, capacity: usize) {
        self.trace.start(capacity);
    }

    /// Notes no more; gives the events, [`crate::trace::EVENT_BYTES`] each, and how many were dropped.
    pub fn trace_stop(&self) -> (Vec<u8>, u64) {
        self.trace.stop()
    }

    /// Whether it is noted what happens to calls.
    pub fn is_traced(&self) -> bool {
        self.trace.is_on()
    }

    /// Has Python hear of every process that joins or leaves from now on.
    pub fn watch_members(&self) {
        self.members_watched.store(true, Ordering::SeqCst);
    }

    pub(crate) fn members_changed(&self) {
        if self.members_watched.load(Ordering::SeqCst) {
            self.push_item(Item::Members);
        }
    }

    pub fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    /// Stops the executors and the reactor; connections are shut down.
    pub fn close(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for executor in self.inbox.stop() {
            executor.parker.unpark(&self.driver);
        }
        for link in self.connections.read().values() {
            link.close();
        }
        self.listeners.write().clear();
        self.driver.kick();
        self.driver.wake_standby();
    }

    /// The descriptors that a forked child closes.
    pub fn close_descriptors_after_fork(&self) {
        let mut raw: Vec<i32> = self
            .driver
            .descriptors()
            .into_iter()
            .map(|fd| std::os::fd::AsRawFd::as_raw_fd(&fd))
            .collect();
        if let Some(connections) = self.connections.try_read() {
            raw.extend(connections.values().map(|l| l.raw_fd()));
        }
        raw.extend(self.listener_descriptors());
        raw.extend(self.sharing.after_fork());
        for fd in raw {
            // SAFETY: in the child no other thread exists, and the node is never used again there, so nobody
            // else closes or reads these descriptors (tests/lifecycle/test_fork.py).
            unsafe { libc::close(fd) };
        }
    }
}

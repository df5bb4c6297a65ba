//! The reactor thread: reads the sockets while no waiting thread does, and runs the timers.

use crate::death::Fate;
use crate::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pydist_proto::ids::HEAD;

use crate::inbox::Item;
use crate::link::{Link, Reading};
use crate::node::Node;
use crate::poll::interrupted;

/// The tables of the machine give back what they do not need after this time, when a burst may be over.
const SHRINK_AFTER: Duration = Duration::from_millis(100);

/// So much of what finalizers have left may wait for the reactor.
const DROPPED_MAX: usize = 1024;

/// Starts the thread; it ends once the node closes. It never attaches to Python.
pub(crate) fn spawn(node: Arc<Node>) -> std::io::Result<()> {
    spawn_without_signals("pydist-reactor", move || run(&node))
}

/// Starts a thread that runs no handler of a signal.
pub(crate) fn spawn_without_signals(name: &str, run: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let blocked = block_signals();
    let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(run);
    restore_signals(&blocked);
    spawned.map(|_| ())
}

/// Reads the sockets while no waiting thread does, until the node closes.
pub(crate) fn run(node: &Node) {
    let mut events = Vec::with_capacity(32);
    while !node.is_closing() {
        node.driver.stand_by();
        if node.is_closing() {
            return;
        }
        match node.driver.wait(None, &mut events) {
            Ok(()) => {}
            Err(error) if interrupted(&error) => {}
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
        let leader = node.driver.has_leader();
        for event in events.drain(..) {
            if leader && event.token == crate::poll::WAKER {
                // Meant for the leader, who enters `epoll_wait` again while this thread stands by.
                node.driver.kick();
                continue;
            }
            // A leader that has come meanwhile goes on reading: by this thread it would have to be woken each time.
            node.handle_event(&event, &|| node.driver.has_leader());
        }
    }
}

impl Node {
    /// Reads what has come, unless a thread sits there that waits for it.
    pub(crate) fn read_in_passing(&self) {
        if self.driver.has_leader() {
            return;
        }
        self.driver.pass();
        let mut events = Vec::new();
        if self.driver.wait(Some(Duration::ZERO), &mut events).is_err() {
            return;
        }
        for event in events {
            self.handle_event(&event, &|| true);
            if event.token == crate::poll::WAKER && (self.driver.has_leader() || self.is_closing()) {
                // Meant for the leader or the reactor, which sits in `epoll_wait`.
                self.driver.kick();
            }
        }
    }

    /// The timer has fired.
    pub(crate) fn run_timers(&self) {
        self.driver.disarm();
        self.uncork();
        let now = crate::sync::now();
        self.collect_dropped();
        self.tell_owners();
        self.settle_returned();
        self.trim_pool(now);
        let stall = self.inbox.check_stall();
        stall.wake(&self.driver);
        if stall.check {
            self.driver.arm(now + crate::inbox::STALL);
        }
        self.give_memory_back(now);
        self.resume_listeners();
        self.send_deferred();
        self.look_for_idle_credit(now);
        self.answer_held();
        self.look_for_silence(now);
        self.look_for_stuck_stacks(now);
        self.look_for_deaths(now);
        self.end_slow_handshakes(now);
        self.tell_refusals(now);
    }

    /// The tables of the machine have much more room than they need.
    pub(crate) fn shrink_later(&self) {
        let mut shrink_at = self.shrink_at.lock();
        if shrink_at.is_none() {
            let at = crate::sync::now() + SHRINK_AFTER;
            *shrink_at = Some(at);
            self.driver.arm(at);
        }
    }

    /// Whether the time has come that `shrink_later` has set.
    fn is_to_shrink(&self, now: Instant) -> bool {
        let mut shrink_at = self.shrink_at.lock();
        let Some(at) = *shrink_at else {
            return false;
        };
        if now < at {
            self.driver.arm(at);
            return false;
        }
        *shrink_at = None;
        true
    }

    /// After a large number of calls or references the system gets their memory back.
    fn give_memory_back(&self, now: Instant) {
        if !self.is_to_shrink(now) {
            return;
        }
        let mut machine = self.machine.lock();
        if !machine.is_oversized() {
            return;
        }
        machine.shrink();
        drop(machine);
        self.inbox.shrink();
        #[cfg(all(target_os = "linux", target_env = "gnu"))]
        // SAFETY: it takes no pointers, and may be called by any thread at any time.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// A thread that makes references takes part in letting others go, so that it cannot be faster than the reactor.
    pub(crate) fn keep_up(&self) {
        if self.dropped.len() >= DROPPED_MAX {
            self.collect_dropped();
        }
    }

    /// Applies what finalizers have left.
    pub(crate) fn collect_dropped(&self) {
        // First: whoever leaves something from now on has it collected again, even if this round takes it up.
        self.dropped_signalled.store(false, Ordering::SeqCst);
        if self.dropped.is_empty() {
            return;
        }
        self.with_machine(|machine| {
            while let Some(dropped) = self.dropped.pop() {
                match dropped {
                    crate::node::Dropped::Handle(id) => machine.release(id),
                    crate::node::Dropped::Body(refs) => machine.release_refs(&refs),
                }
            }
        });
    }

    fn look_for_deaths(&self, now: Instant) {
        let mut over = Vec::new();
        let mut dying = self.dying.lock();
        dying.retain(|d| match crate::death::fate(d.ospid) {
            Fate::Ended(reason) => {
                over.push((d.pid, reason, d.silent));
                false
            }
            fate if matches!(fate, Fate::Reaped) || now >= d.until => {
                over.push((d.pid, d.reason.clone(), d.silent));
                false
            }
            _ => true,
        });
        let more = !dying.is_empty();
        drop(dying);
        for (pid, reason, silent) in over {
            if self.me() == HEAD {
                self.with_machine(|machine| machine.leave(pid, &reason));
            } else {
                // Process 1 has not told that it is gone.
                self.with_machine(|machine| machine.lose(pid, &reason));
            }
            if self.is_to_be_killed(pid, silent) {
                self.push_item(Item::Silent(pid));
            }
        }
        if more {
            self.driver.arm(now + crate::death::STATUS_EVERY);
        }
    }

    fn end_slow_handshakes(&self, now: Instant) {
        let mut next: Option<Instant> = None;
        let mut late: Vec<(Arc<Link>, String)> = Vec::new();
        for link in self.connections.read().values().filter(|l| !l.is_open()) {
            let Some(mut reading) = link.reading.try_lock() else {
                continue;
            };
            let dialling = matches!(&*reading, Reading::Dialling { .. });
            let mut until = reading.deadline();
            if until.is_some_and(|until| until <= now) {
                if !dialling {
                    late.push((link.clone(), "the handshake took too long".to_owned()));
                } else if let Err(reason) = self.dial_next(link, &mut reading, "no answer in time") {
                    late.push((link.clone(), reason));
                }
                until = reading.deadline().filter(|until| *until > now);
            }
            if let Some(until) = until {
                next = Some(next.map_or(until, |n| n.min(until)));
            }
        }
        for (link, reason) in late {
            self.fail_link(&link, &reason);
        }
        if let Some(at) = next {
            self.driver.arm(at);
        }
    }
}

/// Blocks every signal in the calling thread, so that a thread started now never runs a handler.
fn block_signals() -> libc::sigset_t {
    // SAFETY: both sets are initialised by the calls themselves, and live on this stack frame.
    unsafe {
        let mut all = std::mem::zeroed();
        let mut before = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    }
}

fn restore_signals(before: &libc::sigset_t) {
    // SAFETY: `before` was filled by `pthread_sigmask` on this thread.
    unsafe {
        libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut());
    }
}

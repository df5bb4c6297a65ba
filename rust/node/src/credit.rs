//! Puts on credit: when a thread asks for credit, when it is given back, and what has to wait for such puts.
//!
//! A put on credit returns before its item has come to the owner. Messages to the owner come after it by the order of
//! the link; before Python sends anything to another process, it has the owner answer, so that nobody can hear of a put
//! and not find its item.

use std::cell::Cell;
use std::time::{Duration, Instant};

use pydist_proto::frame::Header;
use pydist_proto::ids::{ProcId, RefId, RemoteRef};
use pydist_proto::message::RefOp;

use crate::node::Node;
use crate::sending::Payload;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::trace::Kind;

/// Puts of a thread into one channel that follow each other within this time are in a row.
const GAP: Duration = Duration::from_millis(5);
/// From so many puts in a row on, a thread is taken to be going to put more.
const ROW: u32 = 8;
/// Credit that is not used for this time is given back, after twice that time at the latest.
const IDLE: Duration = Duration::from_millis(10);
/// Answers to those who put many items into a channel with little room are held back for so long at most.
pub(crate) const HELD: Duration = Duration::from_millis(2);

crate::sync::thread_local! {
    static LAST: Cell<Option<Put>> = const { Cell::new(None) };
}

/// The last put of a thread into a channel elsewhere.
#[derive(Clone, Copy)]
struct Put {
    channel: RefId,
    at: Instant,
    row: u32,
}

/// How many times the calling thread has put into a channel, one time after the other, this one included.
fn puts_in_a_row(channel: RefId) -> u32 {
    let at = crate::sync::now();
    let before = LAST.with(Cell::get);
    let before = before.filter(|last| last.channel == channel && at - last.at < GAP);
    let row = before.map_or(1, |last| last.row.saturating_add(1));
    LAST.with(|last| last.set(Some(Put { channel, at, row })));
    row
}

/// What has become of an item that was to be put on credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOnCredit {
    /// It was not sent.
    None,
    /// It is in the socket, and comes even if this process dies.
    Written,
    /// It waits in this process for room in the socket.
    Queued,
}

/// Puts on credit that the owner may not have read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsettled {
    /// The channel of the last one.
    pub target: RemoteRef,
    number: u64,
}

/// The last put on credit to each owner, unless that has answered something since.
#[derive(Default)]
pub(crate) struct OnCredit {
    owners: AtomicUsize,
    last: Mutex<Vec<Unsettled>>,
    puts: AtomicU64,
    /// When credit that is idle is looked for.
    due: Mutex<Option<Instant>>,
}

impl OnCredit {
    fn note(&self, target: RemoteRef) {
        let number = self.puts.fetch_add(1, Ordering::Relaxed);
        let put = Unsettled { target, number };
        let mut last = self.last.lock();
        match last.iter_mut().find(|put| put.target.owner == target.owner) {
            Some(before) => *before = put,
            None => {
                last.push(put);
                self.owners.store(last.len(), Ordering::SeqCst);
            }
        }
    }
}

impl Node {
    /// With which operation the calling thread is to put into a channel of another process, where it waits for each put.
    pub fn put_operation(&self, channel: RefId) -> RefOp {
        if puts_in_a_row(channel) >= ROW {
            RefOp::ChannelPutOfMany
        } else {
            RefOp::ChannelPut
        }
    }

    /// Puts a small item into a channel of another process, where the owner has set room aside; never waits.
    pub fn put_on_credit(&self, target: RemoteRef, payload: Payload<'_>) -> PutOnCredit {
        if !self.takes_small(target.owner)
            || !self.with_machine(|machine| machine.open_put_on_credit(target, payload.refs))
        {
            return PutOnCredit::None;
        }
        puts_in_a_row(target.id);
        self.on_credit.note(target);
        self.trace
            .note(Kind::Asked, RefOp::ChannelPutOnCredit as u8, target.owner, 0);
        let header = Header::ref_op(0, RefOp::ChannelPutOnCredit, target.id);
        // Where the connection has gone, the item goes with its owner.
        let _ = self.send_payload(target.owner, header, payload);
        let links = self.links.read();
        match links.get(&target.owner) {
            Some(link) if link.queued_bytes() > 0 => PutOnCredit::Queued,
            _ => PutOnCredit::Written,
        }
    }

    /// The puts on credit that owners other than a process may not have read: one for each owner.
    pub fn unsettled_puts(&self, but: ProcId) -> Vec<Unsettled> {
        if self.on_credit.owners.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        let mut puts = self.on_credit.last.lock().clone();
        puts.retain(|put| put.target.owner != but);
        puts
    }

    /// The owner has answered what was asked after this put, or is not waited for any longer.
    pub fn settled(&self, put: Unsettled) {
        let mut last = self.on_credit.last.lock();
        last.retain(|other| *other != put);
        self.on_credit.owners.store(last.len(), Ordering::SeqCst);
    }

    /// There is credit, which is to be given back once it is not used.
    pub(crate) fn watch_credit(&self) {
        let at = crate::sync::now() + IDLE;
        *self.on_credit.due.lock() = Some(at);
        self.driver.arm(at);
    }

    /// Gives the answers to puts that were held back.
    pub(crate) fn answer_held(&self) {
        self.with_machine(|machine| machine.answer_held());
    }

    /// Gives idle credit back, when it is time to look.
    pub(crate) fn look_for_idle_credit(&self, now: Instant) {
        let Some(due) = *self.on_credit.due.lock() else {
            return;
        };
        if now < due {
            return self.driver.arm(due);
        }
        *self.on_credit.due.lock() = None;
        if self.with_machine(|machine| machine.return_idle_credit()) {
            self.watch_credit();
        }
    }
}

//! What processes say to each other once they have authenticated.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::body::Body;
use crate::ids::{ProcId, RefId};

/// How the caller wants to hear of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CallMode {
    /// The value is sent back with the answer.
    Fetch = 0,
    /// The value stays with the process that ran the call, under the call's reference.
    Future = 1,
    /// Nothing is sent back.
    Do = 2,
}

/// How a call or an operation on a reference ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// The body is a pickled value.
    Value = 0,
    /// The body is a pickled exception.
    Error = 1,
    /// The call was cancelled.
    Cancelled = 2,
    /// Plain yes, without a body.
    Yes = 3,
    /// Plain no, without a body.
    No = 4,
    /// The reference has a value already.
    AlreadySet = 5,
    /// The process knows no such reference.
    UnknownRef = 6,
    /// The process that was asked is gone; the body is the reason as text.
    Exited = 7,
    /// The channel is closed; the body is the pickled exception of who closed it, or empty.
    Closed = 8,
    /// The process that was asked cannot be reached from the one that tells, but may live; the body is the reason.
    Lost = 9,
}

impl Status {
    /// The process that was asked is gone, or out of reach.
    pub fn is_gone(self) -> bool {
        matches!(self, Status::Exited | Status::Lost)
    }
}

/// An operation on a reference, sent to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RefOp {
    /// Answers with the value once there is one.
    Fetch = 0,
    /// Answers `Yes` once there is a value.
    Wait = 1,
    /// Answers at once whether there is a value.
    IsReady = 2,
    /// Sets the value.
    Put = 3,
    /// Cancels the call that is to make the value.
    Cancel = 4,
    /// Makes an empty future.
    Create = 5,
    /// The owner asks how often it is held by the word of a process that is gone, which goes in place of
    /// a request's number; the answer is among the changed counts.
    Recount = 6,
    /// Makes a channel; the body is its capacity, as 8 bytes.
    ChannelCreate = 7,
    /// Puts an item, once there is room.
    ChannelPut = 8,
    /// Answers with the first item, which leaves the channel.
    ChannelTake = 9,
    /// Answers with the first item, which stays.
    ChannelFetch = 10,
    /// Answers `Yes` once there is an item.
    ChannelWait = 11,
    /// Answers at once whether there is an item.
    ChannelIsReady = 12,
    /// Answers at once whether the channel is open.
    ChannelIsOpen = 13,
    /// Closes the channel.
    ChannelClose = 14,
    /// Cancels a fetching call of the sender unless it has begun; not answered.
    Recall = 15,
    /// Puts an item of a process that is going to put more, which the owner may give credit.
    ChannelPutOfMany = 16,
    /// Puts an item for which the owner has set room aside; not answered.
    ChannelPutOnCredit = 17,
    /// The owner has set room aside for so many more items as the number of the request says; not answered.
    ChannelCredit = 18,
    /// The owner wants that room back; answered with what is left of it, where something is.
    ChannelRecallCredit = 19,
    /// So much of that room as the number of the request says is not needed; not answered.
    ChannelReturnCredit = 20,
}

/// How an operation is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Withdrawal {
    /// Where it still waits; its answer tells whether it did.
    IfWaiting = 0,
    /// Nobody wants its answer, and none is given. What it did to a channel is undone as far as it can be.
    Undo = 1,
}

/// A change of how many times a process holds a reference, told to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefDelta {
    pub id: RefId,
    pub holder: ProcId,
    /// The process from which the holder has the reference; itself, where it made it.
    pub giver: ProcId,
    pub delta: i32,
}

/// A member of the cluster as the others know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Member {
    pub pid: ProcId,
    pub ospid: u32,
    /// Where it listens, one address a line: `unix:PATH`, `tcp:IP:PORT` or `tls:IP:PORT`; empty where nobody dials it.
    pub address: String,
    /// The tag of its listener, mixed into the handshake.
    pub inst: [u8; 16],
    pub host: String,
    /// The workers that it is connected to where the topology is custom, of those that joined before it.
    pub connected: Vec<ProcId>,
    /// What its manager told of it, for who connects by a transport of the manager's own.
    pub config: Vec<u8>,
}

/// A memory file that a process has received and does not map any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmapped {
    /// The number under which the sender sent it.
    pub file: u64,
    /// A forked child may still map it: its pages are never to be written to again.
    pub copied: bool,
}

/// That a process lives, and what it expects of who reads this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The settings of the sender, in milliseconds; a timeout of 0 is none.
    pub interval_ms: u64,
    pub timeout_ms: u32,
    /// The sender wants to hear something at each interval.
    pub listens: bool,
    /// What the sender says passes through Python, so that its silence means nothing.
    pub pumped: bool,
}

/// A message between two processes.
#[derive(Debug)]
pub enum Message {
    Call {
        id: u64,
        mode: CallMode,
        /// Calls of one lane run one at a time, in order; 0 is no lane.
        lane: u64,
        body: Body,
    },
    Result {
        id: u64,
        status: Status,
        body: Arc<Body>,
    },
    /// The call behind a future has ended; its value stays where it ran.
    Done {
        id: u64,
    },
    RefOp {
        req: u64,
        op: RefOp,
        target: RefId,
        body: Body,
    },
    /// Takes back an operation.
    Withdraw {
        req: u64,
        target: RefId,
        how: Withdrawal,
    },
    /// Takers have their items: each is named by the channel and the number of the request.
    Confirm {
        taken: Vec<(RefId, u64)>,
    },
    Refs {
        deltas: Vec<RefDelta>,
    },
    /// Memory files of the receiver are not mapped here any more.
    Unmapped {
        files: Vec<Unmapped>,
    },
    Interrupt,
    Exit,
    Join {
        member: Member,
    },
    Leave {
        pid: ProcId,
        reason: String,
    },
    /// A worker tells that it answers calls from now on, and where it listens.
    Ready {
        member: Member,
    },
    Ping {
        tick: u64,
    },
    Pong {
        tick: u64,
    },
    /// Asks what the receiver runs and waits for; answered with a text.
    Stacks {
        req: u64,
    },
    /// So many bytes in memory files have been read from the connection since the last such word.
    Received {
        bytes: u64,
    },
    /// Asks what the receiver does and holds; its core answers with a text.
    Observe {
        req: u64,
    },
    /// Asks the head for a process that the sender has not heard of; answered once all that it has to know has been sent.
    LookUp {
        req: u64,
        pid: ProcId,
    },
    /// The receiver may write to the sender through a ring, whose descriptor came beside.
    Ring {
        /// None where there was no room for it.
        file: Option<OwnedFd>,
    },
    /// The sender lives.
    Heartbeat(Heartbeat),
}

//! What executors do.

use std::os::fd::OwnedFd;

use pydist_proto::ids::{ProcId, RefId};
use pydist_proto::machine::Incoming;

/// Something for an executor to do.
#[derive(Debug)]
pub enum Item {
    Call(Incoming),
    /// Run a call that this process made to itself; the key names it in Python.
    Local(u64),
    /// Pickle the value of a reference for others.
    Export(RefId),
    /// Drop a channel that Python keeps.
    Freed(RefId),
    /// Interrupt the calls that run here: all, or one.
    Interrupt(Option<(ProcId, u64)>),
    /// A process has joined the cluster or left it.
    Members,
    /// A worker was silent for too long: nobody waits for it any more, and its manager is to put an end to it.
    Silent(ProcId),
    /// A process asks what this one runs and waits for.
    Stacks(ProcId, u64),
    /// Events wait for the log, and no thread of Python takes them.
    Log,
    /// A worker that dialled in at a listener by itself has joined: its id and the listener's token.
    Joined(ProcId, u64),
    /// Python is to connect a socket to a worker by the transport of its manager.
    Connect(ProcId, OwnedFd),
    /// The process is to end.
    Exit,
    /// The executors are to end.
    Stop,
}

impl Item {
    /// Whether it goes before calls.
    pub(super) fn is_urgent(&self) -> bool {
        !matches!(self, Item::Call(_) | Item::Local(_))
    }
}

/// What an executor has taken.
#[derive(Debug)]
pub struct Taken {
    pub item: Item,
    /// No other executor is idle: another thread is to be started.
    pub lonely: bool,
    /// The call is not to run: no thread is left for it, and all that there are wait for others.
    pub refused: bool,
    /// Its process may go on sending.
    pub(crate) resumes: bool,
}

impl Taken {
    pub(super) fn new(item: Item) -> Taken {
        Taken {
            item,
            lonely: false,
            refused: false,
            resumes: false,
        }
    }
}

//! What connects the state machine of a process to the operating system: sockets, one reactor thread, waiting.

#[cfg(not(target_os = "linux"))]
compile_error!(
    "pydist runs on Linux alone: its core needs epoll, futexes, memory files and the death signal of parents"
);

mod ahead;
mod connecting;
mod cork;
mod credit;
mod cursor;
mod death;
mod dialing;
mod dispatch;
mod driver;
mod ending;
mod freeing;
mod heaps;
pub mod inbox;
mod interfaces;
mod lanes;
mod link;
mod listener;
mod liveness;
mod log;
mod node;
mod observing;
mod opening;
mod outgoing;
#[cfg(not(feature = "shuttle"))]
pub mod output;
mod parker;
mod poll;
mod reactor;
mod ring;
mod rings;
#[cfg(all(test, feature = "shuttle"))]
mod schedules;
mod sending;
mod shared;
mod spin;
mod stacks;
mod strangers;
mod sync;
mod tls;
pub mod trace;
pub mod waiter;

pub use credit::{PutOnCredit, Unsettled};
pub use heaps::share_heaps;
pub use interfaces::interface_addresses;
pub use node::{Config, JoinError, Node, NodeError, StatsSnapshot};
pub use parker::Parked;
pub use pydist_proto::liveness::Settings as Heartbeats;
pub use sending::{CallFailed, Payload};
pub use tls::{TlsError, TlsFiles};

//! The protocol of pydist as pure state machines.
//!
//! Nothing here owns a socket, a thread, a clock, a source of randomness or a Python object: bytes, ids and
//! the time go in, frames and events come out.

pub mod body;
pub mod channel;
pub mod codec;
mod credit;
pub mod error;
pub mod frame;
pub mod handshake;
pub mod ids;
pub mod liveness;
pub mod machine;
pub mod message;
pub mod record;
pub mod schedule;
pub mod topology;

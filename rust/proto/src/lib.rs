//! The protocol of pydist as pure state machines.
//!
//! Nothing here owns a socket, a thread, a clock, a source of randomness or a Python object: bytes, ids and
//! the time go in, frames and events come out.

pub mod handshake;

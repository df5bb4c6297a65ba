//! What is fuzzed of the protocol, and what must hold whatever the input is.
//!
//! Each target takes any bytes. It panics where a promise of the protocol does not hold, which ends a run of `cargo
//! fuzz` (`fuzz/`) and a test on stable Rust (`tests/corpus.rs`) alike.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a promise that does not hold must end the run"
)]

mod chunks;
mod connection;
mod frames;
mod handshakes;
mod info;
mod input;
mod process;
pub mod seeds;
mod session;

/// Something that is fuzzed.
pub struct Target {
    /// The name of its binary in `fuzz/` and of its corpus.
    pub name: &'static str,
    /// Tries one input.
    pub run: fn(&[u8]),
    /// The inputs that fuzzing begins with.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All that is fuzzed.
pub const TARGETS: [Target; 7] = [
    Target {
        name: "frames",
        run: frames::frames,
        seeds: seeds::frames,
    },
    Target {
        name: "messages",
        run: frames::messages,
        seeds: seeds::messages,
    },
    Target {
        name: "chunks",
        run: chunks::chunks,
        seeds: seeds::chunks,
    },
    Target {
        name: "acceptor",
        run: handshakes::acceptor,
        seeds: seeds::acceptor,
    },
    Target {
        name: "initiator",
        run: handshakes::initiator,
        seeds: seeds::initiator,
    },
    Target {
        name: "info",
        run: info::info,
        seeds: seeds::info,
    },
    Target {
        name: "connection",
        run: connection::connection,
        seeds: seeds::connection,
    },
];

/// Tries one input of the target with this name.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.unwrap().run)(input);
}

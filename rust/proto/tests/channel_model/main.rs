//! A seeded simulation of channels: puts, takes, timeouts, closing, passing on and deaths in all orders, compared
//! with what each put and take was told (F6, F7, F46, F50, F51).
//!
//! `PYDIST_SIM_SEEDS=N` runs N seeds, `PYDIST_SIM_SEED=S` only seed S.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod items;
#[path = "../support/rng.rs"]
mod rng;
mod sim;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use rng::Rng;
use sim::{Mode, Sim};

const SEEDS: u64 = 10_000;

fn run(seed: u64, mode: Mode) -> [usize; 4] {
    let mut shape = Rng(seed ^ 0x5eed);
    let nodes = 2 + shape.below(4) as u32;
    let steps = 30 + shape.below(200);
    let mut sim = Sim::new(seed, nodes, mode);
    for _ in 0..steps {
        sim.step();
    }
    sim.finish()
}

fn run_all(mode: Mode) {
    let variable = |name| {
        let text: Option<String> = std::env::var(name).ok();
        text.and_then(|s| s.parse::<u64>().ok())
    };
    let seeds = match variable("PYDIST_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..variable("PYDIST_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut total = [0; 4];
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, mode))) {
            Ok(counts) => total.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n),
            Err(panic) => {
                eprintln!("PYDIST_SIM_SEED={seed} ({mode:?}) fails");
                resume_unwind(panic);
            }
        }
    }
    let [taken, timed_out, redelivered, on_credit] = total;
    eprintln!(
        "{mode:?}: {taken} items taken, {timed_out} requests timed out, {redelivered} items sent again, \
         {on_credit} put on credit"
    );
    assert!(taken > 0 && on_credit > 0);
    assert_eq!(timed_out > 0, mode != Mode::Calm);
    assert_eq!(redelivered > 0, mode == Mode::Deaths);
}

/// Without timeouts and deaths: first in, first out for each putter and taker, and nothing is lost or left behind.
#[test]
fn items_keep_their_order() {
    run_all(Mode::Calm);
}

/// F51: with timeouts and interrupted takers at any step an item is taken once or still there; a put that is told
/// that it was in time to be taken back is never seen.
#[test]
fn timeouts_lose_and_double_nothing() {
    run_all(Mode::Timeouts);
}

/// F6, F7: with deaths too, what a dead taker had not confirmed is taken by another one, and every wait ends.
#[test]
fn deaths_lose_and_double_nothing() {
    run_all(Mode::Deaths);
}

//! A seeded simulation of clusters: references, calls, waits and deaths in all orders (F6, F46, F47, F52, D2).
//!
//! `PYDIST_SIM_SEEDS=N` runs N seeds, `PYDIST_SIM_SEED=S` only seed S.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use support::{Rng, Sim};

const SEEDS: u64 = 10_000;
/// Seeds beyond those that found a fault once.
const PAST: [u64; 1] = [54_178];

fn run(seed: u64, kills: bool) -> (usize, usize) {
    let mut shape = Rng(seed ^ 0x5eed);
    let nodes = 2 + shape.below(4) as u32;
    let steps = 20 + shape.below(180);
    let mut sim = Sim::new(seed, nodes);
    for _ in 0..steps {
        sim.step(kills);
    }
    let sim = sim.finish_all();
    (sim.woken, sim.passed_on)
}

fn run_all(kills: bool) {
    let variable = |name| {
        std::env::var(name)
            .ok()
            .and_then(|s: String| s.parse::<u64>().ok())
    };
    let seeds: Vec<u64> = match variable("PYDIST_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (0..variable("PYDIST_SIM_SEEDS").unwrap_or(SEEDS))
            .chain(PAST)
            .collect(),
    };
    let (mut woken, mut shared) = (0, 0);
    for seed in seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, kills))) {
            Ok((w, s)) => {
                woken += w;
                shared += s;
            }
            Err(panic) => {
                eprintln!("PYDIST_SIM_SEED={seed} (kills: {kills}) fails");
                resume_unwind(panic);
            }
        }
    }
    eprintln!("{woken} waiters were woken, {shared} references passed on");
}

/// F46, F52: while nobody dies, a held reference is never freed, every wait ends, a value is written once, and at
/// rest no process keeps anything.
#[test]
fn references_live_as_long_as_they_are_held_and_no_longer() {
    run_all(false);
}

/// F6, F46, F47: the same with processes killed at any step; waits end by the death of who would have ended them.
#[test]
fn deaths_end_every_wait_and_leave_nothing_behind() {
    run_all(true);
}

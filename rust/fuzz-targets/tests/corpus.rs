//! Runs every target on its committed corpus, and on random changes of it, on stable Rust.
//!
//! `PYDIST_FUZZ_RUNS` is the number of changed inputs for each target, `PYDIST_FUZZ_SEED` where they begin.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

use std::path::{Path, PathBuf};

use pydist_fuzz_targets::{TARGETS, Target};

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn corpus(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/seeds")
        .join(target.name);
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect()
}

/// Makes one of the changes that a fuzzer makes.
fn change(rng: &mut Rng, input: &mut Vec<u8>, other: &[u8]) {
    let at = rng.below(input.len() + 1);
    let n = 1 + rng.below(8);
    match rng.below(7) {
        0 => input.truncate(at),
        1 => drop(input.drain(at..(at + n).min(input.len()))),
        2 => drop(input.splice(at..at, (0..n).map(|_| rng.next() as u8).collect::<Vec<_>>())),
        3 => {
            let from = rng.below(other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from.min(other.len())..]);
        }
        4 => {
            let again: Vec<u8> = input[at..(at + 8 * n).min(input.len())].to_vec();
            drop(input.splice(at..at, again));
        }
        choice => {
            let interesting = [0, 1, 2, 3, 15, 16, 127, 128, 254, 255];
            if let Some(byte) = input.get_mut(at) {
                *byte = match choice {
                    5 => *byte ^ (1 << rng.below(8)),
                    _ => interesting[rng.below(interesting.len())],
                };
            }
        }
    }
}

/// Prints the input of a run that fails, so that it can be kept.
struct Shown<'a>(&'a str, &'a [u8]);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let hex: String = self.1.iter().map(|byte| format!("{byte:02x}")).collect();
            eprintln!("the input of {} is {hex}", self.0);
        }
    }
}

fn check(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let corpus = corpus(target);
    assert!(corpus.len() >= (target.seeds)().len());
    for (path, input) in &corpus {
        let _shown = Shown(path.to_str().unwrap(), input);
        (target.run)(input);
    }
    let runs = setting("PYDIST_FUZZ_RUNS", 10_000);
    let mut rng = Rng(setting("PYDIST_FUZZ_SEED", 1));
    for _ in 0..runs {
        let mut input = corpus[rng.below(corpus.len())].1.clone();
        for _ in 0..1 + rng.below(6) {
            let other = &corpus[rng.below(corpus.len())].1;
            change(&mut rng, &mut input, other);
        }
        input.truncate(4096);
        let _shown = Shown(name, &input);
        (target.run)(&input);
    }
    println!("bad inputs: {} ({name})", corpus.len() as u64 + runs);
}

#[test]
fn frames() {
    check("frames");
}

#[test]
fn messages() {
    check("messages");
}

#[test]
fn chunks() {
    check("chunks");
}

#[test]
fn acceptor() {
    check("acceptor");
}

#[test]
fn initiator() {
    check("initiator");
}

#[test]
fn info() {
    check("info");
}

#[test]
fn connection() {
    check("connection");
}

/// What `write_seeds` writes is what is committed.
#[test]
fn the_seeds_are_committed() {
    for target in &TARGETS {
        let committed: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
        for seed in (target.seeds)() {
            assert!(
                committed.contains(&seed),
                "write the seeds of {} anew",
                target.name
            );
        }
    }
}

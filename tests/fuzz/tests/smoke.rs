//! Every target on its seeds, and on changes of them for a few seconds.
//!
//! The changes are the same in each run, as far as time lets it get; an input that fails is printed. More of them:
//! `KARST_FUZZ_SECONDS=600 KARST_FUZZ_SEED=7 cargo test --release -p karst-fuzz`.

#![expect(clippy::unwrap_used, reason = "it is a test")]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use karst_fuzz::mutation::{Random, mutate};
use karst_fuzz::{TARGETS, Target};

/// Time for each target, in seconds.
const SECONDS: u64 = 4;

/// Inputs that every run must get through, seeds apart: a target that is too slow for it is of no use.
const LEAST_INPUTS: usize = 50;

fn number(variable: &str, default: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    }
}

fn smoke(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = (target.seeds)();
    for seed in &seeds {
        try_one(target, seed);
    }
    let mut random = Random::new(number("KARST_FUZZ_SEED", 1));
    let end = Instant::now() + Duration::from_secs(number("KARST_FUZZ_SECONDS", SECONDS));
    let mut inputs = 0;
    while Instant::now() < end || inputs < LEAST_INPUTS {
        try_one(target, &mutate(&seeds, &mut random));
        inputs += 1;
    }
    println!("{name}: {inputs} inputs");
}

fn try_one(target: &Target, input: &[u8]) {
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let input = input.escape_ascii();
    assert!(outcome.is_ok(), "{} fails on \"{input}\"", target.name);
}

#[test]
fn route_compiler() {
    smoke("route_compiler");
}

#[test]
fn http_server() {
    smoke("http_server");
}

#[test]
fn hbone_server() {
    smoke("hbone_server");
}

#[test]
fn policy() {
    smoke("policy");
}

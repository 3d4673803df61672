//! What takes bytes from outside, as functions of bytes that must never panic and never hang.
//!
//! Each target is a module with `run`, which does the work on one input, and `seeds`, inputs that get far. Two
//! drivers use them: `tests/smoke.rs` mutates the seeds for a few seconds on stable Rust, as part of
//! `cargo xtask test`; the programs in `libfuzzer/` give them to libFuzzer, which looks at coverage and takes as
//! long as it is let (the command is in its manifest).
//!
//! It holds no test of what an answer should be; those are beside the code. Start with [`TARGETS`].

#![expect(
    clippy::unwrap_used,
    reason = "a target that cannot be set up must fail as loudly as one that finds something"
)]

pub mod hbone_server;
pub mod http_server;
pub mod mutation;
pub mod policy;
pub mod route_compiler;

/// One target.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, also that of the libFuzzer program.
    pub name: &'static str,
    /// Does the work on one input.
    pub run: fn(&[u8]),
    /// Inputs that get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 4] = [
    Target {
        name: "route_compiler",
        run: route_compiler::run,
        seeds: route_compiler::seeds,
    },
    Target {
        name: "http_server",
        run: http_server::run,
        seeds: http_server::seeds,
    },
    Target {
        name: "hbone_server",
        run: hbone_server::run,
        seeds: hbone_server::seeds,
    },
    Target {
        name: "policy",
        run: policy::run,
        seeds: policy::seeds,
    },
];

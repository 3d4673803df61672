//! The tunnel end to end over loopback: a pool and a server with certificates of a test CA.
#![expect(
    dead_code,
    reason = "the CA is shared with the tests of the identity crate"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

#[path = "../../../identity/tests/identity/ca.rs"]
mod ca;
mod support;

mod drain;
mod first;
mod flow;
mod io;
mod pool;
mod refusals;
mod resets;
mod sessions;

//! Runs the real controller on the loopback interface and talks to it as agents do.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that meets something unexpected has failed"
)]

mod access;
mod ca;
mod discovery;
mod harness;
#[path = "../../../waypoint/tests/proxy/ports.rs"]
mod ports;
mod process;
mod proxies;
mod source;
mod stream;

//! The balancer as its users see it: what the wire says in, endpoints out.
#![expect(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is wrong"
)]

mod choice;
mod ejection;
mod hashing;
mod registry;
mod support;
mod threads;

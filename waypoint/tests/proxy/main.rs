//! The proxy end to end on loopback: tunnels and connections come in, hand-made configuration says where they go,
//! and applications behind a tunnel of their own answer.
#![expect(
    dead_code,
    reason = "the CA is shared with the tests of the identity crate"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test stops at the first thing that is wrong"
)]

#[path = "../../../node-agent/identity/tests/identity/ca.rs"]
mod ca;
mod ports;
mod support;
mod wires;

mod authn;
mod authz;
mod custom;
mod drain;
mod gateway;
mod mesh;

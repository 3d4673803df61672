//! Connections to applications, over loopback and over a tunnel server with certificates of a test CA.
#![expect(
    dead_code,
    reason = "the CA and the tunnel server are shared with the tests of their crates"
)]
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops at the first thing that is wrong"
)]

mod app;
#[path = "../../../node-agent/identity/tests/identity/ca.rs"]
mod ca;
#[path = "../../../node-agent/tunnel/tests/tunnel/support.rs"]
mod tunnel;

mod backend_tls;
mod bytes_passed;
mod hbone;
mod http1;
mod http2;
mod limits;
mod support;

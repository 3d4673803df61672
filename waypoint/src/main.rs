//! `karst-waypoint`: will be the proxy that applies policy to HTTP and gRPC requests, and the
//! ingress gateway.
//!
//! It is not built yet. So that nobody takes it for running, the program refuses to start; until it
//! is there, the node agents refuse traffic that a waypoint would have to see. The parts it will
//! stand on are in `node-agent/tunnel` and `node-agent/identity`; start reading there.

use std::process::ExitCode;

use clap::Parser;

/// `EX_UNAVAILABLE` of sysexits(3): the service asked for is not to be had.
const UNAVAILABLE: u8 = 69;

/// The waypoint proxy of Karst: not built yet; it exits with status 69.
#[derive(Parser)]
#[command(version)]
struct Cli {}

fn main() -> ExitCode {
    Cli::parse();
    eprintln!(
        "error: the waypoint is not built yet; this version of Karst has no layer 7 features"
    );
    ExitCode::from(UNAVAILABLE)
}

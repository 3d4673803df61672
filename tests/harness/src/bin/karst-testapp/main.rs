//! The test application: servers of every kind of protocol that a mesh has to carry, and
//! clients that do one thing with a connection and say in JSON what they saw.
//!
//! It knows nothing of Karst. `serve` opens all servers of [`ports`]; each client command
//! prints one JSON object and exits with 0 when it could do what was asked. Tests in
//! `tests/lab` run it in pods; it is equally useful by hand with `cargo xtask lab exec`.

mod bulk;
mod client;
mod client_spans;
mod crowd;
mod http_client;
mod http_server;
mod load;
mod ports;
mod sha1;
mod stress;
mod tcp_server;
mod udp;
mod websocket;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

#[derive(Parser)]
#[command(
    name = "karst-testapp",
    about = "Servers and clients for tests of a mesh"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Open all servers, and tell events as JSON lines.
    Serve,
    /// Connect, and tell the addresses the socket shows, or the error.
    Connect(client::Connect),
    /// Connect, then send each line of standard input and print the line that comes back.
    Chat(client::Target),
    /// Send bytes to a sink, end the sending side, and compare hashes with it.
    Upload(bulk::Transfer),
    /// Ask a source for bytes and compare hashes with it.
    Download(bulk::Transfer),
    /// Read a server that ends its sending side first to its end, then send it bytes.
    AfterEof(bulk::Transfer),
    /// Reset a connection to an echo server.
    Reset(client::Target),
    /// Talk to a server that resets the connection, and tell how that looks.
    SeeReset(client::Target),
    /// Write to a server that hardly reads until nothing more is taken, then wait for the end
    /// of standard input.
    StallWrite(client::Target),
    /// Ask a source for endless bytes, read none, and wait for the end of standard input.
    StallRead(client::Target),
    /// Open, use and close many connections.
    Storm(crowd::Storm),
    /// Open many connections of every shape and check each byte that comes, at both ends.
    Stress(stress::Stress),
    /// Ask a server what it saw of `stress`.
    StressTotals(client::Target),
    /// Open many connections, use each once, and keep them until standard input ends.
    Hold(crowd::Hold),
    /// Send a datagram and wait for its echo.
    Udp(client::Target),
    /// Ask for a page with HTTP/1.1 or HTTP/2.
    Http(http_client::Http),
    /// Ask for many pages or make many calls, and tell who answered, and when.
    Load(load::Load),
    /// Ask for a page that comes bit by bit, and tell when each bit came.
    Events(http_client::Http),
    /// Call both methods of the gRPC echo service.
    Grpc(client::Target),
    /// Echo a message over WebSocket.
    Websocket(client::Target),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = run(Cli::parse().command).await;
    let (report, code) = match result {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(report)) => (report, ExitCode::SUCCESS),
        Err(error) => (failure(&error), ExitCode::FAILURE),
    };
    println!("{report}");
    code
}

async fn run(command: Command) -> Result<Option<Value>> {
    let report = match command {
        Command::Serve => return tcp_server::serve().await.map(|()| None),
        Command::Chat(target) => return client::chat(&target).await.map(|()| None),
        Command::Connect(connect) => client::connect(&connect).await?,
        Command::Upload(transfer) => bulk::upload(&transfer).await?,
        Command::Download(transfer) => bulk::download(&transfer).await?,
        Command::AfterEof(transfer) => bulk::after_eof(&transfer).await?,
        Command::Reset(target) => client::reset(&target).await?,
        Command::SeeReset(target) => client::see_reset(&target).await?,
        Command::StallWrite(target) => crowd::stall_write(&target).await?,
        Command::StallRead(target) => crowd::stall_read(&target).await?,
        Command::Storm(storm) => crowd::storm(&storm).await?,
        Command::Stress(stress) => stress::stress(stress).await?,
        Command::StressTotals(target) => stress::totals(&target).await?,
        Command::Hold(hold) => crowd::hold(&hold).await?,
        Command::Udp(target) => udp::echo_once(&target).await?,
        Command::Http(http) => http_client::http(&http).await?,
        Command::Events(http) => http_client::events(&http).await?,
        Command::Load(load) => load::load(load).await?,
        Command::Grpc(target) => http_client::grpc(&target).await?,
        Command::Websocket(target) => websocket::echo_once(&target).await?,
    };
    Ok(Some(report))
}

/// What went wrong, with the name of the I/O error kind that tests compare.
fn failure(error: &anyhow::Error) -> Value {
    let io = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<std::io::Error>());
    json!({
        "ok": false,
        "error": format!("{error:#}"),
        "kind": io.map(|io| format!("{:?}", io.kind())),
    })
}

/// Tells an event of a server.
fn tell(event: &Value) {
    println!("{event}");
}

//! What applications do with connections. Each scenario must come out the same without a
//! mesh and with one; `tests/plain.rs` proves the first, so that a failure elsewhere points
//! at the mesh.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use karst_harness::{Running, until};
use serde_json::Value;

use crate::world::World;

/// The test application's ports (`karst-testapp`'s module `ports`).
pub mod port {
    /// HTTP of every kind.
    pub const HTTP: u16 = 8080;
    /// TCP echo.
    pub const ECHO: u16 = 7000;
    /// The server speaks first.
    pub const BANNER: u16 = 7001;
    /// UDP echo.
    pub const UDP_ECHO: u16 = 7002;
    /// Counts and hashes.
    pub const SINK: u16 = 7003;
    /// Sends as much as it is asked for.
    pub const SOURCE: u16 = 7004;
    /// Tells what the server's socket shows, on an IPv4 socket.
    pub const PEER_V4: u16 = 7005;
    /// The same on an IPv6 socket that takes IPv4 too.
    pub const PEER_DUAL: u16 = 7006;
    /// Resets.
    pub const RESET: u16 = 7007;
    /// Ends its sending side first.
    pub const FIRST_TO_END: u16 = 7008;
    /// Hardly reads.
    pub const SLOW: u16 = 7009;
    /// Nobody listens here.
    pub const CLOSED: u16 = 7999;
}

/// HTTP/1.1 with keep-alive, HTTP/2, gRPC with trailers, WebSocket.
pub fn http_of_every_kind(world: &World, from: &str, host: &str, port: u16) -> Result<()> {
    let at = format!("{host}:{port}");
    let first = world.app_ok(from, &["http", &at, "--requests", "5", "--body", "hello"])?;
    let page = &first["page"];
    ensure!(
        page["version"] == "HTTP/1.1" && page["body_bytes"] == 5,
        "{page}"
    );
    ensure!(
        page["headers"]["host"] == at.as_str(),
        "the host header was touched: {page}"
    );
    let added: Vec<&String> = page["headers"]
        .as_object()
        .context("no headers")?
        .keys()
        .collect();
    ensure!(
        added == ["content-length", "host"],
        "headers were added: {added:?}"
    );
    let second = world.app_ok(from, &["http", &at, "--requests", "5", "--http2"])?;
    ensure!(second["page"]["version"] == "HTTP/2.0", "{second}");
    let grpc = world.app_ok(from, &["grpc", &at])?;
    ensure!(grpc["unary"] == 1 && grpc["stream"] == 3, "{grpc}");
    world.app_ok(from, &["websocket", &at]).map(drop)
}

/// A connection to `dial` shows `peer` as its peer, and reaches a server that echoes.
pub fn peer_is_what_was_dialled(
    world: &World,
    from: &str,
    dial: &str,
    peer: &str,
    more: &[&str],
) -> Result<Value> {
    let mut args = vec!["connect", dial, "--send", "hello", "--read-lines", "1"];
    args.extend(more);
    let seen = world.app_ok(from, &args)?;
    ensure!(seen["lines"][0] == "hello", "no echo: {seen}");
    ensure!(seen["getpeername"] == peer, "dialled {peer}: {seen}");
    Ok(seen)
}

/// The server's `accept()` and `getpeername()` give the client pod's address and the port of
/// the client's own socket, and its `getsockname()` its own address.
pub fn server_sees_client(
    world: &World,
    from: &str,
    to: &str,
    dial: &str,
    more: &[&str],
) -> Result<()> {
    let mut args = vec!["connect", dial, "--read-lines", "1"];
    args.extend(more);
    let client = world.app_ok(from, &args)?;
    let line = client["lines"][0]
        .as_str()
        .context("the server told nothing")?;
    let server: Value = serde_json::from_str(line)?;
    let accepted = socket(&server["accept"])?;
    ensure!(
        server["getpeername"] == server["accept"],
        "accept() and getpeername() differ: {server}"
    );
    let own = world.lab.pod_addresses(from)?;
    ensure!(
        own.contains(&accepted.ip()),
        "{server}: the client is {own:?}"
    );
    let client_port = socket(&client["getsockname"])?.port();
    ensure!(
        accepted.port() == client_port,
        "{server}: the client's port is {client_port}"
    );
    let local = socket(&server["getsockname"])?;
    let servers = world.lab.pod_addresses(to)?;
    ensure!(
        servers.contains(&local.ip()),
        "{server}: the server is {servers:?}"
    );
    Ok(())
}

/// A socket address of a report, IPv4-mapped ones as IPv4.
pub fn socket(value: &Value) -> Result<SocketAddr> {
    let address: SocketAddr = value.as_str().context("no address")?.parse()?;
    let ip = match address.ip() {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), IpAddr::V4),
        v4 => v4,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

/// The server's first line comes although the client is silent.
pub fn server_speaks_first(world: &World, from: &str, host: &str) -> Result<()> {
    let at = format!("{host}:{}", port::BANNER);
    let seen = world.app_ok(from, &["connect", &at, "--read-lines", "1"])?;
    ensure!(seen["lines"][0] == "220 karst-testapp ready", "{seen}");
    Ok(())
}

/// The client ends its sending side, and still gets the server's whole answer.
pub fn client_ends_first(world: &World, from: &str, host: &str) -> Result<()> {
    world
        .app_ok(
            from,
            &["upload", &format!("{host}:{}", port::SINK), "3000000"],
        )
        .map(drop)
}

/// The server ends its sending side, and still gets everything the client sends after that.
pub fn server_ends_first(world: &World, from: &str, to: &str, host: &str) -> Result<()> {
    let at = format!("{host}:{}", port::FIRST_TO_END);
    let sent = world.app_ok(from, &["after-eof", &at, "3000000"])?;
    until("the server's report", Duration::from_secs(10), || {
        let log = world.lab.logs(to)?;
        let received = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut received = received.filter(|event| event["event"] == "after_eof");
        let found = received.any(|event| {
            event["received"]["sha256"] == sent["sha256"] && event["received"]["bytes"] == 3_000_000
        });
        ensure!(found, "the server has not received it all");
        Ok(())
    })
}

/// A client's reset reaches the server as a reset.
pub fn client_resets(world: &World, from: &str, to: &str, host: &str) -> Result<()> {
    let events = || -> Result<usize> {
        let log = world.lab.logs(to)?;
        let events = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        Ok(events
            .filter(|e| e["port"] == port::ECHO && e["kind"] == "ConnectionReset")
            .count())
    };
    let before = events()?;
    world.app_ok(from, &["reset", &format!("{host}:{}", port::ECHO)])?;
    until(
        "the server to see the reset",
        Duration::from_secs(10),
        || {
            ensure!(events()? > before, "the server has seen no reset");
            Ok(())
        },
    )
}

/// A server's reset reaches the client as a reset.
pub fn server_resets(world: &World, from: &str, host: &str) -> Result<()> {
    let seen = world.app_ok(from, &["see-reset", &format!("{host}:{}", port::RESET)])?;
    ensure!(seen["seen"] == "ConnectionReset", "{seen}");
    Ok(())
}

/// Bytes arrive as they were sent, both ways.
pub fn bulk(world: &World, from: &str, host: &str, bytes: u64) -> Result<()> {
    let bytes = bytes.to_string();
    world.app_ok(from, &["upload", &format!("{host}:{}", port::SINK), &bytes])?;
    world
        .app_ok(
            from,
            &["download", &format!("{host}:{}", port::SOURCE), &bytes],
        )
        .map(drop)
}

/// UDP goes its own way: the server sees the client's real address and port, and the client
/// its own.
pub fn udp(world: &World, from: &str, to: &str) -> Result<()> {
    for at in [
        world.at(to, port::UDP_ECHO)?,
        world.at6(to, port::UDP_ECHO)?,
    ] {
        let seen = world.app_ok(from, &["udp", &at])?;
        ensure!(seen["getpeername"] == at.as_str(), "{seen}");
        ensure!(
            socket(&seen["server_saw"])? == socket(&seen["getsockname"])?,
            "{seen}"
        );
    }
    Ok(())
}

/// Starts a client that holds what it has until its input ends (`hold`, `stall-write`,
/// `stall-read`) and gives it with its first report.
pub fn stall(world: &World, from: &str, args: &[&str]) -> Result<(Running, Value)> {
    let argv: Vec<&str> = ["karst-testapp"].iter().chain(args).copied().collect();
    let mut running = world.lab.spawn(from, &argv)?;
    let stdout = running
        .child()?
        .stdout
        .take()
        .context("no standard output")?;
    let mut lines = BufReader::new(stdout);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let report = serde_json::from_str(&line).with_context(|| format!("{args:?} told {line:?}"))?;
    // What it tells at its end must find a reader.
    std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    Ok((running, report))
}

//! Clients that do one thing with one connection.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, lookup_host};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// The limit of a step of a conversation that a healthy network answers in milliseconds.
const STEP_LIMIT: Duration = Duration::from_secs(20);

/// Whom to talk to.
#[derive(clap::Args)]
pub struct Target {
    /// host:port, the host an address or a name.
    pub address: String,
}

/// Arguments of `connect`.
#[derive(clap::Args)]
pub struct Connect {
    #[command(flatten)]
    target: Target,
    /// Use an IPv6 socket and an IPv4-mapped address.
    #[arg(long)]
    v4_mapped: bool,
    /// Bind the socket to this address first.
    #[arg(long)]
    bind: Option<IpAddr>,
    /// Send this line after connecting.
    #[arg(long)]
    send: Option<String>,
    /// Read this many lines.
    #[arg(long, default_value_t = 0)]
    read_lines: usize,
    /// Read to the end: tells the end (`eof` or the error's kind) of a connection that is
    /// closed only after it was established.
    #[arg(long)]
    read_to_end: bool,
    /// Give up after so many milliseconds.
    #[arg(long, default_value_t = 10_000)]
    limit_ms: u64,
}

/// The addresses a target's name has, in the system's order.
pub async fn addresses(target: &Target) -> Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = lookup_host(&target.address)
        .await
        .with_context(|| format!("looking up {}", target.address))?
        .collect();
    ensure!(!found.is_empty(), "{} has no address", target.address);
    Ok(found)
}

/// Connects and tells what the socket shows.
pub async fn connect(connect: &Connect) -> Result<Value> {
    let limit = Duration::from_millis(connect.limit_ms);
    let started = Instant::now();
    let mut address = addresses(&connect.target).await?[0];
    if connect.v4_mapped {
        let IpAddr::V4(v4) = address.ip() else {
            bail!("{address} is no IPv4 address")
        };
        address.set_ip(v4.to_ipv6_mapped().into());
    }
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(ip) = connect.bind {
        socket.bind(SocketAddr::new(ip, 0)).context("binding")?;
    }
    let connected = timeout(limit, socket.connect(address)).await;
    let elapsed = started.elapsed().as_secs_f64() * 1000.0;
    let stream = match connected {
        Ok(connected) => connected.with_context(|| format!("connecting after {elapsed:.1} ms"))?,
        Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    };
    let (getpeername, getsockname) = (stream.peer_addr()?, stream.local_addr()?);
    let mut stream = BufReader::new(stream);
    if let Some(line) = &connect.send {
        stream
            .write_all(format!("{line}\n").as_bytes())
            .await
            .context("sending")?;
    }
    let mut lines = Vec::new();
    for _ in 0..connect.read_lines {
        lines.push(read_line(&mut stream, limit).await?);
    }
    let mut end = None;
    if connect.read_to_end {
        let mut rest = Vec::new();
        end = Some(match timeout(limit, stream.read_to_end(&mut rest)).await {
            Ok(Ok(_)) => "eof".to_owned(),
            Ok(Err(error)) => format!("{:?}", error.kind()),
            Err(_) => "open".to_owned(),
        });
    }
    Ok(json!({
        "ok": true, "getpeername": getpeername, "getsockname": getsockname,
        "connect_ms": elapsed, "total_ms": started.elapsed().as_secs_f64() * 1000.0,
        "lines": lines, "end": end,
    }))
}

async fn read_line(stream: &mut BufReader<TcpStream>, limit: Duration) -> Result<String> {
    let mut line = String::new();
    let read = timeout(limit, stream.read_line(&mut line))
        .await
        .context("waiting for a line")?;
    ensure!(read.context("reading a line")? > 0, "the server closed");
    Ok(line.trim_end().to_owned())
}

/// Sends lines and prints those that come back, each as soon as it is there.
pub async fn chat(target: &Target) -> Result<()> {
    let address = addresses(target).await?;
    let stream = TcpStream::connect(&*address).await.context("connecting")?;
    let connected = json!({
        "ok": true, "getpeername": stream.peer_addr()?, "getsockname": stream.local_addr()?,
    });
    println!("{connected}");
    let mut stream = BufReader::new(stream);
    let mut lines = input_lines();
    while let Some(line) = lines.recv().await {
        stream
            .write_all(format!("{line}\n").as_bytes())
            .await
            .context("sending")?;
        println!("{}", read_line(&mut stream, STEP_LIMIT).await?);
    }
    stream.shutdown().await.context("ending the sending side")?;
    let mut rest = Vec::new();
    stream
        .read_to_end(&mut rest)
        .await
        .context("waiting for the server's end")?;
    ensure!(rest.is_empty(), "{} bytes came unasked", rest.len());
    Ok(())
}

/// Standard input's lines. They are read on a thread of their own that nobody waits for: a
/// blocked read must not keep a program from ending whose connection has failed.
pub fn input_lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Uses an echo server once and then resets the connection.
pub async fn reset(target: &Target) -> Result<Value> {
    let address = addresses(target).await?;
    let stream = TcpStream::connect(&*address).await.context("connecting")?;
    let local = stream.local_addr()?;
    let mut stream = BufReader::new(stream);
    stream.write_all(b"once\n").await?;
    read_line(&mut stream, STEP_LIMIT).await?;
    // Closing with zero linger sends a reset.
    socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))?;
    Ok(json!({"ok": true, "getsockname": local}))
}

/// Provokes a server's reset and tells how it looks from here.
pub async fn see_reset(target: &Target) -> Result<Value> {
    let address = addresses(target).await?;
    let mut stream = TcpStream::connect(&*address).await.context("connecting")?;
    stream.write_all(b"reset me\n").await?;
    let mut rest = Vec::new();
    let seen = timeout(STEP_LIMIT, stream.read_to_end(&mut rest))
        .await
        .context("waiting for the reset")?;
    let seen = match seen {
        Ok(_) => "eof".to_owned(),
        Err(error) => format!("{:?}", error.kind()),
    };
    Ok(json!({"ok": true, "seen": seen}))
}

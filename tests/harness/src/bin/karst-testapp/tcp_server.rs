//! The servers that speak plain TCP.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::bulk::{Pattern, Tally};
use crate::{http_server, ports, stress, tell, udp};

/// The line of the server that speaks first.
const BANNER: &str = "220 karst-testapp ready\n";
/// What the slow reader takes at a time, in bytes, and how often.
const SLOW_BYTES: usize = 16 * 1024;
const SLOW_EVERY: Duration = Duration::from_millis(50);

/// Opens all servers and serves until the process is killed.
pub async fn serve() -> Result<()> {
    let http = listen("[::]", ports::HTTP).await?;
    tokio::spawn(http_server::serve(http));
    tokio::spawn(udp::serve(ports::UDP_ECHO));
    stress::serve().await?;
    for (host, port) in [
        ("[::]", ports::ECHO),
        ("[::]", ports::BANNER),
        ("[::]", ports::SINK),
        ("[::]", ports::SOURCE),
        ("0.0.0.0", ports::PEER_V4),
        ("[::]", ports::PEER_DUAL),
        ("[::]", ports::RESET),
        ("[::]", ports::FIRST_TO_END),
        ("[::]", ports::SLOW),
    ] {
        let listener = listen(host, port).await?;
        tokio::spawn(accept(listener, port));
    }
    tell(&json!({"event": "serving"}));
    std::future::pending().await
}

async fn listen(host: &str, port: u16) -> Result<TcpListener> {
    TcpListener::bind(format!("{host}:{port}"))
        .await
        .with_context(|| format!("listening on {host}:{port}"))
}

async fn accept(listener: TcpListener, port: u16) {
    loop {
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            // The peer gave up before it was accepted; a full file table empties again.
            Err(_) => continue,
        };
        tokio::spawn(async move {
            if let Err(error) = converse(stream, from, port).await {
                tell(
                    &json!({"event": "error", "port": port, "from": from, "kind": format!("{:?}", error.kind())}),
                );
            }
        });
    }
}

async fn converse(mut stream: TcpStream, from: SocketAddr, port: u16) -> io::Result<()> {
    match port {
        ports::BANNER => {
            stream.write_all(BANNER.as_bytes()).await?;
            echo(stream).await
        }
        ports::SINK => sink(stream).await,
        ports::SOURCE => source(stream).await,
        ports::PEER_V4 | ports::PEER_DUAL => {
            let seen = json!({
                "accept": from, "getpeername": stream.peer_addr()?, "getsockname": stream.local_addr()?,
            });
            tell(&json!({"event": "peer", "port": port, "seen": seen}));
            stream.write_all(format!("{seen}\n").as_bytes()).await?;
            echo(stream).await
        }
        ports::RESET => {
            let mut stream = BufReader::new(stream);
            stream.read_line(&mut String::new()).await?;
            // Closing with zero linger sends a reset.
            socket2::SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO))
        }
        ports::FIRST_TO_END => first_to_end(stream, from).await,
        ports::SLOW => slow(stream).await,
        _ => echo(stream).await,
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..read]).await?;
    }
}

async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut tally = Tally::default();
    tally.read_to_end(&mut stream).await?;
    stream
        .write_all(format!("{}\n", tally.report()).as_bytes())
        .await?;
    stream.shutdown().await
}

async fn source(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let bytes = line
        .trim()
        .parse()
        .map_err(|_| io::Error::other("the line is no number"))?;
    let mut pattern = Pattern::new(bytes);
    while let Some(block) = pattern.next_block() {
        stream.write_all(block).await?;
    }
    stream.write_all(pattern.finish().as_bytes()).await?;
    stream.shutdown().await
}

async fn first_to_end(mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    stream.write_all(BANNER.as_bytes()).await?;
    stream.shutdown().await?;
    let mut tally = Tally::default();
    tally.read_to_end(&mut stream).await?;
    tell(&json!({"event": "after_eof", "from": from, "received": tally.report()}));
    Ok(())
}

async fn slow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; SLOW_BYTES];
    while stream.read(&mut buffer).await? > 0 {
        tokio::time::sleep(SLOW_EVERY).await;
    }
    Ok(())
}

//! UDP echo, both ends.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::client::{Target, addresses};

/// A lost datagram would mean waiting for ever.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Echoes datagrams, each with the sender's address before it.
pub async fn serve(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port))
        .await
        .context("binding the UDP socket")?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).await?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let answer = json!({"from": from, "text": text}).to_string();
        socket.send_to(answer.as_bytes(), from).await?;
    }
}

/// Sends one datagram by a connected socket and waits for its echo.
pub async fn echo_once(target: &Target) -> Result<Value> {
    let address = addresses(target).await?[0];
    let any = if address.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await.context("connecting")?;
    socket.send(b"hello").await.context("sending")?;
    let mut buffer = vec![0; 64 * 1024];
    let length = timeout(ANSWER_LIMIT, socket.recv(&mut buffer))
        .await
        .context("no echo")?;
    let answer: Value = serde_json::from_slice(&buffer[..length.context("receiving")?])?;
    Ok(json!({
        "ok": answer["text"] == "hello", "getpeername": socket.peer_addr()?,
        "getsockname": socket.local_addr()?, "server_saw": answer["from"],
    }))
}

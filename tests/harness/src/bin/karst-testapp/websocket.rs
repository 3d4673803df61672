//! WebSocket echo (RFC 6455), both ends: the handshake over HTTP/1.1, then frames of up to
//! 125 bytes, which is all the tests need.

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Target, addresses};
use crate::sha1::sha1;

/// What RFC 6455 appends to the client's key.
const MAGIC: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const TEXT: u8 = 0x1;
const CLOSE: u8 = 0x8;
/// The first byte's flag for a message's last frame.
const FINAL: u8 = 0x80;
/// The second byte's flag for a masked frame, as clients must send.
const MASKED: u8 = 0x80;
/// The longest frame with a one-byte length.
const LONGEST: usize = 125;

/// Answers a handshake and echoes messages once the connection is upgraded.
pub fn accept(mut request: Request<Incoming>) -> Response<()> {
    let mut response = Response::new(());
    let key = request
        .headers()
        .get("sec-websocket-key")
        .and_then(|key| key.to_str().ok());
    let accept = key
        .map(accept_key)
        .and_then(|accept| HeaderValue::from_str(&accept).ok());
    let Some(accept) = accept else {
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return response;
    };
    tokio::spawn(async move {
        if let Ok(upgraded) = hyper::upgrade::on(&mut request).await {
            // A client that breaks off is an ordinary end here.
            let _ = echo(TokioIo::new(upgraded)).await;
        }
    });
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert("upgrade", HeaderValue::from_static("websocket"));
    headers.insert("connection", HeaderValue::from_static("Upgrade"));
    headers.insert("sec-websocket-accept", accept);
    response
}

fn accept_key(key: &str) -> String {
    BASE64_STANDARD.encode(sha1(format!("{key}{MAGIC}").as_bytes()))
}

async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<()> {
    loop {
        let (kind, message) = read_frame(&mut stream).await?;
        write_frame(&mut stream, kind, &message, None).await?;
        if kind == CLOSE {
            stream.shutdown().await?;
            return Ok(());
        }
    }
}

/// Upgrades a connection, has a message echoed, and closes in the proper way.
pub async fn echo_once(target: &Target) -> Result<Value> {
    let address = addresses(target).await?;
    let stream = TcpStream::connect(&*address).await.context("connecting")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection.with_upgrades());
    let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
    let request = Request::get("/")
        .header("host", &target.address)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", &key)
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    ensure!(
        response.status() == StatusCode::SWITCHING_PROTOCOLS,
        "status {}",
        response.status()
    );
    let accept = response.headers().get("sec-websocket-accept").cloned();
    ensure!(
        accept.is_some_and(|accept| accept == accept_key(&key)),
        "another accept key"
    );
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await?);
    let mask = Some(rand::random());
    for (kind, message) in [(TEXT, &b"hello"[..]), (TEXT, b"again"), (CLOSE, b"")] {
        write_frame(&mut stream, kind, message, mask).await?;
        let (answered, echoed) = read_frame(&mut stream).await?;
        ensure!(
            (answered, echoed.as_slice()) == (kind, message),
            "another echo"
        );
    }
    Ok(json!({"ok": true, "messages": 2}))
}

async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: u8,
    message: &[u8],
    mask: Option<[u8; 4]>,
) -> Result<()> {
    ensure!(message.len() <= LONGEST, "the message is too long");
    let length = u8::try_from(message.len())?;
    let mut frame = vec![FINAL | kind, length | mask.map_or(0, |_| MASKED)];
    frame.extend(mask.into_iter().flatten());
    let mask = mask.unwrap_or_default();
    frame.extend(
        message
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    stream.write_all(&frame).await?;
    Ok(stream.flush().await?)
}

async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    stream
        .read_exact(&mut head)
        .await
        .context("reading a frame")?;
    let length = usize::from(head[1] & !MASKED);
    ensure!(length <= LONGEST, "a longer frame than is spoken here");
    let mut mask = [0; 4];
    if head[1] & MASKED != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await?;
    message
        .iter_mut()
        .zip(mask.iter().cycle())
        .for_each(|(byte, mask)| *byte ^= mask);
    Ok((head[0] & !FINAL, message))
}

#[cfg(test)]
mod tests {
    use super::accept_key;

    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(
            accept_key("dGhlIHNhbXBsZSBub25jZQ=="),
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
    }
}

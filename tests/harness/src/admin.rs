//! A small client of admin and metrics servers: HTTP/1.1 over the Unix socket of a node agent, or over
//! TCP inside a network namespace.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::netns;

/// An agent under load may take seconds; longer than that is a fault.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Asks for a document.
pub fn get(socket: &Path, path: &str) -> Result<Vec<u8>> {
    exchange(socket, "GET", path)
}

fn exchange(socket: &Path, method: &str, path: &str) -> Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(ANSWER_LIMIT))?;
    let head = format!("{method} {path} HTTP/1.1\r\nHost: karst\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream
        .read_to_end(&mut answer)
        .with_context(|| format!("{method} {path}"))?;
    let (status, body) = parse(&answer).with_context(|| format!("{method} {path}"))?;
    ensure!(
        (200..300).contains(&status),
        "{method} {path}: {status} {}",
        String::from_utf8_lossy(&body).trim()
    );
    Ok(body)
}

/// A document, as text, of a server that listens inside a network namespace.
pub fn get_in(netns: &str, server: &str, path: &str) -> Result<String> {
    netns::run_in(netns, || {
        let mut stream =
            TcpStream::connect(server).with_context(|| format!("connecting to {server}"))?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: karst\r\nConnection: close\r\n\r\n"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let (status, body) = parse(&answer)?;
        ensure!((200..300).contains(&status), "status {status}");
        Ok(String::from_utf8_lossy(&body).into_owned())
    })
    .with_context(|| format!("GET {path} of {server} in {netns}"))
}

/// Status and body of an HTTP/1.1 answer that ends with the connection.
fn parse(answer: &[u8]) -> Result<(u16, Vec<u8>)> {
    let end = answer
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .context("no HTTP answer")?;
    let head = std::str::from_utf8(&answer[..end])?;
    let body = &answer[end + 4..];
    let status = head.get(9..12).context("no status")?.parse()?;
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    Ok((
        status,
        if chunked {
            unchunk(body)?
        } else {
            body.to_vec()
        },
    ))
}

fn unchunk(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = body
            .windows(2)
            .position(|w| w == b"\r\n")
            .context("a chunk without size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..end])?.trim(), 16)?;
        let from = end + 2;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend(
            body.get(from..from + size)
                .context("a chunk is cut short")?,
        );
        body = body
            .get(from + size + 2..)
            .context("a chunk is cut short")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_with_length_and_in_chunks() {
        let plain = b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
        assert_eq!(parse(plain).unwrap(), (404, b"no".to_vec()));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap(), (200, b"abcde".to_vec()));
        assert!(parse(b"nonsense").is_err());
    }
}

//! HTTP/1.1 on one connection, blocking.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use anyhow::{Context, Result, bail, ensure};

use super::LIMIT;

/// The longest line of an answer's head; nginx's are far shorter.
const MAX_LINE: u64 = 8 << 10;

/// A small buffer: thousands of connections are held at once.
const READ_BUFFER: usize = 1 << 10;

/// A kept connection.
pub struct Http1 {
    stream: BufReader<TcpStream>,
    request: Vec<u8>,
}

impl Http1 {
    /// Connects.
    pub fn open(address: SocketAddr, path: &str) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, LIMIT)
            .with_context(|| format!("connecting to {address}"))?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        stream
            .set_read_timeout(Some(LIMIT))
            .context("setting a time limit")?;
        Ok(Self {
            stream: BufReader::with_capacity(READ_BUFFER, stream),
            request: format!("GET {path} HTTP/1.1\r\nHost: server\r\n\r\n").into_bytes(),
        })
    }

    /// One request and its whole answer.
    pub fn get(&mut self) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(&self.request)
            .context("sending a request")?;
        read_answer(&mut self.stream)
    }
}

fn read_answer(stream: &mut impl BufRead) -> Result<()> {
    let mut length = None;
    let mut line = String::new();
    let mut first = true;
    loop {
        line.clear();
        stream
            .by_ref()
            .take(MAX_LINE)
            .read_line(&mut line)
            .context("reading an answer")?;
        let text = line.trim_end();
        if first {
            ensure!(
                text.starts_with("HTTP/1.1 200"),
                "the server answered {text:?}"
            );
            first = false;
        } else if line.is_empty() {
            bail!("the connection ended inside an answer");
        } else if text.is_empty() {
            break;
        } else if let Some((name, value)) = text.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(
                value
                    .trim()
                    .parse::<u64>()
                    .with_context(|| format!("content-length {value}"))?,
            );
        }
    }
    let length = length.context("the answer has no content-length")?;
    let read =
        io::copy(&mut stream.by_ref().take(length), &mut io::sink()).context("reading a body")?;
    ensure!(
        read == length,
        "the body ended after {read} of {length} bytes"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_to_its_end() {
        let mut two: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        read_answer(&mut two).unwrap();
        read_answer(&mut two).unwrap();
        assert!(two.is_empty());
    }

    #[test]
    fn a_bad_answer_is_an_error() {
        for answer in [
            "HTTP/1.1 503 x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",
            "",
            "HTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert!(read_answer(&mut answer.as_bytes()).is_err(), "{answer}");
        }
    }
}

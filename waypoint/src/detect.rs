//! What a client speaks, from its first bytes.
//!
//! A client that waits for the server to speak first sends nothing: after [`SILENT`] it is taken for one that
//! does not speak HTTP, and bytes are passed on in both directions. One that has begun to speak does not wait for
//! the server, so that there is time to read on until its first line is there.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// How long a client that says nothing is waited for. A client of HTTP writes right after it has connected, and
/// what is between it and us takes milliseconds; a user of a protocol in which the server speaks first notices a
/// fifth of a second once a connection.
pub const SILENT: Duration = Duration::from_millis(200);

/// How long a client may take for its first line or hello once it has begun. It costs nobody else anything.
pub const BEGUN: Duration = Duration::from_secs(10);

/// Bytes after which a line that may still be HTTP's is taken for it: the server of HTTP then refuses it.
const MAX_FIRST_LINE: usize = 16 << 10;

/// Longest method we know of has 16 letters.
const MAX_METHOD: usize = 32;

/// The preface of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// HTTP/1 or HTTP/2.
    Http,
    /// A TLS client hello, or the beginning of one.
    Tls,
    /// Something else.
    Other,
    /// Nothing so far.
    Silent,
    /// Nothing, and nothing will come.
    Closed,
}

/// How long to wait for a client that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For the first byte.
    pub silent: Duration,
    /// For the rest, from the first byte on.
    pub begun: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            silent: SILENT,
            begun: BEGUN,
        }
    }
}

/// Reads until it is clear what `io` speaks, or the patience ends. What was read is in `read`.
///
/// # Errors
/// Those of reading.
pub async fn detect<IO>(io: &mut IO, read: &mut BytesMut, patience: Patience) -> io::Result<Spoken>
where
    IO: AsyncRead + Unpin,
{
    let mut until = Instant::now() + patience.silent;
    loop {
        if let Some(spoken) = classify(read) {
            return Ok(spoken);
        }
        let begun = !read.is_empty();
        match timeout_at(until, io.read_buf(read)).await {
            // A line that does not end is not HTTP's.
            Ok(Ok(0)) | Err(_) if begun => return Ok(Spoken::Other),
            Ok(Ok(0)) => return Ok(Spoken::Closed),
            Err(_) => return Ok(Spoken::Silent),
            Ok(Ok(_)) if !begun => until = Instant::now() + patience.begun,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// What the bytes are the beginning of; `None` while it is open.
fn classify(bytes: &[u8]) -> Option<Spoken> {
    match bytes {
        [] | [0x16] => return None,
        // A handshake record of any version of TLS.
        [0x16, 0x03, ..] => return Some(Spoken::Tls),
        _ => {}
    }
    let begins = bytes.len().min(PREFACE.len());
    if bytes[..begins] == PREFACE[..begins] {
        return (begins == PREFACE.len()).then_some(Spoken::Http);
    }
    request_line(bytes)
}

/// Whether the bytes begin with a request line of HTTP/1 (RFC 9112, section 3).
fn request_line(bytes: &[u8]) -> Option<Spoken> {
    // Empty lines before it are allowed; more than a few are not what any client sends.
    let skipped = bytes.iter().take_while(|b| matches!(b, b'\r' | b'\n'));
    let skipped = skipped.count();
    if skipped > 4 {
        return Some(Spoken::Other);
    }
    let bytes = &bytes[skipped..];
    let is_method =
        |b: &u8| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let method = bytes.iter().take_while(|b| is_method(b)).count();
    if method > MAX_METHOD {
        return Some(Spoken::Other);
    }
    match bytes.get(method) {
        None => return None,
        Some(b' ') if method > 0 => {}
        Some(_) => return Some(Spoken::Other),
    }
    let rest = &bytes[method + 1..];
    let end = rest.iter().position(|b| *b == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    if line.iter().any(|b| is_binary(*b)) {
        return Some(Spoken::Other);
    }
    let line = match end {
        Some(_) => line,
        None if bytes.len() >= MAX_FIRST_LINE => return Some(Spoken::Http),
        None => return None,
    };
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
    let known = matches!(
        version,
        [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']
    );
    Some(if known { Spoken::Http } else { Spoken::Other })
}

/// What no request line has before its end.
fn is_binary(byte: u8) -> bool {
    byte < b' ' && byte != b'\r' || byte == 0x7f
}

#[cfg(test)]
#[path = "detect_tests.rs"]
mod tests;

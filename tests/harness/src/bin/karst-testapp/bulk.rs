//! Long transfers whose two ends compare what they saw by hash.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::client::{Target, addresses};

/// Bytes written at a time.
const BLOCK: usize = 256 * 1024;
/// A SHA-256 hash in hexadecimal digits.
const HASH_DIGITS: usize = 64;

/// Arguments of a transfer.
#[derive(clap::Args)]
pub struct Transfer {
    #[command(flatten)]
    target: Target,
    /// How many bytes.
    bytes: u64,
}

/// A stream of bytes in which no two blocks are equal, so that a lost, doubled or swapped
/// block changes the hash.
pub struct Pattern {
    block: Vec<u8>,
    left: u64,
    number: u64,
    hasher: Sha256,
}

impl Pattern {
    /// A stream of so many bytes.
    pub fn new(bytes: u64) -> Self {
        // xorshift64: bytes without structure that a compressor or a checksum could like.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut block = Vec::with_capacity(BLOCK);
        while block.len() < BLOCK {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            block.extend_from_slice(&state.to_le_bytes());
        }
        Self {
            block,
            left: bytes,
            number: 0,
            hasher: Sha256::new(),
        }
    }

    /// The next bytes; none at the end.
    pub fn next_block(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        self.number += 1;
        self.block[..8].copy_from_slice(&self.number.to_le_bytes());
        let length = BLOCK.min(usize::try_from(self.left).unwrap_or(BLOCK));
        self.left -= length as u64;
        let block = &self.block[..length];
        self.hasher.update(block);
        Some(block)
    }

    /// The hash of what was taken.
    pub fn finish(self) -> String {
        hex(self.hasher)
    }
}

/// Counts and hashes what arrives.
#[derive(Default)]
pub struct Tally {
    bytes: u64,
    hasher: Sha256,
}

impl Tally {
    /// Takes bytes in.
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hasher.update(bytes);
    }

    /// Takes a stream in to its end.
    pub async fn read_to_end(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; BLOCK];
        loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            self.add(&buffer[..read]);
        }
    }

    /// Count and hash.
    pub fn report(self) -> Value {
        json!({"bytes": self.bytes, "sha256": hex(self.hasher)})
    }
}

fn hex(hasher: Sha256) -> String {
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Sends to a sink, ends the sending side, and reads the sink's answer.
pub async fn upload(transfer: &Transfer) -> Result<Value> {
    let started = Instant::now();
    let mut stream = dial(&transfer.target).await?;
    let sent = send(&mut stream, transfer.bytes).await?;
    stream.shutdown().await.context("ending the sending side")?;
    let mut answer = String::new();
    stream
        .read_to_string(&mut answer)
        .await
        .context("reading the sink's answer")?;
    let received: Value = serde_json::from_str(answer.trim()).context("the sink's answer")?;
    ensure!(
        received["sha256"] == sent.as_str(),
        "sent {sent}, the sink saw {received}"
    );
    ensure!(
        received["bytes"] == transfer.bytes,
        "the sink saw {received}"
    );
    Ok(
        json!({"ok": true, "bytes": transfer.bytes, "sha256": sent, "seconds": started.elapsed().as_secs_f64()}),
    )
}

/// Reads from a source and compares with the hash it sends at the end.
pub async fn download(transfer: &Transfer) -> Result<Value> {
    let started = Instant::now();
    let mut stream = dial(&transfer.target).await?;
    stream
        .write_all(format!("{}\n", transfer.bytes).as_bytes())
        .await?;
    let mut tally = Tally::default();
    let mut limited = (&mut stream).take(transfer.bytes);
    tally
        .read_to_end(&mut limited)
        .await
        .context("reading from the source")?;
    let received = tally.report();
    let mut hash = String::new();
    stream
        .read_to_string(&mut hash)
        .await
        .context("reading the source's hash")?;
    ensure!(received["bytes"] == transfer.bytes, "received {received}");
    ensure!(hash.len() == HASH_DIGITS, "the source's hash is {hash:?}");
    ensure!(
        received["sha256"] == hash.as_str(),
        "received {received}, the source sent {hash}"
    );
    Ok(
        json!({"ok": true, "bytes": transfer.bytes, "sha256": hash, "seconds": started.elapsed().as_secs_f64()}),
    )
}

/// Reads a server to its end, and sends only then.
pub async fn after_eof(transfer: &Transfer) -> Result<Value> {
    let mut stream = dial(&transfer.target).await?;
    let mut greeting = String::new();
    stream
        .read_to_string(&mut greeting)
        .await
        .context("reading to the end")?;
    let sent = send(&mut stream, transfer.bytes).await?;
    stream.shutdown().await.context("ending the sending side")?;
    Ok(json!({
        "ok": true, "greeting": greeting, "bytes": transfer.bytes, "sha256": sent,
        "getsockname": stream.local_addr()?,
    }))
}

async fn dial(target: &Target) -> Result<TcpStream> {
    let address = addresses(target).await?;
    TcpStream::connect(&*address).await.context("connecting")
}

async fn send(stream: &mut TcpStream, bytes: u64) -> Result<String> {
    let mut pattern = Pattern::new(bytes);
    while let Some(block) = pattern.next_block() {
        stream.write_all(block).await.context("sending")?;
    }
    Ok(pattern.finish())
}

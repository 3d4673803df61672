//! Clients with many connections, and clients that stop one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{Target, addresses, input_lines};

/// A write that takes longer than this is blocked.
const BLOCKED_AFTER: Duration = Duration::from_secs(1);
/// The limit of one short connection.
const USE_LIMIT: Duration = Duration::from_secs(20);

/// Arguments of `storm`.
#[derive(clap::Args)]
pub struct Storm {
    #[command(flatten)]
    target: Target,
    /// How many connections in all.
    count: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 16)]
    at_once: u64,
    /// Wait so many milliseconds after each connection.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Open no more once standard input has ended.
    #[arg(long)]
    until_eof: bool,
}

/// Arguments of `hold`.
#[derive(clap::Args)]
pub struct Hold {
    #[command(flatten)]
    target: Target,
    /// How many connections.
    count: usize,
}

/// Opens, uses and closes many connections to an echo server.
pub async fn storm(storm: &Storm) -> Result<Value> {
    let started = Instant::now();
    let target = Arc::new(addresses(&storm.target).await?);
    let left = Arc::new(AtomicU64::new(storm.count));
    let pause = Duration::from_millis(storm.pause);
    if storm.until_eof {
        let left = left.clone();
        tokio::spawn(async move {
            let mut lines = input_lines();
            while lines.recv().await.is_some() {}
            left.store(0, Ordering::Relaxed);
        });
    }
    let mut tasks = Vec::new();
    for _ in 0..storm.at_once {
        let (left, target) = (left.clone(), target.clone());
        tasks.push(tokio::spawn(async move {
            let mut failures = Vec::new();
            let mut made = 0;
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1))
                .is_ok()
            {
                made += 1;
                if let Err(error) = timeout(USE_LIMIT, use_once(&target))
                    .await
                    .context("too slow")
                    .flatten_error()
                {
                    failures.push(format!("{error:#}"));
                }
                tokio::time::sleep(pause).await;
            }
            (made, failures)
        }));
    }
    let mut failures: BTreeMap<String, u64> = BTreeMap::new();
    let mut made: u64 = 0;
    for task in tasks {
        let (count, failed) = task.await?;
        made += count;
        for failure in failed {
            *failures.entry(failure).or_default() += 1;
        }
    }
    let failed: u64 = failures.values().sum();
    Ok(json!({
        "ok": failed == 0, "count": made, "failed": failed, "failures": failures,
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

/// Both layers of an outcome as one.
trait FlattenError {
    fn flatten_error(self) -> Result<()>;
}

impl FlattenError for Result<Result<()>> {
    fn flatten_error(self) -> Result<()> {
        self?
    }
}

async fn use_once(target: &[std::net::SocketAddr]) -> Result<()> {
    let mut stream = TcpStream::connect(target).await.context("connect")?;
    ping(&mut stream).await
}

async fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"ping\n").await.context("write")?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await.context("read")?;
    Ok(())
}

/// Holds many connections until standard input ends.
pub async fn hold(hold: &Hold) -> Result<Value> {
    let target = addresses(&hold.target).await?;
    let mut held = Vec::with_capacity(hold.count);
    for _ in 0..hold.count {
        let mut stream = TcpStream::connect(&*target).await.context("connect")?;
        ping(&mut stream).await?;
        held.push(stream);
    }
    println!("{}", json!({"held": held.len()}));
    wait_for_input_end().await;
    for stream in &mut held {
        ping(stream).await.context("a held connection")?;
    }
    Ok(json!({"ok": true, "held": held.len()}))
}

/// Writes until nothing more is taken.
pub async fn stall_write(target: &Target) -> Result<Value> {
    let target = addresses(target).await?;
    let mut stream = TcpStream::connect(&*target).await.context("connect")?;
    let block = vec![7; 64 * 1024];
    let mut written = 0;
    while let Ok(count) = timeout(BLOCKED_AFTER, stream.write(&block)).await {
        written += count.context("write")?;
    }
    println!("{}", json!({"written": written, "blocked": true}));
    wait_for_input_end().await;
    Ok(json!({"ok": true, "written": written}))
}

/// Has a source send, and does not read.
pub async fn stall_read(target: &Target) -> Result<Value> {
    let target = addresses(target).await?;
    let mut stream = TcpStream::connect(&*target).await.context("connect")?;
    stream
        .write_all(format!("{}\n", u64::MAX / 2).as_bytes())
        .await?;
    println!("{}", json!({"asked": true}));
    wait_for_input_end().await;
    let mut first = [0; 64 * 1024];
    stream
        .read_exact(&mut first)
        .await
        .context("reading after the pause")?;
    Ok(json!({"ok": true}))
}

async fn wait_for_input_end() {
    let mut lines = input_lines();
    while lines.recv().await.is_some() {}
}

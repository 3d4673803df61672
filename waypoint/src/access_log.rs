//! The access log: one line a request or connection, written by a thread of its own.
//!
//! A worker hands a record over and goes on. When the reader of our output is too slow the queue fills up and
//! records are dropped and counted: a stuck log must not stop traffic.

mod line;
pub mod record;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

pub use record::{ConnectionRecord, Destination, EndpointRecord, Reporter, RequestRecord, Spoken};

use crate::args::AccessLogFormat;

/// Records that may wait for the writer. About 4 MB; a second of a busy proxy.
const QUEUE: usize = 8192;

/// Bytes collected before a write: one system call for a burst of records.
const BATCH_BYTES: usize = 64 << 10;

/// Where workers send records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    sender: Option<SyncSender<Entry>>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Request(SystemTime, Box<RequestRecord>),
    Connection(SystemTime, Box<ConnectionRecord>),
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Starts the writer thread on standard output; nothing for [`AccessLogFormat::Off`].
    ///
    /// # Errors
    /// No thread can be made.
    pub fn start(format: AccessLogFormat) -> io::Result<Self> {
        Self::start_on(format, io::stdout())
    }

    fn start_on(format: AccessLogFormat, output: impl Write + Send + 'static) -> io::Result<Self> {
        let dropped = Arc::new(AtomicU64::new(0));
        if format == AccessLogFormat::Off {
            return Ok(Self {
                sender: None,
                dropped,
            });
        }
        let (sender, receiver) = sync_channel(QUEUE);
        thread::Builder::new()
            .name("karst-access".to_owned())
            .spawn(move || write_all(&receiver, format, output))?;
        Ok(Self {
            sender: Some(sender),
            dropped,
        })
    }

    /// Whether records are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Hands a request's record over; drops and counts it when the queue is full.
    pub fn request(&self, record: RequestRecord) {
        self.send(|| Entry::Request(SystemTime::now(), Box::new(record)));
    }

    /// Hands a connection's record over, likewise.
    pub fn connection(&self, record: ConnectionRecord) {
        self.send(|| Entry::Connection(SystemTime::now(), Box::new(record)));
    }

    fn send(&self, entry: impl FnOnce() -> Entry) {
        let Some(sender) = &self.sender else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sender.try_send(entry())
        {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits up to `limit` until everything handed over is written. For the end of the process; blocks the
    /// calling thread.
    pub fn flush(&self, limit: Duration) {
        let Some(sender) = &self.sender else { return };
        let (done, written) = sync_channel(1);
        if sender.try_send(Entry::Flush(done)).is_ok() {
            // A timeout means that nobody reads our output: nothing left to do.
            let _ = written.recv_timeout(limit);
        }
    }
}

fn write_all(receiver: &Receiver<Entry>, format: AccessLogFormat, mut output: impl Write) {
    let mut buffer = String::with_capacity(BATCH_BYTES);
    while let Ok(first) = receiver.recv() {
        let mut waiters = Vec::new();
        let mut next = Some(first);
        while let Some(entry) = next {
            match entry {
                Entry::Request(when, record) => {
                    line::append(&mut buffer, when, line::request(&record), format);
                }
                Entry::Connection(when, record) => {
                    line::append(&mut buffer, when, line::connection(&record), format);
                }
                Entry::Flush(done) => waiters.push(done),
            }
            next = if buffer.len() < BATCH_BYTES {
                receiver.try_recv().ok()
            } else {
                None
            };
        }
        // A closed output (EPIPE) is not the data plane's problem.
        let _ = output
            .write_all(buffer.as_bytes())
            .and_then(|()| output.flush());
        buffer.clear();
        for done in waiters {
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
#[path = "access_log/tests.rs"]
mod tests;

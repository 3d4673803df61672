//! The access log: one line for what has ended, written by a thread of its own.
//!
//! A worker hands a record over and goes on. When the reader of our output is too slow the queue fills up and
//! records are dropped and counted: a stuck log must not stop traffic.

mod line;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

pub use line::{Line, append};

use crate::args::AccessLogFormat;

/// Records that may wait for the writer. A few megabytes; a second of a busy process.
const QUEUE: usize = 8192;

/// Bytes collected before a write: one system call for a burst of records.
const BATCH_BYTES: usize = 64 << 10;

/// What has ended, and says it in one line. All of it is called by the writer's thread.
pub trait Record: Send + 'static {
    /// What has ended.
    fn message(&self) -> &'static str;

    /// Why it failed, which makes it a line of level `error`.
    fn reason(&self) -> Option<&str>;

    /// Details of that.
    fn error(&self) -> Option<&str>;

    /// All other fields.
    fn fields(&self, line: &mut Line<'_>);
}

/// Where workers send records. Cheap to clone.
#[derive(Debug)]
pub struct AccessLog<R> {
    sender: Option<SyncSender<Entry<R>>>,
    dropped: Arc<AtomicU64>,
}

impl<R> Clone for AccessLog<R> {
    fn clone(&self) -> Self {
        Self {
            sender: self.sender.clone(),
            dropped: Arc::clone(&self.dropped),
        }
    }
}

#[derive(Debug)]
enum Entry<R> {
    Record(SystemTime, Box<R>),
    Flush(SyncSender<()>),
}

impl<R: Record> AccessLog<R> {
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

    /// Hands a record over; drops and counts it when the queue is full.
    pub fn record(&self, record: R) {
        let Some(sender) = &self.sender else { return };
        let entry = Entry::Record(SystemTime::now(), Box::new(record));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sender.try_send(entry) {
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

fn write_all<R: Record>(
    receiver: &Receiver<Entry<R>>,
    format: AccessLogFormat,
    mut output: impl Write,
) {
    let mut buffer = Vec::with_capacity(BATCH_BYTES);
    while let Ok(first) = receiver.recv() {
        let mut waiters = Vec::new();
        let mut next = Some(first);
        while let Some(entry) = next {
            match entry {
                Entry::Record(when, record) => line::append(&mut buffer, when, &*record, format),
                Entry::Flush(done) => waiters.push(done),
            }
            next = if buffer.len() < BATCH_BYTES {
                receiver.try_recv().ok()
            } else {
                None
            };
        }
        // A closed output (EPIPE) is not the data plane's problem.
        let _ = output.write_all(&buffer).and_then(|()| output.flush());
        buffer.clear();
        for done in waiters {
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
#[path = "access_log/tests.rs"]
mod tests;

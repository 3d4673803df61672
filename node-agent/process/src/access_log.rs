//! The access log: one line for what has ended.
//!
//! Workers write lines to memory, each to a lane of its own, and a thread writes what has gathered there to our
//! output every ten milliseconds: no system call and no other thread's turn for each request. When the reader of our
//! output is too slow the lanes fill up and records are dropped and counted: a stuck log must not stop traffic.

mod line;

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};
use std::time::{Duration, SystemTime};

pub use line::{Line, append, append_event};

use crate::args::AccessLogFormat;

/// Bytes of lines that a lane may hold. Some ten thousand lines: a second of a busy worker.
const LANE_BYTES: usize = 8 << 20;

/// Memory that a lane keeps for the next lines, bytes: what a busy worker writes between two turns of the writer.
const KEPT_BYTES: usize = 256 << 10;

/// Time in which lines gather before they are written.
const GATHERING: Duration = Duration::from_millis(10);

/// What has ended, and says it in one line. Called where it has ended, so all of it is quick.
pub trait Record {
    /// What has ended.
    fn message(&self) -> &'static str;

    /// Why it failed, which makes it a line of level `error`.
    fn reason(&self) -> Option<&str>;

    /// Details of that.
    fn error(&self) -> Option<&str>;

    /// All other fields.
    fn fields(&self, line: &mut Line<'_>);
}

/// Where workers send records. Each has a clone: clones have lanes of their own, so that threads do not wait for each
/// other.
#[derive(Debug)]
pub struct AccessLog {
    lane: Option<Arc<Lane>>,
    shared: Arc<Shared>,
}

/// Lines of one worker that are not written yet.
#[derive(Debug, Default)]
struct Lane {
    lines: Mutex<Vec<u8>>,
    /// Its worker has gone.
    closed: AtomicBool,
}

#[derive(Debug)]
struct Shared {
    format: AccessLogFormat,
    dropped: AtomicU64,
    lanes: Mutex<Lanes>,
}

/// What the writer looks at.
#[derive(Debug, Default)]
struct Lanes {
    /// None before it has started, or without a log.
    writer: Option<Thread>,
    all: Vec<Arc<Lane>>,
    /// Who waits until all there is now has been written.
    flushing: Vec<SyncSender<()>>,
}

impl Shared {
    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_writer(&self) {
        if let Some(writer) = &self.lanes().writer {
            writer.unpark();
        }
    }

    fn new_lane(&self) -> Arc<Lane> {
        let lane = Arc::<Lane>::default();
        self.lanes().all.push(Arc::clone(&lane));
        lane
    }
}

impl Lane {
    fn lines(&self) -> MutexGuard<'_, Vec<u8>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clone for AccessLog {
    fn clone(&self) -> Self {
        Self {
            lane: self.lane.as_ref().map(|_| self.shared.new_lane()),
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        if let Some(lane) = &self.lane {
            lane.closed.store(true, Ordering::Release);
            self.shared.wake_writer();
        }
    }
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
        let shared = Arc::new(Shared {
            format,
            dropped: AtomicU64::new(0),
            lanes: Mutex::default(),
        });
        let lane = (format != AccessLogFormat::Off).then(|| shared.new_lane());
        if lane.is_some() {
            let writers = Arc::clone(&shared);
            let writer = thread::Builder::new()
                .name("karst-access".to_owned())
                .spawn(move || write_all(&writers, output))?;
            shared.lanes().writer = Some(writer.thread().clone());
        }
        Ok(Self { lane, shared })
    }

    /// Whether records are wanted at all.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.lane.is_some()
    }

    /// Writes a record's line to memory; drops and counts it when too much waits there.
    pub fn record(&self, record: &impl Record) {
        let Some(lane) = &self.lane else { return };
        let mut lines = lane.lines();
        if lines.len() >= LANE_BYTES {
            self.shared.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_first = lines.is_empty();
        append(&mut lines, SystemTime::now(), record, self.shared.format);
        drop(lines);
        if is_first {
            self.shared.wake_writer();
        }
    }

    /// Records dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Waits up to `limit` until everything recorded is written. For the end of the process; blocks the calling
    /// thread.
    pub fn flush(&self, limit: Duration) {
        if self.lane.is_none() {
            return;
        }
        let (done, written) = sync_channel(1);
        self.shared.lanes().flushing.push(done);
        self.shared.wake_writer();
        // A timeout means that nobody reads our output: nothing left to do.
        let _ = written.recv_timeout(limit);
    }
}

/// Writes what is in the lanes until all of them are closed.
fn write_all(shared: &Shared, mut output: impl Write) {
    let mut spare = Vec::new();
    loop {
        let (lanes, waiters) = {
            let mut lanes = shared.lanes();
            (lanes.all.clone(), std::mem::take(&mut lanes.flushing))
        };
        for lane in &lanes {
            // Looked at first: what a worker writes last is there before it has gone.
            let closed = lane.closed.load(Ordering::Acquire);
            std::mem::swap(&mut *lane.lines(), &mut spare);
            if closed {
                shared.lanes().all.retain(|other| !Arc::ptr_eq(other, lane));
            }
            // A closed output (EPIPE) is not the data plane's problem.
            let _ = output.write_all(&spare);
            spare.clear();
            spare.shrink_to(KEPT_BYTES);
        }
        let _ = output.flush();
        for done in waiters {
            let _ = done.try_send(());
        }
        if shared.lanes().all.is_empty() {
            return;
        }
        // Woken by the first line of any lane; others follow soon where there is load.
        thread::park();
        thread::sleep(GATHERING);
    }
}

#[cfg(test)]
#[path = "access_log/tests.rs"]
mod tests;

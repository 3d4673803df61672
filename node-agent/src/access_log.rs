//! The access log: one line a connection, written by a thread of its own.
//!
//! A worker hands a record over and goes on. When the reader of our output is
//! too slow the queue fills up and records are dropped and counted: a stuck log
//! must not stop traffic.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, SystemTime};

use karst_identity::SpiffeId;
use karst_tunnel::TlsInfo;

use crate::config::AccessLogFormat;
use crate::metrics::traffic::Security;
use crate::proxy::Direction;
use crate::reason::Reason;
use crate::state::service::Service;
use crate::state::workload::Workload;
use crate::time;

/// Records that may wait for the writer. About 2 MB; a second of a busy node.
const QUEUE: usize = 8192;

/// Bytes collected before a write: one system call for a burst of records.
const BATCH_BYTES: usize = 64 << 10;

/// One ended or refused connection.
#[derive(Debug)]
pub struct Record {
    /// Which proxy handled it.
    pub direction: Direction,
    /// The client.
    pub source: Party,
    /// The server.
    pub destination: Party,
    /// The tunnel's listener, when there is a tunnel.
    pub hbone_addr: Option<SocketAddr>,
    /// Service that was dialled.
    pub service: Option<Arc<Service>>,
    /// Bytes of responses.
    pub bytes_sent: u64,
    /// Bytes of requests.
    pub bytes_recv: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Protection of the way between the agents.
    pub security: Security,
    /// What was negotiated, with a tunnel.
    pub tls: Option<Arc<TlsInfo>>,
    /// Why it ended or was refused; `None` for an ordinary end.
    pub reason: Option<Reason>,
    /// Details of the reason.
    pub error: Option<String>,
}

/// One end of a connection.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// Address and port.
    pub addr: Option<SocketAddr>,
    /// The workload, if it is known.
    pub workload: Option<Arc<Workload>>,
    /// Its identity, if it was verified.
    pub identity: Option<SpiffeId>,
}

/// Where workers send records. Cheap to clone.
#[derive(Clone, Debug)]
pub struct AccessLog {
    sender: Option<SyncSender<Entry>>,
    dropped: Arc<AtomicU64>,
}

#[derive(Debug)]
enum Entry {
    Record(SystemTime, Box<Record>),
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
    pub fn is_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Hands a record over; drops and counts it when the queue is full.
    pub fn record(&self, record: Record) {
        let Some(sender) = &self.sender else { return };
        let entry = Entry::Record(SystemTime::now(), Box::new(record));
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = sender.try_send(entry) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits up to `limit` until everything handed over is written. For the end
    /// of the process; blocks the calling thread.
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
                Entry::Record(when, record) => append(&mut buffer, when, &record, format),
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

fn append(buffer: &mut String, when: SystemTime, record: &Record, format: AccessLogFormat) {
    let fields = fields(record);
    let level = if record.reason.is_some() {
        "error"
    } else {
        "info"
    };
    let message = "connection complete";
    if format == AccessLogFormat::Json {
        let mut object = serde_json::Map::new();
        object.insert("time".to_owned(), time::rfc3339(when).into());
        object.insert("level".to_owned(), level.into());
        object.insert("target".to_owned(), "access".into());
        object.insert("message".to_owned(), message.into());
        for (name, value) in fields {
            object.insert(name.to_owned(), value.into_json());
        }
        buffer.push_str(&serde_json::Value::Object(object).to_string());
    } else {
        // Writing to a String cannot fail.
        let _ = write!(buffer, "{} {level} access {message}", time::rfc3339(when));
        for (name, value) in fields {
            let _ = write!(buffer, " {name}={value}");
        }
    }
    buffer.push('\n');
}

enum Value {
    Text(String),
    Number(u64),
}

impl Value {
    fn into_json(self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.into(),
            Self::Number(number) => number.into(),
        }
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '=' | '\\');
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Text(text) if text.chars().all(plain) => f.write_str(text),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

fn fields(record: &Record) -> Vec<(&'static str, Value)> {
    let mut list = Vec::with_capacity(24);
    let mut text = |name, value: Option<String>| {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            list.push((name, Value::Text(value)));
        }
    };
    let show = |addr: Option<SocketAddr>| addr.map(|a| a.to_string());
    let name = |w: &Option<Arc<Workload>>| w.as_ref().map(|w| w.name.to_string());
    let namespace = |w: &Option<Arc<Workload>>| w.as_ref().map(|w| w.namespace.to_string());
    let identity = |id: &Option<SpiffeId>| id.as_ref().map(ToString::to_string);
    text("src.addr", show(record.source.addr));
    text("src.workload", name(&record.source.workload));
    text("src.namespace", namespace(&record.source.workload));
    text("src.identity", identity(&record.source.identity));
    text(
        "dst.addr",
        show(record.hbone_addr.or(record.destination.addr)),
    );
    text(
        "dst.hbone_addr",
        record
            .hbone_addr
            .and_then(|_| show(record.destination.addr)),
    );
    text(
        "dst.service",
        record.service.as_ref().map(|s| s.spec.hostname.to_string()),
    );
    text("dst.workload", name(&record.destination.workload));
    text("dst.namespace", namespace(&record.destination.workload));
    text("dst.identity", identity(&record.destination.identity));
    text("direction", Some(record.direction.as_str().to_owned()));
    let duration = u64::try_from(record.duration.as_millis()).unwrap_or(u64::MAX);
    list.push(("bytes_sent", Value::Number(record.bytes_sent)));
    list.push(("bytes_recv", Value::Number(record.bytes_recv)));
    list.push(("duration_ms", Value::Number(duration)));
    let mut text = |name, value: Option<String>| {
        if let Some(value) = value {
            list.push((name, Value::Text(value)));
        }
    };
    let tls = record.tls.as_ref();
    text(
        "connection_security_policy",
        Some(record.security.as_str().to_owned()),
    );
    text("tls_version", tls.map(|t| t.version.to_string()));
    text("cipher", tls.map(|t| t.cipher.to_string()));
    text("key_exchange", tls.map(|t| t.key_exchange.to_string()));
    text("reason", record.reason.map(|r| r.to_string()));
    text("error", record.error.clone());
    list
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{AccessLog, Party, QUEUE, Record};
    use crate::config::AccessLogFormat;
    use crate::metrics::traffic::Security;
    use crate::proxy::Direction;
    use crate::reason::Reason;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("lock").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// An output that says when it is first written to and then waits to be let go.
    struct Stuck(SyncSender<()>, Receiver<()>);

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.try_send(());
            let _ = self.1.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn record() -> Record {
        Record {
            direction: Direction::Outbound,
            source: Party {
                addr: "10.0.0.1:5".parse().ok(),
                ..Party::default()
            },
            destination: Party {
                addr: "10.0.0.2:80".parse().ok(),
                ..Party::default()
            },
            hbone_addr: "10.0.0.2:15008".parse().ok(),
            service: None,
            bytes_sent: 7,
            bytes_recv: 9,
            duration: Duration::from_millis(3),
            security: Security::MutualTls,
            tls: None,
            reason: None,
            error: None,
        }
    }

    fn logged(format: AccessLogFormat, record: Record) -> String {
        let output = Output::default();
        let log = AccessLog::start_on(format, output.clone()).expect("thread");
        log.record(record);
        log.flush(Duration::from_secs(10));
        let bytes = output.0.lock().expect("lock").clone();
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn text_line_has_the_fields_in_order() {
        let line = logged(AccessLogFormat::Text, record());
        assert!(
            line.ends_with(
                "Z info access connection complete src.addr=10.0.0.1:5 dst.addr=10.0.0.2:15008 \
                 dst.hbone_addr=10.0.0.2:80 direction=outbound bytes_sent=7 bytes_recv=9 \
                 duration_ms=3 connection_security_policy=mutual_tls\n"
            ),
            "{line}"
        );
    }

    #[test]
    fn json_line_parses_and_carries_the_reason() {
        let refused = Record {
            reason: Some(Reason::SelfCall),
            error: Some("a \"quoted\" text".to_owned()),
            ..record()
        };
        let line = logged(AccessLogFormat::Json, refused);
        let value: serde_json::Value = serde_json::from_str(line.trim_end()).expect("JSON");
        assert_eq!(value["reason"], "self_call");
        assert_eq!(value["level"], "error");
        assert_eq!(value["bytes_sent"], 7);
        assert_eq!(value["error"], "a \"quoted\" text");
    }

    #[test]
    fn text_with_spaces_is_quoted() {
        let refused = Record {
            error: Some("no route".to_owned()),
            ..record()
        };
        assert!(logged(AccessLogFormat::Text, refused).ends_with("error=\"no route\"\n"));
    }

    #[test]
    fn full_queue_drops_and_counts_instead_of_blocking() {
        let (started, has_started) = sync_channel(1);
        let (release, released) = sync_channel(QUEUE);
        let log =
            AccessLog::start_on(AccessLogFormat::Text, Stuck(started, released)).expect("thread");
        log.record(record());
        has_started
            .recv_timeout(Duration::from_secs(10))
            .expect("the writer is inside write");
        // The writer is stuck and its batch is taken: the queue now holds exactly QUEUE.
        for _ in 0..QUEUE + 5 {
            log.record(record());
        }
        assert_eq!(log.dropped(), 5);
        drop(release);
    }
}

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{AccessLog, Line, QUEUE, Record};
use crate::args::AccessLogFormat;

/// Says its path, and why it failed.
#[derive(Clone, Debug, Default)]
struct Sample {
    path: String,
    error: Option<&'static str>,
}

impl Record for Sample {
    fn message(&self) -> &'static str {
        "sample complete"
    }

    fn reason(&self) -> Option<&str> {
        self.error.map(|_| "self_call")
    }

    fn error(&self) -> Option<&str> {
        self.error
    }

    fn fields(&self, line: &mut Line<'_>) {
        line.address("src.addr", SocketAddr::from(([10, 0, 0, 1], 5)));
        line.address("dst.addr", None::<SocketAddr>);
        line.text("path", &self.path);
        line.duration("duration_ms", Duration::from_micros(3999));
    }
}

#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An output that says when it is first written to and then waits to be let go.
struct Stuck(SyncSender<()>, Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.try_send(());
        let _ = self.1.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written(format: AccessLogFormat, records: &[Sample]) -> String {
    let output = Output::default();
    let log = AccessLog::start_on(format, output.clone()).expect("thread");
    for record in records {
        log.record(record.clone());
    }
    log.flush(Duration::from_secs(10));
    let bytes = output.0.lock().expect("lock").clone();
    String::from_utf8(bytes).expect("text")
}

#[test]
fn a_record_is_one_line_of_text() {
    let text = written(AccessLogFormat::Text, &[Sample::default()]);
    let (_, line) = text.split_once("Z ").expect("a time");
    assert_eq!(
        line,
        "info access sample complete src.addr=10.0.0.1:5 duration_ms=3\n"
    );
}

#[test]
fn a_failure_says_why_with_spaces_and_quotes_escaped() {
    let failed = Sample {
        error: Some("no \"route\""),
        ..Sample::default()
    };
    let text = written(AccessLogFormat::Text, &[failed]);
    assert!(text.contains("Z error access "), "{text}");
    let end = " reason=self_call error=\"no \\\"route\\\"\"\n";
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn each_record_is_an_object_of_json() {
    let records = ["/a b\n", "/b"].map(|path| Sample {
        path: path.to_owned(),
        error: Some("a \"quoted\" text"),
    });
    let text = written(AccessLogFormat::Json, &records);
    assert_eq!(text.lines().count(), 2, "{text}");
    let line = text.lines().next().expect("a line");
    let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
    assert_eq!(value["level"], "error");
    assert_eq!(value["target"], "access");
    assert_eq!(value["message"], "sample complete");
    assert_eq!(value["src.addr"], "10.0.0.1:5");
    assert_eq!(value["path"], "/a b\n");
    assert_eq!(value["duration_ms"], 3);
    assert_eq!(value["reason"], "self_call");
    assert_eq!(value["error"], "a \"quoted\" text");
}

#[test]
fn what_a_peer_chose_is_cut_off() {
    let long = Sample {
        path: "/é".repeat(40_000),
        error: None,
    };
    let text = written(AccessLogFormat::Text, &[long]);
    assert!(text.len() < 4096, "{}", text.len());
}

#[test]
fn no_log_takes_no_records() {
    let log = AccessLog::start(AccessLogFormat::Off).expect("starts");
    assert!(!log.is_on());
    log.record(Sample::default());
    log.flush(Duration::ZERO);
    assert_eq!(log.dropped(), 0);
}

#[test]
fn a_full_queue_drops_and_counts_instead_of_blocking() {
    let (started, has_started) = sync_channel(1);
    let (release, released) = sync_channel(QUEUE);
    let log = AccessLog::start_on(AccessLogFormat::Text, Stuck(started, released)).expect("thread");
    log.record(Sample::default());
    has_started
        .recv_timeout(Duration::from_secs(10))
        .expect("the writer is inside write");
    // The writer is stuck and its batch is taken: the queue now holds exactly QUEUE.
    for _ in 0..QUEUE + 5 {
        log.record(Sample::default());
    }
    assert_eq!(log.dropped(), 5);
    drop(release);
}

use std::io::{self, Write};
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::{AccessLog, LANE_BYTES, Line, Record, append};
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

/// An output that says when nobody will write to it any more.
struct Told(Output, SyncSender<()>);

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.1.try_send(());
    }
}

fn written(format: AccessLogFormat, records: &[Sample]) -> String {
    let output = Output::default();
    let log = AccessLog::start_on(format, output.clone()).expect("thread");
    for record in records {
        log.record(record);
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
fn every_character_comes_back_out_of_json() {
    let characters = (0..=0x7f).map(char::from).chain(['é', '\u{2028}', '🙂']);
    for character in characters {
        let path = format!("before{character}after");
        let records = [Sample {
            path: path.clone(),
            error: None,
        }];
        let line = written(AccessLogFormat::Json, &records);
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!(value["path"], path);
    }
}

#[test]
fn addresses_are_written_as_everywhere() {
    struct At(SocketAddr);
    impl Record for At {
        fn message(&self) -> &'static str {
            "at"
        }
        fn reason(&self) -> Option<&str> {
            None
        }
        fn error(&self) -> Option<&str> {
            None
        }
        fn fields(&self, line: &mut Line<'_>) {
            line.address("addr", self.0);
        }
    }
    for address in [
        "0.0.0.0:0",
        "10.0.20.3:80",
        "255.255.255.255:65535",
        "[::1]:8080",
        "[::ffff:10.0.0.1]:5",
        "[fe80::1%3]:15008",
    ] {
        let at = At(address.parse().expect("address"));
        let line = |format| {
            let mut line = Vec::new();
            append(&mut line, SystemTime::now(), &at, format);
            String::from_utf8(line).expect("text")
        };
        let text = line(AccessLogFormat::Text);
        assert!(text.ends_with(&format!(" at addr={address}\n")), "{text}");
        let json = line(AccessLogFormat::Json);
        let value: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!(value["addr"], address);
    }
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
    log.record(&Sample::default());
    log.flush(Duration::ZERO);
    assert_eq!(log.dropped(), 0);
}

#[test]
fn a_full_lane_drops_and_counts_instead_of_blocking() {
    let (started, has_started) = sync_channel(1);
    let (release, released) = sync_channel(1);
    let log = AccessLog::start_on(AccessLogFormat::Text, Stuck(started, released)).expect("thread");
    log.record(&Sample::default());
    has_started
        .recv_timeout(Duration::from_secs(10))
        .expect("the writer is inside write");
    // The writer is stuck and has taken what there was.
    let mut line = Vec::new();
    super::append(
        &mut line,
        SystemTime::now(),
        &Sample::default(),
        AccessLogFormat::Text,
    );
    for _ in 0..LANE_BYTES.div_ceil(line.len()) {
        log.record(&Sample::default());
    }
    assert_eq!(log.dropped(), 0);
    let other = log.clone();
    for _ in 0..5 {
        log.record(&Sample::default());
        other.record(&Sample::default());
    }
    assert_eq!(log.dropped(), 5, "the other worker's lane has room");
    drop(release);
}

#[test]
fn lines_of_all_workers_are_written_whole_and_to_the_end() {
    const WORKERS: usize = 4;
    const RECORDS: usize = 5000;
    let output = Output::default();
    let (ended, has_ended) = sync_channel(1);
    let told = Told(output.clone(), ended);
    let log = AccessLog::start_on(AccessLogFormat::Json, told).expect("thread");
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let log = log.clone();
            scope.spawn(move || {
                for number in 0..RECORDS {
                    log.record(&Sample {
                        path: format!("/{worker}/{number}"),
                        error: None,
                    });
                }
            });
        }
    });
    drop(log);
    has_ended
        .recv_timeout(Duration::from_secs(10))
        .expect("the writer ends with the last worker");
    let text = String::from_utf8(output.0.lock().expect("lock").clone()).expect("text");
    let mut next = [0; WORKERS];
    for line in text.lines() {
        let value: serde_json::Value = serde_json::from_str(line).expect("a whole line");
        let path = value["path"].as_str().expect("a path");
        let (worker, number) = path[1..].split_once('/').expect("two numbers");
        let next = &mut next[worker.parse::<usize>().expect("number")];
        assert_eq!(number, next.to_string(), "each in its order");
        *next += 1;
    }
    assert_eq!(next, [RECORDS; WORKERS]);
}

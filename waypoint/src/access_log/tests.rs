use std::io::{self, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use karst_identity::SpiffeId;

use super::{AccessLog, ConnectionRecord, QUEUE, Reporter, RequestRecord};
use crate::args::AccessLogFormat;
use crate::client::Client;
use crate::reason::Reason;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("lock").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn client() -> Client {
    let identity = SpiffeId::parse("spiffe://t/ns/a/sa/b").expect("valid");
    Client::new("10.0.0.1:4000".parse().expect("address"), Some(identity))
}

fn written(format: AccessLogFormat, write: impl FnOnce(&AccessLog)) -> String {
    let output = Shared::default();
    let log = AccessLog::start_on(format, output.clone()).expect("starts");
    write(&log);
    log.flush(Duration::from_secs(10));
    let bytes = output.0.lock().expect("lock").clone();
    String::from_utf8(bytes).expect("text")
}

#[test]
fn a_request_is_one_line_of_json() {
    let text = written(AccessLogFormat::Json, |log| {
        let mut record = RequestRecord::new(Reporter::Waypoint, client());
        record.path = "/a b\n".to_owned();
        record.status = 200;
        log.request(record);
    });
    let value: serde_json::Value = serde_json::from_str(&text).expect("json");
    assert_eq!(value["message"], "request complete");
    assert_eq!(value["path"], "/a b\n");
    assert_eq!(value["status"], 200);
    assert_eq!(value["src.identity"], "spiffe://t/ns/a/sa/b");
    assert_eq!(text.matches('\n').count(), 1);
}

#[test]
fn a_refused_connection_says_why() {
    let text = written(AccessLogFormat::Text, |log| {
        let mut record =
            ConnectionRecord::new(Reporter::Gateway, client(), "0.0.0.0:443".to_owned());
        record.reason = Some(Reason::NoListener);
        record.sni = Some("x\"y".to_owned());
        log.connection(record);
    });
    assert!(
        text.contains(" error access connection complete "),
        "{text}"
    );
    assert!(text.contains(" reason=gateway_no_listener"), "{text}");
    assert!(text.contains(r#" sni="x\"y""#), "{text}");
}

#[test]
fn what_a_client_chose_is_cut_off() {
    let text = written(AccessLogFormat::Text, |log| {
        let mut record = RequestRecord::new(Reporter::Waypoint, client());
        record.path = "/é".repeat(40_000);
        log.request(record);
    });
    assert!(text.len() < 4096, "{}", text.len());
}

/// An output that takes nothing until it is told to.
struct Stuck(mpsc::Receiver<()>);

impl Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_output_costs_records_not_time() {
    let (release, stuck) = mpsc::channel();
    let log = AccessLog::start_on(AccessLogFormat::Text, Stuck(stuck)).expect("starts");
    for _ in 0..2 * QUEUE {
        log.request(RequestRecord::new(Reporter::Waypoint, client()));
    }
    assert!(log.dropped() > 0);
    drop(release);
}

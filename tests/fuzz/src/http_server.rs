//! Bytes of a client's connection through the whole HTTP server.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use karst_tunnel::server::Drain;
use karst_waypoint::access_log::AccessLog;
use karst_waypoint::args::AccessLogFormat;
use karst_waypoint::balance::Clusters;
use karst_waypoint::client::Client;
use karst_waypoint::config::Store;
use karst_waypoint::http::{Entry, HttpLimits, HttpServer, serve};
use karst_waypoint::metrics::Metrics;
use karst_waypoint::table::Tables;
use karst_waypoint::telemetry::Recorder;
use karst_waypoint::upstream::{Upstream, UpstreamSettings};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::LocalSet;

use crate::route_compiler;

/// Bytes between client and server.
const PIPE_BYTES: usize = 64 * 1024;

/// No connection lives this long without a byte, whatever it has said. The clock is the target's own: it jumps to
/// the next time limit when nothing else is left to do.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

fn tables() -> &'static Arc<Tables> {
    static TABLES: OnceLock<Arc<Tables>> = OnceLock::new();
    TABLES.get_or_init(|| {
        let tables = Arc::new(Tables::default());
        let mut store = Store::new(Arc::new(Clusters::default()), Arc::clone(&tables));
        route_compiler::example(&mut store);
        tables
    })
}

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap(),
    );
}

/// How long a client waits for answers before it closes; who closes at once is taken for gone.
const PATIENCE: Duration = Duration::from_secs(1);

/// Sends the input and reads until the server closes. Every other client never closes itself.
pub fn run(data: &[u8]) {
    RUNTIME.with_borrow_mut(|runtime| {
        let local = LocalSet::new();
        let answer = local.block_on(runtime, converse(data));
        if !data.starts_with(b"PRI") && !answer.is_empty() {
            // HTTP/2 without its whole preface may have begun by then.
            let known: [&[u8]; 3] = [b"HTTP/1.", b"\0", b"PRI"];
            assert!(
                known.iter().any(|start| answer.starts_with(start)),
                "{answer:?}"
            );
        }
    });
}

async fn converse(data: &[u8]) -> Vec<u8> {
    let (client, server) = duplex(PIPE_BYTES);
    let log = AccessLog::start(AccessLogFormat::Off).unwrap();
    let recorder = Recorder::new(Arc::new(Metrics::default()), log);
    let upstream = Upstream::new(Rc::new(|| None), UpstreamSettings::default());
    let http = HttpServer::new(
        Arc::clone(tables()),
        upstream,
        recorder,
        HttpLimits::default(),
    );
    let table = tables().load();
    let frontend = Arc::clone(&table.services[&SocketAddr::from(([10, 0, 0, 1], 80))]);
    let from = Client {
        address: SocketAddr::from(([10, 0, 0, 2], 4000)),
        destination: None,
        identity: None,
        workload: None,
        trace: None,
    };
    let (_stays, drain) = watch::channel(Drain::Running);
    let served =
        tokio::task::spawn_local(serve(server, http, Entry::Service(frontend), from, drain));
    let (mut reader, mut writer) = tokio::io::split(client);
    let written = async {
        // The server may have closed by then.
        let _ = writer.write_all(data).await;
        tokio::time::sleep(PATIENCE).await;
        if data.len().is_multiple_of(2) {
            let _ = writer.shutdown().await;
        }
    };
    let mut answer = Vec::new();
    let read = reader.read_to_end(&mut answer);
    let conversation = async { tokio::join!(written, read) };
    let ended = tokio::time::timeout(LONGEST, conversation).await;
    assert!(ended.is_ok(), "the server does not close");
    let joined = tokio::time::timeout(LONGEST, served).await;
    // A panic of the server is one of ours.
    joined.unwrap().unwrap();
    answer
}

/// Requests of both versions that come to rules of every kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let texts: [&str; 8] = [
        "GET /foo/bar?a=1 HTTP/1.1\r\nhost: s.n\r\nversion: one\r\n\r\n",
        "GET /old HTTP/1.1\r\nhost: s.n\r\nconnection: close\r\n\r\n",
        "OPTIONS / HTTP/1.1\r\nhost: s.n\r\norigin: https://a.example.com\r\naccess-control-request-method: PUT\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: s.n\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: s.n\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: s.n\r\ntransfer-encoding: chunked\r\ntrailer: t\r\n\r\n5;x=y\r\nhello\r\n0\r\nt: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: s.n\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        "PUT / HTTP/1.1\r\nhost: s.n\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok",
        "GET / HTTP/1.0\r\n\r\n",
    ];
    let mut seeds: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    seeds.push(crate::hbone_server::http2(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "s.n"),
        (":path", "/foo/bar"),
        ("te", "trailers"),
    ]));
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(data: &[u8]) -> String {
        RUNTIME.with_borrow_mut(|runtime| {
            let answer = LocalSet::new().block_on(runtime, converse(data));
            String::from_utf8_lossy(&answer).into_owned()
        })
    }

    #[test]
    fn seeds_come_to_their_rules() {
        for (seed, expected) in seeds().iter().zip([
            "HTTP/1.1 503 ",
            "HTTP/1.1 301 ",
            "HTTP/1.1 204 ",
            "HTTP/1.1 503 ",
            "HTTP/1.1 503 ",
        ]) {
            let answer = answer(seed);
            assert!(
                answer.starts_with(expected),
                "{}: {answer}",
                seed.escape_ascii()
            );
        }
    }
}

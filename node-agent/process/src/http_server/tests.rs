use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{LocalSet, spawn_local};

use super::serve_unix;
use crate::tap::query::Sees;
use crate::tap::{MAX_SUBSCRIBERS, Tap, answer};

/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(10);

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let looked = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(LIMIT, looked).await.is_ok(), "{what}");
}

#[tokio::test]
async fn a_stream_is_dropped_when_its_client_goes() {
    let folder = std::env::temp_dir().join(format!("karst-stream-{}", std::process::id()));
    let _ = std::fs::remove_file(&folder);
    let listener = UnixListener::bind(&folder).expect("bind");
    let tap = Tap::new(Vec::new());
    let local = LocalSet::new();
    let served = tap.clone();
    local
        .run_until(async {
            spawn_local(serve_unix(listener, move |request| {
                let answer = answer(&served, Sees::Connections, request.uri().query(), drop);
                async move { answer }
            }));
            let mut client = BufReader::new(UnixStream::connect(&folder).await.expect("connect"));
            let head = b"GET /v1/tap?from=shop HTTP/1.1\r\nHost: karst\r\n\r\n";
            client.write_all(head).await.expect("asks");
            let mut text = String::new();
            while !text.contains("started") {
                client.read_line(&mut text).await.expect("a line");
            }
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
            assert!(text.contains("transfer-encoding: chunked"), "{text}");
            assert_eq!(tap.subscribers(), 1);
            drop(client);
            eventually("the subscription ends", || !tap.is_on()).await;

            // A complete answer on a connection that goes on.
            let mut client = UnixStream::connect(&folder).await.expect("connect");
            for _ in 0..2 {
                let head = b"GET /v1/tap?from=! HTTP/1.1\r\nHost: karst\r\n\r\n";
                client.write_all(head).await.expect("asks");
                let mut answer = [0; 12];
                client.read_exact(&mut answer).await.expect("answer");
                assert_eq!(&answer, b"HTTP/1.1 400");
                let mut rest = [0; 4096];
                let _ = client.read(&mut rest).await.expect("rest");
            }
        })
        .await;
    let _ = std::fs::remove_file(&folder);
}

#[tokio::test]
async fn broken_streams_give_their_places_back() {
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("socket");
    let listener = UnixListener::bind(&path).expect("bind");
    let tap = Tap::new(Vec::new());
    let served = tap.clone();
    let ask = async || {
        let mut client = UnixStream::connect(&path).await.expect("connect");
        let head = b"GET /v1/tap HTTP/1.1\r\nHost: karst\r\n\r\n";
        client.write_all(head).await.expect("asks");
        let mut status = [0; 12];
        client.read_exact(&mut status).await.expect("answer");
        (String::from_utf8_lossy(&status).into_owned(), client)
    };
    let asked = async {
        spawn_local(serve_unix(listener, move |request| {
            let answer = answer(&served, Sees::Connections, request.uri().query(), drop);
            async move { answer }
        }));
        for _ in 0..2 {
            let mut clients = Vec::new();
            for _ in 0..MAX_SUBSCRIBERS {
                let (status, client) = ask().await;
                assert_eq!(status, "HTTP/1.1 200");
                clients.push(client);
            }
            assert_eq!(ask().await.0, "HTTP/1.1 503");
            // What was sent and not read makes it an error on the other side.
            drop(clients);
            eventually("the subscriptions end", || !tap.is_on()).await;
        }
    };
    let local = LocalSet::new();
    let asked = local.run_until(asked);
    assert!(tokio::time::timeout(LIMIT, asked).await.is_ok());
}

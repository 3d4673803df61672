//! What RFC 9113, section 10.5 warns of.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::time::timeout;

use super::support::{PATIENCE, Proxy, run};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// `GET http://shop/`, without Huffman and without a table.
fn request_head() -> Vec<u8> {
    // Indexed: :method GET, :scheme http, :path /.
    let mut head = vec![0x82, 0x86, 0x84];
    // Literal without indexing, :authority.
    head.extend([0x01, 4]);
    head.extend(b"shop");
    head
}

/// A proxy, and how many requests its application has had.
async fn proxy() -> (Proxy, Rc<Cell<usize>>) {
    let seen = Rc::new(Cell::new(0));
    let count = Rc::clone(&seen);
    let proxy = Proxy::of(move |_| {
        count.set(count.get() + 1);
        std::future::pending()
    })
    .await;
    (proxy, seen)
}

async fn connect(proxy: &Proxy) -> DuplexStream {
    let mut client = proxy.connect();
    client.write_all(PREFACE).await.unwrap();
    client.write_all(&frame(SETTINGS, 0, 0, &[])).await.unwrap();
    client
}

/// Sends frames until the proxy closes; reads what it says meanwhile. Returns the reason of its GOAWAY and the
/// number of rounds it took.
async fn flood(client: DuplexStream, mut round: impl FnMut(u32) -> Vec<u8>) -> (Option<u32>, u32) {
    let (mut reader, mut writer) = tokio::io::split(client);
    let mut rounds = 0;
    let send = async {
        for n in 0..200_000 {
            if writer.write_all(&round(n)).await.is_err() {
                break;
            }
            rounds = n;
        }
    };
    let mut said = Vec::new();
    let read = reader.read_to_end(&mut said);
    let both = async { tokio::join!(send, read) };
    let (_, _) = timeout(4 * PATIENCE, both).await.expect("the proxy closes");
    let mut reason = None;
    let mut at = 0;
    while at + 9 <= said.len() {
        let length = u32::from_be_bytes([0, said[at], said[at + 1], said[at + 2]]) as usize;
        if said[at + 3] == GOAWAY && at + 17 <= said.len() {
            let code = &said[at + 13..at + 17];
            reason = Some(u32::from_be_bytes(code.try_into().unwrap()));
        }
        at += 9 + length;
    }
    (reason, rounds)
}

const ENHANCE_YOUR_CALM: u32 = 11;

#[test]
fn rapid_reset() {
    run(async {
        let (proxy, seen) = proxy().await;
        let client = connect(&proxy).await;
        let head = request_head();
        let (reason, rounds) = flood(client, |n| {
            let stream = 2 * n + 1;
            let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
            both.extend(frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes()));
            both
        })
        .await;
        assert_eq!(reason, Some(ENHANCE_YOUR_CALM));
        assert!(rounds < 20_000, "{rounds}");
        assert!(seen.get() < 1000, "{}", seen.get());
        proxy.refused("http2_flood", 1).await;
    });
}

#[test]
fn resets_that_the_client_provokes() {
    run(async {
        let (proxy, _) = proxy().await;
        let client = connect(&proxy).await;
        let head = request_head();
        // A body behind the end of its stream: an error of the stream, each time.
        let (reason, rounds) = flood(client, |n| {
            let stream = 2 * n + 1;
            let mut both = frame(HEADERS, END_HEADERS | END_STREAM, stream, &head);
            both.extend(frame(DATA, 0, stream, b"x"));
            both
        })
        .await;
        assert!(reason.is_some());
        assert!(rounds < 20_000, "{rounds}");
    });
}

#[test]
fn headers_without_end() {
    run(async {
        let (proxy, seen) = proxy().await;
        let client = connect(&proxy).await;
        let (reason, rounds) = flood(client, |n| match n {
            0 => frame(HEADERS, 0, 1, &request_head()),
            _ => {
                let mut field = vec![0x00, 1, b'a', 0x7f, 0x81, 0x01];
                field.extend([b'v'; 256]);
                frame(CONTINUATION, 0, 1, &field)
            }
        })
        .await;
        assert!(reason.is_some());
        assert!(rounds < 10_000, "{rounds}");
        assert_eq!(seen.get(), 0);
    });
}

#[test]
fn empty_continuations_without_end() {
    run(async {
        let (proxy, seen) = proxy().await;
        let client = connect(&proxy).await;
        let (reason, rounds) = flood(client, |n| match n {
            0 => frame(HEADERS, 0, 1, &request_head()),
            _ => frame(CONTINUATION, 0, 1, &[]),
        })
        .await;
        assert!(reason.is_some());
        assert!(rounds < 10_000, "{rounds}");
        assert_eq!(seen.get(), 0);
    });
}

/// Frames that want an answer, from a client that reads none: the proxy takes no more than it can hold.
fn unanswered(answered: Vec<u8>) {
    run(async move {
        let (proxy, _) = proxy().await;
        let mut client = connect(&proxy).await;
        let batch = answered.repeat(1000);
        let mut taken = 0;
        let send = async {
            while client.write_all(&batch).await.is_ok() {
                taken += batch.len();
            }
        };
        let _ = timeout(Duration::from_millis(1500), send).await;
        assert!(taken < 16 << 20, "{taken}");
    });
}

#[test]
fn settings_that_nobody_wants_answered() {
    unanswered(frame(SETTINGS, 0, 0, &[]));
}

#[test]
fn pings_that_nobody_wants_answered() {
    unanswered(frame(PING, 0, 0, &[0; 8]));
}

#[test]
fn more_streams_than_allowed() {
    run(async {
        let (proxy, seen) = proxy().await;
        let mut client = connect(&proxy).await;
        let head = request_head();
        for n in 0..1000 {
            let stream = frame(HEADERS, END_HEADERS | END_STREAM, 2 * n + 1, &head);
            if client.write_all(&stream).await.is_err() {
                break;
            }
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let most = usize::try_from(crate::http::limits::MAX_STREAMS).unwrap();
        assert!(seen.get() <= most, "{}", seen.get());
    });
}

use std::time::Duration;

use bytes::BytesMut;
use proptest::prelude::*;
use tokio::io::AsyncWriteExt;

use super::{MAX_FIRST_LINE, Patience, Spoken, classify, detect};

fn check(bytes: &[u8], expected: Option<Spoken>) {
    assert_eq!(classify(bytes), expected, "{}", bytes.escape_ascii());
}

#[test]
fn first_bytes_tell() {
    check(b"GET / HTTP/1.1\r\n", Some(Spoken::Http));
    check(
        b"\r\nVERSION-CONTROL /x HTTP/1.0\r\nHost",
        Some(Spoken::Http),
    );
    check(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Spoken::Http));
    check(b"GET / HTTP/1.1\n", Some(Spoken::Http));
    check(b"\x16\x03\x01\x02\x00", Some(Spoken::Tls));
    check(b"\x16\x04", Some(Spoken::Other));
    check(b"*1\r\n$4\r\nPING\r\n", Some(Spoken::Other));
    check(b"PING\r\n", Some(Spoken::Other));
    check(b"SET key value\r\n", Some(Spoken::Other));
    check(b"get key\r\n", Some(Spoken::Other));
    check(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Some(Spoken::Other));
    check(b"GET \x00", Some(Spoken::Other));
    check(&[b'A'; 40], Some(Spoken::Other));
}

#[test]
fn beginnings_are_open() {
    for text in [
        &b"GET / HTTP/1.1\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        for end in 0..text.len() - 1 {
            check(&text[..end], None);
        }
    }
    check(b"\x16", None);
}

#[test]
fn a_line_without_end_is_https_to_refuse() {
    let mut line = b"GET /".to_vec();
    line.resize(MAX_FIRST_LINE, b'a');
    check(&line, Some(Spoken::Http));
}

proptest! {
    #[test]
    fn nothing_that_is_decided_changes(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let mut decided = None;
        for end in 0..=bytes.len() {
            let now = classify(&bytes[..end]);
            if let Some(before) = decided {
                prop_assert_eq!(now, Some(before));
            }
            decided = now;
        }
    }
}

const PATIENCE: Patience = Patience {
    silent: Duration::from_millis(200),
    begun: Duration::from_secs(10),
};

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_not_waited_for_long() {
    let (mut near, _far) = tokio::io::duplex(64);
    let mut read = BytesMut::new();
    let since = tokio::time::Instant::now();
    let spoken = detect(&mut near, &mut read, PATIENCE).await;
    assert_eq!(spoken.expect("read"), Spoken::Silent);
    assert_eq!(since.elapsed(), PATIENCE.silent);
}

#[tokio::test(start_paused = true)]
async fn a_slow_client_of_http_is_waited_for() {
    let (mut near, mut far) = tokio::io::duplex(64);
    tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\n" {
            tokio::time::sleep(Duration::from_millis(150)).await;
            far.write_all(&[*byte]).await.expect("written");
        }
        far
    });
    let mut read = BytesMut::new();
    let spoken = detect(&mut near, &mut read, PATIENCE).await;
    assert_eq!(spoken.expect("read"), Spoken::Http);
    assert_eq!(&read[..], b"GET / HTTP/1.1\r\n");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_goes_is_noticed() {
    let (mut near, far) = tokio::io::duplex(64);
    drop(far);
    let mut read = BytesMut::new();
    let spoken = detect(&mut near, &mut read, PATIENCE).await;
    assert_eq!(spoken.expect("read"), Spoken::Closed);
}

//! Bytes: bulk, half-close, server-first, slow readers, many streams.

use std::rc::Rc;
use std::time::Duration;

use karst_tunnel::headers::{Baggage, Forwarded, SourceHeaders, TraceParent};
use karst_tunnel::relay::RelayEnd;
use karst_tunnel::{Counters, TlsInfo, settings};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::spawn_local;

use crate::support::{app, echo_app, on_worker, pair, socket_pair, until};

const BULK: usize = 64 << 20;

/// Bytes that differ from place to place, so that a swap or a loss changes the hash.
fn pattern(at: usize, size: usize) -> Vec<u8> {
    (at..at + size)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect()
}

async fn send(mut to: OwnedWriteHalf, total: usize) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut at = 0;
    let mut size = 1;
    while at < total {
        // Sizes from a byte to a megabyte.
        size = (size * 7 + 13) % (1 << 20);
        let chunk = pattern(at, size.clamp(1, total - at));
        hash.update(&chunk);
        to.write_all(&chunk).await.unwrap();
        at += chunk.len();
    }
    to.shutdown().await.unwrap();
    hash.finalize().to_vec()
}

async fn receive(mut from: OwnedReadHalf) -> (usize, Vec<u8>) {
    let mut hash = Sha256::new();
    let mut total = 0;
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = from.read(&mut buffer).await.unwrap();
        if read == 0 {
            return (total, hash.finalize().to_vec());
        }
        hash.update(&buffer[..read]);
        total += read;
    }
}

/// Sends `BULK` bytes both ways at once and compares the hashes.
async fn bulk_both_ways(near: TcpStream, far: TcpStream) {
    let (near_read, near_write) = near.into_split();
    let (far_read, far_write) = far.into_split();
    let (sent, received, sent_back, received_back) = tokio::join!(
        send(near_write, BULK),
        receive(far_read),
        send(far_write, BULK),
        receive(near_read),
    );
    assert_eq!((BULK, sent), received);
    assert_eq!((BULK, sent_back), received_back);
}

#[test]
fn bulk_arrives_unchanged_both_ways() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (sockets, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let to = app(move |tcp| {
            sockets.send(tcp).unwrap();
            async {}
        })
        .await;
        let relayed = client.open(to).await;
        let far = accepted.recv().await.unwrap();
        bulk_both_ways(relayed.tcp, far).await;
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::Closed);
        let counted = |c: &Counters| (c.sent(), c.received());
        assert_eq!(counted(&relayed.counters), (BULK as u64, BULK as u64));
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::Closed]
        })
        .await;
        let counters = Rc::clone(&server.handler);
        assert_eq!(
            counted(&counters.counters.borrow()[0]),
            (BULK as u64, BULK as u64)
        );
    });
}

#[test]
fn plaintext_bulk_arrives_unchanged_both_ways() {
    on_worker(async {
        let (near, first) = socket_pair().await;
        let (second, far) = socket_pair().await;
        let counters = Rc::new(Counters::default());
        let relay = spawn_local({
            let counters = Rc::clone(&counters);
            async move { karst_tunnel::relay::tcp_tcp(first, second, &counters).await }
        });
        bulk_both_ways(near, far).await;
        assert_eq!(relay.await.unwrap(), RelayEnd::Closed);
        assert_eq!(
            (counters.sent(), counters.received()),
            (BULK as u64, BULK as u64)
        );
    });
}

/// The client closes its direction first; the application answers after that.
#[test]
fn half_close_by_the_client_reaches_the_application() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let to = app(|mut tcp| async move {
            let mut asked = String::new();
            tcp.read_to_string(&mut asked).await.unwrap();
            tcp.write_all(format!("got {asked}").as_bytes())
                .await
                .unwrap();
        })
        .await;
        let mut relayed = client.open(to).await;
        relayed.tcp.write_all(b"question").await.unwrap();
        relayed.tcp.shutdown().await.unwrap();
        let mut answer = String::new();
        relayed.tcp.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "got question");
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::Closed);
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::Closed]
        })
        .await;
    });
}

/// The application closes its direction first; the client goes on sending.
#[test]
fn half_close_by_the_application_reaches_the_client() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (report, mut reported) = tokio::sync::mpsc::unbounded_channel();
        let to = app(move |mut tcp| {
            let report = report.clone();
            async move {
                tcp.write_all(b"bye").await.unwrap();
                tcp.shutdown().await.unwrap();
                let mut rest = String::new();
                tcp.read_to_string(&mut rest).await.unwrap();
                report.send(rest).unwrap();
            }
        })
        .await;
        let mut relayed = client.open(to).await;
        let mut greeting = String::new();
        relayed.tcp.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "bye");
        relayed.tcp.write_all(b"still here").await.unwrap();
        relayed.tcp.shutdown().await.unwrap();
        assert_eq!(reported.recv().await.unwrap(), "still here");
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::Closed);
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::Closed]
        })
        .await;
    });
}

#[test]
fn a_server_may_speak_first() {
    on_worker(async {
        let (_ca, _server, client) = pair().await;
        let to = app(|mut tcp| async move {
            tcp.write_all(b"220 ready\r\n").await.unwrap();
            let mut end = [0; 1];
            assert_eq!(tcp.read(&mut end).await.unwrap(), 0);
        })
        .await;
        let mut relayed = client.open(to).await;
        let mut greeting = [0; 11];
        relayed.tcp.read_exact(&mut greeting).await.unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
    });
}

/// What is on its way when nobody reads stays within the windows, in both directions.
#[test]
fn a_slow_reader_stops_the_sender() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (sockets, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let to = app(move |tcp| {
            sockets.send(tcp).unwrap();
            async {}
        })
        .await;
        let relayed = client.open(to).await;
        let far = accepted.recv().await.unwrap();
        // One window, one HTTP/2 send buffer, one read, and what three pairs of kernel socket
        // buffers take (at most 6 + 4 MiB each by Linux's defaults).
        let limit = settings::STREAM_WINDOW as usize + (2 << 20) + (30 << 20);
        let at_least = settings::STREAM_WINDOW as usize / 2;
        // For what must be taken, a busy machine is given its time.
        let patience = |sent: usize| Duration::from_secs(if sent > at_least { 1 } else { 20 });
        for (from, to) in [(&relayed.tcp, &far), (&far, &relayed.tcp)] {
            let chunk = vec![7; 1 << 20];
            let mut sent = 0;
            while let Ok(Ok(())) = tokio::time::timeout(patience(sent), from.writable()).await {
                match from.try_write(&chunk) {
                    Ok(size) => sent += size,
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
                assert!(sent < limit, "{sent} bytes were taken from the sender");
            }
            assert!(sent > at_least, "only {sent} bytes");
            // And all of it is still there.
            let mut received = 0;
            let mut buffer = vec![0; 1 << 20];
            while received < sent {
                to.readable().await.unwrap();
                match to.try_read(&mut buffer) {
                    Ok(size) => received += size,
                    Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
                }
            }
        }
        assert_eq!(server.ends(), []);
    });
}

/// A stalled reader and a sender of tiny messages cost neither the connection nor the others.
#[test]
fn a_stalled_reader_does_not_stall_other_streams() {
    on_worker(async {
        let (_ca, _server, client) = pair().await;
        let (sockets, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let stalled = app(move |tcp| {
            sockets.send(tcp).unwrap();
            async {}
        })
        .await;
        let relayed = client.open(stalled).await;
        let _unread = accepted.recv().await.unwrap();
        let writer = spawn_local(async move {
            let mut tcp = relayed.tcp;
            for _ in 0..200_000 {
                if tcp.write_all(b"x").await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            tcp
        });
        let echo = echo_app().await;
        for _ in 0..100 {
            let mut other = client.open(echo).await;
            other.tcp.write_all(b"ping").await.unwrap();
            let mut answer = [0; 4];
            other.tcp.read_exact(&mut answer).await.unwrap();
        }
        writer.await.unwrap();
        assert_eq!(client.dialer.dials.get(), 1);
    });
}

#[test]
fn a_thousand_streams_one_after_the_other() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        for i in 0..1000_u32 {
            let mut relayed = client.open(echo).await;
            let message = i.to_be_bytes();
            relayed.tcp.write_all(&message).await.unwrap();
            relayed.tcp.shutdown().await.unwrap();
            let mut answer = Vec::new();
            relayed.tcp.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, message);
            assert_eq!(relayed.relay.await.unwrap(), RelayEnd::Closed);
        }
        assert_eq!(client.dialer.dials.get(), 1);
        until("all relays end", || server.ends().len() == 1000).await;
        assert_eq!(server.handler.open.get(), 0);
    });
}

#[test]
fn five_hundred_streams_at_once() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let client = Rc::new(client);
        let echo = echo_app().await;
        let barrier = Rc::new(tokio::sync::Barrier::new(500));
        let streams: Vec<_> = (0..500_u32)
            .map(|i| {
                let (client, barrier) = (Rc::clone(&client), Rc::clone(&barrier));
                spawn_local(async move {
                    let mut relayed = client.open(echo).await;
                    barrier.wait().await;
                    let message = pattern(i as usize, 10_000);
                    relayed.tcp.write_all(&message).await.unwrap();
                    relayed.tcp.shutdown().await.unwrap();
                    let mut answer = Vec::new();
                    relayed.tcp.read_to_end(&mut answer).await.unwrap();
                    assert_eq!(answer, message);
                })
            })
            .collect();
        for stream in streams {
            stream.await.unwrap();
        }
        // 100 streams a connection: five dials feed all of them.
        assert_eq!(client.dialer.dials.get(), 5);
        assert_eq!(server.accepted.get(), 5);
    });
}

#[test]
fn headers_arrive_and_negotiation_is_known_on_both_ends() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        let source = SourceHeaders {
            baggage: Some(Baggage {
                cluster: "Kubernetes".into(),
                namespace: "test".into(),
                workload_name: "client-1".into(),
                ..Baggage::default()
            }),
            forwarded: Some(Forwarded {
                client: "[fd00::7]:4711".parse().unwrap(),
                host: "web.test.svc.cluster.local".into(),
            }),
            traceparent: Some(TraceParent::new()),
        };
        let stream = client.stream_to(&echo.to_string(), &source).await.unwrap();
        assert_eq!(stream.response_headers["baggage"], "k8s.cluster.name=test");
        assert_eq!(&*stream.tls.version, "TLSv1_3");
        assert_eq!(&*stream.tls.cipher, "TLS13_AES_128_GCM_SHA256");
        assert_eq!(&*stream.tls.key_exchange, "X25519MLKEM768");
        let requests = server.handler.requests.borrow();
        let [request] = requests.as_slice() else {
            panic!("{requests:?}");
        };
        assert_eq!(request.peer, *client.cert.id());
        let negotiated = |tls: &TlsInfo| TlsInfo {
            local_addr: None,
            ..tls.clone()
        };
        assert_eq!(negotiated(&request.tls), negotiated(&stream.tls));
        assert_eq!(request.tls.local_addr, Some(server.address));
        let client_end = stream.tls.local_addr.expect("the client knows its end");
        assert_ne!(client_end, server.address);
        assert_eq!(request.baggage, source.baggage);
        assert_eq!(request.forwarded, source.forwarded);
        assert_eq!(request.traceparent, source.traceparent);
        assert_eq!(request.local_addr, server.address);
    });
}

//! Resets travel from application to application.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use karst_tunnel::Counters;
use karst_tunnel::relay::{self, RelayEnd};
use karst_tunnel::server::Drain;
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;

use crate::support::{app, echo_app, on_worker, pair, socket_pair, until};

/// Closes with a reset instead of a FIN.
fn reset(tcp: TcpStream) {
    SockRef::from(&tcp)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

async fn read_error(tcp: &mut TcpStream) -> ErrorKind {
    let mut buffer = Vec::new();
    match tcp.read_to_end(&mut buffer).await {
        Ok(size) => panic!("closed in order after {size} bytes"),
        Err(error) => error.kind(),
    }
}

#[test]
fn a_reset_by_the_client_reaches_the_application() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (sockets, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let to = app(move |tcp| {
            sockets.send(tcp).unwrap();
            async {}
        })
        .await;
        let relayed = client.open(to).await;
        let mut far = accepted.recv().await.unwrap();
        reset(relayed.tcp);
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::LocalReset);
        assert_eq!(read_error(&mut far).await, ErrorKind::ConnectionReset);
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::RemoteReset]
        })
        .await;
        assert_eq!(client.pool.snapshot()[0].streams, 0);
    });
}

#[test]
fn a_reset_by_the_application_reaches_the_client() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let to = app(|mut tcp| async move {
            let mut byte = [0; 1];
            tcp.read_exact(&mut byte).await.unwrap();
            reset(tcp);
        })
        .await;
        let mut relayed = client.open(to).await;
        relayed.tcp.write_all(b"x").await.unwrap();
        assert_eq!(
            read_error(&mut relayed.tcp).await,
            ErrorKind::ConnectionReset
        );
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::RemoteReset);
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::LocalReset]
        })
        .await;
    });
}

/// Also when the client has closed its own direction before.
#[test]
fn a_reset_reaches_a_client_that_has_closed_its_direction() {
    on_worker(async {
        let (_ca, _server, client) = pair().await;
        let to = app(|mut tcp| async move {
            let mut all = Vec::new();
            tcp.read_to_end(&mut all).await.unwrap();
            reset(tcp);
        })
        .await;
        let mut relayed = client.open(to).await;
        relayed.tcp.shutdown().await.unwrap();
        assert_eq!(
            read_error(&mut relayed.tcp).await,
            ErrorKind::ConnectionReset
        );
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::RemoteReset);
    });
}

/// Also when nobody reads: the relay must notice although it has bytes it cannot deliver.
#[test]
fn a_reset_reaches_a_relay_that_cannot_write() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        // Less than the stream's window and far more than the small sockets below hold.
        let to = app(|mut tcp| async move {
            tcp.write_all(&vec![1; 3 << 20]).await.unwrap();
            reset(tcp);
        })
        .await;
        let stream = client.stream(to).await.unwrap();
        let (near, far) = socket_pair().await;
        SockRef::from(&near).set_recv_buffer_size(64 << 10).unwrap();
        SockRef::from(&far).set_send_buffer_size(64 << 10).unwrap();
        let counters = Counters::default();
        let end = relay::tcp_hbone(far, stream, &counters).await;
        assert_eq!(end, RelayEnd::RemoteReset);
        assert!(counters.received() < 3 << 20, "all was delivered");
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::LocalReset]
        })
        .await;
        drop(near);
    });
}

/// Also before the application is connected: nobody waits for it any more.
#[test]
fn a_stream_given_up_ends_the_attempt_to_connect() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let client = Rc::new(client);
        server.handler.hang.set(true);
        let streams: Vec<_> = (0..100)
            .map(|_| {
                let (client, to) = (Rc::clone(&client), server.address);
                spawn_local(async move { client.stream(to).await.is_ok() })
            })
            .collect();
        until("all wait", || server.handler.waiting.get() == 100).await;
        for stream in streams {
            stream.abort();
        }
        until("none waits", || server.handler.waiting.get() == 0).await;
        // All at once is no attack: the connection lives on.
        server.handler.hang.set(false);
        client.stream(echo_app().await).await.unwrap();
        assert_eq!(client.dialer.dials.get(), 1);
    });
}

#[test]
fn a_broken_tunnel_resets_the_applications() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (sockets, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let to = app(move |tcp| {
            sockets.send(tcp).unwrap();
            async {}
        })
        .await;
        let mut relayed = client.open(to).await;
        let mut far = accepted.recv().await.unwrap();
        server.restart(Drain::Immediate);
        assert_eq!(
            read_error(&mut relayed.tcp).await,
            ErrorKind::ConnectionReset
        );
        assert_eq!(read_error(&mut far).await, ErrorKind::ConnectionReset);
        assert_eq!(relayed.relay.await.unwrap(), RelayEnd::TunnelFailed);
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::TunnelFailed]
        })
        .await;
    });
}

#[test]
fn a_connection_that_is_cut_resets_the_applications() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (sockets, mut accepted) = tokio::sync::mpsc::unbounded_channel();
        let to = app(move |tcp| {
            sockets.send(tcp).unwrap();
            async {}
        })
        .await;
        let mut first = client.open(to).await;
        let mut first_far = accepted.recv().await.unwrap();
        let keeps = server.handler.cut.take();
        let mut other = client.open(echo_app().await).await;
        // One whose owner is gone goes on; it was not told to end.
        drop(server.handler.cut.take());
        other.tcp.write_all(b"ping").await.unwrap();
        other.tcp.read_exact(&mut [0; 4]).await.unwrap();
        keeps.unwrap().send(()).unwrap();
        for tcp in [&mut first.tcp, &mut first_far] {
            assert_eq!(read_error(tcp).await, ErrorKind::ConnectionReset);
        }
        assert_eq!(first.relay.await.unwrap(), RelayEnd::RemoteReset);
        // The other streams of the tunnel connection go on.
        other.tcp.write_all(b"ping").await.unwrap();
        other.tcp.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(client.dialer.dials.get(), 1);
    });
}

/// An application that dies while much is on its way to it must not hold up the tunnel.
#[test]
fn a_dead_application_does_not_stall_other_streams() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        // Closing with unread bytes resets.
        let dying = app(|mut tcp| async move {
            let mut byte = [0; 1];
            tcp.read_exact(&mut byte).await.unwrap();
        })
        .await;
        let echo = echo_app().await;
        for _ in 0..20 {
            let mut relayed = client.open(dying).await;
            let flood = vec![1; 8 << 20];
            // The reset may come before all is written; that is the point.
            let _ = relayed.tcp.write_all(&flood).await;
            let mut other = client.open(echo).await;
            other.tcp.write_all(b"ping").await.unwrap();
            let mut answer = [0; 4];
            other.tcp.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"ping");
        }
        assert_eq!(client.dialer.dials.get(), 1);
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn resets_cross_a_plaintext_relay() {
    on_worker(async {
        for first_resets in [true, false] {
            let (near, first) = socket_pair().await;
            let (second, far) = socket_pair().await;
            let counters = Rc::new(Counters::default());
            let relay = spawn_local({
                let counters = Rc::clone(&counters);
                async move { relay::tcp_tcp(first, second, &counters).await }
            });
            let (dying, mut other, expected) = if first_resets {
                (near, far, RelayEnd::LocalReset)
            } else {
                (far, near, RelayEnd::RemoteReset)
            };
            reset(dying);
            assert_eq!(read_error(&mut other).await, ErrorKind::ConnectionReset);
            assert_eq!(relay.await.unwrap(), expected);
        }
    });
}

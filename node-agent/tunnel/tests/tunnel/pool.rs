//! How the pool grows, shrinks and shares.

use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use karst_tunnel::pool::PoolConfig;
use karst_tunnel::server::{Drain, EndCause, ServerLimits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use crate::ca::{TestCa, id};
use crate::support::{Client, Server, echo_app, on_worker, pair, until};

#[test]
fn streams_wait_for_one_dial_together() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        let streams = join_all((0..100).map(|_| client.stream(echo))).await;
        assert!(streams.iter().all(Result::is_ok));
        assert_eq!(client.dialer.dials.get(), 1);
        let connections = client.pool.snapshot();
        assert_eq!(
            (connections[0].streams, connections[0].streams_total),
            (100, 100)
        );
        assert_eq!(server.accepted.get(), 1);
    });
}

#[test]
fn the_pool_grows_with_its_streams_and_the_least_loaded_connection_is_taken() {
    on_worker(async {
        let (_ca, _server, client) = pair().await;
        let echo = echo_app().await;
        let mut streams = Vec::new();
        for _ in 0..101 {
            streams.push(client.stream(echo).await.unwrap());
        }
        let loads = || {
            let connections = client.pool.snapshot();
            connections.iter().map(|c| c.streams).collect::<Vec<_>>()
        };
        assert_eq!(loads(), [100, 1]);
        streams.push(client.stream(echo).await.unwrap());
        assert_eq!(loads(), [100, 2]);
        streams.drain(..99);
        assert_eq!(loads(), [1, 2]);
        streams.push(client.stream(echo).await.unwrap());
        assert_eq!(loads(), [2, 2]);
        assert_eq!(client.dialer.dials.get(), 2);
    });
}

#[test]
fn the_peers_stream_limit_is_kept() {
    on_worker(async {
        let ca = TestCa::new();
        let mut limits = ServerLimits::new(10);
        limits.streams = 3;
        let server = Server::with_limits(ca.issue(&id("server")), limits).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let echo = echo_app().await;
        let streams = join_all((0..7).map(|_| client.stream(echo))).await;
        assert!(streams.iter().all(Result::is_ok));
        let connections = client.pool.snapshot();
        assert!(connections.iter().all(|c| c.stream_limit == 3));
        assert_eq!(connections.len(), 3);
    });
}

#[test]
fn an_idle_connection_is_released() {
    on_worker(async {
        let (ca, server, _) = pair().await;
        let config = PoolConfig {
            idle: Duration::from_millis(100),
            ..PoolConfig::default()
        };
        let client = Client::with_config(ca.issue(&id("client")), &server, config);
        let echo = echo_app().await;
        let stream = client.stream(echo).await.unwrap();
        // In use it stays however long that takes: three times the limit here.
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(client.pool.snapshot().len(), 1);
        drop(stream);
        until("the pool is empty", || client.pool.snapshot().is_empty()).await;
        until("the server's end is closed", || {
            let outcomes = server.outcomes.borrow();
            matches!(outcomes.as_slice(), [Ok(end)] if end.cause == EndCause::PeerClosed)
        })
        .await;
    });
}

#[test]
fn a_server_releases_an_idle_connection() {
    on_worker(async {
        let ca = TestCa::new();
        let mut limits = ServerLimits::new(10);
        limits.idle = Duration::from_millis(500);
        let server = Server::with_limits(ca.issue(&id("server")), limits).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let echo = echo_app().await;
        drop(client.stream(echo).await.unwrap());
        until("the server closes", || {
            let outcomes = server.outcomes.borrow();
            matches!(outcomes.as_slice(), [Ok(end)] if end.cause == EndCause::Idle)
        })
        .await;
        until("the pool is empty", || client.pool.snapshot().is_empty()).await;
    });
}

#[test]
fn a_failed_dial_answers_every_waiting_stream() {
    on_worker(async {
        let ca = TestCa::new();
        let mut server = Server::start(ca.issue(&id("server"))).await;
        // A port that is taken but not listened at, so that nobody else opens it.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        server.address = closed.local_addr().unwrap();
        let client = Client::new(ca.issue(&id("client")), &server);
        let streams = join_all((0..50).map(|_| client.stream(server.address))).await;
        for stream in streams {
            assert_eq!(stream.err().unwrap().reason(), "tunnel_connect_failed");
        }
        assert_eq!(client.dialer.dials.get(), 1);
        assert!(client.pool.snapshot().is_empty());
    });
}

/// The stream that caused a dial may be given up; those that wait with it still get theirs.
#[test]
fn a_stream_given_up_leaves_its_dial_to_the_others() {
    on_worker(async {
        let (_ca, _server, client) = pair().await;
        let client = Rc::new(client);
        let echo = echo_app().await;
        let first = spawn_local({
            let client = Rc::clone(&client);
            async move { client.stream(echo).await.is_ok() }
        });
        let second = spawn_local({
            let client = Rc::clone(&client);
            async move { client.stream(echo).await.is_ok() }
        });
        until("the dial has begun", || client.dialer.dials.get() == 1).await;
        first.abort();
        assert!(second.await.unwrap());
        assert_eq!(client.dialer.dials.get(), 1);
        until("the given-up place is free", || {
            client.pool.snapshot()[0].streams == 0
        })
        .await;
    });
}

/// A pooled connection that died unnoticed does not cost the next stream.
#[test]
fn a_dead_pooled_connection_is_replaced() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        for _ in 0..5 {
            let mut relayed = client.open(echo).await;
            relayed.tcp.write_all(b"x").await.unwrap();
            let mut byte = [0; 1];
            relayed.tcp.read_exact(&mut byte).await.unwrap();
            server.restart(Drain::Immediate);
        }
        assert_eq!(client.dialer.dials.get(), 5);
    });
}

/// A peer that answers no PING is given up, and with it the streams.
#[test]
fn a_silent_peer_is_noticed() {
    on_worker(async {
        let ca = TestCa::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let acceptor = TlsAcceptor::from(ca.issue(&id("server")).server_config());
        let address = listener.local_addr().unwrap();
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let tls = acceptor.accept(tcp).await.unwrap();
            let mut http2 = h2::server::handshake(tls).await.unwrap();
            let (_request, mut respond) = http2.accept().await.unwrap().unwrap();
            let response = http::Response::new(());
            let _send: h2::SendStream<bytes::Bytes> =
                respond.send_response(response, false).unwrap();
            let answered = std::future::poll_fn(|cx| {
                let _ = http2.poll_closed(cx);
                std::task::Poll::Ready(())
            });
            answered.await;
            // From here on nobody polls the connection.
            std::future::pending::<()>().await;
        });
        let mut server = Server::start(ca.issue(&id("server"))).await;
        server.address = address;
        let config = PoolConfig {
            ping_interval: Duration::from_millis(50),
            ping_timeout: Duration::from_millis(100),
            ..PoolConfig::default()
        };
        let client = Client::with_config(ca.issue(&id("client")), &server, config);
        let mut stream = client.stream(address).await.unwrap();
        let lost = stream.recv.data().await;
        assert!(matches!(lost, Some(Err(_))), "{lost:?}");
        until("the pool is empty", || client.pool.snapshot().is_empty()).await;
    });
}

/// A peer that is alive is not given up although the application says nothing.
#[test]
fn a_quiet_connection_is_kept() {
    on_worker(async {
        let ca = TestCa::new();
        let mut limits = ServerLimits::new(10);
        limits.ping_interval = Duration::from_millis(20);
        limits.ping_timeout = Duration::from_secs(1);
        let server = Server::with_limits(ca.issue(&id("server")), limits).await;
        let config = PoolConfig {
            ping_interval: Duration::from_millis(20),
            ping_timeout: Duration::from_secs(1),
            ..PoolConfig::default()
        };
        let client = Client::with_config(ca.issue(&id("client")), &server, config);
        let echo = echo_app().await;
        let mut relayed = client.open(echo).await;
        // Five times the limit for an answer.
        tokio::time::sleep(Duration::from_secs(5)).await;
        relayed.tcp.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        relayed.tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(client.dialer.dials.get(), 1);
    });
}

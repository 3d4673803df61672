//! GOAWAY: existing streams go on, new ones find another connection.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use karst_tunnel::server::{Drain, EndCause};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::spawn_local;
use tokio_rustls::TlsAcceptor;

use crate::ca::{TestCa, id};
use crate::support::{Client, Relayed, Server, echo_app, on_worker, pair, until};

async fn ping(relayed: &mut Relayed) {
    relayed.tcp.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    relayed.tcp.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");
}

#[test]
fn a_draining_server_keeps_its_streams() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        let mut old = client.open(echo).await;
        ping(&mut old).await;
        server.restart(Drain::Graceful);
        until("GOAWAY arrives", || client.pool.snapshot()[0].draining).await;
        let mut new = client.open(echo).await;
        ping(&mut new).await;
        ping(&mut old).await;
        drop(old.tcp);
        until("the drained connection ends", || {
            let outcomes = server.outcomes.borrow();
            matches!(outcomes.as_slice(), [Ok(end)] if end.cause == EndCause::Drained)
        })
        .await;
        ping(&mut new).await;
        until("only the new connection is left", || {
            let connections = client.pool.snapshot();
            matches!(connections.as_slice(), [one] if !one.draining && one.streams == 1)
        })
        .await;
        assert_eq!(client.dialer.dials.get(), 2);
    });
}

#[test]
fn an_idle_connection_ends_when_its_server_drains() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        let mut relayed = client.open(echo).await;
        ping(&mut relayed).await;
        drop(relayed.tcp);
        until("the stream ends", || client.pool.snapshot()[0].streams == 0).await;
        server.restart(Drain::Graceful);
        until("the pool is empty", || client.pool.snapshot().is_empty()).await;
    });
}

/// A pool's connections whose workload is gone end with their last stream.
#[test]
fn retain_drains_what_it_does_not_keep() {
    on_worker(async {
        let (_ca, _server, client) = pair().await;
        let echo = echo_app().await;
        let mut old = client.open(echo).await;
        ping(&mut old).await;
        client
            .pool
            .retain(|key| *key.destination_uid != *client.key().destination_uid);
        assert!(client.pool.snapshot()[0].draining);
        ping(&mut old).await;
        let mut new = client.open(echo).await;
        ping(&mut new).await;
        assert_eq!(client.dialer.dials.get(), 2);
        drop(old.tcp);
        until("the drained connection ends", || {
            client.pool.snapshot().len() == 1
        })
        .await;
    });
}

#[test]
fn a_new_certificate_makes_new_connections_and_drains_the_old() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("server"))).await;
        let mut client = Client::new(ca.issue(&id("client")), &server);
        let echo = echo_app().await;
        let mut old = client.open(echo).await;
        ping(&mut old).await;
        client.cert = Arc::new(ca.issue(&id("client")));
        let mut new = client.open(echo).await;
        ping(&mut new).await;
        ping(&mut old).await;
        let mut connections = client.pool.snapshot();
        connections.sort_by_key(|connection| connection.certificate_epoch);
        let draining: Vec<_> = connections.iter().map(|c| c.draining).collect();
        assert_eq!(draining, [true, false]);
        assert_eq!(connections[1].certificate_epoch, client.cert.epoch());
        drop(old.tcp);
        until("the old connection ends", || {
            client.pool.snapshot().len() == 1
        })
        .await;
    });
}

/// How a scripted server treats the first stream of a connection.
#[derive(Clone, Copy, PartialEq)]
pub enum First {
    Refuse,
    /// 503.
    Decline,
    Drop,
    Accept,
}

/// A server that treats its connections as the script says, the last entry for ever.
pub async fn scripted(ca: &TestCa, script: &'static [First]) -> (Server, Rc<Cell<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(ca.issue(&id("server")).server_config());
    let seen = Rc::new(Cell::new(0));
    spawn_local({
        let seen = Rc::clone(&seen);
        async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let step = script[seen.get().min(script.len() - 1)];
                seen.set(seen.get() + 1);
                let acceptor = acceptor.clone();
                spawn_local(async move {
                    let tls = acceptor.accept(tcp).await.unwrap();
                    let mut http2 = h2::server::handshake(tls).await.unwrap();
                    while let Some(Ok((_request, mut respond))) = http2.accept().await {
                        match step {
                            First::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                            First::Decline => {
                                let mut response = Response::new(());
                                *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                                respond.send_response(response, true).unwrap();
                            }
                            First::Drop => return,
                            First::Accept => {
                                let response = Response::new(());
                                let mut send = respond.send_response(response, false).unwrap();
                                send.send_data(Bytes::from_static(b"hello"), true).unwrap();
                            }
                        }
                    }
                });
            }
        }
    });
    // Only the address is used; this one is never dialled.
    let mut server = Server::start(ca.issue(&id("server"))).await;
    server.address = address;
    (server, seen)
}

#[test]
fn a_refused_stream_is_tried_once_on_a_fresh_connection() {
    on_worker(async {
        let ca = TestCa::new();
        let (server, seen) = scripted(&ca, &[First::Refuse, First::Accept]).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let mut stream = client.stream(server.address).await.unwrap();
        let hello = stream.recv.data().await.unwrap().unwrap();
        assert_eq!(hello, "hello");
        assert_eq!(seen.get(), 2);
    });
}

#[test]
fn a_stream_refused_twice_fails() {
    on_worker(async {
        let ca = TestCa::new();
        let (server, seen) = scripted(&ca, &[First::Refuse]).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let error = client.stream(server.address).await.err().unwrap();
        assert_eq!(error.reason(), "peer_draining");
        assert_eq!(seen.get(), 2);
    });
}

/// A fresh connection that breaks says something about the peer: no second try.
#[test]
fn a_fresh_connection_that_breaks_fails() {
    on_worker(async {
        let ca = TestCa::new();
        let (server, seen) = scripted(&ca, &[First::Drop, First::Accept]).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let error = client.stream(server.address).await.err().unwrap();
        assert_eq!(error.reason(), "connection_failed", "{error}");
        assert_eq!(seen.get(), 1);
    });
}

//! The application's first bytes, which are sent along with the CONNECT.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use http::HeaderMap;
use karst_tunnel::pool::{FirstBytes, OutboundRequest};
use karst_tunnel::relay::{self, RelayEnd};
use karst_tunnel::server::{Refusal, RefusalStatus};
use karst_tunnel::{Counters, HboneStream, TunnelError};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use tokio::time::Duration;

use crate::ca::{TestCa, id};
use crate::drain::{First, scripted};
use crate::support::{Client, app, echo_app, on_worker, pair, socket_pair, until};

async fn connect(
    client: &Client,
    to: SocketAddr,
    first: &mut FirstBytes<'_>,
) -> Result<HboneStream, TunnelError> {
    let request = OutboundRequest {
        authority: to.to_string().parse().unwrap(),
        headers: HeaderMap::new(),
    };
    client
        .pool
        .connect_with(client.key(), &client.dialer, &client.cert, request, first)
        .await
}

/// An application that keeps what it gets until the other end stops.
async fn keeping_app(kept: &Rc<RefCell<Vec<Vec<u8>>>>) -> SocketAddr {
    let kept = Rc::clone(kept);
    app(move |mut tcp| {
        let kept = Rc::clone(&kept);
        async move {
            let mut bytes = Vec::new();
            tcp.read_to_end(&mut bytes).await.unwrap();
            kept.borrow_mut().push(bytes);
        }
    })
    .await
}

#[test]
fn they_arrive_once_and_before_what_follows() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let kept = Rc::new(RefCell::new(Vec::new()));
        let to = keeping_app(&kept).await;
        // More than is read before the answer, so that the rest follows in the relay.
        for (size, half_closed) in [(5, false), (5, true), (0, true), (100_000, false)] {
            let (mut near, mut far) = socket_pair().await;
            let sent: Vec<u8> = (0..size).map(|at: u32| (at % 251) as u8).collect();
            near.write_all(&sent).await.unwrap();
            if half_closed {
                near.shutdown().await.unwrap();
            }
            let stream = connect(&client, to, &mut FirstBytes::of(&mut far))
                .await
                .unwrap();
            let counters = Rc::new(Counters::default());
            let relay = spawn_local({
                let counters = Rc::clone(&counters);
                async move { relay::tcp_hbone(far, stream, &counters).await }
            });
            let mut wanted = sent;
            if !half_closed {
                near.write_all(b"and more").await.unwrap();
                wanted.extend(b"and more");
                near.shutdown().await.unwrap();
            }
            assert_eq!(relay.await.unwrap(), RelayEnd::Closed);
            assert_eq!(counters.sent(), wanted.len() as u64);
            until("the application has all", || !kept.borrow().is_empty()).await;
            assert!(kept.take() == [wanted], "{size} bytes");
        }
        assert_eq!(server.handler.counters.borrow()[0].received(), 13);
    });
}

/// They travel while the destination is still being asked: that is what they are for.
#[test]
fn they_do_not_wait_for_the_answer() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        server.handler.hang.set(true);
        let (mut near, mut far) = socket_pair().await;
        near.write_all(b"hello").await.unwrap();
        let echo = echo_app().await;
        let (client, read) = (Rc::new(client), Rc::new(RefCell::new(None)));
        let opening = spawn_local({
            let (client, read) = (Rc::clone(&client), Rc::clone(&read));
            async move {
                let mut first = FirstBytes::of(&mut far);
                let stream = connect(&client, echo, &mut first).await;
                drop(first);
                // Nothing is left of it in the socket.
                *read.borrow_mut() = Some(far.try_read(&mut [0; 8]).is_err());
                stream.is_ok()
            }
        });
        until("the server is asked", || server.handler.waiting.get() == 1).await;
        // The server's end breaks; by then the bytes were on their way.
        tokio::time::sleep(Duration::from_millis(50)).await;
        server.restart(karst_tunnel::server::Drain::Immediate);
        assert!(!opening.await.unwrap());
        assert_eq!(read.take(), Some(true));
    });
}

#[test]
fn a_refusal_leaves_them_for_another_destination() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let kept = Rc::new(RefCell::new(Vec::new()));
        let to = keeping_app(&kept).await;
        let (mut near, mut far) = socket_pair().await;
        near.write_all(b"hello").await.unwrap();
        let mut first = FirstBytes::of(&mut far);
        server.handler.answer.set(Some(Refusal {
            status: RefusalStatus::Unavailable,
            reason: "test",
        }));
        let error = connect(&client, to, &mut first).await.err().unwrap();
        assert_eq!(error.reason(), "upstream_refused");
        assert!(!first.is_spent());
        server.handler.answer.set(None);
        let stream = connect(&client, to, &mut first).await.unwrap();
        near.shutdown().await.unwrap();
        let relay =
            spawn_local(async move { relay::tcp_hbone(far, stream, &Counters::default()).await });
        assert_eq!(relay.await.unwrap(), RelayEnd::Closed);
        until("the application has all", || !kept.borrow().is_empty()).await;
        assert_eq!(kept.take(), [b"hello"]);
    });
}

/// Where another destination is reached in plain text.
#[test]
fn a_plain_relay_begins_with_them() {
    on_worker(async {
        let ca = TestCa::new();
        let (server, _) = scripted(&ca, &[First::Decline]).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let (mut near, mut far) = socket_pair().await;
        near.write_all(b"hello").await.unwrap();
        let mut first = FirstBytes::of(&mut far);
        let failed = connect(&client, server.address, &mut first).await;
        assert_eq!(failed.err().unwrap().reason(), "upstream_refused");
        let early = first.unsent();
        near.write_all(b", you").await.unwrap();
        near.shutdown().await.unwrap();
        let upstream = TcpStream::connect(echo_app().await).await.unwrap();
        let counters = Counters::default();
        let relay = relay::tcp_tcp_after(early, far, upstream, &counters);
        let mut echoed = String::new();
        let (end, read) = tokio::join!(relay, near.read_to_string(&mut echoed));
        read.unwrap();
        assert_eq!((end, &*echoed), (RelayEnd::Closed, "hello, you"));
        assert_eq!(counters.sent(), 10);
    });
}

/// When nobody knows whether an application has seen them, they are not sent again: not on
/// another connection, nor to another destination.
#[test]
fn they_are_not_sent_twice_where_they_may_have_arrived() {
    on_worker(async {
        let ca = TestCa::new();
        let (server, seen) = scripted(&ca, &[First::Drop, First::Accept]).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let (mut near, mut far) = socket_pair().await;
        near.write_all(b"hello").await.unwrap();
        let mut first = FirstBytes::of(&mut far);
        let failed = connect(&client, server.address, &mut first).await;
        assert_eq!(failed.err().unwrap().reason(), "connection_failed");
        assert!(first.is_spent());
        assert_eq!(seen.get(), 1);
    });
}

/// A stream that was refused unseen is tried again with them.
#[test]
fn a_stream_refused_unseen_does_not_spend_them() {
    on_worker(async {
        let ca = TestCa::new();
        let (server, seen) = scripted(&ca, &[First::Refuse, First::Accept]).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let (mut near, mut far) = socket_pair().await;
        near.write_all(b"hello").await.unwrap();
        let mut first = FirstBytes::of(&mut far);
        connect(&client, server.address, &mut first).await.unwrap();
        assert!(!first.is_spent());
        assert_eq!(seen.get(), 2);
    });
}

/// The kernel tells of a reset only once, and it is read before the relay starts.
#[test]
fn a_reset_before_the_answer_ends_the_relay() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let (near, mut far) = socket_pair().await;
        SockRef::from(&near)
            .set_linger(Some(Duration::ZERO))
            .unwrap();
        drop(near);
        let to = echo_app().await;
        let stream = connect(&client, to, &mut FirstBytes::of(&mut far))
            .await
            .unwrap();
        let end = relay::tcp_hbone(far, stream, &Counters::default()).await;
        assert_eq!(end, RelayEnd::LocalReset);
        until("the server's relay ends", || {
            server.ends() == [RelayEnd::RemoteReset]
        })
        .await;
    });
}

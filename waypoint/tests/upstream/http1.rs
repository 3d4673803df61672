//! HTTP/1.1 connections: kept, checked, given up.

use std::time::Duration;

use bytes::Bytes;
use http::{StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use karst_api::waypoint::{ConnectionLimits, Protocol};
use karst_waypoint::balance::Outcome;
use karst_waypoint::body::Body;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::app::{self, Speaks, http, raw, read_head};
use crate::support::{Proxy, channel, get, get2, post, read};
use crate::tunnel::{on_worker, until};

#[test]
fn a_connection_is_used_again_after_its_response_was_read() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        for n in 0..20 {
            assert_eq!(proxy.text(&format!("/{n}")).await, format!("/{n}"));
        }
        assert_eq!(
            proxy.send(get("/echo")).await.unwrap().status(),
            200,
            "an empty body"
        );
        proxy.text("/last").await;
        assert_eq!(app.seen.connections.get(), 1);
        let stats = proxy.upstream.metrics().stats();
        assert_eq!((stats.opened, stats.requests, stats.reused), (1, 22, 21));
        assert_eq!(proxy.cluster.stats().requests, 0);
    });
}

#[test]
fn a_connection_with_an_unread_body_is_closed() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        let response = proxy.send(get("/large")).await.unwrap();
        drop(response);
        until("it is closed", || app.seen.open.get() == 0).await;
        assert_eq!(proxy.text("/next").await, "/next");
        assert_eq!(app.seen.connections.get(), 2);
        assert_eq!(proxy.cluster.stats().connections, 1);
    });
}

#[test]
fn a_request_that_is_given_up_closes_its_connection() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        let gave_up = timeout(Duration::from_millis(50), proxy.send(get("/wait"))).await;
        assert!(gave_up.is_err());
        until("it is closed", || proxy.cluster.stats().connections == 0).await;
        assert_eq!(proxy.cluster.stats().requests, 0);
    });
}

#[test]
fn a_connection_that_the_application_closed_is_not_used() {
    on_worker(async {
        let app = raw(|mut tcp, _| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                .await
                .unwrap();
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        for connections in 1..=3 {
            assert_eq!(proxy.text("/").await, "ok");
            until("we see its end", || {
                proxy.upstream.metrics().stats().open == 0
            })
            .await;
            assert_eq!(app.seen.connections.get(), connections);
        }
    });
}

#[test]
fn a_close_that_crosses_a_request_is_safe_to_retry_if_nothing_is_lost() {
    on_worker(async {
        // Answers once, takes the second request, and closes without a word.
        let app = raw(|mut tcp, seen| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                .await
                .unwrap();
            read_head(&mut tcp).await;
            seen.requests.set(seen.requests.get() + 1);
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        let idle = async || {
            proxy.get("/").await.unwrap();
            until("it is idle", || proxy.upstream.idle() == 1).await;
        };
        idle().await;
        assert_eq!(proxy.reason(get("/")).await, ("upstream_idle_closed", true));
        idle().await;
        let with_body = post("/", Body::full("pay"));
        assert_eq!(
            proxy.reason(with_body).await,
            ("upstream_idle_closed", false)
        );
        idle().await;
        let without = post("/", Body::Empty);
        assert_eq!(
            proxy.reason(without).await,
            ("upstream_idle_closed", false),
            "it may have run"
        );
        assert_eq!(app.seen.requests.get(), 3);
    });
}

#[test]
fn a_fresh_connection_that_is_closed_is_no_safe_one() {
    on_worker(async {
        let app = raw(|mut tcp, _| async move {
            read_head(&mut tcp).await;
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        assert_eq!(proxy.reason(get("/")).await, ("upstream_closed", false));
        let error = proxy.send(get("/")).await.err().unwrap();
        assert_eq!(error.outcome(), Outcome::Reset);
    });
}

#[test]
fn what_is_no_response_is_an_error_of_its_own() {
    on_worker(async {
        for answer in [
            "220 mail.test ESMTP\r\n\r\n",
            "HTTP/1.1 200 OK\r\nconte nt: 1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        ] {
            let app = raw(move |mut tcp, _| async move {
                read_head(&mut tcp).await;
                tcp.write_all(answer.as_bytes()).await.unwrap();
                // Stays open: it is the answer that is wrong.
                let _ = tcp.read(&mut [0]).await;
            })
            .await;
            let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
            assert_eq!(
                proxy.reason(get("/")).await,
                ("upstream_protocol_error", false),
                "{answer}"
            );
            until("it is closed", || app.seen.open.get() == 0).await;
        }
    });
}

#[test]
fn a_response_that_breaks_off_shows_in_the_body() {
    on_worker(async {
        let app = raw(|mut tcp, _| async move {
            read_head(&mut tcp).await;
            tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")
                .await
                .unwrap();
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        let response = proxy.send(get("/")).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
        assert_eq!(proxy.upstream.idle(), 0);
    });
}

#[test]
fn nobody_listens() {
    on_worker(async {
        // A port that is taken but not listened at, so that nobody else opens it.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let proxy = Proxy::plain(Protocol::Http1, &[closed.local_addr().unwrap()]);
        let error = proxy.send(get("/")).await.err().unwrap();
        assert_eq!(error.reason(), "upstream_connect_failed");
        assert!(error.is_safe_to_retry());
        assert_eq!(error.outcome(), Outcome::ConnectFailed);
        let stats = proxy.cluster.stats();
        assert_eq!((stats.connections, stats.pending), (0, 0));
        assert_eq!(proxy.upstream.metrics().stats().failed, 1);
    });
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    on_worker(async {
        for speaks in [Speaks::Http1, Speaks::Http2(10)] {
            let app = http(speaks).await;
            let protocol = match speaks {
                Speaks::Http2(_) => Protocol::Http2,
                _ => Protocol::Http1,
            };
            let proxy = Proxy::plain(protocol, &[app.address]);
            let (sender, body) = channel();
            sender.send(Ok(Bytes::from_static(b"begun"))).await.unwrap();
            let response = proxy.send(post("/no", body)).await.unwrap();
            assert_eq!(response.status(), StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(read(response).await.1, "no");
            drop(sender);
        }
    });
}

#[test]
fn a_request_is_read_no_faster_than_the_application_takes_it() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = http(Speaks::Both).await;
            let proxy = Proxy::plain(protocol, &[app.address]);
            let (sender, body) = channel();
            let picked = proxy.pick();
            let send = proxy
                .upstream
                .send(&picked, Version::HTTP_11, post("/wait", body));
            let feed = async {
                let chunk = Bytes::from(vec![0; 64 << 10]);
                let mut sent = 0;
                while let Ok(Ok(())) =
                    timeout(Duration::from_millis(300), sender.send(Ok(chunk.clone()))).await
                {
                    sent += chunk.len();
                    assert!(sent < 256 << 20, "{protocol:?}: no end of it");
                }
                sent
            };
            let mut send = std::pin::pin!(send);
            tokio::select! {
                _ = &mut send => panic!("the application waits"),
                sent = feed => assert!(sent > 0),
            }
        }
    });
}

#[test]
fn a_request_whose_body_breaks_off_is_not_the_applications_fault() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = http(Speaks::Both).await;
            let proxy = Proxy::plain(protocol, &[app.address]);
            let (sender, body) = channel();
            let feed = async {
                sender.send(Ok(Bytes::from_static(b"begun"))).await.unwrap();
                sender.send(Err("the client is gone".into())).await.unwrap();
            };
            let (result, ()) = tokio::join!(proxy.send(post("/wait", body)), feed);
            let error = result.err().unwrap();
            assert_eq!(
                error.reason(),
                "request_body_failed",
                "{protocol:?}: {error}"
            );
            assert_eq!(error.outcome(), Outcome::Cancelled);
            assert!(!error.is_safe_to_retry());
        }
    });
}

#[test]
fn an_http2_request_reaches_an_http1_application_in_its_form() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let proxy = Proxy::plain(Protocol::Websocket, &[app.address]);
        let response = proxy.send(get2("/look?a=b")).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(
            read(response).await.1,
            "HTTP/1.1 /look?a=b host=Some(\"shop\")"
        );
    });
}

#[test]
fn trailers_of_a_request_pass() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = http(Speaks::Both).await;
            let proxy = Proxy::plain(protocol, &[app.address]);
            let mut trailers = http::HeaderMap::new();
            trailers.insert("x-sum", "42".parse().unwrap());
            let frames = [
                Ok(http_body::Frame::data(Bytes::from_static(b"data"))),
                Ok(http_body::Frame::trailers(trailers)),
            ];
            let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
            let mut request = post("/echo", Body::boxed(body));
            request
                .headers_mut()
                .insert("trailer", "x-sum".parse().unwrap());
            let (head, text) = read(proxy.send(request).await.unwrap()).await;
            assert_eq!(text, "data");
            assert_eq!(head.headers()["trailer-x-sum"], "42", "{protocol:?}");
        }
    });
}

#[test]
fn an_upgrade_passes_and_takes_its_connection() {
    on_worker(async {
        let app = http(Speaks::Both).await;
        let proxy = Proxy::plain(Protocol::Undeclared, &[app.address]);
        proxy.text("/before").await;
        let mut request = get("/upgrade");
        request
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "test".parse().unwrap());
        let response = proxy.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let upgraded = hyper::upgrade::on(response).await.unwrap();
        let mut io = TokioIo::new(upgraded);
        io.write_all(b"ping").await.unwrap();
        let mut got = Vec::new();
        io.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"gnip");
        assert_eq!(
            proxy.cluster.stats().connections,
            2,
            "counted while it lives"
        );
        drop(io);
        until("it is closed", || proxy.cluster.stats().connections == 1).await;
        proxy.text("/after").await;
        assert_eq!(app.seen.connections.get(), 2);
    });
}

#[test]
fn an_upgrade_that_is_declined_leaves_a_usable_connection() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        let mut request = get("/declined");
        request
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "test".parse().unwrap());
        assert_eq!(
            read(proxy.send(request).await.unwrap()).await.1,
            "/declined"
        );
        proxy.text("/after").await;
        assert_eq!(app.seen.connections.get(), 1);
    });
}

#[test]
fn a_connection_carries_as_many_requests_as_it_may() {
    on_worker(async {
        let limits = ConnectionLimits {
            max_requests_per_connection: 3,
            ..ConnectionLimits::default()
        };
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = http(Speaks::Both).await;
            let proxy = Proxy::limited(protocol, &[app.address], limits);
            for _ in 0..9 {
                proxy.text("/").await;
            }
            assert_eq!(app.seen.connections.get(), 3, "{protocol:?}");
        }
    });
}

#[test]
fn what_nobody_uses_is_closed() {
    on_worker(async {
        let limits = ConnectionLimits {
            idle_timeout_ms: 200,
            ..ConnectionLimits::default()
        };
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let app = http(Speaks::Both).await;
            let proxy = Proxy::limited(protocol, &[app.address], limits);
            proxy.text("/").await;
            assert_eq!(app.seen.open.get(), 1);
            until("it is closed", || app.seen.open.get() == 0).await;
            assert_eq!(proxy.cluster.stats().connections, 0, "{protocol:?}");
        }
    });
}

#[test]
fn connections_to_an_endpoint_that_is_gone_are_closed() {
    on_worker(async {
        let app = app::http(Speaks::Both).await;
        let proxy = Proxy::plain(Protocol::Http1, &[app.address]);
        proxy.text("/").await;
        proxy
            .clusters
            .update(&crate::support::backend(Protocol::Http1, &[]), None)
            .unwrap();
        until("it is closed", || app.seen.open.get() == 0).await;
    });
}

//! HTTP/2 connections: shared, several, ended in order.

use std::rc::Rc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Response, Version};
use karst_api::waypoint::{ConnectionLimits, Protocol};
use karst_waypoint::balance::Outcome;
use karst_waypoint::body::Body;
use tokio::net::TcpSocket;
use tokio::task::spawn_local;

use crate::app::{App, Speaks, http, raw};
use crate::support::{Proxy, get, get2, post, read};
use crate::tunnel::{on_worker, until};

/// Starts `count` requests that wait at the application, and waits until they do.
async fn hold(proxy: &Rc<Proxy>, app: &App, count: usize) -> Vec<tokio::task::JoinHandle<String>> {
    let held = (0..count).map(|_| {
        let proxy = Rc::clone(proxy);
        spawn_local(async move { proxy.text("/wait").await })
    });
    let held = held.collect();
    until("all wait", || app.seen.waiting.get() == count).await;
    held
}

async fn finish(app: &App, held: Vec<tokio::task::JoinHandle<String>>) {
    app.seen.go_on.notify_waiters();
    for text in join_all(held).await {
        assert_eq!(text.unwrap(), "waited");
    }
}

#[test]
fn requests_share_a_connection() {
    on_worker(async {
        let app = http(Speaks::Http2(200)).await;
        let proxy = Rc::new(Proxy::plain(Protocol::Grpc, &[app.address]));
        let held = hold(&proxy, &app, 50).await;
        assert_eq!(app.seen.connections.get(), 1);
        finish(&app, held).await;
        assert_eq!(proxy.text("/after").await, "/after");
        assert_eq!(app.seen.connections.get(), 1);
    });
}

#[test]
fn under_load_there_are_more_connections() {
    on_worker(async {
        let app = http(Speaks::Http2(1_000)).await;
        let proxy = Rc::new(Proxy::plain(Protocol::Http2, &[app.address]));
        let held = hold(&proxy, &app, 250).await;
        assert_eq!(app.seen.connections.get(), 3);
        finish(&app, held).await;
    });
}

#[test]
fn an_application_gets_no_more_streams_than_it_takes() {
    on_worker(async {
        let app = http(Speaks::Http2(2)).await;
        let proxy = Rc::new(Proxy::plain(Protocol::Http2, &[app.address]));
        let held = hold(&proxy, &app, 6).await;
        assert!((3..=6).contains(&app.seen.connections.get()));
        finish(&app, held).await;
    });
}

#[test]
fn without_room_for_a_connection_requests_wait_for_a_stream() {
    on_worker(async {
        let app = http(Speaks::Http2(2)).await;
        let limits = ConnectionLimits {
            max_connections: 1,
            ..ConnectionLimits::default()
        };
        let proxy = Rc::new(Proxy::limited(Protocol::Http2, &[app.address], limits));
        let held = hold(&proxy, &app, 2).await;
        let more: Vec<_> = (0..4)
            .map(|n| {
                let proxy = Rc::clone(&proxy);
                spawn_local(async move { proxy.text(&format!("/{n}")).await })
            })
            .collect();
        until("they wait", || proxy.cluster.stats().pending == 4).await;
        finish(&app, held).await;
        for text in join_all(more).await {
            assert!(text.unwrap().starts_with('/'));
        }
        assert_eq!(app.seen.connections.get(), 1);
    });
}

#[test]
fn the_version_is_that_of_the_request_where_nothing_is_declared() {
    on_worker(async {
        let app = http(Speaks::Both).await;
        let proxy = Proxy::plain(Protocol::Undeclared, &[app.address]);
        let response = proxy.send(get2("/look?a")).await.unwrap();
        assert_eq!(
            read(response).await.1,
            "HTTP/2.0 http://shop/look?a host=None"
        );
        assert_eq!(
            proxy.text("/look?b").await,
            "HTTP/1.1 /look?b host=Some(\"shop\")"
        );
        let declared = Proxy::plain(Protocol::Http2, &[app.address]);
        assert!(
            declared
                .text("/look")
                .await
                .starts_with("HTTP/2.0 http://shop/look")
        );
    });
}

#[test]
fn an_application_that_does_not_speak_http2_says_so() {
    on_worker(async {
        let app = http(Speaks::Http1).await;
        let proxy = Proxy::plain(Protocol::Http2, &[app.address]);
        let error = proxy.send(get("/")).await.err().unwrap();
        assert_eq!(
            (error.reason(), error.is_safe_to_retry()),
            ("upstream_not_http2", true)
        );
        assert_eq!(error.outcome(), Outcome::ConnectFailed);
        assert_eq!(app.seen.requests.get(), 0);
        until("it is closed", || proxy.cluster.stats().connections == 0).await;
    });
}

#[test]
fn an_application_that_says_nothing_is_given_up() {
    on_worker(async {
        let app = raw(|tcp, _| async move {
            tcp.readable().await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let limits = ConnectionLimits {
            connect_timeout_ms: 200,
            ..ConnectionLimits::default()
        };
        let proxy = Proxy::limited(Protocol::Http2, &[app.address], limits);
        let answer = proxy.reason(get("/")).await;
        assert_eq!(answer, ("upstream_connect_timeout", true));
        until("it is closed", || proxy.cluster.stats().connections == 0).await;
    });
}

#[test]
fn a_connection_that_ends_in_order_is_replaced() {
    on_worker(async {
        let app = raw(|tcp, _| async move {
            let mut http2 = h2::server::handshake(tcp).await.unwrap();
            let mut requests = 0;
            while let Some(Ok((_, mut respond))) = http2.accept().await {
                requests += 1;
                let mut body = respond.send_response(Response::new(()), false).unwrap();
                body.send_data(Bytes::from_static(b"ok"), true).unwrap();
                if requests == 5 {
                    http2.graceful_shutdown();
                }
            }
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http2, &[app.address]);
        for _ in 0..30 {
            // What was sent beyond the last stream comes back as a safe error, and is sent again.
            let text = loop {
                match proxy.get("/").await {
                    Ok((_, text)) => break text,
                    Err(error) => assert!(error.is_safe_to_retry(), "{error}"),
                }
            };
            assert_eq!(text, "ok");
        }
        assert!(
            app.seen.connections.get() >= 3,
            "{}",
            app.seen.connections.get()
        );
    });
}

#[test]
fn a_refused_stream_is_safe_to_retry_and_a_reset_one_is_not() {
    on_worker(async {
        let app = raw(|tcp, _| async move {
            let mut http2 = h2::server::handshake(tcp).await.unwrap();
            while let Some(Ok((request, mut respond))) = http2.accept().await {
                respond.send_reset(match request.uri().path() {
                    "/refused" => h2::Reason::REFUSED_STREAM,
                    _ => h2::Reason::INTERNAL_ERROR,
                });
            }
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http2, &[app.address]);
        assert_eq!(
            proxy.reason(get("/refused")).await,
            ("upstream_refused_stream", true)
        );
        let with_body = post("/refused", Body::full("some"));
        assert_eq!(
            proxy.reason(with_body).await,
            ("upstream_refused_stream", true)
        );
        assert_eq!(proxy.reason(get("/other")).await, ("upstream_reset", false));
        assert_eq!(app.seen.connections.get(), 1, "it is the stream that ended");
    });
}

#[test]
fn a_connection_that_breaks_fails_its_requests() {
    on_worker(async {
        let app = raw(|tcp, _| async move {
            let mut http2 = h2::server::handshake(tcp).await.unwrap();
            let _request = http2.accept().await;
        })
        .await;
        let proxy = Proxy::plain(Protocol::Http2, &[app.address]);
        let error = proxy.send(get("/")).await.err().unwrap();
        assert!(!error.is_safe_to_retry(), "{error}");
        assert_eq!(error.outcome(), Outcome::Reset);
    });
}

#[test]
fn a_request_that_is_given_up_resets_its_stream_only() {
    on_worker(async {
        let app = http(Speaks::Http2(10)).await;
        let proxy = Rc::new(Proxy::plain(Protocol::Http2, &[app.address]));
        let held = hold(&proxy, &app, 1).await;
        tokio::select! {
            answer = proxy.send(get("/wait")) => panic!("{:?}", answer.map(|it| it.status())),
            () = until("it waits too", || app.seen.waiting.get() == 2) => {}
        }
        until("the application sees it", || app.seen.waiting.get() == 1).await;
        assert_eq!(app.seen.most_waiting.get(), 2);
        finish(&app, held).await;
        assert_eq!(app.seen.connections.get(), 1);
    });
}

#[test]
fn a_failed_dial_is_the_answer_to_all_who_wait() {
    on_worker(async {
        // A port that is taken but not listened at, so that nobody else opens it.
        let closed = TcpSocket::new_v4().unwrap();
        closed.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let proxy = Proxy::plain(Protocol::Http2, &[closed.local_addr().unwrap()]);
        let all = join_all((0..20).map(|_| proxy.reason(get("/")))).await;
        assert!(
            all.iter()
                .all(|answer| *answer == ("upstream_connect_failed", true))
        );
        assert_eq!(
            proxy.upstream.metrics().stats().failed,
            1,
            "one dial for all"
        );
    });
}

#[test]
fn a_large_response_comes_whole() {
    on_worker(async {
        let app = http(Speaks::Http2(10)).await;
        let proxy = Proxy::plain(Protocol::Http2, &[app.address]);
        let response = proxy.send(get2("/large")).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(read(response).await.1.len(), 8 << 20);
    });
}

use std::time::Duration;

use http_body_util::BodyExt as _;
use karst_tunnel::server::Drain;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::{Instant, timeout};

use super::support::{PATIENCE, Proxy, application, body_of, channel, get, get2, run, text};
use crate::http::HttpLimits;

const SHORT: Duration = Duration::from_millis(200);

async fn proxy() -> Proxy {
    let proxy = Proxy::with(HttpLimits {
        head: SHORT,
        idle: 3 * SHORT,
        body_pause: SHORT,
        ..HttpLimits::default()
    });
    proxy.service(&[
        application(|request: http::Request<hyper::body::Incoming>| async move {
            let _ = request.into_body().collect().await;
            text("done").await
        })
        .await,
    ]);
    proxy
}

#[test]
fn slow_heads_are_cut_off() {
    run(async {
        let proxy = proxy().await;
        for begin in ["", "GET / HTTP/1.1\r\nHost: shop\r\n\r\n"] {
            let mut client = proxy.connect();
            client.write_all(begin.as_bytes()).await.unwrap();
            let began = Instant::now();
            let drip = async {
                loop {
                    if client.write_all(b"GET").await.is_err() {
                        break;
                    }
                    tokio::time::sleep(SHORT / 10).await;
                }
            };
            timeout(PATIENCE, drip).await.expect("cut off");
            assert!(began.elapsed() >= SHORT, "{:?}", began.elapsed());
        }
        proxy.refused("http_head_timeout", 2).await;
    });
}

#[test]
fn a_preface_that_does_not_end_is_cut_off() {
    run(async {
        // Nothing here is outside this thread, so that the clock need not be the real one.
        tokio::time::pause();
        // No other limit is short, so that it is this one that closes the connection.
        let proxy = Proxy::with(HttpLimits {
            head: SHORT,
            ..HttpLimits::default()
        });
        proxy.service(&[]);
        let mut client = proxy.connect();
        client.write_all(b"PRI * HTTP/2").await.unwrap();
        let mut rest = Vec::new();
        let read = client.read_to_end(&mut rest);
        let _ = timeout(3 * SHORT, read).await.expect("cut off");
    });
}

#[test]
fn idle_connections_are_closed() {
    run(async {
        let proxy = proxy().await;
        let mut silent = proxy.connect();
        let mut rest = Vec::new();
        let _ = timeout(PATIENCE, silent.read_to_end(&mut rest))
            .await
            .expect("closed");
        let mut used = proxy.connect();
        used.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")
            .await
            .unwrap();
        let _ = timeout(PATIENCE, used.read_to_end(&mut rest))
            .await
            .expect("closed");
        assert!(String::from_utf8_lossy(&rest).contains("done"));
        let mut http2 = proxy.http2().await;
        let response = http2.send_request(get2("/")).await.unwrap();
        assert_eq!(body_of(response).await, "done");
        let closed = async {
            while http2.ready().await.is_ok() && !http2.is_closed() {
                tokio::time::sleep(SHORT / 10).await;
            }
        };
        timeout(PATIENCE, closed).await.expect("closed");
    });
}

#[test]
fn slow_bodies_are_cut_off() {
    run(async {
        let proxy = proxy().await;
        let answer = proxy
            .raw("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nabc")
            .await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert!(
            answer.contains("karst-reason: request_body_timeout"),
            "{answer}"
        );
    });
}

#[test]
fn a_connection_that_is_used_is_not_idle() {
    run(async {
        let proxy = Proxy::with(HttpLimits {
            head: SHORT,
            idle: SHORT,
            body_pause: SHORT,
            ..HttpLimits::default()
        });
        proxy.service(&[application(|_| async {
            tokio::time::sleep(4 * SHORT).await;
            text("late").await
        })
        .await]);
        let mut client = proxy.connect();
        // The next head is read ahead while the first request is under way.
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\nGET")
            .await
            .unwrap();
        let mut answer = vec![0; 12];
        timeout(PATIENCE, client.read_exact(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(answer, b"HTTP/1.1 200");
    });
}

#[test]
fn draining_lets_requests_end() {
    run(async {
        let proxy = Proxy::of(|_| async {
            let (sender, body) = channel();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(SHORT).await;
                sender.data("end");
            });
            http::Response::new(body)
        })
        .await;
        let mut idle = proxy.connect();
        let mut http1 = proxy.http1().await;
        let mut http2 = proxy.http2().await;
        let one = http1.send_request(get("/")).await.unwrap();
        let two = http2.send_request(get2("/")).await.unwrap();
        proxy.drain.send_replace(Drain::Graceful);
        let mut rest = Vec::new();
        timeout(PATIENCE, idle.read_to_end(&mut rest))
            .await
            .expect("closed")
            .unwrap();
        assert_eq!(rest, b"");
        assert_eq!(body_of(one).await, "end");
        assert_eq!(body_of(two).await, "end");
        super::support::eventually(|| http1.is_closed() && http2.is_closed()).await;
    });
}

#[test]
fn draining_at_once_breaks_off() {
    run(async {
        let proxy = Proxy::of(|_| async {
            let (sender, body) = channel();
            sender.data("begin");
            tokio::task::spawn_local(async move { sender.closed().await });
            http::Response::new(body)
        })
        .await;
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        proxy.drain.send_replace(Drain::Immediate);
        assert!(
            timeout(PATIENCE, response.into_body().collect())
                .await
                .unwrap()
                .is_err()
        );
    });
}

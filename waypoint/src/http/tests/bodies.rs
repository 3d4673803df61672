use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use http::{Method, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use karst_api::waypoint as wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::support::{
    PATIENCE, Proxy, backend, body_of, channel, echo, get, get2, listener, read_head, run,
    with_body,
};
use crate::body::Body;

#[test]
fn large_bodies_pass_both_ways() {
    run(async {
        let proxy = Proxy::of(|request: http::Request<Incoming>| async move {
            Response::new(Body::Incoming(request.into_body()))
        })
        .await;
        let data = Bytes::from(vec![b'x'; 3 << 20]);
        let mut client = proxy.http1().await;
        let response = client
            .send_request(with_body("/", Body::full(data.clone())))
            .await
            .unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), data.len());
        // The same in pieces, of which nobody knows how many there are, by HTTP/2.
        let (sender, body) = channel();
        for _ in 0..48 {
            sender.bytes(data.slice(..64 << 10));
        }
        drop(sender);
        let mut request = get2("/").map(|_| body);
        *request.method_mut() = Method::POST;
        let response = proxy.http2().await.send_request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body.len(), data.len());
    });
}

#[test]
fn events_arrive_when_they_happen() {
    run(async {
        let proxy = Proxy::of(|_| async {
            let (sender, body) = channel();
            sender.data("data: one\n\n");
            tokio::task::spawn_local(async move {
                // The connection stays open until the client has seen the first event.
                sender.closed().await;
            });
            Response::builder()
                .header("content-type", "text/event-stream")
                .body(body)
                .unwrap()
        })
        .await;
        let mut http1 = proxy.http1().await;
        let mut http2 = proxy.http2().await;
        let one = http1.send_request(get("/events")).await.unwrap();
        let two = http2.send_request(get2("/events")).await.unwrap();
        for mut response in [one, two] {
            let frame = timeout(PATIENCE, response.body_mut().frame())
                .await
                .expect("at once");
            assert_eq!(
                frame.unwrap().unwrap().into_data().unwrap(),
                "data: one\n\n"
            );
        }
    });
}

#[test]
fn requests_stream_too() {
    run(async {
        let proxy = Proxy::of(|request: http::Request<Incoming>| async move {
            Response::new(Body::Incoming(request.into_body()))
        })
        .await;
        let (sender, body) = channel();
        let mut request = get2("/").map(|_| body);
        *request.method_mut() = Method::POST;
        let mut response = proxy.http2().await.send_request(request).await.unwrap();
        for text in ["one", "two"] {
            sender.data(text);
            let frame = timeout(PATIENCE, response.body_mut().frame())
                .await
                .expect("at once");
            assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), text);
        }
        sender.trailers("x-end", "yes");
        drop(sender);
        let end = timeout(PATIENCE, response.body_mut().frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(end.into_trailers().unwrap()["x-end"], "yes");
    });
}

#[test]
fn trailers_pass_over_http1() {
    run(async {
        let proxy = Proxy::of(|request: http::Request<Incoming>| async move {
            let trailers = request
                .into_body()
                .collect()
                .await
                .unwrap()
                .trailers()
                .cloned();
            let (sender, body) = channel();
            sender.data("body");
            assert_eq!(trailers.unwrap()["x-sum"], "1");
            sender.trailers("x-sum", "2");
            Response::builder()
                .header("trailer", "x-sum")
                .body(body)
                .unwrap()
        })
        .await;
        let answer = proxy
            .raw(
                "POST / HTTP/1.1\r\nHost: shop\r\nTE: trailers\r\nTrailer: x-sum\r\nConnection: close, TE\r\n\
                 Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n",
            )
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with("0\r\nx-sum: 2\r\n\r\n"), "{answer}");
    });
}

#[test]
fn grpc_has_its_trailers() {
    run(async {
        let proxy = Proxy::of(|_| async {
            let (sender, body) = channel();
            sender.data("message");
            sender.trailers("grpc-status", "5");
            Response::builder()
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap()
        })
        .await;
        let mut request = get2("/a.B/C");
        *request.method_mut() = Method::POST;
        request
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        request
            .headers_mut()
            .insert("te", "trailers".parse().unwrap());
        let response = proxy.http2().await.send_request(request).await.unwrap();
        assert!(!response.headers().contains_key("grpc-status"));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "5");
        assert_eq!(body.to_bytes(), "message");
    });
}

#[test]
fn an_answer_may_come_before_the_end_of_the_request() {
    run(async {
        let proxy = Proxy::of(|_| async {
            let mut response = Response::new(Body::full("no"));
            *response.status_mut() = http::StatusCode::FORBIDDEN;
            response
        })
        .await;
        let (sender, body) = channel();
        sender.data("begin");
        let mut client = proxy.http2().await;
        let request = get2("/").map(|_| body);
        let response = timeout(PATIENCE, client.send_request(request))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(response.status(), 403);
        assert_eq!(body_of(response).await, "no");
        drop(sender);
    });
}

#[test]
fn a_response_that_breaks_off_is_not_taken_for_whole() {
    run(async {
        let address = listener(|mut stream| async move {
            read_head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
            stream.write_all(answer).await.unwrap();
        })
        .await;
        let proxy = Proxy::new();
        proxy.service(&[address]);
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
        proxy.refused("upstream_reset", 1).await;
        // The same for a client of HTTP/2, of a backend that is spoken to in HTTP/1.1 whoever asks.
        proxy.backend(wire::Backend {
            protocol: wire::Protocol::Websocket.into(),
            ..backend("shop", &[address])
        });
        let response = proxy.http2().await.send_request(get2("/")).await.unwrap();
        assert!(response.into_body().collect().await.is_err());
        proxy.refused("upstream_reset", 2).await;
    });
}

#[test]
fn a_request_that_breaks_off_is_not_taken_for_whole() {
    run(async {
        let begun = Rc::new(Cell::new(false));
        let seen = Rc::new(Cell::new(None));
        let (begins, whole) = (Rc::clone(&begun), Rc::clone(&seen));
        let proxy = Proxy::of(move |request: http::Request<Incoming>| {
            begins.set(true);
            let whole = Rc::clone(&whole);
            async move {
                whole.set(Some(request.into_body().collect().await.is_ok()));
                Response::new(Body::Empty)
            }
        })
        .await;
        let mut client = proxy.connect();
        let head = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 10\r\n\r\nabc";
        client.write_all(head.as_bytes()).await.unwrap();
        super::support::eventually(|| begun.get()).await;
        drop(client);
        super::support::eventually(|| seen.get() == Some(false)).await;
    });
}

#[test]
fn a_response_has_one_framing() {
    run(async {
        let address = listener(|mut stream| async move {
            read_head(&mut stream).await;
            let answer =
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n\
                           3\r\nabc\r\n0\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            let _ = stream.read_u8().await;
        })
        .await;
        let proxy = Proxy::new();
        proxy.service(&[address]);
        let answer = proxy
            .raw("GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            .await;
        let framings = answer.contains("content-length") && answer.contains("transfer-encoding");
        assert!(!framings, "{answer}");
    });
}

#[test]
fn a_body_of_known_length_keeps_it() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut client = proxy.http1().await;
        let response = client
            .send_request(with_body("/", Body::full("abc")))
            .await
            .unwrap();
        assert!(response.headers().contains_key("content-length"));
        let body = body_of(response).await;
        assert!(
            body.contains("content-length: 3\n") && body.ends_with("\n\nabc"),
            "{body}"
        );
        assert!(!body.contains("transfer-encoding"), "{body}");
    });
}

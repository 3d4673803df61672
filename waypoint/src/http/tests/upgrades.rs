use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::support::{PATIENCE, Proxy, echo, get, run};
use crate::body::Body;

/// Grants a change to WebSocket and sends back whatever comes.
pub(super) async fn web_socket(mut request: Request<Incoming>) -> Response<Body> {
    assert_eq!(request.version(), Version::HTTP_11);
    assert_eq!(request.method(), Method::GET);
    if request.headers()["upgrade"] != "websocket" {
        return Response::new(Body::full("other"));
    }
    assert!(request.headers().contains_key("sec-websocket-key"));
    assert_eq!(request.headers()["sec-websocket-version"], "13");
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::task::spawn_local(async move {
        let mut io = TokioIo::new(upgrade.await.unwrap());
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = io.read(&mut buffer).await {
            io.write_all(&buffer[..read]).await.unwrap();
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        .header("sec-websocket-protocol", "chat")
        .body(Body::Empty)
        .unwrap()
}

pub(super) const ASK: &str = "GET /chat HTTP/1.1\r\nHost: shop\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

pub(super) async fn read_head(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, stream.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn a_web_socket_echoes() {
    run(async {
        let proxy = Proxy::of(web_socket).await;
        let mut client = proxy.connect();
        // A first message that does not wait for the answer, and that is no HTTP.
        client
            .write_all(format!("{ASK}\n\0first").as_bytes())
            .await
            .unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("upgrade: websocket\r\n"), "{head}");
        assert!(head.contains("sec-websocket-accept: "), "{head}");
        let mut echoed = [0; 7];
        timeout(PATIENCE, client.read_exact(&mut echoed))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&echoed, b"\n\0first");
        for _ in 0..3 {
            client.write_all(b"next\n").await.unwrap();
            let mut echoed = [0; 5];
            timeout(PATIENCE, client.read_exact(&mut echoed))
                .await
                .unwrap()
                .unwrap();
            assert_eq!(&echoed, b"next\n");
        }
        client.shutdown().await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(rest, b"");
    });
}

#[test]
fn a_web_socket_over_http2_echoes() {
    run(async {
        let proxy = Proxy::of(web_socket).await;
        let mut client = proxy.http2().await;
        // Extended CONNECT is there once the proxy's SETTINGS are.
        let response = client.send_request(super::support::get2("/nothing")).await;
        drop(response);
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("http://shop/chat")
            .header("sec-websocket-version", "13")
            .extension(Protocol::from_static("websocket"))
            .body(Body::Empty)
            .unwrap();
        let mut response = timeout(PATIENCE, client.send_request(request))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["sec-websocket-protocol"], "chat");
        assert!(!response.headers().contains_key("sec-websocket-accept"));
        let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
        let mut io = TokioIo::new(upgraded);
        io.write_all(b"hello").await.unwrap();
        let mut echoed = [0; 5];
        timeout(PATIENCE, io.read_exact(&mut echoed))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&echoed, b"hello");
    });
}

#[test]
fn other_protocols_by_connect_are_not_served() {
    run(async {
        let proxy = Proxy::of(web_socket).await;
        let mut client = proxy.http2().await;
        let _ = client.send_request(super::support::get2("/nothing")).await;
        let request = Request::builder()
            .method(Method::CONNECT)
            .uri("http://shop/chat")
            .extension(Protocol::from_static("connect-udp"))
            .body(Body::Empty)
            .unwrap();
        let response = timeout(PATIENCE, client.send_request(request))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(response.status(), 501);
    });
}

#[test]
fn an_upgrade_that_is_not_granted_leaves_http() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut client = proxy.http1().await;
        for upgrade in ["h2c", "chat"] {
            let mut request = get("/a");
            for (name, value) in [("connection", "upgrade"), ("upgrade", upgrade)] {
                request.headers_mut().insert(name, value.parse().unwrap());
            }
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            let body = super::support::body_of(response).await;
            assert_eq!(body.contains("upgrade: "), upgrade == "chat", "{body}");
        }
        let response = client.send_request(get("/b")).await.unwrap();
        assert_eq!(response.status(), 200);
    });
}

#[test]
fn what_follows_such_a_request_unasked_is_nobodys_request() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let smuggled = "GET /smuggled HTTP/1.1\nHost: shop\n\n";
        let answer = proxy.raw(format!("{ASK}{smuggled}")).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(!answer.contains("/smuggled"), "{answer}");
        // After a refusal, with nothing ahead, every byte is looked at again.
        let mut client = proxy.connect();
        client.write_all(ASK.as_bytes()).await.unwrap();
        let head = read_head(&mut client).await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        client.write_all(smuggled.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        timeout(PATIENCE, client.read_to_end(&mut rest))
            .await
            .unwrap()
            .unwrap();
        let rest = String::from_utf8(rest).unwrap();
        assert!(rest.contains("HTTP/1.1 400 "), "{rest}");
    });
}

#[test]
fn bytes_of_an_upgrade_are_bounded_by_nobody_reading() {
    run(async {
        let proxy = Proxy::of(|mut request: Request<Incoming>| async move {
            let upgrade = hyper::upgrade::on(&mut request);
            tokio::task::spawn_local(async move {
                let kept = upgrade.await;
                std::future::pending::<()>().await;
                drop(kept);
            });
            let mut response = Response::new(Body::Empty);
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response
                .headers_mut()
                .insert("upgrade", "websocket".parse().unwrap());
            response
        })
        .await;
        let mut client = proxy.connect();
        client.write_all(ASK.as_bytes()).await.unwrap();
        read_head(&mut client).await;
        let chunk = Bytes::from(vec![0; 64 << 10]);
        let mut taken = 0;
        let flood = async {
            loop {
                client.write_all(&chunk).await.unwrap();
                taken += chunk.len();
            }
        };
        let stalled = timeout(std::time::Duration::from_millis(500), flood).await;
        assert!(stalled.is_err());
        assert!(taken < 64 << 20, "{taken}");
    });
}

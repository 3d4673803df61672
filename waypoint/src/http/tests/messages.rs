//! Messages of gRPC in the metrics.

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use karst_process::metrics::text;

use super::support::{Proxy, channel, eventually, get2, run};
use crate::body::Body;
use crate::metrics::encode;

/// Asks by HTTP/2 with a body in these pieces, and reads the whole answer.
async fn ask(proxy: &Proxy, content_type: &'static str, pieces: &[&'static [u8]]) {
    let (sender, body) = channel();
    for piece in pieces {
        sender.bytes(Bytes::from_static(piece));
    }
    drop(sender);
    let mut request = get2("/s/m").map(|_| body);
    *request.method_mut() = Method::POST;
    let headers = request.headers_mut();
    headers.insert("content-type", content_type.parse().unwrap());
    let response = proxy.http2().await.send_request(request).await.unwrap();
    response.into_body().collect().await.unwrap();
}

/// Sends back what comes, twice.
async fn twice(request: Request<Incoming>) -> Response<Body> {
    let content_type = request.headers()["content-type"].clone();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let (sender, answer) = channel();
    sender.bytes(body.clone());
    sender.bytes(body);
    sender.trailers("grpc-status", "0");
    Response::builder()
        .header("content-type", content_type)
        .body(answer)
        .unwrap()
}

fn value(proxy: &Proxy, name: &str) -> Option<u64> {
    let text = text(&encode::registry(&proxy.metrics)).unwrap();
    let start = format!("{name}{{");
    let line = text.lines().find(|line| line.starts_with(&start))?;
    let (labels, value) = line.rsplit_once(' ')?;
    assert!(labels.contains("request_protocol=\"grpc\""), "{line}");
    Some(value.parse().unwrap())
}

#[test]
fn messages_are_counted_both_ways() {
    run(async {
        let proxy = Proxy::of(twice).await;
        proxy.listen(&[]);
        // Three messages; the second begins in one piece and ends in another.
        let pieces: [&[u8]; 3] = [b"\0\0\0\0\x02ab\x01\0\0", b"\0\x03c", b"de\0\0\0\0\0"];
        ask(&proxy, "application/grpc", &pieces).await;
        eventually(|| value(&proxy, "istio_requests_total") == Some(1)).await;
        assert_eq!(value(&proxy, "istio_request_messages_total"), Some(3));
        assert_eq!(value(&proxy, "istio_response_messages_total"), Some(6));
        ask(&proxy, "application/grpc+proto", &pieces).await;
        eventually(|| value(&proxy, "istio_requests_total") == Some(2)).await;
        assert_eq!(value(&proxy, "istio_request_messages_total"), Some(6));
    });
}

#[test]
fn http_has_no_messages() {
    run(async {
        let proxy = Proxy::of(twice).await;
        proxy.listen(&[]);
        ask(&proxy, "application/octet-stream", &[b"\0\0\0\0\x02ab"]).await;
        let counted = || {
            let text = text(&encode::registry(&proxy.metrics)).unwrap();
            text.contains("istio_requests_total{")
        };
        eventually(counted).await;
        assert_eq!(value(&proxy, "istio_request_messages_total"), None);
        assert_eq!(value(&proxy, "istio_response_messages_total"), None);
    });
}

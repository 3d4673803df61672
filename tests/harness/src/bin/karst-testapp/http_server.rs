//! The HTTP server: one port for HTTP/1.1, HTTP/2 without TLS, gRPC and WebSocket.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use serde_json::json;
use tokio::net::TcpListener;

use crate::websocket;

type Body = BoxBody<Bytes, Infallible>;

/// How often the streaming method repeats a message.
const REPEATS: usize = 3;

/// The method that gRPC probes call (gRPC health checking protocol).
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";

/// `HealthCheckResponse{status: SERVING}`: field 1, a varint, 1.
const SERVING: [u8; 2] = [0x08, 0x01];

/// Serves connections until the process is killed.
pub async fn serve(listener: TcpListener) {
    loop {
        let Ok((stream, from)) = listener.accept().await else {
            continue;
        };
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, from, local));
            let server = Builder::new(TokioExecutor::new());
            // A client that breaks off is an ordinary end here.
            let _ = server
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    request: Request<Incoming>,
    from: SocketAddr,
    local: SocketAddr,
) -> Result<Response<Body>, hyper::Error> {
    let kind = request
        .headers()
        .get("content-type")
        .and_then(|value| value.to_str().ok());
    if kind.is_some_and(|kind| kind.starts_with("application/grpc")) {
        return grpc(request).await;
    }
    if request.headers().contains_key("sec-websocket-key") {
        return Ok(websocket::accept(request).map(|()| full(Vec::new())));
    }
    let (parts, body) = request.into_parts();
    let place: Vec<&str> = parts.uri.path().split('/').skip(1).collect();
    if let ["events", count, pause] = place[..] {
        return Ok(events(count, pause));
    }
    let body = body.collect().await?.to_bytes();
    if let ["delay", millis] = place[..] {
        tokio::time::sleep(millis_of(millis)).await;
    }
    let headers: BTreeMap<&str, String> = parts
        .headers
        .iter()
        .map(|(name, value)| {
            (
                name.as_str(),
                String::from_utf8_lossy(value.as_bytes()).into_owned(),
            )
        })
        .collect();
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    let page = json!({
        "pod": variable("POD_NAME"),
        "namespace": variable("POD_NAMESPACE"),
        "node": variable("NODE_NAME"),
        "app_version": variable("APP_VERSION"),
        "peer": from,
        "local": local,
        "version": format!("{:?}", parts.version),
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map(|path| path.as_str()),
        "headers": headers,
        "body_bytes": body.len(),
    });
    let mut response = Response::new(full(format!("{page}\n")));
    if let ["status", code] = place[..] {
        *response.status_mut() = code.parse().unwrap_or(StatusCode::BAD_REQUEST);
    }
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/json"));
    Ok(response)
}

fn millis_of(text: &str) -> Duration {
    Duration::from_millis(text.parse().unwrap_or(0))
}

/// `/events/COUNT/MILLIS`: server-sent events, one each so many milliseconds.
fn events(count: &str, pause: &str) -> Response<Body> {
    let (count, pause) = (count.parse().unwrap_or(1_u32), millis_of(pause));
    let events = stream::unfold(0, move |number| async move {
        if number >= count {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(pause).await;
        }
        let event = Frame::data(Bytes::from(format!("data: {number}\n\n")));
        Some((Ok::<_, Infallible>(event), number + 1))
    });
    let mut response = Response::new(StreamBody::new(events).boxed());
    let kind = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert("content-type", kind);
    response
}

fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).boxed()
}

/// `karst.test.Echo`: `Unary` gives the message back, `Stream` gives it three times; and the health of
/// every service, which is good. The
/// messages' content does not matter to it, so it needs no generated code: a gRPC message is
/// a flag byte, a length and the bytes.
async fn grpc(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let path = request.uri().path().to_owned();
    let message = request.into_body().collect().await?.to_bytes();
    let (message, repeats, status) = match path.as_str() {
        "/karst.test.Echo/Unary" => (message, 1, "0"),
        "/karst.test.Echo/Stream" => (message, REPEATS, "0"),
        HEALTH_CHECK => (grpc_frame(&SERVING), 1, "0"),
        // UNIMPLEMENTED
        _ => (message, 0, "12"),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    let data = std::iter::repeat_n(message, repeats).map(Frame::data);
    let frames = data.chain([Frame::trailers(trailers)]).map(Ok);
    let frames: Vec<Result<Frame<Bytes>, Infallible>> = frames.collect();
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream::iter(frames))));
    *response.status_mut() = StatusCode::OK;
    response
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc"));
    // Balancing of calls shows in who answered them.
    if let Ok(pod) = HeaderValue::try_from(std::env::var("POD_NAME").unwrap_or_default()) {
        response.headers_mut().insert("karst-test-pod", pod);
    }
    Ok(response)
}

/// One gRPC message in its frame.
pub fn grpc_frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    frame.put_slice(message);
    frame.freeze()
}

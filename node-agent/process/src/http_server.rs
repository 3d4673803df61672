//! A small HTTP/1.1 server for administration, metrics and readiness: never for traffic of the mesh. It runs inside
//! a `LocalSet`.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

mod patient;

use patient::Patient;

/// Connections served at once on one listener: an operator and a scraper need
/// two, a misbehaving client must not take all file descriptors.
const MAX_CONNECTIONS: usize = 64;

/// Time for a client to send its request headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Longest wait for a client to take anything of an answer. One that does not read must not keep its place, nor what
/// its answer is made from.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Wait after a failed accept (usually no file descriptors left).
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// A response: a complete one ([`reply`], [`json`]), or one whose body comes bit by bit and is dropped when the client
/// goes.
pub type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// A response with a body of the given type.
pub fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    *response.status_mut() = status;
    let value = http::HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, value);
    response
}

/// A JSON response.
pub fn json<T: serde::Serialize>(status: StatusCode, value: &T) -> Reply {
    match serde_json::to_vec(value) {
        Ok(body) => reply(status, "application/json", body),
        Err(error) => reply(
            StatusCode::INTERNAL_SERVER_ERROR,
            "text/plain",
            error.to_string(),
        ),
    }
}

/// Serves `handler` on a TCP listener until dropped.
pub async fn serve_tcp<H, F>(listener: TcpListener, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Reply> + 'static,
{
    serve(
        || async { listener.accept().await.map(|(stream, _)| stream) },
        handler,
        MAX_CONNECTIONS,
    )
    .await;
}

/// Serves `handler` on a Unix listener until dropped.
pub async fn serve_unix<H, F>(listener: UnixListener, handler: H)
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Reply> + 'static,
{
    serve(
        || async { listener.accept().await.map(|(stream, _)| stream) },
        handler,
        MAX_CONNECTIONS,
    )
    .await;
}

/// Serves `handler` to root's processes on a Unix listener, `max` at once, until dropped.
pub async fn serve_root<H, F>(listener: UnixListener, handler: H, max: usize)
where
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Reply> + 'static,
{
    let accept = || async {
        loop {
            let (stream, _) = listener.accept().await?;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 => return Ok(stream),
                Ok(peer) => {
                    tracing::warn!(uid = peer.uid(), "a caller that is not root is cut off")
                }
                Err(error) => tracing::warn!(%error, "a caller that cannot be told is cut off"),
            }
        }
    };
    serve(accept, handler, max).await;
}

async fn serve<A, AF, S, H, F>(accept: A, handler: H, max: usize)
where
    A: Fn() -> AF,
    AF: Future<Output = std::io::Result<S>>,
    S: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Fn(Request<Incoming>) -> F + Clone + 'static,
    F: Future<Output = Reply> + 'static,
{
    let places = Arc::new(Semaphore::new(max));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let stream = match accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
                continue;
            }
        };
        let handler = handler.clone();
        tokio::task::spawn_local(async move {
            let _place = place;
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let served = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(Patient::new(stream, WRITE_TIMEOUT)), service)
                .await;
            if let Err(error) = served {
                tracing::debug!(%error, "HTTP connection ended");
            }
        });
    }
}

#[cfg(test)]
#[path = "http_server/tests.rs"]
mod tests;

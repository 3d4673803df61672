//! Applications.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::spawn_local;

#[derive(Clone, Copy)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(async move {
            task.await;
        });
    }
}

/// What an application has seen.
#[derive(Default)]
pub struct Seen {
    /// Connections so far.
    pub connections: Cell<usize>,
    /// Connections now.
    pub open: Cell<usize>,
    /// Requests so far.
    pub requests: Cell<usize>,
    /// Requests that wait at `/wait` now, and the most there have been at once.
    pub waiting: Cell<usize>,
    pub most_waiting: Cell<usize>,
    /// Lets those that wait go on.
    pub go_on: Notify,
}

/// An application on loopback.
pub struct App {
    pub address: SocketAddr,
    pub seen: Rc<Seen>,
}

/// What an application speaks.
#[derive(Clone, Copy)]
pub enum Speaks {
    /// HTTP/1.1 and HTTP/2.
    Both,
    Http1,
    /// HTTP/2 with that many streams at once.
    Http2(u32),
}

/// Runs `serve` for each connection.
pub async fn raw<F, R>(serve: F) -> App
where
    F: Fn(TcpStream, Rc<Seen>) -> R + 'static,
    R: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Rc::new(Seen::default());
    let app = App {
        address,
        seen: Rc::clone(&seen),
    };
    spawn_local(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            seen.connections.set(seen.connections.get() + 1);
            seen.open.set(seen.open.get() + 1);
            let (serving, seen) = (serve(tcp, Rc::clone(&seen)), Rc::clone(&seen));
            spawn_local(async move {
                serving.await;
                seen.open.set(seen.open.get() - 1);
            });
        }
    });
    app
}

/// An HTTP server that answers as [`answer`] does.
pub async fn http(speaks: Speaks) -> App {
    raw(move |tcp, seen| serve(tcp, speaks, seen)).await
}

pub async fn serve<IO>(io: IO, speaks: Speaks, seen: Rc<Seen>)
where
    IO: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let seen = Rc::clone(&seen);
        async move { Ok::<_, Infallible>(answer(request, &seen).await) }
    });
    let io = TokioIo::new(io);
    // How a connection ends is what some tests are about.
    match speaks {
        Speaks::Both => {
            let builder = hyper_util::server::conn::auto::Builder::new(Local);
            let _ = builder.serve_connection_with_upgrades(io, service).await;
        }
        Speaks::Http1 => {
            let builder = hyper::server::conn::http1::Builder::new();
            let _ = builder.serve_connection(io, service).with_upgrades().await;
        }
        Speaks::Http2(streams) => {
            let mut builder = hyper::server::conn::http2::Builder::new(Local);
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(streams);
            let _ = builder.serve_connection(io, service).await;
        }
    }
}

async fn answer(request: Request<Incoming>, seen: &Rc<Seen>) -> Response<Full<Bytes>> {
    seen.requests.set(seen.requests.get() + 1);
    let text = |text: String| Response::new(Full::new(Bytes::from(text)));
    match request.uri().path() {
        // How the request looks on the wire.
        "/look" => {
            let host = request
                .headers()
                .get("host")
                .map(|host| host.to_str().unwrap().to_owned());
            text(format!(
                "{:?} {} host={host:?}",
                request.version(),
                request.uri()
            ))
        }
        "/wait" => {
            let _waiting = Waiting::new(seen);
            seen.go_on.notified().await;
            text("waited".to_owned())
        }
        "/large" => text("x".repeat(8 << 20)),
        // Says no without looking at the body.
        "/no" => {
            let mut response = text("no".to_owned());
            *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
            response
        }
        "/echo" => {
            let body = request.into_body().collect().await;
            match body {
                Ok(body) => {
                    let trailers = body.trailers().cloned().unwrap_or_default();
                    let bytes = body.to_bytes();
                    let mut response = Response::new(Full::new(bytes));
                    response.headers_mut().extend(prefixed(&trailers));
                    response
                }
                Err(_) => text("broken".to_owned()),
            }
        }
        "/upgrade" => {
            spawn_local(async move {
                let upgraded = hyper::upgrade::on(request).await.unwrap();
                let mut io = TokioIo::new(upgraded);
                let mut bytes = [0; 4];
                io.read_exact(&mut bytes).await.unwrap();
                bytes.reverse();
                io.write_all(&bytes).await.unwrap();
                io.shutdown().await.unwrap();
            });
            let mut response = text(String::new());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response
                .headers_mut()
                .insert("connection", "upgrade".parse().unwrap());
            response
                .headers_mut()
                .insert("upgrade", "test".parse().unwrap());
            response
        }
        path => text(path.to_owned()),
    }
}

fn prefixed(trailers: &HeaderMap) -> HeaderMap {
    let pairs = trailers.iter().map(|(name, value)| {
        let name = format!("trailer-{name}");
        (name.parse::<http::HeaderName>().unwrap(), value.clone())
    });
    pairs.collect()
}

struct Waiting(Rc<Seen>);

impl Waiting {
    fn new(seen: &Rc<Seen>) -> Self {
        seen.waiting.set(seen.waiting.get() + 1);
        seen.most_waiting
            .set(seen.most_waiting.get().max(seen.waiting.get()));
        Self(Rc::clone(seen))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.set(self.0.waiting.get() - 1);
    }
}

/// Reads the head of a request.
pub async fn read_head(tcp: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        if tcp.read(&mut byte).await.unwrap_or(0) == 0 {
            break;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

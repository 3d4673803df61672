//! One connection of a client, from its first byte to its end.

use std::cell::RefCell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;

use http::{HeaderValue, Request};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use karst_tunnel::server::Drain;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::timeout;

use super::guard::{Activity, Guard, Spoken};
use super::keeper::{End, Told, keep};
use super::limits::{self, HttpLimits};
use super::upgrade::{self, Switch};
use super::{Entry, HttpServer, headers, refused, service};
use crate::carrier::Carrier;
use crate::client::Client;

/// What the requests of a connection have in common.
pub(super) struct Connection {
    pub(super) server: Rc<HttpServer>,
    pub(super) entry: Entry,
    pub(super) client: Client,
    pub(super) activity: Rc<Activity>,
    pub(super) spoken: Spoken,
    /// The client's address as it is written into `x-forwarded-for`.
    pub(super) address: HeaderValue,
    /// The client's identity as it is written into `x-forwarded-client-cert`.
    pub(super) identity: Option<HeaderValue>,
    /// The other protocol that an HTTP/1 connection changes to.
    pub(super) switch: RefCell<Option<Switch>>,
    /// Cuts upgraded streams off when the proxy ends.
    pub(super) drain: watch::Receiver<Drain>,
}

/// Spawns on the worker's own thread.
#[derive(Clone, Copy, Debug)]
struct Local;

impl<F: Future<Output = ()> + 'static> Executor<F> for Local {
    fn execute(&self, future: F) {
        spawn_local(future);
    }
}

/// Serves one connection, whatever carries it, to its end; must run inside a `LocalSet`. The next request on it
/// sees the configuration of its own time. Draining lets requests under way end (HTTP/1: `connection: close`,
/// HTTP/2: GOAWAY).
pub async fn serve(
    io: impl Carrier,
    server: Rc<HttpServer>,
    entry: Entry,
    client: Client,
    drain: watch::Receiver<Drain>,
) {
    let activity = Activity::new();
    let mut guard = Guard::new(io, Rc::clone(&activity));
    let tell = |_: Pin<&mut _>| match activity.head_since() {
        Some(_) => Told::Ends,
        None => Told::Drop,
    };
    let detected = {
        let detecting = pin!(guard.detect());
        keep(detecting, tell, &activity, &server.limits, &drain).await
    };
    let End::Done(Ok(spoken)) = detected else {
        return;
    };
    let connection = Rc::new(Connection {
        address: headers::address_value(&client),
        identity: headers::identity_value(&entry, &client),
        server,
        entry,
        client,
        activity,
        spoken,
        switch: RefCell::new(None),
        drain,
    });
    match spoken {
        Spoken::Http1 => serve_http1(guard, &connection).await,
        Spoken::Http2 => serve_http2(guard, &connection).await,
    }
}

async fn serve_http1(guard: Guard<impl Carrier>, connection: &Rc<Connection>) {
    let requests = Rc::clone(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        service::handle(Rc::clone(&requests), request)
    });
    let mut served = http1_builder().serve_connection(TokioIo::new(guard), service);
    let tell = |served: Pin<&mut http1::Connection<_, _>>| {
        served.graceful_shutdown();
        Told::Ends
    };
    let limits = &connection.server.limits;
    let end = keep(
        Pin::new(&mut served),
        tell,
        &connection.activity,
        limits,
        &connection.drain,
    )
    .await;
    refused::report(connection, &end);
    let switch = connection.switch.borrow_mut().take();
    let End::Done(result) = end else {
        return;
    };
    let parts = served.into_parts();
    let guard = parts.io.into_inner();
    match (switch, result) {
        (Some(switch), Ok(())) => {
            upgrade::relay_http1(guard, parts.read_buf, switch, connection).await;
        }
        // A response of ours was broken off. The client learns it at once, and where the end of the connection is
        // that of the response, does not take it for whole.
        (_, Err(error)) if error.is_user() => guard.into_inner().reset(),
        _ => linger(guard).await,
    }
}

/// Reads what the client still sends after our last word, for a while. A socket that is closed with something
/// unread is reset, and the client may lose an answer that it has not read yet (RFC 9112, section 9.6).
async fn linger<IO: AsyncRead + Unpin>(guard: Guard<IO>) {
    let mut io = guard.into_inner().take(limits::LINGER_BYTES);
    let reading = async {
        let mut thrown_away = [0; 1024];
        while let Ok(1..) = io.read(&mut thrown_away).await {}
    };
    // Whether it ends by itself or not: then it is over.
    let _ = timeout(limits::LINGER, reading).await;
}

async fn serve_http2(guard: Guard<impl Carrier>, connection: &Rc<Connection>) {
    let requests = Rc::clone(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        service::handle(Rc::clone(&requests), request)
    });
    let limits = &connection.server.limits;
    let served = pin!(http2_builder(limits).serve_connection(TokioIo::new(guard), service));
    let tell = |served: Pin<&mut http2::Connection<_, _, _>>| {
        served.graceful_shutdown();
        Told::Ends
    };
    let end = keep(
        served,
        tell,
        &connection.activity,
        limits,
        &connection.drain,
    )
    .await;
    refused::report(connection, &end);
}

fn http1_builder() -> http1::Builder {
    let mut builder = http1::Builder::new();
    // The keeper has an eye on slow heads, with one timer a connection instead of one a request.
    builder
        .header_read_timeout(None)
        .max_header_size(limits::MAX_HEAD_BYTES)
        .max_buf_size(limits::HTTP1_BUFFER_BYTES);
    builder
}

fn http2_builder(limits: &HttpLimits) -> http2::Builder<Local> {
    let mut builder = http2::Builder::new(Local);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS)
        .max_local_error_reset_streams(limits::MAX_LOCAL_RESETS)
        .max_header_list_size(u32::try_from(limits::MAX_HEAD_BYTES).unwrap_or(u32::MAX))
        .initial_stream_window_size(limits::STREAM_WINDOW)
        .initial_connection_window_size(limits::CONNECTION_WINDOW)
        .max_send_buf_size(limits::SEND_BUFFER_BYTES)
        .keep_alive_interval(limits::PING_INTERVAL)
        .keep_alive_timeout(limits::PING_TIMEOUT)
        .enable_connect_protocol();
    builder
}

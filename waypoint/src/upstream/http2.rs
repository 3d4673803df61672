//! HTTP/2 to applications: many requests at a time on a connection, and more connections under load.

use std::cell::{Cell, RefCell};
use std::error::Error as _;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use h2::Reason;
use http::uri::Scheme;
use http::{Request, Response};
use hyper::client::conn::http2::{Builder, Connection as Driver, SendRequest};
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout_at};

use super::body::UpstreamBody;
use super::dial::Target;
use super::entry::Entry;
use super::http1::{Http1, Takeover, describe, in_time};
use super::metrics::Use;
use super::request::{self, RequestBody, Watch};
use super::tls::Offer;
use super::transport::{Connection, Wire};
use super::{Upstream, UpstreamError};
use crate::balance::{Limit, Limits, Picked};

/// Requests at once on a connection before another one is made. One thread of the application serves a
/// connection with many servers: several connections use several.
const STREAMS_PER_CONNECTION: usize = 100;
/// Flow-control window of a response, bytes: what one response may occupy here while its client is slow.
const STREAM_WINDOW: u32 = 1 << 20;
/// Flow-control window of a connection, bytes.
const CONNECTION_WINDOW: u32 = 8 << 20;
/// Largest frame we accept, bytes.
const MAX_FRAME: u32 = 64 << 10;
/// Largest header list of a response, bytes as HTTP/2 counts them.
const MAX_HEADER_LIST: u32 = 64 << 10;
/// Bytes of a request that are queued inside HTTP/2 before the client is read no more.
const SEND_BUFFER: usize = 256 << 10;
/// Time between PINGs on a plain connection that has requests and is silent. gRPC servers take it for abuse
/// when they come more often than every five minutes.
const PING_INTERVAL: Duration = Duration::from_secs(310);
/// Time for the answer to a PING.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that a request tries because those before had ended unseen.
const ATTEMPTS: usize = 4;

type Http2Driver = Driver<TokioIo<Connection>, RequestBody, Local>;

/// Runs the library's tasks on this thread.
#[derive(Clone, Copy, Debug)]
struct Local;

impl<F> Executor<F> for Local
where
    F: Future<Output = ()> + 'static,
{
    fn execute(&self, task: F) {
        spawn_local(task);
    }
}

/// A connection that speaks HTTP/2.
pub(super) struct Http2 {
    /// Gone once it takes no new requests: the connection ends with those it has.
    sender: RefCell<Option<SendRequest<RequestBody>>>,
    /// Gone once it has ended.
    driver: RefCell<Option<Http2Driver>>,
    active: Cell<usize>,
    served: Cell<u32>,
    /// Requests it may carry in all.
    limit: Option<u32>,
    idle_since: Cell<Instant>,
}

impl Http2 {
    /// Says hello and waits for the application's SETTINGS: they tell that it speaks HTTP/2, and how many
    /// streams it takes.
    async fn handshake(connection: Connection, limits: &Limits) -> Result<Rc<Self>, UpstreamError> {
        let wire = connection.wire();
        let tunnelled = connection.is_tunnelled();
        let mut builder = Builder::new(Local);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buf_size(SEND_BUFFER)
            // Stays 0 until the application's SETTINGS have come, which is how one can tell.
            .initial_max_send_streams(0)
            .keep_alive_interval((!tunnelled).then_some(PING_INTERVAL))
            .keep_alive_timeout(PING_TIMEOUT);
        let (sender, driver) = builder
            .handshake(TokioIo::new(connection))
            .await
            .map_err(|error| not_http2(describe(&error)))?;
        let this = Rc::new(Self {
            sender: RefCell::new(Some(sender)),
            driver: RefCell::new(Some(driver)),
            active: Cell::new(0),
            served: Cell::new(0),
            limit: limits.requests_per_connection,
            idle_since: Cell::new(Instant::now()),
        });
        poll_fn(|cx| this.poll_settings(cx, &wire)).await?;
        Ok(this)
    }

    fn poll_settings(&self, cx: &mut Context<'_>, wire: &Wire) -> Poll<Result<(), UpstreamError>> {
        if let Poll::Ready(ended) = self.poll(cx) {
            let problem = match ended {
                Ok(()) => "it closed the connection".to_owned(),
                Err(error) => describe(&error),
            };
            return Poll::Ready(Err(not_http2(problem)));
        }
        if self.peer_limit() > 0 {
            return Poll::Ready(Ok(()));
        }
        wire.watch(cx.waker());
        Poll::Pending
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        match self.driver.borrow_mut().as_mut() {
            Some(driver) => Pin::new(driver).poll(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Drives it to its end.
    async fn run(&self) {
        if let Err(error) = poll_fn(|cx| self.poll(cx)).await {
            tracing::debug!(%error, "connection to an application ended");
        }
        self.retire();
        let driver = self.driver.take();
        drop(driver);
    }

    /// Streams that the application takes at once.
    fn peer_limit(&self) -> usize {
        match self.driver.try_borrow() {
            Ok(driver) => driver.as_ref().map_or(0, Driver::current_max_send_streams),
            Err(_) => 0,
        }
    }

    fn has_room(&self) -> bool {
        !self.is_retired()
            && self.active.get() < STREAMS_PER_CONNECTION.min(self.peer_limit())
            && self.limit.is_none_or(|limit| self.served.get() < limit)
    }

    pub(super) fn is_retired(&self) -> bool {
        match self.sender.borrow().as_ref() {
            Some(sender) => sender.is_closed(),
            None => true,
        }
    }

    /// Takes no new requests; ends with the last one.
    pub(super) fn retire(&self) {
        // Taken out first: dropping it wakes the driving task.
        let sender = self.sender.take();
        drop(sender);
    }

    /// How long it has had no request.
    pub(super) fn idle_for(&self, now: Instant) -> Option<Duration> {
        let idle = self.active.get() == 0;
        idle.then(|| now.saturating_duration_since(self.idle_since.get()))
    }
}

fn not_http2(problem: String) -> UpstreamError {
    UpstreamError::NotHttp2 { problem }
}

/// A request's place on a connection, given back when dropped.
pub(super) struct Lease {
    connection: Rc<Http2>,
    entry: Weak<Entry>,
}

impl Lease {
    fn new(connection: &Rc<Http2>, entry: &Rc<Entry>) -> Self {
        connection.active.set(connection.active.get() + 1);
        connection
            .served
            .set(connection.served.get().saturating_add(1));
        Self {
            connection: Rc::clone(connection),
            entry: Rc::downgrade(entry),
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let connection = &self.connection;
        let active = connection.active.get().saturating_sub(1);
        connection.active.set(active);
        if active == 0 {
            connection.idle_since.set(Instant::now());
            if connection
                .limit
                .is_some_and(|limit| connection.served.get() >= limit)
            {
                connection.retire();
            }
        }
        if let Some(entry) = self.entry.upgrade() {
            entry.serve_waiters();
        }
    }
}

/// What one that waits for HTTP/2 gets.
pub(super) enum Answer {
    /// A place.
    Lease(Lease),
    /// The application speaks HTTP/1.1 only.
    Declined,
}

/// One that waits for a place on a connection.
pub(super) type Waiter = oneshot::Sender<Result<Answer, UpstreamError>>;

impl Entry {
    /// A place on the least loaded connection.
    fn lease(self: &Rc<Self>) -> Option<Lease> {
        let connections = self.http2.borrow();
        let free = connections
            .iter()
            .filter(|connection| connection.has_room());
        let best = free.min_by_key(|connection| connection.active.get())?;
        Some(Lease::new(best, self))
    }

    /// Gives free places to those who wait.
    fn serve_waiters(self: &Rc<Self>) {
        while let Some(waiter) = self.next_waiter() {
            let Some(lease) = self.lease() else {
                self.waiters.borrow_mut().push_front(waiter);
                return;
            };
            // It still waits: nothing else runs on this thread between the two.
            let _ = waiter.send(Ok(Answer::Lease(lease)));
        }
    }

    /// The next one that has not given up.
    fn next_waiter(&self) -> Option<Waiter> {
        let mut waiters = self.waiters.borrow_mut();
        while let Some(waiter) = waiters.pop_front() {
            if !waiter.is_closed() {
                return Some(waiter);
            }
        }
        None
    }

    fn answer_all(&self, answer: impl Fn() -> Result<Answer, UpstreamError>) {
        while let Some(waiter) = self.next_waiter() {
            let _ = waiter.send(answer());
        }
    }

    fn waiters(&self) -> usize {
        let mut waiters = self.waiters.borrow_mut();
        waiters.retain(|waiter| !waiter.is_closed());
        waiters.len()
    }
}

impl Upstream {
    /// Sends a request by HTTP/2, or by HTTP/1.1 if the application speaks nothing else and that is allowed.
    pub(super) async fn send_http2(
        self: &Rc<Self>,
        entry: &Rc<Entry>,
        target: &Target,
        picked: &Picked,
        mut request: Request<RequestBody>,
        watch: &Watch,
        offer: Offer,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        let scheme = match target.tls {
            Some(_) => Scheme::HTTPS,
            None => Scheme::HTTP,
        };
        let mut attempts = 0;
        loop {
            let lease = match self.http2(entry, target, offer).await? {
                Answer::Lease(lease) => lease,
                Answer::Declined => {
                    return self.send_http1(entry, target, picked, request, watch).await;
                }
            };
            request::to_http2(&mut request, entry.host(), scheme.clone())?;
            let used = if lease.connection.served.get() > 1 {
                Use::Again
            } else {
                Use::First
            };
            self.metrics.request(used);
            attempts += 1;
            picked.connected();
            let sent = match lease.connection.sender.borrow_mut().as_mut() {
                Some(sender) => sender.try_send_request(request),
                None => return Err(UpstreamError::Refused),
            };
            match sent.await {
                Ok(response) => return Ok(UpstreamBody::http2(response, lease)),
                Err(mut error) => match error.take_message() {
                    Some(message) => {
                        lease.connection.retire();
                        if attempts >= ATTEMPTS {
                            return Err(UpstreamError::Refused);
                        }
                        self.metrics.resent();
                        request = message;
                    }
                    None => return Err(failure(&error.into_error(), watch)),
                },
            }
        }
    }

    /// A place on a connection of the pool or a new one.
    async fn http2(
        self: &Rc<Self>,
        entry: &Rc<Entry>,
        target: &Target,
        offer: Offer,
    ) -> Result<Answer, UpstreamError> {
        if let Some(lease) = entry.lease() {
            return Ok(Answer::Lease(lease));
        }
        if entry.declines_http2.get() && offer == Offer::Either {
            return Ok(Answer::Declined);
        }
        let cluster = entry.cluster();
        let limits = cluster.settings().limits;
        let pending = cluster.try_wait();
        let _pending = pending.ok_or(UpstreamError::Overloaded(Limit::Pending))?;
        let deadline = Instant::now() + limits.connect_timeout;
        let (waiter, answer) = oneshot::channel();
        entry.waiters.borrow_mut().push_back(waiter);
        self.dial_for_waiters(entry, target, offer);
        match timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(UpstreamError::Closed),
            Err(_) if entry.connecting.get() > 0 => Err(UpstreamError::ConnectTimeout {
                millis: limits.connect_timeout.as_millis(),
            }),
            Err(_) => Err(UpstreamError::Overloaded(Limit::Connections)),
        }
    }

    /// Starts as many dials as those who wait need.
    fn dial_for_waiters(self: &Rc<Self>, entry: &Rc<Entry>, target: &Target, offer: Offer) {
        let needed = entry.waiters().div_ceil(STREAMS_PER_CONNECTION);
        while entry.dialing.get() < needed {
            entry.dialing.set(entry.dialing.get() + 1);
            self.spawn_dial(entry, target, offer);
        }
    }

    /// Dials in a task of its own: the request that caused it may be given up meanwhile while others wait
    /// for the same connection.
    fn spawn_dial(self: &Rc<Self>, entry: &Rc<Entry>, target: &Target, offer: Offer) {
        let (upstream, entry, target) = (Rc::clone(self), Rc::clone(entry), target.clone());
        spawn_local(async move {
            let made = Box::pin(upstream.make_http2(&entry, &target, offer)).await;
            entry.dialing.set(entry.dialing.get().saturating_sub(1));
            match made {
                Ok(Made::Http2(connection)) => {
                    if entry.is_retired() {
                        connection.retire();
                        entry.answer_all(|| Err(UpstreamError::Refused));
                    } else {
                        entry.http2.borrow_mut().push(Rc::clone(&connection));
                        entry.serve_waiters();
                        upstream.dial_for_waiters(&entry, &target, offer);
                    }
                    drop((upstream, entry, target));
                    connection.run().await;
                }
                Ok(Made::Http1(connection)) => {
                    entry.declines_http2.set(true);
                    entry.put(connection);
                    entry.answer_all(|| Ok(Answer::Declined));
                }
                Ok(Made::Nothing) => {}
                Err(error) if entry.dialing.get() == 0 => {
                    entry.answer_all(|| Err(error.clone()));
                }
                // Another dial may still succeed.
                Err(_) => {}
            }
        });
    }

    async fn make_http2(
        &self,
        entry: &Rc<Entry>,
        target: &Target,
        offer: Offer,
    ) -> Result<Made, UpstreamError> {
        let limits = entry.cluster().settings().limits;
        // Those who wait limit the time themselves; when they are gone, so is the reason to dial.
        let slot = loop {
            let look_again = Instant::now() + SLOT_TURN;
            match self.new_slot(entry, look_again).await {
                Ok(slot) => break slot,
                Err(_) if entry.waiters() == 0 => return Ok(Made::Nothing),
                Err(_) => {}
            }
        };
        let deadline = Instant::now() + limits.connect_timeout;
        let connect = async {
            let dialed = self.dial(target, offer, slot).await?;
            match dialed.http2 {
                Some(false) if offer == Offer::Either => {
                    let http1 = Http1::handshake(dialed.connection, &limits, Takeover::Never);
                    Ok(Made::Http1(http1.await?))
                }
                Some(false) => Err(not_http2("it chose another protocol by ALPN".to_owned())),
                _ => Ok(Made::Http2(
                    Http2::handshake(dialed.connection, &limits).await?,
                )),
            }
        };
        // In a task of its own: nothing gives this up half-way.
        entry.connecting.set(entry.connecting.get() + 1);
        let made = in_time(deadline, &limits, connect).await;
        entry
            .connecting
            .set(entry.connecting.get().saturating_sub(1));
        made
    }
}

/// Time after which a dial that waits for room looks whether anybody still needs it.
const SLOT_TURN: Duration = Duration::from_millis(500);

/// What came of a dial.
enum Made {
    Http2(Rc<Http2>),
    Http1(Http1),
    Nothing,
}

fn failure(error: &hyper::Error, watch: &Watch) -> UpstreamError {
    let problem = describe(error);
    if watch.has_failed() {
        return UpstreamError::RequestBody { problem };
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return http2_failure(error, problem);
        }
        cause = error.source();
    }
    if error.is_canceled() || error.is_closed() || error.is_incomplete_message() {
        return UpstreamError::Closed;
    }
    UpstreamError::Reset { problem }
}

fn http2_failure(error: &h2::Error, problem: String) -> UpstreamError {
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    // Streams up to the last id of a GOAWAY go on: an error is about those beyond it.
    let beyond =
        error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR);
    if refused || beyond {
        return UpstreamError::Refused;
    }
    if error.is_io() {
        return UpstreamError::Closed;
    }
    if error.is_remote() || error.is_reset() {
        return UpstreamError::Reset { problem };
    }
    UpstreamError::Protocol { problem }
}

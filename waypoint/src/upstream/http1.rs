//! HTTP/1.1 to applications: one request at a time on a connection, which is kept for the next.

use std::rc::Rc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::task::spawn_local;
use tokio::time::{Instant, timeout};

use super::body::UpstreamBody;
use super::dial::Target;
use super::entry::Entry;
use super::metrics::Use;
use super::request::{self, RequestBody, Watch};
use super::tls::Offer;
use super::transport::{Connection, Wire};
use super::{Upstream, UpstreamError};
use crate::balance::{Cluster, ConnectionSlot, Limit, Limits, Picked};
use crate::local_io::LocalIo;

/// Largest head of a response, bytes; what common servers send has less than a tenth.
const MAX_HEAD: usize = 64 << 10;
/// Header fields of a response.
const MAX_HEADERS: usize = 200;
/// Time in which a connection whose response has been read must be ready for the next request: the rest of
/// the request's body may still be on its way.
const RETURN_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that a request tries because those before had been closed unused.
const ATTEMPTS: usize = 4;
/// Time after which one that waits for a free connection looks again: a release may have woken another one.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// A connection that speaks HTTP/1.1.
pub(super) struct Http1 {
    sender: SendRequest<RequestBody>,
    wire: Rc<Wire>,
    served: u32,
    /// Requests it may carry.
    limit: Option<u32>,
    idle_since: Instant,
}

/// Whether a connection may be taken over by another protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    Never,
    /// Such a request has a connection of its own.
    Possible,
}

impl Http1 {
    pub(super) async fn handshake(
        connection: Connection,
        limits: &Limits,
        takeover: Takeover,
    ) -> Result<Self, UpstreamError> {
        let wire = connection.wire();
        let mut builder = Builder::new();
        builder.max_header_size(MAX_HEAD).max_headers(MAX_HEADERS);
        let failed = |error: hyper::Error| UpstreamError::Reset {
            problem: error.to_string(),
        };
        let sender = match takeover {
            Takeover::Never => {
                let (sender, driver) = builder
                    .handshake(TokioIo::new(connection))
                    .await
                    .map_err(failed)?;
                spawn_local(async move { log_end(driver.await) });
                sender
            }
            Takeover::Possible => {
                let io = TokioIo::new(LocalIo::new(connection));
                let (sender, driver) = builder.handshake(io).await.map_err(failed)?;
                spawn_local(async move { log_end(driver.with_upgrades().await) });
                sender
            }
        };
        Ok(Self {
            sender,
            wire,
            served: 0,
            limit: limits.requests_per_connection,
            idle_since: Instant::now(),
        })
    }

    /// Whether it would take a request now.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready()
    }

    pub(super) fn idle_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.idle_since)
    }

    fn may_serve_more(&self) -> bool {
        self.limit.is_none_or(|limit| self.served < limit) && !self.sender.is_closed()
    }

    /// Gives it back after a response that was read to its end.
    pub(super) fn give_back(mut self, entry: &Rc<Entry>) {
        if !self.may_serve_more() || entry.is_retired() {
            return;
        }
        if self.sender.is_ready() {
            entry.put(self.idle());
            return;
        }
        let entry = Rc::clone(entry);
        spawn_local(async move {
            if let Ok(Ok(())) = timeout(RETURN_TIMEOUT, self.sender.ready()).await {
                entry.put(self.idle());
            }
        });
    }

    fn idle(mut self) -> Self {
        self.idle_since = Instant::now();
        self
    }
}

fn log_end(end: Result<(), hyper::Error>) {
    if let Err(error) = end {
        tracing::debug!(%error, "connection to an application ended");
    }
}

impl Upstream {
    /// Sends a request by HTTP/1.1.
    pub(super) async fn send_http1(
        &self,
        entry: &Rc<Entry>,
        target: &Target,
        picked: &Picked,
        mut request: Request<RequestBody>,
        watch: &Watch,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        request::to_http1(&mut request, entry.host())?;
        let takeover = if request::wants_upgrade(&request) {
            Takeover::Possible
        } else {
            Takeover::Never
        };
        let idempotent = request.method().is_idempotent();
        let mut attempts = 0;
        loop {
            let mut connection = self.http1(entry, target, takeover).await?;
            let used = if connection.served > 0 {
                Use::Again
            } else {
                Use::First
            };
            self.metrics.request(used);
            connection.served += 1;
            let received = connection.wire.received();
            attempts += 1;
            picked.connected();
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(UpstreamBody::http1(response, connection, entry)),
                Err(mut error) => {
                    // What comes back was not begun.
                    match error.take_message() {
                        Some(message) if attempts < ATTEMPTS => {
                            self.metrics.resent();
                            request = message;
                        }
                        message => {
                            let silent = connection.wire.received() == received;
                            let unseen = message.is_some();
                            let safe = unseen || (idempotent && !watch.has_begun());
                            let idle = (used == Use::Again && silent).then_some(safe);
                            return Err(failure(&error.into_error(), watch, idle));
                        }
                    }
                }
            }
        }
    }

    /// An idle connection, or a new one.
    async fn http1(
        &self,
        entry: &Rc<Entry>,
        target: &Target,
        takeover: Takeover,
    ) -> Result<Http1, UpstreamError> {
        if takeover == Takeover::Never
            && let Some(idle) = entry.take()
        {
            return Ok(idle);
        }
        let cluster = entry.cluster();
        let limits = cluster.settings().limits;
        let pending = cluster.try_wait();
        let _pending = pending.ok_or(UpstreamError::Overloaded(Limit::Pending))?;
        let deadline = Instant::now() + limits.connect_timeout;
        let slot = match self.slot(entry, deadline, takeover).await? {
            Slot::New(slot) => slot,
            Slot::Idle(idle) => return Ok(idle),
        };
        let connect = async {
            let dialed = self.dial(target, Offer::Http1, slot).await?;
            Http1::handshake(dialed.connection, &limits, takeover).await
        };
        in_time(deadline, &limits, Box::pin(connect)).await
    }

    /// Room for one more connection, or one that has become free meanwhile.
    async fn slot(
        &self,
        entry: &Rc<Entry>,
        deadline: Instant,
        takeover: Takeover,
    ) -> Result<Slot, UpstreamError> {
        let cluster = entry.cluster();
        if let Some(slot) = cluster.try_connection() {
            return Ok(Slot::New(slot));
        }
        let _waiting = entry.wait();
        loop {
            self.close_an_idle_one(cluster);
            let look_again = deadline.min(Instant::now() + LOOK_AGAIN);
            tokio::select! {
                () = cluster.connection_released() => {}
                () = entry.freed() => {}
                () = tokio::time::sleep_until(look_again) => {}
            }
            if takeover == Takeover::Never
                && let Some(idle) = entry.take()
            {
                return Ok(Slot::Idle(idle));
            }
            if let Some(slot) = cluster.try_connection() {
                return Ok(Slot::New(slot));
            }
            if Instant::now() >= deadline {
                return Err(UpstreamError::Overloaded(Limit::Connections));
            }
        }
    }

    /// Room for one more connection, for one request that counts as waiting meanwhile.
    pub(super) async fn pending_slot(
        &self,
        entry: &Rc<Entry>,
        deadline: Instant,
    ) -> Result<ConnectionSlot, UpstreamError> {
        let pending = entry.cluster().try_wait();
        let _pending = pending.ok_or(UpstreamError::Overloaded(Limit::Pending))?;
        self.new_slot(entry, deadline).await
    }

    /// Room for one more connection.
    pub(super) async fn new_slot(
        &self,
        entry: &Rc<Entry>,
        deadline: Instant,
    ) -> Result<ConnectionSlot, UpstreamError> {
        match self.slot(entry, deadline, Takeover::Possible).await? {
            Slot::New(slot) => Ok(slot),
            Slot::Idle(_) => Err(UpstreamError::Overloaded(Limit::Connections)),
        }
    }

    /// An unused connection to another endpoint of the backend stands in the way of one that is needed.
    fn close_an_idle_one(&self, cluster: &Cluster) {
        let entries = self.entries.borrow();
        let mut of_cluster = entries
            .values()
            .filter(|entry| entry.cluster().id() == cluster.id());
        let closed = of_cluster.find_map(|entry| entry.oldest());
        drop(entries);
        drop(closed);
    }
}

enum Slot {
    New(ConnectionSlot),
    Idle(Http1),
}

/// Limits the time to connect.
pub(super) async fn in_time<T>(
    deadline: Instant,
    limits: &Limits,
    connect: impl Future<Output = Result<T, UpstreamError>>,
) -> Result<T, UpstreamError> {
    let connected = tokio::time::timeout_at(deadline, connect).await;
    connected.unwrap_or(Err(UpstreamError::ConnectTimeout {
        millis: limits.connect_timeout.as_millis(),
    }))
}

/// `idle`: the connection had been unused and gave no byte of an answer; whether it is safe to try again.
fn failure(error: &hyper::Error, watch: &Watch, idle: Option<bool>) -> UpstreamError {
    let problem = describe(error);
    if watch.has_failed() {
        return UpstreamError::RequestBody { problem };
    }
    if error.is_parse() {
        return UpstreamError::Protocol { problem };
    }
    if error.is_user() {
        return UpstreamError::Request { problem };
    }
    match idle {
        Some(safe) => UpstreamError::IdleClosed { safe },
        None if error.is_incomplete_message() || error.is_closed() => UpstreamError::Closed,
        None => UpstreamError::Reset { problem },
    }
}

/// An error with its causes.
pub(super) fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Whether a response hands the connection over to another protocol.
pub(super) fn is_takeover(response: &Response<Incoming>) -> bool {
    response.status() == http::StatusCode::SWITCHING_PROTOCOLS
}

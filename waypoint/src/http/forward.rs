//! Sends a request to an endpoint, and to another one if that is allowed and helps.
//!
//! Without any policy a request is sent again, to another endpoint, when its application has seen nothing of it,
//! or when it is idempotent, has no body and its connection broke before any answer (RFC 9110, section 9.2.2).
//! With the route's retry policy also for the status codes it names, for timeouts and for other breaks. The
//! backend's retry budget bounds all of it. A body that has begun is sent again only if all of it was kept.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{EXPECT, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::Entry;
use super::exchange::Exchange;
use super::limits::{CONNECT_RETRIES, MAX_BACKOFF};
use super::reply::Failure;
use super::upload::{Upload, UploadError};
use crate::balance::{Cluster, Outcome, PickError, PickRequest, hash_of};
use crate::body::Body;
use crate::reason::Reason;
use crate::table::{HttpRule, Retry};
use crate::upstream::{UpstreamBody, UpstreamError};

/// First wait before an attempt that no policy asked for: enough for an endpoint that was just restarted.
const DEFAULT_BACKOFF: Duration = Duration::from_millis(10);

/// Where a request goes.
pub(super) struct Target<'a> {
    pub(super) cluster: &'a Arc<Cluster>,
    /// Instead of the endpoint's own.
    pub(super) port: Option<u16>,
    /// Instead of the endpoint's own.
    pub(super) address: Option<IpAddr>,
    /// Key of the endpoint of the client's session.
    pub(super) sticky: Option<&'a str>,
}

/// What an endpoint answered.
pub(super) struct Sent {
    pub(super) response: Response<UpstreamBody>,
    /// The balancer's own cookie, for a client that has none.
    pub(super) cookie: Option<HeaderValue>,
}

/// When a request must have ended: by the rule, or by what a gRPC client says, whichever is earlier.
pub(super) fn deadline(
    exchange: &Exchange,
    rule: Option<&HttpRule>,
    headers: &HeaderMap,
) -> Option<Instant> {
    let asked = if exchange.grpc {
        headers.get("grpc-timeout").and_then(grpc_timeout)
    } else {
        None
    };
    let limit = match (rule.and_then(|rule| rule.request_timeout), asked) {
        (Some(rule), Some(asked)) => Some(rule.min(asked)),
        (rule, asked) => rule.or(asked),
    };
    limit.and_then(|limit| exchange.started.checked_add(limit))
}

/// The value of `grpc-timeout`: up to 8 digits and a unit.
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let (unit, digits) = value.as_bytes().split_last()?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Gets a response for a request within its time.
///
/// # Errors
/// What the client is to be told.
pub(super) async fn forward(
    exchange: &mut Exchange,
    parts: Parts,
    target: &Target<'_>,
    rule: Option<&HttpRule>,
    upgrade: bool,
) -> Result<Sent, Failure> {
    let client = &exchange.connection.client;
    let hashed = hash_of(&target.cluster.settings(), &parts.headers, client);
    let mut attempts = Attempts::new(exchange, target, rule, &parts.method, upgrade);
    attempts.hash = hashed.as_ref().map(|hashed| hashed.value);
    let response = match attempts.exchange.deadline {
        None => attempts.run(parts).await,
        Some(deadline) => match timeout_at(deadline, attempts.run(parts)).await {
            Ok(result) => result,
            Err(_) => {
                attempts.observe(Outcome::TimedOut);
                Err(Failure::new(StatusCode::GATEWAY_TIMEOUT, "request_timeout"))
            }
        },
    };
    Ok(Sent {
        response: response?,
        cookie: hashed.and_then(|hashed| hashed.set_cookie),
    })
}

/// The attempts of one request.
struct Attempts<'a> {
    exchange: &'a mut Exchange,
    target: &'a Target<'a>,
    retry: Option<&'a Retry>,
    backend_timeout: Option<Duration>,
    hash: Option<u64>,
    upload: Option<Rc<Upload>>,
    /// The version to speak where the backend's is not declared.
    version: Version,
    /// May be sent twice without doing more than once.
    idempotent: bool,
    tried: Vec<Arc<str>>,
    retries: u32,
    reconnects: u32,
}

/// What to do after an attempt failed.
enum Next {
    /// Another attempt after a wait.
    Again(Duration),
    /// That is the answer.
    GiveUp(Failure),
}

impl<'a> Attempts<'a> {
    fn new(
        exchange: &'a mut Exchange,
        target: &'a Target<'a>,
        rule: Option<&'a HttpRule>,
        method: &Method,
        upgrade: bool,
    ) -> Self {
        let retry = rule
            .and_then(|rule| rule.retry.as_ref())
            .filter(|retry| retry.attempts > 0);
        let upload = exchange.upload.clone();
        if let (Some(upload), Some(_)) = (&upload, retry) {
            upload.keep();
        }
        Self {
            retry,
            backend_timeout: rule.and_then(|rule| rule.backend_timeout),
            hash: None,
            version: version(exchange, upgrade),
            idempotent: method.is_idempotent() && upload.is_none() && !upgrade,
            upload,
            exchange,
            target,
            tried: Vec::new(),
            retries: 0,
            reconnects: 0,
        }
    }

    fn observe(&mut self, outcome: Outcome) {
        if let Some(picked) = &mut self.exchange.picked {
            picked.observe(outcome);
        }
    }

    async fn run(&mut self, parts: Parts) -> Result<Response<UpstreamBody>, Failure> {
        let mut parts = Some(parts);
        loop {
            self.pick()?;
            let Some(head) = self.head(&mut parts) else {
                return Err(Failure::new(StatusCode::BAD_GATEWAY, "upstream_closed"));
            };
            let next = match self.attempt(head).await {
                Some(Ok(response)) => match self.judge(response, parts.is_some()) {
                    Ok(response) => return Ok(response),
                    Err(wait) => Next::Again(wait),
                },
                Some(Err(error)) => self.failed(&error, parts.is_some()),
                None => self.timed_out(parts.is_some()),
            };
            match next {
                Next::GiveUp(failure) => return Err(failure),
                Next::Again(wait) => {
                    let metrics = self.exchange.connection.server.recorder.metrics();
                    metrics.retries.inc();
                    if let Some(picked) = self.exchange.picked.take() {
                        self.tried.push(Arc::clone(picked.key()));
                    }
                    sleep(wait).await;
                }
            }
        }
    }

    fn pick(&mut self) -> Result<(), Failure> {
        let request = PickRequest {
            hash: self.hash,
            sticky: self.target.sticky,
            tried: &self.tried,
            port: self.target.port,
            address: self.target.address,
        };
        let picked = self
            .target
            .cluster
            .pick(&request)
            .map_err(|error| match &error {
                PickError::NoEndpoints => Failure::new(error.status(), "no_endpoints"),
                PickError::Invalid(_) => {
                    Failure::because(error.status(), Reason::InvalidBackend).with(&error)
                }
                PickError::Overloaded(limit) => Failure::new(error.status(), limit.reason()),
            })?;
        self.exchange.picked = Some(picked);
        self.exchange.attempts += 1;
        Ok(())
    }

    /// The head for the next attempt; the last one that can be made takes it without a copy.
    fn head(&self, parts: &mut Option<Parts>) -> Option<Parts> {
        let more = self.reconnects < CONNECT_RETRIES
            || self
                .retry
                .is_some_and(|retry| self.retries < retry.attempts);
        if more { parts.clone() } else { parts.take() }
    }

    /// One attempt; `None` if it took too long.
    async fn attempt(
        &mut self,
        head: Parts,
    ) -> Option<Result<Response<UpstreamBody>, UpstreamError>> {
        let (body, wanted) = match &self.upload {
            None => (Body::Empty, None),
            Some(upload) => {
                let (hold, wanted) = hold(&head.headers);
                (Body::Upload(upload.attempt(hold)), wanted)
            }
        };
        let mut request = Request::from_parts(head, body);
        if let Some(wanted) = wanted {
            let wanted = Mutex::new(Some(wanted));
            hyper::ext::on_informational(&mut request, move |response| {
                if response.status() == StatusCode::CONTINUE
                    && let Some(wanted) =
                        wanted.lock().unwrap_or_else(PoisonError::into_inner).take()
                {
                    let _ = wanted.send(());
                }
            });
        }
        let upstream = Rc::clone(&self.exchange.connection.server.upstream);
        let picked = self.exchange.picked.as_ref()?;
        let sent = upstream.send(picked, self.version, request);
        match self.backend_timeout {
            None => Some(sent.await),
            Some(limit) => timeout(limit, sent).await.ok(),
        }
    }

    /// Whether a response is the answer; if not, how long to wait for the next attempt.
    fn judge(
        &mut self,
        response: Response<UpstreamBody>,
        has_head: bool,
    ) -> Result<Response<UpstreamBody>, Duration> {
        let status = response.status();
        let retry = self.retry.filter(|retry| {
            retry.codes.binary_search(&status.as_u16()).is_ok()
                && self.retries < retry.attempts
                && has_head
                && self.can_repeat()
        });
        if let Some(retry) = retry
            && self.permitted()
        {
            self.observe(Outcome::Response(status));
            self.retries += 1;
            return Err(backoff(retry.backoff, self.retries));
        }
        self.exchange.answered(status);
        Ok(response)
    }

    fn failed(&mut self, error: &UpstreamError, has_head: bool) -> Next {
        self.observe(error.outcome());
        let failure = self.failure(error);
        if !has_head || !self.can_repeat() || self.upload_failed().is_some() {
            return Next::GiveUp(failure);
        }
        let ours = matches!(
            error,
            UpstreamError::Overloaded(_)
                | UpstreamError::RequestBody { .. }
                | UpstreamError::Request { .. }
        );
        if ours {
            return Next::GiveUp(failure);
        }
        if (error.is_safe_to_retry() || self.idempotent)
            && self.reconnects < CONNECT_RETRIES
            && self.permitted()
        {
            self.reconnects += 1;
            return Next::Again(backoff(DEFAULT_BACKOFF, self.reconnects));
        }
        self.by_policy(failure)
    }

    fn timed_out(&mut self, has_head: bool) -> Next {
        self.observe(Outcome::TimedOut);
        let failure = match self.upload_failed() {
            Some(failure) => return Next::GiveUp(failure),
            None => Failure::new(StatusCode::GATEWAY_TIMEOUT, "backend_timeout"),
        };
        if has_head && self.can_repeat() {
            self.by_policy(failure)
        } else {
            Next::GiveUp(failure)
        }
    }

    fn by_policy(&mut self, failure: Failure) -> Next {
        let retry = self.retry.filter(|retry| self.retries < retry.attempts);
        let Some(retry) = retry else {
            return Next::GiveUp(failure);
        };
        if !self.permitted() {
            return Next::GiveUp(failure);
        }
        self.retries += 1;
        Next::Again(backoff(retry.backoff, self.retries))
    }

    fn can_repeat(&self) -> bool {
        self.upload
            .as_ref()
            .is_none_or(|upload| upload.can_repeat())
    }

    /// Whether the backend's budget has a retry left; it is used until the exchange ends.
    fn permitted(&mut self) -> bool {
        if self.exchange.permit.is_some() {
            return true;
        }
        self.exchange.permit = self.target.cluster.try_retry();
        if self.exchange.permit.is_none() {
            let metrics = self.exchange.connection.server.recorder.metrics();
            metrics.retries_denied.inc();
        }
        self.exchange.permit.is_some()
    }

    /// What the client is told of its own request's body.
    fn upload_failed(&self) -> Option<Failure> {
        Some(match self.upload.as_ref()?.error()? {
            UploadError::Paused => {
                Failure::new(StatusCode::REQUEST_TIMEOUT, "request_body_timeout").closing()
            }
            UploadError::ClientGone | UploadError::Superseded => {
                Failure::bad_request("request_body_failed")
            }
        })
    }

    fn failure(&self, error: &UpstreamError) -> Failure {
        if let Some(failure) = self.upload_failed() {
            return failure;
        }
        let status = match error {
            UpstreamError::IdleClosed { .. }
            | UpstreamError::Closed
            | UpstreamError::Reset { .. }
            | UpstreamError::Protocol { .. }
            | UpstreamError::Request { .. } => StatusCode::BAD_GATEWAY,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Failure::new(status, error.reason()).with(error)
    }
}

/// The version to speak where the backend says nothing of its own. A gateway's clients know nothing of its
/// backends; in the mesh they do.
fn version(exchange: &Exchange, upgrade: bool) -> Version {
    let at_gateway = matches!(exchange.connection.entry, Entry::Gateway { .. });
    match exchange.version {
        _ if upgrade => Version::HTTP_11,
        _ if exchange.grpc => Version::HTTP_2,
        _ if at_gateway => Version::HTTP_11,
        version => version,
    }
}

/// Whether the body waits for the application's 100 (Continue), and who tells it.
fn hold(headers: &HeaderMap) -> (Option<oneshot::Receiver<()>>, Option<oneshot::Sender<()>>) {
    let expects = headers
        .get(EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects {
        return (None, None);
    }
    let (wanted, hold) = oneshot::channel();
    (Some(hold), Some(wanted))
}

/// The wait before the `n`th retry: doubled each time, and between a half and all of that, so that clients of
/// one failure do not come back together.
fn backoff(base: Duration, n: u32) -> Duration {
    let factor = 1_u32.checked_shl(n.saturating_sub(1)).unwrap_or(u32::MAX);
    let longest = base.saturating_mul(factor).min(MAX_BACKOFF);
    longest.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;

    use super::{backoff, grpc_timeout};
    use crate::http::limits::MAX_BACKOFF;

    #[test]
    fn grpc_timeouts() {
        let check = |text, expected| {
            assert_eq!(
                grpc_timeout(&HeaderValue::from_static(text)),
                expected,
                "{text}"
            );
        };
        check("1H", Some(Duration::from_secs(3600)));
        check("20S", Some(Duration::from_secs(20)));
        check("99999999n", Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S"] {
            check(bad, None);
        }
    }

    #[test]
    fn waits_grow_and_have_an_end() {
        let base = Duration::from_millis(100);
        for (n, longest) in [(1, 100), (2, 200), (3, 400)] {
            let wait = backoff(base, n);
            let longest = Duration::from_millis(longest);
            assert!(wait >= longest / 2 && wait <= longest, "{n}: {wait:?}");
        }
        assert!(backoff(base, 1000) <= MAX_BACKOFF);
    }
}

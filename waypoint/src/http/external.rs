//! Has an external authorizer decide about a request, before our own policies do.
//!
//! The check goes to an endpoint of the provider's backend as any request does: through the tunnel where it is of the
//! mesh, and past its own waypoint where that is us. The request waits; when its client goes, the check ends with it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HeaderMap;
use http::request::Parts;
use http::{Method, Request, StatusCode, Uri, Version, response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::exchange::Exchange;
use super::limits::CONNECT_RETRIES;
use super::reply::Failure;
use super::service::Answer;
use super::{Entry, HttpServer, headers};
use crate::access_log::Check;
use crate::authz::Denial;
use crate::authz::external::question::{Asking, Excerpt};
use crate::authz::external::{
    Ask, Changes, CheckError, CheckedBody, Kind, Provider, Verdict, Why, answer, change,
};
use crate::balance::{Outcome, PickRequest, Picked};
use crate::body::Body;
use crate::filter::RequestScheme;
use crate::metrics::checks::CheckResult;
use crate::upstream::{UpstreamBody, UpstreamError};

/// Checks under way at once, a provider: as many requests as Envoy has under way to one service.
const MAX_CHECKS: i64 = 1024;

/// Bytes of requests' bodies that a worker holds back for checks.
const MAX_HELD_BYTES: usize = 64 << 20;

/// Time for a client to send what a provider is to see of its body.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Longest body of an answer, bytes: it is held, and its text may be the client's answer.
const MAX_ANSWER_BYTES: usize = 64 << 10;

/// What an allowed request goes on with.
pub(super) struct Checked {
    /// For later decisions.
    pub(super) asked: Option<Box<Asked>>,
    /// The request that its route is chosen by, where that is not the one that goes on.
    pub(super) routed: Option<Routed>,
    /// What was read of the body.
    pub(super) read: Option<Read>,
    /// What is changed of the response.
    downstream: Vec<change::HeaderChange>,
}

/// Who was asked.
pub(super) struct Asked {
    /// The policies that wanted it.
    pub(super) policies: Vec<Arc<str>>,
    /// Headers of the request as the provider saw them.
    pub(super) headers: HeaderMap,
}

/// A request as it was before the provider changed it.
pub(super) struct Routed {
    pub(super) headers: HeaderMap,
    pub(super) uri: Uri,
}

/// What was read of a body.
pub(super) struct Read {
    pub(super) frames: VecDeque<Frame<Bytes>>,
    pub(super) held: Held,
}

/// Bytes that are held back, counted while this lives.
pub(super) struct Held {
    total: Rc<Cell<usize>>,
    bytes: usize,
}

impl Held {
    fn take(server: &HttpServer, bytes: usize) -> Option<Self> {
        let total = Rc::clone(&server.held);
        let now = total.get().checked_add(bytes)?;
        (now <= MAX_HELD_BYTES).then(|| {
            total.set(now);
            Self { total, bytes }
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.set(self.total.get().saturating_sub(self.bytes));
    }
}

impl Checked {
    /// A response, with what the provider wants changed of it.
    pub(super) fn returned(&self, mut answer: Answer) -> Answer {
        let headers = match &mut answer {
            Answer::Response(response) => response.headers_mut(),
            Answer::Switch(head, _) => head.headers_mut(),
        };
        change::apply(&self.downstream, headers);
        answer
    }
}

/// Asks about a request, and changes it as the provider wants.
///
/// # Errors
/// The request may not go on; what its client is told.
pub(super) async fn check(
    exchange: &mut Exchange,
    parts: &mut Parts,
    incoming: &mut Incoming,
    ask: Ask,
) -> Result<Box<Checked>, Failure> {
    let server = Rc::clone(&exchange.connection.server);
    let provider = Arc::clone(&ask.provider);
    let started = Instant::now();
    let counts = server.recorder.metrics().checks.of(&provider.name);
    let mut read = None;
    let verdict = match counts.enter(MAX_CHECKS) {
        None => Err(CheckError::new(
            Why::Overloaded,
            "too many checks are under way",
        )),
        Some(_under_way) => {
            // A client that is refused for its body has not been checked.
            let excerpt = match &provider.body {
                None => Ok(None),
                Some(wanted) => body(&server, incoming, *wanted).await?,
            };
            match excerpt {
                Err(error) => Err(error),
                Ok(excerpt) => {
                    let excerpt = excerpt.map(|(excerpt, ahead)| {
                        read = Some(ahead);
                        excerpt
                    });
                    consult(exchange, parts, &provider, excerpt).await
                }
            }
        }
    };
    let result = match &verdict {
        Ok(Verdict::Allowed(_)) => CheckResult::Allowed,
        Ok(Verdict::Refused(_)) => CheckResult::Denied,
        Err(error) if error.may_pass(&provider) => CheckResult::FailedOpen,
        Err(_) => CheckResult::Failed,
    };
    counts.ended(result, started.elapsed());
    exchange.check = Some(Check {
        provider: Arc::clone(&provider.name),
        result,
    });
    let changes = match verdict {
        Ok(Verdict::Allowed(changes)) => *changes,
        Ok(Verdict::Refused(refused)) => {
            let mut failure = Failure::denied(denial(&ask, Why::Denied));
            failure.status = refused.status;
            failure.refused = Some(refused);
            return Err(failure);
        }
        Err(_) if result == CheckResult::FailedOpen => Changes::default(),
        Err(error) => {
            let mut failure = Failure::denied(denial(&ask, error.why));
            failure.status = provider.status_on_error;
            failure.error = Some(format!("provider {:?}: {}", provider.name, error.text));
            return Err(failure);
        }
    };
    let original = parts.headers.clone();
    let target = changes.target(&parts.uri);
    let stays = changes.keeps_request() || provider.clear_route_cache;
    let routed = (!stays).then(|| Routed {
        headers: original.clone(),
        uri: parts.uri.clone(),
    });
    changes.apply_upstream(&mut parts.headers);
    if let Some(target) = target {
        parts.uri = target;
    }
    Ok(Box::new(Checked {
        asked: Some(Box::new(Asked {
            policies: ask.policies,
            headers: original,
        })),
        routed,
        read,
        downstream: changes.downstream,
    }))
}

fn denial(ask: &Ask, why: Why) -> Denial {
    Denial {
        policy: Arc::clone(&ask.policy),
        rule: Some(ask.rule),
        unusable: false,
        external: Some(why),
    }
}

type Ahead = Result<Option<(Excerpt, Read)>, CheckError>;

/// Reads what a provider is to see of a body.
///
/// # Errors
/// The client sends too much, too slowly, or breaks off. Within: there is no room for it.
async fn body(
    server: &HttpServer,
    incoming: &mut Incoming,
    wanted: CheckedBody,
) -> Result<Ahead, Failure> {
    let too_large = || {
        let failure = Failure::new(StatusCode::PAYLOAD_TOO_LARGE, Why::BodyTooLarge.reason());
        failure.closing()
    };
    let size = http_body::Body::size_hint(incoming);
    if !wanted.allow_partial && size.lower() > wanted.max_bytes as u64 {
        return Err(too_large());
    }
    let Some(held) = Held::take(server, at_most(&size, wanted)) else {
        let text = "too much of bodies is held back";
        return Ok(Err(CheckError::new(Why::Overloaded, text)));
    };
    let deadline = Instant::now() + BODY_TIME.min(server.limits.body_pause);
    let mut data = BytesMut::new();
    let mut trailers = None;
    while data.len() <= wanted.max_bytes {
        // Not before there is more than it is to see, unless the body ends there.
        if http_body::Body::is_end_stream(incoming)
            || (wanted.allow_partial && data.len() == wanted.max_bytes)
        {
            break;
        }
        let frame = timeout_at(deadline, incoming.frame()).await;
        let frame = frame.map_err(|_| {
            Failure::new(StatusCode::REQUEST_TIMEOUT, "request_body_timeout").closing()
        })?;
        match frame {
            None => break,
            Some(Err(_)) => return Err(Failure::bad_request("request_body_failed")),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(bytes) => data.extend_from_slice(&bytes),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
    let whole = http_body::Body::is_end_stream(incoming) || trailers.is_some();
    if data.len() > wanted.max_bytes && !wanted.allow_partial {
        return Err(too_large());
    }
    let data = data.freeze();
    let shown = data.slice(..data.len().min(wanted.max_bytes));
    let excerpt = Excerpt {
        partial: shown.len() < data.len() || !(whole || shown.len() < wanted.max_bytes),
        bytes: shown,
    };
    let mut frames = VecDeque::with_capacity(2);
    if !data.is_empty() {
        frames.push_back(Frame::data(data));
    }
    frames.extend(trailers.map(Frame::trailers));
    Ok(Ok(Some((excerpt, Read { frames, held }))))
}

/// Bytes that are held of a body at most: no more than it can have. Most requests have a small one or none, and
/// what is held for all is limited.
fn at_most(size: &SizeHint, wanted: CheckedBody) -> usize {
    let upper = size.upper().and_then(|upper| usize::try_from(upper).ok());
    upper.map_or(wanted.max_bytes, |upper| upper.min(wanted.max_bytes))
}

/// Asks, within the provider's time.
async fn consult(
    exchange: &Exchange,
    parts: &mut Parts,
    provider: &Provider,
    excerpt: Option<Excerpt>,
) -> Result<Verdict, CheckError> {
    let connection = &exchange.connection;
    let server = &connection.server;
    // The same id as the request has later.
    let id = headers::request_id(&mut parts.headers);
    let own_identity = server.upstream.own_identity();
    let asking = Asking {
        client: &connection.client,
        own_identity: own_identity.as_ref().map(|id| id.as_str()),
        id: id.to_str().unwrap_or_default(),
        method: match &parts.method {
            &Method::CONNECT => &Method::GET,
            method => method,
        },
        uri: &parts.uri,
        authority: exchange.authority.to_str().unwrap_or_default(),
        scheme: match connection.entry.scheme() {
            RequestScheme::Http => "http",
            RequestScheme::Https => "https",
        },
        version: exchange.version,
        headers: &parts.headers,
        server_name: match &connection.entry {
            Entry::Gateway { tls: Some(tls), .. } => tls.server_name.as_deref(),
            _ => None,
        },
        body: excerpt,
    };
    let asked = async {
        match &provider.kind {
            Kind::Grpc => {
                let request = asking.grpc(provider);
                let (head, body, trailers) =
                    send(server, provider, Version::HTTP_2, request).await?;
                answer::grpc(&head, body, trailers.as_ref())
            }
            Kind::Http(check) => {
                let request = asking.http(check)?;
                let (head, body, _) = send(server, provider, Version::HTTP_11, request).await?;
                answer::http(&head, body, check)
            }
        }
    };
    match timeout(provider.timeout, asked).await {
        Ok(verdict) => verdict,
        Err(_) => {
            let text = format!("no answer within {:?}", provider.timeout);
            Err(CheckError::new(Why::Timeout, text))
        }
    }
}

type Received = (response::Parts, Bytes, Option<HeaderMap>);

/// Sends a question, to another endpoint where one has seen nothing of it, and reads the whole answer.
async fn send(
    server: &HttpServer,
    provider: &Provider,
    version: Version,
    request: Request<Bytes>,
) -> Result<Received, CheckError> {
    let cluster = match &provider.cluster {
        Ok(cluster) => cluster,
        Err(reason) => return Err(CheckError::new(Why::ProviderInvalid, reason)),
    };
    let (head, body) = request.into_parts();
    let mut tried = Vec::new();
    loop {
        let request = PickRequest {
            tried: &tried,
            ..PickRequest::default()
        };
        let picked = cluster.pick(&request);
        let picked = picked.map_err(|error| CheckError::new(Why::Unavailable, error))?;
        let body = match body.is_empty() {
            true => Body::Empty,
            false => Body::full(body.clone()),
        };
        let request = Request::from_parts(head.clone(), body);
        match server.upstream.send(&picked, version, request).await {
            Ok(response) => return receive(picked, response).await,
            Err(error) => {
                let text = error.to_string();
                let again = is_worth_another(&error) && tried.len() < CONNECT_RETRIES as usize;
                tried.push(Arc::clone(picked.key()));
                picked.finish(error.outcome());
                if !again {
                    return Err(CheckError::new(Why::Unavailable, text));
                }
            }
        }
    }
}

fn is_worth_another(error: &UpstreamError) -> bool {
    error.is_safe_to_retry() && !matches!(error, UpstreamError::NoCertificate)
}

async fn receive(
    mut picked: Picked,
    response: http::Response<UpstreamBody>,
) -> Result<Received, CheckError> {
    picked.observe(Outcome::Response(response.status()));
    let (head, mut body) = response.into_parts();
    let mut data = BytesMut::new();
    let mut trailers = None;
    while let Some(frame) = body.frame().await {
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => {
                picked.finish(Outcome::Reset);
                return Err(CheckError::new(Why::Unavailable, error));
            }
        };
        match frame.into_data() {
            Ok(bytes) => data.extend_from_slice(&bytes),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if data.len() > MAX_ANSWER_BYTES {
            let text = format!("an answer of more than {MAX_ANSWER_BYTES} bytes");
            return Err(CheckError::new(Why::AnswerInvalid, text));
        }
    }
    Ok((head, data.freeze(), trailers))
}

#[cfg(test)]
mod tests {
    use http_body::SizeHint;

    use super::{CheckedBody, at_most};

    #[test]
    fn what_a_request_cannot_have_is_not_held_for_it() {
        let wanted = CheckedBody {
            max_bytes: 1 << 20,
            allow_partial: true,
            as_bytes: false,
        };
        let mut unknown = SizeHint::new();
        assert_eq!(at_most(&unknown, wanted), 1 << 20);
        unknown.set_lower(5);
        assert_eq!(at_most(&unknown, wanted), 1 << 20);
        for (length, expected) in [(0, 0), (100, 100), (1 << 20, 1 << 20), (1 << 30, 1 << 20)] {
            let exact = SizeHint::with_exact(length);
            assert_eq!(at_most(&exact, wanted), expected, "{length}");
        }
    }
}

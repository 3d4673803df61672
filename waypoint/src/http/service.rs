//! One request, from its head to the head of its response.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONNECTION, HeaderMap, HeaderValue, ORIGIN, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;

use super::connection::Connection;
use super::download::Download;
use super::exchange::Exchange;
use super::forward::{self, Target};
use super::frontend::Frontend;
use super::guard::Spoken;
use super::headers::{self, Framed};
use super::reply::Failure;
use super::session::{self, Bound};
use super::upgrade::{self, Wanted};
use super::upload::Upload;
use super::{authenticate, authorize, external, mirror, normal};
use crate::body::Body;
use crate::filter::{self, AnsweredBy, FilterContext};
use crate::observe::Observed;
use crate::reason::Reason;
use crate::route::{Matched, RequestHead, host_of};
use crate::table::{BackendTarget, HttpRule, WeightedBackend};

/// An answer, before it has its place in the connection.
pub(super) enum Answer {
    Response(Response<Body>),
    /// The endpoint changes to another protocol.
    Switch(Response<()>, OnUpgrade),
}

/// Serves one request of a connection. In a box: it is large, and what carries it is moved about.
pub(super) fn handle(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Pin<Box<impl Future<Output = Result<Response<Download>, Infallible>>>> {
    Box::pin(answer(connection, request))
}

async fn answer(
    connection: Rc<Connection>,
    request: Request<Incoming>,
) -> Result<Response<Download>, Infallible> {
    let (mut parts, incoming) = request.into_parts();
    let mut exchange = Exchange::new(&connection, &parts);
    let client_upgrade = parts.extensions.remove::<OnUpgrade>();
    let asks_upgrade = connection.spoken == Spoken::Http1
        && (parts.method == Method::CONNECT || parts.headers.contains_key(UPGRADE));
    let answer = serve(&mut exchange, parts, incoming).await;
    let answer = match answer {
        Ok(Answer::Switch(head, upstream)) => {
            return Ok(upgrade::switch(exchange, head, upstream, client_upgrade));
        }
        Ok(Answer::Response(response)) => response,
        Err(failure) => fail(&mut exchange, failure),
    };
    let (mut head, body) = answer.into_parts();
    head.version = Version::HTTP_11;
    if asks_upgrade && connection.activity.refuse_upgrade() {
        head.headers
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    exchange.head(head.status, &head.headers);
    let deadline = exchange.deadline;
    Ok(Response::from_parts(
        head,
        Download::new(body, exchange, deadline),
    ))
}

/// The answer to a request that failed; the exchange says why.
fn fail(exchange: &mut Exchange, failure: Failure) -> Response<Body> {
    let response = if exchange.grpc {
        failure.grpc_response()
    } else {
        failure.response()
    };
    if let Some(denial) = failure.denial {
        exchange.denied_by(denial);
    }
    exchange.because(failure.reason, failure.error);
    response
}

async fn serve(
    exchange: &mut Exchange,
    mut parts: Parts,
    mut incoming: Incoming,
) -> Result<Answer, Failure> {
    let connection = Rc::clone(&exchange.connection);
    exchange.authority = normal::normalise(&mut parts)?;
    headers::remove_named_by_client(&mut parts.headers);
    headers::join_cookies(&mut parts.headers);
    let authority = exchange.authority.clone();
    let host = host_of(authority.to_str().unwrap_or_default());
    let seen = connection.server.tables.generation();
    let table = connection.server.tables.load();
    let frontend = Frontend::find(&connection.entry, &table, &host)?;
    exchange.observed = frontend
        .reporting()
        .map(|reporting| Observed::request(reporting, &parts.headers, connection.client.trace));
    if let Frontend::Listener(listener, _) = &frontend {
        exchange.listener = Some(listener.name.as_str().into());
    }
    if let Some(plain) = frontend.plain() {
        exchange.destination = connection.server.destination(plain.cluster);
    }
    // What comes later goes by the body as it was before anything of it was read.
    let (has_body, size) = (!incoming.is_end_stream(), incoming.size_hint());
    let mut checked = match authorize::to_ask(exchange, &parts, &frontend, seen)? {
        None => None,
        Some(ask) => {
            // What is written of a token is never the client's word, for a provider neither.
            frontend.authentication().clean(&mut parts.headers);
            // In a box, as the one above: most requests have no need of it.
            let check = external::check(exchange, &mut parts, &mut incoming, ask);
            Some(Box::pin(check).await?)
        }
    };
    // A provider may have added the token that counts.
    let passed = authenticate::authenticate(exchange, &mut parts, &frontend).await?;
    let asked = checked.as_mut().and_then(|checked| checked.asked.take());
    if let Some(routed) = checked.as_mut().and_then(|checked| checked.routed.as_mut()) {
        passed.write(&mut routed.headers);
    }
    let mut standing = authorize::admit(exchange, &parts, &frontend, seen, asked)?;
    let routed = checked.as_ref().and_then(|checked| checked.routed.as_ref());
    let uri = routed.map_or(&parts.uri, |routed| &routed.uri).clone();
    // `OPTIONS *` is about the whole server.
    let path = if uri.path() == "*" { "/" } else { uri.path() };
    let head = RequestHead {
        method: &parts.method,
        host: &host,
        path,
        query: uri.query(),
        headers: routed.map_or(&parts.headers, |routed| &routed.headers),
    };
    let matched = frontend.route(&head, &connection.client)?;
    // A request with a body goes on as what it is, as RFC 9110, section 7.8 allows.
    let wanted = upgrade::wanted(&mut parts)?.filter(|_| !has_body);
    exchange.request_id = Some(headers::prepare(&mut parts, &connection));
    passed.write(&mut parts.headers);
    if let Some(observed) = &exchange.observed {
        observed.write(&mut parts.headers);
    }
    if has_body {
        if size.exact().is_none() {
            // Without it hyper sends no body with methods that usually have none.
            let chunked = HeaderValue::from_static("chunked");
            parts.headers.insert(TRANSFER_ENCODING, chunked);
        }
        let pause = (!exchange.grpc).then_some(connection.server.limits.body_pause);
        let read = checked.as_mut().and_then(|checked| checked.read.take());
        let upload = match read {
            None => Upload::new(incoming, pause),
            Some(read) => Upload::resumed(incoming, size, read.frames, Some(read.held), pause),
        };
        if exchange.grpc {
            upload.count_messages();
        }
        exchange.upload = Some(upload);
    }
    let origin = parts.headers.get(ORIGIN).cloned();
    let context = FilterContext {
        scheme: connection.entry.scheme(),
        host: &host,
        port: frontend.port(),
        path,
        prefix: matched.as_ref().and_then(|matched| matched.prefix),
        origin: origin.as_ref(),
    };
    let answering = async {
        match matched {
            Some(matched) => by_rule(exchange, parts, &matched, &context, wanted).await,
            None => {
                let Some(plain) = frontend.plain() else {
                    return Err(Failure::because(StatusCode::NOT_FOUND, Reason::NoRoute));
                };
                exchange.deadline = forward::deadline(exchange, None, &parts.headers);
                let target = Target {
                    cluster: plain.cluster,
                    port: plain.port,
                    address: plain.address,
                    sticky: None,
                };
                send(exchange, parts, &target, None, wanted).await
            }
        }
    };
    let answer = tokio::select! {
        biased;
        answer = answering => answer,
        // The answer may be long in coming, and the policies may change meanwhile.
        denial = standing.denied() => Err(Failure::denied(denial)),
    };
    exchange.standing = Some(standing);
    match checked {
        None => answer,
        Some(checked) => answer.map(|answer| checked.returned(answer)),
    }
}

/// Sends a request on as a rule says, with all its filters.
async fn by_rule(
    exchange: &mut Exchange,
    mut parts: Parts,
    matched: &Matched<'_>,
    context: &FilterContext<'_>,
    wanted: Option<Wanted>,
) -> Result<Answer, Failure> {
    let rule: &HttpRule = matched.rule;
    exchange.route = Some(Arc::clone(&rule.route));
    exchange.grpc |= rule.grpc;
    exchange.deadline = forward::deadline(exchange, Some(rule), &parts.headers);
    if let Some(answer) = filter::apply_request(&rule.filters, &mut parts, context) {
        return Ok(Answer::Response(answered(exchange, answer)));
    }
    let server = Rc::clone(&exchange.connection.server);
    let bound = session::bound(rule, &parts.headers, &server.sessions);
    let backend = match &bound {
        Some(bound) => Some(bound.backend),
        None => rule.backends.choose(rand::random()),
    };
    let done = match backend {
        Some(backend) => {
            to_backend(
                exchange,
                parts,
                rule,
                backend,
                bound.as_ref(),
                context,
                wanted,
            )
            .await
        }
        // None exists, or all have a weight of 0.
        None => Err(Failure::because(
            StatusCode::INTERNAL_SERVER_ERROR,
            Reason::InvalidBackend,
        )),
    };
    let (mut head, rest) = split(exchange, done);
    filter::apply_response(&rule.filters, &mut head, context);
    Ok(rest.join(head))
}

async fn to_backend(
    exchange: &mut Exchange,
    mut parts: Parts,
    rule: &HttpRule,
    backend: &WeightedBackend,
    bound: Option<&Bound<'_>>,
    context: &FilterContext<'_>,
    wanted: Option<Wanted>,
) -> Result<Answer, Failure> {
    let server = Rc::clone(&exchange.connection.server);
    let cluster = match &backend.target {
        BackendTarget::Cluster(cluster) => cluster,
        BackendTarget::Invalid(reason) => {
            let status = StatusCode::INTERNAL_SERVER_ERROR;
            return Err(Failure::because(status, Reason::InvalidBackend).with(reason));
        }
    };
    exchange.destination = server.destination(cluster);
    if let Some(answer) = filter::apply_request(&backend.filters, &mut parts, context) {
        return Ok(Answer::Response(answered(exchange, answer)));
    }
    let filters = [&rule.filters[..], &backend.filters[..]];
    for mirror in filters.into_iter().flat_map(filter::mirrors) {
        mirror::start(exchange, &parts, mirror);
    }
    let target = Target {
        cluster,
        port: None,
        address: None,
        sticky: bound.map(|bound| &*bound.key),
    };
    let done = send(exchange, parts, &target, Some(rule), wanted).await;
    let (mut head, rest) = split(exchange, done);
    filter::apply_response(&backend.filters, &mut head, context);
    if let (Some(session), Some(picked)) = (&rule.session, &exchange.picked)
        && bound.is_none_or(|bound| bound.key != *picked.key())
    {
        let scheme = exchange.connection.entry.scheme();
        session::bind(session, picked, scheme, &mut head.headers, &server.sessions);
    }
    Ok(rest.join(head))
}

/// What is left of an answer without its head.
enum Rest {
    Body(Body),
    Switch(OnUpgrade),
}

impl Rest {
    fn join(self, head: http::response::Parts) -> Answer {
        match self {
            Self::Body(body) => Answer::Response(Response::from_parts(head, body)),
            Self::Switch(upstream) => Answer::Switch(Response::from_parts(head, ()), upstream),
        }
    }
}

/// Takes an answer apart for the filters; a failure becomes an answer of ours, so that they see it too.
fn split(exchange: &mut Exchange, done: Result<Answer, Failure>) -> (http::response::Parts, Rest) {
    match done {
        Ok(Answer::Response(response)) => {
            let (head, body) = response.into_parts();
            (head, Rest::Body(body))
        }
        Ok(Answer::Switch(response, upstream)) => (response.into_parts().0, Rest::Switch(upstream)),
        Err(failure) => {
            let (head, body) = fail(exchange, failure).into_parts();
            (head, Rest::Body(body))
        }
    }
}

/// An answer by a filter: an error of ours, or what the rule is there for.
fn answered(exchange: &mut Exchange, answer: Response<Body>) -> Response<Body> {
    match answer.extensions().get::<AnsweredBy>() {
        Some(by @ (AnsweredBy::Unsupported | AnsweredBy::Unusable)) => {
            let failure = Failure::new(answer.status(), by.reason());
            fail(exchange, failure)
        }
        _ => answer,
    }
}

/// Sends a request and brings the head of the response into its form.
async fn send(
    exchange: &mut Exchange,
    mut parts: Parts,
    target: &Target<'_>,
    rule: Option<&HttpRule>,
    wanted: Option<Wanted>,
) -> Result<Answer, Failure> {
    let wanted = match wanted {
        Some(wanted) => wanted.prepare(&mut parts, target.cluster)?,
        None => None,
    };
    let is_head = parts.method == Method::HEAD;
    let sent = forward::forward(exchange, parts, target, rule, wanted.is_some()).await?;
    let (mut response, cookie) = (sent.response, sent.cookie);
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(wanted) = wanted else {
            let status = StatusCode::BAD_GATEWAY;
            return Err(Failure::new(status, "upstream_protocol_error"));
        };
        let upstream = hyper::upgrade::on(&mut response);
        let (mut head, _) = response.into_parts();
        wanted.grant(&mut head);
        return Ok(Answer::Switch(Response::from_parts(head, ()), upstream));
    }
    let (mut head, body) = response.into_parts();
    let framed = if is_head || body.size_hint().exact().is_some() {
        Framed::Length
    } else {
        Framed::Open
    };
    headers::return_response(&mut head.headers, framed);
    if let Some(cookie) = cookie {
        append_cookie(&mut head.headers, cookie);
    }
    Ok(Answer::Response(Response::from_parts(head, body.into())))
}

fn append_cookie(headers: &mut HeaderMap, cookie: HeaderValue) {
    let _ = headers.try_append(http::header::SET_COOKIE, cookie);
}

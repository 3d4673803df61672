//! Whether a request may come, and whether one that lasts may go on.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, Uri};

use super::Entry;
use super::connection::Connection;
use super::exchange::Exchange;
use super::external::Asked;
use super::frontend::Frontend;
use super::reply::Failure;
use crate::authn::Verified;
use crate::authz::external::Ask;
use crate::authz::recheck::Watch;
use crate::authz::{Attributes, Denial, Destination, Outcome, RequestAttributes, ServerName};
use crate::route::host_of;

/// A request that was allowed to come, with what a later decision about it asks for.
pub(super) struct Standing {
    connection: Rc<Connection>,
    watch: Watch,
    /// It counts to the end of the request, also when the token's time is over before.
    token: Option<Arc<Verified>>,
    method: Method,
    authority: HeaderValue,
    /// In its normal form.
    uri: Uri,
    /// Kept only where a policy asked for them: copying them costs more than everything else here. A policy that
    /// comes later and asks for them finds nothing, and refuses in doubt.
    headers: Option<HeaderMap>,
    /// The provider that was asked first, if one was. Its word holds for the request's life.
    asked: Option<Box<Asked>>,
}

/// Whether a provider is to be asked about a request that has its normal form, before its policies are.
///
/// # Errors
/// The request may not come, as nobody can be asked.
pub(super) fn to_ask(
    exchange: &Exchange,
    parts: &Parts,
    frontend: &Frontend<'_>,
    seen: u64,
) -> Result<Option<Ask>, Failure> {
    let authorization = frontend.authorization();
    if !authorization.has_custom() {
        return Ok(None);
    }
    let standing = Standing::new(exchange, parts, seen);
    let host = standing.host();
    let attributes = standing.attributes(&host, frontend.port(), Some(&parts.headers));
    authorization.to_ask(&attributes).map_err(Failure::denied)
}

/// Asks the policies of a frontend about a request that has its normal form. `seen` is the number of the
/// table that the frontend is of, or an older one; `asked` the provider that has allowed the request.
///
/// # Errors
/// They do not allow it.
pub(super) fn admit(
    exchange: &mut Exchange,
    parts: &Parts,
    frontend: &Frontend<'_>,
    seen: u64,
    asked: Option<Box<Asked>>,
) -> Result<Standing, Failure> {
    let authorization = frontend.authorization();
    let mut standing = Standing::new(exchange, parts, seen);
    standing.asked = asked;
    let host = standing.host();
    let attributes = standing.attributes(&host, frontend.port(), Some(&parts.headers));
    let decision = authorization.decide_locally(&attributes);
    if authorization.has_observers() {
        authorization.observe(&attributes, |observed| {
            if observed.outcome == Outcome::Audited && exchange.audited.is_none() {
                exchange.audited = Some(observed.policy.into());
            }
            let recorder = &standing.connection.server.recorder;
            recorder.observed(&observed, &attributes);
        });
    }
    decision.map_err(Failure::denied)?;
    drop(host);
    if authorization.asks_headers() {
        standing.headers = Some(parts.headers.clone());
    }
    Ok(standing)
}

impl Standing {
    fn new(exchange: &Exchange, parts: &Parts, seen: u64) -> Self {
        let connection = Rc::clone(&exchange.connection);
        Self {
            watch: connection.server.rechecks.watch(seen),
            method: parts.method.clone(),
            authority: exchange.authority.clone(),
            uri: parts.uri.clone(),
            headers: None,
            asked: None,
            token: exchange.token.clone(),
            connection,
        }
    }

    fn host(&self) -> std::borrow::Cow<'_, str> {
        host_of(self.authority.to_str().unwrap_or_default())
    }

    fn attributes<'a>(
        &'a self,
        host: &'a str,
        port: u16,
        headers: Option<&'a HeaderMap>,
    ) -> Attributes<'a> {
        let connection = &*self.connection;
        let server_name = match &connection.entry {
            Entry::Gateway { tls: Some(tls), .. } => ServerName::read(tls.server_name.as_deref()),
            _ => ServerName::None,
        };
        Attributes {
            client: &connection.client,
            destination: Destination {
                ip: connection.client.destination.map(|address| address.ip()),
                port,
            },
            server_name,
            request: Some(RequestAttributes {
                // WebSocket over HTTP/2 (RFC 8441) is the same request as over HTTP/1.1, as which it goes on.
                method: match &self.method {
                    &Method::CONNECT => "GET",
                    method => method.as_str(),
                },
                host,
                port: self.authority.to_str().ok().and_then(port_of),
                // `OPTIONS *` is about the whole server, for routes as well.
                path: match self.uri.path() {
                    "*" => "/",
                    path => path,
                },
                headers,
                trusted_hops: connection.server.limits.trusted_hops,
                request_principal: self.token.as_deref().and_then(Verified::principal),
                token: self.token.as_deref(),
            }),
        }
    }

    /// Asks again, if the table is a new one. What is not served any more has no policies: then the request goes on
    /// to its end.
    pub(super) fn check(&self) -> Option<Denial> {
        if !self.watch.is_due() {
            return None;
        }
        self.ask()
    }

    fn ask(&self) -> Option<Denial> {
        let table = self.connection.server.tables.load();
        let host = self.host();
        let frontend = Frontend::find(&self.connection.entry, &table, &host).ok()?;
        let authorization = frontend.authorization();
        // What a provider was asked about is the request as it was before it changed it.
        let (headers, names) = match self.asked.as_deref() {
            Some(asked) => (Some(&asked.headers), asked.policies.as_slice()),
            None => (self.headers.as_ref(), [].as_slice()),
        };
        let attributes = self.attributes(&host, frontend.port(), headers);
        if let Some(denial) = authorization.not_asked(&attributes, names) {
            return Some(denial);
        }
        let attributes = self.attributes(&host, frontend.port(), self.headers.as_ref());
        authorization.decide_locally(&attributes).err()
    }

    /// Ready when the policies allow the request no more.
    pub(super) fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<Denial> {
        while self.watch.poll_due(cx).is_ready() {
            if let Some(denial) = self.ask() {
                return Poll::Ready(denial);
            }
        }
        Poll::Pending
    }

    /// Waits until the policies allow the request no more.
    pub(super) async fn denied(&mut self) -> Denial {
        std::future::poll_fn(|cx| self.poll_denied(cx)).await
    }
}

/// The port that an authority says.
fn port_of(authority: &str) -> Option<&str> {
    let (_, port) = authority.rsplit_once(':')?;
    (!port.is_empty() && !port.contains(']')).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::port_of;

    #[test]
    fn ports_of_authorities() {
        for (authority, port) in [
            ("a:80", Some("80")),
            ("a", None),
            ("a:", None),
            ("[::1]", None),
            ("[::1]:8080", Some("8080")),
            ("", None),
        ] {
            assert_eq!(port_of(authority), port, "{authority}");
        }
    }
}

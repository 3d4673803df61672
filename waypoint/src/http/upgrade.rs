//! Changes of protocol, such as WebSocket: by HTTP/1.1's `Upgrade` (RFC 9110, section 7.8), and by HTTP/2's
//! extended CONNECT (RFC 8441), which goes on as the former.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{
    CONNECTION, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use http::request::Parts;
use http::{Method, Response, StatusCode, Version};
use hyper::ext::Protocol as ConnectProtocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use karst_api::waypoint::Protocol;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::task::spawn_local;

use super::connection::Connection;
use super::download::Download;
use super::exchange::{Ending, Exchange};
use super::headers::{has_token, remove_hop_by_hop};
use super::keeper::{End, Told, keep};
use super::reply::Failure;
use crate::balance::Cluster;
use crate::reason::Reason;

/// A change that the client asks for.
pub(super) enum Wanted {
    /// Over HTTP/1.1, to what is named.
    Upgrade(HeaderValue),
    /// Over HTTP/2, to WebSocket.
    WebSocket,
}

/// A change that the endpoint has granted, for the client's HTTP/1 connection.
pub(super) struct Switch {
    upstream: OnUpgrade,
    exchange: Box<Exchange>,
}

/// The change that a request asks for. Must be asked before hop-by-hop headers are removed.
///
/// # Errors
/// It asks for something that we do not know how to carry.
pub(super) fn wanted(parts: &mut Parts) -> Result<Option<Wanted>, Failure> {
    if let Some(protocol) = parts.extensions.remove::<ConnectProtocol>() {
        if protocol.as_str().eq_ignore_ascii_case("websocket") {
            return Ok(Some(Wanted::WebSocket));
        }
        return Err(Failure::new(
            StatusCode::NOT_IMPLEMENTED,
            "http_connect_protocol",
        ));
    }
    let asked = parts.version == Version::HTTP_11
        && parts
            .headers
            .get_all(CONNECTION)
            .iter()
            .any(|value| has_token(value, "upgrade"));
    let protocol = parts.headers.get(UPGRADE).filter(|_| asked);
    // HTTP/2 in clear is spoken by prior knowledge alone (RFC 9113, section 3.1); the request goes on as it is.
    Ok(protocol
        .filter(|protocol| !has_token(protocol, "h2c"))
        .map(|protocol| Wanted::Upgrade(protocol.clone())))
}

impl Wanted {
    /// Puts the question into a request for a backend; `None` if it is not asked, as a server may do.
    ///
    /// # Errors
    /// The backend cannot be asked, and the client would not understand any other answer.
    pub(super) fn prepare(
        self,
        parts: &mut Parts,
        cluster: &Arc<Cluster>,
    ) -> Result<Option<Self>, Failure> {
        let protocol = cluster.settings().protocol;
        let http2 = matches!(protocol, Protocol::Http2 | Protocol::Grpc);
        let upgrade = match &self {
            Self::Upgrade(_) if http2 => return Ok(None),
            Self::WebSocket if http2 => {
                let status = StatusCode::NOT_IMPLEMENTED;
                return Err(Failure::new(status, "upgrade_not_supported"));
            }
            Self::Upgrade(protocol) => protocol.clone(),
            Self::WebSocket => {
                parts.method = Method::GET;
                let key = STANDARD.encode(rand::random::<[u8; 16]>());
                if let Ok(key) = HeaderValue::try_from(key) {
                    parts.headers.insert(SEC_WEBSOCKET_KEY, key);
                }
                parts
                    .headers
                    .entry(SEC_WEBSOCKET_VERSION)
                    .or_insert(HeaderValue::from_static("13"));
                HeaderValue::from_static("websocket")
            }
        };
        let headers = &mut parts.headers;
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
        Ok(Some(self))
    }

    /// Makes of the endpoint's yes that for the client.
    pub(super) fn grant(&self, head: &mut http::response::Parts) {
        let protocol = head.headers.get(UPGRADE).cloned();
        remove_hop_by_hop(&mut head.headers);
        match self {
            Self::Upgrade(asked) => {
                let protocol = protocol.unwrap_or_else(|| asked.clone());
                head.headers.insert(UPGRADE, protocol);
                head.headers
                    .insert(CONNECTION, HeaderValue::from_static("upgrade"));
            }
            Self::WebSocket => {
                head.status = StatusCode::OK;
                head.headers.remove(SEC_WEBSOCKET_ACCEPT);
            }
        }
    }
}

/// Answers the client, and lets both ends talk once the answer is out.
pub(super) fn switch(
    mut exchange: Box<Exchange>,
    head: Response<()>,
    upstream: OnUpgrade,
    client: Option<OnUpgrade>,
) -> Response<Download> {
    exchange.head(head.status(), head.headers());
    let connection = Rc::clone(&exchange.connection);
    if head.status() == StatusCode::SWITCHING_PROTOCOLS {
        // The keeper of the connection goes on with it when hyper has sent the answer.
        let switch = Switch { upstream, exchange };
        *connection.switch.borrow_mut() = Some(switch);
    } else if let Some(client) = client {
        spawn_local(async move {
            let Ok(client) = client.await else {
                return;
            };
            relay(TokioIo::new(client), upstream, exchange, &connection).await;
        });
    }
    head.map(|()| Download::nothing())
}

/// Goes on with an HTTP/1 connection as what it has become. `ahead` was read from it already.
pub(super) async fn relay_http1<IO>(
    mut io: IO,
    ahead: Bytes,
    switch: Switch,
    connection: &Rc<Connection>,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let Switch { upstream, exchange } = switch;
    if ahead.is_empty() {
        return relay(io, upstream, exchange, connection).await;
    }
    let ahead: &[u8] = &ahead;
    let (reader, writer) = tokio::io::split(&mut io);
    let io = tokio::io::join(tokio::io::AsyncReadExt::chain(ahead, reader), writer);
    relay(io, upstream, exchange, connection).await;
}

async fn relay<IO>(
    client: IO,
    upstream: OnUpgrade,
    mut exchange: Box<Exchange>,
    connection: &Rc<Connection>,
) where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut client = client;
    let carry = async {
        let mut upstream = TokioIo::new(upstream.await.map_err(std::io::Error::other)?);
        let carried = copy_bidirectional(&mut client, &mut upstream).await?;
        upstream.shutdown().await.map(|()| carried)
    };
    // The exchange is a request under way: it does not idle.
    let (activity, limits) = (&connection.activity, &connection.server.limits);
    let mut standing = exchange.standing.take();
    let denied = async {
        match &mut standing {
            Some(standing) => standing.denied().await,
            None => std::future::pending().await,
        }
    };
    let carry = pin!(carry);
    let kept = keep(carry, |_| Told::Ends, activity, limits, &connection.drain);
    let end = tokio::select! {
        end = kept => end,
        denial = denied => return exchange.end_denied(denial),
    };
    match end {
        End::Done(Ok((_, down))) => {
            exchange.carried(down);
            exchange.end(Ending::Complete);
        }
        End::Done(Err(error)) => {
            let ending = Ending::Broken(Reason::Other("upgrade_broken"), Some(error.to_string()));
            exchange.end(ending);
        }
        _ => exchange.end(Ending::Broken(Reason::Shutdown, None)),
    }
}

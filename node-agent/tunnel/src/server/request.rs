//! One CONNECT of a server.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request, Response};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::connection::{Peer, StreamCount};
use super::{Accepted, Answer, ConnectRequest, InboundHandler, Refusal};
use crate::headers::{Authority, SourceHeaders};
use crate::pool::Early;
use crate::relay::{self, RelayEnd};
use crate::stream::Place;
use crate::{Counters, HboneStream, TlsInfo, TunnelError};

/// Checks the form of a request.
pub(super) fn read_request(
    request: &Request<RecvStream>,
    peer: &Peer,
    header_bytes: usize,
) -> Result<ConnectRequest, TunnelError> {
    if request.method() != Method::CONNECT {
        return Err(TunnelError::BadMethod);
    }
    let authority = request.uri().authority().ok_or(TunnelError::BadAuthority)?;
    let authority = Authority::parse(authority.as_str())?;
    let source = SourceHeaders::parse(request.headers(), header_bytes)?;
    Ok(ConnectRequest {
        peer: peer.id.clone(),
        tls: Arc::clone(&peer.tls),
        authority,
        baggage: source.baggage,
        forwarded: source.forwarded,
        traceparent: source.traceparent,
        peer_addr: peer.peer_addr,
        local_addr: peer.local_addr,
    })
}

/// A request's stream while it waits for its answer.
pub(super) struct Exchange {
    pub(super) recv: RecvStream,
    pub(super) respond: SendResponse<Bytes>,
    pub(super) stream: StreamCount,
}

/// An application whose connection is accepted, and its stream.
pub(super) struct Open {
    upstream: TcpStream,
    stream: HboneStream,
    counters: Arc<Counters>,
    cut: Option<oneshot::Receiver<()>>,
    on_end: Box<dyn FnOnce(RelayEnd)>,
}

/// Asks the handler and answers; what there is to relay then, if the stream is not given away.
pub(super) async fn answer<H: InboundHandler>(
    handler: &H,
    request: ConnectRequest,
    mut exchange: Exchange,
) -> Option<Open> {
    let tls = Arc::clone(&request.tls);
    let mut connect = pin!(handler.connect(request));
    let answered = tokio::select! {
        biased;
        answered = &mut connect => answered,
        // The client gave up: so does the connection to the application.
        _ = poll_fn(|cx| exchange.respond.poll_reset(cx)) => return None,
    };
    match answered {
        Ok(Answer::Relay(accepted)) => {
            let Accepted {
                upstream,
                response_headers,
                counters,
                cut,
                on_end,
            } = accepted;
            let Some(stream) = exchange.accept(response_headers, tls) else {
                // The client went away while the application was being connected.
                on_end(RelayEnd::RemoteReset);
                return None;
            };
            return Some(Open {
                upstream,
                stream,
                counters,
                cut,
                on_end,
            });
        }
        Ok(Answer::Take(taken)) => {
            if let Some(stream) = exchange.accept(taken.response_headers, tls) {
                (taken.take)(stream);
            }
        }
        Err(refusal) => exchange.refuse(refusal),
    }
    None
}

/// Relays until the connection ends or is cut.
pub(super) async fn relay(open: Box<Open>) {
    let Open {
        upstream,
        stream,
        counters,
        cut,
        on_end,
    } = *open;
    tokio::select! {
        biased;
        end = relay::tcp_hbone(upstream, stream, &counters) => on_end(end),
        () = told(cut) => {}
    }
}

/// Waits for a word that may never come.
async fn told(word: Option<oneshot::Receiver<()>>) {
    if let Some(word) = word
        && word.await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

impl Exchange {
    /// Sends the 200; `None` when the client has gone away.
    fn accept(mut self, headers: HeaderMap, tls: Arc<TlsInfo>) -> Option<HboneStream> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, false).ok()?;
        Some(HboneStream {
            send,
            recv: self.recv,
            tls,
            response_headers: HeaderMap::new(),
            early: Early::default(),
            place: Place::Served(self.stream),
        })
    }

    fn refuse(mut self, refusal: Refusal) {
        let mut response = Response::new(());
        *response.status_mut() = refusal.status.code();
        // It fails only when the stream is gone, and then nobody waits for it.
        let _ = self.respond.send_response(response, true);
    }
}

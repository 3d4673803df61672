//! One CONNECT of a server.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, Response};

use super::connection::Peer;
use super::{Accepted, ConnectRequest, InboundHandler, Refusal};
use crate::headers::{Authority, SourceHeaders};
use crate::relay::{self, RelayEnd};
use crate::{HboneStream, TunnelError};

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

/// Asks the handler, answers, and relays.
pub(super) async fn answer<H: InboundHandler>(
    handler: &H,
    request: ConnectRequest,
    recv: RecvStream,
    mut respond: SendResponse<Bytes>,
) {
    let tls = Arc::clone(&request.tls);
    // Boxed so that the memory it needs is free while the connection lives.
    let mut connect = Box::pin(handler.connect(request));
    let accepted = tokio::select! {
        biased;
        accepted = &mut connect => accepted,
        // The client gave up: so does the connection to the application.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    drop(connect);
    let Accepted {
        upstream,
        response_headers,
        counters,
        on_end,
    } = match accepted {
        Ok(accepted) => accepted,
        Err(Refusal { status, .. }) => {
            let mut response = Response::new(());
            *response.status_mut() = status.code();
            // It fails only when the stream is gone, and then nobody waits for it.
            let _ = respond.send_response(response, true);
            return;
        }
    };
    let mut response = Response::new(());
    *response.headers_mut() = response_headers;
    let end = match respond.send_response(response, false) {
        Ok(send) => {
            let stream = HboneStream {
                send,
                recv,
                tls,
                response_headers: http::HeaderMap::new(),
                lease: None,
            };
            relay::tcp_hbone(upstream, stream, &counters).await
        }
        // The client went away while the application was being connected.
        Err(_) => RelayEnd::RemoteReset,
    };
    on_end(end);
}

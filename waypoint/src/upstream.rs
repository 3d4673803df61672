//! Connections of one worker to applications, and what is sent on them.

mod error;
mod tls;

pub use error::UpstreamError;
pub use tls::BackendTlsConfig;

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use karst_identity::WorkloadCertificate;
use karst_tunnel::headers::Baggage;
use karst_tunnel::pool::PoolConfig;
use karst_tunnel::settings::HBONE_PORT;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::balance::Picked;
use crate::body::{Body, BodyError};
use crate::client::Client;

/// Gives our certificate of the moment; `None` while there is none.
pub type Identity = Rc<dyn Fn() -> Option<Arc<WorkloadCertificate>>>;

/// What connections of a worker have in common.
#[derive(Clone, Debug)]
pub struct UpstreamSettings {
    /// Limits of tunnel connections.
    pub tunnel: PoolConfig,
    /// Port of the tunnel at every endpoint.
    pub tunnel_port: u16,
    /// What we say about ourselves to the other end of a tunnel.
    pub baggage: Option<Baggage>,
}

impl Default for UpstreamSettings {
    fn default() -> Self {
        Self {
            tunnel: PoolConfig::default(),
            tunnel_port: HBONE_PORT,
            baggage: None,
        }
    }
}

/// The connections of one worker thread to endpoints.
pub struct Upstream {
    identity: Identity,
}

impl Upstream {
    /// Without connections. Must run inside a `LocalSet`.
    #[must_use]
    pub fn new(identity: Identity, _settings: UpstreamSettings) -> Rc<Self> {
        Rc::new(Self { identity })
    }

    /// Sends a request to the endpoint and waits for the head of the response. `version` is the one to
    /// speak where the backend's protocol is not declared.
    ///
    /// # Errors
    /// Why there is no response, and whether it is safe to try again.
    pub async fn send(
        &self,
        _picked: &Picked,
        _version: Version,
        _request: Request<Body>,
    ) -> Result<Response<UpstreamBody>, UpstreamError> {
        (self.identity)().ok_or(UpstreamError::NoCertificate)?;
        Err(UpstreamError::Closed)
    }

    /// Connects to the endpoint for bytes that are passed on; `client` is named to the other end of a tunnel.
    ///
    /// # Errors
    /// Why there is no connection.
    pub async fn connect(
        &self,
        _picked: &Picked,
        _client: &Client,
    ) -> Result<UpstreamStream, UpstreamError> {
        (self.identity)().ok_or(UpstreamError::NoCertificate)?;
        Err(UpstreamError::Closed)
    }

    /// Connections made with an older certificate than that of the moment take no new requests.
    pub fn certificate_changed(&self) {}
}

/// A connection to an application, for bytes.
pub struct UpstreamStream {}

impl AsyncRead for UpstreamStream {
    fn poll_read(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for UpstreamStream {
    fn poll_write(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
        _bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Poll::Ready(Ok(0))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The body of a response. Read to its end it gives the connection back.
pub struct UpstreamBody {
    incoming: Incoming,
}

impl From<UpstreamBody> for Body {
    fn from(body: UpstreamBody) -> Self {
        Self::boxed(body)
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = Pin::new(&mut self.get_mut().incoming).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(Into::into)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

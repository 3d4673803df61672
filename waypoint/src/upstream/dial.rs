//! How a connection to an endpoint is made.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::uri::Authority;
use karst_identity::WorkloadCertificate;
use karst_tunnel::HboneIo;
use karst_tunnel::headers::{Forwarded, SourceHeaders, TraceParent};
use karst_tunnel::pool::{Dialer, OutboundRequest, PoolKey};
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::tls::{self, Offer};
use super::transport::{Carrier, Connection};
use super::{BackendTlsConfig, Upstream, UpstreamError};
use crate::balance::{ConnectionSlot, Endpoint, Via};

/// Silence on a TCP connection after which the kernel asks whether the other end is alive. A host that is
/// gone says nothing; with the tunnel it is the tunnel that asks.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
/// Time between two such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Time in which data that was sent must be acknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a connection goes and what is said on the way.
#[derive(Clone)]
pub(super) struct Target {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) destination: SocketAddr,
    /// Set if the endpoint is reached by the tunnel.
    pub(super) certificate: Option<Arc<WorkloadCertificate>>,
    pub(super) tls: Option<Arc<BackendTlsConfig>>,
    /// The client that the connection is made for, if it is for one alone.
    pub(super) client: Option<SocketAddr>,
    /// What the connection is opened for. Later requests on it belong to other traces.
    pub(super) trace: Option<TraceParent>,
}

/// A connection, and whether it was agreed on that HTTP/2 is spoken on it.
pub(super) struct Dialed {
    pub(super) connection: Connection,
    pub(super) http2: Option<bool>,
}

/// Connects in the network namespace of this process.
pub(super) struct Tcp;

impl Dialer for Tcp {
    async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok(tcp)
    }
}

impl Upstream {
    /// Connects. The caller limits the time.
    pub(super) async fn dial(
        &self,
        target: &Target,
        offer: Offer,
        slot: ConnectionSlot,
    ) -> Result<Dialed, UpstreamError> {
        let dialed = self.try_dial(target, offer, slot).await;
        if dialed.is_err() {
            self.metrics.failed();
        }
        dialed
    }

    async fn try_dial(
        &self,
        target: &Target,
        offer: Offer,
        slot: ConnectionSlot,
    ) -> Result<Dialed, UpstreamError> {
        let carrier = match target.endpoint.via() {
            Via::Plain => Carrier::Tcp(tcp(target.destination).await?),
            Via::Hbone {
                identity,
                authority,
            } => {
                let certificate = target.certificate.as_ref();
                let certificate = certificate.ok_or(UpstreamError::NoCertificate)?;
                let address = (target.endpoint.address(), self.settings.tunnel_port).into();
                let key = PoolKey {
                    source: certificate.id().clone(),
                    certificate_epoch: certificate.epoch(),
                    destination_uid: Arc::clone(target.endpoint.uid()),
                    destination: identity.clone(),
                    address,
                };
                let request = OutboundRequest {
                    authority: self.authority(target, authority.as_ref())?,
                    headers: self.connect_headers(target),
                };
                let stream = self
                    .tunnel
                    .connect(key, &self.dialer, certificate, request)
                    .await?;
                Carrier::Hbone(Box::new(HboneIo::new(stream)))
            }
        };
        let Some(tls) = &target.tls else {
            let connection = Connection::plain(carrier, slot, &self.metrics);
            return Ok(Dialed {
                connection,
                http2: None,
            });
        };
        let connector = TlsConnector::from(Arc::clone(tls.config(offer)));
        let stream = connector.connect(tls.server_name().clone(), carrier).await;
        let stream = stream.map_err(|error| UpstreamError::Tls {
            problem: error.to_string(),
        })?;
        let http2 = tls::agreed_on_http2(stream.get_ref().1.alpn_protocol());
        Ok(Dialed {
            connection: Connection::tls(stream, slot, &self.metrics),
            http2,
        })
    }

    /// `:authority` of the CONNECT.
    fn authority(
        &self,
        target: &Target,
        given: Option<&Authority>,
    ) -> Result<Authority, UpstreamError> {
        match given {
            Some(authority) => Ok(authority.clone()),
            None => {
                let text = target.destination.to_string();
                text.parse().map_err(|_| UpstreamError::Request {
                    problem: format!("{text} is no authority"),
                })
            }
        }
    }

    fn connect_headers(&self, target: &Target) -> HeaderMap {
        let source = SourceHeaders {
            baggage: self.settings.baggage.clone(),
            forwarded: target.client.map(|client| Forwarded {
                client,
                host: String::new(),
            }),
            traceparent: target.trace,
        };
        let mut headers = HeaderMap::new();
        source.write(&mut headers);
        headers
    }
}

async fn tcp(address: SocketAddr) -> Result<TcpStream, UpstreamError> {
    let failed = |error: io::Error| UpstreamError::Connect {
        address,
        kind: error.kind(),
    };
    let tcp = Tcp.dial(address).await.map_err(failed)?;
    let socket = SockRef::from(&tcp);
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive).map_err(failed)?;
    socket
        .set_tcp_user_timeout(Some(USER_TIMEOUT))
        .map_err(failed)?;
    Ok(tcp)
}

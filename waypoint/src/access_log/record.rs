//! What is known of a request or connection when it has ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Method, Uri, Version};
use karst_identity::SpiffeId;
use karst_tunnel::TlsInfo;

use crate::authn::Verified;
use crate::authz::Denial;
use crate::balance::{Picked, Via};
use crate::client::Client;
use crate::metrics::checks::CheckResult;
use crate::observe::Observed;
use crate::reason::Reason;
use crate::workload::WorkloadLabels;

/// As what the proxy saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// It came through the mesh.
    Waypoint,
    /// It came to a gateway's port.
    Gateway,
}

impl Reporter {
    /// The label value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
        }
    }
}

/// What was spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Spoken {
    /// HTTP.
    Http,
    /// gRPC: HTTP with `content-type: application/grpc`.
    Grpc,
    /// Bytes.
    Tcp,
}

impl Spoken {
    /// The value of the label `request_protocol`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

/// The service that was asked for, or that a route chose.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name of the Service.
    pub name: Arc<str>,
    /// Fully qualified name.
    pub hostname: Arc<str>,
    /// Port of the Service.
    pub port: u16,
}

/// The endpoint that had the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Uid of the workload.
    pub uid: Arc<str>,
    /// Address and port of the application.
    pub address: SocketAddr,
    /// The identity it had to prove; `None` for plain TCP.
    pub identity: Option<SpiffeId>,
    /// What it is a part of, if the controller has said it.
    pub workload: Option<Arc<WorkloadLabels>>,
}

impl EndpointRecord {
    /// Of one that was chosen.
    #[must_use]
    pub fn of(picked: &Picked) -> Self {
        let endpoint = picked.endpoint();
        Self {
            uid: Arc::clone(endpoint.uid()),
            address: picked.destination(),
            identity: match endpoint.via() {
                Via::Hbone { identity, .. } => Some(identity.clone()),
                Via::Plain => None,
            },
            workload: endpoint.workload().cloned(),
        }
    }

    /// Namespace and name out of the uid: `CLUSTER/GROUP/KIND/NAMESPACE/NAME`, and of what is known from an
    /// EndpointSlice the address behind that. Empty where the uid has another form.
    #[must_use]
    pub fn namespaced_name(&self) -> (&str, &str) {
        let mut parts = self.uid.split('/').skip(3);
        let namespace = parts.next().unwrap_or_default();
        (namespace, parts.next().unwrap_or_default())
    }
}

/// What came of asking an external authorizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Name of the provider.
    pub provider: Arc<str>,
    /// As in the metrics.
    pub result: CheckResult,
}

/// A request that has its answer, or never gets one.
#[derive(Clone, Debug)]
pub struct RequestRecord {
    /// As what we saw it.
    pub reporter: Reporter,
    /// Who sent it.
    pub client: Client,
    /// HTTP or gRPC.
    pub protocol: Spoken,
    /// Version the client speaks.
    pub version: Version,
    /// Method.
    pub method: Method,
    /// Host of the request.
    pub authority: HeaderValue,
    /// As it came. The log says its path alone: a query may hold secrets.
    pub uri: Uri,
    /// Listener of the gateway, if it came to one.
    pub listener: Option<Arc<str>>,
    /// Route, `KIND/NAMESPACE/NAME`.
    pub route: Option<Arc<str>>,
    /// Where it went, or should have.
    pub destination: Option<Arc<Destination>>,
    /// Endpoint of the last attempt.
    pub endpoint: Option<EndpointRecord>,
    /// Status of the answer; 0 if the client went before there was one.
    pub status: u16,
    /// Status of a gRPC answer.
    pub grpc_status: Option<u32>,
    /// Why we answered it ourselves, or it broke off; `None` if the answer is the endpoint's.
    pub reason: Option<Reason>,
    /// Details of the reason.
    pub error: Option<String>,
    /// What its token says. Of that the log has the principal alone.
    pub token: Option<Arc<Verified>>,
    /// The policy that refused it.
    pub denial: Option<Denial>,
    /// The AUDIT policy that it matched first.
    pub audited: Option<Arc<str>>,
    /// What an external authorizer has said.
    pub check: Option<Check>,
    /// Bytes of the request's body.
    pub bytes_received: u64,
    /// Bytes of the response's body.
    pub bytes_sent: u64,
    /// Messages of a gRPC request, and of its response. Others have none.
    pub messages: (u64, u64),
    /// From the request's head to the end of the response.
    pub duration: Duration,
    /// From there to the head of the endpoint's response.
    pub response_head: Option<Duration>,
    /// Attempts made.
    pub attempts: u32,
    /// `x-request-id`.
    pub request_id: Option<HeaderValue>,
    /// `http` or `https`.
    pub scheme: &'static str,
    /// What else is reported; `None` for the default.
    pub observed: Option<Box<Observed>>,
}

impl RequestRecord {
    /// A record of a request of which only this is known yet.
    #[must_use]
    pub fn new(reporter: Reporter, client: Client) -> Self {
        Self {
            reporter,
            client,
            protocol: Spoken::Http,
            version: Version::HTTP_11,
            method: Method::GET,
            authority: HeaderValue::from_static(""),
            uri: Uri::default(),
            listener: None,
            route: None,
            destination: None,
            endpoint: None,
            status: 0,
            grpc_status: None,
            reason: None,
            error: None,
            denial: None,
            token: None,
            audited: None,
            check: None,
            bytes_received: 0,
            bytes_sent: 0,
            messages: (0, 0),
            duration: Duration::ZERO,
            response_head: None,
            attempts: 0,
            request_id: None,
            scheme: "http",
            observed: None,
        }
    }
}

/// A connection below HTTP that ended or was refused.
#[derive(Clone, Debug)]
pub struct ConnectionRecord {
    /// As what we saw it.
    pub reporter: Reporter,
    /// Who made it.
    pub client: Client,
    /// Where it wanted to go: `:authority` of the tunnel, or our own port.
    pub target: String,
    /// Host name of the client hello, if one was looked at.
    pub sni: Option<String>,
    /// Listener of the gateway, if it came to one.
    pub listener: Option<Arc<str>>,
    /// Where it went, or should have.
    pub destination: Option<Arc<Destination>>,
    /// The endpoint.
    pub endpoint: Option<EndpointRecord>,
    /// What was negotiated with the tunnel's peer.
    pub tls: Option<Arc<TlsInfo>>,
    /// Bytes from the client.
    pub bytes_received: u64,
    /// Bytes to the client.
    pub bytes_sent: u64,
    /// From accept to end.
    pub duration: Duration,
    /// Why it was refused or broke off; `None` for an ordinary end.
    pub reason: Option<Reason>,
    /// Details of the reason.
    pub error: Option<String>,
    /// The policy that refused it.
    pub denial: Option<Denial>,
    /// What else is reported; `None` for the default.
    pub observed: Option<Box<Observed>>,
}

impl ConnectionRecord {
    /// A record of a connection of which only this is known yet.
    #[must_use]
    pub fn new(reporter: Reporter, client: Client, target: String) -> Self {
        Self {
            reporter,
            client,
            target,
            sni: None,
            listener: None,
            destination: None,
            endpoint: None,
            tls: None,
            bytes_received: 0,
            bytes_sent: 0,
            duration: Duration::ZERO,
            reason: None,
            error: None,
            denial: None,
            observed: None,
        }
    }
}

//! The certificate authority of the controller, over gRPC.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use karst_api::IMPERSONATED_IDENTITY;
use karst_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use karst_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::Mutex;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use crate::{
    BoxFuture, CertificateAuthority, CertificateRequest, IdentityError, SignedChain, SpiffeId,
};

/// Time for TCP and TLS towards the controller.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Time between two HTTP/2 PINGs, so that a controller that vanished is noticed.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time for the answer to a PING.
const PING_LIMIT: Duration = Duration::from_secs(20);
/// Largest root or token file in bytes; both are a few KiB.
const MAX_FILE_BYTES: usize = 1 << 20;
/// Largest answer in bytes: a chain of a few certificates has about 10 KiB.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Where the authority is and how to prove who we are.
#[derive(Clone, Debug)]
pub struct GrpcCaConfig {
    /// `host:port` of the controller.
    pub address: String,
    /// The name its certificate must carry.
    pub server_name: String,
    /// The pinned root, PEM. Read again when the file changes.
    pub root_file: PathBuf,
    /// The bearer token. Read again for every request, since it is rotated in place.
    pub token_file: PathBuf,
    /// Sent as `clusterid`.
    pub cluster_id: String,
    /// Lifetime to ask for, in seconds; 0 leaves it to the authority.
    pub validity_seconds: i64,
}

/// [`CertificateAuthority`] over `istio.v1.auth.IstioCertificateService`.
///
/// One connection is kept; it is made anew when the pinned root changes.
pub struct GrpcCa {
    config: GrpcCaConfig,
    connected: Mutex<Option<Connected>>,
}

struct Connected {
    roots: String,
    channel: Channel,
}

impl GrpcCa {
    /// An authority that connects when it is first asked.
    #[must_use]
    pub fn new(config: GrpcCaConfig) -> Self {
        Self {
            config,
            connected: Mutex::new(None),
        }
    }

    async fn request(&self, request: CertificateRequest) -> Result<SignedChain, IdentityError> {
        let channel = self.channel().await?;
        let message = IstioCertificateRequest {
            csr: request.csr_pem,
            validity_duration: self.config.validity_seconds,
            metadata: Some(impersonate(&request.id)),
        };
        let mut signed = Request::new(message);
        let bearer = bearer(&self.config.token_file).await?;
        signed.metadata_mut().insert("authorization", bearer);
        if let Ok(cluster) = self.config.cluster_id.parse::<MetadataValue<Ascii>>() {
            signed.metadata_mut().insert("clusterid", cluster);
        }
        let answer = IstioCertificateServiceClient::new(channel)
            .max_decoding_message_size(MAX_ANSWER_BYTES)
            .create_certificate(signed)
            .await
            .map_err(|status| self.refused(&status))?;
        split_chain(request.id, answer.into_inner())
    }

    /// The connection; tonic dials it lazily and again after a failure.
    async fn channel(&self) -> Result<Channel, IdentityError> {
        let roots = read_file(&self.config.root_file).await?;
        let mut connected = self.connected.lock().await;
        if let Some(connected) = connected.as_ref().filter(|c| c.roots == roots) {
            return Ok(connected.channel.clone());
        }
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&roots))
            .domain_name(&self.config.server_name);
        let channel = Endpoint::from_shared(format!("https://{}", self.config.address))
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| self.unreachable(&error))?
            .connect_timeout(CONNECT_LIMIT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_LIMIT)
            .connect_lazy();
        *connected = Some(Connected {
            roots,
            channel: channel.clone(),
        });
        Ok(channel)
    }

    fn unreachable(&self, error: &dyn std::error::Error) -> IdentityError {
        IdentityError::AuthorityUnreachable {
            address: self.config.address.clone(),
            problem: with_causes(error),
        }
    }

    fn refused(&self, status: &Status) -> IdentityError {
        // tonic reports a failed connection as one of these with the cause as its source.
        if let (Code::Unavailable | Code::Unknown, Some(source)) =
            (status.code(), std::error::Error::source(status))
        {
            return self.unreachable(source);
        }
        if status.code() == Code::Unavailable {
            return self.unreachable(status);
        }
        IdentityError::AuthorityRefused {
            code: format!("{:?}", status.code()),
            message: status.message().to_owned(),
        }
    }
}

impl CertificateAuthority for GrpcCa {
    fn sign(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<SignedChain, IdentityError>> {
        Box::pin(self.request(request))
    }
}

impl fmt::Debug for GrpcCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrpcCa")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

fn impersonate(id: &SpiffeId) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(id.to_string())),
    };
    Struct {
        fields: [(IMPERSONATED_IDENTITY.to_owned(), value)].into(),
    }
}

/// The last element holds the roots, those before it the chain, leaf first.
fn split_chain(
    id: SpiffeId,
    answer: IstioCertificateResponse,
) -> Result<SignedChain, IdentityError> {
    let mut parts = answer.cert_chain;
    match parts.pop() {
        Some(roots_pem) if !parts.is_empty() => Ok(SignedChain {
            chain_pem: parts.join("\n"),
            roots_pem,
        }),
        _ => Err(IdentityError::UnusableCertificate {
            id,
            problem: "the answer holds no chain with a root".to_owned(),
        }),
    }
}

async fn bearer(path: &Path) -> Result<MetadataValue<Ascii>, IdentityError> {
    let unusable = |problem: &str| unusable_file(path, problem.to_owned());
    let token = read_file(path).await?;
    let token = token.trim();
    if token.is_empty() {
        return Err(unusable("the token is empty"));
    }
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| unusable("the token holds bytes a header may not hold"))?;
    // Keeps it out of Debug output and out of the header compression table.
    value.set_sensitive(true);
    Ok(value)
}

async fn read_file(path: &Path) -> Result<String, IdentityError> {
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| unusable_file(path, error.to_string()))?;
    if text.len() > MAX_FILE_BYTES {
        return Err(unusable_file(path, "larger than 1 MiB".to_owned()));
    }
    Ok(text)
}

fn unusable_file(path: &Path, problem: String) -> IdentityError {
    IdentityError::File {
        path: path.display().to_string(),
        problem,
    }
}

/// An error's text with those of its causes, which tonic leaves out of its own.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = cause.source();
    }
    text
}

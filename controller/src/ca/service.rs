//! Who gets a certificate for what.
//!
//! The agent of a node, for the identity of a pod that is in the mesh and lives on that node: the agent
//! could read such a pod's memory anyway, so a stolen node gains nothing elsewhere. And the proxy of a
//! Gateway, for its own identity and no other.

use std::sync::Arc;

use karst_api::{
    IMPERSONATED_IDENTITY,
    ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::IstioCertificateService,
    },
};
use karst_core::NodeIdentity;
use prost_types::{Struct, value::Kind};
use tonic::{Request, Response, Status};
use tracing::{error, info};

use super::{
    authority::{Authority, CsrError},
    identity::Identity,
};
use crate::{
    auth::{Authenticator, Callers, NotPermitted, Proxy, Subject},
    metrics::{Metrics, Reason},
    store::Store,
};

/// Longest part of a caller's text that is logged, in characters.
const MAX_LOGGED_CHARS: usize = 300;

/// The signing service.
pub struct CertificateService {
    /// Signs.
    pub authority: Arc<Authority>,
    /// Knows which pods are where.
    pub store: Arc<Store>,
    /// Knows who is calling.
    pub authenticator: Arc<Authenticator>,
    /// May ask at all.
    pub callers: Callers,
    /// Counts.
    pub metrics: Metrics,
}

/// Why a request for a certificate is refused. The caller is at fault, except for `Signing`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    NotPermitted(NotPermitted),
    #[error("the request names no identity")]
    NoIdentity,
    #[error("the identity is not of the form spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/ACCOUNT")]
    BadIdentity,
    #[error("the identity is of another trust domain than {0}")]
    WrongTrustDomain(String),
    #[error("a gateway's proxy may ask for its own identity only, {0}")]
    NotOwn(String),
    #[error("no pod with that identity runs on the caller's node")]
    NotOnNode,
    #[error("no pod with that identity on the caller's node is in the mesh")]
    NotInMesh,
    #[error("{0}")]
    Csr(CsrError),
}

impl Refusal {
    /// Stable label for logs and metrics.
    fn reason(&self) -> &'static str {
        match self {
            Self::NotPermitted(NotPermitted::Account) => "ca_not_node_agent",
            Self::NotPermitted(NotPermitted::NoNode) => "ca_no_node",
            Self::NoIdentity => "ca_no_identity",
            Self::BadIdentity => "ca_bad_identity",
            Self::WrongTrustDomain(_) => "ca_wrong_trust_domain",
            Self::NotOwn(_) => "ca_identity_not_own",
            Self::NotOnNode => "ca_identity_not_on_node",
            Self::NotInMesh => "ca_identity_not_in_mesh",
            Self::Csr(CsrError::Key) => "ca_bad_key",
            Self::Csr(CsrError::Signing) => "ca_signing_failed",
            Self::Csr(_) => "ca_bad_csr",
        }
    }

    fn status(&self) -> Status {
        let message = format!("{}: {self}", self.reason());
        match self {
            Self::NoIdentity | Self::BadIdentity => Status::invalid_argument(message),
            Self::Csr(CsrError::Signing) => Status::internal(message),
            Self::Csr(_) => Status::invalid_argument(message),
            _ => Status::permission_denied(message),
        }
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let caller = self.authenticator.caller(request.metadata()).await?;
        let message = request.into_inner();
        let node = caller.node.clone().unwrap_or_default();
        let wanted = requested_identity(message.metadata.as_ref());
        let shown: String = wanted
            .unwrap_or_default()
            .chars()
            .take(MAX_LOGGED_CHARS)
            .collect();
        let account = caller.account.to_string();

        let issued = self
            .callers
            .subject(caller)
            .map_err(Refusal::NotPermitted)
            .and_then(|subject| self.permitted(&subject, wanted))
            .and_then(|identity| {
                self.authority
                    .sign(&identity, &message.csr, message.validity_duration)
                    .map_err(Refusal::Csr)
            });
        match issued {
            Ok(issued) => {
                self.metrics.ca_issued.inc();
                info!(identity = shown, node, not_after = %issued.not_after, "certificate issued");
                Ok(Response::new(IstioCertificateResponse {
                    cert_chain: issued.chain,
                }))
            }
            Err(refusal) => {
                let reason = refusal.reason();
                self.metrics
                    .ca_refused
                    .get_or_create(&Reason { reason })
                    .inc();
                if refusal == Refusal::Csr(CsrError::Signing) {
                    error!(reason, identity = shown, node, "certificate not signed");
                } else {
                    info!(reason, identity = shown, node, account, %refusal, "certificate refused");
                }
                Err(refusal.status())
            }
        }
    }
}

impl CertificateService {
    fn permitted(&self, subject: &Subject, wanted: Option<&str>) -> Result<Identity, Refusal> {
        let wanted = wanted.ok_or(Refusal::NoIdentity)?;
        let identity = Identity::parse(wanted).ok_or(Refusal::BadIdentity)?;
        let index = self.store.index();
        let trust_domain = &index.config().trust_domain;
        if identity.trust_domain != *trust_domain {
            return Err(Refusal::WrongTrustDomain(trust_domain.clone()));
        }
        if let Subject::Proxy(proxy) = subject {
            is_own(&identity, proxy)?;
        }
        let (namespace, account) = (&identity.namespace, &identity.service_account);
        match (
            index.identity_on_node(subject.node(), namespace, account),
            subject,
        ) {
            // A proxy is no pod that is captured, and need not be in the mesh like one.
            (NodeIdentity::InMesh, _) | (NodeIdentity::NotInMesh, Subject::Proxy(_)) => {
                Ok(identity)
            }
            (NodeIdentity::NotInMesh, Subject::Agent(_)) => Err(Refusal::NotInMesh),
            (NodeIdentity::Absent, _) => Err(Refusal::NotOnNode),
        }
    }
}

fn is_own(identity: &Identity, proxy: &Proxy) -> Result<(), Refusal> {
    let own = &proxy.account;
    if identity.namespace == own.namespace && identity.service_account == own.name {
        return Ok(());
    }
    Err(Refusal::NotOwn(format!(
        "spiffe://{}/ns/{}/sa/{}",
        identity.trust_domain, own.namespace, own.name
    )))
}

fn requested_identity(metadata: Option<&Struct>) -> Option<&str> {
    match metadata?.fields.get(IMPERSONATED_IDENTITY)?.kind.as_ref()? {
        Kind::StringValue(text) => Some(text),
        _ => None,
    }
}

//! The certificate authority of the controller, over gRPC.

use std::path::PathBuf;

use crate::{BoxFuture, CertificateAuthority, CertificateRequest, IdentityError, SignedChain};

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
pub struct GrpcCa {
    config: GrpcCaConfig,
}

impl GrpcCa {
    /// An authority that connects when it is first asked.
    #[must_use]
    pub fn new(config: GrpcCaConfig) -> Self {
        Self { config }
    }
}

impl CertificateAuthority for GrpcCa {
    fn sign(
        &self,
        _request: CertificateRequest,
    ) -> BoxFuture<'_, Result<SignedChain, IdentityError>> {
        Box::pin(async move {
            Err(IdentityError::AuthorityUnreachable {
                address: self.config.address.clone(),
                problem: "not connected".to_owned(),
            })
        })
    }
}

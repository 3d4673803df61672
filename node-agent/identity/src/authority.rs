//! What the manager asks of a certificate authority.

use std::future::Future;
use std::pin::Pin;

use crate::{IdentityError, SpiffeId};

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A request for one certificate.
#[derive(Clone, Debug)]
pub struct CertificateRequest {
    /// Whom the certificate is for.
    pub id: SpiffeId,
    /// The PKCS#10 request in PEM. The private key never leaves this process.
    pub csr_pem: String,
}

/// What an authority answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignedChain {
    /// The leaf and the intermediates, PEM, leaf first.
    pub chain_pem: String,
    /// The roots to trust, PEM.
    pub roots_pem: String,
}

/// Signs certificate requests.
pub trait CertificateAuthority: Send + Sync {
    /// Asks for a certificate. The manager limits the time and retries.
    fn sign(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<SignedChain, IdentityError>>;
}

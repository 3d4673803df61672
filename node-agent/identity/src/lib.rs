//! Workload identity: SPIFFE ids, the certificates that prove them, and where they come from.
//!
//! What it does: parses ids ([`SpiffeId`]), holds one certificate epoch with the TLS
//! configurations that belong to it ([`WorkloadCertificate`]), checks the certificate of a
//! peer ([`peer_identity`]), asks a certificate authority for certificates ([`GrpcCa`]) and
//! renews them in time ([`CertificateManager`]).
//!
//! What it does not: open sockets to peers (that is `karst-tunnel`), decide who may talk to
//! whom, or sign anything (the controller's CA does).
//!
//! Start reading at [`WorkloadCertificate`]; `tls.rs` holds the two verifiers.

mod authority;
mod certificate;
mod error;
mod grpc;
mod manager;
mod peer;
mod spiffe;
mod status;
mod tls;

pub use authority::{BoxFuture, CertificateAuthority, CertificateRequest, SignedChain};
pub use certificate::{CertificateEpoch, WorkloadCertificate};
pub use error::{Fault, IdentityError};
pub use grpc::{GrpcCa, GrpcCaConfig};
pub use manager::{CertificateEvents, CertificateManager, ManagerConfig, Urgency};
pub use peer::peer_identity;
pub use spiffe::{SpiffeId, TrustDomain};
pub use status::{CertificateState, CertificateStatus};
pub use tls::tls_failure;

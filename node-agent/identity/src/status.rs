//! What an operator sees of a certificate.

use std::time::SystemTime;

use crate::SpiffeId;

/// Whether a certificate can be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CertificateState {
    /// There is one and it is valid.
    Available,
    /// The first request is under way.
    Initializing,
    /// There is none; `reason` of [`CertificateStatus`] says why.
    Unavailable,
}

/// One identity of this node, for `karst inspect cert`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct CertificateStatus {
    /// Whose certificate.
    pub id: SpiffeId,
    /// Whether it can be used now.
    pub state: CertificateState,
    /// Serial number, lower-case hex. Empty without a certificate.
    pub serial: String,
    /// Start of validity, RFC 3339. Empty without a certificate.
    pub not_before: String,
    /// End of validity, RFC 3339. Empty without a certificate.
    pub not_after: String,
    /// Start and end of validity; `None` without a certificate.
    #[serde(skip)]
    pub validity: Option<(SystemTime, SystemTime)>,
    /// Certificates in the chain that is sent, the leaf included.
    pub chain_length: usize,
    /// Epoch number of the certificate in this process; 0 without one.
    pub epoch: u64,
    /// Label of the last failed request; empty when the last one went well.
    pub reason: String,
    /// Text of the last failure; empty when the last request went well.
    pub message: String,
}

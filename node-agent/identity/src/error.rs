//! One error type for identities and certificates, with the label logs and metrics share.

use std::time::SystemTime;

use crate::SpiffeId;

/// Who has to act for an error to go away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The other end of the connection.
    Peer,
    /// The application or host we connect to on a client's behalf.
    Upstream,
    /// The control plane: the controller or its certificate authority.
    ControlPlane,
    /// This node: its configuration, clock or resources.
    Local,
}

/// What can go wrong with an identity or a certificate.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Text that is not a SPIFFE id of a workload.
    #[error("invalid SPIFFE id {value:?}: {problem}")]
    InvalidSpiffeId {
        /// The text, cut to 128 characters.
        value: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The peer sent no certificate although one is required.
    #[error("the peer sent no certificate")]
    NoPeerCertificate,
    /// No root we trust vouches for the peer's certificate.
    #[error("the peer's certificate is not signed by a trusted root")]
    UnknownIssuer,
    /// The peer's certificate is past its end.
    #[error("the peer's certificate has expired")]
    Expired,
    /// The peer's certificate is before its start.
    #[error("the peer's certificate is not valid yet; compare the clocks of both nodes")]
    NotYetValid,
    /// The peer's certificate cannot be used for this (wrong purpose, bad signature, bad encoding).
    #[error("the peer's certificate is unusable: {problem}")]
    BadPeerCertificate {
        /// What is wrong with it.
        problem: String,
    },
    /// The peer's certificate does not carry exactly one URI name.
    #[error("the peer's certificate carries {count} URI names, exactly one is required")]
    UriNameCount {
        /// How many it carries.
        count: usize,
    },
    /// The peer's trust domain is not ours.
    #[error("the peer {peer} is not of the trust domain {expected}")]
    TrustDomainMismatch {
        /// Who the peer is.
        peer: SpiffeId,
        /// The trust domain we are in.
        expected: String,
    },
    /// The peer is someone else than the one we meant to reach.
    #[error("the peer is {actual}, expected {expected}")]
    IdentityMismatch {
        /// Who answered.
        actual: SpiffeId,
        /// Who should have.
        expected: SpiffeId,
    },
    /// The TLS handshake failed for a reason of the protocol.
    #[error("TLS handshake failed: {problem}")]
    Handshake {
        /// The TLS library's description.
        problem: String,
    },
    /// The peer refused our handshake.
    #[error("the peer refused the TLS handshake: {alert}")]
    RefusedByPeer {
        /// The alert's name.
        alert: String,
    },
    /// Material from the certificate authority or a caller that cannot be used.
    #[error("unusable certificate for {id}: {problem}")]
    UnusableCertificate {
        /// Whose certificate.
        id: SpiffeId,
        /// What is wrong with it.
        problem: String,
    },
    /// A key or certificate request could not be made on this node.
    #[error("cannot create a key or certificate request: {problem}")]
    KeyGeneration {
        /// The crypto library's description.
        problem: String,
    },
    /// A file of the configuration cannot be read or used.
    #[error("cannot use {path}: {problem}")]
    File {
        /// The file.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The certificate authority cannot be reached.
    #[error("certificate authority {address} cannot be reached: {problem}")]
    AuthorityUnreachable {
        /// Where it should be.
        address: String,
        /// The transport's description.
        problem: String,
    },
    /// The certificate authority refused the request.
    #[error("certificate authority refused ({code}): {message}")]
    AuthorityRefused {
        /// The gRPC status code's name.
        code: String,
        /// Its message.
        message: String,
    },
    /// The certificate authority gave no answer in time.
    #[error("certificate authority gave no answer within {seconds} s")]
    AuthorityTimeout {
        /// The time limit in seconds.
        seconds: u64,
    },
    /// There is no usable certificate for this workload.
    #[error("no certificate for {id}")]
    NoCertificate {
        /// Whose certificate is missing.
        id: SpiffeId,
    },
    /// Our own certificate is past its end and could not be renewed.
    #[error("the certificate of {id} has expired at {not_after:?} and was not renewed")]
    OwnExpired {
        /// Whose certificate.
        id: SpiffeId,
        /// When it ended.
        not_after: SystemTime,
    },
    /// More identities are wanted than the configured limit.
    #[error("more than {limit} identities are wanted on this node")]
    TooManyIdentities {
        /// The limit.
        limit: usize,
    },
}

impl IdentityError {
    /// The stable label of this error, shared by log, metric and command line.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidSpiffeId { .. } => "identity_invalid",
            Self::NoPeerCertificate => "tls_no_client_certificate",
            Self::UnknownIssuer => "tls_unknown_issuer",
            Self::Expired => "tls_expired",
            Self::NotYetValid => "tls_not_yet_valid",
            Self::BadPeerCertificate { .. } => "tls_bad_certificate",
            Self::UriNameCount { .. } => "identity_uri_count",
            Self::TrustDomainMismatch { .. } => "trust_domain_mismatch",
            Self::IdentityMismatch { .. } => "identity_mismatch",
            Self::Handshake { .. } => "tls_handshake_failed",
            Self::RefusedByPeer { .. } => "tls_refused_by_peer",
            Self::UnusableCertificate { .. } => "certificate_unusable",
            Self::KeyGeneration { .. } => "key_generation_failed",
            Self::File { .. } => "file_unusable",
            Self::AuthorityUnreachable { .. } => "ca_unreachable",
            Self::AuthorityRefused { .. } => "ca_refused",
            Self::AuthorityTimeout { .. } => "ca_timeout",
            Self::NoCertificate { .. } => "no_certificate",
            Self::OwnExpired { .. } => "certificate_expired",
            Self::TooManyIdentities { .. } => "too_many_identities",
        }
    }

    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::InvalidSpiffeId { .. }
            | Self::NoPeerCertificate
            | Self::UnknownIssuer
            | Self::Expired
            | Self::NotYetValid
            | Self::BadPeerCertificate { .. }
            | Self::UriNameCount { .. }
            | Self::TrustDomainMismatch { .. }
            | Self::IdentityMismatch { .. }
            | Self::Handshake { .. } => Fault::Peer,
            Self::UnusableCertificate { .. }
            | Self::AuthorityUnreachable { .. }
            | Self::AuthorityRefused { .. }
            | Self::AuthorityTimeout { .. }
            | Self::NoCertificate { .. }
            | Self::OwnExpired { .. } => Fault::ControlPlane,
            Self::RefusedByPeer { .. }
            | Self::KeyGeneration { .. }
            | Self::File { .. }
            | Self::TooManyIdentities { .. } => Fault::Local,
        }
    }
}

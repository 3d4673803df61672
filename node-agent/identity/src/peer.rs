//! Who the peer of a finished handshake is.

use std::time::SystemTime;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{IdentityError, SpiffeId, WorkloadCertificate};

/// The identity a peer's certificates prove, checked against our own epoch.
///
/// This runs after every handshake, a resumed one too: resumption restores the certificates of
/// an earlier handshake without verifying them again, so their validity is looked at here.
///
/// # Errors
/// No certificate, not exactly one URI name, not a SPIFFE id, another trust domain than ours,
/// or a certificate of the chain that is not valid at this moment.
pub fn peer_identity(
    certs: &[CertificateDer<'_>],
    own: &WorkloadCertificate,
) -> Result<SpiffeId, IdentityError> {
    let leaf = certs.first().ok_or(IdentityError::NoPeerCertificate)?;
    let id = uri_identity(leaf)?;
    if id.trust_domain() != own.id().trust_domain() {
        return Err(IdentityError::TrustDomainMismatch {
            peer: id,
            expected: own.id().trust_domain().to_owned(),
        });
    }
    let now = SystemTime::now();
    for certificate in certs {
        let (not_before, not_after, _) = validity(certificate)?;
        if now < not_before {
            return Err(IdentityError::NotYetValid);
        }
        if now > not_after {
            return Err(IdentityError::Expired);
        }
    }
    Ok(id)
}

/// The one URI name of a leaf as a SPIFFE id.
pub(crate) fn uri_identity(leaf: &CertificateDer<'_>) -> Result<SpiffeId, IdentityError> {
    let certificate = webpki::EndEntityCert::try_from(leaf).map_err(|error| {
        IdentityError::BadPeerCertificate {
            problem: error.to_string(),
        }
    })?;
    let mut names = certificate.valid_uri_names();
    match (names.next(), names.count()) {
        (Some(name), 0) => SpiffeId::parse(name),
        (None, _) => Err(IdentityError::UriNameCount { count: 0 }),
        (Some(_), more) => Err(IdentityError::UriNameCount { count: more + 1 }),
    }
}

/// Start, end and serial number (lower-case hex) of a certificate.
pub(crate) fn validity(
    certificate: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime, String), IdentityError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|error| {
        IdentityError::BadPeerCertificate {
            problem: error.to_string(),
        }
    })?;
    let validity = parsed.validity();
    let not_before = SystemTime::from(validity.not_before.to_datetime());
    let not_after = SystemTime::from(validity.not_after.to_datetime());
    let serial = format!("{:x}", parsed.tbs_certificate.serial);
    Ok((not_before, not_after, serial))
}

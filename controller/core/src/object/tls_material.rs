//! Certificates, keys and authorities in Secrets and ConfigMaps.
//!
//! Nothing else of a Secret or ConfigMap is kept in memory, and a key is neither logged nor shown.

use std::fmt;

use k8s_openapi::api::core::v1;
use rustls::{
    RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};

use crate::error::{Faults, ObjectError};

/// Key of the certificate chain in a Secret, leaf first.
const CERTIFICATE: &str = "tls.crt";

/// Key of the private key in a Secret.
const PRIVATE_KEY: &str = "tls.key";

/// Key of the authorities in a Secret or ConfigMap.
const AUTHORITIES: &str = "ca.crt";

/// Certificates in a chain; TLS clients refuse longer ones.
const MAX_CHAIN: usize = 16;

/// Authorities in one object. The operating systems' own sets have about 150.
const MAX_AUTHORITIES: usize = 1024;

/// What is of use in a Secret or ConfigMap. What is there and is not usable says why, as the end of a
/// sentence that begins with the object's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsMaterial {
    /// `None` if there is neither certificate nor key.
    pub(crate) pair: Option<Result<KeyPair, String>>,
    /// `None` if there are none.
    pub(crate) authorities: Option<Result<String, String>>,
}

/// A certificate with its key.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyPair {
    /// PEM, leaf first.
    pub(crate) chain: String,
    /// PEM. Never logged.
    pub(crate) key: Vec<u8>,
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").finish_non_exhaustive()
    }
}

/// `None` when there is nothing in it that concerns the mesh; the rest is not kept in memory.
pub(crate) fn of_secret(
    object: &v1::Secret,
    faults: &Faults,
    findings: &mut Vec<ObjectError>,
) -> Option<Box<TlsMaterial>> {
    let entry = |key: &str| {
        let text = object.string_data.as_ref().and_then(|data| data.get(key));
        let bytes = object.data.as_ref().and_then(|data| data.get(key));
        text.map(String::as_bytes)
            .or(bytes.map(|bytes| bytes.0.as_slice()))
    };
    let is_tls = object.type_.as_deref() == Some("kubernetes.io/tls");
    let pair = match (entry(CERTIFICATE), entry(PRIVATE_KEY)) {
        (None, None) => is_tls.then(|| Err(format!("has neither {CERTIFICATE} nor {PRIVATE_KEY}"))),
        (None, Some(_)) => Some(Err(format!("has no {CERTIFICATE}"))),
        (Some(_), None) => Some(Err(format!("has no {PRIVATE_KEY}"))),
        (Some(chain), Some(key)) => Some(key_pair(chain, key)),
    };
    let material = TlsMaterial {
        pair,
        authorities: entry(AUTHORITIES).map(authorities),
    };
    // Other things are called so as well, so it is a fault of those alone that say they are for TLS.
    if is_tls && let Some(Err(problem)) = &material.pair {
        findings.push(unusable(faults, "data", problem));
    }
    material.kept()
}

/// `None` when there is nothing in it that concerns the mesh; the rest is not kept in memory.
pub(crate) fn of_config_map(
    object: &v1::ConfigMap,
    _faults: &Faults,
    _findings: &mut Vec<ObjectError>,
) -> Option<Box<TlsMaterial>> {
    let text = object.data.as_ref().and_then(|data| data.get(AUTHORITIES));
    let bytes = object.binary_data.as_ref();
    let bytes = bytes.and_then(|data| data.get(AUTHORITIES));
    let entry = text
        .map(String::as_bytes)
        .or(bytes.map(|bytes| bytes.0.as_slice()));
    let material = TlsMaterial {
        pair: None,
        authorities: entry.map(authorities),
    };
    material.kept()
}

impl TlsMaterial {
    fn kept(self) -> Option<Box<Self>> {
        (self.pair.is_some() || self.authorities.is_some()).then(|| Box::new(self))
    }
}

fn unusable(faults: &Faults, field: &str, problem: &str) -> ObjectError {
    faults.error(
        field,
        problem,
        "store a PEM certificate chain and its key; until then it serves nowhere",
    )
}

/// The same check as a proxy makes, so that what is sent to it is usable there.
fn key_pair(chain: &[u8], key: &[u8]) -> Result<KeyPair, String> {
    let certificates = certificates(CERTIFICATE, chain, MAX_CHAIN)?;
    let private_key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| format!("has a {PRIVATE_KEY} without a private key in PEM form"))?;
    let provider = aws_lc_rs::default_provider();
    CertifiedKey::from_der(certificates, private_key, &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            format!(
                "has a {PRIVATE_KEY} that does not belong to the first certificate in {CERTIFICATE}"
            )
        }
        rustls::Error::InvalidCertificate(_) => {
            format!("has a {CERTIFICATE} whose first certificate is malformed")
        }
        _ => format!("has a {PRIVATE_KEY} of a kind that is not supported"),
    })?;
    Ok(KeyPair {
        chain: text(CERTIFICATE, chain)?,
        key: key.to_vec(),
    })
}

fn authorities(pem: &[u8]) -> Result<String, String> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(AUTHORITIES, pem, MAX_AUTHORITIES)? {
        store
            .add(certificate)
            .map_err(|_| format!("has a {AUTHORITIES} with a malformed certificate"))?;
    }
    text(AUTHORITIES, pem)
}

fn certificates(
    key: &str,
    pem: &[u8],
    most: usize,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = read.map_err(|_| format!("has a {key} that is not in PEM form"))?;
    match certificates.len() {
        0 => Err(format!("has a {key} without a certificate in PEM form")),
        count if count > most => Err(format!(
            "has a {key} with {count} certificates, more than {most}"
        )),
        _ => Ok(certificates),
    }
}

fn text(key: &str, pem: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(pem).map_err(|_| format!("has a {key} that is no text"))?;
    Ok(text.to_owned())
}

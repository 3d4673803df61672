//! The signing key, and what is signed with it.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData,
    SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};
use x509_parser::{parse_x509_certificate, pem::Pem};

use super::{identity::Identity, state};

/// Lifetime of a root that we make.
const ROOT_LIFETIME: Duration = Duration::days(3650);

/// Certificates are valid from a little before now, because clocks differ.
const BACKDATE: Duration = Duration::minutes(2);

/// Shortest lifetime that is granted; less could not be renewed in time.
const MIN_LIFETIME: Duration = Duration::minutes(1);

/// Lifetime of the controller's own serving certificate.
pub const SERVING_LIFETIME: Duration = Duration::hours(24);

/// Bytes of a random serial number (RFC 5280 allows 20).
const SERIAL_BYTES: usize = 16;

/// Longest signing request in bytes of PEM; one for a P-256 key has about 500.
const MAX_CSR_BYTES: usize = 16 * 1024;

/// Where the authority comes from.
#[derive(Debug, Clone)]
pub enum AuthoritySource {
    /// Made once and kept in the state folder.
    SelfMade {
        /// The state folder.
        state: PathBuf,
    },
    /// Brought by the operator.
    PluggedIn {
        /// Signing certificate, followed by its chain up to the root if that is another one.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
        /// The roots to be trusted.
        root: PathBuf,
    },
}

/// What an authority is made of.
pub struct Material {
    /// The signing key, PEM.
    pub key: String,
    /// Signing certificate, followed by its chain; PEM.
    pub certificates: String,
    /// The roots to be trusted, PEM.
    pub roots: String,
}

/// A root that was just made.
pub struct MadeRoot {
    /// Its key, PEM.
    pub key: String,
    /// Its certificate, PEM.
    pub certificate: String,
}

/// A signing request that is not acceptable. The caller is at fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Too large.
    #[error("the signing request is larger than {MAX_CSR_BYTES} bytes")]
    TooLarge,
    /// Not a signing request, or its signature does not match.
    #[error("the signing request cannot be read or its signature is not valid")]
    Invalid,
    /// A key of another kind.
    #[error("the key is not ECDSA P-256 or P-384")]
    Key,
    /// Not the caller's fault.
    #[error("signing failed")]
    Signing,
}

/// The certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Between leaf and root; PEM, one certificate a string.
    intermediates: Vec<String>,
    roots: Vec<String>,
    not_after: OffsetDateTime,
    default_lifetime: Duration,
    max_lifetime: Duration,
}

/// A certificate with its chain.
pub struct Issued {
    /// Leaf first; PEM, one certificate a string. The last string is different: it has all roots,
    /// as whoever reads this takes the last for what is to be trusted, and the others for the chain.
    pub chain: Vec<String>,
    /// When the leaf ends.
    pub not_after: OffsetDateTime,
}

impl Authority {
    /// Loads the authority, or makes it.
    ///
    /// # Errors
    /// When a file cannot be read or written, or what it holds does not fit together.
    pub fn open(
        source: &AuthoritySource,
        trust_domain: &str,
        default_lifetime: Duration,
        max_lifetime: Duration,
    ) -> anyhow::Result<Self> {
        let material = match source {
            AuthoritySource::SelfMade { state } => {
                let make = || {
                    let root = make_root(trust_domain)?;
                    Ok(root.key + &root.certificate)
                };
                let text = state::load_or_create(state, make)?;
                Material {
                    key: text.clone(),
                    certificates: text.clone(),
                    roots: text,
                }
            }
            AuthoritySource::PluggedIn {
                certificate,
                key,
                root,
            } => Material {
                key: state::read_private(key)?,
                certificates: read(certificate)?,
                roots: read(root)?,
            },
        };
        Self::new(&material, default_lifetime, max_lifetime)
    }

    /// Makes the authority of its parts.
    ///
    /// # Errors
    /// When they do not fit together.
    pub fn new(
        material: &Material,
        default_lifetime: Duration,
        max_lifetime: Duration,
    ) -> anyhow::Result<Self> {
        let certificates = pem_certificates(&material.certificates);
        let roots = pem_certificates(&material.roots);
        ensure!(!roots.is_empty(), "no root certificate was found");
        let (signer, chain) = certificates
            .split_first()
            .context("no signing certificate was found")?;
        let key = pem_blocks(&material.key)
            .into_iter()
            .find(|block| block.label.ends_with("PRIVATE KEY"))
            .context("no private key was found")?;
        let key = KeyPair::from_pem(&encode(&key)).context("reading the signing key")?;
        let der = CertificateDer::from(signer.contents.clone());
        let not_after = check_signer(&der, &key)?;
        let root_texts: Vec<String> = roots.iter().map(encode).collect();
        let mut intermediates: Vec<String> = Vec::new();
        for certificate in std::iter::once(signer).chain(chain) {
            let text = encode(certificate);
            // Istio's chain file repeats the signing certificate.
            if !root_texts.contains(&text) && !intermediates.contains(&text) {
                intermediates.push(text);
            }
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, key)
                .context("reading the signing certificate")?,
            intermediates,
            roots: root_texts,
            not_after,
            default_lifetime,
            max_lifetime,
        })
    }

    /// The roots to be trusted, as one PEM text.
    pub fn roots_pem(&self) -> String {
        self.roots.concat()
    }

    /// Signs a workload certificate. Only the request's key is used; everything else in it is
    /// replaced. `wanted_seconds` of 0 or less asks for the default lifetime.
    ///
    /// # Errors
    /// When the request is not acceptable.
    pub fn sign(
        &self,
        identity: &Identity,
        csr_pem: &str,
        wanted_seconds: i64,
    ) -> Result<Issued, CsrError> {
        if csr_pem.len() > MAX_CSR_BYTES {
            return Err(CsrError::TooLarge);
        }
        let request =
            CertificateSigningRequestParams::from_pem(csr_pem).map_err(|_| CsrError::Invalid)?;
        let key = &request.public_key;
        check_key(key)?;
        let uri = identity.to_string().try_into();
        let mut params = leaf(vec![SanType::URI(uri.map_err(|_| CsrError::Signing)?)]);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let wanted = match wanted_seconds {
            ..=0 => self.default_lifetime,
            seconds => Duration::seconds(seconds),
        };
        let not_after = self.limit(&mut params, wanted.min(self.max_lifetime));
        let certificate = params
            .signed_by(key, &self.issuer)
            .map_err(|_| CsrError::Signing)?;
        Ok(Issued {
            chain: self.chain(certificate.pem()),
            not_after,
        })
    }

    /// Makes a certificate for the controller's own server. Returns the chain without the root,
    /// the key, and when the certificate ends.
    ///
    /// # Errors
    /// When a name is not a DNS name or IP address, or signing fails.
    pub fn serving(
        &self,
        names: &[String],
    ) -> anyhow::Result<(
        Vec<CertificateDer<'static>>,
        PrivateKeyDer<'static>,
        OffsetDateTime,
    )> {
        let sans = names.iter().map(|name| {
            Ok(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            })
        });
        let mut params = leaf(sans.collect::<Result<_, rcgen::Error>>()?);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let not_after = self.limit(&mut params, SERVING_LIFETIME);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let intermediates = self.intermediates.concat();
        let chain = std::iter::once(certificate.der().clone()).chain(
            pem_certificates(&intermediates)
                .into_iter()
                .map(|block| CertificateDer::from(block.contents)),
        );
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((chain.collect(), PrivateKeyDer::Pkcs8(key), not_after))
    }

    /// Sets the times: no leaf outlives the authority itself.
    fn limit(&self, params: &mut CertificateParams, lifetime: Duration) -> OffsetDateTime {
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATE;
        params.not_after = (now + lifetime.max(MIN_LIFETIME)).min(self.not_after);
        params.not_after
    }

    fn chain(&self, leaf: String) -> Vec<String> {
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().cloned());
        chain.push(self.roots_pem());
        chain
    }
}

/// A leaf certificate with nothing but names and the usual key usage.
fn leaf(names: Vec<SanType>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(serial());
    params
}

fn serial() -> SerialNumber {
    let mut bytes: [u8; SERIAL_BYTES] = rand::random();
    // Positive, and without a leading zero byte.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// The algorithm of a request is that of its signature; the length of the point says whether the
/// key is on the curve that goes with it.
fn check_key(key: &rcgen::PublicKey) -> Result<(), CsrError> {
    let algorithm = PublicKeyData::algorithm(key);
    let length = key.der_bytes().len();
    let p256 = *algorithm == rcgen::PKCS_ECDSA_P256_SHA256 && length == 65;
    let p384 = *algorithm == rcgen::PKCS_ECDSA_P384_SHA384 && length == 97;
    if p256 || p384 {
        Ok(())
    } else {
        Err(CsrError::Key)
    }
}

/// Makes a root.
///
/// # Errors
/// When the system has no randomness, or the trust domain is not one.
pub fn make_root(trust_domain: &str) -> anyhow::Result<MadeRoot> {
    let key = KeyPair::generate().context("making the root key")?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain);
    params
        .distinguished_name
        .push(DnType::CommonName, "Karst mesh root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + ROOT_LIFETIME;
    let certificate = params.self_signed(&key).context("signing the root")?;
    tracing::info!(trust_domain, "mesh root made");
    Ok(MadeRoot {
        key: key.serialize_pem(),
        certificate: certificate.pem(),
    })
}

/// Checks that the certificate may sign and belongs to the key. Returns when it ends.
fn check_signer(der: &CertificateDer<'_>, key: &KeyPair) -> anyhow::Result<OffsetDateTime> {
    let (_, certificate) =
        parse_x509_certificate(der).context("reading the signing certificate")?;
    ensure!(
        certificate.is_ca(),
        "the signing certificate is not one of a certificate authority"
    );
    ensure!(
        certificate.public_key().subject_public_key.data.as_ref() == key.der_bytes(),
        "the signing certificate and the signing key do not belong together"
    );
    let not_after = certificate.validity().not_after.to_datetime();
    ensure!(
        not_after > OffsetDateTime::now_utc(),
        "the signing certificate ended at {not_after}"
    );
    Ok(not_after)
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn pem_blocks(text: &str) -> Vec<Pem> {
    Pem::iter_from_buffer(text.as_bytes()).flatten().collect()
}

/// The certificates in a text.
pub(super) fn pem_certificates(text: &str) -> Vec<Pem> {
    let mut blocks = pem_blocks(text);
    blocks.retain(|block| block.label == "CERTIFICATE");
    blocks
}

/// PEM in one normal form, so that equal certificates are equal texts.
fn encode(block: &Pem) -> String {
    /// Base64 characters in a line.
    const LINE: usize = 64;

    let base64 = BASE64.encode(&block.contents);
    let label = &block.label;
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in base64.as_bytes().chunks(LINE) {
        text.extend(line.iter().copied().map(char::from));
        text.push('\n');
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::identity::Identity;

    #[test]
    fn all_roots_are_the_last_part_of_a_chain() {
        let (used, other) = (make_root("t").unwrap(), make_root("t").unwrap());
        let material = Material {
            key: used.key,
            certificates: used.certificate.clone(),
            roots: used.certificate + &other.certificate,
        };
        let authority = Authority::new(&material, Duration::HOUR, Duration::HOUR).unwrap();
        let identity = Identity::parse("spiffe://t/ns/a/sa/b").unwrap();
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::default().serialize_request(&key);
        let request = request.unwrap().pem().unwrap();
        let chain = authority.sign(&identity, &request, 0).unwrap().chain;
        assert_eq!(chain.len(), 2);
        assert_eq!(pem_certificates(&chain[0]).len(), 1);
        assert_eq!(
            pem_certificates(&chain[1]),
            pem_certificates(&material.roots)
        );
    }
}

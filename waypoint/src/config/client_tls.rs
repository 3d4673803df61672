//! TLS towards the applications of a backend (`BackendTLSPolicy` of the Gateway API).

use std::path::Path;
use std::sync::{Arc, OnceLock};

use karst_api::waypoint as wire;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::secret::{Lookup, Secret, Secrets, provider, root_store};
use super::{ConfigError, at_most};
use crate::table::Hostname;
use crate::upstream::BackendTlsConfig;

/// Names, one of which a certificate must carry. The Gateway API allows 5.
const MAX_NAMES: usize = 64;

/// Sessions that are remembered for resumption, about 3 KiB each.
const SESSIONS: usize = 64;

/// Where distributions keep the authorities of the operating system; the first that is there is read.
const SYSTEM_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Names of the secrets that a backend's TLS needs.
pub(super) fn secrets(wire: &wire::BackendTls) -> impl Iterator<Item = &str> {
    let certificate = Some(wire.client_certificate.as_str()).filter(|name| !name.is_empty());
    wire.authorities
        .iter()
        .map(String::as_str)
        .chain(certificate)
}

/// A configuration with what it was made of.
#[derive(Clone)]
pub(super) struct Built {
    wire: wire::BackendTls,
    inputs: Vec<Arc<Secret>>,
    pub(super) config: Arc<BackendTlsConfig>,
}

/// Makes the configuration, or takes the one that was made of the same: connections of another one are of no use
/// to it.
///
/// # Errors
/// When something it needs is not there or cannot be used. Requests must fail then, never go out in clear.
pub(super) fn build(
    wire: &wire::BackendTls,
    secrets: &Secrets,
    former: Option<Built>,
) -> Result<Built, ConfigError> {
    let found = self::secrets(wire).filter_map(|name| match secrets.get(name) {
        Lookup::Found(secret) => Some(Arc::clone(secret)),
        Lookup::Rejected | Lookup::Missing => None,
    });
    let inputs: Vec<_> = found.collect();
    if let Some(former) = former
        && former.wire == *wire
        && former.inputs.len() == inputs.len()
        && former
            .inputs
            .iter()
            .zip(&inputs)
            .all(|(a, b)| Arc::ptr_eq(a, b))
    {
        return Ok(former);
    }
    let server_name = ServerName::try_from(wire.hostname.clone()).map_err(|_| {
        ConfigError::new(
            "hostname",
            format!("is {:?}, which is no host name", wire.hostname),
        )
    })?;
    let config = client_config(wire, &server_name, secrets)?;
    Ok(Built {
        wire: wire.clone(),
        inputs,
        config: Arc::new(BackendTlsConfig::new(config, server_name)),
    })
}

fn client_config(
    wire: &wire::BackendTls,
    server_name: &ServerName<'static>,
    secrets: &Secrets,
) -> Result<ClientConfig, ConfigError> {
    at_most("subject_alt_names", wire.subject_alt_names.len(), MAX_NAMES)?;
    let names = match wire.subject_alt_names.as_slice() {
        [] => vec![Name::Server(server_name.clone())],
        names => names
            .iter()
            .enumerate()
            .map(|(index, name)| {
                Name::new(name)
                    .map_err(|error| error.within(format_args!("subject_alt_names[{index}]")))
            })
            .collect::<Result<_, _>>()?,
    };
    let verifier = Verifier {
        roots: roots(wire, secrets)?,
        names,
        algorithms: provider().signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| ConfigError::new("tls", error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = if wire.client_certificate.is_empty() {
        builder.with_no_client_auth()
    } else {
        let certificate = match secrets.get(&wire.client_certificate) {
            Lookup::Found(secret) => secret.certificate.as_ref(),
            Lookup::Rejected | Lookup::Missing => None,
        };
        let Some(certificate) = certificate else {
            let problem = format!("{:?} is not there or has no key", wire.client_certificate);
            return Err(ConfigError::new("client_certificate", problem));
        };
        let key = SingleCertAndKey::from(Arc::clone(&certificate.key));
        builder.with_client_cert_resolver(Arc::new(key))
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}

fn roots(wire: &wire::BackendTls, secrets: &Secrets) -> Result<Arc<RootCertStore>, ConfigError> {
    let found = wire
        .authorities
        .iter()
        .filter_map(|name| match secrets.get(name) {
            Lookup::Found(secret) => Some(&secret.authorities),
            Lookup::Rejected | Lookup::Missing => None,
        });
    let system: &[CertificateDer<'static>] = if wire.system_authorities {
        system_authorities()
    } else {
        &[]
    };
    let roots = root_store(found.flatten().chain(system));
    if roots.is_empty() {
        let problem = if wire.system_authorities {
            "has none: this machine has no bundle of authorities"
        } else {
            "has none that is there and can be used"
        };
        return Err(ConfigError::new("authorities", problem));
    }
    Ok(Arc::new(roots))
}

/// For connections of our own to servers that the operating system's authorities vouch for.
///
/// # Errors
/// The machine has no bundle of authorities, so that no server could prove who it is.
pub(crate) fn system_client_config() -> Result<Arc<ClientConfig>, TlsError> {
    let roots = root_store(system_authorities());
    if roots.is_empty() {
        let problem = "this machine has no bundle of authorities";
        return Err(TlsError::General(problem.to_owned()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_safe_default_protocol_versions()?;
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    Ok(Arc::new(config))
}

/// Read once: an image does not change while it runs.
fn system_authorities() -> &'static [CertificateDer<'static>] {
    static AUTHORITIES: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    AUTHORITIES.get_or_init(|| {
        // The variable is OpenSSL's, and everybody's since.
        let named = std::env::var_os("SSL_CERT_FILE");
        let files = named.iter().map(Path::new);
        let mut files = files.chain(SYSTEM_BUNDLES.iter().map(Path::new));
        let found = files.find_map(|file| {
            let list = CertificateDer::pem_file_iter(file).ok()?;
            let list: Vec<_> = list.filter_map(Result::ok).collect();
            (!list.is_empty()).then_some(list)
        });
        found.unwrap_or_default()
    })
}

/// A name that a certificate may carry.
#[derive(Debug)]
enum Name {
    /// A host name or address; certificates may have a wildcard for it.
    Server(ServerName<'static>),
    /// Any host name like this, or this very wildcard.
    Wildcard(Hostname),
    Uri(String),
}

impl Name {
    fn new(wire: &wire::SubjectAltName) -> Result<Self, ConfigError> {
        match &wire.kind {
            Some(wire::subject_alt_name::Kind::Hostname(name)) if name.starts_with("*.") => {
                Hostname::parse(name)
                    .map(Self::Wildcard)
                    .map_err(|problem| ConfigError::new("hostname", problem))
            }
            Some(wire::subject_alt_name::Kind::Hostname(name)) => {
                ServerName::try_from(name.clone())
                    .map(Self::Server)
                    .map_err(|_| {
                        ConfigError::new("hostname", format!("is {name:?}, which is no host name"))
                    })
            }
            Some(wire::subject_alt_name::Kind::Uri(uri)) if !uri.is_empty() => {
                Ok(Self::Uri(uri.clone()))
            }
            Some(wire::subject_alt_name::Kind::Uri(_)) => Err(ConfigError::new("uri", "is empty")),
            None => Err(ConfigError::new("kind", "is neither a host name nor a URI")),
        }
    }

    fn is_in(&self, certificate: &ParsedCertificate<'_>, der: &CertificateDer<'_>) -> bool {
        match self {
            Self::Server(name) => verify_server_name(certificate, name).is_ok(),
            Self::Wildcard(wanted) => webpki::EndEntityCert::try_from(der).is_ok_and(|leaf| {
                let mut names = leaf.valid_dns_names().map(Hostname::parse);
                names.any(|name| match name {
                    Ok(Hostname::Exact(name)) => wanted.matches(&name),
                    Ok(name @ Hostname::Suffix(_)) => name == *wanted,
                    Err(_) => false,
                })
            }),
            Self::Uri(wanted) => webpki::EndEntityCert::try_from(der)
                .is_ok_and(|leaf| leaf.valid_uri_names().any(|uri| uri == wanted)),
        }
    }
}

/// Verifies the chain, and that the certificate carries one of the names.
#[derive(Debug)]
struct Verifier {
    roots: Arc<RootCertStore>,
    names: Vec<Name>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if self
            .names
            .iter()
            .any(|name| name.is_in(&certificate, end_entity))
        {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::NotValidForName.into())
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
#[path = "client_tls_tests.rs"]
mod tests;

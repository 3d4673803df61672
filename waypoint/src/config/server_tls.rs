//! TLS of a gateway's listeners.

use std::sync::Arc;

use karst_api::waypoint as wire;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error as TlsError, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::ConfigError;
use super::secret::{Lookup, Secret, Secrets, provider, root_store};
use crate::table::Hostname;

/// What a listener that ends TLS needs.
#[derive(Clone, PartialEq)]
pub(super) struct ServerTls {
    certificates: Vec<String>,
    validation: Option<wire::ClientValidation>,
    versions: Versions,
    alpn: Alpn,
}

#[derive(Clone, Copy, PartialEq)]
enum Versions {
    Tls12,
    Tls13,
    Both,
}

/// What clients may choose by ALPN.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Alpn {
    /// HTTP/2 and HTTP/1.1.
    Http,
    /// Nothing: bytes are passed on.
    Bytes,
}

/// A configuration with what it was made of.
#[derive(Clone)]
pub(super) struct Built {
    inputs: Vec<Arc<Secret>>,
    pub(super) config: Arc<ServerConfig>,
}

impl ServerTls {
    pub(super) fn new(wire: &wire::GatewayListener, alpn: Alpn) -> Result<Self, ConfigError> {
        use wire::TlsVersion::{Tls12, Tls13, TlsAuto};
        let version = |field: &str, number: i32| {
            wire::TlsVersion::try_from(number).map_err(|_| {
                ConfigError::new(
                    field,
                    format!("is {number}, which is not known to this version"),
                )
            })
        };
        let lowest = version("tls_min", wire.tls_min)?;
        let highest = version("tls_max", wire.tls_max)?;
        let versions = match (lowest, highest) {
            (TlsAuto | Tls12, TlsAuto | Tls13) => Versions::Both,
            (TlsAuto | Tls12, Tls12) => Versions::Tls12,
            (Tls13, TlsAuto | Tls13) => Versions::Tls13,
            (Tls13, Tls12) => return Err(ConfigError::new("tls_max", "is below tls_min")),
        };
        Ok(Self {
            certificates: wire.certificates.clone(),
            validation: wire.client_validation.clone(),
            versions,
            alpn,
        })
    }

    /// Names of the secrets it needs.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        let authorities = self.validation.iter().flat_map(|v| &v.authorities);
        self.certificates
            .iter()
            .chain(authorities)
            .map(String::as_str)
    }

    /// Makes the configuration, or takes the one that was made of the same. With several certificates those that
    /// cannot be used are left out.
    pub(super) fn build(
        &self,
        secrets: &Secrets,
        former: Option<Built>,
    ) -> Result<Built, ConfigError> {
        let found = |names: &[String]| {
            let found = names.iter().filter_map(|name| match secrets.get(name) {
                Lookup::Found(secret) => Some(Arc::clone(secret)),
                Lookup::Rejected | Lookup::Missing => None,
            });
            found.collect::<Vec<_>>()
        };
        let certificates = found(&self.certificates);
        let authorities = found(self.validation.as_ref().map_or(&[], |v| &v.authorities));
        let inputs = || certificates.iter().chain(&authorities);
        if let Some(former) = former
            && former.inputs.len() == inputs().count()
            && former
                .inputs
                .iter()
                .zip(inputs())
                .all(|(a, b)| Arc::ptr_eq(a, b))
        {
            return Ok(former);
        }
        let config = self.config(&certificates, &authorities)?;
        Ok(Built {
            inputs: inputs().cloned().collect(),
            config: Arc::new(config),
        })
    }

    fn config(
        &self,
        certificates: &[Arc<Secret>],
        authorities: &[Arc<Secret>],
    ) -> Result<ServerConfig, ConfigError> {
        let resolver = Resolver::new(certificates);
        if resolver.certificates.is_empty() {
            return Err(ConfigError::new(
                "certificates",
                "has none that can be used",
            ));
        }
        let general = |error: TlsError| ConfigError::new("tls", error.to_string());
        let versions: &[&SupportedProtocolVersion] = match self.versions {
            Versions::Tls12 => &[&rustls::version::TLS12],
            Versions::Tls13 => &[&rustls::version::TLS13],
            Versions::Both => &[&rustls::version::TLS13, &rustls::version::TLS12],
        };
        let builder = ServerConfig::builder_with_provider(Arc::clone(provider()))
            .with_protocol_versions(versions)
            .map_err(general)?;
        let resolver = Arc::new(resolver);
        let mut config = match &self.validation {
            None => {
                let builder = builder.with_no_client_auth();
                let mut config = builder.with_cert_resolver(resolver);
                config.ticketer = aws_lc_rs::Ticketer::new().map_err(general)?;
                config
            }
            Some(validation) => {
                let verifier = verifier(validation, authorities)?;
                let builder = builder.with_client_cert_verifier(verifier);
                let mut config = builder.with_cert_resolver(resolver);
                // A resumed session would not be verified against the authorities of the day.
                config.session_storage = Arc::new(NoServerSessionStorage {});
                config.send_tls13_tickets = 0;
                config
            }
        };
        if self.alpn == Alpn::Http {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Ok(config)
    }
}

/// Chooses the certificate for a server name.
#[derive(Debug)]
struct Resolver {
    certificates: Vec<(Vec<Hostname>, Arc<CertifiedKey>)>,
}

impl Resolver {
    fn new(secrets: &[Arc<Secret>]) -> Self {
        let usable = secrets.iter().filter_map(|secret| {
            let certificate = secret.certificate.as_ref()?;
            Some((certificate.names.clone(), Arc::clone(&certificate.key)))
        });
        Self {
            certificates: usable.collect(),
        }
    }

    /// The certificate with the most specific name for the server name, and of equals the first; the first of
    /// all if none fits. One that the client cannot verify is taken only if there is no other.
    fn choose(
        &self,
        server_name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<&Arc<CertifiedKey>> {
        let fit = |names: &[Hostname]| {
            let fits = |name: &&Hostname| server_name.is_some_and(|wanted| covers(name, wanted));
            names.iter().filter(fits).map(Hostname::specificity).max()
        };
        let mut best: Option<(_, &Arc<CertifiedKey>)> = None;
        for (names, key) in &self.certificates {
            let rank = (key.key.choose_scheme(schemes).is_some(), fit(names));
            if best.as_ref().is_none_or(|(former, _)| rank > *former) {
                best = Some((rank, key));
            }
        }
        best.map(|(_, key)| key)
    }
}

/// In a certificate, unlike in a listener, a wildcard is one label (RFC 9525 6.3).
fn covers(name: &Hostname, server_name: &str) -> bool {
    match name {
        Hostname::Exact(_) => name.matches(server_name),
        Hostname::Suffix(suffix) => server_name
            .strip_suffix(suffix.as_str())
            .is_some_and(|label| !label.is_empty() && !label.contains('.')),
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        self.choose(name.as_deref(), hello.signature_schemes())
            .cloned()
    }
}

fn verifier(
    validation: &wire::ClientValidation,
    authorities: &[Arc<Secret>],
) -> Result<Arc<dyn ClientCertVerifier>, ConfigError> {
    let roots = root_store(authorities.iter().flat_map(|secret| &secret.authorities));
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider()));
    let strict = builder.build().map_err(|error| {
        // Without authorities nobody can be verified, and to ask nobody would let everybody in.
        ConfigError::new("client_validation.authorities", error.to_string())
    })?;
    if validation.allow_insecure_fallback {
        Ok(Arc::new(Lenient(strict)))
    } else {
        Ok(strict)
    }
}

/// Asks for a certificate and takes what comes (`AllowInsecureFallback` of the Gateway API). Whoever shows one
/// must still have its key.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
#[path = "server_tls_tests.rs"]
mod tests;

//! The TLS configurations of one certificate epoch and what their failures mean.
//!
//! TLS 1.3 only, AES-128-GCM before AES-256-GCM before ChaCha20-Poly1305, X25519MLKEM768
//! preferred, ALPN `h2`. The crypto provider is passed explicitly everywhere: an implicit
//! process default panics once a second provider is linked in.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error as TlsError,
    OtherError, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::peer::uri_identity;
use crate::{IdentityError, SpiffeId};

/// The one application protocol of the tunnel.
const ALPN_H2: &[u8] = b"h2";

/// Sessions a client configuration remembers, i.e. addresses of one identity it can resume
/// with. One session holds a certificate chain and a ticket, about 3 KiB.
const CLIENT_SESSIONS: usize = 64;

/// Tickets a server sends after a handshake. One is enough for a pool that keeps its
/// connections: it is used for the next connection, which brings another.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// The provider with the suites in our order. Built once: it is the same for all epochs.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        let mut provider = aws_lc_rs::default_provider();
        provider.cipher_suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        provider.kx_groups = vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ];
        Arc::new(provider)
    }))
}

/// Builds the server side of an epoch.
pub(crate) fn server_config(
    key: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    trust_domain: &str,
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let chain =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| TlsError::General(error.to_string()))?;
    let verifier = ClientVerifier {
        chain,
        trust_domain: trust_domain.into(),
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
    Ok(config)
}

/// Builds the client side of an epoch for one expected peer.
pub(crate) fn client_config(
    key: &Arc<CertifiedKey>,
    roots: &Arc<RootCertStore>,
    expected: &SpiffeId,
) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = PeerVerifier {
        roots: Arc::clone(roots),
        expected: expected.clone(),
        algorithms: provider.signature_verification_algorithms,
    };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(key))));
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::in_memory_sessions(CLIENT_SESSIONS);
    Ok(config)
}

/// Verifies a server by its chain and its SPIFFE id; names and addresses mean nothing here.
#[derive(Debug)]
struct PeerVerifier {
    roots: Arc<RootCertStore>,
    expected: SpiffeId,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let actual = uri_identity(end_entity).map_err(into_tls)?;
        if actual != self.expected {
            return Err(into_tls(IdentityError::IdentityMismatch {
                actual,
                expected: self.expected.clone(),
            }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        // TLS 1.2 is never offered.
        Err(TlsError::PeerIncompatible(
            rustls::PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Verifies a client by its chain, and that it names one workload of our trust domain.
///
/// [`crate::peer_identity`] checks the latter again after every handshake; here it is so that
/// the client gets an alert instead of a connection that ends without a word.
#[derive(Debug)]
struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: Box<str>,
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        let peer = uri_identity(end_entity).map_err(into_tls)?;
        if peer.trust_domain() != &*self.trust_domain {
            let expected = self.trust_domain.to_string();
            return Err(into_tls(IdentityError::TrustDomainMismatch {
                peer,
                expected,
            }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        self.chain
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn into_tls(error: IdentityError) -> TlsError {
    TlsError::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
}

/// What a TLS error means, with a stable reason.
#[must_use]
pub fn tls_failure(error: &TlsError) -> IdentityError {
    match error {
        TlsError::NoCertificatesPresented => IdentityError::NoPeerCertificate,
        TlsError::InvalidCertificate(problem) => certificate_failure(problem),
        TlsError::AlertReceived(alert) => IdentityError::RefusedByPeer {
            alert: format!("{alert:?}"),
        },
        other => IdentityError::Handshake {
            problem: other.to_string(),
        },
    }
}

fn certificate_failure(problem: &CertificateError) -> IdentityError {
    match problem {
        // A signature that does not fit is what a root of the same name and another key gives.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            IdentityError::UnknownIssuer
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            IdentityError::Expired
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            IdentityError::NotYetValid
        }
        CertificateError::Other(OtherError(source)) => {
            match source.downcast_ref::<IdentityError>() {
                Some(error) => error.clone(),
                None => IdentityError::BadPeerCertificate {
                    problem: source.to_string(),
                },
            }
        }
        other => IdentityError::BadPeerCertificate {
            problem: other.to_string(),
        },
    }
}

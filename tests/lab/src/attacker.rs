//! A peer that does not keep to the rules: certificates of any make, TLS without
//! verification, and whatever HTTP/2 a test wants to send to an agent's tunnel port.
//!
//! It works on sockets of a pod's or host's network namespace, but from this process, which
//! is in no cgroup of the lab: the kernel captures none of its connections.

use std::fs;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, Uri};
use karst_harness::{Lab, run_in};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, SanType, date_time_ymd,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The tunnel port of every enrolled pod.
pub const HBONE: u16 = 15008;

/// No answer within this is an answer too.
const STEP_LIMIT: Duration = Duration::from_secs(15);

/// Runs an attack on sockets of a named network namespace.
pub fn attack<T: Send>(netns: &str, attack: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
    run_in(netns, || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(attack())
    })
}

/// Somebody who signs certificates.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    roots_pem: String,
}

/// A certificate with its key.
pub struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// When a certificate is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// It was, years ago.
    Past,
}

impl Signer {
    /// The mesh's own authority, by its stolen key.
    pub fn of_mesh(lab: &Lab) -> Result<Self> {
        let file = lab.dir().join("control/state/mesh-ca.pem");
        let pem =
            fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())?;
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(&key)?)?;
        Ok(Self {
            issuer,
            roots_pem: fs::read_to_string(lab.root_certificate())?,
        })
    }

    /// A stranger.
    pub fn foreign() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = CertifiedIssuer::self_signed(params, key)?;
        let roots_pem = signed.pem();
        let der = CertificateDer::from_pem_slice(roots_pem.as_bytes())?;
        let key = signed.key().serialize_der();
        let key = PrivateKeyDer::try_from(key).map_err(|error| anyhow!("{error}"))?;
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, KeyPair::try_from(&key)?)?,
            roots_pem,
        })
    }

    /// A certificate for an identity.
    pub fn issue(&self, identity: &str, validity: Validity) -> Result<Credentials> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity)?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        (params.not_before, params.not_after) = match validity {
            Validity::Now => (date_time_ymd(2020, 1, 1), date_time_ymd(2100, 1, 1)),
            Validity::Past => (date_time_ymd(2019, 1, 1), date_time_ymd(2020, 1, 1)),
        };
        let leaf = params.signed_by(&key, &self.issuer)?;
        let mut chain = vec![leaf.der().clone()];
        for root in CertificateDer::pem_slice_iter(self.roots_pem.as_bytes()) {
            chain.push(root?);
        }
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| anyhow!("{error}"))?;
        Ok(Credentials { chain, key })
    }
}

/// Connects and shakes hands, with or without credentials. A server that refuses the client's
/// certificate says so only after the client's part of the handshake: use what this gives.
pub async fn tls(to: SocketAddr, credentials: Option<Credentials>) -> Result<TlsStream<TcpStream>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TrustAnybody(provider)));
    let mut config = match credentials {
        Some(Credentials { chain, key }) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(to)
        .await
        .with_context(|| format!("connecting to {to}"))?;
    let name = ServerName::from(to.ip());
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream);
    timeout(STEP_LIMIT, connected)
        .await
        .context("the handshake hangs")?
        .context("the handshake")
}

/// An HTTP/2 connection over TLS.
pub async fn http2(to: SocketAddr, credentials: Option<Credentials>) -> Result<SendRequest<Bytes>> {
    let stream = tls(to, credentials).await?;
    let (sender, connection) = h2::client::handshake(stream).await.context("HTTP/2")?;
    // Its failure shows in the requests.
    tokio::spawn(connection);
    Ok(sender)
}

/// Sends CONNECT for `authority` and gives the answer's status.
pub async fn connect(sender: SendRequest<Bytes>, authority: &str) -> Result<StatusCode> {
    let uri = Uri::builder().authority(authority).build()?;
    send(
        sender,
        Request::builder()
            .method(Method::CONNECT)
            .uri(uri)
            .body(())?,
    )
    .await
}

/// Sends any request and gives the answer's status.
pub async fn send(sender: SendRequest<Bytes>, request: Request<()>) -> Result<StatusCode> {
    let mut sender = sender.ready().await?;
    let (answer, _body) = sender.send_request(request, false)?;
    Ok(timeout(STEP_LIMIT, answer)
        .await
        .context("no answer")??
        .status())
}

/// Listens as the tunnel port of a pod whose agent is gone and shakes hands with whoever
/// comes, as `credentials`; gives what came of the first handshake.
pub async fn impersonate(
    at: SocketAddr,
    credentials: Credentials,
    trust: &Signer,
    listening: impl FnOnce(),
) -> Result<()> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(trust.roots_pem.as_bytes()) {
        roots.add(root?)?;
    }
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(credentials.chain, credentials.key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind(at)
        .await
        .with_context(|| format!("listening at {at}"))?;
    listening();
    let (stream, _) = timeout(STEP_LIMIT, listener.accept())
        .await
        .context("nobody came")??;
    TlsAcceptor::from(Arc::new(config))
        .accept(stream)
        .await
        .context("the handshake")?;
    Ok(())
}

/// Fails unless `what` ends within the limit.
pub async fn soon<T>(what: &str, limit: Duration, future: impl Future<Output = T>) -> Result<T> {
    timeout(limit, future)
        .await
        .with_context(|| format!("{what} took longer than {limit:?}"))
}

/// A client that does not care whom it talks to.
#[derive(Debug)]
struct TrustAnybody(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAnybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

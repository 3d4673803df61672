//! What is refused, and that the reason is the documented one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use karst_identity::{SpiffeId, WorkloadCertificate};
use karst_tunnel::TunnelError;
use karst_tunnel::pool::PoolConfig;
use karst_tunnel::server::{Refusal, RefusalStatus, ServerLimits};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_local;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::ca::{Leaf, TestCa, id};
use crate::support::{Client, Server, echo_app, on_worker, pair, until};

const SHORT: Duration = Duration::from_millis(100);

fn reason<T>(result: Result<T, TunnelError>) -> &'static str {
    match result {
        Ok(_) => "it was let in",
        Err(error) => error.reason(),
    }
}

/// Lets `cert` connect to a server of `ca`; returns the client's and the server's reason.
async fn refused_by_server(ca: &TestCa, cert: WorkloadCertificate) -> (&'static str, &'static str) {
    let server = Server::start(ca.issue(&id("server"))).await;
    let client = Client::new(cert, &server);
    let echo = echo_app().await;
    let seen = reason(client.stream(echo).await);
    until("the server refuses", || !server.failures().is_empty()).await;
    assert!(server.handler.requests.borrow().is_empty());
    (seen, server.failures()[0])
}

#[test]
fn a_client_of_a_foreign_root() {
    on_worker(async {
        let (ca, foreign) = (TestCa::new(), TestCa::new());
        let client = id("client");
        let cert = foreign.issue_trusting(&client, &ca, &Leaf::of(&client));
        let expected = ("tls_refused_by_peer", "tls_unknown_issuer");
        assert_eq!(refused_by_server(&ca, cert).await, expected);
    });
}

#[test]
fn an_expired_client() {
    on_worker(async {
        let ca = TestCa::new();
        let mut leaf = Leaf::of(&id("client"));
        leaf.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(10);
        let cert = ca.issue_trusting(&id("client"), &ca, &leaf);
        let expected = ("tls_refused_by_peer", "tls_expired");
        assert_eq!(refused_by_server(&ca, cert).await, expected);
    });
}

#[test]
fn a_client_that_is_not_valid_yet() {
    on_worker(async {
        let ca = TestCa::new();
        let mut leaf = Leaf::of(&id("client"));
        leaf.not_before = OffsetDateTime::now_utc() + time::Duration::minutes(10);
        let cert = ca.issue_trusting(&id("client"), &ca, &leaf);
        assert_eq!(refused_by_server(&ca, cert).await.1, "tls_not_yet_valid");
    });
}

#[test]
fn a_client_of_another_trust_domain() {
    on_worker(async {
        let ca = TestCa::new();
        let stranger = SpiffeId::new("other.example", "test", "client").unwrap();
        let cert = ca.issue(&stranger);
        assert_eq!(
            refused_by_server(&ca, cert).await.1,
            "trust_domain_mismatch"
        );
    });
}

/// Two names would let a certificate be one workload here and another there.
#[test]
fn a_client_with_two_identities() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("server"))).await;
        let mut leaf = Leaf::of(&id("client"));
        leaf.uris.push(id("other").to_string());
        let (chain, key) = ca.sign(&leaf);
        let roots = ca.root_pem();
        let own = WorkloadCertificate::from_pem(id("client"), &chain, &key, &roots);
        assert_eq!(own.err().unwrap().reason(), "certificate_unusable");
        let config = anonymous().with_client_auth_cert(certificates(&chain), private_key(&key));
        let mut tls = connect(&server, config.unwrap()).await;
        let mut end = Vec::new();
        let _ = tls.read_to_end(&mut end).await;
        until("the server refuses", || !server.failures().is_empty()).await;
        assert_eq!(server.failures(), ["identity_uri_count"]);
    });
}

#[test]
fn a_client_without_certificate() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("server"))).await;
        let mut tls = connect(&server, anonymous().with_no_client_auth()).await;
        let mut end = Vec::new();
        let error = tls.read_to_end(&mut end).await.unwrap_err();
        assert!(error.to_string().contains("CertificateRequired"), "{error}");
        until("the server refuses", || !server.failures().is_empty()).await;
        assert_eq!(server.failures(), ["tls_no_client_certificate"]);
    });
}

#[test]
fn a_server_that_is_someone_else() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("impostor"))).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let result = client.stream(server.address).await;
        assert_eq!(reason(result), "identity_mismatch");
        until("the server is told", || !server.failures().is_empty()).await;
        assert_eq!(server.failures(), ["tls_refused_by_peer"]);
    });
}

#[test]
fn a_server_of_a_foreign_root() {
    on_worker(async {
        let (ca, foreign) = (TestCa::new(), TestCa::new());
        let leaf = Leaf::of(&id("server"));
        let server = Server::start(foreign.issue_trusting(&id("server"), &ca, &leaf)).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        let result = client.stream(server.address).await;
        assert_eq!(reason(result), "tls_unknown_issuer");
    });
}

#[test]
fn an_expired_server() {
    on_worker(async {
        let ca = TestCa::new();
        let mut leaf = Leaf::of(&id("server"));
        leaf.not_after = OffsetDateTime::now_utc() - time::Duration::seconds(10);
        let server = Server::start(ca.issue_trusting(&id("server"), &ca, &leaf)).await;
        let client = Client::new(ca.issue(&id("client")), &server);
        assert_eq!(reason(client.stream(server.address).await), "tls_expired");
    });
}

#[test]
fn a_certificate_that_is_not_the_keys() {
    on_worker(async {
        let (ca, server, mut client) = pair().await;
        let key = client.key();
        client.cert = Arc::new(ca.issue(&id("client")));
        let request = karst_tunnel::pool::OutboundRequest {
            authority: server.address.to_string().parse().unwrap(),
            headers: http::HeaderMap::new(),
        };
        let result = client
            .pool
            .connect(key, &client.dialer, &client.cert, request);
        assert_eq!(reason(result.await), "no_certificate");
        assert_eq!(client.dialer.dials.get(), 0);
    });
}

#[test]
fn a_slow_tls_handshake() {
    on_worker(async {
        let ca = TestCa::new();
        let mut limits = ServerLimits::new(10);
        limits.handshake = SHORT;
        let server = Server::with_limits(ca.issue(&id("server")), limits.clone()).await;
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        // The first bytes of a TLS record and nothing more.
        tcp.write_all(&[22, 3, 1]).await.unwrap();
        let mut end = Vec::new();
        assert_eq!(tcp.read_to_end(&mut end).await.unwrap_or(0), 0);
        assert_eq!(server.failures(), ["tls_handshake_timeout"]);
        assert_eq!(limits.connections.in_use(), 0);
    });
}

#[test]
fn something_that_is_not_tls() {
    on_worker(async {
        let (_ca, server, _client) = pair().await;
        let mut tcp = TcpStream::connect(server.address).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        until("the server refuses", || !server.failures().is_empty()).await;
        assert_eq!(server.failures(), ["tls_handshake_failed"]);
    });
}

#[test]
fn a_slow_http2_preface() {
    on_worker(async {
        let (ca, _, client) = pair().await;
        let mut limits = ServerLimits::new(10);
        limits.preface = SHORT;
        let server = Server::with_limits(ca.issue(&id("server")), limits).await;
        let _silent = connect_as(&client.cert, &server).await;
        until("the server gives up", || !server.failures().is_empty()).await;
        assert_eq!(server.failures(), ["http2_preface_timeout"]);
    });
}

/// The preface alone is not enough: SETTINGS belong to it.
#[test]
fn an_http2_preface_without_settings() {
    on_worker(async {
        let (ca, _, client) = pair().await;
        let mut limits = ServerLimits::new(10);
        // The handshake itself must get through.
        limits.handshake = Duration::from_secs(3);
        limits.preface = SHORT;
        let server = Server::with_limits(ca.issue(&id("server")), limits).await;
        let mut tls = connect_as(&client.cert, &server).await;
        tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .await
            .unwrap();
        tls.flush().await.unwrap();
        until("the server gives up", || !server.failures().is_empty()).await;
        assert_eq!(server.failures(), ["http2_preface_timeout"]);
    });
}

#[test]
fn a_server_without_settings() {
    on_worker(async {
        let ca = TestCa::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut server = Server::start(ca.issue(&id("server"))).await;
        server.address = listener.local_addr().unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(ca.issue(&id("server")).server_config());
        spawn_local(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut tls = acceptor.accept(tcp).await.unwrap();
            let mut all = Vec::new();
            let _ = tls.read_to_end(&mut all).await;
        });
        let config = PoolConfig {
            preface: SHORT,
            ..PoolConfig::default()
        };
        let client = Client::with_config(ca.issue(&id("client")), &server, config);
        let result = client.stream(server.address).await;
        assert_eq!(reason(result), "http2_preface_timeout");
    });
}

#[test]
fn a_server_that_never_shakes_hands() {
    on_worker(async {
        let ca = TestCa::new();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut server = Server::start(ca.issue(&id("server"))).await;
        server.address = silent.local_addr().unwrap();
        let config = PoolConfig {
            handshake: SHORT,
            ..PoolConfig::default()
        };
        let client = Client::with_config(ca.issue(&id("client")), &server, config);
        let result = client.stream(server.address).await;
        assert_eq!(reason(result), "tls_handshake_timeout");
    });
}

#[test]
fn malformed_http2() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        let cases: [&[u8]; 4] = [
            b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            // DATA on stream 0.
            &[0, 0, 1, 0, 0, 0, 0, 0, 0, 7],
            // HEADERS whose block is no HPACK.
            &[0, 0, 3, 1, 4, 0, 0, 0, 1, 0xff, 0xff, 0xff],
            // A frame longer than the limit.
            &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        ];
        for (index, case) in cases.into_iter().enumerate() {
            let mut tls = connect_as(&client.cert, &server).await;
            if index > 0 {
                tls.write_all(preface).await.unwrap();
                tls.write_all(&settings).await.unwrap();
            }
            tls.write_all(case).await.unwrap();
            tls.flush().await.unwrap();
            until("the server refuses", || {
                server.failures().len() == index + 1
            })
            .await;
        }
        assert_eq!(server.failures(), ["http2_protocol_error"; 4]);
    });
}

#[test]
fn another_method_than_connect() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let mut http2 = http2(&client.cert, &server).await;
        let request = Request::builder()
            .method(Method::GET)
            .uri("https://10.0.0.1:80/");
        let (response, _) = http2.send_request(request.body(()).unwrap(), true).unwrap();
        assert_eq!(response.await.unwrap().status(), StatusCode::BAD_REQUEST);
        assert_eq!(*server.handler.refused.borrow(), ["connect_bad_method"]);
        assert!(server.handler.requests.borrow().is_empty());
    });
}

#[test]
fn a_bad_authority() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let bad = [
            "10.0.0.1",
            "10.0.0.1:0",
            "user@10.0.0.1:80",
            "10.0.0.300:80",
            "[::1]",
        ];
        for authority in bad {
            let result = client.stream_to(authority, &Default::default()).await;
            let Err(TunnelError::Refused { status }) = result else {
                panic!("{authority}: {}", reason(result));
            };
            assert_eq!(status, StatusCode::BAD_REQUEST);
        }
        assert_eq!(
            *server.handler.refused.borrow(),
            ["connect_bad_authority"; 5]
        );
        assert!(server.handler.requests.borrow().is_empty());
        // The connection is none the worse for it.
        client.stream(echo_app().await).await.unwrap();
        assert_eq!(client.dialer.dials.get(), 1);
    });
}

#[test]
fn oversized_headers() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        let mut http2 = http2(&client.cert, &server).await;
        // More than the server takes, more than HTTP/2 takes, and one field beyond its own limit.
        let cases = [
            ("x-filler", 20 << 10),
            ("x-filler", 100 << 10),
            ("forwarded", 2 << 10),
        ];
        for (name, size) in cases {
            let request = Request::builder()
                .method(Method::CONNECT)
                .uri(echo.to_string())
                .header(name, "x".repeat(size));
            let (response, _) = http2
                .send_request(request.body(()).unwrap(), false)
                .unwrap();
            let status = response.await.unwrap().status();
            assert_eq!(
                status,
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "{name} {size}"
            );
        }
        // The second is refused inside HTTP/2.
        assert_eq!(
            *server.handler.refused.borrow(),
            ["connect_headers_too_large"; 2]
        );
        assert!(server.handler.requests.borrow().is_empty());
    });
}

#[test]
fn the_handlers_refusals_have_their_status() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let cases = [
            (RefusalStatus::BadRequest, 400),
            (RefusalStatus::Denied, 401),
            (RefusalStatus::Unavailable, 503),
        ];
        for (status, code) in cases {
            let refusal = Refusal {
                status,
                reason: "test",
            };
            server.handler.answer.set(Some(refusal));
            match client.stream(server.address).await {
                Err(TunnelError::Refused { status }) => assert_eq!(status.as_u16(), code),
                other => panic!("{}", reason(other)),
            }
        }
        assert_eq!(client.pool.snapshot()[0].streams, 0);
    });
}

#[test]
fn more_connections_than_the_limit() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::with_limits(ca.issue(&id("server")), ServerLimits::new(1)).await;
        let first = Client::new(ca.issue(&id("client")), &server);
        let echo = echo_app().await;
        let stream = first.stream(echo).await.unwrap();
        let second = Client::new(ca.issue(&id("client")), &server);
        assert_ne!(reason(second.stream(echo).await), "it was let in");
        assert_eq!(server.failures(), ["too_many_tunnel_connections"]);
        drop(stream);
        first.pool.retain(|_| false);
        until("the first is closed", || {
            server.outcomes.borrow().len() == 2
        })
        .await;
        second.stream(echo).await.unwrap();
    });
}

async fn connect(server: &Server, mut config: ClientConfig) -> TlsStream<TcpStream> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::from(server.address.ip());
    let connector = TlsConnector::from(Arc::new(config));
    connector.connect(name, tcp).await.unwrap()
}

async fn connect_as(cert: &WorkloadCertificate, server: &Server) -> TlsStream<TcpStream> {
    let config = cert.client_config(&id("server")).unwrap();
    connect(server, ClientConfig::clone(&config)).await
}

async fn http2(cert: &WorkloadCertificate, server: &Server) -> SendRequest<Bytes> {
    let tls = connect_as(cert, server).await;
    let (http2, connection) = h2::client::handshake(tls).await.unwrap();
    spawn_local(async move {
        let _ = connection.await;
    });
    http2.ready().await.unwrap()
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    use rustls_pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

fn private_key(pem: &str) -> rustls_pki_types::PrivateKeyDer<'static> {
    use rustls_pki_types::pem::PemObject;
    rustls_pki_types::PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A client that takes any server.
fn anonymous() -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

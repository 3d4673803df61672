//! TLS with the application, inside or without a tunnel.

use std::rc::Rc;
use std::sync::Arc;

use http::Version;
use karst_api::waypoint::{Protocol, Tunnel};
use karst_waypoint::upstream::{BackendTlsConfig, UpstreamSettings};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_rustls::TlsAcceptor;

use crate::app::{App, Speaks, raw, serve};
use crate::ca::{Leaf, TestCa, id};
use crate::support::{Proxy, backend, client, get, get2, read};
use crate::tunnel::{Server, on_worker, until};

const NAME: &str = "secure.test";

/// An application with a certificate for [`NAME`].
async fn app(ca: &TestCa, speaks: Speaks, alpn: &[&[u8]]) -> App {
    let (chain, key) = ca.sign(&Leaf {
        dns: vec![NAME.to_owned()],
        ..Leaf::of(&id("app"))
    });
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .map(Result::unwrap)
        .collect();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    raw(move |tcp, seen| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(tls) = acceptor.accept(tcp).await {
                serve(tls, speaks, Rc::clone(&seen)).await;
            }
        }
    })
    .await
}

fn trusting(ca: &TestCa, name: &'static str) -> BackendTlsConfig {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    BackendTlsConfig::new(config, ServerName::try_from(name).unwrap())
}

fn proxy(protocol: Protocol, app: &App, tls: BackendTlsConfig) -> Proxy {
    let backend = backend(protocol, &[app.address]);
    Proxy::new(backend, Some(tls), UpstreamSettings::default())
}

#[test]
fn http_is_spoken_inside_of_tls() {
    on_worker(async {
        let ca = TestCa::new();
        let app = app(&ca, Speaks::Both, &[b"h2", b"http/1.1"]).await;
        for (protocol, version) in [
            (Protocol::Http1, "HTTP/1.1 /look"),
            (Protocol::Http2, "HTTP/2.0 https://shop/look"),
        ] {
            let proxy = proxy(protocol, &app, trusting(&ca, NAME));
            for _ in 0..3 {
                let text = proxy.text("/look").await;
                assert!(text.starts_with(version), "{text}");
            }
            assert_eq!(proxy.cluster.stats().connections, 1);
        }
    });
}

#[test]
fn an_application_that_chooses_http1_gets_it() {
    on_worker(async {
        let ca = TestCa::new();
        let app = app(&ca, Speaks::Http1, &[b"http/1.1"]).await;
        let undeclared = proxy(Protocol::Undeclared, &app, trusting(&ca, NAME));
        for _ in 0..3 {
            let response = undeclared.send(get2("/look")).await.unwrap();
            assert_eq!(response.version(), Version::HTTP_11);
            assert_eq!(read(response).await.1, "HTTP/1.1 /look host=Some(\"shop\")");
        }
        assert_eq!(app.seen.connections.get(), 1);
        let declared = proxy(Protocol::Grpc, &app, trusting(&ca, NAME));
        let (reason, safe) = declared.reason(get2("/")).await;
        assert!(
            safe && ["upstream_tls_failed", "upstream_not_http2"].contains(&reason),
            "{reason}"
        );
    });
}

#[test]
fn a_certificate_that_does_not_fit_is_refused() {
    on_worker(async {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let app = app(&ca, Speaks::Both, &[b"h2", b"http/1.1"]).await;
        for tls in [trusting(&ca, "another.test"), trusting(&other, NAME)] {
            for protocol in [Protocol::Http1, Protocol::Http2] {
                let proxy = proxy(protocol, &app, tls.clone());
                assert_eq!(proxy.reason(get("/")).await, ("upstream_tls_failed", true));
            }
        }
        assert_eq!(app.seen.requests.get(), 0);
    });
}

#[test]
fn a_changed_configuration_is_used_for_new_requests() {
    on_worker(async {
        let (ca, other) = (TestCa::new(), TestCa::new());
        let app = app(&ca, Speaks::Both, &[b"h2", b"http/1.1"]).await;
        let proxy = proxy(Protocol::Http1, &app, trusting(&ca, NAME));
        proxy.text("/").await;
        let backend = backend(Protocol::Http1, &[app.address]);
        let tls = Arc::new(trusting(&other, NAME));
        proxy.clusters.update(&backend, Some(tls)).unwrap();
        assert_eq!(proxy.reason(get("/")).await, ("upstream_tls_failed", true));
    });
}

#[test]
fn it_works_inside_the_tunnel_and_for_bytes() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("server"))).await;
        let app = app(&ca, Speaks::Both, &[b"h2", b"http/1.1"]).await;
        let mut backend = backend(Protocol::Undeclared, &[app.address]);
        backend.endpoints[0].tunnel = Tunnel::Hbone.into();
        backend.endpoints[0].identity = id("server").to_string();
        let settings = UpstreamSettings {
            tunnel_port: server.address.port(),
            ..UpstreamSettings::default()
        };
        let proxy = Proxy::new(backend, Some(trusting(&ca, NAME)), settings);
        proxy
            .certificate
            .replace(Some(Arc::new(ca.issue(&id("waypoint")))));
        assert_eq!(proxy.text("/one").await, "/one");
        let response = proxy.send(get2("/two")).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(read(response).await.1, "/two");
        let mut stream = proxy
            .upstream
            .connect(&proxy.pick(), &client())
            .await
            .unwrap();
        stream
            .write_all(b"GET /raw HTTP/1.0\r\n\r\n")
            .await
            .unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        assert!(got.ends_with("/raw"), "{got}");
        drop(stream);
        until("three tunnel streams", || {
            server.handler.requests.borrow().len() == 3
        })
        .await;
    });
}

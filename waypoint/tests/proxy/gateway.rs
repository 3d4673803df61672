//! To a gateway's ports, from outside the mesh.

use std::io::ErrorKind;
use std::sync::Arc;

use karst_api::waypoint::{ListenerProtocol, RouteKind};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::ca::{Leaf, TestCa, id};
use crate::ports;
use crate::support::{World, application, echo, get, greeter, mirror, run, talk, until};
use crate::wires;

fn certificate(ca: &TestCa, name: &str) -> (String, String) {
    let mut leaf = Leaf::of(&id("unused"));
    leaf.uris.clear();
    leaf.dns = vec![name.to_owned()];
    ca.sign(&leaf)
}

async fn handshake(world: &World, port: u16, name: &str) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(world.ca.root_pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let tcp = world.dial(port).await;
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

#[test]
fn http_is_routed_by_host() {
    run(async {
        let mut world = World::new().await;
        world.backend(&wires::backend("web", &[application(mirror).await]));
        world.route(&wires::http_route("HTTPRoute/test/r", "web"));
        let port = ports::free();
        let routes = vec![wires::attached("HTTPRoute/test/r", &["a.example.com"])];
        let http = ListenerProtocol::ListenerHttp;
        world.listener(&wires::socket(
            port,
            vec![wires::gateway_listener("http", http, "", routes)],
        ));
        let answer = get(&mut world.dial(port).await, "a.example.com").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("x-forwarded-for: 127.0.0.1"), "{answer}");
        let answer = get(&mut world.dial(port).await, "b.example.com").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    });
}

#[test]
fn https_shows_the_certificate_of_the_name() {
    run(async {
        let mut world = World::new().await;
        world.backend(&wires::backend("web", &[application(mirror).await]));
        world.route(&wires::http_route("HTTPRoute/test/r", "web"));
        let port = ports::free();
        let mut listeners = Vec::new();
        for name in ["a.example.com", "b.example.com"] {
            let secret =
                wires::secret(&format!("Secret/test/{name}"), certificate(&world.ca, name));
            world.secret(&secret);
            let routes = vec![wires::attached("HTTPRoute/test/r", &[])];
            let https = ListenerProtocol::ListenerHttps;
            let mut listener = wires::gateway_listener(name, https, name, routes);
            listener.certificates = vec![secret.name];
            listeners.push(listener);
        }
        world.listener(&wires::socket(port, listeners));
        for name in ["a.example.com", "b.example.com"] {
            let mut tls = handshake(&world, port, name).await.unwrap();
            let answer = get(&mut tls, name).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains("x-forwarded-proto: https"), "{answer}");
        }
        let error = handshake(&world, port, "c.example.com").await.unwrap_err();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
        until("counted", async || {
            world.refused("gateway_no_listener") == 1
        })
        .await;
    });
}

/// An application that ends TLS itself.
async fn tls_application(ca: &TestCa, name: &str) -> std::net::SocketAddr {
    let (chain, key) = certificate(ca, name);
    let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    application(move |tcp| {
        let acceptor = acceptor.clone();
        async move {
            let mut tls = acceptor.accept(tcp).await.unwrap();
            tls.write_all(b"from inside").await.unwrap();
            tls.shutdown().await.unwrap();
        }
    })
    .await
}

#[test]
fn tls_is_passed_on_unopened_or_ended_by_name() {
    run(async {
        let mut world = World::new().await;
        let inside = tls_application(&world.ca, "pass.example.com").await;
        world.backend(&wires::backend("inside", &[inside]));
        world.backend(&wires::backend("greeter", &[application(greeter).await]));
        let tls = RouteKind::RouteTls;
        let pass = vec![wires::weighted("inside")];
        world.route(&wires::l4_route("TLSRoute/test/pass", tls, pass));
        let end = vec![wires::weighted("greeter")];
        world.route(&wires::l4_route("TLSRoute/test/end", tls, end));
        let secret = wires::secret("Secret/test/end", certificate(&world.ca, "end.example.com"));
        world.secret(&secret);
        let port = ports::free();
        let mut end = wires::gateway_listener(
            "end",
            ListenerProtocol::ListenerTlsTerminate,
            "end.example.com",
            vec![wires::attached("TLSRoute/test/end", &["end.example.com"])],
        );
        end.certificates = vec![secret.name];
        let pass = wires::gateway_listener(
            "pass",
            ListenerProtocol::ListenerTlsPassthrough,
            "pass.example.com",
            vec![wires::attached("TLSRoute/test/pass", &["pass.example.com"])],
        );
        world.listener(&wires::socket(port, vec![pass, end]));
        let mut tls = handshake(&world, port, "pass.example.com").await.unwrap();
        let mut text = String::new();
        tls.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "from inside");
        let mut tls = handshake(&world, port, "end.example.com").await.unwrap();
        assert_eq!(talk(&mut tls, "x").await.unwrap(), "220 hello\r\nxbye");
        // Another name gets no alert, which no application would have sent.
        let error = handshake(&world, port, "other.example.com")
            .await
            .unwrap_err();
        let closed = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
        assert!(closed.contains(&error.kind()), "{error}");
        until("counted", async || {
            world.refused("gateway_no_listener") == 1
        })
        .await;
    });
}

#[test]
fn what_is_no_client_hello_is_refused() {
    run(async {
        let mut world = World::new().await;
        let port = ports::free();
        let tls = ListenerProtocol::ListenerTlsPassthrough;
        let listener = wires::gateway_listener("tls", tls, "", Vec::new());
        world.listener(&wires::socket(port, vec![listener]));
        let mut io = world.dial(port).await;
        let outcome = talk(&mut io, "GET / HTTP/1.1\r\n\r\n").await;
        assert!(outcome.is_err(), "{outcome:?}");
        until("counted", async || {
            world.refused("gateway_bad_client_hello") == 1
        })
        .await;
    });
}

#[test]
fn ports_come_and_go_and_connections_stay() {
    run(async {
        let mut world = World::new().await;
        world.backend(&wires::backend("echo", &[application(echo).await]));
        let backends = vec![wires::weighted("echo")];
        world.route(&wires::l4_route(
            "TCPRoute/test/r",
            RouteKind::RouteTcp,
            backends,
        ));
        let listener = |port| {
            let routes = vec![wires::attached("TCPRoute/test/r", &[])];
            let tcp = ListenerProtocol::ListenerTcp;
            wires::socket(port, vec![wires::gateway_listener("tcp", tcp, "", routes)])
        };
        let (first, second) = (ports::free(), ports::free());
        world.listener(&listener(first));
        let mut kept = world.dial(first).await;
        kept.write_all(b"before ").await.unwrap();
        let mut text = [0; 7];
        kept.read_exact(&mut text).await.unwrap();
        world.listener(&listener(second));
        world.remove_listener(&format!("socket/{first}"));
        assert_eq!(
            talk(&mut world.dial(second).await, "x").await.unwrap(),
            "xbye"
        );
        until("the port is closed", async || {
            TcpStream::connect(("127.0.0.1", first)).await.is_err()
        })
        .await;
        assert_eq!(talk(&mut kept, "after").await.unwrap(), "afterbye");
    });
}

#[test]
fn a_port_that_is_taken_is_told_and_tried_again() {
    run(async {
        let mut world = World::new().await;
        let held = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let taken = held.local_addr().unwrap().port();
        let http = ListenerProtocol::ListenerHttp;
        let listener = wires::gateway_listener("http", http, "", Vec::new());
        world.listener(&wires::socket(taken, vec![listener]));
        until("it is told", async || {
            world.shared.metrics.ports_failed.get() == 1
        })
        .await;
        drop(held);
        until("it is opened", async || {
            world.shared.metrics.ports_failed.get() == 0
        })
        .await;
        let answer = get(&mut world.dial(taken).await, "a").await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    });
}

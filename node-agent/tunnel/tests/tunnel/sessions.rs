//! Resumption: it works, and it proves nothing that is no longer true.

use std::sync::Arc;
use std::time::SystemTime;

use karst_identity::WorkloadCertificate;
use rustls::HandshakeKind;
use rustls_pki_types::ServerName;
use time::{Duration, OffsetDateTime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ca::{Leaf, TestCa, id};
use crate::support::{Client, Server, echo_app, on_worker, pair, until};

#[test]
fn the_second_connection_is_resumed() {
    on_worker(async {
        let (_ca, server, client) = pair().await;
        let echo = echo_app().await;
        assert!(!client.stream(echo).await.unwrap().tls.resumed);
        client.pool.retain(|_| false);
        let stream = client.stream(echo).await.unwrap();
        assert!(stream.tls.resumed);
        assert_eq!(&*stream.tls.key_exchange, "X25519MLKEM768");
        let requests = server.handler.requests.borrow();
        assert!(requests[1].tls.resumed);
        assert_eq!(requests[1].peer, *client.cert.id());
    });
}

#[test]
fn a_new_epoch_of_either_side_resumes_nothing() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("server"))).await;
        let mut client = Client::new(ca.issue(&id("client")), &server);
        let echo = echo_app().await;
        client.stream(echo).await.unwrap();
        client.cert = Arc::new(ca.issue(&id("client")));
        assert!(!client.stream(echo).await.unwrap().tls.resumed);

        // Another server behind the same address, as after a renewal on its side: the sessions
        // of a configuration are told apart by address without the port.
        let renewed = Server::start(ca.issue(&id("server"))).await;
        client.address = renewed.address;
        assert!(!client.stream(echo).await.unwrap().tls.resumed);
    });
}

/// Makes a TLS connection and waits for the ticket and the server's verdict.
async fn handshake(cert: &WorkloadCertificate, server: &Server) -> HandshakeKind {
    let connector = TlsConnector::from(cert.client_config(&id("server")).unwrap());
    let tcp = TcpStream::connect(server.address).await.unwrap();
    let name = ServerName::from(server.address.ip());
    let mut tls = connector.connect(name, tcp).await.unwrap();
    let kind = tls.get_ref().1.handshake_kind().unwrap();
    let mut bytes = [0; 64];
    // Either the server's HTTP/2 SETTINGS or the end; the ticket comes before both.
    let _ = tls.read(&mut bytes).await;
    kind
}

#[test]
fn a_resumed_session_is_checked_again() {
    on_worker(async {
        let ca = TestCa::new();
        let server = Server::start(ca.issue(&id("server"))).await;
        let mut leaf = Leaf::of(&id("client"));
        leaf.not_after = OffsetDateTime::now_utc() + Duration::seconds(8);
        let cert = ca.issue_trusting(&id("client"), &ca, &leaf);
        assert_eq!(handshake(&cert, &server).await, HandshakeKind::Full);
        until("the certificate expires", || {
            SystemTime::now() > cert.not_after() + std::time::Duration::from_millis(10)
        })
        .await;
        // Resumption verifies no certificate: without our own check this would be let in.
        assert_eq!(handshake(&cert, &server).await, HandshakeKind::Resumed);
        until("the server refuses", || {
            server.failures().contains(&"tls_expired")
        })
        .await;
    });
}

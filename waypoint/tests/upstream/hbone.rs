//! Through a tunnel server that asks for certificates.

use std::sync::Arc;

use http::StatusCode;
use hyper_util::rt::TokioIo;
use karst_api::waypoint::{Protocol, Tunnel};
use karst_tunnel::headers::Baggage;
use karst_tunnel::server::{Refusal, RefusalStatus};
use karst_waypoint::upstream::UpstreamSettings;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::app::{App, Speaks, http};
use crate::ca::{TestCa, id};
use crate::support::{Proxy, backend, client, get, get2, read};
use crate::tunnel::{Server, on_worker, until};

/// A proxy `waypoint`, and an application behind a tunnel server `server`.
async fn mesh(protocol: Protocol) -> (TestCa, Server, App, Proxy) {
    let ca = TestCa::new();
    let server = Server::start(ca.issue(&id("server"))).await;
    let app = http(Speaks::Both).await;
    let proxy = proxy(&server, &app, protocol, "server");
    proxy
        .certificate
        .replace(Some(Arc::new(ca.issue(&id("waypoint")))));
    (ca, server, app, proxy)
}

fn proxy(server: &Server, app: &App, protocol: Protocol, identity: &str) -> Proxy {
    let mut backend = backend(protocol, &[app.address]);
    for endpoint in &mut backend.endpoints {
        endpoint.tunnel = Tunnel::Hbone.into();
        endpoint.identity = id(identity).to_string();
    }
    let settings = UpstreamSettings {
        tunnel_port: server.address.port(),
        baggage: Some(Baggage {
            workload_name: "waypoint".to_owned(),
            ..Baggage::default()
        }),
        ..UpstreamSettings::default()
    };
    Proxy::new(backend, None, settings)
}

#[test]
fn requests_go_through_the_tunnel_under_our_identity() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let (_ca, server, app, proxy) = mesh(protocol).await;
            for n in 0..10 {
                assert_eq!(proxy.text(&format!("/{n}")).await, format!("/{n}"));
            }
            assert_eq!(app.seen.connections.get(), 1);
            assert_eq!(server.accepted.get(), 1);
            let requests = server.handler.requests.borrow();
            assert_eq!(requests.len(), 1, "connections in the tunnel are kept, too");
            assert_eq!(requests[0].peer, id("waypoint"));
            assert_eq!(requests[0].authority.to_string(), app.address.to_string());
            assert_eq!(requests[0].forwarded, None, "they are shared by clients");
            let baggage = requests[0].baggage.as_ref().unwrap();
            assert_eq!(baggage.workload_name, "waypoint");
            assert_eq!(proxy.upstream.tunnels().len(), 1);
        }
    });
}

#[test]
fn a_large_response_comes_whole_and_an_unread_one_is_given_up() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let (_ca, server, app, proxy) = mesh(protocol).await;
            assert_eq!(proxy.text("/large").await.len(), 8 << 20);
            drop(proxy.send(get("/large")).await.unwrap());
            assert_eq!(proxy.text("/next").await, "/next");
            if protocol == Protocol::Http1 {
                until("one is closed", || app.seen.open.get() == 1).await;
            }
            assert_eq!(server.accepted.get(), 1);
        }
    });
}

#[test]
fn an_upgrade_passes_through_the_tunnel() {
    on_worker(async {
        let (_ca, _server, _app, proxy) = mesh(Protocol::Websocket).await;
        let mut request = get("/upgrade");
        request
            .headers_mut()
            .insert("connection", "upgrade".parse().unwrap());
        request
            .headers_mut()
            .insert("upgrade", "test".parse().unwrap());
        let response = proxy.send(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        io.write_all(b"ping").await.unwrap();
        let mut got = Vec::new();
        io.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"gnip");
        drop(io);
        until("it is closed", || proxy.cluster.stats().connections == 0).await;
    });
}

#[test]
fn bytes_are_passed_on_in_the_clients_name() {
    on_worker(async {
        let (_ca, server, _app, proxy) = mesh(Protocol::Tcp).await;
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
        let requests = server.handler.requests.borrow();
        let forwarded = requests[0].forwarded.as_ref().unwrap();
        assert_eq!(forwarded.client, client().address);
    });
}

#[test]
fn without_a_certificate_nothing_is_sent() {
    on_worker(async {
        let (_ca, server, app, proxy) = mesh(Protocol::Http1).await;
        proxy.certificate.replace(None);
        assert_eq!(proxy.reason(get("/")).await, ("no_certificate", true));
        assert_eq!((server.accepted.get(), app.seen.connections.get()), (0, 0));
    });
}

#[test]
fn an_endpoint_that_is_somebody_else_gets_nothing() {
    on_worker(async {
        let (ca, server, app, _) = mesh(Protocol::Http1).await;
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let proxy = proxy(&server, &app, protocol, "expected");
            proxy
                .certificate
                .replace(Some(Arc::new(ca.issue(&id("waypoint")))));
            let error = proxy.send(get2("/")).await.err().unwrap();
            assert_eq!(error.reason(), "identity_mismatch", "{error}");
            assert!(error.is_safe_to_retry());
        }
        assert_eq!(app.seen.connections.get(), 0);
    });
}

#[test]
fn a_refusal_by_the_other_end_is_an_error_of_its_own() {
    on_worker(async {
        let (_ca, server, app, proxy) = mesh(Protocol::Http1).await;
        server.handler.answer.set(Some(Refusal {
            status: RefusalStatus::Denied,
            reason: "test",
        }));
        assert_eq!(proxy.reason(get("/")).await, ("upstream_refused", true));
        assert_eq!(app.seen.connections.get(), 0);
        let stats = proxy.cluster.stats();
        assert_eq!((stats.connections, stats.requests), (0, 0));
    });
}

#[test]
fn a_new_certificate_is_shown_on_new_connections() {
    on_worker(async {
        for protocol in [Protocol::Http1, Protocol::Http2] {
            let (ca, server, app, proxy) = mesh(protocol).await;
            proxy.text("/old").await;
            let waiting = proxy.send(get("/wait"));
            let change = async {
                until("it waits", || app.seen.waiting.get() == 1).await;
                proxy
                    .certificate
                    .replace(Some(Arc::new(ca.issue(&id("waypoint")))));
                proxy.upstream.certificate_changed();
                assert_eq!(proxy.text("/new").await, "/new");
                app.seen.go_on.notify_waiters();
            };
            let (response, ()) = tokio::join!(waiting, change);
            assert_eq!(
                read(response.unwrap()).await.1,
                "waited",
                "what was under way goes on"
            );
            assert_eq!(server.accepted.get(), 2);
            until("the old ones are closed", || app.seen.open.get() == 1).await;
            until("so is their tunnel", || proxy.upstream.tunnels().len() == 1).await;
        }
    });
}

#[test]
fn a_tunnel_that_drains_loses_no_request() {
    on_worker(async {
        let (_ca, server, _app, proxy) = mesh(Protocol::Http1).await;
        for n in 0..20 {
            assert_eq!(proxy.text(&format!("/{n}")).await, format!("/{n}"));
            if n == 9 {
                server.restart(karst_tunnel::server::Drain::Graceful);
            }
        }
    });
}

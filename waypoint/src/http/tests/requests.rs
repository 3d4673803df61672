use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Response, StatusCode};
use karst_api::waypoint as wire;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::support::{
    PATIENCE, Proxy, application, backend, body_of, echo, get, get2, listener, nowhere, prefix,
    read_head, rule, run, text,
};
use crate::body::Body;
use crate::http::Entry;

#[test]
fn a_connection_serves_one_request_after_another() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut client = proxy.http1().await;
        for n in 0..3 {
            let response = client.send_request(get(&format!("/{n}?q"))).await.unwrap();
            assert_eq!(response.status(), 200);
            assert!(
                body_of(response)
                    .await
                    .starts_with(&format!("GET /{n}?q\n"))
            );
        }
    });
}

#[test]
fn requests_of_http2_go_on_as_what_the_backend_speaks() {
    run(async {
        let proxy = Proxy::new();
        let address = application(echo).await;
        for (protocol, sign) in [
            (wire::Protocol::Undeclared, "authority: shop"),
            (wire::Protocol::Http2, "authority: shop"),
            (wire::Protocol::Websocket, "host: shop"),
        ] {
            let mut shop = backend("shop", &[address]);
            shop.protocol = protocol.into();
            proxy.backend(shop);
            proxy.listen(&[]);
            let response = proxy.http2().await.send_request(get2("/a")).await.unwrap();
            let body = body_of(response).await;
            assert!(body.contains(sign), "{protocol:?}: {body}");
        }
        let mut shop = backend("shop", &[address]);
        shop.protocol = wire::Protocol::Grpc.into();
        proxy.backend(shop);
        let response = proxy.http1().await.send_request(get("/a")).await.unwrap();
        assert_eq!(response.version(), http::Version::HTTP_11);
        assert!(body_of(response).await.contains("authority: shop"));
    });
}

#[test]
fn the_application_learns_who_asks() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut client = proxy.http1().await;
        let mut request = get("/");
        for (name, value) in [
            ("x-forwarded-for", "1.2.3.4"),
            (
                "x-forwarded-client-cert",
                "URI=spiffe://cluster.local/ns/kube-system/sa/admin",
            ),
            ("connection", "x-secret, keep-alive"),
            ("x-secret", "1"),
            ("te", "trailers, deflate"),
            ("keep-alive", "timeout=5"),
        ] {
            request.headers_mut().append(name, value.parse().unwrap());
        }
        let body = body_of(client.send_request(request).await.unwrap()).await;
        for line in [
            "x-forwarded-for: 1.2.3.4, 10.0.0.7\n",
            "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/client/sa/curl\n",
            "x-forwarded-proto: http\n",
            "te: trailers\n",
        ] {
            assert!(body.contains(line), "{body}");
        }
        assert!(
            !body.contains("x-secret") && !body.contains("keep-alive"),
            "{body}"
        );
        let id = body.split("x-request-id: ").nth(1).expect("an id");
        assert_eq!(id.lines().next().map(str::len), Some(36));
        let mut request = get("/");
        request
            .headers_mut()
            .insert("x-request-id", "mine".parse().unwrap());
        let body = body_of(client.send_request(request).await.unwrap()).await;
        assert!(body.contains("x-request-id: mine"), "{body}");
    });
}

#[test]
fn paths_go_on_in_their_normal_form() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut client = proxy.http1().await;
        let response = client
            .send_request(get("/a/../%62//c%2fd?e=/../%zz"))
            .await
            .unwrap();
        let body = body_of(response).await;
        assert!(body.starts_with("GET /b//c%2Fd?e=/../%zz\n"), "{body}");
    });
}

#[test]
fn methods_that_are_not_served() {
    run(async {
        let proxy = Proxy::of(echo).await;
        for (request, reason) in [
            (
                "TRACE / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n",
                "http_method_trace",
            ),
            (
                "CONNECT shop:80 HTTP/1.1\r\nHost: shop:80\r\n\r\n",
                "http_method_connect",
            ),
        ] {
            let answer = proxy.raw(request).await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
            assert!(
                answer.contains(&format!("karst-reason: {reason}\r\n")),
                "{answer}"
            );
        }
        let answer = proxy
            .raw("OPTIONS * HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn responses_without_a_body() {
    run(async {
        let proxy = Proxy::of(|request: http::Request<hyper::body::Incoming>| async move {
            let status = request
                .uri()
                .path()
                .trim_start_matches('/')
                .parse()
                .unwrap();
            let body = if request.method() == "HEAD" {
                Body::Empty
            } else {
                Body::full("body")
            };
            let mut response = Response::new(body);
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            if status == 204 || status == 304 {
                *response.body_mut() = Body::Empty;
            } else if request.method() == "HEAD" {
                response.headers_mut().insert("content-length", 4.into());
            }
            response
        })
        .await;
        let head = "HEAD /200 HTTP/1.1\r\nHost: shop\r\n\r\n";
        let rest = "GET /204 HTTP/1.1\r\nHost: shop\r\n\r\nGET /304 HTTP/1.1\r\nHost: shop\r\n\r\n\
                    GET /200 HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
        let answer = proxy.raw(format!("{head}{rest}")).await;
        let statuses: Vec<&str> = answer
            .split("HTTP/1.1 ")
            .skip(1)
            .map(|part| &part[..3])
            .collect();
        assert_eq!(statuses, ["200", "204", "304", "200"], "{answer}");
        assert_eq!(answer.matches("body").count(), 1, "{answer}");
        assert_eq!(answer.matches("content-length: 4").count(), 2, "{answer}");
        let mut client = proxy.http2().await;
        let mut request = get2("/200");
        *request.method_mut() = http::Method::HEAD;
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.headers()["content-length"], "4");
        assert_eq!(body_of(response).await, "");
    });
}

#[test]
fn the_next_request_sees_the_table_of_its_time() {
    run(async {
        let proxy = Proxy::of(|_| text("one")).await;
        let mut client = proxy.http1().await;
        assert_eq!(
            body_of(client.send_request(get("/")).await.unwrap()).await,
            "one"
        );
        proxy.backend(backend("two", &[application(|_| text("two")).await]));
        proxy.route(vec![rule(&[("two", 1)])]);
        assert_eq!(
            body_of(client.send_request(get("/")).await.unwrap()).await,
            "two"
        );
    });
}

#[test]
fn a_service_that_is_gone_is_not_served_on_old_connections() {
    run(async {
        let proxy = Proxy::of(|_| text("one")).await;
        let mut client = proxy.http1().await;
        assert_eq!(client.send_request(get("/")).await.unwrap().status(), 200);
        proxy.tables.store(crate::table::Table::default());
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(
            response.headers()["karst-reason"],
            "waypoint_unknown_destination"
        );
    });
}

#[test]
fn failures_say_why() {
    run(async {
        let proxy = Proxy::new();
        proxy.service(&[]);
        let mut client = proxy.http1().await;
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["karst-reason"], "no_endpoints");
        proxy.service(&[nowhere().await]);
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(
            response.headers()["karst-reason"],
            "upstream_connect_failed"
        );
        let mut shop = backend("shop", &[nowhere().await]);
        shop.invalid = "UnsupportedProtocol".to_owned();
        proxy.backend(shop);
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()["karst-reason"], "backend_invalid");
    });
}

#[test]
fn failures_are_told_to_grpc_in_its_way() {
    run(async {
        let proxy = Proxy::new();
        proxy.service(&[]);
        let mut client = proxy.http2().await;
        let request = || {
            let mut request = get2("/a.B/C");
            *request.method_mut() = http::Method::POST;
            let content_type = "application/grpc".parse().unwrap();
            request.headers_mut().insert("content-type", content_type);
            request
        };
        let response = client.send_request(request()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(body_of(response).await, "");
        let mut none = rule(&[("shop", 1)]);
        none.matches = vec![prefix("/other")];
        proxy.route_of(wire::RouteKind::RouteGrpc, vec![none]);
        let response = client.send_request(request()).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "12");
    });
}

#[test]
fn overload_is_refused() {
    run(async {
        let held = Rc::new(Cell::new(0));
        let count = Rc::clone(&held);
        let address = application(move |_| {
            count.set(count.get() + 1);
            std::future::pending()
        })
        .await;
        let proxy = Proxy::new();
        let mut shop = backend("shop", &[address]);
        shop.policy = Some(wire::TrafficPolicy {
            limits: Some(wire::ConnectionLimits {
                max_requests: 1,
                ..wire::ConnectionLimits::default()
            }),
            ..wire::TrafficPolicy::default()
        });
        proxy.backend(shop);
        proxy.listen(&[]);
        let mut first = proxy.http1().await;
        let waiting = tokio::task::spawn_local(async move {
            let _ = first.send_request(get("/")).await;
        });
        super::support::eventually(|| held.get() == 1).await;
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        let reason = response.headers()["karst-reason"].to_str().unwrap();
        assert!(reason.contains("request"), "{reason}");
        waiting.abort();
    });
}

#[test]
fn a_workload_is_reached_at_the_port_that_was_asked_for() {
    run(async {
        let proxy = Proxy::new();
        let address = application(echo).await;
        let shop = backend("shop", &[address]);
        let mut endpoint = shop.endpoints[0].clone();
        endpoint.port = 0;
        let frontend = wire::WorkloadFrontend {
            addresses: vec![vec![127, 0, 0, 1]],
            endpoint: Some(endpoint),
            ports: Vec::new(),
            policies: Vec::new(),
            authentications: Vec::new(),
            telemetry: None,
            workload: None,
        };
        proxy.listener("workload/a", wire::listener::Frontend::Workload(frontend));
        let workload = Arc::clone(&proxy.tables.load().workloads[&address.ip()]);
        let answer = proxy
            .raw_to(
                Entry::Workload(workload, address),
                "GET /x HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n",
            )
            .await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.contains("GET /x\n"), "{answer}");
    });
}

/// An application that says whether it wants the body before it reads it.
async fn reluctant(wants: &'static str) -> std::net::SocketAddr {
    listener(move |mut stream| async move {
        let head = read_head(&mut stream).await;
        assert!(head.contains("expect: 100-continue"), "{head}");
        let mut early = [0; 1];
        let quiet = timeout(Duration::from_millis(200), stream.read(&mut early)).await;
        assert!(quiet.is_err(), "the body came unasked");
        if wants == "yes" {
            stream
                .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                .await
                .unwrap();
            let mut body = [0; 4];
            stream.read_exact(&mut body).await.unwrap();
            assert_eq!(&body, b"body");
        }
        let status = if wants == "yes" {
            "200 OK"
        } else {
            "417 Expectation Failed"
        };
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let _ = stream.read(&mut early).await;
    })
    .await
}

#[test]
fn a_client_sends_its_body_when_the_application_wants_it() {
    run(async {
        for wants in ["yes", "no"] {
            let proxy = Proxy::new();
            proxy.service(&[reluctant(wants).await]);
            let mut client = proxy.connect();
            let head = "POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
            client.write_all(head.as_bytes()).await.unwrap();
            let mut answer = vec![0; 12];
            timeout(PATIENCE, client.read_exact(&mut answer))
                .await
                .unwrap()
                .unwrap();
            let answer = String::from_utf8(answer).unwrap();
            if wants == "no" {
                assert_eq!(answer, "HTTP/1.1 417");
                continue;
            }
            assert_eq!(answer, "HTTP/1.1 100");
            client.write_all(b"body").await.unwrap();
            let mut rest = vec![0; 64];
            let mut seen = String::new();
            while !seen.contains("HTTP/1.1 200") {
                let read = timeout(PATIENCE, client.read(&mut rest))
                    .await
                    .unwrap()
                    .unwrap();
                assert!(read > 0, "{seen}");
                seen.push_str(std::str::from_utf8(&rest[..read]).unwrap());
            }
        }
    });
}

#[test]
fn an_old_client_is_served_and_closed() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let answer = proxy.raw("GET /old HTTP/1.0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.0 200 "), "{answer}");
        assert!(answer.contains("GET /old"), "{answer}");
    });
}

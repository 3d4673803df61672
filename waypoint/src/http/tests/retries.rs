use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use karst_api::waypoint as wire;
use tokio::net::TcpStream;

use super::support::{
    Proxy, application, backend, body_of, get, get2, listener, nowhere, read_head, rule, run, text,
    with_body,
};
use crate::body::Body;

/// Answers with these statuses, one after another; keeps the bodies it was sent.
struct Script {
    address: SocketAddr,
    bodies: Rc<RefCell<Vec<String>>>,
}

async fn script(statuses: &'static [u16]) -> Script {
    let bodies: Rc<RefCell<Vec<String>>> = Rc::default();
    let seen = Rc::clone(&bodies);
    let address = application(move |request: http::Request<Incoming>| {
        let seen = Rc::clone(&seen);
        async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            let at = seen.borrow().len();
            seen.borrow_mut()
                .push(String::from_utf8(body.to_vec()).unwrap());
            let mut response = Response::new(Body::full("answer"));
            *response.status_mut() = StatusCode::from_u16(statuses[at]).unwrap();
            response
        }
    })
    .await;
    Script { address, bodies }
}

/// A connection that ends when a request has come.
async fn hang_up(mut stream: TcpStream) {
    read_head(&mut stream).await;
}

fn retrying(attempts: u32, codes: &[u32]) -> wire::HttpRule {
    wire::HttpRule {
        retry: Some(wire::Retry {
            attempts,
            codes: codes.to_vec(),
            backoff_ms: 1,
        }),
        ..rule(&[("shop", 1)])
    }
}

#[test]
fn an_endpoint_that_does_not_answer_is_passed_over() {
    run(async {
        let proxy = Proxy::new();
        let good = application(|_| text("good")).await;
        proxy.service(&[nowhere().await, good]);
        let mut client = proxy.http1().await;
        for n in 0..20 {
            // Nothing was sent, so that a POST goes on as well, and its body with it.
            let request = if n % 2 == 0 {
                get("/")
            } else {
                with_body("/", Body::full("abc"))
            };
            let response = client.send_request(request).await.unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(body_of(response).await, "good");
        }
        assert!(proxy.metrics.retries.get() > 0);
    });
}

#[test]
fn status_codes_are_retried_with_the_body() {
    run(async {
        let proxy = Proxy::new();
        let script = script(&[503, 500, 200]).await;
        proxy.service(&[script.address]);
        proxy.route(vec![retrying(2, &[500, 503])]);
        let request = with_body("/", Body::full("body"));
        let response = proxy.http1().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(*script.bodies.borrow(), ["body", "body", "body"]);
        assert_eq!(proxy.metrics.retries.get(), 2);
    });
}

#[test]
fn other_codes_and_attempts_beyond_are_not() {
    run(async {
        let proxy = Proxy::new();
        let one = script(&[502, 200]).await;
        proxy.service(&[one.address]);
        proxy.route(vec![retrying(2, &[503])]);
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 502);
        let two = script(&[503, 503, 200]).await;
        proxy.service(&[two.address]);
        proxy.route(vec![retrying(1, &[503])]);
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 503);
        // It is the application's own answer.
        assert!(!response.headers().contains_key("karst-reason"));
        assert_eq!(body_of(response).await, "answer");
        assert_eq!(two.bodies.borrow().len(), 2);
    });
}

#[test]
fn a_body_that_is_too_long_is_sent_once() {
    run(async {
        let proxy = Proxy::new();
        let script = script(&[503, 200]).await;
        proxy.service(&[script.address]);
        proxy.route(vec![retrying(3, &[503])]);
        let body = Bytes::from(vec![b'x'; 200 << 10]);
        let request = with_body("/", Body::full(body));
        let response = proxy.http1().await.send_request(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(script.bodies.borrow().len(), 1);
    });
}

#[test]
fn a_connection_that_breaks_is_survived_by_what_may_be_repeated() {
    run(async {
        let proxy = Proxy::new();
        let good = application(|_| text("good")).await;
        let bad = listener(hang_up).await;
        proxy.service(&[bad, good]);
        let mut client = proxy.http1().await;
        for _ in 0..20 {
            let response = client.send_request(get("/")).await.unwrap();
            assert_eq!(response.status(), 200);
        }
        // An order that may have been placed is not placed again.
        proxy.service(&[bad]);
        let request = with_body("/", Body::full("order"));
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 502);
        // Unless the route says so.
        proxy.service(&[bad]);
        proxy.route(vec![retrying(2, &[])]);
        let before = proxy.metrics.retries.get();
        let request = with_body("/", Body::full("order"));
        let response = client.send_request(request).await.unwrap();
        assert_eq!(response.status(), 502);
        assert_eq!(proxy.metrics.retries.get() - before, 2);
    });
}

#[test]
fn the_budget_bounds_retries() {
    run(async {
        let proxy = Proxy::new();
        let mut shop = backend(
            "shop",
            &[application(|_| async {
                let mut response = Response::new(Body::Empty);
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                response
            })
            .await],
        );
        shop.policy = Some(wire::TrafficPolicy {
            retry_budget: Some(wire::RetryBudget {
                percent: 1,
                min_per_second: 2,
            }),
            outlier_detection: Some(wire::OutlierDetection {
                disabled: true,
                ..wire::OutlierDetection::default()
            }),
            ..wire::TrafficPolicy::default()
        });
        proxy.backend(shop);
        proxy.route(vec![retrying(1, &[503])]);
        let mut client = proxy.http1().await;
        for _ in 0..50 {
            let response = client.send_request(get("/")).await.unwrap();
            assert_eq!(response.status(), 503);
        }
        assert!(proxy.metrics.retries_denied.get() > 0);
        assert!(proxy.metrics.retries.get() < 50);
    });
}

#[test]
fn an_attempt_has_its_time() {
    run(async {
        let proxy = Proxy::new();
        let calls = Rc::new(Cell::new(0));
        let count = Rc::clone(&calls);
        let address = application(move |_| {
            count.set(count.get() + 1);
            let slow = count.get() == 1;
            async move {
                if slow {
                    std::future::pending::<()>().await;
                }
                text("second").await
            }
        })
        .await;
        proxy.service(&[address]);
        proxy.route(vec![wire::HttpRule {
            // The second attempt must be answered within it.
            backend_timeout_ms: Some(1000),
            ..retrying(1, &[])
        }]);
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(body_of(response).await, "second");
        calls.set(0);
        proxy.route(vec![wire::HttpRule {
            backend_timeout_ms: Some(50),
            ..rule(&[("shop", 1)])
        }]);
        let response = proxy.http1().await.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["karst-reason"], "backend_timeout");
    });
}

#[test]
fn a_request_has_its_time() {
    run(async {
        let proxy = Proxy::of(|request: http::Request<Incoming>| async move {
            if request.uri().path() == "/head" {
                std::future::pending::<()>().await;
            }
            let (sender, body) = super::support::channel();
            sender.data("begin");
            tokio::task::spawn_local(async move { sender.closed().await });
            Response::new(body)
        })
        .await;
        proxy.route(vec![wire::HttpRule {
            // The response to the second request must begin within it.
            request_timeout_ms: Some(1000),
            ..rule(&[("shop", 1)])
        }]);
        let mut client = proxy.http2().await;
        let response = client.send_request(get2("/head")).await.unwrap();
        assert_eq!(response.status(), 504);
        assert_eq!(response.headers()["karst-reason"], "request_timeout");
        let response = client.send_request(get2("/body")).await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(response.into_body().collect().await.is_err());
    });
}

#[test]
fn a_grpc_client_says_how_long_it_waits() {
    run(async {
        let proxy = Proxy::of(|_| std::future::pending()).await;
        proxy.route_of(
            wire::RouteKind::RouteGrpc,
            vec![wire::HttpRule {
                request_timeout_ms: Some(60_000),
                ..rule(&[("shop", 1)])
            }],
        );
        let mut request = get2("/a.B/C");
        *request.method_mut() = Method::POST;
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("grpc-timeout", "50m"),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let response = proxy.http2().await.send_request(request);
        let response = tokio::time::timeout(Duration::from_secs(10), response)
            .await
            .unwrap()
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "4");
    });
}

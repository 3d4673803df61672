use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use karst_api::waypoint as wire;

use super::support::{
    Proxy, application, backend, body_of, echo, eventually, get, nowhere, rule, run, text,
    with_body,
};
use crate::body::Body;

fn mirroring(service: &str) -> wire::HttpRule {
    wire::HttpRule {
        filters: vec![wire::Filter {
            kind: Some(wire::filter::Kind::Mirror(wire::Mirror {
                backend: super::support::name_of(service),
                numerator: 1,
                denominator: 1,
            })),
        }],
        ..rule(&[("shop", 1)])
    }
}

#[test]
fn a_mirror_gets_the_whole_request() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let seen: Rc<RefCell<Vec<String>>> = Rc::default();
        let copies = Rc::clone(&seen);
        let shadow = application(move |request: http::Request<Incoming>| {
            let copies = Rc::clone(&copies);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                copies
                    .borrow_mut()
                    .push(format!("{path} {}", String::from_utf8_lossy(&body)));
                text("shadow").await
            }
        })
        .await;
        proxy.backend(backend("shadow", &[shadow]));
        proxy.route(vec![mirroring("shadow")]);
        let mut client = proxy.http1().await;
        let response = client
            .send_request(with_body("/a", Body::full("body")))
            .await
            .unwrap();
        assert!(body_of(response).await.ends_with("body"));
        let response = client.send_request(get("/b")).await.unwrap();
        assert!(body_of(response).await.starts_with("GET /b"));
        eventually(|| seen.borrow().len() == 2).await;
        let mut seen = seen.borrow().clone();
        seen.sort();
        assert_eq!(seen, ["/a body", "/b "]);
        assert_eq!(proxy.metrics.mirrors.get(), 2);
    });
}

#[test]
fn a_mirror_that_is_slow_or_gone_is_not_noticed() {
    run(async {
        let proxy = Proxy::of(|request: http::Request<Incoming>| async move {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            text(body.len().to_string()).await
        })
        .await;
        // It never reads the body.
        let stuck = super::support::listener(|stream| async move {
            std::future::pending::<()>().await;
            drop(stream);
        })
        .await;
        for address in [stuck, nowhere().await] {
            proxy.backend(backend("shadow", &[address]));
            proxy.route(vec![mirroring("shadow")]);
            let body = Bytes::from(vec![b'x'; 8 << 20]);
            let mut client = proxy.http1().await;
            let response = client
                .send_request(with_body("/", Body::full(body)))
                .await
                .unwrap();
            assert_eq!(response.status(), 200);
            assert_eq!(body_of(response).await, (8 << 20).to_string());
        }
    });
}

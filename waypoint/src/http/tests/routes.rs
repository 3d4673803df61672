use std::collections::HashSet;
use std::sync::Arc;

use http::Response;
use hyper::body::Incoming;
use karst_api::waypoint as wire;

use super::support::{Proxy, application, backend, body_of, echo, get, prefix, rule, run, text};
use crate::authz::Authorization;
use crate::body::Body;
use crate::http::{Entry, GatewayTls};
use crate::table::{GatewayListener, Hostname, Routes, SocketFrontend, Table};

#[test]
fn weights_are_kept() {
    run(async {
        let proxy = Proxy::of(|_| text("v1")).await;
        proxy.backend(backend("v2", &[application(|_| text("v2")).await]));
        proxy.route(vec![rule(&[("shop", 95), ("v2", 5)])]);
        let mut client = proxy.http1().await;
        let (total, mut canary) = (4000, 0);
        for _ in 0..total {
            let response = client.send_request(get("/")).await.unwrap();
            if body_of(response).await == "v2" {
                canary += 1;
            }
        }
        // The standard deviation is 14.
        assert!((130..=270).contains(&canary), "{canary}");
    });
}

#[test]
fn what_no_rule_matches_is_not_found() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut only = rule(&[("shop", 1)]);
        only.matches = vec![prefix("/shop")];
        proxy.route(vec![only]);
        let mut client = proxy.http1().await;
        let found = client.send_request(get("/shop/a")).await.unwrap();
        assert_eq!(found.status(), 200);
        let _ = body_of(found).await;
        // What applications take for `/shop` is matched as such, and what they do not is not.
        let found = client.send_request(get("/x/../%73hop")).await.unwrap();
        assert_eq!(found.status(), 200);
        let _ = body_of(found).await;
        for path in ["/", "/shopping", "/shop/../admin", "/shop%2Fa"] {
            let response = client.send_request(get(path)).await.unwrap();
            assert_eq!(response.status(), 404, "{path}");
            assert_eq!(response.headers()["karst-reason"], "no_route");
            let _ = body_of(response).await;
        }
    });
}

#[test]
fn an_invalid_backend_fails_its_share() {
    run(async {
        let proxy = Proxy::of(|_| text("good")).await;
        let mut half = rule(&[("shop", 1)]);
        half.backends.push(wire::WeightedBackend {
            weight: 1,
            invalid: "RefNotPermitted".to_owned(),
            ..wire::WeightedBackend::default()
        });
        proxy.route(vec![half]);
        let mut client = proxy.http1().await;
        let mut failed = 0;
        for _ in 0..400 {
            let response = client.send_request(get("/")).await.unwrap();
            match response.status().as_u16() {
                200 => {}
                500 => {
                    assert_eq!(response.headers()["karst-reason"], "backend_invalid");
                    failed += 1;
                }
                other => panic!("{other}"),
            }
            let _ = body_of(response).await;
        }
        assert!((130..=270).contains(&failed), "{failed}");
        proxy.route(vec![rule(&[])]);
        let response = client.send_request(get("/")).await.unwrap();
        assert_eq!(response.status(), 500);
    });
}

fn set(name: &str, value: &str) -> wire::HeaderModifier {
    wire::HeaderModifier {
        set: vec![wire::Header {
            name: name.to_owned(),
            value: value.to_owned(),
        }],
        ..wire::HeaderModifier::default()
    }
}

fn filter(kind: wire::filter::Kind) -> wire::Filter {
    wire::Filter { kind: Some(kind) }
}

#[test]
fn filters_change_requests_and_responses() {
    run(async {
        let proxy = Proxy::of(echo).await;
        let mut changing = rule(&[("shop", 1)]);
        changing.matches = vec![prefix("/old")];
        changing.filters = vec![
            filter(wire::filter::Kind::RequestHeaders(set("x-rule", "1"))),
            filter(wire::filter::Kind::ResponseHeaders(set("x-answer", "2"))),
            filter(wire::filter::Kind::Rewrite(wire::UrlRewrite {
                hostname: "inner.example".to_owned(),
                path: Some(wire::PathModifier {
                    kind: Some(wire::path_modifier::Kind::Prefix("/new".to_owned())),
                }),
            })),
        ];
        changing.backends[0].filters = vec![filter(wire::filter::Kind::RequestHeaders(set(
            "x-backend",
            "3",
        )))];
        let redirect = wire::HttpRule {
            matches: vec![prefix("/gone")],
            filters: vec![filter(wire::filter::Kind::Redirect(wire::Redirect {
                hostname: "example.com".to_owned(),
                status: 302,
                ..wire::Redirect::default()
            }))],
            ..wire::HttpRule::default()
        };
        proxy.route(vec![changing, redirect]);
        let mut client = proxy.http1().await;
        let response = client.send_request(get("/old/a?b")).await.unwrap();
        assert_eq!(response.headers()["x-answer"], "2");
        let body = body_of(response).await;
        for line in [
            "GET /new/a?b\n",
            "host: inner.example\n",
            "x-rule: 1",
            "x-backend: 3\n",
        ] {
            assert!(body.contains(line), "{body}");
        }
        let response = client.send_request(get("/gone/a")).await.unwrap();
        assert_eq!(response.status(), 302);
        let location = response.headers()["location"].to_str().unwrap();
        assert!(
            location.starts_with("http://example.com") && location.ends_with("/gone/a"),
            "{location}"
        );
        // Filters of responses see our own answers too.
        proxy.service(&[]);
        proxy.listen(&[super::support::ROUTE]);
        let response = client.send_request(get("/old")).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["x-answer"], "2");
    });
}

async fn four(proxy: &Proxy) {
    let mut endpoints = Vec::new();
    for n in 0..4 {
        endpoints.push(application(move |_| text(format!("{n}"))).await);
    }
    proxy.service(&endpoints);
}

fn persistent(kind: wire::session_persistence::Kind) -> wire::HttpRule {
    wire::HttpRule {
        session_persistence: Some(wire::SessionPersistence {
            kind: Some(kind),
            ..wire::SessionPersistence::default()
        }),
        ..rule(&[("shop", 1)])
    }
}

#[test]
fn a_session_stays_at_its_endpoint() {
    run(async {
        use wire::session_persistence::Kind;
        let proxy = Proxy::new();
        four(&proxy).await;
        for (kind, asked, given) in [
            (Kind::Cookie("sid".to_owned()), "cookie", "set-cookie"),
            (Kind::Header("x-sid".to_owned()), "x-sid", "x-sid"),
        ] {
            proxy.route(vec![persistent(kind)]);
            let mut client = proxy.http1().await;
            let mut homes = HashSet::new();
            for _ in 0..8 {
                let response = client.send_request(get("/")).await.unwrap();
                let token = response.headers()[given].to_str().unwrap().to_owned();
                assert!(
                    !token.contains("127.0.0.1") && !token.contains("Pod"),
                    "{token}"
                );
                let token = token.split(';').next().unwrap().to_owned();
                let home = body_of(response).await;
                for _ in 0..6 {
                    let mut request = get("/");
                    request.headers_mut().insert(asked, token.parse().unwrap());
                    let response = client.send_request(request).await.unwrap();
                    assert!(!response.headers().contains_key(given));
                    assert_eq!(body_of(response).await, home);
                }
                homes.insert(home);
            }
            assert!(homes.len() > 1, "{homes:?}");
            let mut request = get("/");
            request
                .headers_mut()
                .insert(asked, "sid=made-up".parse().unwrap());
            let response = client.send_request(request).await.unwrap();
            assert!(response.headers().contains_key(given));
        }
    });
}

#[test]
fn a_hash_cookie_is_set_for_those_who_have_none() {
    run(async {
        let proxy = Proxy::new();
        let mut endpoints = Vec::new();
        for n in 0..4 {
            endpoints.push(application(move |_| text(format!("{n}"))).await);
        }
        let mut shop = backend("shop", &endpoints);
        shop.policy = Some(wire::TrafficPolicy {
            load_balancing: Some(wire::LoadBalancing {
                algorithm: wire::Algorithm::RingHash.into(),
                hash: Some(wire::HashKey {
                    kind: Some(wire::hash_key::Kind::Cookie(wire::HashCookie {
                        name: "lb".to_owned(),
                        ..wire::HashCookie::default()
                    })),
                }),
                ..wire::LoadBalancing::default()
            }),
            ..wire::TrafficPolicy::default()
        });
        proxy.backend(shop);
        proxy.listen(&[]);
        let mut client = proxy.http1().await;
        let response = client.send_request(get("/")).await.unwrap();
        let cookie = response.headers()["set-cookie"]
            .to_str()
            .unwrap()
            .to_owned();
        let cookie = cookie.split(';').next().unwrap().to_owned();
        let home = body_of(response).await;
        for _ in 0..8 {
            let mut request = get("/");
            request
                .headers_mut()
                .insert("cookie", cookie.parse().unwrap());
            let response = client.send_request(request).await.unwrap();
            assert!(!response.headers().contains_key("set-cookie"));
            assert_eq!(body_of(response).await, home);
        }
    });
}

/// A gateway's port with a listener for `a.example` and one for all other names of `example`.
fn gateway(proxy: &Proxy, protocol: wire::ListenerProtocol) {
    let Entry::Service(service) = proxy.entry() else {
        panic!("a service");
    };
    let Routes::Http(router) = &service.producer_routes else {
        panic!("no routes");
    };
    let listener = |name: &str, hostname| {
        Arc::new(GatewayListener {
            name: name.to_owned(),
            hostname: Some(hostname),
            protocol,
            tls: None,
            routes: Routes::Http(Arc::clone(router)),
            authorization: Authorization::default(),
            authentication: Default::default(),
            reporting: None,
        })
    };
    let mut table = Table::default();
    let socket = SocketFrontend {
        port: 443,
        listeners: vec![
            listener("a", Hostname::Exact("a.example".to_owned())),
            listener("rest", Hostname::Suffix(".example".to_owned())),
        ],
    };
    table.sockets.insert(443, Arc::new(socket));
    proxy.tables.store(table);
}

#[test]
fn a_host_of_another_listener_is_misdirected() {
    run(async {
        let proxy =
            Proxy::of(|_: http::Request<Incoming>| async { Response::new(Body::full("page")) })
                .await;
        proxy.route(vec![rule(&[("shop", 1)])]);
        gateway(&proxy, wire::ListenerProtocol::ListenerHttps);
        let tls = |listener: &str| Entry::Gateway {
            port: 443,
            tls: Some(GatewayTls {
                listener: listener.to_owned(),
                server_name: None,
            }),
        };
        for (entry, host, status) in [
            (tls("a"), "a.example", "200"),
            (tls("a"), "A.example:443", "200"),
            (tls("rest"), "b.example", "200"),
            (tls("a"), "b.example", "421"),
            (tls("rest"), "a.example", "421"),
            (tls("a"), "c.other", "404"),
            (
                Entry::Gateway {
                    port: 443,
                    tls: None,
                },
                "a.example",
                "404",
            ),
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let answer = proxy.raw_to(entry, request).await;
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{host}: {answer}"
            );
        }
    });
}

#[test]
fn what_a_client_says_of_its_certificate_is_removed_at_a_gateway() {
    run(async {
        let proxy = Proxy::of(echo).await;
        proxy.route(vec![rule(&[("shop", 1)])]);
        gateway(&proxy, wire::ListenerProtocol::ListenerHttp);
        let entry = Entry::Gateway {
            port: 443,
            tls: None,
        };
        let answer = proxy
            .raw_to(
                entry,
                "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\
                 X-Forwarded-Client-Cert: URI=spiffe://x\r\nX-Forwarded-Proto: https\r\n\r\n",
            )
            .await;
        assert!(answer.contains("x-forwarded-proto: http\n"), "{answer}");
        assert!(!answer.contains("x-forwarded-client-cert"), "{answer}");
    });
}

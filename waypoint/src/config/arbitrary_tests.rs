//! Whatever arrives, nothing panics, and what is taken can be asked.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use karst_identity::SpiffeId;

use super::*;
use crate::authz::{Attributes, Destination, RequestAttributes, ServerName};
use crate::client::Client;
use crate::filter::{FilterContext, RequestScheme, apply_request, apply_response};

fn text() -> impl Strategy<Value = String> {
    let known = select(vec![
        "",
        "/",
        "/a",
        "/a/",
        "*",
        "*.a.com",
        "a.com",
        "x",
        "GET",
        "http",
        "https",
        "HTTPRoute/n/r",
        "TLSRoute/n/t",
        "n/b/80",
        "host",
        "(",
        "[a-z]+",
        "a)|(b",
        "é\n",
        "https://*.a.com",
    ]);
    prop_oneof![4 => known.prop_map(str::to_owned), 1 => any::<String>()]
}

fn value_match() -> impl Strategy<Value = wire::ValueMatch> {
    use wire::value_match::Kind;
    let kind = prop_oneof![
        Just(None),
        text().prop_map(|text| Some(Kind::Exact(text))),
        text().prop_map(|text| Some(Kind::Regex(text))),
    ];
    (text(), kind).prop_map(|(name, kind)| wire::ValueMatch { name, kind })
}

fn http_match() -> impl Strategy<Value = wire::HttpMatch> {
    use wire::path_match::Kind;
    let kind = prop_oneof![
        Just(None),
        text().prop_map(|text| Some(Kind::Exact(text))),
        text().prop_map(|text| Some(Kind::Prefix(text))),
        text().prop_map(|text| Some(Kind::Regex(text))),
    ];
    let path = proptest::option::of(kind.prop_map(|kind| wire::PathMatch { kind }));
    (
        path,
        vec(value_match(), 0..3),
        vec(value_match(), 0..3),
        text(),
    )
        .prop_map(|(path, headers, query, method)| wire::HttpMatch {
            path,
            headers,
            query,
            method,
        })
}

fn filter() -> impl Strategy<Value = wire::Filter> {
    use wire::filter::Kind;
    let header = || (text(), text()).prop_map(|(name, value)| wire::Header { name, value });
    let headers = || {
        (vec(header(), 0..3), vec(header(), 0..3), vec(text(), 0..3))
            .prop_map(|(set, add, remove)| wire::HeaderModifier { set, add, remove })
    };
    let path = || {
        let kind = prop_oneof![
            Just(None),
            text().prop_map(|text| Some(wire::path_modifier::Kind::Full(text))),
            text().prop_map(|text| Some(wire::path_modifier::Kind::Prefix(text))),
        ];
        proptest::option::of(kind.prop_map(|kind| wire::PathModifier { kind }))
    };
    let status = select(vec![0, 200, 301, 302, 303, 307, 308]);
    let redirect = (text(), text(), 0..70_000_u32, path(), status).prop_map(
        |(scheme, hostname, port, path, status)| wire::Redirect {
            scheme,
            hostname,
            port,
            path,
            status,
        },
    );
    let rewrite = (text(), path()).prop_map(|(hostname, path)| wire::UrlRewrite { hostname, path });
    let mirror = (text(), any::<u32>(), 0..3_u32).prop_map(|(backend, numerator, denominator)| {
        wire::Mirror {
            backend,
            numerator,
            denominator,
        }
    });
    let lists = (
        vec(text(), 0..3),
        vec(text(), 0..3),
        vec(text(), 0..3),
        vec(text(), 0..3),
    );
    let cors = (lists, any::<bool>(), any::<u32>()).prop_map(
        |(
            (allow_origins, allow_methods, allow_headers, expose_headers),
            allow_credentials,
            age,
        )| wire::Cors {
            allow_origins,
            allow_methods,
            allow_headers,
            expose_headers,
            allow_credentials,
            max_age_seconds: age,
        },
    );
    let kind = prop_oneof![
        Just(None),
        headers().prop_map(|wire| Some(Kind::RequestHeaders(wire))),
        headers().prop_map(|wire| Some(Kind::ResponseHeaders(wire))),
        redirect.prop_map(|wire| Some(Kind::Redirect(wire))),
        rewrite.prop_map(|wire| Some(Kind::Rewrite(wire))),
        mirror.prop_map(|wire| Some(Kind::Mirror(wire))),
        cors.prop_map(|wire| Some(Kind::Cors(wire))),
    ];
    kind.prop_map(|kind| wire::Filter { kind })
}

fn weighted() -> impl Strategy<Value = wire::WeightedBackend> {
    (text(), any::<u32>(), vec(filter(), 0..2), text()).prop_map(
        |(backend, weight, filters, invalid)| wire::WeightedBackend {
            backend,
            weight,
            filters,
            invalid,
        },
    )
}

fn any_route() -> impl Strategy<Value = wire::Route> {
    let rule = (
        text(),
        vec(http_match(), 0..3),
        vec(filter(), 0..3),
        vec(weighted(), 0..3),
        any::<Option<u64>>(),
        vec(any::<u32>(), 0..2),
    )
        .prop_map(
            |(name, matches, filters, backends, timeout, codes)| wire::HttpRule {
                name,
                matches,
                filters,
                backends,
                request_timeout_ms: timeout,
                backend_timeout_ms: timeout,
                retry: (!codes.is_empty()).then_some(wire::Retry {
                    attempts: 1,
                    codes,
                    backoff_ms: u64::MAX,
                }),
                session_persistence: None,
            },
        );
    let l4 = (text(), vec(weighted(), 0..3))
        .prop_map(|(name, backends)| wire::L4Rule { name, backends });
    (any::<i64>(), 0..6_i32, vec(rule, 0..3), vec(l4, 0..2)).prop_map(
        |(created, kind, http_rules, l4_rules)| wire::Route {
            name: R.to_owned(),
            created,
            kind,
            http_rules,
            l4_rules,
        },
    )
}

fn attribute_value() -> impl Strategy<Value = wire::AttributeValue> {
    use wire::attribute_value::Kind;
    let templates = vec!["/a/{*}", "/{**}/b", "/{*}/{**}", "/{**}/{*}", "{*}"];
    let block = (vec(any::<u8>(), 0..17), 0..140_u32)
        .prop_map(|(address, length)| wire::IpBlock { address, length });
    let kind = prop_oneof![
        Just(None),
        text().prop_map(|text| Some(Kind::Exact(text))),
        text().prop_map(|text| Some(Kind::Prefix(text))),
        text().prop_map(|text| Some(Kind::Suffix(text))),
        any::<bool>().prop_map(|present| Some(Kind::Present(present))),
        select(templates).prop_map(|text| Some(Kind::PathTemplate(text.to_owned()))),
        block.prop_map(|block| Some(Kind::IpBlock(block))),
        (0..70_000_u32).prop_map(|port| Some(Kind::Port(port))),
    ];
    kind.prop_map(|kind| wire::AttributeValue { kind })
}

fn attribute_match() -> impl Strategy<Value = wire::AttributeMatch> {
    let values = || vec(attribute_value(), 0..3);
    (0..18_i32, text(), values(), values()).prop_map(|(attribute, key, values, not_values)| {
        wire::AttributeMatch {
            attribute,
            key,
            values,
            not_values,
        }
    })
}

fn any_policy() -> impl Strategy<Value = wire::AuthorizationPolicy> {
    let set =
        || vec(attribute_match(), 0..2).prop_map(|matches| wire::AttributeMatches { matches });
    let rule = (
        any::<u32>(),
        vec(set(), 0..2),
        vec(set(), 0..2),
        vec(attribute_match(), 0..2),
    )
        .prop_map(|(index, from, to, when)| wire::AuthorizationRule {
            index,
            from,
            to,
            when,
        });
    let provider = (text(), text(), any::<u64>(), any::<u32>(), any::<bool>());
    let provider = provider.prop_map(|(backend, invalid, timeout_ms, number, is_grpc)| {
        let body = wire::CheckedBody {
            max_bytes: number,
            ..wire::CheckedBody::default()
        };
        let http = wire::HttpCheck {
            path_prefix: backend.clone(),
            ..wire::HttpCheck::default()
        };
        wire::ExtensionProvider {
            name: invalid.clone(),
            backend,
            invalid,
            timeout_ms,
            status_on_error: number,
            body: (number % 2 == 0).then_some(body),
            kind: Some(match is_grpc {
                true => wire::extension_provider::Kind::Grpc(wire::GrpcCheck {}),
                false => wire::extension_provider::Kind::Http(http),
            }),
            ..wire::ExtensionProvider::default()
        }
    });
    let provider = proptest::option::of(provider);
    (0..6_i32, any::<bool>(), vec(rule, 0..3), provider).prop_map(
        |(action, dry_run, rules, provider)| wire::AuthorizationPolicy {
            name: "n/p".to_owned(),
            action,
            dry_run,
            rules,
            provider,
        },
    )
}

fn any_listener() -> impl Strategy<Value = wire::Listener> {
    let attached = || {
        (text(), vec(text(), 0..3))
            .prop_map(|(route, hostnames)| wire::AttachedRoute { route, hostnames })
    };
    let address = || vec(any::<u8>(), 0..5);
    let listener = (
        text(),
        text(),
        0..7_i32,
        vec(text(), 0..2),
        vec(attached(), 0..3),
        0..4_i32,
    )
        .prop_map(
            |(name, hostname, protocol, certificates, routes, tls_min)| wire::GatewayListener {
                name,
                hostname,
                protocol,
                certificates,
                routes,
                tls_min,
                policies: vec!["n/p".to_owned()],
                ..Default::default()
            },
        );
    let socket = (0..70_000_u32, vec(listener, 0..3)).prop_map(|(port, listeners)| {
        wire::listener::Frontend::Socket(wire::SocketFrontend { port, listeners })
    });
    let set =
        (text(), vec(attached(), 0..3)).prop_map(|(client_namespace, routes)| wire::RouteSet {
            client_namespace,
            routes,
        });
    let service = (
        vec(address(), 0..3),
        0..70_000_u32,
        text(),
        vec(set, 0..3),
        text(),
    )
        .prop_map(|(addresses, port, backend, route_sets, hostname)| {
            wire::listener::Frontend::Service(wire::ServiceFrontend {
                addresses,
                port,
                backend,
                route_sets,
                hostname,
                policies: vec!["n/p".to_owned()],
                ..Default::default()
            })
        });
    let frontend = prop_oneof![Just(None), socket.prop_map(Some), service.prop_map(Some)];
    frontend.prop_map(|frontend| wire::Listener {
        name: "l".to_owned(),
        frontend,
    })
}

/// Asks the policies of a table about requests and connections.
fn authorize_all(table: &Table) {
    let services = table.services.values().chain(table.names.values());
    let services = services.map(|service| &service.authorization);
    let sockets = table.sockets.values().flat_map(|socket| &socket.listeners);
    let listeners = sockets.map(|listener| &listener.authorization);
    let mut headers = HeaderMap::new();
    headers.append("host", http::HeaderValue::from_static("a.com"));
    headers.append("x-forwarded-for", http::HeaderValue::from_static("x, ::1"));
    for authorization in services.chain(listeners) {
        for (path, hops) in [("/", 0), ("/a/b", 1), ("*", 9)] {
            let mut client = Client::new(SocketAddr::from(([10, 0, 0, 1], 1)), None);
            for http in [true, false] {
                let attributes = Attributes {
                    client: &client,
                    destination: Destination { ip: None, port: 80 },
                    server_name: ServerName::Is("a.com"),
                    request: http.then_some(RequestAttributes {
                        method: "GET",
                        host: "a.com",
                        port: Some("80"),
                        path,
                        headers: Some(&headers),
                        trusted_hops: hops,
                        request_principal: None,
                        token: None,
                    }),
                };
                let _ = authorization.decide(&attributes);
                authorization.observe(&attributes, |_| {});
            }
            client.identity = SpiffeId::parse("spiffe://td/ns/n/sa/x").ok();
        }
    }
}

/// Asks every router of a table, and applies the filters of the rules that answer.
fn ask_all(table: &Table) {
    let services = table.services.values().chain(table.names.values());
    let services = services.flat_map(|frontend| {
        frontend
            .consumer_routes
            .values()
            .chain([&frontend.producer_routes])
    });
    let sockets = table.sockets.values().flat_map(|socket| &socket.listeners);
    for routes in services.chain(sockets.map(|listener| &listener.routes)) {
        match routes {
            Routes::None => {}
            Routes::L4(router) => {
                let _ = router.route(Some("x.a.com"));
            }
            Routes::Http(router) => {
                for (host, path) in [("", "/"), ("a.com", "/a/b"), ("x.a.com", "*")] {
                    ask_one(router, host, path);
                }
            }
        }
    }
}

fn ask_one(router: &crate::route::HttpRouter, host: &str, path: &str) {
    let (mut parts, ()) = http::Request::new(()).into_parts();
    parts.uri = path.parse().unwrap();
    parts
        .headers
        .insert("origin", http::HeaderValue::from_static("https://b.a.com"));
    let head = RequestHead {
        method: &Method::GET,
        host,
        path,
        query: Some("x=%&x=1"),
        headers: &parts.headers.clone(),
    };
    if let Ok(matched) = router.route(&head) {
        let context = FilterContext {
            scheme: RequestScheme::Https,
            host,
            port: 443,
            path,
            prefix: matched.prefix,
            origin: head.headers.get("origin"),
        };
        let _ = apply_request(&matched.rule.filters, &mut parts, &context);
        let (mut response, ()) = http::Response::new(()).into_parts();
        apply_response(&matched.rule.filters, &mut response, &context);
        let _ = matched.rule.backends.choose(u64::MAX);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn structured_resources_never_panic(
        routes in vec(any_route(), 0..3),
        listeners in vec(any_listener(), 0..3),
        policy in any_policy(),
    ) {
        let mut proxy = Proxy::new();
        let rejected = proxy.policies(std::slice::from_ref(&policy));
        prop_assert!(rejected.iter().all(|(name, error)| name == "n/p" && !error.is_empty()));
        for route in &routes {
            let rejected = proxy.routes(std::slice::from_ref(route));
            prop_assert!(rejected.iter().all(|(name, error)| name == R && !error.is_empty()));
        }
        for listener in &listeners {
            proxy.listeners(std::slice::from_ref(listener));
            ask_all(&proxy.table());
            authorize_all(&proxy.table());
        }
        proxy.backends(&[backend("n/b/80", 1)]);
        ask_all(&proxy.table());
        proxy.removed(ROUTE_TYPE, R);
        proxy.removed(LISTENER_TYPE, "l");
        prop_assert!(proxy.table().services.is_empty() && proxy.table().sockets.is_empty());
    }

    #[test]
    fn bytes_never_panic(bytes in vec(any::<u8>(), 0..200), kind in 0..5_usize) {
        let mut proxy = Proxy::new();
        let types = [
            LISTENER_TYPE,
            ROUTE_TYPE,
            BACKEND_TYPE,
            TLS_SECRET_TYPE,
            AUTHORIZATION_POLICY_TYPE,
        ];
        let type_url = types[kind];
        let resource = Resource::pack(String::new(), vec![], String::new(), type_url, bytes);
        proxy.store.apply(type_url, vec![resource], vec![String::new()]);
        ask_all(&proxy.table());
    }
}

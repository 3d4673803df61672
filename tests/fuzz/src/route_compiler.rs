//! From bytes to wire resources to a table that is asked.
//!
//! An input is a sequence of resources: a byte for the type, two for the length, and the encoded message.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, Request, Response};
use karst_api::waypoint as wire;
use karst_api::{
    AUTHORIZATION_POLICY_TYPE, BACKEND_TYPE, LISTENER_TYPE, ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_client::{Resource, ResourceHandler};
use karst_waypoint::balance::Clusters;
use karst_waypoint::config::Store;
use karst_waypoint::filter::{FilterContext, RequestScheme, apply_request, apply_response};
use karst_waypoint::route::{HttpRouter, RequestHead, host_of};
use karst_waypoint::table::{Routes, Table, Tables};
use prost::Message;

const TYPES: [&str; 5] = [
    LISTENER_TYPE,
    ROUTE_TYPE,
    BACKEND_TYPE,
    TLS_SECRET_TYPE,
    AUTHORIZATION_POLICY_TYPE,
];

/// Applies the resources one by one, asks what comes of it, and takes them away again.
pub fn run(data: &[u8]) {
    let (tables, clusters) = (Arc::new(Tables::default()), Arc::new(Clusters::default()));
    let mut store = Store::new(clusters, Arc::clone(&tables));
    let mut applied = Vec::new();
    let mut rest = data;
    while let [kind, high, low, after @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
        let (value, after) = after.split_at(length);
        rest = after;
        let kind = usize::from(*kind) % TYPES.len();
        let name = name_of(kind, value);
        let packed = Resource::pack(
            name.clone(),
            Vec::new(),
            String::new(),
            TYPES[kind],
            value.to_vec(),
        );
        let rejected = store.apply(TYPES[kind], vec![packed], Vec::new());
        assert!(rejected.iter().all(|(rejected, _)| *rejected == name));
        applied.push((kind, name));
    }
    ask(&tables.load());
    for (kind, name) in applied {
        store.apply(TYPES[kind], Vec::new(), vec![name]);
    }
    let table = tables.load();
    assert!(table.services.is_empty() && table.names.is_empty());
    assert!(table.workloads.is_empty() && table.sockets.is_empty());
}

/// A resource comes under its own name; without this the store would refuse nearly all of them.
fn name_of(kind: usize, value: &[u8]) -> String {
    let name = match kind {
        0 => wire::Listener::decode(value).map(|wire| wire.name),
        1 => wire::Route::decode(value).map(|wire| wire.name),
        2 => wire::Backend::decode(value).map(|wire| wire.name),
        3 => wire::TlsSecret::decode(value).map(|wire| wire.name),
        _ => wire::AuthorizationPolicy::decode(value).map(|wire| wire.name),
    };
    name.unwrap_or_default()
}

fn ask(table: &Table) {
    let services = table.services.values().chain(table.names.values());
    let services = services.flat_map(|frontend| {
        let consumers = frontend.consumer_routes.values();
        consumers.chain([&frontend.producer_routes])
    });
    let listeners = table.sockets.values().flat_map(|socket| &socket.listeners);
    for routes in services.chain(listeners.map(|listener| &listener.routes)) {
        match routes {
            Routes::None => {}
            Routes::L4(router) => {
                let _ = router.route(Some("www.example.com"));
                let _ = router.route(None);
            }
            Routes::Http(router) => {
                for authority in ["", "www.Example.com:8080", "[::1]"] {
                    for target in ["/", "/foo/bar?a=1&b=%zz", "//x//", "*"] {
                        ask_one(router, authority, target);
                    }
                }
            }
        }
    }
}

fn ask_one(router: &HttpRouter, authority: &str, target: &str) {
    let mut headers = HeaderMap::new();
    headers.insert("origin", HeaderValue::from_static("https://a.example.com"));
    headers.append("version", HeaderValue::from_static("one"));
    headers.append("version", HeaderValue::from_static("two"));
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.uri = target.parse().unwrap();
    parts.headers = headers.clone();
    let (host, uri) = (host_of(authority), parts.uri.clone());
    let head = RequestHead {
        method: &Method::GET,
        host: &host,
        path: uri.path(),
        query: uri.query(),
        headers: &headers,
    };
    let Ok(matched) = router.route(&head) else {
        return;
    };
    let context = FilterContext {
        scheme: RequestScheme::Http,
        host: &host,
        port: 80,
        path: uri.path(),
        prefix: matched.prefix,
        origin: headers.get("origin"),
    };
    let backend = matched.rule.backends.choose(u64::MAX / 2);
    let filters = [
        Some(&matched.rule.filters),
        backend.map(|backend| &backend.filters),
    ];
    let (mut response, ()) = Response::new(()).into_parts();
    for filters in filters.into_iter().flatten() {
        if let Some(answer) = apply_request(filters, &mut parts, &context) {
            assert!(answer.status().as_u16() >= 200);
            return;
        }
        apply_response(filters, &mut response, &context);
    }
    assert!(parts.uri.path().starts_with(['/', '*']), "{}", parts.uri);
}

/// A service and a gateway with routes of every kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let service = frame(0, &service().encode_to_vec());
    let socket = frame(0, &socket().encode_to_vec());
    let http = frame(1, &http_route().encode_to_vec());
    let backend = frame(2, &backend().encode_to_vec());
    let tcp = wire::Route {
        name: "TCPRoute/n/t".to_owned(),
        kind: wire::RouteKind::RouteTcp.into(),
        l4_rules: vec![wire::L4Rule {
            name: "tcp".to_owned(),
            backends: vec![weighted("n/b/80", 1)],
        }],
        ..Default::default()
    };
    let tcp = frame(1, &tcp.encode_to_vec());
    vec![
        [&service[..], &http, &backend].concat(),
        [&http[..], &socket, &tcp, &backend].concat(),
        socket,
        http,
        backend,
        Vec::new(),
    ]
}

/// Resources that make a table for other targets: a service at 10.0.0.1:80 with the route of the seeds.
pub(crate) fn example(store: &mut Store) {
    let pack = |name: String, kind: usize, value| {
        Resource::pack(name, Vec::new(), String::new(), TYPES[kind], value)
    };
    for (kind, name, value) in [
        (2, backend().name, backend().encode_to_vec()),
        (1, http_route().name, http_route().encode_to_vec()),
        (0, service().name, service().encode_to_vec()),
    ] {
        let rejected = store.apply(TYPES[kind], vec![pack(name, kind, value)], Vec::new());
        assert!(rejected.is_empty(), "{rejected:?}");
    }
}

fn frame(kind: u8, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(value.len()).unwrap().to_be_bytes();
    [&[kind][..], &length, value].concat()
}

fn service() -> wire::Listener {
    let service = wire::ServiceFrontend {
        namespace: "n".to_owned(),
        name: "s".to_owned(),
        hostname: "s.n.svc.cluster.local".to_owned(),
        addresses: vec![vec![10, 0, 0, 1]],
        port: 80,
        protocol: wire::Protocol::Http1.into(),
        backend: "n/b/80".to_owned(),
        route_sets: vec![wire::RouteSet {
            client_namespace: String::new(),
            routes: vec![wire::AttachedRoute {
                route: "HTTPRoute/n/r".to_owned(),
                hostnames: Vec::new(),
            }],
        }],
        policies: Vec::new(),
        authentications: Vec::new(),
        telemetry: None,
    };
    wire::Listener {
        name: "service/n/s/80".to_owned(),
        frontend: Some(wire::listener::Frontend::Service(service)),
    }
}

fn socket() -> wire::Listener {
    let attached = |route: &str, hostname: &str| wire::AttachedRoute {
        route: route.to_owned(),
        hostnames: vec![hostname.to_owned()],
    };
    let listener =
        |hostname: &str, protocol: wire::ListenerProtocol, routes| wire::GatewayListener {
            name: format!("n/g/{hostname}"),
            hostname: hostname.to_owned(),
            protocol: protocol.into(),
            routes,
            ..Default::default()
        };
    let http = wire::ListenerProtocol::ListenerHttp;
    let passthrough = wire::ListenerProtocol::ListenerTlsPassthrough;
    let listeners = vec![
        listener(
            "*.example.com",
            http,
            vec![attached("HTTPRoute/n/r", "www.example.com")],
        ),
        listener("", http, vec![attached("HTTPRoute/n/missing", "*.org")]),
        listener(
            "t.example.com",
            passthrough,
            vec![attached("TCPRoute/n/t", "*.example.com")],
        ),
    ];
    wire::Listener {
        name: "socket/80".to_owned(),
        frontend: Some(wire::listener::Frontend::Socket(wire::SocketFrontend {
            port: 80,
            listeners,
        })),
    }
}

fn weighted(backend: &str, weight: u32) -> wire::WeightedBackend {
    wire::WeightedBackend {
        backend: backend.to_owned(),
        weight,
        ..Default::default()
    }
}

fn backend() -> wire::Backend {
    wire::Backend {
        name: "n/b/80".to_owned(),
        port: 80,
        ..Default::default()
    }
}

fn http_route() -> wire::Route {
    use wire::filter::Kind;
    let header = |name: &str, value: &str| wire::Header {
        name: name.to_owned(),
        value: value.to_owned(),
    };
    let changes = wire::HeaderModifier {
        set: vec![header("x-set", "1")],
        add: vec![header("x-add", "2")],
        remove: vec!["x-remove".to_owned()],
    };
    let path = Some(wire::PathModifier {
        kind: Some(wire::path_modifier::Kind::Prefix("/new/".to_owned())),
    });
    let rewrite = wire::UrlRewrite {
        hostname: "new.example".to_owned(),
        path: path.clone(),
    };
    let redirect = wire::Redirect {
        scheme: "https".to_owned(),
        path,
        status: 301,
        ..Default::default()
    };
    let cors = wire::Cors {
        allow_origins: vec!["https://*.example.com".to_owned()],
        allow_methods: vec!["*".to_owned()],
        allow_credentials: true,
        ..Default::default()
    };
    let rule =
        |prefix: &str, conditions: Vec<wire::ValueMatch>, filters: Vec<Kind>| wire::HttpRule {
            matches: vec![wire::HttpMatch {
                path: Some(wire::PathMatch {
                    kind: Some(wire::path_match::Kind::Prefix(prefix.to_owned())),
                }),
                headers: conditions,
                ..Default::default()
            }],
            filters: filters
                .into_iter()
                .map(|kind| wire::Filter { kind: Some(kind) })
                .collect(),
            backends: vec![weighted("n/b/80", 9), weighted("n/b/80", 1)],
            ..Default::default()
        };
    let version = wire::ValueMatch {
        name: "version".to_owned(),
        kind: Some(wire::value_match::Kind::Regex("one.*|[a-z]+".to_owned())),
    };
    wire::Route {
        name: "HTTPRoute/n/r".to_owned(),
        kind: wire::RouteKind::RouteHttp.into(),
        http_rules: vec![
            rule(
                "/foo",
                vec![version],
                vec![Kind::Rewrite(rewrite), Kind::RequestHeaders(changes)],
            ),
            rule("/old", vec![], vec![Kind::Redirect(redirect)]),
            rule("/", vec![], vec![Kind::Cors(cors)]),
        ],
        ..Default::default()
    }
}

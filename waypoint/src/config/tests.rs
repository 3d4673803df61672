//! The store, fed with resources and read as tables.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{HeaderMap, Method};
use karst_api::waypoint as wire;
use karst_api::{
    AUTHORIZATION_POLICY_TYPE, BACKEND_TYPE, LISTENER_TYPE, ROUTE_TYPE, TLS_SECRET_TYPE,
};
use karst_client::{Resource, ResourceHandler};
use prost::Message;

use super::*;
use crate::balance::Clusters;
use crate::route::{NoRoute, RequestHead};
use crate::table::{BackendTarget, Routes, Table, Tables};

#[path = "arbitrary_tests.rs"]
mod arbitrary;
#[path = "policies_tests.rs"]
mod policies_tests;
#[path = "testing.rs"]
pub(super) mod testing;

/// A store with what it writes to.
struct Proxy {
    store: Store,
    tables: Arc<Tables>,
    clusters: Arc<Clusters>,
}

type Rejected = Vec<(String, String)>;

fn packed(name: &str, type_url: &str, message: &impl Message) -> Resource {
    let value = message.encode_to_vec();
    Resource::pack(name.to_owned(), Vec::new(), "1".to_owned(), type_url, value)
}

impl Proxy {
    fn new() -> Self {
        let (tables, clusters) = (Arc::new(Tables::default()), Arc::new(Clusters::default()));
        Self {
            store: Store::new(Arc::clone(&clusters), Arc::clone(&tables)),
            tables,
            clusters,
        }
    }

    fn listeners(&mut self, listeners: &[wire::Listener]) -> Rejected {
        let packed = listeners
            .iter()
            .map(|wire| packed(&wire.name, LISTENER_TYPE, wire));
        self.store
            .apply(LISTENER_TYPE, packed.collect(), Vec::new())
    }

    fn routes(&mut self, routes: &[wire::Route]) -> Rejected {
        let packed = routes
            .iter()
            .map(|wire| packed(&wire.name, ROUTE_TYPE, wire));
        self.store.apply(ROUTE_TYPE, packed.collect(), Vec::new())
    }

    fn backends(&mut self, backends: &[wire::Backend]) -> Rejected {
        let packed = backends
            .iter()
            .map(|wire| packed(&wire.name, BACKEND_TYPE, wire));
        self.store.apply(BACKEND_TYPE, packed.collect(), Vec::new())
    }

    fn secrets(&mut self, secrets: &[wire::TlsSecret]) -> Rejected {
        let packed = secrets
            .iter()
            .map(|wire| packed(&wire.name, TLS_SECRET_TYPE, wire));
        self.store
            .apply(TLS_SECRET_TYPE, packed.collect(), Vec::new())
    }

    fn policies(&mut self, policies: &[wire::AuthorizationPolicy]) -> Rejected {
        let packed = policies
            .iter()
            .map(|wire| packed(&wire.name, AUTHORIZATION_POLICY_TYPE, wire));
        self.store
            .apply(AUTHORIZATION_POLICY_TYPE, packed.collect(), Vec::new())
    }

    fn removed(&mut self, type_url: &str, name: &str) {
        let rejected = self
            .store
            .apply(type_url, Vec::new(), vec![name.to_owned()]);
        assert_eq!(rejected, []);
    }

    fn table(&self) -> Arc<Table> {
        self.tables.load()
    }

    /// Asks the service at 10.0.0.1:80; tells the rule and the first backend.
    fn ask(&self, path: &str) -> String {
        let table = self.table();
        let address: SocketAddr = "10.0.0.1:80".parse().unwrap();
        let Some(frontend) = table.services.get(&address) else {
            return "no listener".to_owned();
        };
        answer(frontend.routes(None), "", path)
    }

    fn state(&self, name: &str) -> (State, Vec<String>) {
        let items = self.store.listing().items();
        let item = items.into_iter().find(|item| item.name == name).unwrap();
        (item.state, item.problems)
    }

    fn endpoints(&self, backend: &str) -> usize {
        self.clusters.get(backend).endpoints().len()
    }
}

fn answer(routes: &Routes, host: &str, path: &str) -> String {
    let Routes::Http(router) = routes else {
        return "no routes".to_owned();
    };
    let head = RequestHead {
        method: &Method::GET,
        host,
        path,
        query: None,
        headers: &HeaderMap::new(),
    };
    match router.route(&head) {
        Ok(matched) => match matched
            .rule
            .backends
            .list
            .first()
            .map(|backend| &backend.target)
        {
            Some(BackendTarget::Cluster(cluster)) => {
                format!("{} {}", matched.rule.route, cluster.name())
            }
            Some(BackendTarget::Invalid(reason)) => format!("{} {reason}", matched.rule.route),
            None => matched.rule.route.to_string(),
        },
        Err(error) => error.reason().to_owned(),
    }
}

fn attached(name: &str, hostnames: &[&str]) -> wire::AttachedRoute {
    wire::AttachedRoute {
        route: name.to_owned(),
        hostnames: hostnames.iter().map(|name| (*name).to_owned()).collect(),
    }
}

fn service_named(name: &str, address: [u8; 4], routes: &[&str]) -> wire::Listener {
    let sets = wire::RouteSet {
        client_namespace: String::new(),
        routes: routes.iter().map(|name| attached(name, &[])).collect(),
    };
    wire::Listener {
        name: name.to_owned(),
        frontend: Some(wire::listener::Frontend::Service(wire::ServiceFrontend {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            hostname: "Cart.shop.svc.cluster.local".to_owned(),
            addresses: vec![address.to_vec()],
            port: 80,
            protocol: wire::Protocol::Http1.into(),
            backend: "shop/cart/80".to_owned(),
            route_sets: if routes.is_empty() {
                vec![]
            } else {
                vec![sets]
            },
            policies: Vec::new(),
            authentications: Vec::new(),
            telemetry: None,
        })),
    }
}

fn service(routes: &[&str]) -> wire::Listener {
    service_named("service/shop/cart/80", [10, 0, 0, 1], routes)
}

fn route(name: &str, prefix: &str, backend: &str) -> wire::Route {
    wire::Route {
        name: name.to_owned(),
        kind: wire::RouteKind::RouteHttp.into(),
        http_rules: vec![wire::HttpRule {
            matches: vec![wire::HttpMatch {
                path: Some(wire::PathMatch {
                    kind: Some(wire::path_match::Kind::Prefix(prefix.to_owned())),
                }),
                ..Default::default()
            }],
            backends: vec![wire::WeightedBackend {
                backend: backend.to_owned(),
                weight: 1,
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A route that no version of the proxy takes.
fn broken(name: &str) -> wire::Route {
    route(name, "without a slash", "shop/cart/80")
}

fn backend(name: &str, endpoints: usize) -> wire::Backend {
    let endpoint = |index: usize| wire::Endpoint {
        uid: format!("{name}/{index}"),
        address: vec![10, 1, 0, u8::try_from(index).unwrap()],
        port: 8080,
        ..Default::default()
    };
    wire::Backend {
        name: name.to_owned(),
        port: 80,
        endpoints: (0..endpoints).map(endpoint).collect(),
        ..Default::default()
    }
}

fn socket(listeners: Vec<wire::GatewayListener>) -> wire::Listener {
    wire::Listener {
        name: "socket/443".to_owned(),
        frontend: Some(wire::listener::Frontend::Socket(wire::SocketFrontend {
            port: 443,
            listeners,
        })),
    }
}

fn https(name: &str, hostname: &str, certificates: &[&str]) -> wire::GatewayListener {
    wire::GatewayListener {
        name: name.to_owned(),
        hostname: hostname.to_owned(),
        protocol: wire::ListenerProtocol::ListenerHttps.into(),
        certificates: certificates.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

const R: &str = "HTTPRoute/shop/r";

#[test]
fn a_table_comes_of_resources_in_any_order() {
    for order in [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ] {
        let mut proxy = Proxy::new();
        for step in order {
            let rejected = match step {
                0 => proxy.listeners(&[service(&[R])]),
                1 => proxy.routes(&[route(R, "/", "shop/cart/80")]),
                _ => proxy.backends(&[backend("shop/cart/80", 2)]),
            };
            assert_eq!(rejected, []);
        }
        assert_eq!(
            proxy.ask("/x"),
            "HTTPRoute/shop/r shop/cart/80",
            "{order:?}"
        );
        assert_eq!(proxy.endpoints("shop/cart/80"), 2);
        assert_eq!(proxy.state(R), (State::Active, vec![]), "{order:?}");
        let name = ("cart.shop.svc.cluster.local".to_owned(), 80);
        assert!(proxy.table().names.contains_key(&name));
    }
}

#[test]
fn without_routes_traffic_goes_to_the_service_and_with_them_to_nothing_else() {
    let mut proxy = Proxy::new();
    proxy.listeners(&[service(&[])]);
    assert_eq!(proxy.ask("/"), "no routes");
    proxy.routes(&[route(R, "/only", "shop/cart/80")]);
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.listeners(&[service(&[R])]);
    assert_eq!(proxy.ask("/only"), "HTTPRoute/shop/r shop/cart/80");
    assert_eq!(proxy.ask("/other"), "no_route");
    proxy.removed(LISTENER_TYPE, "service/shop/cart/80");
    assert_eq!(proxy.ask("/only"), "no listener");
    assert!(proxy.table().names.is_empty());
}

#[test]
fn a_missing_route_fails_its_traffic_until_it_comes() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.listeners(&[service(&[R])]);
    assert_eq!(proxy.ask("/"), NoRoute::NotReady.reason());
    let (_, problems) = proxy.state("service/shop/cart/80");
    assert_eq!(problems, ["waits for route \"HTTPRoute/shop/r\""]);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    assert_eq!(proxy.ask("/"), "HTTPRoute/shop/r shop/cart/80");
    assert_eq!(proxy.state("service/shop/cart/80"), (State::Active, vec![]));
}

#[test]
fn an_invalid_version_is_refused_and_the_last_good_one_stays() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.listeners(&[service(&[R])]);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    let other = "HTTPRoute/shop/other";
    let rejected = proxy.routes(&[broken(R), route(other, "/x", "shop/cart/80")]);
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0].0, R);
    assert!(
        rejected[0]
            .1
            .starts_with("http_rules[0].matches[0].path.prefix "),
        "{rejected:?}"
    );
    assert_eq!(proxy.ask("/"), "HTTPRoute/shop/r shop/cart/80");
    assert_eq!(proxy.state(R).0, State::Stale);
    assert_eq!(proxy.state(other).0, State::Active);
    assert_eq!(proxy.routes(&[route(R, "/new", "shop/cart/80")]), []);
    assert_eq!(proxy.ask("/"), "no_route");
    assert_eq!(proxy.state(R), (State::Active, vec![]));
}

#[test]
fn a_route_without_a_good_version_fails_only_its_host_names() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.routes(&[broken(R), route("HTTPRoute/shop/ok", "/", "shop/cart/80")]);
    let listener = wire::GatewayListener {
        protocol: wire::ListenerProtocol::ListenerHttp.into(),
        routes: vec![
            attached(R, &["broken.example"]),
            attached("HTTPRoute/shop/ok", &["ok.example"]),
        ],
        ..Default::default()
    };
    assert_eq!(proxy.listeners(&[socket(vec![listener])]), []);
    let table = proxy.table();
    let routes = &table.sockets[&443].listeners[0].routes;
    assert_eq!(answer(routes, "broken.example", "/"), "route_not_ready");
    assert_eq!(
        answer(routes, "ok.example", "/"),
        "HTTPRoute/shop/ok shop/cart/80"
    );
    assert_eq!(answer(routes, "other.example", "/"), "no_route");
    assert_eq!(proxy.state(R).0, State::Rejected);
    // Nothing waits for it.
    assert_eq!(proxy.state("socket/443").0, State::Active);
}

#[test]
fn a_listener_keeps_its_routes_until_a_new_one_has_come() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    proxy.listeners(&[service(&[R])]);
    let new = "HTTPRoute/shop/new";
    proxy.listeners(&[service(&[R, new])]);
    assert_eq!(proxy.ask("/new"), "HTTPRoute/shop/r shop/cart/80");
    assert_eq!(proxy.state("service/shop/cart/80").0, State::Waiting);
    proxy.routes(&[route(new, "/new", "shop/cart/80")]);
    assert_eq!(proxy.ask("/new"), "HTTPRoute/shop/new shop/cart/80");
    assert_eq!(proxy.state("service/shop/cart/80"), (State::Active, vec![]));
    // The other way: a route goes, and then the listener's word of it.
    proxy.removed(ROUTE_TYPE, new);
    assert_eq!(proxy.ask("/new"), "HTTPRoute/shop/new shop/cart/80");
    proxy.listeners(&[service(&[R])]);
    assert_eq!(proxy.ask("/new"), "HTTPRoute/shop/r shop/cart/80");
}

#[test]
fn a_listener_does_not_wait_for_what_was_refused() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    proxy.listeners(&[service(&[R])]);
    let new = "HTTPRoute/shop/new";
    proxy.listeners(&[service(&[R, new])]);
    assert_eq!(proxy.state("service/shop/cart/80").0, State::Waiting);
    assert_eq!(proxy.routes(&[broken(new)]).len(), 1);
    assert_eq!(proxy.state("service/shop/cart/80").0, State::Active);
    assert_eq!(proxy.ask("/"), "route_not_ready");
}

#[test]
fn a_route_keeps_its_backends_until_the_new_ones_have_come() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    proxy.listeners(&[service(&[R])]);
    proxy.routes(&[route(R, "/", "shop/v2/80")]);
    assert_eq!(proxy.ask("/"), "HTTPRoute/shop/r shop/cart/80");
    assert_eq!(
        proxy.state(R),
        (
            State::Waiting,
            vec!["waits for backend \"shop/v2/80\"".to_owned()]
        )
    );
    // One that was refused is known as well: requests get its error.
    let invalid = wire::Backend {
        endpoints: vec![wire::Endpoint::default()],
        ..backend("shop/v2/80", 0)
    };
    assert_eq!(proxy.backends(&[invalid]).len(), 1);
    assert_eq!(proxy.ask("/"), "HTTPRoute/shop/r shop/v2/80");
    assert_eq!(proxy.endpoints("shop/v2/80"), 0);
    proxy.backends(&[backend("shop/v2/80", 3)]);
    assert_eq!(proxy.endpoints("shop/v2/80"), 3);
    assert_eq!(proxy.state(R), (State::Active, vec![]));
}

#[test]
fn a_backend_goes_when_no_route_needs_it() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1), backend("shop/v2/80", 2)]);
    proxy.routes(&[route(R, "/", "shop/v2/80")]);
    proxy.listeners(&[service(&[R])]);
    proxy.removed(BACKEND_TYPE, "shop/v2/80");
    assert_eq!(proxy.endpoints("shop/v2/80"), 2);
    // It may come back.
    proxy.backends(&[backend("shop/v2/80", 3)]);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    assert_eq!(proxy.endpoints("shop/v2/80"), 3);
    proxy.removed(BACKEND_TYPE, "shop/v2/80");
    assert_eq!(proxy.endpoints("shop/v2/80"), 0);
    // The service's own as well.
    proxy.removed(BACKEND_TYPE, "shop/cart/80");
    assert_eq!(proxy.endpoints("shop/cart/80"), 1);
    proxy.removed(ROUTE_TYPE, R);
    proxy.removed(LISTENER_TYPE, "service/shop/cart/80");
    assert_eq!(proxy.endpoints("shop/cart/80"), 0);
}

#[test]
fn clients_have_the_routes_of_their_namespace() {
    let mut proxy = Proxy::new();
    proxy.backends(&[backend("shop/cart/80", 1)]);
    let (ours, theirs) = ("HTTPRoute/shop/ours", "HTTPRoute/client/theirs");
    proxy.routes(&[
        route(ours, "/", "shop/cart/80"),
        route(theirs, "/", "shop/cart/80"),
    ]);
    let mut listener = service(&[ours]);
    let Some(wire::listener::Frontend::Service(service)) = &mut listener.frontend else {
        unreachable!();
    };
    service.route_sets.push(wire::RouteSet {
        client_namespace: "client".to_owned(),
        routes: vec![attached(theirs, &[])],
    });
    let twice = service.route_sets[0].clone();
    proxy.listeners(std::slice::from_ref(&listener));
    let table = proxy.table();
    let frontend = &table.services[&SocketAddr::from(([10, 0, 0, 1], 80))];
    assert!(answer(frontend.routes(Some("client")), "", "/").starts_with(theirs));
    assert!(answer(frontend.routes(Some("shop")), "", "/").starts_with(ours));
    assert!(answer(frontend.routes(None), "", "/").starts_with(ours));
    if let Some(wire::listener::Frontend::Service(service)) = &mut listener.frontend {
        service.route_sets.push(twice);
    }
    let rejected = proxy.listeners(&[listener]);
    assert!(
        rejected[0]
            .1
            .starts_with("service.route_sets[2].client_namespace "),
        "{rejected:?}"
    );
}

#[test]
fn listeners_of_a_socket_stand_by_their_host_names() {
    let mut proxy = Proxy::new();
    let names = ["", "*.com", "a.com", "*.a.com", "longer.a.com"];
    let listeners = names.map(|name| wire::GatewayListener {
        protocol: wire::ListenerProtocol::ListenerTlsPassthrough.into(),
        ..https(name, name, &[])
    });
    assert_eq!(proxy.listeners(&[socket(listeners.into())]), []);
    let table = proxy.table();
    let listeners = &table.sockets[&443].listeners;
    let order: Vec<_> = listeners
        .iter()
        .map(|listener| listener.name.as_str())
        .collect();
    assert_eq!(order, ["longer.a.com", "a.com", "*.a.com", "*.com", ""]);
    assert!(
        listeners
            .iter()
            .all(|listener| matches!(listener.routes, Routes::L4(_)))
    );
}

#[test]
fn the_first_of_two_listeners_keeps_an_address() {
    let mut proxy = Proxy::new();
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    proxy.backends(&[backend("shop/cart/80", 1)]);
    proxy.listeners(&[
        service_named("b", [10, 0, 0, 1], &[]),
        service_named("a", [10, 0, 0, 1], &[R]),
    ]);
    assert_eq!(proxy.ask("/"), "HTTPRoute/shop/r shop/cart/80");
    proxy.removed(LISTENER_TYPE, "a");
    assert_eq!(proxy.ask("/"), "no routes");
}

#[test]
fn workloads_are_found_by_address() {
    let mut proxy = Proxy::new();
    let workload = |endpoint| wire::Listener {
        name: "workload/uid".to_owned(),
        frontend: Some(wire::listener::Frontend::Workload(wire::WorkloadFrontend {
            addresses: vec![vec![10, 0, 0, 9]],
            endpoint,
            ports: vec![wire::WorkloadPort {
                port: 80,
                protocol: wire::Protocol::Http2.into(),
            }],
            policies: Vec::new(),
            authentications: Vec::new(),
            telemetry: None,
            workload: None,
        })),
    };
    let endpoint = wire::Endpoint {
        uid: "uid".to_owned(),
        address: vec![10, 0, 0, 9],
        ..Default::default()
    };
    assert_eq!(proxy.listeners(&[workload(Some(endpoint))]), []);
    let table = proxy.table();
    let frontend = &table.workloads[&IpAddr::from([10, 0, 0, 9])];
    assert_eq!(frontend.ports[&80], wire::Protocol::Http2);
    let rejected = proxy.listeners(&[workload(None)]);
    assert_eq!(rejected[0].1, "workload.endpoint is missing");
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let mut proxy = Proxy::new();
    let misnamed = packed("other", LISTENER_TYPE, &service(&[]));
    let mistyped = packed("service/shop/cart/80", ROUTE_TYPE, &service(&[]));
    let garbage = Resource::pack(
        "g".to_owned(),
        vec![],
        String::new(),
        LISTENER_TYPE,
        vec![0xff; 9],
    );
    let list = vec![misnamed, mistyped, garbage];
    let rejected = proxy.store.apply(LISTENER_TYPE, list, Vec::new());
    let names: Vec<_> = rejected.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["other", "service/shop/cart/80", "g"]);
    let unknown = packed("x", "type.googleapis.com/unknown", &service(&[]));
    let rejected = proxy
        .store
        .apply("type.googleapis.com/unknown", vec![unknown], Vec::new());
    assert_eq!(rejected.len(), 1);
    assert!(proxy.table().services.is_empty());
    assert_eq!(proxy.state("g").0, State::Rejected);
}

#[test]
fn a_bad_certificate_concerns_its_listener_alone() {
    let mut proxy = Proxy::new();
    let authority = testing::Authority::new("ca");
    let good = authority.secret("Secret/gw/good", &["good.example"]);
    let mut bad = authority.secret("Secret/gw/bad", &["bad.example"]);
    bad.private_key = good.private_key.clone();
    let rejected = proxy.secrets(&[good, bad]);
    assert_eq!(rejected.len(), 1);
    assert!(
        rejected[0]
            .1
            .starts_with("private_key does not fit the certificate"),
        "{rejected:?}"
    );
    let listeners = vec![
        https("good", "good.example", &["Secret/gw/good"]),
        https("bad", "bad.example", &["Secret/gw/bad"]),
        https("none", "none.example", &[]),
    ];
    assert_eq!(proxy.listeners(&[socket(listeners)]), []);
    let usable = |proxy: &Proxy| {
        let table = proxy.table();
        let listeners = table.sockets[&443].listeners.iter();
        let mut usable: Vec<_> = listeners
            .filter(|listener| listener.tls.is_some())
            .map(|listener| listener.name.clone())
            .collect();
        usable.sort_unstable();
        usable
    };
    assert_eq!(usable(&proxy), ["good"]);
    assert_eq!(proxy.state("socket/443").1.len(), 2);
    proxy.secrets(&[authority.secret("Secret/gw/bad", &["bad.example"])]);
    assert_eq!(usable(&proxy), ["bad", "good"]);
}

#[test]
fn tls_is_set_up_anew_only_when_its_certificates_change() {
    let mut proxy = Proxy::new();
    let authority = testing::Authority::new("ca");
    proxy.secrets(&[authority.secret("Secret/gw/a", &["a.example"])]);
    proxy.backends(&[backend("shop/cart/80", 1)]);
    let listener = |routes: &[&str]| {
        let mut listener = https("a", "", &["Secret/gw/a"]);
        listener.routes = routes.iter().map(|name| attached(name, &[])).collect();
        socket(vec![listener])
    };
    let config = |proxy: &Proxy| {
        let table = proxy.table();
        table.sockets[&443].listeners[0].tls.clone().unwrap()
    };
    proxy.listeners(&[listener(&[])]);
    let first = config(&proxy);
    proxy.routes(&[route(R, "/", "shop/cart/80")]);
    proxy.listeners(&[listener(&[R])]);
    assert!(Arc::ptr_eq(&first, &config(&proxy)));
    proxy.routes(&[route(R, "/x", "shop/cart/80")]);
    assert!(Arc::ptr_eq(&first, &config(&proxy)));
    proxy.secrets(&[authority.secret("Secret/gw/a", &["a.example"])]);
    assert!(!Arc::ptr_eq(&first, &config(&proxy)));
}

#[test]
fn nothing_goes_out_in_clear_while_tls_cannot_be_set_up() {
    let mut proxy = Proxy::new();
    let authority = testing::Authority::new("ca");
    let mut secured = backend("shop/cart/80", 1);
    secured.tls = Some(wire::BackendTls {
        hostname: "cart.example".to_owned(),
        authorities: vec!["ConfigMap/shop/ca".to_owned()],
        ..Default::default()
    });
    let settings = |proxy: &Proxy| proxy.clusters.get("shop/cart/80").settings();
    proxy.backends(std::slice::from_ref(&secured));
    assert!(settings(&proxy).tls.is_none());
    assert_eq!(
        settings(&proxy).invalid.as_deref(),
        Some("backend_tls_not_ready")
    );
    proxy.secrets(&[authority.bundle("ConfigMap/shop/ca")]);
    let first = settings(&proxy);
    assert!(first.invalid.is_none());
    // Endpoints come and go; connections of the same TLS stay good.
    secured.endpoints.clear();
    proxy.backends(std::slice::from_ref(&secured));
    let tls = |settings: &crate::balance::ClusterSettings| settings.tls.clone().unwrap();
    assert!(Arc::ptr_eq(&tls(&first), &tls(&settings(&proxy))));
    // A new setting waits for what it needs.
    if let Some(tls) = &mut secured.tls {
        tls.authorities = vec!["ConfigMap/shop/other".to_owned()];
    }
    proxy.backends(std::slice::from_ref(&secured));
    assert_eq!(proxy.state("shop/cart/80").0, State::Waiting);
    assert!(Arc::ptr_eq(&tls(&first), &tls(&settings(&proxy))));
    proxy.secrets(&[testing::Authority::new("other").bundle("ConfigMap/shop/other")]);
    assert_eq!(proxy.state("shop/cart/80").0, State::Active);
    assert!(!Arc::ptr_eq(&tls(&first), &tls(&settings(&proxy))));
}

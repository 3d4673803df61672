//! Listeners of Gateways: what is accepted, what conflicts, what is said of it.

use serde_json::{Value, json};

use super::support::{Edge, gateway, http, https, secret, tls, waypoint};
use crate::{Kind, index::tests::support::error};

const GATEWAY: Kind = Kind::Gateway;

/// The condition `Conflicted` of each listener, in order.
fn conflicts(listeners: Value) -> Vec<String> {
    let edge = Edge::new([secret("cert", 0), gateway("web", listeners)]);
    let (_, fields) = edge.status(GATEWAY, "web").unwrap();
    let listeners = fields["listeners"].as_array().unwrap().iter();
    listeners
        .map(|listener| edge.of_listener("web", listener["name"].as_str().unwrap(), "Conflicted"))
        .collect()
}

#[test]
fn a_gateway_with_one_good_listener_is_accepted() {
    let edge = Edge::new([gateway("web", json!([http(json!({}))]))]);
    assert_eq!(edge.condition(GATEWAY, "web", "Accepted"), "True Accepted");
    assert_eq!(
        edge.condition(GATEWAY, "web", "ResolvedRefs"),
        "True ResolvedRefs"
    );
    assert_eq!(edge.kinds("web", "http"), ["HTTPRoute", "GRPCRoute"]);
    for (condition, expected) in [
        ("Accepted", "True Accepted"),
        ("Programmed", "True Programmed"),
        ("ResolvedRefs", "True ResolvedRefs"),
        ("Conflicted", "False NoConflicts"),
        ("OverlappingTLSConfig", "-"),
    ] {
        assert_eq!(edge.of_listener("web", "http", condition), expected);
    }
    assert_eq!(edge.attached("web", "http"), 0);
}

#[test]
fn a_protocol_that_is_not_supported_takes_its_listener_out() {
    let other = json!({"name": "odd", "port": 1111, "protocol": "ODD"});
    let edge = Edge::new([gateway("web", json!([other]))]);
    assert_eq!(
        edge.condition(GATEWAY, "web", "Accepted"),
        "False ListenersNotValid"
    );
    assert_eq!(
        edge.condition(GATEWAY, "web", "Programmed"),
        "False Invalid"
    );
    assert_eq!(
        edge.of_listener("web", "odd", "Accepted"),
        "False UnsupportedProtocol"
    );
    assert_eq!(
        edge.of_listener("web", "odd", "Programmed"),
        "False Invalid"
    );
    assert!(edge.kinds("web", "odd").is_empty());
    assert!(edge.sockets("web").is_empty());

    let edge = Edge::new([gateway("web", json!([http(json!({})), other]))]);
    assert_eq!(
        edge.condition(GATEWAY, "web", "Accepted"),
        "True ListenersNotValid"
    );
    assert_eq!(edge.of_listener("web", "http", "Accepted"), "True Accepted");
    assert_eq!(
        edge.of_listener("web", "odd", "Accepted"),
        "False UnsupportedProtocol"
    );
    let ports: Vec<u32> = edge.sockets("web").iter().map(|(port, _)| *port).collect();
    assert_eq!(ports, [80]);

    let udp = json!({"name": "udp", "port": 53, "protocol": "UDP"});
    let edge = Edge::new([gateway("web", json!([udp]))]);
    assert_eq!(
        edge.of_listener("web", "udp", "Accepted"),
        "False UnsupportedProtocol"
    );
}

#[test]
fn kinds_of_routes_that_cannot_attach_are_named() {
    let kinds = |kinds: Value| http(json!({"allowedRoutes": {"kinds": kinds}}));
    let edge = Edge::new([gateway(
        "web",
        json!([kinds(json!([{"kind": "OddRoute"}]))]),
    )]);
    assert_eq!(
        edge.of_listener("web", "http", "ResolvedRefs"),
        "False InvalidRouteKinds"
    );
    assert_eq!(edge.of_listener("web", "http", "Accepted"), "True Accepted");
    assert_eq!(
        edge.of_listener("web", "http", "Programmed"),
        "False Invalid"
    );
    assert!(edge.kinds("web", "http").is_empty());
    assert_eq!(
        edge.condition(GATEWAY, "web", "ResolvedRefs"),
        "False ListenersNotResolved"
    );

    let both = json!([{"kind": "OddRoute"}, {"kind": "HTTPRoute"}]);
    let edge = Edge::new([gateway("web", json!([kinds(both)]))]);
    assert_eq!(
        edge.of_listener("web", "http", "ResolvedRefs"),
        "False InvalidRouteKinds"
    );
    assert_eq!(
        edge.of_listener("web", "http", "Programmed"),
        "True Programmed"
    );
    assert_eq!(edge.kinds("web", "http"), ["HTTPRoute"]);

    // A kind is one of its group.
    let other_group = json!([{"group": "example.com", "kind": "HTTPRoute"}]);
    let edge = Edge::new([gateway("web", json!([kinds(other_group)]))]);
    assert!(edge.kinds("web", "http").is_empty());
}

#[test]
fn tls_listeners_take_tls_routes() {
    let routes = json!({"allowedRoutes": {"kinds": [{"kind": "TCPRoute"}, {"kind": "TLSRoute"}]}});
    for mode in ["Passthrough", "Terminate"] {
        let edge = Edge::new([
            secret("cert", 0),
            gateway("web", json!([tls(mode, routes.clone())])),
        ]);
        assert_eq!(
            edge.of_listener("web", "tls", "ResolvedRefs"),
            "False InvalidRouteKinds"
        );
        assert_eq!(edge.of_listener("web", "tls", "Accepted"), "True Accepted");
        assert_eq!(edge.kinds("web", "tls"), ["TLSRoute"]);
        assert_eq!(edge.condition(GATEWAY, "web", "Accepted"), "True Accepted");
    }
}

#[test]
fn ends_and_passes_tls_on_one_port_by_name() {
    let edge = Edge::new([
        secret("cert", 0),
        gateway(
            "web",
            json!([
                tls(
                    "Terminate",
                    json!({"name": "ends", "hostname": "ends.example.com"})
                ),
                tls(
                    "Passthrough",
                    json!({"name": "passes", "hostname": "passes.example.com"})
                ),
            ]),
        ),
    ]);
    for name in ["ends", "passes"] {
        assert_eq!(edge.of_listener("web", name, "Accepted"), "True Accepted");
        assert_eq!(
            edge.of_listener("web", name, "Conflicted"),
            "False NoConflicts"
        );
    }
    assert!(
        edge.served("web", "passes")
            .unwrap()
            .certificates
            .is_empty()
    );
    assert_eq!(
        edge.served("web", "ends").unwrap().certificates,
        ["Secret/shop/cert"]
    );
}

#[test]
fn listeners_that_cannot_be_told_apart_are_all_out() {
    let named = |name: &str, hostname: &str| http(json!({"name": name, "hostname": hostname}));
    let (clash, fine) = ("True HostnameConflict", "False NoConflicts");
    assert_eq!(
        conflicts(json!([
            named("a", "x.com"),
            named("b", "x.com"),
            named("c", "y.com")
        ])),
        [clash, clash, fine]
    );
    assert_eq!(
        conflicts(json!([
            http(json!({"name": "a"})),
            http(json!({"name": "b"}))
        ])),
        [clash; 2]
    );
    assert_eq!(
        conflicts(json!([
            named("a", "X.com"),
            named("b", "*.com"),
            http(json!({}))
        ])),
        [fine; 3]
    );
    let protocols = "True ProtocolConflict";
    let tcp = |name: &str| json!({"name": name, "port": 80, "protocol": "TCP"});
    assert_eq!(
        conflicts(json!([http(json!({})), tcp("t")])),
        [protocols; 2]
    );
    assert_eq!(conflicts(json!([tcp("s"), tcp("t")])), [protocols; 2]);
    let secure = https(json!({"port": 80}));
    assert_eq!(conflicts(json!([http(json!({})), secure])), [protocols; 2]);
    // Names are told apart by the same bytes in both.
    let passes = |hostname: &str| tls("Passthrough", json!({"hostname": hostname}));
    assert_eq!(
        conflicts(json!([
            https(json!({"hostname": "a.com"})),
            passes("b.com")
        ])),
        [fine; 2]
    );
    assert_eq!(
        conflicts(json!([
            https(json!({"hostname": "a.com"})),
            passes("a.com")
        ])),
        [clash; 2]
    );
    // What is not supported is in nobody's way.
    let odd = json!({"name": "odd", "port": 80, "protocol": "UDP"});
    assert_eq!(conflicts(json!([http(json!({})), odd])), [fine; 2]);
}

#[test]
fn a_conflict_shows_in_all_conditions_and_nothing_is_served() {
    let twin = http(json!({"name": "twin"}));
    let other = http(json!({"name": "other", "port": 81}));
    let edge = Edge::new([gateway("web", json!([http(json!({})), twin, other]))]);
    for name in ["http", "twin"] {
        for condition in ["Accepted", "Programmed"] {
            assert_eq!(
                edge.of_listener("web", name, condition),
                "False HostnameConflict"
            );
        }
        assert_eq!(edge.served("web", name), None);
    }
    assert_eq!(
        edge.condition(GATEWAY, "web", "Accepted"),
        "True ListenersNotValid"
    );
    assert!(edge.served("web", "other").is_some());

    let edge = Edge::new([gateway(
        "web",
        json!([http(json!({})), http(json!({"name": "twin"}))]),
    )]);
    assert_eq!(
        edge.condition(GATEWAY, "web", "Accepted"),
        "False ListenersNotValid"
    );
}

#[test]
fn ports_of_the_proxy_itself_are_not_available() {
    for port in [15000, 15008, 15020, 15021] {
        let edge = Edge::new([gateway("web", json!([http(json!({"port": port}))]))]);
        assert_eq!(
            edge.of_listener("web", "http", "Accepted"),
            "False PortUnavailable",
            "{port}"
        );
    }
}

#[test]
fn overlapping_names_of_tls_are_pointed_out() {
    let named = |name: &str, hostname: Value| https(json!({"name": name, "hostname": hostname}));
    let edge = Edge::new([
        secret("cert", 0),
        gateway(
            "web",
            json!([
                named("a", json!("foo.example.com")),
                named("b", json!("foo.example.org")),
                named("c", json!("*.example.com")),
                https(json!({"name": "d", "port": 444})),
            ]),
        ),
    ]);
    let overlap = |name: &str| edge.of_listener("web", name, "OverlappingTLSConfig");
    assert_eq!(overlap("a"), "True OverlappingHostnames");
    assert_eq!(overlap("b"), "-");
    assert_eq!(overlap("c"), "True OverlappingHostnames");
    assert_eq!(overlap("d"), "-");
}

#[test]
fn a_listener_that_is_not_served_keeps_its_names_from_others() {
    let edge = Edge::new([
        secret("cert", 0),
        gateway(
            "web",
            json!([
                https(json!({"name": "all", "hostname": "*.example.com"})),
                https(json!({"name": "own", "hostname": "own.example.com",
                "tls": {"certificateRefs": [{"name": "missing"}]}})),
            ]),
        ),
    ]);
    assert_eq!(
        edge.of_listener("web", "own", "Programmed"),
        "False Invalid"
    );
    let own = edge.served("web", "own").unwrap();
    assert_eq!(own.hostname, "own.example.com");
    assert!(own.certificates.is_empty() && own.routes.is_empty());
}

#[test]
fn a_waypoint_has_one_hbone_listener() {
    let mesh = |over: Value| {
        crate::index::tests::support::merged(
            json!({"name": "mesh", "port": 15008, "protocol": "HBONE"}),
            over,
        )
    };
    let edge = Edge::new([waypoint("way", json!([mesh(json!({}))]))]);
    assert_eq!(edge.condition(GATEWAY, "way", "Accepted"), "True Accepted");
    assert_eq!(
        edge.of_listener("way", "mesh", "Programmed"),
        "True Programmed"
    );
    assert!(edge.kinds("way", "mesh").is_empty());
    assert!(edge.sockets("way").is_empty());

    let edge = Edge::new([waypoint("way", json!([mesh(json!({"port": 15009}))]))]);
    assert_eq!(
        edge.of_listener("way", "mesh", "Accepted"),
        "False PortUnavailable"
    );
    assert_eq!(
        edge.condition(GATEWAY, "way", "Accepted"),
        "False ListenersNotValid"
    );

    let edge = Edge::new([waypoint("way", json!([mesh(json!({})), http(json!({}))]))]);
    assert_eq!(
        edge.of_listener("way", "http", "Accepted"),
        "False UnsupportedProtocol"
    );
    assert_eq!(
        edge.condition(GATEWAY, "way", "Accepted"),
        "True ListenersNotValid"
    );

    let edge = Edge::new([gateway("web", json!([mesh(json!({}))]))]);
    assert_eq!(
        edge.of_listener("web", "mesh", "Accepted"),
        "False UnsupportedProtocol"
    );
}

#[test]
fn options_of_tls_are_versions_or_nothing() {
    let with = |options: Value| https(json!({"tls": {"options": options}}));
    let check = |options: Value| {
        let edge = Edge::new([secret("cert", 0), gateway("web", json!([with(options)]))]);
        (
            edge.of_listener("web", "https", "Accepted"),
            edge.served("web", "https"),
        )
    };
    let (accepted, served) = check(json!({"karst.dev/tls-min-version": "1.3"}));
    assert_eq!(accepted, "True Accepted");
    let served = served.unwrap();
    assert_eq!(served.tls_min(), karst_api::waypoint::TlsVersion::Tls13);
    assert_eq!(served.tls_max(), karst_api::waypoint::TlsVersion::TlsAuto);
    for bad in [
        json!({"karst.dev/tls-min-version": "1.1"}),
        json!({"example.com/ciphers": "all"}),
        json!({"karst.dev/tls-min-version": "1.3", "karst.dev/tls-max-version": "1.2"}),
    ] {
        let (accepted, served) = check(bad.clone());
        assert_eq!(accepted, "False UnsupportedValue", "{bad}");
        assert_eq!(served, None);
    }
}

/// The field that the error names.
fn check_refused(listeners: Value, field: &str) {
    assert_eq!(
        error(gateway("web", listeners.clone())).field,
        field,
        "{listeners}"
    );
}

#[test]
fn what_cannot_be_a_listener_is_refused_by_the_name_of_its_field() {
    check_refused(json!([http(json!({"port": 0}))]), "spec.listeners[0].port");
    check_refused(
        json!([http(json!({"port": "x"}))]),
        "spec.listeners[0].port",
    );
    check_refused(json!([http(json!({"name": ""}))]), "spec.listeners[0].name");
    check_refused(
        json!([http(json!({})), http(json!({"port": 81}))]),
        "spec.listeners[1].name",
    );
    check_refused(
        json!([http(json!({"hostname": "10.0.0.1"}))]),
        "spec.listeners[0].hostname",
    );
    check_refused(
        json!([http(json!({"protocol": ""}))]),
        "spec.listeners[0].protocol",
    );
    check_refused(
        json!([tls("Open", json!({}))]),
        "spec.listeners[0].tls.mode",
    );
    check_refused(
        json!([https(json!({"tls": {"mode": "Passthrough"}}))]),
        "spec.listeners[0].tls.mode",
    );
    check_refused(
        json!([http(
            json!({"allowedRoutes": {"namespaces": {"from": "Some"}}})
        )]),
        "spec.listeners[0].allowedRoutes.namespaces.from",
    );
    let many: Vec<Value> = (0..65)
        .map(|at| http(json!({"name": format!("l{at}")})))
        .collect();
    check_refused(json!(many), "spec.listeners");
}

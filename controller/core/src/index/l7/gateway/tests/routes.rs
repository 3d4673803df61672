//! Routes at the listeners of Gateways.

use serde_json::{Value, json};

use super::support::{Edge, gateway, http, https, namespace, route, routes, secret, tls, waypoint};
use crate::{Kind, index::tests::support::merged};

/// An HTTPRoute `r` in `shop`.
fn web_route(parent: Value) -> Value {
    route("HTTPRoute", "r", parent)
}

fn hostnames(route: Value, names: Value) -> Value {
    merged(route, json!({"spec": {"hostnames": names}}))
}

fn created(route: Value, second: u32) -> Value {
    let time = format!("2026-01-01T00:00:{second:02}Z");
    merged(route, json!({"metadata": {"creationTimestamp": time}}))
}

#[test]
fn accepted_routes_are_counted() {
    let listener = http(json!({"hostname": "foo.example.com", "allowedRoutes": {
        "kinds": [{"kind": "HTTPRoute"}],
        "namespaces": {"from": "Selector", "selector": {"matchLabels": {"tier": "shop"}}}}}));
    let parent = json!({"kind": "Gateway", "name": "web", "namespace": "shop"});
    let other = hostnames(
        route("HTTPRoute", "other", parent.clone()),
        json!(["other.test"]),
    );
    let edge = Edge::new([
        gateway("web", json!([listener])),
        route("HTTPRoute", "one", parent.clone()),
        route("HTTPRoute", "two", parent.clone()),
        route("HTTPRoute", "infra/three", parent),
        other,
    ]);
    assert_eq!(edge.kinds("web", "http"), ["HTTPRoute"]);
    assert_eq!(edge.attached("web", "http"), 2);
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "one", 0).unwrap(),
        "True Accepted"
    );
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "other", 0).unwrap(),
        "False NoMatchingListenerHostname"
    );
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "infra/three", 0).unwrap(),
        "False NotAllowedByListeners"
    );
}

#[test]
fn routes_are_counted_where_the_certificate_is_missing() {
    let edge = Edge::new([
        gateway("web", json!([https(json!({}))])),
        web_route(json!({"name": "web", "sectionName": "https"})),
    ]);
    assert_eq!(
        edge.of_listener("web", "https", "Programmed"),
        "False Invalid"
    );
    assert_eq!(
        edge.of_listener("web", "https", "ResolvedRefs"),
        "False InvalidCertificateRef"
    );
    assert_eq!(edge.attached("web", "https"), 1);
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        "True Accepted"
    );
}

/// What becomes of an HTTPRoute with that parent at listeners `a` on port 80 and `b` on 8080.
fn check_parent(parent: Value, expected: &str, attached: [u32; 2]) {
    let edge = Edge::new([
        gateway(
            "web",
            json!([
                http(json!({"name": "a"})),
                http(json!({"name": "b", "port": 8080})),
            ]),
        ),
        web_route(parent.clone()),
    ]);
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        expected,
        "{parent}"
    );
    let found = [edge.attached("web", "a"), edge.attached("web", "b")];
    assert_eq!(found, attached.map(Value::from), "{parent}");
}

#[test]
fn a_parent_means_the_listeners_of_its_section_and_port() {
    let none = "False NoMatchingParent";
    check_parent(json!({"name": "web"}), "True Accepted", [1, 1]);
    check_parent(
        json!({"name": "web", "sectionName": "a"}),
        "True Accepted",
        [1, 0],
    );
    check_parent(
        json!({"name": "web", "port": 8080}),
        "True Accepted",
        [0, 1],
    );
    check_parent(
        json!({"name": "web", "port": 8080, "sectionName": "b"}),
        "True Accepted",
        [0, 1],
    );
    check_parent(json!({"name": "web", "port": 81}), none, [0, 0]);
    check_parent(json!({"name": "web", "sectionName": "c"}), none, [0, 0]);
    check_parent(
        json!({"name": "web", "port": 8080, "sectionName": "a"}),
        none,
        [0, 0],
    );
}

#[test]
fn parents_of_others_are_not_ours_to_speak_for() {
    let mut foreign = gateway("theirs", json!([http(json!({}))]));
    foreign["spec"]["gatewayClassName"] = json!("other");
    let parents = json!([
        {"name": "missing"},
        {"name": "theirs"},
        {"group": "", "kind": "Service", "name": "web"},
        {"kind": "ListenerSet", "name": "missing"},
        {"group": "example.com", "kind": "Gateway", "name": "web"},
    ]);
    let edge = Edge::new([
        foreign,
        gateway("web", json!([http(json!({}))])),
        routes("HTTPRoute", "r", parents),
    ]);
    for parent in 0..5 {
        assert_eq!(
            edge.accepted(Kind::HttpRoute, "r", parent),
            None,
            "{parent}"
        );
    }
    assert_eq!(edge.attached("web", "http"), 0);
}

#[test]
fn several_parents_are_several_attachments_and_one_count() {
    let parents = json!([
        {"name": "web", "sectionName": "a"},
        {"name": "web", "sectionName": "c"},
        {"name": "web", "port": 80},
    ]);
    let edge = Edge::new([
        gateway("web", json!([http(json!({"name": "a"}))])),
        routes("HTTPRoute", "r", parents),
    ]);
    let accepted = |parent| edge.accepted(Kind::HttpRoute, "r", parent).unwrap();
    assert_eq!(accepted(0), "True Accepted");
    assert_eq!(accepted(1), "False NoMatchingParent");
    assert_eq!(accepted(2), "True Accepted");
    assert_eq!(edge.attached("web", "a"), 1);
    assert_eq!(edge.served("web", "a").unwrap().routes.len(), 1);
}

#[test]
fn listeners_take_the_kinds_of_their_protocol() {
    let kinds = [
        ("HTTPRoute", Kind::HttpRoute, "http https"),
        ("GRPCRoute", Kind::GrpcRoute, "http https"),
        ("TLSRoute", Kind::TlsRoute, "passes ends"),
        ("TCPRoute", Kind::TcpRoute, "tcp"),
    ];
    for (name, kind, takers) in kinds {
        for listener in ["http", "https", "passes", "ends", "tcp"] {
            let edge = Edge::new([
                secret("cert", 0),
                gateway(
                    "web",
                    json!([
                        http(json!({})),
                        https(json!({"port": 443})),
                        tls("Passthrough", json!({"name": "passes", "port": 444})),
                        tls("Terminate", json!({"name": "ends", "port": 445})),
                        {"name": "tcp", "port": 446, "protocol": "TCP"},
                    ]),
                ),
                route(name, "r", json!({"name": "web", "sectionName": listener})),
            ]);
            let takes = takers.split(' ').any(|taker| taker == listener);
            let expected = if takes {
                "True Accepted"
            } else {
                "False NotAllowedByListeners"
            };
            assert_eq!(
                edge.accepted(kind, "r", 0).unwrap(),
                expected,
                "{name} {listener}"
            );
            assert_eq!(
                edge.attached("web", listener),
                u32::from(takes),
                "{name} {listener}"
            );
        }
    }
}

#[test]
fn a_listener_may_take_fewer_kinds_than_it_could() {
    let only_grpc = http(json!({"allowedRoutes": {"kinds": [{"kind": "GRPCRoute"}]}}));
    let edge = Edge::new([
        gateway("web", json!([only_grpc])),
        web_route(json!({"name": "web"})),
    ]);
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        "False NotAllowedByListeners"
    );
}

/// What becomes of a route in `infra` at a listener in `shop`.
fn check_namespaces(namespaces: Value, expected: &str) {
    let listener = http(json!({"allowedRoutes": {"namespaces": namespaces}}));
    let edge = Edge::new([
        gateway("web", json!([listener])),
        route(
            "HTTPRoute",
            "infra/r",
            json!({"name": "web", "namespace": "shop"}),
        ),
    ]);
    let accepted = edge.accepted(Kind::HttpRoute, "infra/r", 0).unwrap();
    assert_eq!(accepted, expected, "{namespaces}");
}

#[test]
fn routes_of_other_namespaces_attach_where_they_may() {
    let no = "False NotAllowedByListeners";
    check_namespaces(json!({}), no);
    check_namespaces(json!({"from": "Same"}), no);
    check_namespaces(json!({"from": "All"}), "True Accepted");
    let selector =
        |label: &str| json!({"from": "Selector", "selector": {"matchLabels": {"tier": label}}});
    check_namespaces(selector("infra"), "True Accepted");
    check_namespaces(selector("shop"), no);
}

/// The host names that a route has at a listener, on the wire.
fn check_common(listener: Option<&str>, names: Value, expected: Option<&[&str]>) {
    let edge = Edge::new([
        gateway("web", json!([http(json!({"hostname": listener}))])),
        hostnames(web_route(json!({"name": "web"})), names.clone()),
    ]);
    let served = edge.served("web", "http").unwrap();
    let found = served.routes.first().map(|route| route.hostnames.clone());
    let found: Option<Vec<&str>> = found
        .as_ref()
        .map(|names| names.iter().map(String::as_str).collect());
    assert_eq!(found.as_deref(), expected, "{listener:?} {names}");
}

#[test]
fn host_names_are_those_that_route_and_listener_share() {
    check_common(None, json!([]), Some(&[]));
    check_common(
        None,
        json!(["b.com", "*.c.com"]),
        Some(&["b.com", "*.c.com"]),
    );
    check_common(Some("a.com"), json!([]), Some(&["a.com"]));
    check_common(Some("a.com"), json!(["A.com", "b.com"]), Some(&["a.com"]));
    check_common(
        Some("*.a.com"),
        json!(["x.a.com", "*.y.a.com", "b.com"]),
        Some(&["x.a.com", "*.y.a.com"]),
    );
    check_common(Some("x.a.com"), json!(["*.a.com"]), Some(&["x.a.com"]));
    check_common(Some("*.a.com"), json!(["*.com"]), Some(&["*.a.com"]));
    check_common(Some("a.com"), json!(["*.a.com"]), None);
    check_common(Some("a.com"), json!(["b.com"]), None);
    check_common(None, json!(["10.0.0.1"]), None);
}

#[test]
fn tls_routes_attach_by_their_names() {
    let listener = |hostname: &str| tls("Passthrough", json!({"hostname": hostname}));
    let at = |listener: Value, names: Value| {
        let edge = Edge::new([
            gateway("web", json!([listener])),
            hostnames(route("TLSRoute", "r", json!({"name": "web"})), names),
        ]);
        (
            edge.accepted(Kind::TlsRoute, "r", 0).unwrap(),
            edge.attached("web", "tls"),
        )
    };
    let none = ("False NoMatchingListenerHostname".to_owned(), json!(0));
    assert_eq!(
        at(
            listener("www.example.com"),
            json!(["www.no.com", "*.no.com"])
        ),
        none
    );
    assert_eq!(
        at(
            listener("*.example.com"),
            json!(["www.other.com", "*.other.com"])
        ),
        none
    );
    let yes = ("True Accepted".to_owned(), json!(1));
    assert_eq!(at(listener("*.com"), json!(["*.example.com"])), yes);
}

#[test]
fn the_oldest_tcp_route_has_all_connections_of_a_listener() {
    let edge = Edge::new([
        gateway(
            "web",
            json!([{"name": "tcp", "port": 9000, "protocol": "TCP"}]),
        ),
        created(route("TCPRoute", "a-newer", json!({"name": "web"})), 2),
        created(route("TCPRoute", "b-older", json!({"name": "web"})), 1),
    ]);
    for name in ["a-newer", "b-older"] {
        assert_eq!(
            edge.accepted(Kind::TcpRoute, name, 0).unwrap(),
            "True Accepted"
        );
    }
    assert_eq!(edge.attached("web", "tcp"), 2);
    let served = edge.served("web", "tcp").unwrap();
    let names: Vec<&str> = served
        .routes
        .iter()
        .map(|route| route.route.as_str())
        .collect();
    assert_eq!(names, ["TCPRoute/shop/b-older"]);
}

#[test]
fn a_tcp_route_without_section_and_port_is_at_every_tcp_listener() {
    let listeners = [9310, 9311]
        .map(|port| json!({"name": format!("l{port}"), "port": port, "protocol": "TCP"}));
    let edge = Edge::new([
        gateway("web", json!(listeners)),
        route("TCPRoute", "r", json!({"name": "web"})),
    ]);
    for listener in ["l9310", "l9311"] {
        assert_eq!(edge.served("web", listener).unwrap().routes.len(), 1);
    }
}

#[test]
fn of_http_and_grpc_routes_for_the_same_names_the_older_is_taken() {
    let http_route = |second| created(web_route(json!({"name": "web"})), second);
    let grpc_route = |names: Value| {
        let route = route("GRPCRoute", "g", json!({"name": "web"}));
        created(hostnames(route, names), 5)
    };
    let at = |second, names: Value| {
        let edge = Edge::new([
            gateway("web", json!([http(json!({}))])),
            http_route(second),
            grpc_route(names),
        ]);
        let accepted = |kind, name| edge.accepted(kind, name, 0).unwrap();
        assert_eq!(
            edge.attached("web", "http"),
            edge.served("web", "http").unwrap().routes.len()
        );
        (
            accepted(Kind::HttpRoute, "r"),
            accepted(Kind::GrpcRoute, "g"),
        )
    };
    let (yes, no) = ("True Accepted".to_owned(), "False Conflicted".to_owned());
    assert_eq!(at(1, json!(["g.com"])), (yes.clone(), no.clone()));
    assert_eq!(at(9, json!(["g.com"])), (no, yes.clone()));

    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        hostnames(http_route(1), json!(["h.com"])),
        grpc_route(json!(["g.com"])),
    ]);
    assert_eq!(edge.accepted(Kind::HttpRoute, "r", 0).unwrap(), yes);
    assert_eq!(edge.accepted(Kind::GrpcRoute, "g", 0).unwrap(), yes);
}

#[test]
fn routes_are_served_in_the_order_of_their_precedence() {
    let parent = || json!({"name": "web"});
    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        created(route("HTTPRoute", "b", parent()), 3),
        created(route("HTTPRoute", "a", parent()), 3),
        created(route("HTTPRoute", "c", parent()), 1),
    ]);
    let served = edge.served("web", "http").unwrap();
    let names: Vec<&str> = served
        .routes
        .iter()
        .map(|route| route.route.as_str())
        .collect();
    assert_eq!(
        names,
        ["HTTPRoute/shop/c", "HTTPRoute/shop/a", "HTTPRoute/shop/b"]
    );
}

#[test]
fn a_waypoint_takes_no_routes() {
    let mesh = json!({"name": "mesh", "port": 15008, "protocol": "HBONE",
        "allowedRoutes": {"namespaces": {"from": "All"}}});
    let edge = Edge::new([
        waypoint("way", json!([mesh])),
        web_route(json!({"name": "way"})),
    ]);
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        "False NotAllowedByListeners"
    );
    assert_eq!(edge.attached("way", "mesh"), 0);
}

#[test]
fn a_namespace_that_is_not_there_is_not_selected() {
    let selector = json!({"from": "Selector", "selector": {}});
    let mut edge = Edge::new([
        gateway(
            "web",
            json!([http(json!({"allowedRoutes": {"namespaces": selector}}))]),
        ),
        route(
            "HTTPRoute",
            "new/r",
            json!({"name": "web", "namespace": "shop"}),
        ),
    ]);
    let accepted = |edge: &Edge| edge.accepted(Kind::HttpRoute, "new/r", 0).unwrap();
    assert_eq!(accepted(&edge), "False NotAllowedByListeners");
    edge.apply(namespace("new", json!({})));
    assert_eq!(accepted(&edge), "True Accepted");
}

#[test]
fn a_route_that_can_never_be_in_force_is_not_counted() {
    let bad = json!([{"matches": [{"path": {"type": "RegularExpression", "value": "("}}],
        "backendRefs": [{"name": "web", "port": 80}]}]);
    let refused = merged(
        route("HTTPRoute", "bad", json!({"name": "web"})),
        json!({"spec": {"rules": bad}}),
    );
    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        refused,
        route("HTTPRoute", "good", json!({"name": "web"})),
    ]);
    assert_eq!(edge.attached("web", "http"), 1);
    let served = edge.served("web", "http").unwrap();
    let names: Vec<&str> = served
        .routes
        .iter()
        .map(|route| route.route.as_str())
        .collect();
    assert_eq!(names, ["HTTPRoute/shop/good"]);
}

#[test]
fn the_status_of_a_route_has_what_parent_and_references_say() {
    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        route(
            "HTTPRoute",
            "r",
            json!({"name": "web", "sectionName": "http"}),
        ),
    ]);
    let key = crate::ObjectKey {
        kind: Kind::HttpRoute,
        namespace: "shop".to_owned(),
        name: "r".to_owned(),
    };
    let status = edge.0.status(&key).unwrap();
    let crate::StatusContent::Parents(parents) = status.content else {
        panic!("a route has parents")
    };
    assert_eq!(parents.len(), 1);
    assert_eq!(
        parents[0].parent_ref,
        json!({"name": "web", "sectionName": "http"})
    );
    assert_eq!(parents[0].controller, "karst.dev/gateway-controller");
    let conditions: Vec<(&str, &str)> = parents[0]
        .conditions
        .iter()
        .map(|condition| (condition.kind, condition.reason))
        .collect();
    // There is no Service `web`.
    let expected = [
        ("Accepted", "Accepted"),
        ("ResolvedRefs", "BackendNotFound"),
    ];
    assert_eq!(conditions, expected);
}

//! ListenerSets: who may add listeners, and which of several come first.

use serde_json::{Value, json};

use super::support::{Edge, gateway, grant, http, https, listener_set, route, routes, secret, tls};
use crate::{Kind, index::tests::support::merged};

const SET: Kind = Kind::ListenerSet;

/// A Gateway with an HTTP listener for `gateway.com` that allows ListenerSets.
fn parent(namespaces: Value) -> Value {
    let listeners = json!([http(json!({"name": "own", "hostname": "gateway.com"}))]);
    merged(
        gateway("web", listeners),
        json!({"spec": {"allowedListeners": {"namespaces": namespaces}}}),
    )
}

fn all() -> Value {
    parent(json!({"from": "All"}))
}

fn named(name: &str, hostname: &str) -> Value {
    http(json!({"name": name, "hostname": hostname}))
}

fn conditions(edge: &Edge, set: &str) -> [String; 2] {
    ["Accepted", "Programmed"].map(|condition| edge.condition(SET, set, condition))
}

fn attached_sets(edge: &Edge) -> Value {
    edge.status(Kind::Gateway, "web").unwrap().1["attachedListenerSets"].clone()
}

fn age(set: Value, second: u32) -> Value {
    let time = format!("2026-01-01T00:00:{second:02}Z");
    merged(set, json!({"metadata": {"creationTimestamp": time}}))
}

/// Whether a set in `infra` may add listeners to a Gateway in `shop`, and one in `shop`.
fn check_allowed(namespaces: Value, infra: bool, shop: bool) {
    let edge = Edge::new([
        parent(namespaces.clone()),
        listener_set("infra/far", "web", json!([named("l", "far.com")])),
        listener_set("near", "web", json!([named("l", "near.com")])),
    ]);
    for (set, allowed) in [("infra/far", infra), ("near", shop)] {
        let accepted = if allowed {
            "True Accepted"
        } else {
            "False NotAllowed"
        };
        assert_eq!(conditions(&edge, set)[0], accepted, "{namespaces} {set}");
        if !allowed {
            assert_eq!(conditions(&edge, set)[1], "False NotAllowed");
        }
    }
    assert_eq!(
        attached_sets(&edge),
        u32::from(infra) + u32::from(shop),
        "{namespaces}"
    );
    let (_, listeners) = &edge.sockets("web")[0];
    assert_eq!(listeners.len(), 1 + usize::from(infra) + usize::from(shop));
}

#[test]
fn a_gateway_says_where_its_listener_sets_may_come_from() {
    check_allowed(json!({}), false, false);
    check_allowed(json!({"from": "None"}), false, false);
    check_allowed(json!({"from": "Same"}), false, true);
    check_allowed(json!({"from": "All"}), true, true);
    let selector = json!({"from": "Selector", "selector": {"matchLabels": {"tier": "infra"}}});
    check_allowed(selector, true, false);
}

#[test]
fn no_listener_sets_are_allowed_by_default() {
    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        listener_set("set", "web", json!([named("l", "set.com")])),
    ]);
    assert_eq!(conditions(&edge, "set"), ["False NotAllowed"; 2]);
    assert_eq!(attached_sets(&edge), 0);
    assert_eq!(
        edge.condition(Kind::Gateway, "web", "Accepted"),
        "True Accepted"
    );
}

/// `Accepted` and `Conflicted` of a listener of a set; `Programmed` is as `Accepted`.
fn of(edge: &Edge, set: &str, listener: &str) -> (String, String) {
    let condition = |condition| edge.of_set_listener(set, listener, condition);
    let accepted = condition("Accepted");
    let programmed = condition("Programmed");
    assert_eq!(accepted.split(' ').next(), programmed.split(' ').next());
    if accepted.starts_with("False") {
        assert_eq!(accepted, programmed);
    }
    (accepted, condition("Conflicted"))
}

/// Sets whose listeners clash with those of the Gateway and among each other. `clash` makes a listener
/// that clashes with the one for the given name.
fn check_conflicts(reason: &str, clash: impl Fn(&str, &str) -> Value) {
    let own = json!([named("own", "gateway.com"), named("taken", "taken.com")]);
    let gateway = merged(
        gateway("web", own),
        json!({"spec": {"allowedListeners": {"namespaces": {"from": "Same"}}}}),
    );
    let edge = Edge::new([
        gateway,
        listener_set(
            "a1",
            "web",
            json!([
                named("fine", "a1.com"),
                clash("clash", "taken.com"),
                named("first", "set.com")
            ]),
        ),
        listener_set("a2", "web", json!([clash("clash", "taken.com")])),
        listener_set(
            "b1",
            "web",
            json!([named("fine", "b1.com"), clash("late", "set.com")]),
        ),
        listener_set("b2", "web", json!([clash("late", "set.com")])),
    ]);
    let fine = ("True Accepted".to_owned(), "False NoConflicts".to_owned());
    let clashes = (format!("False {reason}"), format!("True {reason}"));
    for listener in ["own", "taken"] {
        assert_eq!(
            edge.of_listener("web", listener, "Accepted"),
            "True Accepted"
        );
        assert_eq!(
            edge.of_listener("web", listener, "Programmed"),
            "True Programmed"
        );
    }
    assert_eq!(
        edge.condition(Kind::Gateway, "web", "Accepted"),
        "True Accepted"
    );
    assert_eq!(attached_sets(&edge), 2);
    assert_eq!(of(&edge, "a1", "fine"), fine);
    assert_eq!(of(&edge, "a1", "clash"), clashes);
    assert_eq!(of(&edge, "a1", "first"), fine);
    assert_eq!(of(&edge, "b1", "fine"), fine);
    for (set, listener) in [("a2", "clash"), ("b1", "late"), ("b2", "late")] {
        assert_eq!(of(&edge, set, listener), clashes, "{set}");
    }
    for set in ["a1", "b1"] {
        assert_eq!(conditions(&edge, set)[0], "True ListenersNotValid");
    }
    for set in ["a2", "b2"] {
        assert_eq!(conditions(&edge, set), ["False ListenersNotValid"; 2]);
    }
}

#[test]
fn the_gateway_comes_first_then_the_sets_in_their_order() {
    check_conflicts("HostnameConflict", named);
    check_conflicts(
        "ProtocolConflict",
        |name, _| json!({"name": name, "port": 80, "protocol": "TCP"}),
    );
}

#[test]
fn the_older_set_comes_first() {
    let edge = Edge::new([
        all(),
        age(listener_set("a", "web", json!([named("l", "x.com")])), 9),
        age(listener_set("b", "web", json!([named("l", "x.com")])), 1),
    ]);
    assert_eq!(conditions(&edge, "a")[0], "False ListenersNotValid");
    assert_eq!(conditions(&edge, "b")[0], "True Accepted");
}

#[test]
fn a_grant_for_the_gateway_is_none_for_its_sets() {
    let own = https(json!({"name": "own", "hostname": "gateway.com",
        "tls": {"certificateRefs": [{"name": "cert", "namespace": "infra"}]}}));
    let of_set = |hostname: &str| {
        https(json!({"name": "l", "hostname": hostname,
            "tls": {"certificateRefs": [{"name": "cert", "namespace": "infra"}]}}))
    };
    let gateway = merged(
        gateway("web", json!([own])),
        json!({"spec": {"allowedListeners": {"namespaces": {"from": "All"}}}}),
    );
    let secrets = || json!({"group": "", "kind": "Secret"});
    let set = listener_set("set", "web", json!([of_set("set.com")]));
    let edge = Edge::new([
        secret("infra/cert", 0),
        gateway.clone(),
        set.clone(),
        grant("Gateway", "shop", secrets()),
    ]);
    assert_eq!(
        edge.of_listener("web", "own", "ResolvedRefs"),
        "True ResolvedRefs"
    );
    assert_eq!(
        edge.of_set_listener("set", "l", "ResolvedRefs"),
        "False RefNotPermitted"
    );
    assert_eq!(conditions(&edge, "set"), ["False ListenersNotValid"; 2]);

    let edge = Edge::new([
        secret("infra/cert", 0),
        gateway,
        set,
        grant("ListenerSet", "shop", secrets()),
    ]);
    assert_eq!(
        edge.of_listener("web", "own", "ResolvedRefs"),
        "False RefNotPermitted"
    );
    assert_eq!(
        edge.of_set_listener("set", "l", "ResolvedRefs"),
        "True ResolvedRefs"
    );
    assert_eq!(conditions(&edge, "set")[0], "True Accepted");
}

#[test]
fn listeners_of_a_set_take_the_kinds_of_their_protocol() {
    let only = tls(
        "Passthrough",
        json!({"allowedRoutes": {"kinds": [{"kind": "HTTPRoute"}]}}),
    );
    let edge = Edge::new([all(), listener_set("set", "web", json!([only]))]);
    assert_eq!(
        edge.of_set_listener("set", "tls", "ResolvedRefs"),
        "False InvalidRouteKinds"
    );
    assert_eq!(
        edge.condition(Kind::Gateway, "web", "Accepted"),
        "True Accepted"
    );
}

#[test]
fn a_route_names_the_object_that_the_listener_is_in() {
    let set = json!({"kind": "ListenerSet", "name": "set", "sectionName": "l"});
    let parents = json!([
        {"name": "web"},
        set,
        {"name": "web", "sectionName": "l"},
        {"kind": "ListenerSet", "name": "set", "sectionName": "own"},
    ]);
    let edge = Edge::new([
        all(),
        listener_set("set", "web", json!([named("l", "set.com")])),
        routes("HTTPRoute", "r", parents),
        route("HTTPRoute", "gateway-only", json!({"name": "web"})),
    ]);
    let accepted = |parent| edge.accepted(Kind::HttpRoute, "r", parent).unwrap();
    assert_eq!(accepted(0), "True Accepted");
    assert_eq!(accepted(1), "True Accepted");
    assert_eq!(accepted(2), "False NoMatchingParent");
    assert_eq!(accepted(3), "False NoMatchingParent");
    assert_eq!(edge.attached("web", "own"), 2);
    assert_eq!(edge.listener(SET, "set", "l")["attachedRoutes"], 1);
}

#[test]
fn the_same_namespace_is_that_of_the_set() {
    let listener = |name: &str, namespaces: Value| {
        http(json!({"name": name, "hostname": format!("{name}.com"),
            "allowedRoutes": {"namespaces": namespaces}}))
    };
    let selector = json!({"from": "Selector", "selector": {"matchLabels": {"tier": "shop"}}});
    let parent = json!({"kind": "ListenerSet", "name": "set", "namespace": "infra"});
    let edge = Edge::new([
        all(),
        listener_set(
            "infra/set",
            "shop/web",
            json!([
                listener("all", json!({"from": "All"})),
                listener("same", json!({"from": "Same"})),
                listener("selected", selector)
            ]),
        ),
        route("HTTPRoute", "infra/near", parent.clone()),
        route("HTTPRoute", "shop/far", parent),
        route(
            "HTTPRoute",
            "shop/only-same",
            json!({"kind": "ListenerSet", "name": "set", "namespace": "infra", "sectionName": "same"}),
        ),
    ]);
    let attached = |listener| edge.listener(SET, "infra/set", listener)["attachedRoutes"].clone();
    assert_eq!(
        [attached("all"), attached("same"), attached("selected")],
        [2, 1, 1]
    );
    for route in ["infra/near", "shop/far"] {
        assert_eq!(
            edge.accepted(Kind::HttpRoute, route, 0).unwrap(),
            "True Accepted"
        );
    }
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "shop/only-same", 0).unwrap(),
        "False NotAllowedByListeners"
    );
}

#[test]
fn a_set_that_is_not_allowed_takes_no_routes() {
    let edge = Edge::new([
        parent(json!({"from": "None"})),
        listener_set("set", "web", json!([named("l", "set.com")])),
        route(
            "HTTPRoute",
            "r",
            json!({"kind": "ListenerSet", "name": "set"}),
        ),
    ]);
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        "False NotAllowedByListeners"
    );
}

#[test]
fn a_set_without_a_gateway_of_ours_is_left_alone() {
    let mut edge = Edge::new([listener_set("set", "web", json!([named("l", "set.com")]))]);
    assert_eq!(edge.condition(SET, "set", "Accepted"), "-");
    let changes = edge.apply(all());
    assert_eq!(
        conditions(&edge, "set"),
        ["True Accepted", "False ParentNotProgrammed"]
    );
    assert!(changes.statuses.iter().any(|key| key.kind == SET));
    edge.delete(all());
    assert_eq!(edge.condition(SET, "set", "Accepted"), "-");
}

#[test]
fn listeners_have_a_limit_for_all_sets_together() {
    let set = |at: usize| {
        let listener =
            |number: usize| named(&format!("l{number}"), &format!("l{number}.s{at}.com"));
        let listeners: Vec<Value> = (0..64).map(listener).collect();
        listener_set(&format!("set-{at:02}"), "web", json!(listeners))
    };
    let mut edge = Edge::new([all()]);
    for at in 0..16 {
        edge.0
            .stage(crate::index::tests::support::object(set(at)))
            .unwrap();
    }
    edge.0.flush();
    // The Gateway has one of its own.
    assert_eq!(
        edge.of_set_listener("set-15", "l62", "Accepted"),
        "True Accepted"
    );
    assert_eq!(
        edge.of_set_listener("set-15", "l63", "Accepted"),
        "False TooManyListeners"
    );
    assert_eq!(edge.sockets("web")[0].1.len(), 1024);
}

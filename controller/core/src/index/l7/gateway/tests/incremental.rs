//! What changes, and what does not, when something else does.

use serde_json::{Value, json};

use super::support::{
    Edge, config_map, gateway, grant, http, https, listener_set, namespace, pem, proxy_pod, route,
    secret, service,
};
use crate::{Changes, Kind, index::tests::support::merged};

fn statuses(changes: &Changes) -> Vec<String> {
    changes.statuses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_certificate_that_comes_later_repairs_its_listener() {
    let mut edge = Edge::new([gateway("web", json!([https(json!({}))]))]);
    assert_eq!(
        edge.of_listener("web", "https", "Programmed"),
        "False Invalid"
    );
    let changes = edge.apply(secret("cert", 0));
    assert_eq!(
        edge.of_listener("web", "https", "Programmed"),
        "True Programmed"
    );
    assert!(statuses(&changes).contains(&"Gateway shop/web".to_owned()));
    // Another certificate is another resource, but the same status.
    let changes = edge.apply(secret("cert", 1));
    assert!(statuses(&changes).is_empty());
    edge.delete(secret("cert", 1));
    assert_eq!(
        edge.of_listener("web", "https", "ResolvedRefs"),
        "False InvalidCertificateRef"
    );
}

#[test]
fn a_secret_that_nobody_refers_to_changes_nothing() {
    let mut edge = Edge::new([gateway("web", json!([https(json!({}))]))]);
    assert!(edge.apply(secret("other", 0)).is_empty());
    assert!(edge.apply(secret("infra/cert", 0)).is_empty());
}

#[test]
fn grants_come_and_go() {
    let reference = json!({"name": "cert", "namespace": "infra"});
    let listener = https(json!({"tls": {"certificateRefs": [reference]}}));
    let to = || json!({"group": "", "kind": "Secret"});
    let mut edge = Edge::new([secret("infra/cert", 0), gateway("web", json!([listener]))]);
    let resolved = |edge: &Edge| edge.of_listener("web", "https", "ResolvedRefs");
    assert_eq!(resolved(&edge), "False RefNotPermitted");
    edge.apply(grant("Gateway", "shop", to()));
    assert_eq!(resolved(&edge), "True ResolvedRefs");
    edge.delete(grant("Gateway", "shop", to()));
    assert_eq!(resolved(&edge), "False RefNotPermitted");
}

#[test]
fn authorities_come_and_go() {
    let reference = json!({"group": "", "kind": "ConfigMap", "name": "ca"});
    let frontend = json!({"default": {"validation": {"caCertificateRefs": [reference]}}});
    let mut edge = Edge::new([
        secret("cert", 0),
        merged(
            gateway("web", json!([https(json!({}))])),
            json!({"spec": {"tls": {"frontend": frontend}}}),
        ),
    ]);
    assert_eq!(
        edge.of_listener("web", "https", "Accepted"),
        "False NoValidCACertificate"
    );
    edge.apply(config_map("ca", &pem(0).certificate));
    assert_eq!(
        edge.of_listener("web", "https", "Accepted"),
        "True Accepted"
    );
    edge.delete(config_map("ca", ""));
    assert_eq!(
        edge.of_listener("web", "https", "Accepted"),
        "False NoValidCACertificate"
    );
}

#[test]
fn labels_of_a_namespace_decide_anew() {
    let selector = json!({"from": "Selector", "selector": {"matchLabels": {"open": "yes"}}});
    let listener = http(json!({"allowedRoutes": {"namespaces": selector}}));
    let mut edge = Edge::new([
        gateway("web", json!([listener])),
        route(
            "HTTPRoute",
            "infra/r",
            json!({"name": "web", "namespace": "shop"}),
        ),
    ]);
    assert_eq!(edge.attached("web", "http"), 0);
    edge.apply(namespace("infra", json!({"open": "yes"})));
    assert_eq!(edge.attached("web", "http"), 1);
    edge.apply(namespace("infra", json!({})));
    assert_eq!(edge.attached("web", "http"), 0);
}

#[test]
fn routes_and_listeners_come_and_go() {
    let listeners = |listeners: Value| gateway("web", listeners);
    let mut edge = Edge::new([listeners(json!([http(json!({}))]))]);
    let attach = || {
        route(
            "HTTPRoute",
            "r",
            json!({"name": "web", "sectionName": "late"}),
        )
    };
    edge.apply(attach());
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        "False NoMatchingParent"
    );
    edge.apply(listeners(json!([
        http(json!({})),
        http(json!({"name": "late", "port": 81}))
    ])));
    assert_eq!(
        edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
        "True Accepted"
    );
    assert_eq!(edge.attached("web", "late"), 1);
    edge.delete(attach());
    assert_eq!(edge.attached("web", "late"), 0);
    // A route that moves on is counted no longer.
    edge.apply(attach());
    edge.apply(route(
        "HTTPRoute",
        "r",
        json!({"name": "web", "sectionName": "http"}),
    ));
    assert_eq!(
        (edge.attached("web", "late"), edge.attached("web", "http")),
        (json!(0), json!(1))
    );
}

#[test]
fn a_set_that_moves_on_takes_its_listeners_with_it() {
    let open = |name: &str, hostname: &str| {
        merged(
            gateway(name, json!([http(json!({"hostname": hostname}))])),
            json!({"spec": {"allowedListeners": {"namespaces": {"from": "Same"}}}}),
        )
    };
    let set =
        |parent: &str| listener_set("set", parent, json!([http(json!({"hostname": "set.com"}))]));
    let mut edge = Edge::new([open("one", "one.com"), open("two", "two.com"), set("one")]);
    let count = |edge: &Edge, name: &str| edge.sockets(name)[0].1.len();
    assert_eq!((count(&edge, "one"), count(&edge, "two")), (2, 1));
    edge.apply(set("two"));
    assert_eq!((count(&edge, "one"), count(&edge, "two")), (1, 2));
    edge.delete(set("two"));
    assert_eq!((count(&edge, "one"), count(&edge, "two")), (1, 1));
}

#[test]
fn the_same_object_once_more_changes_nothing() {
    let objects = || {
        [
            secret("cert", 0),
            merged(
                gateway("web", json!([https(json!({}))])),
                json!({"spec": {"allowedListeners": {"namespaces": {"from": "Same"}}}}),
            ),
            listener_set("set", "web", json!([http(json!({}))])),
            route("HTTPRoute", "r", json!({"name": "web"})),
            service("web", json!({})),
            proxy_pod("web", "karst", "True"),
        ]
    };
    let mut edge = Edge::new(objects());
    for value in objects() {
        assert!(edge.apply(value.clone()).is_empty(), "{value}");
    }
}

#[test]
fn the_order_in_which_objects_come_does_not_matter() {
    let objects = [
        secret("cert", 0),
        merged(
            gateway("web", json!([https(json!({}))])),
            json!({"spec": {"allowedListeners": {"namespaces": {"from": "Same"}}}}),
        ),
        listener_set("set", "web", json!([http(json!({}))])),
        route(
            "HTTPRoute",
            "r",
            json!({"kind": "ListenerSet", "name": "set"}),
        ),
        service("web", json!({})),
        proxy_pod("web", "karst", "True"),
    ];
    let edge = Edge::new(objects.clone());
    let expected = (
        edge.status(Kind::Gateway, "web"),
        edge.status(Kind::ListenerSet, "set"),
    );
    for first in 0..objects.len() {
        let mut turned = objects.to_vec();
        turned.rotate_left(first);
        for order in [turned.clone(), turned.into_iter().rev().collect()] {
            let edge = Edge::new(order);
            let found = (
                edge.status(Kind::Gateway, "web"),
                edge.status(Kind::ListenerSet, "set"),
            );
            assert_eq!(found, expected);
            assert_eq!(
                edge.accepted(Kind::HttpRoute, "r", 0).unwrap(),
                "True Accepted"
            );
            assert_eq!(
                edge.served("web", "https").unwrap().certificates,
                ["Secret/shop/cert"]
            );
        }
    }
}

//! What runs for a Gateway, its addresses, and when it is programmed.

use serde_json::{Value, json};

use super::support::{
    Edge, GENERATION, gateway, http, https, listener_set, proxy_pod, service, waypoint,
};
use crate::{GatewayName, Kind, ProxyClass, ProxyWanted, index::tests::support::merged};

const GATEWAY: Kind = Kind::Gateway;

fn wanted(edge: &Edge, name: &str) -> Option<ProxyWanted> {
    edge.0.proxy_wanted(&GatewayName::new("shop", name))
}

fn ports(wanted: &ProxyWanted) -> Vec<(&str, u16)> {
    wanted
        .ports
        .iter()
        .map(|port| (port.name.as_str(), port.port))
        .collect()
}

fn with_addresses(addresses: Value) -> Value {
    let base = gateway("web", json!([http(json!({}))]));
    merged(base, json!({"spec": {"addresses": addresses}}))
}

fn addresses(edge: &Edge) -> Value {
    edge.status(GATEWAY, "web").unwrap().1["addresses"].clone()
}

fn programmed(edge: &Edge) -> String {
    edge.condition(GATEWAY, "web", "Programmed")
}

#[test]
fn a_proxy_has_the_ports_of_its_listeners_and_what_the_gateway_says_of_infrastructure() {
    let listeners = json!([
        http(json!({})),
        http(json!({"name": "named", "hostname": "a.com"})),
        https(json!({})),
        {"name": "odd", "port": 53, "protocol": "UDP"},
    ]);
    let infrastructure = json!({"labels": {"a": "1"}, "annotations": {"b": "2"}});
    let over = json!({"spec": {"infrastructure": infrastructure,
        "allowedListeners": {"namespaces": {"from": "All"}},
        "addresses": [{"value": "10.1.1.1"}, {"type": "IPAddress"}, {"value": "127.0.0.1"}]}});
    let tcp = json!({"name": "tcp", "port": 9000, "protocol": "TCP"});
    let mut edge = Edge::new([
        merged(gateway("web", listeners), over),
        listener_set("infra/set", "shop/web", json!([tcp])),
    ]);
    let found = wanted(&edge, "web").unwrap();
    assert_eq!(found.gateway, GatewayName::new("shop", "web"));
    assert_eq!(
        (found.uid.as_str(), found.generation),
        ("uid-web", GENERATION)
    );
    assert_eq!(
        (found.class, found.service_account.as_str()),
        (ProxyClass::Gateway, "web")
    );
    // The port of the listener whose certificate is missing is there as well.
    assert_eq!(
        ports(&found),
        [("http-80", 80), ("https-443", 443), ("tcp-9000", 9000)]
    );
    assert_eq!(json!(found.labels), json!({"a": "1"}));
    assert_eq!(json!(found.annotations), json!({"b": "2"}));
    assert_eq!(found.addresses, ["10.1.1.1"]);

    let changes = edge.delete(gateway("web", json!([])));
    assert_eq!(wanted(&edge, "web"), None);
    assert!(
        changes
            .workloads_wanted
            .contains(&GatewayName::new("shop", "web"))
    );
    assert_eq!(edge.condition(GATEWAY, "web", "Accepted"), "-");
}

#[test]
fn a_waypoint_has_one_port() {
    let mesh = json!({"name": "mesh", "port": 15008, "protocol": "HBONE"});
    let edge = Edge::new([waypoint("way", json!([mesh]))]);
    let found = wanted(&edge, "way").unwrap();
    assert_eq!(found.class, ProxyClass::Waypoint);
    assert_eq!(ports(&found), [("hbone-15008", 15008)]);
}

#[test]
fn nothing_runs_where_nothing_can_be_listened_on() {
    let odd = json!({"name": "odd", "port": 53, "protocol": "UDP"});
    assert_eq!(
        wanted(&Edge::new([gateway("web", json!([odd]))]), "web"),
        None
    );
}

#[test]
fn a_gateway_is_programmed_when_it_has_an_address_and_a_ready_proxy() {
    let mut edge = Edge::new([gateway("web", json!([http(json!({}))]))]);
    assert_eq!(programmed(&edge), "False Pending");
    edge.apply(service("web", json!({"spec": {"clusterIP": null}})));
    assert_eq!(programmed(&edge), "False AddressNotAssigned");
    edge.apply(service("web", json!({})));
    assert_eq!(programmed(&edge), "False Pending");
    assert_eq!(
        addresses(&edge),
        json!([{"type": "IPAddress", "value": "10.96.0.80"}])
    );
    edge.apply(proxy_pod("web", "karst", "False"));
    assert_eq!(programmed(&edge), "False Pending");
    let changes = edge.apply(proxy_pod("web", "karst", "True"));
    assert_eq!(programmed(&edge), "True Programmed");
    assert!(
        changes
            .statuses
            .iter()
            .any(|key| key.kind == GATEWAY && key.name == "web")
    );
    edge.delete(proxy_pod("web", "karst", "True"));
    assert_eq!(programmed(&edge), "False Pending");
}

#[test]
fn addresses_from_outside_go_before_those_of_the_cluster() {
    let balanced = json!({"status": {"loadBalancer": {"ingress": [
        {"ip": "203.0.113.7"}, {"hostname": "lb.example.com"}]}}});
    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        service("web", balanced),
        proxy_pod("web", "karst", "True"),
    ]);
    let expected = json!([{"type": "IPAddress", "value": "203.0.113.7"},
        {"type": "Hostname", "value": "lb.example.com"}]);
    assert_eq!(addresses(&edge), expected);
}

#[test]
fn nothing_runs_with_the_account_of_all_pods() {
    let edge = Edge::new([
        gateway("default", json!([http(json!({}))])),
        proxy_pod("default", "karst", "True"),
    ]);
    assert_eq!(wanted(&edge, "default"), None);
    assert_eq!(
        edge.condition(GATEWAY, "default", "Accepted"),
        "False Invalid"
    );
    assert_eq!(
        edge.condition(GATEWAY, "default", "Programmed"),
        "False Invalid"
    );
    assert!(edge.0.gateways_of_account("shop", "default").is_empty());
}

#[test]
fn addresses_that_are_asked_for_are_said_to_be_usable_or_not() {
    let serving = [
        service("web", json!({"spec": {"externalIPs": ["10.1.1.1"]}})),
        proxy_pod("web", "karst", "True"),
    ];
    let check = |asked: Value, accepted: &str, expected: &str| {
        let edge = Edge::new(
            serving
                .clone()
                .into_iter()
                .chain([with_addresses(asked.clone())]),
        );
        assert_eq!(
            edge.condition(GATEWAY, "web", "Accepted"),
            accepted,
            "{asked}"
        );
        assert_eq!(programmed(&edge), expected, "{asked}");
        addresses(&edge)
    };
    let odd = json!({"type": "test/odd", "value": "x"});
    let (bad, good) = (json!({"value": "192.0.2.1"}), json!({"value": "10.1.1.1"}));
    check(
        json!([odd, bad, good]),
        "False UnsupportedAddress",
        "False Invalid",
    );
    let not_usable = "False AddressNotUsable";
    check(json!([bad, good]), "True Accepted", not_usable);
    let found = check(json!([good]), "True Accepted", "True Programmed");
    assert_eq!(found, json!([{"type": "IPAddress", "value": "10.1.1.1"}]));
    check(json!([{"value": "10.1.1.2"}]), "True Accepted", not_usable);
    check(
        json!([{"type": "IPAddress", "value": "ten"}]),
        "True Accepted",
        not_usable,
    );
    for address in [
        "127.0.0.1",
        "224.0.0.1",
        "0.0.0.0",
        "169.254.1.1",
        "::1",
        "fe80::1",
        "2001:db8::1",
    ] {
        check(json!([{"value": address}]), "True Accepted", not_usable);
    }
    check(
        json!([{"type": "Hostname", "value": "a.com"}]),
        "False UnsupportedAddress",
        "False Invalid",
    );
    // Any address will do.
    let found = check(
        json!([{"type": "IPAddress"}]),
        "True Accepted",
        "True Programmed",
    );
    assert_eq!(found, json!([{"type": "IPAddress", "value": "10.1.1.1"}]));
}

#[test]
fn a_gateway_takes_no_parameters() {
    let reference = json!({"group": "x.io", "kind": "Odd", "name": "x"});
    let over = json!({"spec": {"infrastructure": {"parametersRef": reference}}});
    let edge = Edge::new([merged(gateway("web", json!([http(json!({}))])), over)]);
    assert_eq!(
        edge.condition(GATEWAY, "web", "Accepted"),
        "False InvalidParameters"
    );
}

#[test]
fn a_pod_that_only_says_so_is_no_proxy() {
    let mut pod = proxy_pod("web", "karst", "True");
    pod["spec"]["serviceAccountName"] = json!("other");
    let edge = Edge::new([
        gateway("web", json!([http(json!({}))])),
        service("web", json!({})),
        pod,
    ]);
    assert_eq!(programmed(&edge), "False Pending");
}

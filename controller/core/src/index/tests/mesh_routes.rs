//! Routes with Services as parents (GAMMA): who is attached, who wins, and what is said.

use serde_json::{Value, json};

use super::{
    support::{Mesh, merged, service},
    support_l7::{http_route, key, other_namespace, route, short},
};
use crate::{Kind, ObjectKey, ProxyKind, StatusContent};

fn rules() -> Value {
    json!([{"backendRefs": [{"name": "web", "port": 80}]}])
}

fn plain() -> Value {
    http_route(rules())
}

/// A parent reference to the Service `web`.
fn parent(over: Value) -> Value {
    let parent = merged(json!({"group": "", "kind": "Service", "name": "web"}), over);
    merged(plain(), json!({"spec": {"parentRefs": [parent]}}))
}

fn accepted(mesh: &Mesh) -> String {
    short(&mesh.condition("Accepted"))
}

#[test]
fn a_good_route_is_in_force_and_says_so() {
    let mesh = Mesh::bound([plain()]);
    assert_eq!(
        mesh.sets(),
        [(String::new(), vec!["HTTPRoute/shop/r".to_owned()])]
    );
    assert_eq!(
        mesh.said(&key(Kind::HttpRoute, "r")),
        [
            "Accepted=True/Accepted",
            "ResolvedRefs=True/ResolvedRefs",
            "karst.dev/WaypointBound=True/WaypointBound",
        ]
    );
    let status = mesh.0.status(&key(Kind::HttpRoute, "r")).unwrap();
    assert_eq!(status.generation, 1);
    let StatusContent::Parents(parents) = status.content else {
        panic!()
    };
    assert_eq!(parents[0].controller, "karst.dev/waypoint-controller");
    assert_eq!(
        parents[0].parent_ref,
        json!({"group": "", "kind": "Service", "name": "web"})
    );
}

#[test]
fn a_parent_can_be_one_port() {
    let ports =
        json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]}});
    for (over, ports_with_routes) in [
        (json!({}), vec![80, 81]),
        (json!({"port": 80}), vec![80]),
        (json!({"sectionName": "alt"}), vec![81]),
        (json!({"sectionName": "alt", "port": 81}), vec![81]),
    ] {
        let mesh = Mesh::bound([service(ports.clone()), parent(over.clone())]);
        assert_eq!(accepted(&mesh), "Accepted=True/Accepted");
        let found = [80, 81].into_iter().filter(|port| {
            let name = format!("service/shop/web.shop.svc.cluster.local/{port}");
            let listener: karst_api::waypoint::Listener =
                mesh.resource(ProxyKind::Listener, &name).unwrap();
            match listener.frontend.unwrap() {
                karst_api::waypoint::listener::Frontend::Service(it) => !it.route_sets.is_empty(),
                other => panic!("{other:?}"),
            }
        });
        assert_eq!(found.collect::<Vec<_>>(), ports_with_routes, "{over}");
    }
}

#[test]
fn a_parent_that_cannot_be_one_is_refused() {
    for (over, reason) in [
        (json!({"port": 99}), "NoMatchingParent"),
        (json!({"sectionName": "nothing"}), "NoMatchingParent"),
        (
            json!({"sectionName": "http", "port": 81}),
            "NoMatchingParent",
        ),
        (json!({"name": "gone"}), "NoMatchingParent"),
        (json!({"name": "headless"}), "UnsupportedValue"),
        (json!({"name": "alias"}), "UnsupportedValue"),
        (json!({"name": "database"}), "NoMatchingParent"),
    ] {
        let mesh = Mesh::bound([
            service(json!({"metadata": {"name": "headless"}, "spec": {"clusterIP": "None"}})),
            service(
                json!({"metadata": {"name": "alias"}, "spec": {"type": "ExternalName", "clusterIP": null}}),
            ),
            service(
                json!({"metadata": {"name": "database"}, "spec": {"ports": [{"name": "tcp", "port": 80}]}}),
            ),
            parent(over.clone()),
        ]);
        assert_eq!(
            accepted(&mesh),
            format!("Accepted=False/{reason}"),
            "{over}"
        );
        let conditions = mesh.conditions(&key(Kind::HttpRoute, "r"));
        assert_eq!(conditions.len(), 2, "{conditions:?}");
        assert_eq!(mesh.sets(), []);
    }
}

#[test]
fn a_parent_of_somebody_else_is_not_ours_to_judge() {
    let gateway = json!([{"name": "foreign"}]);
    let mesh = Mesh::bound([merged(plain(), json!({"spec": {"parentRefs": gateway}}))]);
    let status = mesh.0.status(&key(Kind::HttpRoute, "r")).unwrap();
    assert_eq!(status.content, StatusContent::Parents(Vec::new()));
}

#[test]
fn each_parent_has_a_status_of_its_own() {
    let parents = json!([
        {"group": "", "kind": "Service", "name": "web"},
        {"group": "", "kind": "Service", "name": "gone"},
        {"group": "", "kind": "Service", "name": "web"},
    ]);
    let mesh = Mesh::bound([merged(plain(), json!({"spec": {"parentRefs": parents}}))]);
    let status = mesh.0.status(&key(Kind::HttpRoute, "r")).unwrap();
    let StatusContent::Parents(parents) = status.content else {
        panic!()
    };
    let said: Vec<String> = parents
        .iter()
        .map(|parent| short(&parent.conditions[0]))
        .collect();
    assert_eq!(
        said,
        ["Accepted=True/Accepted", "Accepted=False/NoMatchingParent"]
    );
}

#[test]
fn one_kind_of_route_wins_a_port() {
    let kinds = ["GRPCRoute", "HTTPRoute", "TLSRoute", "TCPRoute"];
    let keys = [
        Kind::GrpcRoute,
        Kind::HttpRoute,
        Kind::TlsRoute,
        Kind::TcpRoute,
    ];
    let routes = kinds.map(|kind| route(kind, "r", json!({})));
    let mut mesh = Mesh::bound(routes.clone());
    for (winner, value) in routes.into_iter().enumerate() {
        let sets = mesh.sets();
        assert_eq!(
            sets,
            [(String::new(), vec![format!("{}/shop/r", kinds[winner])])]
        );
        for (at, kind) in keys.into_iter().enumerate().skip(winner) {
            let conditions = mesh.conditions(&key(kind, "r"));
            let expected = if at == winner {
                "Accepted=True/Accepted"
            } else {
                "Accepted=False/Conflicted"
            };
            assert_eq!(
                short(&conditions[0]),
                expected,
                "{kind:?} while {winner} wins"
            );
        }
        let changes = mesh.delete(value);
        // Those that lost are told that another one wins now.
        assert_eq!(changes.statuses.len(), keys.len() - winner);
    }
    assert_eq!(mesh.sets(), []);
}

#[test]
fn routes_of_one_kind_share_a_port() {
    let mesh = Mesh::bound([plain(), route("HTTPRoute", "s", json!({}))]);
    let routes = vec!["HTTPRoute/shop/r".to_owned(), "HTTPRoute/shop/s".to_owned()];
    assert_eq!(mesh.sets(), [(String::new(), routes)]);
}

#[test]
fn losing_one_port_of_two_is_no_conflict() {
    let ports =
        json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]}});
    let at_80 = json!({"spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}]}});
    let mesh = Mesh::bound([service(ports), plain(), route("GRPCRoute", "g", at_80)]);
    let accepted = mesh.condition("Accepted");
    assert_eq!(short(&accepted), "Accepted=True/Accepted");
    assert!(accepted.message.contains("port 80"), "{}", accepted.message);
}

#[test]
fn a_route_of_another_namespace_is_for_its_own_clients() {
    let consumer = merged(
        plain(),
        json!({"metadata": {"namespace": "client"}, "spec": {"parentRefs":
            [{"group": "", "kind": "Service", "name": "web", "namespace": "shop"}]}}),
    );
    let grpc = merged(
        consumer.clone(),
        json!({"kind": "GRPCRoute", "metadata": {"name": "g", "namespace": "third"}}),
    );
    let mesh = Mesh::bound([other_namespace("client"), plain(), consumer, grpc]);
    assert_eq!(
        mesh.sets(),
        [
            (String::new(), vec!["HTTPRoute/shop/r".to_owned()]),
            ("client".to_owned(), vec!["HTTPRoute/client/r".to_owned()]),
            ("third".to_owned(), vec!["GRPCRoute/third/g".to_owned()]),
        ]
    );
    let theirs = ObjectKey {
        namespace: "client".to_owned(),
        ..key(Kind::HttpRoute, "r")
    };
    // Its own backend is in its own namespace, where there is none.
    let said = mesh.said(&theirs);
    assert_eq!(
        said[..2],
        [
            "Accepted=True/Accepted",
            "ResolvedRefs=False/BackendNotFound"
        ]
    );
}

#[test]
fn a_grant_comes_and_goes() {
    let consumer = merged(
        plain(),
        json!({"metadata": {"namespace": "client"}, "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "namespace": "shop"}],
            "rules": [{"backendRefs": [{"name": "next", "namespace": "shop", "port": 80}]}]}}),
    );
    let next = service(json!({"metadata": {"name": "next"}, "spec": {"clusterIP": "10.96.0.11"}}));
    let mut mesh = Mesh::bound([next, consumer]);
    let theirs = ObjectKey {
        namespace: "client".to_owned(),
        ..key(Kind::HttpRoute, "r")
    };
    let resolved = |mesh: &Mesh| mesh.said(&theirs)[1].clone();
    assert_eq!(resolved(&mesh), "ResolvedRefs=False/RefNotPermitted");
    let changes = mesh.apply(super::support_l7::grant("client"));
    assert_eq!(resolved(&mesh), "ResolvedRefs=True/ResolvedRefs");
    assert!(changes.statuses.contains(&theirs));
    assert!(
        changes
            .proxies
            .iter()
            .any(|change| change.name == "HTTPRoute/client/r")
    );
    let changes = mesh.apply(super::support_l7::grant("somebody"));
    assert_eq!(resolved(&mesh), "ResolvedRefs=False/RefNotPermitted");
    assert!(
        changes
            .proxies
            .iter()
            .any(|change| change.name == "HTTPRoute/client/r")
    );
}

#[test]
fn clients_may_be_sent_where_they_were_going_without_a_grant() {
    let web = json!({"group": "", "kind": "Service", "name": "web", "namespace": "shop"});
    let theirs = ObjectKey {
        namespace: "client".to_owned(),
        ..key(Kind::HttpRoute, "r")
    };
    let resolved = |parents: Value| {
        let route = merged(
            plain(),
            json!({"metadata": {"namespace": "client"}, "spec": {"parentRefs": parents,
                "rules": [{"backendRefs": [{"name": "web", "namespace": "shop", "port": 80}]}]}}),
        );
        let mesh = Mesh::bound([route]);
        let StatusContent::Parents(parents) = mesh.0.status(&theirs).unwrap().content else {
            panic!()
        };
        short(&parents[0].conditions[1])
    };
    assert_eq!(resolved(json!([web])), "ResolvedRefs=True/ResolvedRefs");
    let port = merged(web.clone(), json!({"port": 80}));
    assert_eq!(
        resolved(json!([port, web])),
        "ResolvedRefs=True/ResolvedRefs"
    );
    // With another parent, what is meant for that one would be sent there.
    for other in [
        json!({"group": "", "kind": "Service", "name": "next", "namespace": "shop"}),
        json!({"name": "edge"}),
        json!({"group": "", "kind": "Service", "name": "own"}),
    ] {
        let refused = "ResolvedRefs=False/RefNotPermitted";
        assert_eq!(resolved(json!([web, other])), refused, "{other}");
    }
}

#[test]
fn a_parent_may_come_later() {
    let mut mesh = Mesh::bound([plain()]);
    mesh.delete(service(json!({})));
    assert_eq!(accepted(&mesh), "Accepted=False/NoMatchingParent");
    assert_eq!(
        short(&mesh.condition("ResolvedRefs")),
        "ResolvedRefs=False/BackendNotFound"
    );
    assert_eq!(mesh.resources(ProxyKind::Route), [""; 0]);
    let changes = mesh.apply(service(json!({})));
    assert_eq!(accepted(&mesh), "Accepted=True/Accepted");
    assert!(changes.statuses.contains(&key(Kind::HttpRoute, "r")));
    assert_eq!(mesh.resources(ProxyKind::Route), ["HTTPRoute/shop/r"]);
}

#[test]
fn weights_change_the_route_alone() {
    let split = |v1: u32| {
        http_route(json!([{"backendRefs": [
            {"name": "web", "port": 80, "weight": v1},
            {"name": "web-v2", "port": 80, "weight": 100 - v1},
        ]}]))
    };
    let v2 = service(json!({"metadata": {"name": "web-v2"}, "spec": {"clusterIP": "10.96.0.12"}}));
    let mut mesh = Mesh::bound([v2, split(95)]);
    let changes = mesh.apply(split(50));
    let changed: Vec<&str> = changes
        .proxies
        .iter()
        .map(|change| change.name.as_str())
        .collect();
    assert_eq!(changed, ["HTTPRoute/shop/r"]);
    assert!(changes.addresses.is_empty() && changes.statuses.is_empty());
    let backends = &mesh.wire_route().http_rules[0].backends;
    assert_eq!((backends[0].weight, backends[1].weight), (50, 50));
}

#[test]
fn a_route_that_leaves_a_port_makes_room_there() {
    let ports =
        json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "alt", "port": 81}]}});
    let grpc = |port: u16| {
        let parent = json!({"group": "", "kind": "Service", "name": "web", "port": port});
        route("GRPCRoute", "g", json!({"spec": {"parentRefs": [parent]}}))
    };
    let mut mesh = Mesh::bound([service(ports), plain(), grpc(80)]);
    assert_eq!(mesh.sets()[0].1, ["GRPCRoute/shop/g"]);
    mesh.apply(grpc(81));
    assert_eq!(mesh.sets()[0].1, ["HTTPRoute/shop/r"]);
    mesh.apply(grpc(80));
    assert_eq!(mesh.sets()[0].1, ["GRPCRoute/shop/g"]);
}

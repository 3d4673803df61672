//! A change touches what it changes, and leaves no trace when it is taken back.

use serde_json::{Value, json};

use super::support::{Mesh, WEB, namespace, node, pod, service, slice, uid};
use crate::Changes;

fn addresses(changes: &Changes) -> Vec<&str> {
    changes.addresses.iter().map(String::as_str).collect()
}

fn small() -> Mesh {
    Mesh::new([
        namespace(Some("ambient")),
        node("node-1", "z"),
        service(json!({})),
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.2", json!({"spec": {"nodeName": "node-2"}})),
        pod(
            "c",
            "10.0.1.3",
            json!({"metadata": {"labels": {"app": "db"}}}),
        ),
    ])
}

#[test]
fn the_same_again_changes_nothing() {
    let mut mesh = small();
    for value in [
        namespace(Some("ambient")),
        node("node-1", "z"),
        service(json!({})),
        pod("a", "10.0.1.1", json!({})),
    ] {
        assert_eq!(mesh.apply(value.clone()), Changes::default(), "{value}");
    }
}

#[test]
fn a_pods_change_touches_the_pod_alone() {
    let mut mesh = small();
    let changes = mesh.apply(pod("a", "10.0.1.9", json!({})));
    assert_eq!(addresses(&changes), [uid("a")]);
    assert_eq!(changes.node_pods.len(), 1);
    assert_eq!(mesh.0.aliased("/10.0.1.1").count(), 0);
    assert_eq!(mesh.0.aliased("/10.0.1.9").count(), 1);
    let not_ready = json!({"status": {"conditions": null}});
    let changes = mesh.apply(pod("b", "10.0.1.2", not_ready).clone());
    assert!(changes.addresses.contains(&uid("b")));
}

#[test]
fn readiness_is_nothing_to_the_node() {
    let mut mesh = small();
    let changes = mesh.apply(pod(
        "a",
        "10.0.1.1",
        json!({"status": {"conditions": null}}),
    ));
    assert_eq!(addresses(&changes), [uid("a")]);
    assert!(changes.node_pods.is_empty());
}

#[test]
fn a_services_ports_touch_the_service_and_its_pods() {
    let mut mesh = small();
    let ports = json!({"spec": {"ports": [{"port": 80, "targetPort": 9000}]}});
    let changes = mesh.apply(service(ports));
    assert_eq!(
        addresses(&changes),
        [uid("a").as_str(), uid("b").as_str(), WEB]
    );
}

#[test]
fn a_services_address_touches_the_service_alone() {
    let mut mesh = small();
    let changes = mesh.apply(service(json!({"spec": {"clusterIP": "10.96.0.11"}})));
    assert_eq!(addresses(&changes), [WEB]);
    assert_eq!(mesh.0.aliased("/10.96.0.10").count(), 0);
}

#[test]
fn another_selector_touches_those_who_come_and_those_who_go() {
    let mut mesh = small();
    let changes = mesh.apply(service(json!({"spec": {"selector": {"app": "db"}}})));
    assert_eq!(addresses(&changes), [uid("a"), uid("b"), uid("c")]);
    assert_eq!(mesh.ports("a"), None);
    assert_eq!(mesh.ports("c"), Some(vec![(80, 8080)]));
}

#[test]
fn a_nodes_zone_touches_its_pods() {
    let mut mesh = small();
    let changes = mesh.apply(node("node-1", "other"));
    assert_eq!(addresses(&changes), [uid("a"), uid("c")]);
    assert!(changes.node_pods.is_empty());
    let changes = mesh.delete(node("node-1", "other"));
    assert_eq!(addresses(&changes), [uid("a"), uid("c")]);
    assert_eq!(mesh.workload("a").unwrap().locality, None);
}

#[test]
fn a_namespaces_label_touches_its_pods() {
    let mut mesh = small();
    let changes = mesh.apply(namespace(None));
    assert_eq!(addresses(&changes), [uid("a"), uid("b"), uid("c")]);
    assert_eq!(changes.node_pods.len(), 3);
}

#[test]
fn a_pod_that_moves_leaves_its_former_node() {
    let mut mesh = small();
    let changes = mesh.apply(pod(
        "a",
        "10.0.1.1",
        json!({"spec": {"nodeName": "node-3"}}),
    ));
    let nodes: Vec<&str> = changes
        .node_pods
        .iter()
        .map(|(node, _)| node.as_str())
        .collect();
    assert_eq!(nodes, ["node-1", "node-3"]);
    assert_eq!(mesh.node_pod("node-1", "a"), None);
    assert!(mesh.node_pod("node-3", "a").is_some());
}

#[test]
fn a_pod_that_ends_is_taken_away_everywhere() {
    let mut mesh = small();
    let changes = mesh.apply(pod(
        "a",
        "10.0.1.1",
        json!({"status": {"phase": "Succeeded"}}),
    ));
    assert_eq!(addresses(&changes), [uid("a")]);
    assert_eq!(changes.node_pods.len(), 1);
    assert_eq!(mesh.workload("a"), None);
    assert_eq!(mesh.node_pod("node-1", "a"), None);
}

#[test]
fn an_address_goes_over_to_another_pod() {
    let mut mesh = small();
    mesh.delete(pod("a", "10.0.1.1", json!({})));
    mesh.apply(pod(
        "d",
        "10.0.1.1",
        json!({"spec": {"serviceAccountName": "other"}}),
    ));
    let owner = mesh.0.aliased("/10.0.1.1").next().unwrap();
    assert_eq!(owner.name, uid("d"));
    assert_eq!(mesh.workload("d").unwrap().service_account, "other");
}

#[test]
fn two_pods_cannot_have_one_uid() {
    let mut mesh = small();
    let thief = pod("d", "10.0.1.4", json!({"metadata": {"uid": "uid-a"}}));
    let error = mesh.0.apply(super::support::object(thief)).unwrap_err();
    assert_eq!(error.field, "metadata.uid");
    assert!(error.problem.contains("shop/a"));
    assert_eq!(mesh.workload("d"), None);
}

#[test]
fn deleting_what_is_not_there_changes_nothing() {
    let mut mesh = small();
    assert_eq!(
        mesh.delete(pod("nobody", "10.0.1.4", json!({}))),
        Changes::default()
    );
    assert_eq!(mesh.delete(slice("nothing", json!({}))), Changes::default());
}

/// Whatever the order, the result is the same; and after all is deleted nothing is left.
#[test]
fn the_order_does_not_matter_and_nothing_stays_behind() {
    let objects: Vec<Value> = vec![
        node("node-1", "z"),
        service(json!({})),
        service(
            json!({"metadata": {"name": "plain"}, "spec": {"clusterIP": "10.96.0.20", "selector": null}}),
        ),
        slice(
            "s",
            json!({"metadata": {"labels": {"kubernetes.io/service-name": "plain"}},
            "endpoints": [{"addresses": ["10.0.1.1"]}, {"addresses": ["192.0.2.1"], "nodeName": "node-1"}]}),
        ),
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.2", json!({})),
    ];
    let all = |mesh: &Mesh| {
        let addresses = mesh.0.addresses().map(|rendered| (**rendered).clone());
        let pods = mesh
            .0
            .node_pods("node-1")
            .map(|rendered| (**rendered).clone());
        addresses.chain(pods).collect::<Vec<_>>()
    };
    let expected = all(&Mesh::new(objects.clone()));
    assert_eq!(expected.len(), 7);
    for rotation in 0..objects.len() {
        for reversed in [false, true] {
            let mut order = objects.clone();
            order.rotate_left(rotation);
            if reversed {
                order.reverse();
            }
            let mut mesh = Mesh::new(order.clone());
            assert_eq!(
                all(&mesh),
                expected,
                "rotated {rotation}, reversed {reversed}"
            );
            for value in order {
                mesh.delete(value);
            }
            assert_eq!(all(&mesh), [], "rotated {rotation}, reversed {reversed}");
            assert_eq!(mesh.0.aliased("/10.0.1.1").count(), 0);
        }
    }
}

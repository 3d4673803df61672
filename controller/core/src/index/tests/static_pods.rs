//! Static pods: the kubelet, and so the agent, knows them by another uid than the API.

use serde_json::{Value, json};

use super::support::{Mesh, merged, namespace, pod};

const HASH: &str = "0a1b2c3d4e5f60718293a4b5c6d7e8f9";

fn mirror(name: &str, ip: &str, hash: &str) -> Value {
    pod(
        name,
        ip,
        json!({"metadata": {
            "annotations": {"kubernetes.io/config.mirror": hash, "kubernetes.io/config.hash": hash},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "n",
                "controller": true}]}}),
    )
}

/// The pods of a node: the uid it knows them by, and their names.
fn on(mesh: &Mesh, node: &str) -> Vec<(String, String)> {
    let decode =
        |bytes: &[u8]| -> karst_api::node::NodePod { prost::Message::decode(bytes).unwrap() };
    let listed = mesh.0.node_pods(node).map(|rendered| {
        let pod = decode(&rendered.bytes);
        assert_eq!(rendered.name, pod.uid);
        assert_eq!(pod.uid, pod.pod_uid);
        (pod.pod_uid, pod.name)
    });
    listed.collect()
}

fn listed(pods: &[(&str, &str)]) -> Vec<(String, String)> {
    let owned = |(uid, name): &(&str, &str)| ((*uid).to_owned(), (*name).to_owned());
    pods.iter().map(owned).collect()
}

fn report(mesh: &mut Mesh, node: &str, uid: &str) -> usize {
    mesh.0.report_enrolled(node, &[uid.to_owned()]).0
}

#[test]
fn a_static_pod_is_given_to_its_node_by_the_uid_it_has_there() {
    let ambient = namespace(Some("ambient"));
    let mut mesh = Mesh::new([namespace(None), mirror("a", "10.0.1.1", HASH)]);
    mesh.apply(ambient);
    assert_eq!(on(&mesh, "node-1"), listed(&[(HASH, "a")]));
    assert_eq!(report(&mut mesh, "node-2", HASH), 0, "not its node");
    assert_eq!(mesh.0.nodes_awaited().len(), 1);
    assert_eq!(report(&mut mesh, "node-1", HASH), 1);
    assert!(mesh.0.nodes_awaited().is_empty(), "it is enrolled");
    let meant = mesh.0.reported_pod("node-1", HASH).unwrap();
    assert_eq!((meant.uid, meant.name), ("uid-a", "a"));
    assert!(mesh.0.reported_pod("node-2", HASH).is_none());
    // Tokens are bound to the API's uid.
    assert!(mesh.0.live_pod(HASH).is_none());
    assert_eq!(mesh.0.live_pod("uid-a").unwrap().name, "a");
    let changes = mesh.delete(mirror("a", "10.0.1.1", HASH));
    assert!(
        changes
            .node_pods
            .contains(&("node-1".to_owned(), HASH.to_owned()))
    );
    assert_eq!(on(&mesh, "node-1"), []);
}

#[test]
fn what_only_looks_like_a_static_pod_keeps_its_uid() {
    let over = |over: Value| merged(mirror("a", "10.0.1.1", HASH), over);
    let owned = |owner: Value| over(json!({"metadata": {"ownerReferences": [owner]}}));
    let annotated =
        |name: &str, value: Value| over(json!({"metadata": {"annotations": {name: value}}}));
    for (what, pod) in [
        (
            "no mirror",
            annotated("kubernetes.io/config.mirror", Value::Null),
        ),
        (
            "no hash",
            annotated("kubernetes.io/config.hash", Value::Null),
        ),
        (
            "no uid",
            annotated("kubernetes.io/config.hash", json!("../../etc")),
        ),
        ("empty", annotated("kubernetes.io/config.hash", json!(""))),
        (
            "no owner",
            over(json!({"metadata": {"ownerReferences": null}})),
        ),
        (
            "another owner",
            owned(
                json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}),
            ),
        ),
        (
            "not the controller",
            owned(json!({"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "n"})),
        ),
    ] {
        let mesh = Mesh::new([pod]);
        assert_eq!(on(&mesh, "node-1"), listed(&[("uid-a", "a")]), "{what}");
    }
}

#[test]
fn a_pod_that_has_the_uid_itself_keeps_it_whoever_comes_first() {
    let claimant = || mirror("a", "10.0.1.1", "uid-real");
    let real = || pod("real", "10.0.1.2", json!({}));
    let both = listed(&[("uid-a", "a"), ("uid-real", "real")]);
    for order in [[claimant(), real()], [real(), claimant()]] {
        let mut mesh = Mesh::new(order);
        assert_eq!(on(&mesh, "node-1"), both);
        let meant = mesh.0.reported_pod("node-1", "uid-real").unwrap();
        assert_eq!(meant.name, "real");
        mesh.delete(real());
        assert_eq!(on(&mesh, "node-1"), listed(&[("uid-real", "a")]));
        mesh.apply(real());
        assert_eq!(on(&mesh, "node-1"), both);
        mesh.delete(claimant());
        assert_eq!(on(&mesh, "node-1"), listed(&[("uid-real", "real")]));
    }
    // One of another node is as real.
    let elsewhere = merged(real(), json!({"spec": {"nodeName": "node-2"}}));
    let mesh = Mesh::new([claimant(), elsewhere]);
    assert_eq!(on(&mesh, "node-1"), listed(&[("uid-a", "a")]));
    assert_eq!(on(&mesh, "node-2"), listed(&[("uid-real", "real")]));
}

#[test]
fn of_two_that_claim_the_same_uid_on_a_node_none_gets_it() {
    let (a, b) = (mirror("a", "10.0.1.1", HASH), mirror("b", "10.0.1.2", HASH));
    let elsewhere = merged(
        mirror("c", "10.0.2.1", HASH),
        json!({"spec": {"nodeName": "node-2"}}),
    );
    let mut mesh = Mesh::new([elsewhere, a.clone()]);
    assert_eq!(on(&mesh, "node-1"), listed(&[(HASH, "a")]));
    assert_eq!(on(&mesh, "node-2"), listed(&[(HASH, "c")]));
    mesh.apply(b.clone());
    assert_eq!(
        on(&mesh, "node-1"),
        listed(&[("uid-a", "a"), ("uid-b", "b")])
    );
    assert_eq!(report(&mut mesh, "node-1", HASH), 0);
    mesh.delete(a);
    assert_eq!(on(&mesh, "node-1"), listed(&[(HASH, "b")]));
    // It is not one any more.
    mesh.apply(merged(b, json!({"metadata": {"annotations": null}})));
    assert_eq!(on(&mesh, "node-1"), listed(&[("uid-b", "b")]));
    assert_eq!(on(&mesh, "node-2"), listed(&[(HASH, "c")]));
}

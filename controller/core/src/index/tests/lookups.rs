//! Questions about objects rather than resources.

use serde_json::json;

use super::support::{Mesh, namespace, pod};
use crate::PodRef;

const IP: &str = "10.0.1.1";

#[test]
fn a_live_pod_is_found_by_its_uid() {
    let mut mesh = Mesh::new([pod("a", IP, json!({}))]);
    let expected = PodRef {
        uid: "uid-a",
        namespace: "shop",
        name: "a",
        node: Some("node-1"),
        service_account: "web",
    };
    assert_eq!(mesh.0.live_pod("uid-a"), Some(expected));
    assert_eq!(mesh.0.live_pod("uid-b"), None);

    // The same name, another pod.
    mesh.apply(pod("a", IP, json!({"metadata": {"uid": "uid-2"}})));
    assert_eq!(mesh.0.live_pod("uid-a"), None);
    let renewed = PodRef {
        uid: "uid-2",
        ..expected
    };
    assert_eq!(mesh.0.live_pod("uid-2"), Some(renewed));

    let ended = json!({"metadata": {"uid": "uid-2"}, "status": {"phase": "Succeeded"}});
    mesh.apply(pod("a", IP, ended));
    assert_eq!(mesh.0.live_pod("uid-2"), None);
    assert!(mesh.0.has_pod("shop", "a"), "ended, but there");
    mesh.delete(pod("a", IP, json!({})));
    assert!(!mesh.0.has_pod("shop", "a"));
}

#[test]
fn nodes_are_awaited_until_they_report() {
    let mut mesh = Mesh::new([namespace(None), pod("a", IP, json!({}))]);
    assert!(mesh.0.has_namespace("shop"));
    assert_eq!(mesh.0.namespaces().collect::<Vec<_>>(), ["shop"]);
    assert!(mesh.0.nodes_awaited().is_empty(), "not in the mesh");
    mesh.apply(namespace(Some("ambient")));
    assert_eq!(
        mesh.0.nodes_awaited().into_iter().collect::<Vec<_>>(),
        ["node-1"]
    );
    mesh.0.report_enrolled("node-1", &["uid-a".to_owned()]);
    assert!(mesh.0.nodes_awaited().is_empty());
}

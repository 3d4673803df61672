//! Who is in the mesh, and when the tunnel is used.

use karst_api::{node::DataplaneMode, workload::TunnelProtocol};
use serde_json::{Value, json};

use super::support::{Mesh, merged, namespace, object, pod, uid};
use crate::NodeIdentity;

const IP: &str = "10.0.1.1";

fn labelled(value: &str) -> Value {
    json!({"metadata": {"labels": {"karst.dev/dataplane-mode": value}}})
}

/// Which mode a pod has with these objects.
fn check(what: &str, namespace: Value, over: Value, expected: DataplaneMode) {
    let mesh = Mesh::new([namespace, pod("a", IP, over)]);
    let found = mesh.node_pod("node-1", "a").unwrap().dataplane_mode();
    assert_eq!(found, expected, "{what}");
    let tunnel = match expected {
        DataplaneMode::Ambient => TunnelProtocol::Hbone,
        DataplaneMode::None => TunnelProtocol::None,
    };
    assert_eq!(mesh.tunnel("a"), tunnel, "{what}");
}

#[test]
fn what_the_mesh_stands_on_is_never_in_it() {
    for name in karst_api::OUTSIDE_NAMESPACES {
        let placed = |over: Value| merged(over, json!({"metadata": {"namespace": name}}));
        for label in ["karst.dev/dataplane-mode", "istio.io/dataplane-mode"] {
            let ambient = json!({"metadata": {"labels": {label: "ambient"}}});
            let labelled = [
                merged(
                    namespace(None),
                    merged(ambient.clone(), json!({"metadata": {"name": name}})),
                ),
                pod("own-label", "10.0.1.2", placed(ambient)),
            ];
            for value in &labelled {
                let findings = object(value.clone()).findings;
                assert_eq!(findings.len(), 1, "{value}");
                let said = findings[0].to_string();
                assert!(said.contains("always outside the mesh"), "{said}");
            }
            let mut mesh = Mesh::new(labelled);
            mesh.apply(pod("a", IP, placed(json!({}))));
            for uid in ["a", "own-label"] {
                let found = mesh.node_pod("node-1", uid).unwrap().dataplane_mode();
                assert_eq!(found, DataplaneMode::None, "{name} {label} {uid}");
            }
            let identity = mesh.0.identity_on_node("node-1", name, "web");
            assert_eq!(identity, NodeIdentity::NotInMesh);
        }
    }
}

#[test]
fn the_pods_label_wins_over_the_namespaces() {
    use DataplaneMode::{Ambient, None as Out};
    check("no label", namespace(None), json!({}), Out);
    check(
        "namespace in",
        namespace(Some("ambient")),
        json!({}),
        Ambient,
    );
    check("namespace out", namespace(Some("none")), json!({}), Out);
    check("pod in", namespace(None), labelled("ambient"), Ambient);
    check("pod out", namespace(Some("ambient")), labelled("none"), Out);
    check(
        "pod in, namespace out",
        namespace(Some("none")),
        labelled("ambient"),
        Ambient,
    );
    check(
        "pod mistyped",
        namespace(Some("ambient")),
        labelled("ambiant"),
        Ambient,
    );
    check(
        "pod mistyped, namespace out",
        namespace(None),
        labelled("yes"),
        Out,
    );
    check(
        "namespace mistyped",
        namespace(Some("Ambient")),
        json!({}),
        Out,
    );
}

#[test]
fn istios_label_is_an_alias_and_ours_wins() {
    let istio = |value: &str| json!({"metadata": {"labels": {"istio.io/dataplane-mode": value}}});
    let plain = namespace(None);
    check(
        "alias",
        plain.clone(),
        istio("ambient"),
        DataplaneMode::Ambient,
    );
    check(
        "alias on the namespace",
        merged(plain.clone(), istio("ambient")),
        json!({}),
        DataplaneMode::Ambient,
    );
    let both = merged(istio("ambient"), labelled("none"));
    check("both", plain, both, DataplaneMode::None);
}

#[test]
fn a_mistyped_label_is_a_finding_that_names_the_field() {
    let found = object(pod("a", IP, labelled("ambiemt"))).findings;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].object, "Pod shop/a");
    assert_eq!(
        found[0].field,
        "metadata.labels[\"karst.dev/dataplane-mode\"]"
    );
    assert!(found[0].problem.contains("ambiemt"));
}

#[test]
fn a_pod_with_a_sidecar_is_left_alone() {
    for over in [
        json!({"metadata": {"annotations": {"sidecar.istio.io/status": "{}"}}}),
        json!({"spec": {"containers": [{"name": "app"}, {"name": "istio-proxy"}]}}),
        json!({"spec": {"initContainers": [{"name": "istio-proxy", "restartPolicy": "Always"}]}}),
    ] {
        check(
            &over.to_string(),
            namespace(Some("ambient")),
            merged(over.clone(), labelled("ambient")),
            DataplaneMode::None,
        );
    }
    // What has ended before the application starts carries nothing.
    let ended = json!({"spec": {"initContainers": [{"name": "istio-proxy"}]}});
    check(
        "an init container that ends",
        namespace(Some("ambient")),
        merged(ended, labelled("ambient")),
        DataplaneMode::Ambient,
    );
}

#[test]
fn a_host_network_pod_is_never_in_the_mesh() {
    let over = merged(json!({"spec": {"hostNetwork": true}}), labelled("ambient"));
    let finding = &object(pod("a", IP, over.clone())).findings[0];
    assert_eq!(finding.field, "spec.hostNetwork");
    let mesh = Mesh::new([namespace(Some("ambient")), pod("a", IP, over)]);
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::None);
    assert_eq!(mesh.node_pod("node-1", "a"), None);
    assert_eq!(
        mesh.0.identity_on_node("node-1", "shop", "web"),
        NodeIdentity::NotInMesh
    );
}

#[test]
fn a_new_pod_in_the_mesh_is_reached_by_tunnel_at_once() {
    let mesh = Mesh::new([namespace(Some("ambient")), pod("a", IP, json!({}))]);
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::Hbone);
}

#[test]
fn a_pod_put_into_the_mesh_live_waits_for_the_report() {
    let mut mesh = Mesh::new([namespace(None), pod("a", IP, json!({}))]);
    mesh.apply(namespace(Some("ambient")));
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::None);
    let own = mesh.node_pod("node-1", "a").unwrap();
    assert_eq!(own.dataplane_mode(), DataplaneMode::Ambient);

    let (known, changes) = mesh.0.report_enrolled("node-1", &["uid-a".to_owned()]);
    assert_eq!(known, 1);
    assert_eq!(changes.addresses.iter().collect::<Vec<_>>(), [&uid("a")]);
    assert!(changes.node_pods.is_empty());
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::Hbone);
}

#[test]
fn once_by_tunnel_always_by_tunnel_until_the_intent_changes() {
    let mut mesh = Mesh::new([namespace(None), pod("a", IP, json!({}))]);
    mesh.apply(namespace(Some("ambient")));
    mesh.0.report_enrolled("node-1", &["uid-a".to_owned()]);
    let (known, changes) = mesh.0.report_enrolled("node-1", &[]);
    assert_eq!((known, changes.is_empty()), (0, true));
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::Hbone);
    mesh.apply(pod(
        "a",
        IP,
        json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}}),
    ));
    assert_eq!(
        mesh.tunnel("a"),
        TunnelProtocol::Hbone,
        "readiness is another matter"
    );

    mesh.apply(namespace(None));
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::None);
    mesh.apply(namespace(Some("ambient")));
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::None, "put in again, live");
    mesh.0.report_enrolled("node-1", &["uid-a".to_owned()]);
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::Hbone);
}

#[test]
fn a_report_for_a_pod_outside_the_mesh_changes_nothing() {
    let mut mesh = Mesh::new([namespace(None), pod("a", IP, json!({}))]);
    let (known, changes) = mesh.0.report_enrolled("node-1", &["uid-a".to_owned()]);
    assert_eq!((known, changes.is_empty()), (1, true));
    mesh.apply(namespace(Some("ambient")));
    assert_eq!(
        mesh.tunnel("a"),
        TunnelProtocol::None,
        "an early report does not count"
    );
}

#[test]
fn a_node_cannot_report_the_pods_of_another() {
    let mut mesh = Mesh::new([namespace(None), pod("a", IP, json!({}))]);
    mesh.apply(namespace(Some("ambient")));
    let (known, changes) = mesh.0.report_enrolled("node-2", &["uid-a".to_owned()]);
    assert_eq!((known, changes.is_empty()), (0, true));
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::None);
}

#[test]
fn another_pod_under_the_same_name_starts_anew() {
    let mut mesh = Mesh::new([namespace(None), pod("a", IP, json!({}))]);
    mesh.apply(namespace(Some("ambient")));
    assert_eq!(mesh.tunnel("a"), TunnelProtocol::None);
    let changes = mesh.apply(pod("a", IP, json!({"metadata": {"uid": "uid-second"}})));
    assert_eq!(
        mesh.tunnel("a"),
        TunnelProtocol::Hbone,
        "it was created in the mesh"
    );
    let uids: Vec<&str> = changes
        .node_pods
        .iter()
        .map(|(_, uid)| uid.as_str())
        .collect();
    assert_eq!(uids, ["uid-a", "uid-second"]);
}

#[test]
fn identities_belong_to_the_nodes_of_their_live_pods() {
    let mut mesh = Mesh::new([
        namespace(Some("ambient")),
        pod("a", IP, json!({})),
        pod(
            "out",
            "10.0.1.2",
            merged(
                labelled("none"),
                json!({"spec": {"serviceAccountName": "out"}}),
            ),
        ),
        pod(
            "done",
            "10.0.1.3",
            json!({"spec": {"serviceAccountName": "done"}, "status": {"phase": "Failed"}}),
        ),
    ]);
    let of = |mesh: &Mesh, node: &str, namespace: &str, account: &str| {
        mesh.0.identity_on_node(node, namespace, account)
    };
    assert_eq!(of(&mesh, "node-1", "shop", "web"), NodeIdentity::InMesh);
    assert_eq!(of(&mesh, "node-2", "shop", "web"), NodeIdentity::Absent);
    assert_eq!(of(&mesh, "node-1", "other", "web"), NodeIdentity::Absent);
    assert_eq!(of(&mesh, "node-1", "shop", "out"), NodeIdentity::NotInMesh);
    assert_eq!(of(&mesh, "node-1", "shop", "done"), NodeIdentity::Absent);
    mesh.delete(pod("a", IP, json!({})));
    assert_eq!(of(&mesh, "node-1", "shop", "web"), NodeIdentity::Absent);
}

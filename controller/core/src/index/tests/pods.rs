//! What a pod's workload says.

use karst_api::workload::{NetworkMode, WorkloadStatus, WorkloadType};
use serde_json::{Value, json};

use super::support::{Mesh, node, pod, uid};
use crate::{Index, MeshConfig, Object};

const IP: &str = "10.0.1.1";

#[test]
fn a_workload_says_who_and_where_it_is() {
    let mesh = Mesh::new([node("node-1", "z"), pod("a", IP, json!({}))]);
    let workload = mesh.workload("a").unwrap();
    assert_eq!(workload.uid, uid("a"));
    assert_eq!(
        (workload.name.as_str(), workload.namespace.as_str()),
        ("a", "shop")
    );
    assert_eq!(workload.service_account, "web");
    assert_eq!(workload.trust_domain, "", "the wire's default is left out");
    assert_eq!(workload.identity_trust_domain(), "cluster.local");
    assert_eq!(workload.node, "node-1");
    assert_eq!(workload.cluster_id, "Kubernetes");
    assert_eq!(workload.network_mode(), NetworkMode::Standard);
    assert_eq!(workload.status(), WorkloadStatus::Healthy);
    let locality = workload.locality.unwrap();
    assert_eq!(
        (locality.region.as_str(), locality.zone.as_str()),
        ("r", "z")
    );
    let rendered = mesh.0.aliased("/10.0.1.1").next().unwrap();
    assert_eq!(rendered.name, uid("a"));
}

#[test]
fn another_trust_domain_and_cluster_are_said() {
    let config = MeshConfig {
        trust_domain: "prod.example".to_owned(),
        cluster_id: "east".to_owned(),
        cluster_domain: "corp.example".to_owned(),
        network: "net-1".to_owned(),
        ..MeshConfig::default()
    };
    let mut index = Index::new(config);
    index
        .apply(
            Object::from_value(pod("a", IP, json!({})))
                .unwrap()
                .unwrap(),
        )
        .unwrap();
    let mesh = Mesh(index);
    let workload = mesh.workload_of("east//Pod/shop/a").unwrap();
    assert_eq!(workload.trust_domain, "prod.example");
    assert_eq!(
        mesh.node_pod("node-1", "a").unwrap().trust_domain,
        "prod.example"
    );
    assert_eq!(mesh.0.aliased("net-1/10.0.1.1").count(), 1);
    assert_eq!(mesh.0.aliased("/10.0.1.1").count(), 0);
}

#[test]
fn both_addresses_of_a_dual_stack_pod_are_its_names() {
    let over = json!({"status": {"podIPs": [{"ip": IP}, {"ip": "fd00::1"}]}});
    let mesh = Mesh::new([pod("a", IP, over)]);
    let ips = mesh.workload("a").unwrap().ip_addresses().unwrap();
    assert_eq!(
        ips.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [IP, "fd00::1"]
    );
    assert_eq!(mesh.0.aliased("/fd00::1").count(), 1);
}

#[test]
fn pods_without_an_address_or_ended_are_no_workloads() {
    let table = [
        ("no status", json!({"status": null})),
        (
            "no address",
            json!({"status": {"podIP": null, "podIPs": null}}),
        ),
        (
            "empty address",
            json!({"status": {"podIP": "", "podIPs": null}}),
        ),
        ("succeeded", json!({"status": {"phase": "Succeeded"}})),
        ("failed", json!({"status": {"phase": "Failed"}})),
    ];
    for (what, over) in table {
        let mesh = Mesh::new([pod("a", IP, over)]);
        assert_eq!(mesh.workload("a"), None, "{what}");
    }
}

#[test]
fn health_is_readiness() {
    let ready =
        |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
    let table = [
        ("ready", json!({}), WorkloadStatus::Healthy),
        ("not ready", ready("False"), WorkloadStatus::Unhealthy),
        ("unknown", ready("Unknown"), WorkloadStatus::Unhealthy),
        (
            "no condition",
            json!({"status": {"conditions": null}}),
            WorkloadStatus::Unhealthy,
        ),
        (
            "another condition",
            json!({"status": {"conditions": [{"type": "Initialized", "status": "True"}]}}),
            WorkloadStatus::Unhealthy,
        ),
        (
            "being deleted",
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}),
            WorkloadStatus::Unhealthy,
        ),
    ];
    for (what, over, expected) in table {
        let mesh = Mesh::new([pod("a", IP, over)]);
        assert_eq!(mesh.workload("a").unwrap().status(), expected, "{what}");
    }
}

#[test]
fn a_host_network_pod_is_not_known_by_its_address() {
    let mesh = Mesh::new([pod("a", IP, json!({"spec": {"hostNetwork": true}}))]);
    let workload = mesh.workload("a").unwrap();
    assert_eq!(workload.network_mode(), NetworkMode::HostNetwork);
    assert_eq!(mesh.0.aliased("/10.0.1.1").count(), 0);
}

#[test]
fn a_pod_without_an_account_has_the_default_one() {
    let mesh = Mesh::new([pod("a", IP, json!({"spec": {"serviceAccountName": null}}))]);
    assert_eq!(mesh.workload("a").unwrap().service_account, "default");
}

#[test]
fn a_pod_without_a_uid_is_named_by_namespace_and_name() {
    let mesh = Mesh::new([pod("a", IP, json!({"metadata": {"uid": null}}))]);
    assert!(mesh.0.node_pod("node-1", "shop.a").is_some());
}

#[test]
fn owners_give_type_and_name() {
    let owned = |kind: &str, name: &str| {
        json!({"metadata": {
        "labels": {"pod-template-hash": "5d4f8"},
        "ownerReferences": [{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true}]}})
    };
    let table: [(Value, WorkloadType, &str); 9] = [
        (json!({}), WorkloadType::Pod, "a"),
        (
            owned("ReplicaSet", "web-5d4f8"),
            WorkloadType::Deployment,
            "web",
        ),
        (owned("ReplicaSet", "bare"), WorkloadType::Pod, "bare"),
        (owned("Deployment", "web"), WorkloadType::Deployment, "web"),
        (owned("StatefulSet", "db"), WorkloadType::Pod, "db"),
        (owned("DaemonSet", "agent"), WorkloadType::Pod, "agent"),
        (owned("Job", "once"), WorkloadType::Job, "once"),
        (
            owned("Job", "backup-28912345"),
            WorkloadType::Cronjob,
            "backup",
        ),
        (owned("CronJob", "backup"), WorkloadType::Cronjob, "backup"),
    ];
    for (over, kind, name) in table {
        let mesh = Mesh::new([pod("a", IP, over.clone())]);
        let workload = mesh.workload("a").unwrap();
        assert_eq!(workload.workload_type(), kind, "{over}");
        assert_eq!(workload.workload_name, name, "{over}");
    }
}

#[test]
fn canonical_name_and_revision_come_from_the_first_label_that_is_set() {
    let labels = |labels: Value| json!({"metadata": {"labels": labels}});
    let table = [
        (labels(json!({"app": null})), "a", "latest"),
        (labels(json!({})), "web", "latest"),
        (labels(json!({"version": "v2"})), "web", "v2"),
        (
            labels(json!({"app.kubernetes.io/name": "k", "app.kubernetes.io/version": "v3"})),
            "k",
            "v3",
        ),
        (
            labels(
                json!({"service.istio.io/canonical-name": "c", "service.istio.io/canonical-revision": "r",
                "app.kubernetes.io/name": "k", "version": "v"}),
            ),
            "c",
            "r",
        ),
    ];
    for (over, name, revision) in table {
        let mesh = Mesh::new([pod("a", IP, over.clone())]);
        let workload = mesh.workload("a").unwrap();
        assert_eq!(workload.canonical_name, name, "{over}");
        assert_eq!(workload.canonical_revision, revision, "{over}");
    }
}

#[test]
fn a_nodes_list_has_its_pods_alone() {
    let elsewhere = json!({"spec": {"nodeName": "node-2"}});
    let unscheduled = json!({"spec": {"nodeName": null}});
    let mesh = Mesh::new([
        pod("a", IP, json!({})),
        pod("b", "10.0.2.1", elsewhere),
        pod("c", "10.0.3.1", unscheduled),
    ]);
    let on = |node: &str| {
        mesh.0
            .node_pods(node)
            .map(|pod| pod.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(on("node-1"), ["uid-a"]);
    assert_eq!(on("node-2"), ["uid-b"]);
    assert_eq!(on("node-3"), [""; 0]);
    let own = mesh.node_pod("node-1", "a").unwrap();
    assert_eq!(own.workload_uid, uid("a"));
    assert_eq!(own.pod_uid, "uid-a");
    assert_eq!(own.ip_addresses().unwrap()[0].to_string(), IP);
}

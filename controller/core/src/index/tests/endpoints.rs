//! Endpoints that come from EndpointSlices.

use karst_api::workload::{TunnelProtocol, WorkloadStatus};
use serde_json::{Value, json};

use super::support::{Mesh, WEB, namespace, node, pod, service, slice, uid};

const OUTSIDE: &str = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/192.0.2.1";

fn no_selector() -> Value {
    service(json!({"spec": {"selector": null}}))
}

fn outside(over: Value) -> Value {
    let mut endpoint = json!({"addresses": ["192.0.2.1"]});
    endpoint
        .as_object_mut()
        .unwrap()
        .extend(over.as_object().unwrap().clone());
    slice("s", json!({"endpoints": [endpoint]}))
}

fn ports(mesh: &Mesh, uid: &str) -> Vec<(u32, u32)> {
    let workload = mesh.workload_of(uid).unwrap();
    let ports = &workload.services[WEB].ports;
    ports
        .iter()
        .map(|port| (port.service_port, port.target_port))
        .collect()
}

#[test]
fn an_address_outside_is_a_workload_without_identity() {
    let mesh = Mesh::new([
        node("node-1", "z"),
        no_selector(),
        outside(json!({"nodeName": "node-1"})),
    ]);
    let workload = mesh.workload_of(OUTSIDE).unwrap();
    assert_eq!(workload.service_account, "");
    assert_eq!(workload.tunnel_protocol(), TunnelProtocol::None);
    assert_eq!(workload.ip_addresses().unwrap()[0].to_string(), "192.0.2.1");
    assert_eq!(workload.locality.as_ref().unwrap().zone, "z");
    assert_eq!(ports(&mesh, OUTSIDE), [(80, 9090)]);
    assert_eq!(mesh.0.aliased("/192.0.2.1").count(), 1);
}

#[test]
fn health_follows_the_ready_condition() {
    let table = [
        (json!({}), WorkloadStatus::Healthy),
        (
            json!({"conditions": {"ready": true}}),
            WorkloadStatus::Healthy,
        ),
        (
            json!({"conditions": {"ready": false, "serving": true}}),
            WorkloadStatus::Unhealthy,
        ),
    ];
    for (over, expected) in table {
        let mesh = Mesh::new([no_selector(), outside(over)]);
        assert_eq!(mesh.workload_of(OUTSIDE).unwrap().status(), expected);
    }
}

#[test]
fn ports_are_matched_by_name() {
    let two =
        json!({"spec": {"ports": [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]}});
    let mut service = no_selector();
    service["spec"]["ports"] = two["spec"]["ports"].clone();
    let mesh = Mesh::new([service, outside(json!({}))]);
    assert_eq!(ports(&mesh, OUTSIDE), [(80, 9090)]);
}

#[test]
fn a_slice_alone_is_nothing_until_its_service_is_there() {
    let mut mesh = Mesh::new([outside(json!({}))]);
    assert_eq!(mesh.names(), [""; 0]);
    mesh.apply(no_selector());
    assert_eq!(mesh.names(), [OUTSIDE, WEB]);
    mesh.delete(no_selector());
    assert_eq!(mesh.names(), [""; 0]);
}

#[test]
fn addresses_that_leave_the_slice_go() {
    let mut mesh = Mesh::new([no_selector(), outside(json!({}))]);
    let changes = mesh.apply(outside(json!({"addresses": ["192.0.2.2"]})));
    assert_eq!(changes.addresses.len(), 2);
    assert!(mesh.workload_of(OUTSIDE).is_none());
    mesh.delete(outside(json!({})));
    assert_eq!(mesh.names(), [WEB]);
}

#[test]
fn a_slice_of_another_name_is_not_touched() {
    // "s" is the start of "s2", and of its endpoints' names up to the slash.
    let mut mesh = Mesh::new([no_selector(), outside(json!({}))]);
    mesh.apply(slice(
        "s2",
        json!({"endpoints": [{"addresses": ["192.0.2.9"]}]}),
    ));
    mesh.delete(slice("s", json!({})));
    assert_eq!(
        mesh.names(),
        [
            "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s2/192.0.2.9",
            WEB
        ]
    );
}

#[test]
fn a_named_pod_is_the_pod_itself() {
    let target = json!({"endpoints": [{"addresses": ["10.0.1.1"], "targetRef": {"kind": "Pod", "name": "a"}}]});
    let mesh = Mesh::new([
        no_selector(),
        pod("a", "10.0.1.1", json!({})),
        slice("s", target),
    ]);
    assert_eq!(mesh.names(), [uid("a"), WEB.to_owned()]);
    assert_eq!(mesh.ports("a"), Some(vec![(80, 9090)]));
}

#[test]
fn with_a_selector_the_slice_only_repeats_it() {
    let target = json!({"endpoints": [{"addresses": ["10.0.1.1"], "targetRef": {"kind": "Pod", "name": "a"}}]});
    let mesh = Mesh::new([
        service(json!({})),
        pod("a", "10.0.1.1", json!({})),
        slice("s", target.clone()),
    ]);
    assert_eq!(mesh.ports("a"), Some(vec![(80, 8080)]));
    let unlabelled = json!({"metadata": {"labels": {"app": "other"}}});
    let mesh = Mesh::new([
        service(json!({})),
        pod("a", "10.0.1.1", unlabelled),
        slice("s", target),
    ]);
    assert_eq!(mesh.ports("a"), None);
}

#[test]
fn a_pods_address_is_the_pod_with_its_identity() {
    let by_ip = slice("s", json!({"endpoints": [{"addresses": ["10.0.1.1"]}]}));
    let in_mesh = namespace(Some("ambient"));
    // In whichever order they come.
    let objects = [
        in_mesh,
        no_selector(),
        by_ip.clone(),
        pod("a", "10.0.1.1", json!({})),
    ];
    for last in 0..objects.len() {
        let mut objects = objects.to_vec();
        let moved = objects.remove(last);
        let mesh = Mesh::new(objects.into_iter().chain([moved]));
        assert_eq!(mesh.names(), [uid("a"), WEB.to_owned()], "{last} last");
        assert_eq!(mesh.ports("a"), Some(vec![(80, 9090)]), "{last} last");
    }
    // And when the pod has gone, the address is only an address.
    let mut mesh = Mesh::new(objects);
    mesh.delete(pod("a", "10.0.1.1", json!({})));
    let endpoint = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/s/10.0.1.1";
    assert_eq!(mesh.names(), [endpoint, WEB]);
}

#[test]
fn an_address_that_two_pods_claim_is_nobodys() {
    let by_ip = slice("s", json!({"endpoints": [{"addresses": ["10.0.1.1"]}]}));
    let mut mesh = Mesh::new([
        no_selector(),
        by_ip,
        pod("a", "10.0.1.1", json!({})),
        pod("b", "10.0.1.1", json!({})),
    ]);
    assert_eq!(mesh.ports("a"), None);
    assert_eq!(mesh.ports("b"), None);
    assert_eq!(mesh.0.aliased("/10.0.1.1").count(), 3);
    mesh.delete(pod("a", "10.0.1.1", json!({})));
    assert_eq!(mesh.ports("b"), Some(vec![(80, 9090)]));
    assert_eq!(mesh.0.aliased("/10.0.1.1").count(), 1);
}

#[test]
fn a_slice_of_names_is_left_out() {
    let mesh = Mesh::new([
        no_selector(),
        slice(
            "s",
            json!({"addressType": "FQDN", "endpoints": [{"addresses": ["example.com"]}]}),
        ),
    ]);
    assert_eq!(mesh.names(), [WEB]);
}

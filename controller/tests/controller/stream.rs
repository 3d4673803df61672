//! The protocol itself, seen from a bare stream.

use std::collections::HashMap;

use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE,
    discovery::{DeltaDiscoveryRequest, Status},
    workload::{Address, address},
};
use serde_json::json;

use crate::harness::{
    NAMESPACE, Raw, SERVICE, SERVICE_NAME, Server, eventually, names, pod, workload,
};

fn server() -> Server {
    Server::start(&[
        ("namespace.yaml", NAMESPACE),
        ("service.yaml", SERVICE),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
        ("b.yaml", &pod("b", "node-2", "10.0.2.1")),
    ])
}

#[tokio::test]
async fn a_reconnect_gets_only_differences_and_removals() {
    let server = server();
    let config = server.agent("node-1");
    let mut first = Raw::open(&config).await.unwrap();
    let response = first.subscribe(ADDRESS_TYPE).await;
    let mut held: HashMap<String, String> = response
        .resources
        .iter()
        .map(|resource| (resource.name.clone(), resource.version.clone()))
        .collect();
    assert_eq!(held.len(), 3);
    drop(first);

    held.insert(workload("b"), "stale".to_owned());
    held.insert(workload("gone"), "1".to_owned());
    let mut second = Raw::open(&config).await.unwrap();
    second
        .send(DeltaDiscoveryRequest {
            type_url: ADDRESS_TYPE.to_owned(),
            initial_resource_versions: held.into_iter().collect(),
            ..Default::default()
        })
        .await;
    let response = second.receive().await.unwrap();
    assert_eq!(names(&response), [workload("b")]);
    assert_eq!(response.removed_resources, [workload("gone")]);
    assert!(!response.is_partial());
}

#[tokio::test]
async fn equal_content_has_equal_versions_after_a_restart() {
    let mut server = server();
    let config = server.agent("node-1");
    let versions = async |config| {
        let mut raw = Raw::open(config).await.unwrap();
        let response = raw.subscribe(ADDRESS_TYPE).await;
        let resources = response.resources.into_iter();
        resources
            .map(|resource| (resource.name, resource.version))
            .collect::<Vec<_>>()
    };
    let before = versions(&config).await;
    server.restart();
    assert_eq!(versions(&config).await, before);
}

#[tokio::test]
async fn a_slow_client_is_told_the_latest_state_once() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let first = raw.subscribe(ADDRESS_TYPE).await;
    // A second stream shows when each change has come through; the first one does not answer.
    let mut witness = Raw::open(&server.agent("node-2")).await.unwrap();
    let seen = witness.subscribe(ADDRESS_TYPE).await;
    witness.ack(&seen).await;
    for last in 2..6 {
        server.write("a.yaml", &pod("a", "node-1", &format!("10.0.1.{last}")));
        let seen = witness.receive().await.unwrap();
        assert_eq!(names(&seen), [workload("a")]);
        witness.ack(&seen).await;
    }
    raw.ack(&first).await;
    let next = raw.receive().await.unwrap();
    assert_eq!(names(&next), [workload("a")]);
    let address: Address = next.resources[0].unpack(ADDRESS_TYPE).unwrap();
    let Some(address::Type::Workload(workload)) = address.r#type else {
        panic!("it is a workload");
    };
    assert_eq!(workload.ip_addresses().unwrap()[0].to_string(), "10.0.1.5");
}

#[tokio::test]
async fn a_rejection_without_details_counts_for_the_whole_response() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let response = raw.subscribe(ADDRESS_TYPE).await;
    raw.send(DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        response_nonce: response.nonce.clone(),
        error_detail: Some(Status {
            code: 3,
            message: "no good".to_owned(),
            details: Vec::new(),
        }),
        ..Default::default()
    })
    .await;
    let event = eventually("the rejection is logged", || {
        server.find_log(|event| event["message"] == "resources that the client does not have right")
    })
    .await;
    assert_eq!(event["rejected"], 3);
}

#[tokio::test]
async fn an_answer_to_another_response_is_no_answer() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let mut response = raw.subscribe(ADDRESS_TYPE).await;
    let mut witness = Raw::open(&server.agent("node-2")).await.unwrap();
    let seen = witness.subscribe(ADDRESS_TYPE).await;
    witness.ack(&seen).await;
    let nonce = std::mem::replace(&mut response.nonce, "made-up".to_owned());
    raw.ack(&response).await;
    server.write("a.yaml", &pod("a", "node-1", "10.0.1.9"));
    assert_eq!(names(&witness.receive().await.unwrap()), [workload("a")]);
    // The first answer that counts releases the change; had the made-up one counted, the change
    // would have come before this subscription's answer.
    raw.send(DeltaDiscoveryRequest {
        type_url: AUTHORIZATION_TYPE.to_owned(),
        ..Default::default()
    })
    .await;
    assert_eq!(raw.receive().await.unwrap().type_url, AUTHORIZATION_TYPE);
    response.nonce = nonce;
    raw.ack(&response).await;
    let next = raw.receive().await.unwrap();
    assert_eq!(names(&next), [workload("a")]);
}

#[tokio::test]
async fn a_subscription_to_policies_is_answered_although_there_are_none() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let response = raw.subscribe(AUTHORIZATION_TYPE).await;
    assert_eq!(response.type_url, AUTHORIZATION_TYPE);
    assert!(response.resources.is_empty() && response.removed_resources.is_empty());
    assert!(!response.nonce.is_empty());
}

#[tokio::test]
async fn a_name_is_answered_again_when_it_is_asked_for_again() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let ask = |nonce: String| DeltaDiscoveryRequest {
        type_url: ADDRESS_TYPE.to_owned(),
        resource_names_subscribe: vec![SERVICE_NAME.to_owned()],
        response_nonce: nonce,
        ..Default::default()
    };
    raw.send(ask(String::new())).await;
    let first = raw.receive().await.unwrap();
    assert_eq!(names(&first), [SERVICE_NAME]);
    raw.send(ask(first.nonce.clone())).await;
    let second = raw.receive().await.unwrap();
    assert_eq!(names(&second), [SERVICE_NAME]);
    assert_ne!(first.nonce, second.nonce);
}

#[tokio::test]
async fn pods_of_another_node_cannot_be_had_by_name() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    raw.send(DeltaDiscoveryRequest {
        type_url: NODE_POD_TYPE.to_owned(),
        resource_names_subscribe: vec!["uid-b".to_owned()],
        ..Default::default()
    })
    .await;
    let response = raw.receive().await.unwrap();
    assert!(response.resources.is_empty());
    assert_eq!(response.removed_resources, ["uid-b"]);
}

#[tokio::test]
async fn an_unknown_type_is_refused() {
    let server = server();
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    raw.send(DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..Default::default()
    })
    .await;
    let status = raw.receive().await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    assert!(
        status.message().starts_with("xds_unknown_type"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_first_push_of_many_resources_comes_in_parts() {
    // Few objects of unusual size: what counts is the bytes of the push.
    let revision = "x".repeat(2000);
    let mut text = String::new();
    for number in 0..3000 {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("pod-{number}"), "namespace": "shop",
                "labels": {"version": revision}},
            "spec": {"nodeName": "node-9"},
            "status": {"podIP": format!("10.100.{}.{}", number / 250, number % 250 + 1)},
        });
        text.push_str(&pod.to_string());
    }
    let server = Server::start(&[("many.json", &text)]);
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let mut response = raw.subscribe(ADDRESS_TYPE).await;
    let mut parts = 1;
    let mut total = response.resources.len();
    while response.is_partial() {
        assert!(response.size() < 5 * 1024 * 1024);
        raw.ack(&response).await;
        response = raw.receive().await.unwrap();
        total += response.resources.len();
        parts += 1;
    }
    assert_eq!(total, 3000);
    assert!(parts > 1);
}

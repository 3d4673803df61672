//! What the proxies of Gateways may ask for, and what not.

use karst_api::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE, BACKEND_TYPE, LISTENER_TYPE, NODE_POD_TYPE, ROUTE_TYPE,
    TLS_SECRET_TYPE, discovery::DeltaDiscoveryRequest,
};
use karst_client::{Controller, ControllerConfig};
use rcgen::KeyPair;
use tonic::{Code, Status};

use crate::{
    ca::{ask, csr},
    harness::{
        NAMESPACE, NAMESPACE_AMBIENT, Raw, SERVICE, Server, names, pod, proxy_pod, waypoint,
    },
};

const PROXY_TYPES: [&str; 4] = [TLS_SECRET_TYPE, BACKEND_TYPE, ROUTE_TYPE, LISTENER_TYPE];

fn server() -> Server {
    Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        ("service.yaml", SERVICE),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
        ("front.yaml", &waypoint("front")),
        ("front-pod.yaml", &proxy_pod("front", "node-1", "10.0.1.7")),
        ("other.yaml", &waypoint("other")),
    ])
}

async fn refused_type(server: &Server, config: &ControllerConfig, type_url: &str) {
    let mut raw = Raw::open(config).await.unwrap();
    raw.send(DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        ..DeltaDiscoveryRequest::default()
    })
    .await;
    let status = raw.receive().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    assert!(
        status.message().starts_with("xds_type_not_allowed:"),
        "{status:?}"
    );
    let ended = "karst_controller_xds_streams_ended_total{reason=\"xds_type_not_allowed\"}";
    assert!(server.metric(ended).await >= 1.0);
}

#[tokio::test]
async fn a_proxy_is_served_what_is_for_proxies_and_nothing_else() {
    let server = server();
    let mut raw = Raw::open(&server.proxy("front", "node-1")).await.unwrap();
    for type_url in PROXY_TYPES {
        let response = raw.subscribe(type_url).await;
        assert_eq!(response.type_url, type_url);
        raw.ack(&response).await;
    }
    for type_url in [ADDRESS_TYPE, NODE_POD_TYPE, AUTHORIZATION_TYPE] {
        refused_type(&server, &server.proxy("front", "node-1"), type_url).await;
    }
}

#[tokio::test]
async fn a_node_agent_is_served_nothing_that_is_for_proxies() {
    let server = server();
    for type_url in PROXY_TYPES {
        refused_type(&server, &server.agent("node-1"), type_url).await;
    }
}

#[tokio::test]
async fn a_proxy_does_not_speak_for_its_node() {
    let server = server();
    let controller = Controller::connect(&server.proxy("front", "node-1"))
        .await
        .unwrap();
    let error = controller
        .report_enrolment(vec!["uid-a".to_owned()])
        .await
        .unwrap_err();
    assert!(error.to_string().contains("xds_not_node_agent"), "{error}");
}

#[tokio::test]
async fn an_account_is_a_proxys_as_long_as_there_is_its_gateway() {
    let server = Server::start(&[("namespace.yaml", NAMESPACE)]);
    let config = server.proxy("late", "node-1");
    let Err(status) = Raw::open(&config).await else {
        panic!("there is no such Gateway");
    };
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().starts_with("xds_not_node_agent:"),
        "{status:?}"
    );
    server.write("late.yaml", &waypoint("late"));
    let deadline = std::time::Instant::now() + crate::harness::DEADLINE;
    let mut raw = loop {
        match Raw::open(&config).await {
            Ok(raw) => break raw,
            Err(status) => assert!(std::time::Instant::now() < deadline, "{status:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let response = raw.subscribe(LISTENER_TYPE).await;
    assert!(names(&response).is_empty(), "nothing is bound to it");
}

async fn refused_identity(config: &ControllerConfig, identity: &str, reason: &str) -> Status {
    let key = KeyPair::generate().unwrap();
    let status = ask(config, csr(&key), identity, 0).await.unwrap_err();
    assert!(
        status.message().starts_with(&format!("{reason}:")),
        "{identity}: {status:?}"
    );
    status
}

#[tokio::test]
async fn a_proxy_gets_certificates_for_itself_only() {
    let server = server();
    let own = "spiffe://cluster.local/ns/shop/sa/front";
    let config = server.proxy("front", "node-1");
    let key = KeyPair::generate().unwrap();
    assert_eq!(ask(&config, csr(&key), own, 0).await.unwrap().len(), 2);

    for other in ["web", "other", "fron"] {
        let identity = format!("spiffe://cluster.local/ns/shop/sa/{other}");
        let status = refused_identity(&config, &identity, "ca_identity_not_own").await;
        assert_eq!(status.code(), Code::PermissionDenied);
    }
    let namespace = own.replace("/shop/", "/other/");
    refused_identity(&config, &namespace, "ca_identity_not_own").await;
    let domain = own.replace("cluster.local", "other.example");
    refused_identity(&config, &domain, "ca_wrong_trust_domain").await;
    refused_identity(&config, "spiffe://cluster.local/front", "ca_bad_identity").await;
    // Where none of its pods runs, and where there is no pod at all.
    let elsewhere = server.proxy("front", "node-2");
    refused_identity(&elsewhere, own, "ca_identity_not_on_node").await;
    let podless = "spiffe://cluster.local/ns/shop/sa/other";
    refused_identity(
        &server.proxy("other", "node-1"),
        podless,
        "ca_identity_not_on_node",
    )
    .await;
    assert_eq!(server.metric("karst_controller_ca_issued_total").await, 1.0);
}

#[tokio::test]
async fn a_node_agent_gets_no_certificate_of_a_proxy() {
    let server = server();
    let identity = "spiffe://cluster.local/ns/shop/sa/front";
    refused_identity(&server.agent("node-1"), identity, "ca_identity_not_in_mesh").await;
}

#[tokio::test]
async fn who_is_neither_agent_nor_proxy_gets_no_certificate() {
    let server = server();
    let identity = "spiffe://cluster.local/ns/shop/sa/web";
    refused_identity(
        &server.proxy("web", "node-1"),
        identity,
        "ca_not_node_agent",
    )
    .await;
}

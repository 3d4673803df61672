//! The certificate authority.

use karst_api::{
    IMPERSONATED_IDENTITY,
    ca::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
};
use karst_client::{Controller, ControllerConfig};
use prost_types::{Struct, Value, value::Kind};
use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use serde_json::json;
use tonic::{Code, Status};
use x509_parser::{extensions::GeneralName, pem::Pem};

use crate::harness::{NAMESPACE_AMBIENT, Server, agent_claims, eventually, now, pod};

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

fn server() -> Server {
    let other = pod("other", "node-2", "10.0.2.1").replace("Name: web", "Name: other");
    let plain = pod("plain", "node-1", "10.0.1.9")
        .replace("Name: web", "Name: plain")
        .replace("{app: web}", "{app: web, karst.dev/dataplane-mode: none}");
    let ended = pod("ended", "node-1", "10.0.1.8")
        .replace("Name: web", "Name: ended")
        .replace("phase: Running", "phase: Succeeded");
    Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
        ("other.yaml", &other),
        ("plain.yaml", &plain),
        ("ended.yaml", &ended),
    ])
}

pub fn csr(key: &KeyPair) -> String {
    // Names in the request are not to be believed.
    let params = CertificateParams::new(vec!["evil.example".to_owned()]).unwrap();
    params.serialize_request(key).unwrap().pem().unwrap()
}

pub async fn ask(
    config: &ControllerConfig,
    csr: String,
    identity: &str,
    seconds: i64,
) -> Result<Vec<String>, Status> {
    let controller = Controller::connect(config).await.unwrap();
    let identity = Value {
        kind: Some(Kind::StringValue(identity.to_owned())),
    };
    let message = IstioCertificateRequest {
        csr,
        validity_duration: seconds,
        metadata: Some(Struct {
            fields: [(IMPERSONATED_IDENTITY.to_owned(), identity)].into(),
        }),
    };
    let request = controller.request(message).await.unwrap();
    IstioCertificateServiceClient::new(controller.channel())
        .create_certificate(request)
        .await
        .map(|response| response.into_inner().cert_chain)
}

fn parse(pem: &str) -> Pem {
    let mut blocks = Pem::iter_from_buffer(pem.as_bytes());
    let block = blocks.next().unwrap().unwrap();
    assert!(blocks.next().is_none(), "one certificate a string");
    block
}

/// Asks for a certificate that must be refused, and checks that the refusal is counted and logged.
async fn refused(
    server: &Server,
    config: &ControllerConfig,
    csr: String,
    identity: &str,
    code: Code,
    reason: &str,
) {
    let status = ask(config, csr, identity, 0).await.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(
        status.message().starts_with(&format!("{reason}:")),
        "{status:?}"
    );
    let event = eventually("the refusal is logged", || {
        server.find_log(|event| event["reason"] == reason)
    })
    .await;
    if reason.starts_with("ca_") {
        assert_eq!(event["identity"], identity);
        let metric = format!("karst_controller_ca_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(server.metric(&metric).await, 1.0);
    } else {
        let metric = format!("karst_controller_auth_refused_total{{reason=\"{reason}\"}}");
        assert_eq!(server.metric(&metric).await, 1.0);
    }
    assert_eq!(server.metric("karst_controller_ca_issued_total").await, 0.0);
}

async fn refused_identity(identity: &str, code: Code, reason: &str) {
    let server = server();
    let key = KeyPair::generate().unwrap();
    refused(
        &server,
        &server.agent("node-1"),
        csr(&key),
        identity,
        code,
        reason,
    )
    .await;
}

async fn refused_claims(change: impl FnOnce(&mut serde_json::Value), code: Code, reason: &str) {
    let server = server();
    let mut claims = agent_claims("node-1");
    change(&mut claims);
    let config = server.client("changed", &server.token(&claims));
    let key = KeyPair::generate().unwrap();
    refused(&server, &config, csr(&key), WEB, code, reason).await;
}

#[tokio::test]
async fn an_agent_gets_a_certificate_for_a_pod_of_its_node() {
    let server = server();
    let key = KeyPair::generate().unwrap();
    let chain = ask(&server.agent("node-1"), csr(&key), WEB, 3600)
        .await
        .unwrap();
    assert_eq!(chain.len(), 2);
    let root_file = std::fs::read_to_string(server.path("root.pem")).unwrap();
    assert_eq!(chain[1].replace('\r', ""), root_file);

    let (leaf, root) = (parse(&chain[0]), parse(&chain[1]));
    let (leaf, root) = (leaf.parse_x509().unwrap(), root.parse_x509().unwrap());
    leaf.verify_signature(Some(root.public_key())).unwrap();
    root.verify_signature(None).unwrap();
    assert!(root.is_ca() && !leaf.is_ca());
    assert_eq!(
        leaf.public_key().subject_public_key.data.as_ref(),
        key.der_bytes()
    );
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical, "there is no subject besides");
    assert_eq!(names.value.general_names, [GeneralName::URI(WEB)]);
    let usage = leaf.extended_key_usage().unwrap().unwrap();
    assert!(usage.value.client_auth && usage.value.server_auth);
    let left = leaf.validity().not_after.timestamp() - i64::try_from(now()).unwrap();
    assert!((3500..=3600).contains(&left), "{left} s");
    assert!(leaf.validity().not_before.timestamp() < i64::try_from(now()).unwrap());
    assert_eq!(server.metric("karst_controller_ca_issued_total").await, 1.0);
}

#[tokio::test]
async fn lifetime_is_a_day_by_default_and_at_most() {
    let server = server();
    let config = server.agent("node-1");
    for wanted in [0, -5, 10_000_000] {
        let key = KeyPair::generate().unwrap();
        let chain = ask(&config, csr(&key), WEB, wanted).await.unwrap();
        let leaf = parse(&chain[0]);
        let leaf = leaf.parse_x509().unwrap();
        let left = leaf.validity().not_after.timestamp() - i64::try_from(now()).unwrap();
        assert!((86_000..=86_400).contains(&left), "{wanted}: {left} s");
    }
}

#[tokio::test]
async fn serial_numbers_differ() {
    let server = server();
    let config = server.agent("node-1");
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let chain = ask(&config, csr(&KeyPair::generate().unwrap()), WEB, 0)
            .await
            .unwrap();
        let leaf = parse(&chain[0]);
        serials.insert(leaf.parse_x509().unwrap().raw_serial_as_string());
    }
    assert_eq!(serials.len(), 10);
}

#[tokio::test]
async fn an_identity_of_another_node_is_refused() {
    let identity = "spiffe://cluster.local/ns/shop/sa/other";
    refused_identity(identity, Code::PermissionDenied, "ca_identity_not_on_node").await;
}

#[tokio::test]
async fn an_identity_that_nobody_has_is_refused() {
    let identity = "spiffe://cluster.local/ns/shop/sa/nobody";
    refused_identity(identity, Code::PermissionDenied, "ca_identity_not_on_node").await;
}

#[tokio::test]
async fn the_identity_of_a_pod_that_has_ended_is_refused() {
    let identity = "spiffe://cluster.local/ns/shop/sa/ended";
    refused_identity(identity, Code::PermissionDenied, "ca_identity_not_on_node").await;
}

#[tokio::test]
async fn the_identity_of_a_pod_outside_the_mesh_is_refused() {
    let identity = "spiffe://cluster.local/ns/shop/sa/plain";
    refused_identity(identity, Code::PermissionDenied, "ca_identity_not_in_mesh").await;
}

#[tokio::test]
async fn an_identity_of_another_trust_domain_is_refused() {
    let identity = "spiffe://other.example/ns/shop/sa/web";
    refused_identity(identity, Code::PermissionDenied, "ca_wrong_trust_domain").await;
}

#[tokio::test]
async fn an_identity_of_another_form_is_refused() {
    let identity = "spiffe://cluster.local/ns/shop/sa/web/../other";
    refused_identity(identity, Code::InvalidArgument, "ca_bad_identity").await;
}

#[tokio::test]
async fn a_request_without_an_identity_is_refused() {
    let server = server();
    let controller = Controller::connect(&server.agent("node-1")).await.unwrap();
    let message = IstioCertificateRequest {
        csr: csr(&KeyPair::generate().unwrap()),
        ..Default::default()
    };
    let request = controller.request(message).await.unwrap();
    let status = IstioCertificateServiceClient::new(controller.channel())
        .create_certificate(request)
        .await
        .unwrap_err();
    assert!(
        status.message().starts_with("ca_no_identity:"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_caller_that_is_no_node_agent_is_refused() {
    let change = |claims: &mut serde_json::Value| {
        claims["sub"] = json!("system:serviceaccount:shop:web");
        claims["kubernetes.io"]["namespace"] = json!("shop");
        claims["kubernetes.io"]["serviceaccount"]["name"] = json!("web");
    };
    refused_claims(change, Code::PermissionDenied, "ca_not_node_agent").await;
}

#[tokio::test]
async fn a_token_that_names_no_node_is_refused() {
    let change = |claims: &mut serde_json::Value| {
        claims["kubernetes.io"]
            .as_object_mut()
            .unwrap()
            .remove("node");
    };
    refused_claims(change, Code::PermissionDenied, "ca_no_node").await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let change = |claims: &mut serde_json::Value| claims["exp"] = json!(now() - 60);
    refused_claims(change, Code::Unauthenticated, "auth_expired").await;
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    let change = |claims: &mut serde_json::Value| claims["aud"] = json!(["somebody-else"]);
    refused_claims(change, Code::Unauthenticated, "auth_wrong_audience").await;
}

#[tokio::test]
async fn a_csr_whose_signature_is_broken_is_refused() {
    let server = server();
    let mut block = parse(&csr(&KeyPair::generate().unwrap()));
    // The signature is the last part of the request.
    *block.contents.last_mut().unwrap() ^= 1;
    let broken = {
        use base64::Engine as _;
        let text = base64::engine::general_purpose::STANDARD.encode(&block.contents);
        format!("-----BEGIN CERTIFICATE REQUEST-----\n{text}\n-----END CERTIFICATE REQUEST-----\n")
    };
    let config = server.agent("node-1");
    refused(
        &server,
        &config,
        broken,
        WEB,
        Code::InvalidArgument,
        "ca_bad_csr",
    )
    .await;
}

#[tokio::test]
async fn a_csr_that_is_none_is_refused() {
    let server = server();
    let config = server.agent("node-1");
    let garbage = "not a signing request".to_owned();
    refused(
        &server,
        &config,
        garbage,
        WEB,
        Code::InvalidArgument,
        "ca_bad_csr",
    )
    .await;
}

#[tokio::test]
async fn an_oversized_csr_is_refused() {
    let server = server();
    let config = server.agent("node-1");
    let huge = "A".repeat(20_000);
    refused(
        &server,
        &config,
        huge,
        WEB,
        Code::InvalidArgument,
        "ca_bad_csr",
    )
    .await;
}

#[tokio::test]
async fn a_key_of_another_kind_is_refused() {
    let server = server();
    let config = server.agent("node-1");
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    refused(
        &server,
        &config,
        csr(&key),
        WEB,
        Code::InvalidArgument,
        "ca_bad_key",
    )
    .await;
}

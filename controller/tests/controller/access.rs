//! Who may talk to the controller, and to which controller a client talks.

use karst_api::{
    ADDRESS_TYPE,
    node::{ReportEnrolmentRequest, node_service_client::NodeServiceClient},
};
use karst_client::{ClientError, Controller, ControllerConfig};
use serde_json::json;
use tonic::{Code, Status};

use crate::harness::{NAMESPACE, Raw, Server, Signer, agent_claims, now, pod};

fn server() -> Server {
    Server::start(&[
        ("namespace.yaml", NAMESPACE),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
    ])
}

async fn refusal(config: &ControllerConfig) -> Status {
    match Raw::open(config).await {
        Err(status) => status,
        Ok(_) => panic!("the stream was opened"),
    }
}

async fn refused_token(server: &Server, token: &str, reason: &str) {
    let status = refusal(&server.client("test", token)).await;
    assert_eq!(status.code(), Code::Unauthenticated, "{status:?}");
    assert!(
        status.message().starts_with(&format!("{reason}:")),
        "{status:?}"
    );
    let metric = format!("karst_controller_auth_refused_total{{reason=\"{reason}\"}}");
    assert_eq!(server.metric(&metric).await, 1.0);
    let shown = server
        .log()
        .iter()
        .any(|event| event.to_string().contains(token));
    assert!(!shown, "tokens are never logged");
}

async fn refused_claims(change: impl FnOnce(&mut serde_json::Value), reason: &str) {
    let server = server();
    let mut claims = agent_claims("node-1");
    change(&mut claims);
    let token = server.token(&claims);
    refused_token(&server, &token, reason).await;
}

#[tokio::test]
async fn a_request_without_a_token_is_refused() {
    let server = server();
    let controller = Controller::connect(&server.agent("node-1")).await.unwrap();
    let status = NodeServiceClient::new(controller.channel())
        .report_enrolment(ReportEnrolmentRequest::default())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(
        status.message().starts_with("auth_missing_token:"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_token_that_is_none_is_refused() {
    refused_token(&server(), "garbage", "auth_malformed_token").await;
}

#[tokio::test]
async fn a_token_of_an_unknown_key_is_refused() {
    let token = Signer::new("key-2").sign(&agent_claims("node-1"));
    refused_token(&server(), &token, "auth_unknown_key").await;
}

#[tokio::test]
async fn a_token_with_a_foreign_signature_is_refused() {
    // The right key's name, another key's signature.
    let token = Signer::new("key-1").sign(&agent_claims("node-1"));
    refused_token(&server(), &token, "auth_bad_signature").await;
}

#[tokio::test]
async fn a_token_without_a_signature_is_refused() {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let header = BASE64.encode(r#"{"alg":"none","kid":"key-1"}"#);
    let claims = BASE64.encode(agent_claims("node-1").to_string());
    refused_token(
        &server(),
        &format!("{header}.{claims}."),
        "auth_bad_algorithm",
    )
    .await;
}

#[tokio::test]
async fn a_token_signed_with_the_public_key_as_a_secret_is_refused() {
    use jsonwebtoken::{Algorithm, EncodingKey, Header};
    let server = server();
    let keys = std::fs::read(server.path("jwks.json")).unwrap();
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("key-1".to_owned());
    let secret = EncodingKey::from_secret(&keys);
    let token = jsonwebtoken::encode(&header, &agent_claims("node-1"), &secret).unwrap();
    refused_token(&server, &token, "auth_bad_algorithm").await;
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    refused_claims(|claims| claims["exp"] = json!(now() - 60), "auth_expired").await;
}

#[tokio::test]
async fn a_token_of_the_future_is_refused() {
    refused_claims(
        |claims| claims["nbf"] = json!(now() + 600),
        "auth_not_yet_valid",
    )
    .await;
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused() {
    refused_claims(|claims| claims["aud"] = json!("api"), "auth_wrong_audience").await;
}

#[tokio::test]
async fn a_token_of_another_issuer_is_refused() {
    refused_claims(
        |claims| claims["iss"] = json!("https://elsewhere"),
        "auth_wrong_issuer",
    )
    .await;
}

#[tokio::test]
async fn a_token_without_an_audience_is_refused() {
    let change = |claims: &mut serde_json::Value| {
        claims.as_object_mut().unwrap().remove("aud");
    };
    refused_claims(change, "auth_missing_claim").await;
}

#[tokio::test]
async fn a_token_that_is_not_kubernetes_own_is_refused() {
    let change = |claims: &mut serde_json::Value| {
        claims.as_object_mut().unwrap().remove("kubernetes.io");
    };
    refused_claims(change, "auth_missing_claim").await;
}

#[tokio::test]
async fn a_token_that_contradicts_itself_is_refused() {
    let change = |claims: &mut serde_json::Value| {
        claims["kubernetes.io"]["serviceaccount"]["name"] = json!("somebody");
    };
    refused_claims(change, "auth_missing_claim").await;
}

#[tokio::test]
async fn a_caller_that_is_no_node_agent_gets_no_stream() {
    let server = server();
    let mut claims = agent_claims("node-1");
    claims["sub"] = json!("system:serviceaccount:shop:web");
    claims["kubernetes.io"]["namespace"] = json!("shop");
    claims["kubernetes.io"]["serviceaccount"]["name"] = json!("web");
    let status = refusal(&server.client("test", &server.token(&claims))).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(
        status.message().starts_with("xds_not_node_agent:"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_stream_ends_with_its_token() {
    let server = server();
    let mut claims = agent_claims("node-1");
    claims["exp"] = json!(now() + 10);
    let mut raw = Raw::open(&server.client("short", &server.token(&claims)))
        .await
        .unwrap();
    let first = raw.subscribe(ADDRESS_TYPE).await;
    raw.ack(&first).await;
    let status = raw.receive().await.unwrap_err();
    assert!(status.message().starts_with("auth_expired:"), "{status:?}");
}

#[tokio::test]
async fn new_signing_keys_are_read_without_a_restart() {
    let server = server();
    let signer = Signer::new("key-2");
    let config = server.client("rotated", &signer.sign(&agent_claims("node-1")));
    let status = refusal(&config).await;
    assert!(
        status.message().starts_with("auth_unknown_key:"),
        "{status:?}"
    );
    let keys = json!({"keys": [signer.jwk]}).to_string();
    std::fs::write(server.path("jwks.new"), keys).unwrap();
    std::fs::rename(server.path("jwks.new"), server.path("jwks.json")).unwrap();
    Raw::open(&config).await.unwrap();
    // And the former key is not trusted any more.
    let status = refusal(&server.agent("node-1")).await;
    assert!(
        status.message().starts_with("auth_unknown_key:"),
        "{status:?}"
    );
}

#[tokio::test]
async fn a_client_with_another_root_refuses_the_controller() {
    let server = server();
    let other = Server::start(&[]);
    let config = ControllerConfig {
        root_cert: other.path("root.pem"),
        ..server.agent("node-1")
    };
    let error = Controller::connect(&config).await.unwrap_err();
    assert_eq!(error.reason(), "controller_connect_failed");
}

#[tokio::test]
async fn a_client_that_expects_another_name_refuses_the_controller() {
    let server = server();
    let config = ControllerConfig {
        server_name: "another.test".to_owned(),
        ..server.agent("node-1")
    };
    let error = Controller::connect(&config).await.unwrap_err();
    assert_eq!(error.reason(), "controller_connect_failed");
}

#[tokio::test]
async fn plain_text_is_not_served() {
    let server = server();
    let endpoint = format!("http://127.0.0.1:{}", server.port);
    let channel = tonic::transport::Endpoint::from_shared(endpoint).unwrap();
    let request = ReportEnrolmentRequest::default();
    let failed = match channel.connect().await {
        Err(_) => true,
        Ok(channel) => NodeServiceClient::new(channel)
            .report_enrolment(request)
            .await
            .is_err(),
    };
    assert!(failed);
    let metric = "karst_controller_handshakes_failed_total{reason=\"tls_handshake_failed\"}";
    let deadline = std::time::Instant::now() + crate::harness::DEADLINE;
    while server.metric(metric).await == 0.0 {
        assert!(
            std::time::Instant::now() < deadline,
            "the handshake is not counted"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_empty_token_file_is_named() {
    let server = server();
    let config = server.client("empty", "\n");
    let controller = Controller::connect(&config).await.unwrap();
    let error = controller.report_enrolment(Vec::new()).await.unwrap_err();
    assert!(
        matches!(error, ClientError::TokenUnreadable { .. }),
        "{error}"
    );
}

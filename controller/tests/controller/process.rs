//! The controller as a process.

use std::{fs, os::unix::fs::PermissionsExt, process::Stdio};

use karst_api::ADDRESS_TYPE;

use crate::harness::{NAMESPACE, Raw, Server, command, pod};

#[test]
fn sigterm_ends_it_cleanly() {
    let mut server = Server::start(&[("namespace.yaml", NAMESPACE)]);
    assert!(server.stop().success());
    assert!(
        server
            .find_log(|event| event["message"] == "stopped")
            .is_some()
    );
}

#[tokio::test]
async fn sigterm_ends_streams_with_a_word() {
    let mut server = Server::start(&[("namespace.yaml", NAMESPACE)]);
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    let first = raw.subscribe(ADDRESS_TYPE).await;
    raw.ack(&first).await;
    let stopped = tokio::task::spawn_blocking(move || server.stop());
    let status = raw.receive().await.unwrap_err();
    assert!(status.message().starts_with("xds_shutdown:"), "{status:?}");
    assert!(stopped.await.unwrap().success());
}

#[tokio::test]
async fn health_and_metrics_are_served() {
    let server = Server::start(&[("a.yaml", &pod("a", "node-1", "10.0.1.1"))]);
    for path in ["/healthz/ready", "/healthz/live"] {
        assert_eq!(server.get(path).await, (200, "ok\n".to_owned()));
    }
    let mut raw = Raw::open(&server.agent("node-1")).await.unwrap();
    raw.subscribe(ADDRESS_TYPE).await;
    assert_eq!(server.metric("karst_controller_xds_streams").await, 1.0);
    assert_eq!(
        server
            .metric("karst_controller_xds_pushes_total{type=\"address\"}")
            .await,
        1.0
    );
    assert_eq!(
        server
            .metric("karst_controller_xds_resources_total{type=\"address\"}")
            .await,
        1.0
    );
    assert_eq!(server.get("/nowhere").await.0, 404);
}

#[test]
fn the_root_is_made_once_and_kept_secret() {
    let mut server = Server::start(&[]);
    let root = fs::read(server.path("root.pem")).unwrap();
    let key = server.path("state/mesh-ca.pem");
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let public = fs::read_to_string(server.path("root.pem")).unwrap();
    assert!(!public.contains("PRIVATE KEY"));
    server.restart();
    assert_eq!(fs::read(server.path("root.pem")).unwrap(), root);
}

#[test]
fn a_root_key_that_others_can_read_is_refused() {
    let mut server = Server::start(&[]);
    assert!(server.stop().success());
    let key = server.path("state/mesh-ca.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    let output = command(server.folder.path(), server.port, server.metrics_port)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("chmod 600"), "{text}");
}

#[test]
fn a_plugged_in_authority_is_used_with_its_chain() {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let authority = || {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root = CertifiedIssuer::self_signed(authority(), KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let key_pem = key.serialize_pem();
    let middle = CertifiedIssuer::signed_by(authority(), key, &root).unwrap();

    let mut server = Server::start(&[]);
    assert!(server.stop().success());
    fs::write(server.path("ca.pem"), middle.pem()).unwrap();
    fs::write(server.path("ca-root.pem"), root.pem()).unwrap();
    fs::write(server.path("ca.key"), key_pem).unwrap();
    fs::set_permissions(server.path("ca.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let arguments = [
        ("--ca-cert", "ca.pem"),
        ("--ca-key", "ca.key"),
        ("--ca-root", "ca-root.pem"),
    ];
    let arguments = arguments.map(|(name, file)| format!("{name}={}", server.path(file).display()));
    server.start_again(&arguments);
    assert_eq!(
        fs::read_to_string(server.path("root.pem")).unwrap(),
        root.pem().replace('\r', "")
    );
    // The serving certificate comes from the same authority, so a client that trusts only the
    // root connects.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime
        .block_on(async { Raw::open(&server.agent("node-1")).await.map(|_| ()) })
        .unwrap();
}

#[test]
fn all_mistakes_in_the_arguments_are_reported_together() {
    let folder = tempfile::TempDir::new().unwrap();
    let output = command(folder.path(), 0, 0)
        .args([
            "--trust-domain=_",
            "--max-certificate-ttl=1",
            "--node-agent-account=x",
        ])
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8(output.stderr).unwrap();
    for name in [
        "--trust-domain",
        "--max-certificate-ttl",
        "--node-agent-account",
    ] {
        assert!(text.contains(name), "{text}");
    }
}

#[test]
fn a_source_that_is_not_there_is_named() {
    let folder = tempfile::TempDir::new().unwrap();
    fs::write(folder.path().join("jwks.json"), r#"{"keys":[]}"#).unwrap();
    let output = command(folder.path(), 0, 0).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("jwks.json") && text.contains("ES256"),
        "{text}"
    );
}

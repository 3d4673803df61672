//! Whole reports, against a stand-in for an API server.

use std::fs;

use clap::Parser;
use serde_json::{Value, json};

use super::archive::tests::read;
use super::run;
use crate::args::{BugReport, Cli, Command};
use crate::testing::{ApiServer, kubeconfig};

fn args(words: &[&str]) -> BugReport {
    let words = ["karst", "bugreport"].iter().chain(words);
    match Cli::try_parse_from(words).expect("parses").command {
        Command::Bugreport(args) => args,
        other => panic!("not bugreport: {other:?}"),
    }
}

#[test]
fn without_cluster_and_node_there_is_nothing() {
    let folder = tempfile::tempdir().expect("folder");
    let root = folder.path().join("none");
    let file = folder.path().join("r.tar.gz");
    let root = root.display().to_string();
    let file_text = file.display().to_string();
    let args = args(&["--no-cluster", "--bpffs-root", &root, "-o", &file_text]);
    let failure = run(&args).expect_err("refused");
    assert_eq!(failure.reason, "nothing_to_report");
    assert!(!file.exists());
}

#[test]
fn a_cluster_is_in_it_without_its_secrets() {
    let folder = tempfile::tempdir().expect("folder");
    // The server needs a runtime that runs on while the command makes its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    let (server, url) = runtime.block_on(ApiServer::start_at());
    server.document("/version", json!({"gitVersion": "v1.35.4"}));
    server.put("/api/v1/namespaces/shop", json!({}));
    server.put(
        "/api/v1/namespaces/shop/secrets/db",
        json!({"data": {"password": "hunter2"}}),
    );
    server.put(
        "/api/v1/namespaces/shop/configmaps/app",
        json!({"data": {"settings": "hunter2"}}),
    );
    server.put(
        "/api/v1/namespaces/shop/pods/web-0",
        json!({
            "metadata": {"annotations": {"kubectl.kubernetes.io/last-applied-configuration": "hunter2"}},
            "spec": {"nodeName": "n1", "containers": [{
                "name": "c", "image": "i", "command": ["x", "hunter2"],
                "env": [{"name": "X", "value": "hunter2"}],
                "readinessProbe": {"exec": {"command": ["hunter2"]}},
            }]},
        }),
    );
    server.put(
        "/api/v1/namespaces/karst-system/pods/karst-controller-0",
        json!({
            "metadata": {"labels": {"app.kubernetes.io/part-of": "karst", "app.kubernetes.io/name": "karst-controller"}},
            "spec": {"containers": [{"name": "controller"}]},
            "status": {"containerStatuses": [{"name": "controller", "restartCount": 0, "ready": true, "image": "", "imageID": ""}]},
        }),
    );
    let own = "/api/v1/namespaces/karst-system/pods/karst-controller-0";
    server.document(&format!("{own}/log"), json!("Bearer hunter2hunter2"));
    server.document(
        "/api/v1/namespaces/karst-system/pods/karst-controller-0:15014/proxy/metrics",
        json!("karst_controller_leader 1"),
    );
    let config = folder.path().join("config");
    fs::write(&config, kubeconfig(&url)).expect("writes");
    let file = folder.path().join("r.tar.gz");
    let config = config.display().to_string();
    let told = run(&args(&[
        "--kubeconfig",
        &config,
        "--bpffs-root",
        "/nonexistent/bpf",
        "-o",
        &file.display().to_string(),
    ]))
    .expect("writes");
    let files = read(&file);
    let of = |name: &str| {
        let found = files
            .iter()
            .find(|(path, _)| path.split_once('/').is_some_and(|(_, rest)| rest == name));
        let text = found
            .unwrap_or_else(|| panic!("no {name} in {:?}\n{told}", files.keys()))
            .1;
        serde_json::from_str::<Value>(text).unwrap_or_else(|_| Value::from(text.as_str()))
    };
    for (name, text) in &files {
        assert!(!text.contains("hunter2"), "{name}: {text}");
        assert!(!name.contains("Secret"), "{name}");
    }
    let pods = of("objects/Pod.json");
    let web = pods
        .as_array()
        .and_then(|all| all.iter().find(|pod| pod["metadata"]["name"] == "web-0"));
    let web = web.expect("the pod is there");
    assert_eq!(web["spec"]["nodeName"], "n1");
    assert_eq!(web["spec"]["containers"][0]["image"], "i");
    assert_eq!(
        of("objects/ConfigMap.json")[0]["data"]["settings"],
        "[left out]"
    );
    let pod = "pods/karst-system/karst-controller-0";
    assert!(
        of(&format!("{pod}/controller.log"))
            .as_str()
            .is_some_and(|log| log.contains("Bearer [redacted]"))
    );
    assert!(
        of(&format!("{pod}/metrics.txt"))
            .as_str()
            .is_some_and(|text| text.contains("leader 1"))
    );
    assert_eq!(of("cluster/version.json")["gitVersion"], "v1.35.4");
    assert!(of("check.json").is_object());
    assert_eq!(
        of("index.json")["about"]["karst"],
        env!("CARGO_PKG_VERSION")
    );
    assert!(
        server
            .writes()
            .iter()
            .all(|write| write.contains("selfsubjectaccessreviews")),
        "{:?}",
        server.writes()
    );
}

//! `karst bugreport` on a real cluster: what helps is in it, and no secret that the cluster has.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::mesh::{SYSTEM, enrolled_shop, karst, with_karst};
use crate::shared::shared;

/// What no report may have.
const MARKER: &str = "hunter2-of-the-report";

/// All files below `folder`, by their path in the report.
fn files(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            let (_, name) = name.split_once('/').unwrap();
            found.push((
                name.to_owned(),
                String::from_utf8(fs::read(&path).unwrap()).unwrap(),
            ));
        }
    }
    found.sort();
    found
}

#[test]
fn a_report_has_what_helps_and_no_secret() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "bugreport";
    enrolled_shop(&cluster, namespace);
    cluster
        .apply(&format!(
            "apiVersion: v1
kind: Secret
metadata: {{name: db, namespace: {namespace}}}
stringData: {{password: {MARKER}}}
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: app, namespace: {namespace}}}
data: {{settings: {MARKER}}}
"
        ))
        .unwrap();
    let patch = format!(
        r#"{{"spec":{{"template":{{"spec":{{"containers":[{{"name":"app","env":[{{"name":"X","value":"{MARKER}"}}]}}]}}}}}}}}"#
    );
    let client = [
        "patch",
        "deployment",
        "client",
        "-n",
        namespace,
        "-p",
        &patch,
    ];
    cluster.kubectl(&client).unwrap();
    let rolled = [
        "rollout",
        "status",
        "deployment/client",
        "-n",
        namespace,
        "--timeout=120s",
    ];
    cluster.kubectl(&rolled).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("report.tar.gz").display().to_string();
    let told = karst(&cluster, &["bugreport", "-o", &archive]).unwrap();
    let unpacked = folder.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let tar = Command::new("tar")
        .args(["-xzf", &archive, "-C"])
        .arg(&unpacked)
        .status()
        .unwrap();
    assert!(tar.success());

    let files = files(&unpacked);
    let of = |name: &str| {
        let found = files.iter().find(|(path, _)| path == name);
        let names = || files.iter().map(|(name, _)| name).collect::<Vec<_>>();
        found
            .unwrap_or_else(|| panic!("no {name} in {:#?}\n{told}", names()))
            .1
            .as_str()
    };
    let list = |name: &str| serde_json::from_str::<Value>(of(name)).unwrap();
    let secret = cluster.get(&["secret", "karst-ca", "-n", SYSTEM]).unwrap();
    let keys: Vec<&str> = secret["data"]
        .as_object()
        .unwrap()
        .values()
        .filter_map(Value::as_str)
        .collect();
    assert!(!keys.is_empty());
    for (name, text) in &files {
        assert!(!text.contains(MARKER), "{name} has the marker");
        assert!(!text.contains("PRIVATE KEY"), "{name} has a key");
        assert!(!name.contains("Secret"), "{name}");
    }
    // What a public part of the authority's Secret has may well be in it, the key must not.
    let key = secret["data"]
        .as_object()
        .unwrap()
        .iter()
        .find(|(name, _)| name.contains("key"));
    let key = key.and_then(|(_, value)| value.as_str()).unwrap();
    assert!(
        files.iter().all(|(_, text)| !text.contains(key)),
        "the authority's key"
    );

    let pods = list("objects/Pod.json");
    let mine = |pod: &&Value| pod["metadata"]["namespace"] == namespace;
    assert!(pods.as_array().unwrap().iter().filter(mine).count() >= 2);
    let has = |end: &str, text: &str| {
        files
            .iter()
            .any(|(name, body)| name.ends_with(end) && body.contains(text))
    };
    assert!(has("/node-agent.log", "karst"), "an agent's log");
    assert!(
        has("/metrics.txt", "karst_xds_connected 1"),
        "an agent's metrics"
    );
    assert!(
        has("/metrics.txt", "karst_controller_leader"),
        "the controller's metrics"
    );
    for node in ["node1", "node2"] {
        let links = list(&format!("nodes/{node}/link.json"));
        assert!(!links.as_array().unwrap().is_empty(), "{node}");
        let types = list(&format!("nodes/{node}/xds.json"));
        assert!(
            types
                .as_array()
                .unwrap()
                .iter()
                .all(|one| one["synced"] == true),
            "{types}"
        );
    }
    assert!(list("check.json").is_object());
    assert!(of("cluster/version.json").contains("v1."));
    assert_eq!(
        list("index.json")["problems"],
        Value::Array(Vec::new()),
        "{told}"
    );
}

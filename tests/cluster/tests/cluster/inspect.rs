//! `karst inspect` from afar: nodes by a command in the agent's container, waypoints by a forwarded port.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use karst_cluster::Cluster;
use karst_harness::until;
use serde_json::Value;

use crate::mesh::{karst_output, pod, text, with_karst};
use crate::shared::{APP_IMAGE, LIMIT, shared};
use crate::waypoint::{weights, with_gateway_api};

const NAMESPACE: &str = "inspect";

fn inspect(cluster: &Cluster, words: &[&str]) -> Result<Output> {
    karst_output(cluster, &[&["inspect"], words].concat())
}

fn json(cluster: &Cluster, words: &[&str]) -> Result<Value> {
    let output = inspect(cluster, &[words, &["-j"]].concat())?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        output.status.success(),
        "{words:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&said).with_context(|| said)
}

fn items(list: &Value) -> Result<&Vec<Value>> {
    list.as_array().context("no list")
}

/// Opens the shop; gives the waypoint's pod.
fn open(cluster: &Cluster) -> Result<String> {
    with_karst(cluster);
    with_gateway_api(cluster);
    let yaml = include_str!("canary.yaml")
        .replace("NAMESPACE", NAMESPACE)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&yaml)?;
    cluster.apply(&weights(NAMESPACE, 3, 1))?;
    for name in ["client", "web-v1", "web-v2", "waypoint"] {
        let what = [&format!("deployment/{name}"), "-n", NAMESPACE];
        cluster.wait_for(&what, "condition=Available", LIMIT)?;
    }
    let waypoint = cluster.get(&[
        "pods",
        "-n",
        NAMESPACE,
        "-l",
        "gateway.networking.k8s.io/gateway-name=waypoint",
    ])?;
    let name = text(&waypoint, "/items/0/metadata/name");
    Ok(format!("{NAMESPACE}/{name}"))
}

fn look(cluster: &Cluster, waypoint: &str) -> Result<()> {
    let client = pod(cluster, NAMESPACE, "client");
    let uid = text(&client, "/metadata/uid").to_owned();
    let client = format!("{NAMESPACE}/{}", text(&client, "/metadata/name"));

    // A node, by its name and by a pod of it: what its kernel has, and what its agent knows.
    until("the client to be enrolled", LIMIT, || {
        let pods = json(cluster, &["pod", "--node", "node1"])?;
        ensure!(
            items(&pods)?.iter().any(|p| p["uid"] == uid.as_str()),
            "{pods}"
        );
        Ok(())
    })?;
    let programs = json(cluster, &["prog", "--node", "node1"])?;
    ensure!(items(&programs)?.len() == 7, "{programs}");
    let others = json(cluster, &["prog", "--node", "node2"])?;
    let ids = |list: &Value| -> Result<Vec<Value>> {
        Ok(items(list)?.iter().map(|p| p["id"].clone()).collect())
    };
    ensure!(
        ids(&programs)? != ids(&others)?,
        "one node answered for both"
    );
    let storage = json(cluster, &["map", "dump", "SKST", "--node", "node1"])?;
    ensure!(storage.is_array(), "{storage}");
    let by_pod = json(cluster, &["pod", "show", "uid", &uid, "--pod", &client])?;
    ensure!(by_pod[0]["namespace"] == NAMESPACE, "{by_pod}");
    let types = json(cluster, &["xds", "--node", "node1"])?;
    let addresses = items(&types)?.iter().find(|t| t["name"] == "Address");
    ensure!(addresses.is_some_and(|t| t["synced"] == true), "{types}");
    let counted = json(cluster, &["prog", "--stats", "1", "--node", "node1"])?;
    ensure!(counted[0]["stats"]["seconds"] == 1, "{counted}");

    // A waypoint.
    let weights = |route: &Value| {
        let backends = route.pointer("/rules/0/backends").and_then(Value::as_array);
        let percent = |b: &Value| b["percent"].as_f64().unwrap_or(-1.0);
        backends.map(|list| list.iter().map(percent).collect::<Vec<_>>())
    };
    until("the route to be in force", LIMIT, || {
        let routes = json(cluster, &["route", "--pod", waypoint])?;
        ensure!(weights(&routes[0]) == Some(vec![75.0, 25.0]), "{routes}");
        Ok(())
    })?;
    let endpoints = json(cluster, &["endpoint", "--pod", waypoint])?;
    let v1 = items(&endpoints)?.iter().filter(|e| {
        let service = format!("web-v1.{NAMESPACE}.svc.cluster.local");
        e["service"] == service.as_str()
    });
    ensure!(v1.count() == 2, "{endpoints}");
    let certificates = json(cluster, &["cert", "--pod", waypoint])?;
    ensure!(certificates[0]["state"] == "available", "{certificates}");
    // What a waypoint does not have, its node has.
    let links = json(cluster, &["link", "--pod", waypoint])?;
    ensure!(
        items(&links)?.iter().any(|l| l["name"] == "connect4"),
        "{links}"
    );
    Ok(())
}

/// Text, errors and exit codes of the command on the node are those of the command here.
fn pass_on(cluster: &Cluster) -> Result<()> {
    let at = |words: &[&str]| inspect(cluster, &[words, &["--node", "node1"]].concat());
    let shown = at(&["prog"])?;
    let text = String::from_utf8(shown.stdout)?;
    ensure!(
        text.starts_with("ID") && text.contains("karst_sock_ops"),
        "{text}"
    );
    let note = String::from_utf8(shown.stderr)?;
    ensure!(note.contains("bpf_stats_enabled"), "{note}");
    for (words, code, said) in [
        (&["pod", "show", "nobody"][..], 3, "no pod 'nobody'"),
        (&["map", "dump", "NOPE"], 3, "no map 'NOPE' on node1"),
        (&["route"], 8, "a node has no route"),
    ] {
        let output = at(words)?;
        let error = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(code), "{words:?}: {error}");
        ensure!(
            error.starts_with(&format!("Error: {said}")),
            "{words:?}: {error}"
        );
        let output = at(&[words, &["-j"]].concat())?;
        let error: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(output.status.code() == Some(code), "{words:?}: {error}");
        ensure!(
            error["error"].as_str().is_some_and(|e| e.starts_with(said)),
            "{error}"
        );
    }
    for words in [
        &["prog", "--node", "nowhere"][..],
        &["prog", "--pod", "inspect/nobody"],
    ] {
        let output = inspect(cluster, words)?;
        ensure!(output.status.code() == Some(3), "{words:?}: {output:?}");
    }
    let file = std::env::temp_dir().join(format!("karst-batch-{}", std::process::id()));
    std::fs::write(&file, "map dump CONFIG\npod show nobody\nprog\n")?;
    let words = ["-j", "batch", "file", file.to_str().context("a path")?];
    let output = at(&words)?;
    std::fs::remove_file(&file)?;
    let list: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        output.status.code() == Some(3) && items(&list)?.len() == 2,
        "{list}"
    );
    ensure!(
        list[0]["output"][0]["value"]["host_netns_cookie"].is_string(),
        "{list}"
    );
    Ok(())
}

/// An account with the rights that the documentation names, and no other.
const LOOKER: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: looker, namespace: inspect}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: karst-inspect, namespace: karst-system}
rules:
- {apiGroups: [''], resources: [pods], verbs: [list]}
- {apiGroups: [''], resources: [pods/exec], verbs: [create, get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: karst-inspect, namespace: karst-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: karst-inspect}
subjects: [{kind: ServiceAccount, name: looker, namespace: inspect}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: karst-inspect, namespace: inspect}
rules:
- {apiGroups: [''], resources: [pods], verbs: [get]}
- {apiGroups: [''], resources: [pods/portforward], verbs: [create, get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: karst-inspect, namespace: inspect}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: karst-inspect}
subjects: [{kind: ServiceAccount, name: looker, namespace: inspect}]
";

/// The documented rights are enough, and without them nothing is shown.
fn rights(cluster: &Cluster, waypoint: &str) -> Result<()> {
    cluster.apply(LOOKER)?;
    let token = cluster.kubectl(&["create", "token", "looker", "-n", NAMESPACE])?;
    let view = ["config", "view", "--raw", "--minify", "-o", "json"];
    let mut config: Value = serde_json::from_str(&cluster.kubectl(&view)?)?;
    config["users"][0]["user"] = serde_json::json!({"token": token.trim()});
    let file = std::env::temp_dir().join(format!("karst-looker-{}", std::process::id()));
    std::fs::write(&file, config.to_string())?;
    let as_looker = ["--kubeconfig", file.to_str().context("a path")?];
    let json = |words: &[&str]| json(cluster, &[words, &as_looker].concat());
    let looked = until("the rights to be known", LIMIT, || {
        ensure!(items(&json(&["prog", "--node", "node1"])?)?.len() == 7);
        ensure!(!items(&json(&["xds", "--pod", waypoint])?)?.is_empty());
        Ok(())
    });
    let role = ["delete", "role", "karst-inspect", "-n", "karst-system"];
    cluster.kubectl(&role)?;
    let refused = until("the rights to be gone", LIMIT, || {
        let words = [&["prog", "-j", "--node", "node1"], &as_looker[..]].concat();
        let output = inspect(cluster, &words)?;
        let said: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(
            output.status.code() == Some(1) && said["reason"] == "forbidden",
            "{said}"
        );
        Ok(())
    });
    std::fs::remove_file(&file)?;
    looked.and(refused)
}

#[test]
fn nodes_and_waypoints_are_looked_into_from_afar() {
    let cluster = shared();
    let waypoint = open(&cluster).unwrap_or_else(|error| panic!("{error:#}"));
    look(&cluster, &waypoint).unwrap_or_else(|error| panic!("{error:#}"));
    pass_on(&cluster).unwrap_or_else(|error| panic!("{error:#}"));
    rights(&cluster, &waypoint).unwrap_or_else(|error| panic!("{error:#}"));
}

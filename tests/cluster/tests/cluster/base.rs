//! The cluster itself, without Karst: what later tests take for granted.

use std::collections::BTreeSet;

use anyhow::ensure;
use karst_harness::until;
use serde_json::{Value, json};

use crate::shared::{LIMIT, ask, http, shared, two_apps};

#[test]
fn both_nodes_are_ready() {
    let cluster = shared();
    let nodes = cluster.get(&["nodes"]).unwrap();
    let mut ready = Vec::new();
    for node in nodes["items"].as_array().unwrap() {
        let conditions = node["status"]["conditions"].as_array().unwrap();
        let is_ready = |condition: &&Value| condition["type"] == "Ready";
        let condition = conditions.iter().find(is_ready).unwrap();
        assert_eq!(condition["status"], "True", "{node:#}");
        ready.push(node["metadata"]["name"].as_str().unwrap());
    }
    assert_eq!(ready, ["node1", "node2"]);
}

#[test]
fn a_service_answers_by_address_and_name_from_every_node() {
    let cluster = shared();
    let namespace = "base-service";
    let pods = two_apps(&cluster, namespace);
    let service = cluster.get(&["service", "app", "-n", namespace]).unwrap();
    let address = service["spec"]["clusterIP"].as_str().unwrap();
    let name = format!("app.{namespace}.svc.cluster.local:80");
    for (client, _) in &pods {
        // The name server and this node's kube-proxy hear of ready pods in their own time.
        let mut servers = BTreeSet::new();
        until("answers of both pods", LIMIT, || {
            let seen = ask(&cluster, namespace, client, "app:80")?;
            servers.insert(seen["page"]["local"].as_str().unwrap().to_owned());
            ensure!(servers.len() == pods.len(), "{client} met {servers:?} only");
            Ok(())
        })
        .unwrap();
        for target in ["app:80", &name, &format!("{address}:80")] {
            let seen = http(&cluster, namespace, client, target);
            assert_eq!(seen["ok"], true, "{client} asks {target}: {seen}");
        }
    }
    // Straight across the nodes, and the server sees the pod that asks and not its node.
    let seen = http(
        &cluster,
        namespace,
        &pods[0].0,
        &format!("{}:8080", pods[1].1),
    );
    let peer = seen["page"]["peer"].as_str().unwrap();
    assert!(peer.contains(&pods[0].1), "{seen}");
}

#[test]
fn exec_tells_the_exit_code_and_logs_show_output() {
    let cluster = shared();
    let namespace = "base-exec";
    let pods = two_apps(&cluster, namespace);
    for (pod, _) in &pods {
        let logs = cluster.kubectl(&["logs", "-n", namespace, pod]).unwrap();
        assert!(logs.contains("serving"), "{logs}");
        let refused = cluster
            .kubectl_command()
            .unwrap()
            .args([
                "exec",
                "-n",
                namespace,
                pod,
                "--",
                "/karst-testapp",
                "connect",
            ])
            .arg("127.0.0.1:1")
            .output()
            .unwrap();
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stdout).contains("\"ok\":false"));
    }
}

#[test]
fn a_token_is_good_for_its_audience_only() {
    let cluster = shared();
    cluster
        .kubectl(&["create", "namespace", "base-token"])
        .unwrap();
    let account = ["serviceaccount", "default", "-n", "base-token"];
    cluster
        .wait_for(&account, "jsonpath={.metadata.uid}", LIMIT)
        .unwrap();
    let token = cluster
        .kubectl(&[
            "create",
            "token",
            "default",
            "-n",
            "base-token",
            "--audience=karst-ca",
        ])
        .unwrap();
    let review = |audience: &str| -> Value {
        let review = json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token.trim(), "audiences": [audience]},
        });
        let said = cluster
            .kubectl_with_input(&["create", "-o", "json", "-f", "-"], &review.to_string())
            .unwrap();
        serde_json::from_str(&said).unwrap()
    };
    let good = review("karst-ca");
    assert_eq!(good["status"]["authenticated"], true, "{good:#}");
    let user = &good["status"]["user"]["username"];
    assert_eq!(user, "system:serviceaccount:base-token:default");
    assert_ne!(review("vault")["status"]["authenticated"], true);
}

#[test]
fn the_nodes_are_apart_and_their_pods_in_their_own_cgroups() {
    let cluster = shared();
    let namespace = "base-apart";
    two_apps(&cluster, namespace);
    for node in cluster.nodes().unwrap() {
        let run = |script: &str| cluster.node_exec(&node, &["sh", "-c", script]).unwrap();
        assert_eq!(run("hostname").trim(), node);
        // One process of the test's Deployment is here, the other is the other node's.
        let app = "grep -lz ^serve$ /proc/[0-9]*/cmdline";
        let apps = run(&format!("{app} | wc -l"));
        assert!(apps.trim().parse::<usize>().unwrap() >= 1, "{apps}");
        let cgroups = run(&format!(
            "for f in $({app}); do grep ^0:: ${{f%cmdline}}cgroup; done"
        ));
        for cgroup in cgroups.lines() {
            assert!(cgroup.starts_with("0::/kubepods/"), "{cgroup}");
        }
        let pods = cluster
            .get(&[
                "pods",
                "-n",
                namespace,
                "--field-selector",
                &format!("spec.nodeName={node}"),
            ])
            .unwrap();
        let uid = pods["items"][0]["metadata"]["uid"].as_str().unwrap();
        assert!(cgroups.contains(uid), "{uid} is not in {cgroups}");
        // The machine sees the same cgroup below the cluster's.
        let path = format!(
            "{}/{}/{node}/kubepods",
            karst_cluster::CLUSTER_CGROUP,
            cluster.name()
        );
        let on_machine = std::path::Path::new("/sys/fs/cgroup/unified").join(path);
        assert!(on_machine.is_dir(), "{}", on_machine.display());
    }
}

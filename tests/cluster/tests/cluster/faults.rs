//! The faults that later tests rely on do what they say, and the cluster mends.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::mesh::system_logs;
use crate::shared::{LIMIT, alone, http, two_apps};

#[test]
fn pods_talk_on_while_the_api_server_is_away() {
    let cluster = alone();
    let namespace = "faults-api";
    let pods = two_apps(&cluster, namespace);
    let target = format!("{}:8080", pods[1].1);
    assert_eq!(http(&cluster, namespace, &pods[0].0, &target)["ok"], true);
    // What goes on in a pod meanwhile is asked without the API server.
    let running = || {
        let tasks = ["ctr", "-n", "k8s.io", "tasks", "list", "-q"];
        let tasks = cluster.node_exec("node1", &tasks).unwrap();
        tasks.lines().map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = running();
    cluster.stop_apiserver().unwrap();
    let gone = cluster.kubectl(&["get", "nodes", "--request-timeout=2s"]);
    let still = running();
    cluster.start_apiserver().unwrap();
    assert!(gone.is_err(), "{gone:?}");
    assert_eq!(before, still);
    assert_eq!(http(&cluster, namespace, &pods[0].0, &target)["ok"], true);
}

#[test]
fn a_watch_from_before_a_compaction_is_gone() {
    let cluster = alone();
    // kubectl's own lists leave the revision out.
    let listed = cluster.kubectl(&["get", "--raw", "/api/v1/namespaces"]);
    let namespaces: Value = serde_json::from_str(&listed.unwrap()).unwrap();
    let old = namespaces["metadata"]["resourceVersion"].as_str().unwrap();
    cluster
        .kubectl(&["create", "namespace", "faults-compact"])
        .unwrap();
    let compacted = cluster.compact_etcd().unwrap();
    assert!(compacted > old.parse().unwrap(), "{compacted} and {old}");
    // A server that was started after it has nothing older in its own cache.
    cluster.stop_apiserver().unwrap();
    cluster.start_apiserver().unwrap();
    let path = format!("/api/v1/namespaces?watch=1&timeoutSeconds=5&resourceVersion={old}");
    let said = cluster
        .kubectl_command()
        .unwrap()
        .args(["get", "--raw", &path])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&said.stdout),
        String::from_utf8_lossy(&said.stderr)
    );
    assert!(
        text.contains("Expired") || text.contains("too old"),
        "{text}"
    );
}

#[test]
fn a_node_comes_back_after_its_power_was_cut() {
    let cluster = alone();
    let namespace = "faults-power";
    let before = two_apps(&cluster, namespace);
    cluster.power_off(2).unwrap();
    assert!(cluster.node_exec("node2", &["true"]).is_err());
    cluster.power_on(2).unwrap();
    // The sandboxes died with the node, so its pod starts anew, as the same pod.
    karst_harness::until("the node's pod to start anew", LIMIT, || {
        let pods = cluster.get(&["pods", "-n", namespace])?;
        let restarts: i64 = pods["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_i64())
            .sum();
        anyhow::ensure!(restarts >= 1, "not restarted");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", system_logs(&cluster)));
    let what = ["deployment/app", "-n", namespace];
    cluster
        .wait_for(&what, "jsonpath={.status.readyReplicas}=2", LIMIT)
        .unwrap();
    let after = two_apps(&cluster, namespace);
    let names = |pods: &[(String, String)]| {
        let mut names: Vec<String> = pods.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&before), names(&after));
    karst_harness::until(
        "the pods to reach each other",
        Duration::from_secs(30),
        || {
            let said = cluster.kubectl(&[
                "exec",
                "-n",
                namespace,
                &after[0].0,
                "--",
                "/karst-testapp",
                "http",
                &format!("{}:8080", after[1].1),
            ])?;
            anyhow::ensure!(said.contains("\"ok\":true"), "{said}");
            Ok(())
        },
    )
    .unwrap();
}

//! Kubernetes' own kinds of workload, probes and life cycles, in the mesh.

use std::collections::BTreeSet;
use std::fs::File;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use karst_cluster::{Cluster, NODES};
use karst_harness::until;
use serde_json::Value;

use crate::mesh::{
    access, enrolled_shop, pod, pods, text, wait_answers, wait_enrolled, with_karst,
};
use crate::shared::{APP_IMAGE, LIMIT, alone, http, shared};

/// How long the agents may take to hear of a pod's end and forget it.
const FORGOTTEN: Duration = Duration::from_secs(45);

/// Several periods of the probes of `probes.yaml`, and as many as make a container fail.
const PROBED: Duration = Duration::from_secs(6);

/// Where the command line is put on the nodes.
const CLI: &str = "/run/karst-cli";

fn apply(cluster: &Cluster, namespace: &str, yaml: &str) {
    let yaml = yaml
        .replace("NAMESPACE", namespace)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&yaml).unwrap();
}

#[test]
fn probes_of_every_kind_pass_in_the_mesh() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-probes";
    apply(&cluster, namespace, include_str!("probes.yaml"));
    for kind in ["http", "tcp", "grpc", "exec"] {
        cluster
            .wait_for(&["pod", kind, "-n", namespace], "condition=Ready", LIMIT)
            .unwrap();
    }
    wait_enrolled(&cluster, namespace, true);
    thread::sleep(PROBED);
    for pod in pods(&cluster, namespace) {
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!(status["ready"], true, "{status}");
        assert_eq!(status["restartCount"], 0, "{status}");
    }
}

#[test]
fn stateful_sets_headless_services_and_jobs_work_in_the_mesh() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-kinds";
    apply(&cluster, namespace, include_str!("kinds.yaml"));
    cluster
        .wait_for(
            &["statefulset/db", "-n", namespace],
            "jsonpath={.status.readyReplicas}=2",
            LIMIT,
        )
        .unwrap();
    let client = ["pod", "client", "-n", namespace];
    cluster.wait_for(&client, "condition=Ready", LIMIT).unwrap();
    wait_enrolled(&cluster, namespace, true);
    for name in ["db-0", "db-1"] {
        let target = format!("{name}.db:8080");
        let mut seen = Value::Null;
        // A name follows its pod's readiness a moment later.
        until("the pod's name", LIMIT, || {
            let argv = ["exec", "-n", namespace, "client", "--", "/karst-testapp"];
            let argv = [&argv[..], &["http", &target]].concat();
            seen = serde_json::from_str(cluster.kubectl(&argv)?.trim())?;
            Ok(())
        })
        .unwrap();
        assert_eq!(seen["page"]["pod"], name, "{seen}");
        let server = cluster.get(&["pod", name, "-n", namespace]).unwrap();
        let to = format!("{}:8080", text(&server, "/status/podIP"));
        until("the access log", LIMIT, || {
            let records = access(&cluster, &to);
            ensure!(!records.is_empty(), "nothing of {to}");
            for record in records {
                ensure!(
                    record["connection_security_policy"] == "mutual_tls",
                    "{record}"
                );
                let identity = format!("spiffe://cluster.local/ns/{namespace}/sa/db");
                ensure!(record["dst.identity"] == *identity, "{record}");
            }
            Ok(())
        })
        .unwrap();
    }
    // The Service's name gives the pods' addresses, either of which is asked.
    assert_eq!(http(&cluster, namespace, "client", "db:8080")["ok"], true);
    let job = include_str!("job.yaml");
    apply(&cluster, namespace, job);
    let job = ["job/asks", "-n", namespace];
    cluster
        .wait_for(&job, "condition=Complete", LIMIT)
        .unwrap_or_else(|error| {
            let logs = ["logs", "-n", namespace, "-l", "job-name=asks"];
            panic!("{error:#}\n{:?}", cluster.kubectl(&logs));
        });
}

/// Brings the command line to both nodes: a node has folders of its own, and may not see the one that
/// it was built in.
fn bring_cli(cluster: &Cluster) {
    for number in 1..=NODES {
        let program = karst_cluster::binary("karst").unwrap();
        let copy = format!("cat > {CLI} && chmod 0755 {CLI}");
        let node = format!("node{number}");
        let mut command = cluster.node_command(&node, &["sh", "-c", &copy]).unwrap();
        command.stdin(File::open(program).unwrap());
        assert!(command.status().unwrap().success(), "{node}");
    }
}

/// What a node's agent and kernel hold of pods, against what the API server says is there.
fn nothing_stale(cluster: &Cluster, node: &str) -> anyhow::Result<()> {
    let all = cluster.get(&[
        "pods",
        "-A",
        "--field-selector",
        &format!("spec.nodeName={node}"),
    ])?;
    let all = all["items"].as_array().cloned().unwrap_or_default();
    let uid = |pod: &Value| text(pod, "/metadata/uid").to_owned();
    let known: BTreeSet<String> = all.iter().map(uid).collect();
    // A Job's pod that has ended keeps what was written on it.
    let in_mesh = |pod: &&Value| {
        pod["metadata"]["annotations"]["karst.dev/enrolled"] == "true"
            && !["Succeeded", "Failed"].contains(&text(pod, "/status/phase"))
    };
    let enrolled: Vec<&Value> = all.iter().filter(in_mesh).collect();
    let uids: BTreeSet<String> = enrolled.iter().map(|pod| uid(pod)).collect();
    let addresses: BTreeSet<&str> = enrolled.iter().map(|p| text(p, "/status/podIP")).collect();

    let inspect = |what: &[&str]| -> anyhow::Result<Vec<Value>> {
        let argv = [&[CLI, "inspect"], what, &["-j"]].concat();
        Ok(serde_json::from_str(&cluster.node_exec(node, &argv)?)?)
    };
    let column = |rows: &[Value], path: &str| -> BTreeSet<String> {
        rows.iter().map(|row| text(row, path).to_owned()).collect()
    };
    let held = column(&inspect(&["pod"])?, "/uid");
    ensure!(
        held == uids,
        "the agent of {node} holds {held:?}, not {uids:?}"
    );
    let held = column(&inspect(&["map", "dump", "PODS"])?, "/value/uid");
    ensure!(held == uids, "PODS of {node} holds {held:?}, not {uids:?}");
    for map in ["POD_ADDRESSES", "LISTENERS"] {
        let rows = inspect(&["map", "dump", map])?;
        let held = column(&rows, "/key/address");
        let held: BTreeSet<&str> = held.iter().map(String::as_str).collect();
        ensure!(
            held == addresses,
            "{map} of {node} holds {held:?}, not {addresses:?}"
        );
    }
    let files = |folder: &str| -> anyhow::Result<BTreeSet<String>> {
        let listed = cluster.node_exec(node, &["ls", "-1", folder])?;
        Ok(listed.lines().map(str::to_owned).collect())
    };
    let links = files(&format!("/sys/fs/bpf/karst/{node}/links"))?;
    let of_pods = links
        .iter()
        .filter_map(|link| link.strip_prefix("sk_lookup-"));
    let held: BTreeSet<String> = of_pods.map(str::to_owned).collect();
    ensure!(held == uids, "{node} has links of {held:?}, not {uids:?}");
    for file in files(&format!("/run/karst/{node}/sandboxes"))? {
        let uid = file.trim_end_matches(".json");
        ensure!(known.contains(uid), "{node} remembers the sandbox of {uid}");
    }
    let accounts: BTreeSet<String> = enrolled
        .iter()
        .map(|pod| {
            let namespace = text(pod, "/metadata/namespace");
            let account = text(pod, "/spec/serviceAccountName");
            format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
        })
        .collect();
    let held = column(&inspect(&["cert"])?, "/id");
    ensure!(
        held == accounts,
        "{node} has certificates of {held:?}, not {accounts:?}"
    );
    Ok(())
}

fn wait_nothing_stale(cluster: &Cluster, after: &str) {
    until(
        "agents and kernels to hold what is there",
        FORGOTTEN,
        || (1..=NODES).try_for_each(|number| nothing_stale(cluster, &format!("node{number}"))),
    )
    .unwrap_or_else(|error| panic!("after {after}: {error:#}"));
}

#[test]
fn deleted_rolled_and_drained_pods_leave_nothing_behind() {
    // A drain moves what others use, the cluster's DNS and Karst's controller among it.
    let cluster = alone();
    with_karst(&cluster);
    bring_cli(&cluster);
    let namespace = "mesh-ends";
    enrolled_shop(&cluster, namespace);
    wait_nothing_stale(&cluster, "enrolment");
    let available = |name: &str| {
        cluster
            .wait_for(&[name, "-n", namespace], "condition=Available", LIMIT)
            .unwrap();
        let status = ["rollout", "status", name, "-n", namespace, "--timeout=120s"];
        cluster.kubectl(&status).unwrap();
    };
    let talk = |after: &str| {
        wait_enrolled(&cluster, namespace, true);
        wait_answers(&cluster, namespace);
        wait_nothing_stale(&cluster, after);
    };

    let server = pod(&cluster, namespace, "server");
    let name = text(&server, "/metadata/name");
    cluster
        .kubectl(&["delete", "pod", name, "-n", namespace])
        .unwrap();
    available("deployment/server");
    talk("kubectl delete pod");

    let client = pod(&cluster, namespace, "client");
    let name = text(&client, "/metadata/name");
    let force = [
        "delete",
        "pod",
        name,
        "-n",
        namespace,
        "--force",
        "--grace-period=0",
    ];
    cluster.kubectl(&force).unwrap();
    available("deployment/client");
    talk("a forced deletion");

    let restart = ["rollout", "restart", "deployment", "-n", namespace];
    cluster.kubectl(&restart).unwrap();
    available("deployment/client");
    available("deployment/server");
    talk("a rolling update");

    let drain = [
        "drain",
        "node2",
        "--ignore-daemonsets",
        "--delete-emptydir-data",
    ];
    let drained = cluster.kubectl(&[&drain[..], &["--force", "--timeout=120s"]].concat());
    let on_node2 = drained.and_then(|_| {
        until("node2 to hold no pod", FORGOTTEN, || {
            nothing_stale(&cluster, "node2")
        })
    });
    cluster.kubectl(&["uncordon", "node2"]).unwrap();
    on_node2.unwrap();
    available("deployment/server");
    for system in [
        "deployment/coredns -n kube-system",
        "deployment/karst-controller -n karst-system",
    ] {
        let what: Vec<&str> = system.split(' ').collect();
        cluster
            .wait_for(&what, "condition=Available", LIMIT)
            .unwrap();
    }
    talk("a drain");
}

//! The mesh while its control plane, or Kubernetes', is away.

use std::collections::BTreeSet;
use std::fs;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use karst_cluster::Cluster;
use karst_harness::until;
use serde_json::Value;

use crate::mesh::{
    LABEL, NO_LABEL, SYSTEM, enrolled_shop, label, pod, shop, text, wait_enrolled, with_karst,
};
use crate::shared::{LIMIT, alone};

/// How long the API server stays away.
const OUTAGE: Duration = Duration::from_secs(60);

/// Fewer connections than these for each second would leave moments untested.
const LEAST_PER_SECOND: u64 = 10;

/// A lease ends 15 s after its last renewal was seen, and is looked at every few seconds.
const NEW_LEADER: Duration = Duration::from_secs(40);

/// The controller's account in the audit log.
const CONTROLLER: &str = "system:serviceaccount:karst-system:karst-controller";

pub fn scale(cluster: &Cluster, replicas: usize) {
    let replicas = replicas.to_string();
    let what = ["deployment/karst-controller", "-n", SYSTEM];
    let to = format!("--replicas={replicas}");
    cluster
        .kubectl(&[&["scale"], &what[..], &[&to]].concat())
        .unwrap();
    let condition = format!("jsonpath={{.status.availableReplicas}}={replicas}");
    cluster.wait_for(&what, &condition, LIMIT).unwrap();
    let condition = format!("jsonpath={{.status.replicas}}={replicas}");
    cluster.wait_for(&what, &condition, LIMIT).unwrap();
}

/// The pod that holds the lease.
fn leader(cluster: &Cluster) -> anyhow::Result<String> {
    let lease = cluster.get(&["lease", "karst-controller-leader", "-n", SYSTEM])?;
    Ok(text(&lease, "/spec/holderIdentity").to_owned())
}

/// A leader other than `former` that is one of the pods there are.
fn wait_leader(cluster: &Cluster, former: &str) -> String {
    until("another leader", NEW_LEADER, || {
        let now = leader(cluster)?;
        ensure!(!now.is_empty() && !now.starts_with(former), "it is {now:?}");
        Ok(now)
    })
    .unwrap()
}

fn restarts(cluster: &Cluster) -> i64 {
    let pods = cluster.get(&["pods", "-n", SYSTEM]).unwrap();
    let pods = pods["items"].as_array().unwrap();
    let counts = pods
        .iter()
        .filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_i64());
    counts.sum()
}

/// Connections from the shop's client to its server, one after the other in two rows, until the
/// standard input ends. The container runtime starts it: `kubectl exec` would end with the API server.
fn storm(cluster: &Cluster, namespace: &str) -> Child {
    let (client, server) = (
        pod(cluster, namespace, "client"),
        pod(cluster, namespace, "server"),
    );
    let container = text(&client, "/status/containerStatuses/0/containerID");
    let container = container.trim_start_matches("containerd://");
    let to = format!("{}:8080", text(&server, "/status/podIP"));
    let exec = [
        "ctr",
        "-n",
        "k8s.io",
        "tasks",
        "exec",
        "--exec-id",
        "storm",
        container,
    ];
    let storm = ["/karst-testapp", "storm", &to, "1000000"];
    let slowly = ["--at-once", "2", "--pause", "20", "--until-eof"];
    let argv = [&exec[..], &storm, &slowly].concat();
    let mut command = cluster.node_command("node1", &argv).unwrap();
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().unwrap()
}

#[test]
fn connections_go_on_while_control_planes_come_and_go() {
    let cluster = alone();
    with_karst(&cluster);
    scale(&cluster, 2);
    let namespace = "mesh-outage";
    enrolled_shop(&cluster, namespace);
    // In the mesh only after all of it, and out of it.
    let late = "mesh-late";
    shop(&cluster, late);
    let storm = storm(&cluster, namespace);
    let begun = Instant::now();
    let restarted = restarts(&cluster);

    // The controller: one, two, its leader killed, one, two.
    scale(&cluster, 1);
    scale(&cluster, 2);
    let first = leader(&cluster).unwrap();
    let name = first.split('_').next().unwrap();
    let kill = [
        "delete",
        "pod",
        name,
        "-n",
        SYSTEM,
        "--force",
        "--grace-period=0",
    ];
    cluster.kubectl(&kill).unwrap();
    let second = wait_leader(&cluster, name);
    assert_ne!(first, second);
    scale(&cluster, 2);
    scale(&cluster, 1);
    scale(&cluster, 2);

    // The API server: what watches would go on from is forgotten while it is away.
    cluster
        .kubectl(&["create", "namespace", "mesh-compacted"])
        .unwrap();
    cluster.compact_etcd().unwrap();
    cluster.stop_apiserver().unwrap();
    thread::sleep(OUTAGE);
    cluster.start_apiserver().unwrap();
    label(&cluster, late, LABEL);
    wait_enrolled(&cluster, late, true);
    label(&cluster, late, NO_LABEL);
    wait_enrolled(&cluster, late, false);

    let took = begun.elapsed();
    // Its standard input ends here, and so do the connections.
    let said = storm.wait_with_output().unwrap();
    let said: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["failed"], 0, "{said}");
    let least = took.as_secs() * LEAST_PER_SECOND;
    assert!(said["count"].as_u64() > Some(least), "{said} in {took:?}");
    assert_eq!(
        restarts(&cluster),
        restarted,
        "no agent or controller restarts by itself"
    );
    one_writer(&cluster).unwrap();
}

/// Holds the API server's own record against what is promised: the annotation and the root bundles
/// are written by the replica that holds the lease, and by no other.
fn one_writer(cluster: &Cluster) -> anyhow::Result<()> {
    let log = fs::read_to_string(cluster.dir().join("logs/audit.log"))?;
    let mut requests = Vec::new();
    for line in log.lines().filter(|line| line.contains(CONTROLLER)) {
        // The one that was being written when the server was killed is cut short.
        let Ok(event) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let verb = text(&event, "/verb");
        if text(&event, "/user/username") != CONTROLLER
            || event["responseStatus"]["code"].as_u64() >= Some(300)
            || !["create", "update", "patch"].contains(&verb)
        {
            continue;
        }
        let pod = event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0].as_str();
        let pod = pod.context("a request of no pod")?.to_owned();
        let object = |field: &str| text(&event, &format!("/objectRef/{field}")).to_owned();
        let time = text(&event, "/stageTimestamp").to_owned();
        requests.push((time, pod, object("resource"), object("name")));
    }
    requests.sort();
    let mut leader = String::new();
    let (mut leaders, mut written) = (BTreeSet::new(), 0);
    for (time, pod, resource, name) in requests {
        match (resource.as_str(), name.as_str()) {
            ("leases", _) => {
                leaders.insert(pod.clone());
                leader = pod;
            }
            ("pods", _) | ("configmaps", "karst-ca-root-cert") => {
                ensure!(
                    pod == leader,
                    "{time}: {pod} writes {resource} {name}, {leader} leads"
                );
                written += 1;
            }
            _ => {}
        }
    }
    ensure!(leaders.len() >= 2, "only {leaders:?} ever led");
    ensure!(written >= 4, "only {written} writes are on record");
    Ok(())
}

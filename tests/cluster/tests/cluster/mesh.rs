//! Karst on the cluster, installed as a user installs it: with `karst install` and its own images.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use karst_cluster::{Cluster, NODES};
use karst_harness::until;
use serde_json::{Value, json};

use crate::shared::{APP_IMAGE, LIMIT, alone, ask, http, shared};

pub const SYSTEM: &str = "karst-system";
pub const LABEL: &str = "karst.dev/dataplane-mode=ambient";
pub const NO_LABEL: &str = "karst.dev/dataplane-mode-";
pub const AGENTS: &str = "app.kubernetes.io/name=karst-node-agent";

/// Label of the controllers' pods.
pub const CONTROLLERS: &str = "app.kubernetes.io/name=karst-controller";

/// How long a label may take to reach every agent and come back as an annotation.
pub const ENROLMENT: Duration = Duration::from_secs(30);

/// Whether Karst is on the shared cluster.
static INSTALLED: Mutex<bool> = Mutex::new(false);

/// A command of `karst`, where the API server is all that can be reached.
pub fn karst_output(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<Output> {
    let program = karst_cluster::binary("karst")?.display().to_string();
    let argv = [&[program.as_str()], arguments].concat();
    Ok(cluster.exec_command(&argv)?.output()?)
}

/// The same, and what it printed; it has to end well.
pub fn karst(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<String> {
    let output = karst_output(cluster, arguments)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "karst {arguments:?}: {}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

fn install(cluster: &Cluster) -> String {
    karst(
        cluster,
        &[
            "install",
            "--set",
            "agent.cgroupPath=/sys/fs/cgroup/unified",
        ],
    )
    .unwrap_or_else(|error| panic!("{error:#}\n{}", system_logs(cluster)))
}

pub fn system_logs(cluster: &Cluster) -> String {
    let logs = |component: &str| {
        let selector = format!("app.kubernetes.io/name=karst-{component}");
        cluster.kubectl(&["logs", "-n", SYSTEM, "-l", &selector, "--tail=20"])
    };
    let pods = cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]);
    format!(
        "{pods:?}\n{:?}\n{:?}",
        logs("controller"),
        logs("node-agent")
    )
}

/// Where `cargo xtask image` left the images; `cargo xtask test` makes them first.
fn images() -> PathBuf {
    std::env::var_os("KARST_IMAGE_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/images"),
        PathBuf::from,
    )
}

/// Makes sure that Karst runs on the cluster.
pub fn with_karst(cluster: &Cluster) {
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if !*installed {
        import(cluster);
        install(cluster);
        *installed = true;
    }
}

fn import(cluster: &Cluster) {
    for name in ["controller", "node-agent", "waypoint"] {
        let archive = images().join(format!("{name}.tar"));
        cluster
            .import_image(&archive)
            .with_context(|| format!("{}: run `cargo xtask image`", archive.display()))
            .unwrap();
    }
}

/// Two Deployments of one pod each, with accounts of their own: `client` on node1, `server` on node2.
pub fn shop(cluster: &Cluster, namespace: &str) {
    let yaml = include_str!("shop.yaml")
        .replace("NAMESPACE", namespace)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&yaml).unwrap();
    for name in ["deployment/client", "deployment/server"] {
        cluster
            .wait_for(&[name, "-n", namespace], "condition=Available", LIMIT)
            .unwrap();
    }
    wait_answers(cluster, namespace);
}

/// Waits until the shop's Service answers its client: the nodes' Service rules and the name follow the
/// pods' readiness a moment later.
pub fn wait_answers(cluster: &Cluster, namespace: &str) {
    until("the Service to answer", LIMIT, || {
        // Looked for each time: after an update the one found may be the one that goes.
        let client = pod(cluster, namespace, "client");
        let client = text(&client, "/metadata/name");
        ask(cluster, namespace, client, "server:80").map(drop)
    })
    .unwrap();
}

pub fn pods(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    let list = cluster.get(&["pods", "-n", namespace]).unwrap();
    list["items"].as_array().unwrap().clone()
}

/// A pod of an application; not one that is being deleted, if there is another.
pub fn pod(cluster: &Cluster, namespace: &str, app: &str) -> Value {
    let mut pods = pods(cluster, namespace);
    pods.retain(|pod| pod["metadata"]["labels"]["app"] == app);
    pods.sort_by_key(|pod| !pod["metadata"]["deletionTimestamp"].is_null());
    pods.swap_remove(0)
}

pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or("")
}

pub fn label(cluster: &Cluster, namespace: &str, label: &str) {
    cluster
        .kubectl(&["label", "namespace", namespace, label])
        .unwrap();
}

/// A [`shop`] whose pods are in the mesh.
pub fn enrolled_shop(cluster: &Cluster, namespace: &str) {
    shop(cluster, namespace);
    label(cluster, namespace, LABEL);
    wait_enrolled(cluster, namespace, true);
}

/// Waits until every pod of the namespace is marked as in the mesh, or none is.
pub fn wait_enrolled(cluster: &Cluster, namespace: &str, wanted: bool) {
    until("the pods' annotations", ENROLMENT, || {
        for pod in pods(cluster, namespace) {
            let enrolled = pod["metadata"]["annotations"]["karst.dev/enrolled"] == "true";
            ensure!(enrolled == wanted, "{}", text(&pod, "/metadata/name"));
        }
        Ok(())
    })
    .unwrap_or_else(|error| panic!("{error:#}\n{}", system_logs(cluster)));
}

/// Access-log records of the agents about connections to `destination`.
pub fn access(cluster: &Cluster, destination: &str) -> Vec<Value> {
    let log = cluster
        .kubectl(&["logs", "-n", SYSTEM, "-l", AGENTS, "--tail=-1"])
        .unwrap();
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|record| record["target"] == "access" && record["dst.hbone_addr"] == destination)
        .collect()
}

#[test]
fn a_label_brings_identities_and_its_removal_plain_tcp_without_a_restart() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-label";
    shop(&cluster, namespace);
    let (client, server) = (
        pod(&cluster, namespace, "client"),
        pod(&cluster, namespace, "server"),
    );
    assert_eq!(text(&client, "/spec/nodeName"), "node1");
    assert_eq!(text(&server, "/spec/nodeName"), "node2");
    let (from, to) = (
        text(&client, "/metadata/name"),
        format!("{}:8080", text(&server, "/status/podIP")),
    );
    assert_eq!(http(&cluster, namespace, from, "server:80")["ok"], true);
    assert!(
        access(&cluster, &to).is_empty(),
        "nobody asked for the mesh"
    );

    label(&cluster, namespace, LABEL);
    wait_enrolled(&cluster, namespace, true);
    let seen = http(&cluster, namespace, from, "server:80");
    assert_eq!(seen["ok"], true, "{seen}");
    let peer = seen["page"]["peer"].as_str().unwrap();
    assert!(peer.contains(text(&client, "/status/podIP")), "{seen}");
    let mut records = Vec::new();
    until("both agents' records", LIMIT, || {
        records = access(&cluster, &to);
        let directions: BTreeSet<&str> = records.iter().map(|r| text(r, "/direction")).collect();
        ensure!(directions.len() == 2, "there is {directions:?} only");
        Ok(())
    })
    .unwrap();
    assert_eq!(records.len(), 2);
    for record in &records {
        assert_eq!(
            record["connection_security_policy"], "mutual_tls",
            "{record}"
        );
        assert_eq!(record["tls_version"], "TLSv1_3", "{record}");
        let identity =
            |account: &str| format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
        assert_eq!(record["src.identity"], *identity("client"), "{record}");
        assert_eq!(record["dst.identity"], *identity("server"), "{record}");
    }

    label(&cluster, namespace, NO_LABEL);
    wait_enrolled(&cluster, namespace, false);
    assert_eq!(http(&cluster, namespace, from, "server:80")["ok"], true);
    assert_eq!(access(&cluster, &to).len(), 2, "plain again");
    for (app, before) in [("client", &client), ("server", &server)] {
        let now = pod(&cluster, namespace, app);
        assert_eq!(now["metadata"]["uid"], before["metadata"]["uid"]);
        assert_eq!(now["status"]["containerStatuses"][0]["restartCount"], 0);
    }
}

#[test]
fn pods_that_connect_first_thing_say_nothing_in_clear() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-first";
    enrolled_shop(&cluster, namespace);
    let server = pod(&cluster, namespace, "server");
    let server = text(&server, "/status/podIP").to_owned();
    // Bytes that reach the server's node or leave it, but for the kubelet's own probes, which come from
    // the bridge's address.
    let bytes = "(ip[2:2] - ((ip[0] & 0xf) << 2)) - ((tcp[12] & 0xf0) >> 2) != 0";
    let plain = format!(
        "host {server} and tcp port 8080 and not host 10.244.1.1 and not host 10.244.2.1 and {bytes}"
    );
    let tunnel = format!("host {server} and port 15008");
    let watch = |filter: &str| {
        let argv = [
            "tcpdump",
            "-i",
            "any",
            "-n",
            "-l",
            "--immediate-mode",
            filter,
        ];
        let mut command = cluster.node_command("node2", &argv).unwrap();
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null());
        command.spawn().unwrap()
    };
    let watchers = [watch(&plain), watch(&tunnel)];
    thread::sleep(Duration::from_secs(1));
    let job = include_str!("first.yaml")
        .replace("NAMESPACE", namespace)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&job).unwrap();
    let done = cluster.wait_for(
        &["job/first", "-n", namespace],
        "condition=Complete",
        2 * LIMIT,
    );
    done.unwrap_or_else(|error| {
        let status = cluster.kubectl(&["get", "job,pods", "-n", namespace, "-o", "wide"]);
        let logs = cluster.kubectl(&["logs", "-n", namespace, "-l", "job-name=first", "--tail=3"]);
        panic!("{error:#}\n{status:?}\n{logs:?}\n{}", system_logs(&cluster));
    });
    cluster
        .node_exec("node2", &["pkill", "-INT", "-x", "tcpdump"])
        .unwrap();
    let [plain, tunnel] = watchers.map(|child| {
        let output = child.wait_with_output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    });
    assert_eq!(plain.trim(), "", "in clear");
    let tunnelled = tunnel.lines().count();
    assert!(tunnelled > 100, "only {tunnelled} packets through tunnels");
}

#[test]
fn agents_are_rolled_and_no_connection_is_refused() {
    // What other tests read in the agents' logs would go with them.
    let cluster = alone();
    with_karst(&cluster);
    let namespace = "mesh-roll";
    enrolled_shop(&cluster, namespace);
    let (client, server) = (
        pod(&cluster, namespace, "client"),
        pod(&cluster, namespace, "server"),
    );
    let to = format!("{}:8080", text(&server, "/status/podIP"));
    let mut storm = cluster.kubectl_command().unwrap();
    storm.args([
        "exec",
        "-n",
        namespace,
        text(&client, "/metadata/name"),
        "--",
    ]);
    storm.args(["/karst-testapp", "storm", &to, "15000", "--at-once", "2"]);
    storm.stdout(std::process::Stdio::piped());
    let mut storm = storm.spawn().unwrap();
    cluster
        .kubectl(&[
            "rollout",
            "restart",
            "-n",
            SYSTEM,
            "daemonset/karst-node-agent",
        ])
        .unwrap();
    let status = [
        "rollout",
        "status",
        "-n",
        SYSTEM,
        "daemonset/karst-node-agent",
    ];
    cluster
        .kubectl(&[&status[..], &["--timeout=120s"]].concat())
        .unwrap_or_else(|error| panic!("{error:#}\n{}", system_logs(&cluster)));
    assert!(
        storm.try_wait().unwrap().is_none(),
        "the storm was over before the roll-out was"
    );
    let output = storm.wait_with_output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["failed"], 0, "{said}");
}

/// Manifests of the project that are not Karst's own: the lab's and the demo's pods.
const PODS: [&str; 2] = [
    include_str!("../../../lab/src/world.yaml"),
    include_str!("../../../../xtask/src/demo/mesh.yaml"),
];

/// What follows the first `name` in a manifest, up to the end of the word.
fn word<'a>(manifest: &'a str, name: &str) -> Option<&'a str> {
    let (_, after) = manifest.split_once(name)?;
    after.split([',', '}', '\n', ' ']).next()
}

#[test]
fn every_manifest_is_accepted_by_the_api_server() {
    let cluster = shared();
    with_karst(&cluster);
    let accepted = |manifests: &str| {
        let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        let argv = [&apply[..], &["--dry-run=server"]].concat();
        let said = cluster.kubectl_with_input(&argv, manifests).unwrap();
        said.lines().count()
    };
    let rendered = karst(&cluster, &["install", "--dry-run"]).unwrap();
    assert!(accepted(&rendered) >= 15);
    let plain = include_str!("../../../../controller/deploy/manifests/karst.yaml");
    assert_eq!(accepted(plain), accepted(&rendered));
    // What a trial does not make, it does not find: namespaces and accounts must be there.
    let mut namespaces = BTreeSet::new();
    for document in PODS.iter().flat_map(|text| text.split("---\n")) {
        let Some(namespace) = word(document, "namespace: ") else {
            continue;
        };
        if namespaces.insert(namespace) {
            let create = ["create", "namespace", namespace];
            cluster.kubectl(&create).unwrap();
            let default = ["serviceaccount", "default", "-n", namespace];
            let made = "jsonpath={.metadata.uid}";
            cluster.wait_for(&default, made, LIMIT).unwrap();
        }
        if let Some(account) = word(document, "serviceAccountName: ") {
            let create = ["create", "serviceaccount", account, "-n", namespace];
            // Several pods may have the same.
            let _ = cluster.kubectl(&create);
        }
    }
    assert!(namespaces.len() >= 3, "{namespaces:?}");
    for text in PODS {
        assert!(accepted(&text.replace("LABEL", "")) >= 10);
    }
    let delete: Vec<&str> = ["delete", "namespace"]
        .into_iter()
        .chain(namespaces)
        .collect();
    cluster.kubectl(&delete).unwrap();
}

#[test]
fn the_controllers_account_may_change_one_annotation_of_a_pod_and_nothing_else() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-held";
    shop(&cluster, namespace);
    let server = pod(&cluster, namespace, "server");
    // Told to kubectl, as the account may not read a single pod.
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
        "name": server["metadata"]["name"], "namespace": namespace}})
    .to_string();
    let who = format!("--as=system:serviceaccount:{SYSTEM}:karst-controller");
    let patch = |patch: &Value| {
        let patch = patch.to_string();
        cluster.kubectl_with_input(&["patch", "-f", "-", &who, "-p", &patch], &object)
    };
    let annotation = |name: &str| json!({"metadata": {"annotations": {name: "true"}}});
    patch(&annotation("karst.dev/enrolled")).unwrap();
    let container = &server["spec"]["containers"][0]["name"];
    for other in [
        annotation("example.dev/other"),
        json!({"metadata": {"labels": {"app": "other"}}}),
        json!({"metadata": {"finalizers": ["example.dev/other"]}}),
        json!({"spec": {"containers": [{"name": container, "image": "example.dev/other"}]}}),
    ] {
        let error = patch(&other).expect_err("refused");
        let error = format!("{error:#}");
        let words = "nothing of a pod but the annotation karst.dev/enrolled";
        assert!(error.contains(words), "{other}: {error}");
    }
}

/// What an installation could leave: objects of every kind that can be listed, and files of the nodes.
fn everything(cluster: &Cluster) -> BTreeSet<String> {
    let kinds = cluster
        .kubectl(&["api-resources", "--verbs=list", "-o", "name"])
        .unwrap();
    // These come and go by themselves.
    let moving = |kind: &&str| {
        !matches!(
            *kind,
            "events" | "events.events.k8s.io" | "endpointslices.discovery.k8s.io"
        )
    };
    let kinds: Vec<&str> = kinds.lines().filter(moving).collect();
    let objects = cluster
        .kubectl(&[
            "get",
            &kinds.join(","),
            "-A",
            "--no-headers",
            "-o",
            "custom-columns=KIND:.kind,NS:.metadata.namespace,NAME:.metadata.name,\
             ENROLLED:.metadata.annotations.karst\\.dev/enrolled",
        ])
        .unwrap();
    let mut all: BTreeSet<String> = objects.lines().map(str::to_owned).collect();
    for number in 1..=NODES {
        let node = format!("node{number}");
        let script = "cd / && find etc/cni opt/cni run/karst sys/fs/bpf run/netns -type f | sort; cat etc/cni/net.d/*";
        let files = cluster
            .node_exec(
                &node,
                &["sh", "-c", &format!("{{ {script}; }} 2>/dev/null || true")],
            )
            .unwrap();
        all.extend(files.lines().map(|line| format!("{node} {line}")));
    }
    all
}

#[test]
fn an_installation_is_checked_repeated_and_removed_without_a_trace() {
    let cluster = alone();
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if *installed {
        karst(&cluster, &["uninstall", "--yes"]).unwrap();
        *installed = false;
    } else {
        import(&cluster);
    }
    // Tests of waypoints bring a class of their own, which an installation makes one of Karst's. Without the
    // Gateway API there is no such kind.
    let _ = cluster.kubectl(&[
        "delete",
        "gatewayclass",
        "karst-waypoint",
        "--ignore-not-found",
    ]);
    let before = everything(&cluster);
    let marked = |line: &&String| line.starts_with("Pod ") && line.trim_end().ends_with(" true");
    assert_eq!(before.iter().find(marked), None, "no annotation is left");
    install(&cluster);
    let checked = karst(&cluster, &["check", "-o", "json"]).unwrap();
    let checked: Value = serde_json::from_str(&checked).unwrap();
    assert_ne!(checked, Value::Null);
    let again = install(&cluster);
    assert!(again.contains("0 created, 0 changed"), "{again}");
    // Half of an installation: what is missing comes back.
    cluster
        .kubectl(&[
            "delete",
            "service,serviceaccount",
            "karst-controller",
            "-n",
            SYSTEM,
        ])
        .unwrap();
    let repaired = install(&cluster);
    assert!(repaired.contains("2 created"), "{repaired}");
    // An uninstallation that went no further than to let the agents clean.
    let agents = ["daemonset", "karst-node-agent", "-n", SYSTEM];
    let object = cluster.get(&agents).unwrap();
    let mut containers = object["spec"]["template"]["spec"]["containers"].clone();
    containers[0]["args"] = json!(["cleanup"]);
    containers[0]["readinessProbe"] =
        json!({"httpGet": {"host": "127.0.0.1", "port": 15021, "path": "/healthz/ready"}});
    let patch = json!({"spec": {
        "updateStrategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}},
        "template": {"spec": {"containers": containers}},
    }})
    .to_string();
    let how = ["--type=merge", "--field-manager=karst", "-p", &patch];
    cluster
        .kubectl(&[&["patch"], &agents[..], &how].concat())
        .unwrap();
    let repaired = install(&cluster);
    assert!(repaired.contains("1 created, 0 changed"), "{repaired}");
    let again = install(&cluster);
    assert!(again.contains("0 created, 0 changed"), "{again}");
    karst(&cluster, &["uninstall", "--yes"]).unwrap();
    // The namespaces of pods that have just ended go a moment later.
    until("the cluster to be as before", LIMIT, || {
        let after = everything(&cluster);
        let left: Vec<_> = after.difference(&before).collect();
        let lost: Vec<_> = before.difference(&after).collect();
        ensure!(
            left.is_empty() && lost.is_empty(),
            "left: {left:#?}\nlost: {lost:#?}"
        );
        Ok(())
    })
    .unwrap();
}

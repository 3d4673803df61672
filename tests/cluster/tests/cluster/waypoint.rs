//! Waypoints on a real cluster: made by the controller for a Gateway, and routed through by `kubectl apply`.

use std::process::Stdio;
use std::thread;
use std::time::Duration;

use karst_cluster::{Channel, Cluster, Suite};
use karst_harness::until;
use serde_json::Value;

use crate::mesh::{pod, text, with_karst};
use crate::shared::{APP_IMAGE, LIMIT, shared};

/// The Gateway API's kinds, which Karst does not bring; a running controller finds them.
pub fn with_gateway_api(cluster: &Cluster) {
    for file in Suite::definitions(Channel::Standard).unwrap() {
        let file = file.display().to_string();
        let apply = ["apply", "--server-side", "-f", &file];
        cluster.kubectl(&apply).unwrap();
    }
    let class = "apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: karst-waypoint}
spec: {controllerName: karst.dev/waypoint-controller}
";
    until("the kinds to be served", LIMIT, || {
        cluster.apply(class).map(drop)
    })
    .unwrap();
    let what = ["gatewayclass/karst-waypoint"];
    cluster
        .wait_for(&what, "condition=Accepted", LIMIT)
        .unwrap();
}

/// Runs the test application in the client's pod; gives what it reports.
pub fn ask(cluster: &Cluster, namespace: &str, argv: &[&str]) -> anyhow::Result<Value> {
    let client = pod(cluster, namespace, "client");
    let name = text(&client, "/metadata/name");
    let exec = ["exec", "-n", namespace, name, "--", "/karst-testapp"];
    let output = cluster.kubectl_command()?.args(exec).args(argv).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let last = said.lines().last().unwrap_or_default().to_owned();
    serde_json::from_str(&last)
        .map_err(|_| anyhow::anyhow!("{said}{}", String::from_utf8_lossy(&output.stderr)))
}

/// A route to `web` by weights.
pub fn weights(namespace: &str, v1: u32, v2: u32) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: web, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web, port: 80}}]
  rules:
  - backendRefs: [{{name: web-v1, port: 80, weight: {v1}}}, {{name: web-v2, port: 80, weight: {v2}}}]
"
    )
}

fn count(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

#[test]
fn a_canary_is_one_route_and_a_rolling_update_loses_nothing() {
    let cluster = shared();
    with_karst(&cluster);
    with_gateway_api(&cluster);
    let namespace = "way-canary";
    let yaml = include_str!("canary.yaml")
        .replace("NAMESPACE", namespace)
        .replace("IMAGE", APP_IMAGE);
    cluster.apply(&yaml).unwrap();
    let gateway = ["gateway/waypoint", "-n", namespace];
    cluster
        .wait_for(&gateway, "condition=Programmed", LIMIT)
        .unwrap();
    for name in ["client", "web-v1", "web-v2", "waypoint"] {
        let what = [&format!("deployment/{name}"), "-n", namespace];
        cluster
            .wait_for(&what, "condition=Available", LIMIT)
            .unwrap();
    }

    cluster.apply(&weights(namespace, 95, 5)).unwrap();
    let accepted = |condition: &str| {
        let route = cluster.get(&["httproute", "web", "-n", namespace])?;
        let conditions = route
            .pointer("/status/parents/0/conditions")
            .and_then(Value::as_array);
        let found = conditions
            .into_iter()
            .flatten()
            .find(|one| one["type"] == condition);
        anyhow::ensure!(found.is_some_and(|one| one["status"] == "True"), "{route}");
        Ok(())
    };
    for condition in ["Accepted", "ResolvedRefs"] {
        until("the route's status", LIMIT, || accepted(condition)).unwrap();
    }
    until("the waypoint to answer", LIMIT, || {
        let answer = ask(&cluster, namespace, &["http", "web:80"])?;
        anyhow::ensure!(
            answer["page"]["headers"]["x-forwarded-for"].is_string(),
            "{answer}"
        );
        Ok(())
    })
    .unwrap();
    let report = ask(
        &cluster,
        namespace,
        &["load", "web:80", "--requests", "20000"],
    )
    .unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    let canary = count(&report, "/versions/v2");
    assert!(
        (800..=1200).contains(&canary),
        "{canary} of 20,000 went to v2"
    );

    // Under load: other weights, then new pods for all of v1.
    let client = pod(&cluster, namespace, "client");
    let name = text(&client, "/metadata/name");
    let argv = ["exec", "-i", "-n", namespace, name, "--", "/karst-testapp"];
    let load = [
        "load",
        "web:80",
        "--requests",
        "1000000",
        "--rate",
        "300",
        "--until-eof",
    ];
    let mut running = cluster.kubectl_command().unwrap();
    running
        .args(argv)
        .args(load)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut running = running.spawn().unwrap();
    thread::sleep(Duration::from_secs(2));
    cluster.apply(&weights(namespace, 50, 50)).unwrap();
    thread::sleep(Duration::from_secs(2));
    for verb in ["restart", "status"] {
        let rollout = ["rollout", verb, "deployment/web-v1", "-n", namespace];
        cluster.kubectl(&rollout).unwrap();
    }
    thread::sleep(Duration::from_secs(3));
    drop(running.stdin.take());
    let output = running.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    assert!(count(&report, "/requests") > 2000, "{report}");
    assert!(report["pods"].as_object().unwrap().len() >= 5, "{report}");

    let calls = [
        "load",
        "web:9000",
        "--grpc",
        "--requests",
        "300",
        "--connections",
        "1",
    ];
    let report = ask(&cluster, namespace, &calls).unwrap();
    assert_eq!(report["failed"], 0, "{report}");
    assert_eq!(report["pods"].as_object().unwrap().len(), 3, "{report}");

    // What was made for the Gateway goes with it, and without it nothing gets through.
    cluster
        .kubectl(&["delete", "gateway", "waypoint", "-n", namespace])
        .unwrap();
    until("the waypoint to be gone", LIMIT, || {
        let left = [
            "get",
            "deploy,svc,sa,hpa,pdb",
            "-n",
            namespace,
            "-o",
            "name",
        ];
        let left = cluster.kubectl(&left)?;
        anyhow::ensure!(!left.contains("waypoint"), "{left}");
        let answer = ask(&cluster, namespace, &["http", "web:80"])?;
        anyhow::ensure!(answer["ok"] == false, "{answer}");
        Ok(())
    })
    .unwrap();
}

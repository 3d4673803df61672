use kube::Client;
use serde_json::{Value, json};

use super::{Intent, Record, check_intent, install};
use crate::args::{DryRun, Install, Kubernetes, ValueArgs};
use crate::failure::Failure;
use crate::testing::ApiServer;

const SYSTEM: &str = "namespaces/karst-system";

fn agents() -> String {
    format!("/apis/apps/v1/{SYSTEM}/daemonsets/karst-node-agent")
}

#[test]
fn versions_decide_between_install_and_upgrade() {
    let record = |version: &str| Record {
        version: version.to_owned(),
        values: Value::Null,
    };
    let ours = env!("CARGO_PKG_VERSION");
    assert!(check_intent(Intent::Install, None).is_ok());
    assert!(check_intent(Intent::Install, Some(&record(ours))).is_ok());
    assert!(check_intent(Intent::Upgrade, Some(&record("0.0.9"))).is_ok());
    let reason = |intent, version: &str| {
        check_intent(intent, Some(&record(version)))
            .expect_err("refused")
            .reason
    };
    assert_eq!(reason(Intent::Install, "0.0.9"), "version_differs");
    assert_eq!(reason(Intent::Install, "99.0.0"), "version_older");
    assert_eq!(reason(Intent::Upgrade, "99.0.0"), "version_older");
    assert_eq!(
        check_intent(Intent::Upgrade, None)
            .expect_err("refused")
            .reason,
        "not_found"
    );
}

/// Has controllers run at once whatever is applied, and agents on one of two nodes.
fn controllers(object: &mut Value) {
    let replicas = object["spec"]["replicas"].clone();
    match object["kind"].as_str() {
        Some("Deployment") => {
            object["status"] = json!({"observedGeneration": 1, "replicas": replicas,
                "updatedReplicas": replicas, "availableReplicas": replicas});
        }
        Some("DaemonSet") => {
            object["status"] = json!({"observedGeneration": 1, "desiredNumberScheduled": 2,
                "currentNumberScheduled": 2, "numberMisscheduled": 0, "numberReady": 1,
                "numberAvailable": 1, "updatedNumberScheduled": 1});
        }
        _ => {}
    }
}

async fn run(client: &Client, dry_run: Option<DryRun>) -> Result<String, Failure> {
    run_for(client, dry_run, 1).await
}

/// Installs, and waits for so many seconds.
async fn run_for(
    client: &Client,
    dry_run: Option<DryRun>,
    timeout: u64,
) -> Result<String, Failure> {
    let args = Install {
        values: ValueArgs::default(),
        dry_run,
        timeout,
        kubernetes: Kubernetes::default(),
    };
    install(&args, Intent::Install, client).await
}

fn node(server: &ApiServer, name: &str, ready: &str) {
    let conditions = json!([{"type": "Ready", "status": ready}]);
    let labels = json!({"kubernetes.io/os": "linux"});
    server.put(
        &format!("/api/v1/nodes/{name}"),
        json!({"metadata": {"labels": labels}, "status": {"conditions": conditions}}),
    );
}

#[tokio::test]
async fn what_is_not_wanted_any_more_goes_although_an_agent_does_not_come() {
    let (server, client) = ApiServer::start().await;
    server.control(controllers);
    let old = format!("/api/v1/{SYSTEM}/services/old");
    let labels =
        json!({"app.kubernetes.io/part-of": "karst", "app.kubernetes.io/managed-by": "karst"});
    server.put(&old, json!({"metadata": {"labels": labels}}));
    node(&server, "node1", "True");
    node(&server, "node2", "True");
    let failure = run(&client, None).await.expect_err("one agent is missing");
    assert_eq!(failure.reason, "rollout_timeout", "{}", failure.message);
    let writes = server.writes();
    assert!(writes.contains(&format!("DELETE {old}")), "{writes:?}");
}

#[tokio::test]
async fn a_node_that_is_away_fails_no_installation() {
    let (server, client) = ApiServer::start().await;
    server.control(controllers);
    node(&server, "node1", "True");
    node(&server, "node2", "Unknown");
    // As if installed before, so that the revision can name the DaemonSet.
    run(&client, None).await.expect_err("no agent yet");
    let uid = server.object(&agents()).expect("agents")["metadata"]["uid"].clone();
    let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "karst-node-agent", "uid": uid}]);
    let labels =
        json!({"controller-revision-hash": "h", "app.kubernetes.io/name": "karst-node-agent"});
    server.put(
        &format!("/apis/apps/v1/{SYSTEM}/controllerrevisions/h"),
        json!({"revision": 1, "metadata": {"labels": labels, "ownerReferences": owner}}),
    );
    server.put(
        &format!("/api/v1/{SYSTEM}/pods/agent"),
        json!({"metadata": {"labels": labels}, "spec": {"containers": [], "nodeName": "node1"},
               "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
    );
    let said = run(&client, None).await.expect("installed");
    assert!(said.contains("runs in karst-system"), "{said}");
}

#[tokio::test]
async fn pods_that_are_older_than_their_account_are_made_anew() {
    for (pod, restarts) in [
        ("2026-01-01T00:00:00Z", true),
        ("2026-01-03T00:00:00Z", false),
    ] {
        let (server, client) = ApiServer::start().await;
        server.control(controllers);
        server.put(
            &format!("/api/v1/{SYSTEM}/serviceaccounts/karst-controller"),
            json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z"}}),
        );
        let labels = json!({"app.kubernetes.io/name": "karst-controller"});
        server.put(
            &format!("/api/v1/{SYSTEM}/pods/controller"),
            json!({"metadata": {"labels": labels, "creationTimestamp": pod}, "spec": {"containers": []}}),
        );
        // Whether the agents come, which is waited for afterwards, is all the same here.
        let _ = run(&client, None).await;
        let path = format!("/apis/apps/v1/{SYSTEM}/deployments/karst-controller");
        let object = server.object(&path).expect("a Deployment");
        let annotations = &object["spec"]["template"]["metadata"]["annotations"];
        let restarted = !annotations["kubectl.kubernetes.io/restartedAt"].is_null();
        assert_eq!(restarted, restarts, "{pod}");
    }
}

/// Agents that an uninstallation left cleaning: their DaemonSet, and pods of it, of which the one on
/// the node that is ready ends or does not.
fn cleaning(server: &ApiServer, ends: bool) {
    server.put(
        &agents(),
        json!({"metadata": {"generation": 2}, "spec": {"selector": {}, "template": {"spec": {"containers": [
            {"name": "node-agent", "args": ["cleanup"]}]}}}}),
    );
    let uid = server.object(&agents()).expect("agents")["metadata"]["uid"].clone();
    let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "karst-node-agent", "uid": uid}]);
    let labels = json!({"app.kubernetes.io/name": "karst-node-agent"});
    let pod = |name: &str, node: &str, ending: Value| {
        let metadata =
            json!({"labels": labels, "ownerReferences": owner, "deletionTimestamp": ending});
        server.put(
            &format!("/api/v1/{SYSTEM}/pods/{name}"),
            json!({"metadata": metadata, "spec": {"containers": [], "nodeName": node}}),
        );
    };
    node(server, "node1", "True");
    node(server, "node2", "Unknown");
    let now = json!("2026-11-22T01:00:00Z");
    pod("there", "node1", if ends { now } else { Value::Null });
    pod("away", "node2", Value::Null);
}

#[tokio::test]
async fn agents_that_still_clean_are_made_anew() {
    let (server, client) = ApiServer::start().await;
    server.control(controllers);
    cleaning(&server, true);
    // The old agents have to be gone within the time that is up when the new ones do not come.
    let installed = run_for(&client, None, 5).await;
    let failure = installed.expect_err("agents are not there");
    assert_eq!(failure.reason, "rollout_timeout", "{}", failure.message);
    let writes = server.writes();
    let place = |write: String| writes.iter().position(|it| *it == write);
    let deleted = place(format!("DELETE {}", agents())).expect("deleted");
    let applied = place(format!("PATCH {}", agents())).expect("applied");
    assert!(deleted < applied, "{writes:?}");
    let made = server.object(&agents()).expect("agents");
    let container = &made["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["args"], Value::Null, "{made}");
}

#[tokio::test]
async fn agents_that_clean_must_end_before_others_start() {
    let (server, client) = ApiServer::start().await;
    server.control(controllers);
    cleaning(&server, false);
    let failure = run(&client, None).await.expect_err("a pod does not end");
    assert_eq!(failure.reason, "deletion_timeout");
    // The one on the node that is away is not waited for.
    assert!(
        failure.message.contains("pod there on node1"),
        "{}",
        failure.message
    );
    assert!(!failure.message.contains("pod away"), "{}", failure.message);
    assert!(!server.writes().contains(&format!("PATCH {}", agents())));
}

#[tokio::test]
async fn a_trial_deletes_nothing() {
    let (server, client) = ApiServer::start().await;
    cleaning(&server, false);
    server.put("/api/v1/namespaces/karst-system", json!({}));
    run(&client, Some(DryRun::Server)).await.expect("tried");
    let writes = server.writes();
    assert!(
        writes.iter().all(|write| write.starts_with("PATCH")),
        "{writes:?}"
    );
    // The mixture of old and new would be refused, so what is tried is a new one.
    assert!(!writes.contains(&format!("PATCH {}", agents())));
    assert!(writes.contains(&format!("PATCH {}-trial", agents())));
}

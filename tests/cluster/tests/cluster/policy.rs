//! Istio's security policies on a real cluster: their definitions are Karst's own, so the API server has to take
//! them, and what `kubectl apply` says has to reach the agents.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use karst_cluster::Cluster;
use karst_harness::until;
use serde_json::Value;

use crate::mesh::{access, enrolled_shop, pod, text, with_karst};
use crate::shared::{LIMIT, ask, shared};

/// A live connection is cut within this after `kubectl apply` has returned.
const CUT_WITHIN: Duration = Duration::from_secs(1);

fn deny_client(namespace: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: deny-client, namespace: {namespace}}}
spec:
  action: DENY
  rules:
  - from: [{{source: {{principals: [cluster.local/ns/{namespace}/sa/client]}}}}]
"
    )
}

fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.and_then(|all| all.iter().find(|one| one["type"] == kind));
    found.cloned().unwrap_or_default()
}

/// Waits until the controller has said what came of a policy.
fn accepted(cluster: &Cluster, what: &str, namespace: &str) -> Value {
    let mut accepted = Value::Null;
    until("the policy's status", LIMIT, || {
        let object = cluster.get(&[what, "-n", namespace])?;
        accepted = condition(&object, "Accepted");
        ensure!(
            accepted["observedGeneration"] == object["metadata"]["generation"],
            "{}",
            object["status"]
        );
        Ok(())
    })
    .unwrap();
    accepted
}

#[test]
fn a_denial_is_applied_cuts_and_is_taken_back() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-policy";
    enrolled_shop(&cluster, namespace);
    let client = pod(&cluster, namespace, "client");
    let from = text(&client, "/metadata/name");
    let server = pod(&cluster, namespace, "server");
    let at = |port: u16| format!("{}:{port}", text(&server, "/status/podIP"));

    let mut command = cluster.kubectl_command().unwrap();
    let echo = at(7000);
    command.args(["exec", "-i", "-n", namespace, from, "--"]);
    command.args(["/karst-testapp", "chat", &echo]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut chat = command.spawn().unwrap();
    let mut input = chat.stdin.take().unwrap();
    let mut answers = BufReader::new(chat.stdout.take().unwrap()).lines();
    // What it says of the connection comes first.
    let connected = answers.next().unwrap().unwrap();
    assert!(connected.contains("\"ok\":true"), "{connected}");
    let mut say = |line: &str| -> anyhow::Result<()> {
        writeln!(input, "{line}")?;
        let answer = answers.next().context("the chat has ended")??;
        ensure!(answer == line, "{answer}");
        Ok(())
    };
    say("hello").unwrap();
    let policy = deny_client(namespace);
    cluster.apply(&policy).unwrap();
    let applied = Instant::now();
    while say("still").is_ok() {
        assert!(applied.elapsed() < LIMIT, "it goes on");
        std::thread::sleep(Duration::from_millis(10));
    }
    let cut = applied.elapsed();
    assert!(cut < CUT_WITHIN, "cut after {cut:?}");
    let _ = chat.wait();

    let accepted_now = accepted(&cluster, "authorizationpolicy/deny-client", namespace);
    assert_eq!(accepted_now["status"], "True", "{accepted_now}");
    ask(&cluster, namespace, from, "server:80").unwrap_err();
    until("the denial in the log", LIMIT, || {
        let records = access(&cluster, &at(8080));
        let by = format!("{namespace}/deny-client");
        let record = records
            .iter()
            .find(|record| record["policy.name"] == *by && record["reason"] == "policy_denied");
        record.map(drop).context("no record")
    })
    .unwrap();

    let delete = ["delete", "-n", namespace, "authorizationpolicy/deny-client"];
    cluster.kubectl(&delete).unwrap();
    until("new connections to pass", LIMIT, || {
        ask(&cluster, namespace, from, "server:80").map(drop)
    })
    .unwrap();
}

#[test]
fn what_cannot_be_honoured_is_said() {
    let cluster = shared();
    with_karst(&cluster);
    let namespace = "mesh-policy-status";
    cluster
        .kubectl(&["create", "namespace", namespace])
        .unwrap();
    let with = |kind: &str, name: &str, spec: &str| {
        format!(
            "apiVersion: security.istio.io/v1
kind: {kind}
metadata: {{name: {name}, namespace: {namespace}}}
spec: {spec}
"
        )
    };
    let http_only = "{rules: [{to: [{operation: {methods: [GET]}}]}]}";
    cluster
        .apply(&with("AuthorizationPolicy", "http", http_only))
        .unwrap();
    let said = accepted(&cluster, "authorizationpolicy/http", namespace);
    assert_eq!(said["status"], "True", "{said}");
    let object = cluster
        .get(&["authorizationpolicy/http", "-n", namespace])
        .unwrap();
    let narrowed = condition(&object, "karst.dev/FullyEnforced");
    assert_eq!(narrowed["status"], "False", "{object}");
    assert!(
        text(&narrowed, "/message").contains("methods"),
        "{narrowed}"
    );

    let strict = "{mtls: {mode: STRICT}, selector: {matchLabels: {app: x}}, \
                  portLevelMtls: {\"8080\": {mode: PERMISSIVE}}}";
    cluster
        .apply(&with("PeerAuthentication", "strict", strict))
        .unwrap();
    let said = accepted(&cluster, "peerauthentication/strict", namespace);
    assert_eq!(said["status"], "True", "{said}");

    // What the definitions know to be wrong, the API server refuses.
    for (kind, spec) in [
        ("AuthorizationPolicy", "{action: PERHAPS}"),
        (
            "AuthorizationPolicy",
            "{selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, group: '', name: x}]}",
        ),
        ("PeerAuthentication", "{mtls: {mode: SOMETIMES}}"),
    ] {
        let applied = cluster.apply(&with(kind, "bad", spec));
        assert!(applied.is_err(), "{kind} {spec}");
    }
}

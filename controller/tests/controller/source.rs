//! The folder of manifests.

use std::fs;

use serde_json::Value;

use crate::harness::{
    Agent, NAMESPACE_AMBIENT, SERVICE, SERVICE_NAME, Server, eventually, pod, workload,
};

fn faults(server: &Server) -> Vec<Value> {
    let mut log = server.log();
    log.retain(|event| event["reason"] == "object_invalid");
    log
}

async fn fault(server: &Server) -> Value {
    eventually("a fault is logged", || faults(server).into_iter().next()).await
}

#[tokio::test]
async fn garbage_is_named_by_file_document_object_and_field_and_the_rest_applies() {
    let bad = "apiVersion: v1\nkind: Service\nmetadata: {name: bad, namespace: shop}\n\
               spec: {ports: [{port: 99999}]}\n";
    let server = Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        (
            "mixed.yaml",
            &format!("{}---\n{bad}---\n{SERVICE}", pod("a", "node-1", "10.0.1.1")),
        ),
    ]);
    let event = fault(&server).await;
    assert!(
        event["file"].as_str().unwrap().ends_with("/mixed.yaml"),
        "{event}"
    );
    assert_eq!(event["document"], 2);
    assert_eq!(event["object"], "Service shop/bad");
    assert_eq!(event["field"], "spec.ports[0].port");
    assert!(event["problem"].as_str().unwrap().contains("99999"));
    assert!(!event["hint"].as_str().unwrap().is_empty());
    assert_eq!(server.metric("karst_controller_source_faulty").await, 1.0);

    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    let mirror = agent.mirror.lock().unwrap();
    assert!(mirror.workload(&workload("a")).is_some());
    assert!(mirror.addresses.contains_key(SERVICE_NAME));
    assert_eq!(mirror.addresses.len(), 2);
}

#[tokio::test]
async fn a_field_of_the_wrong_type_is_named() {
    let server = Server::start(&[(
        "pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop}\n\
         spec: {nodeName: [], containers: []}\n",
    )]);
    let event = fault(&server).await;
    assert_eq!(event["object"], "Pod shop/p");
    assert_eq!(event["field"], "spec.nodeName");
}

#[tokio::test]
async fn the_last_good_version_stays_while_the_file_is_faulty() {
    let server = Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        ("service.yaml", SERVICE),
    ]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    server.write(
        "service.yaml",
        &SERVICE.replace("port: 80,", "port: eighty,"),
    );
    fault(&server).await;
    // A change elsewhere shows that the fault did not stop the rest.
    server.write("a.yaml", &pod("a", "node-1", "10.0.1.1"));
    agent
        .see("the other change", |mirror| {
            mirror.workload(&workload("a")).cloned()
        })
        .await;
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .addresses
            .contains_key(SERVICE_NAME)
    );
    assert_eq!(faults(&server).len(), 1, "a fault is reported once");

    fs::remove_file(server.manifest("service.yaml")).unwrap();
    agent
        .see("the service goes with its file", |mirror| {
            (!mirror.addresses.contains_key(SERVICE_NAME)).then_some(())
        })
        .await;
    eventually("the fault is over", || {
        server.find_log(|event| event["message"] == "manifest corrected")
    })
    .await;
}

#[tokio::test]
async fn a_syntax_error_keeps_all_objects_of_the_file() {
    let both = format!("{SERVICE}---\n{}", pod("a", "node-1", "10.0.1.1"));
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT), ("both.yaml", &both)]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    server.write("both.yaml", "kind: [");
    let event = fault(&server).await;
    assert_eq!(event["field"], "syntax");
    server.write("b.yaml", &pod("b", "node-1", "10.0.1.2"));
    agent
        .see("the other change", |mirror| {
            mirror.workload(&workload("b")).cloned()
        })
        .await;
    let mirror = agent.mirror.lock().unwrap();
    assert!(mirror.addresses.contains_key(SERVICE_NAME));
    assert!(mirror.workload(&workload("a")).is_some());
}

#[tokio::test]
async fn a_document_that_is_deleted_deletes_its_object() {
    let both = format!("{SERVICE}---\n{}", pod("a", "node-1", "10.0.1.1"));
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT), ("both.yaml", &both)]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    server.write("both.yaml", SERVICE);
    agent
        .see("the pod is gone", |mirror| {
            mirror.workload(&workload("a")).is_none().then_some(())
        })
        .await;
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .addresses
            .contains_key(SERVICE_NAME)
    );
}

#[tokio::test]
async fn a_file_replaced_by_rename_is_read() {
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT)]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    for ip in ["10.0.1.1", "10.0.1.2"] {
        fs::write(server.manifest(".a.yaml.swp"), pod("a", "node-1", ip)).unwrap();
        fs::rename(server.manifest(".a.yaml.swp"), server.manifest("a.yaml")).unwrap();
        agent
            .see("the pod's address", |mirror| {
                let found = mirror.workload(&workload("a"))?.ip_addresses().ok()?;
                (found[0].to_string() == ip).then_some(())
            })
            .await;
    }
}

#[tokio::test]
async fn a_file_that_is_being_written_is_left_alone_until_it_is_closed() {
    use std::{
        io::Write as _,
        sync::mpsc::{self, RecvTimeoutError},
        thread,
        time::Duration,
    };
    let both = format!("{SERVICE}---\n{}", pod("a", "node-1", "10.0.1.1"));
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT), ("both.yaml", &both)]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    // Truncated, and half written, as seen in the middle of a slow write.
    let mut file = fs::File::create(server.manifest("both.yaml")).unwrap();
    file.write_all(SERVICE.as_bytes()).unwrap();
    // A file whose writer pauses for long is read as it is, and on a busy machine the other change may take long.
    let (stop, stopped) = mpsc::channel::<()>();
    let writer = thread::spawn(move || {
        let pause = Duration::from_millis(100);
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            file.write_all(b"\n").unwrap();
        }
        file
    });
    server.write("b.yaml", &pod("b", "node-1", "10.0.1.2"));
    agent
        .see("the other change", |mirror| {
            mirror.workload(&workload("b")).cloned()
        })
        .await;
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .workload(&workload("a"))
            .is_some()
    );
    drop(stop);
    let mut file = writer.join().unwrap();
    file.write_all(format!("---\n{}", pod("c", "node-1", "10.0.1.3")).as_bytes())
        .unwrap();
    drop(file);
    agent
        .see("the finished file", |mirror| {
            mirror.workload(&workload("c")).cloned()
        })
        .await;
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .workload(&workload("a"))
            .is_none()
    );
}

#[tokio::test]
async fn of_two_equal_objects_the_first_by_path_counts_and_both_are_named() {
    let server = Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        ("1.yaml", &pod("a", "node-1", "10.0.1.1")),
        ("2.yaml", &pod("a", "node-1", "10.0.1.2")),
    ]);
    let event = fault(&server).await;
    assert!(event["file"].as_str().unwrap().ends_with("/2.yaml"));
    assert!(
        event["problem"].as_str().unwrap().contains("/1.yaml"),
        "{event}"
    );
    assert_eq!(event["object"], "Pod shop/a");
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    let ip = |mirror: &crate::harness::Mirror| {
        mirror
            .workload(&workload("a"))
            .unwrap()
            .ip_addresses()
            .unwrap()[0]
            .to_string()
    };
    assert_eq!(ip(&agent.mirror.lock().unwrap()), "10.0.1.1");
    fs::remove_file(server.manifest("1.yaml")).unwrap();
    agent
        .see("the second one takes over", |mirror| {
            (ip(mirror) == "10.0.1.2").then_some(())
        })
        .await;
}

#[tokio::test]
async fn two_pods_with_one_uid_are_a_fault() {
    let server = Server::start(&[
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
        (
            "b.yaml",
            &pod("b", "node-1", "10.0.1.2").replace("uid-b", "uid-a"),
        ),
    ]);
    let event = fault(&server).await;
    assert_eq!(event["object"], "Pod shop/b");
    assert_eq!(event["field"], "metadata.uid");
}

#[tokio::test]
async fn a_mistyped_mode_on_a_pod_is_reported_and_the_namespace_counts() {
    let text = pod("a", "node-1", "10.0.1.1").replace(
        "{app: web}",
        "{app: web, karst.dev/dataplane-mode: ambiemt}",
    );
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT), ("a.yaml", &text)]);
    let event = fault(&server).await;
    assert_eq!(
        event["field"],
        "metadata.labels[\"karst.dev/dataplane-mode\"]"
    );
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    agent
        .see_tunnel(&workload("a"), karst_api::workload::TunnelProtocol::Hbone)
        .await;
}

#[tokio::test]
async fn folders_lists_and_json_are_read() {
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT)]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    fs::create_dir_all(server.manifest("deep/er")).unwrap();
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}",
        SERVICE.replace('\n', "\n  ")
    );
    fs::write(server.manifest("deep/er/list.yml"), list).unwrap();
    fs::write(
        server.manifest("deep/pod.json"),
        r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j","namespace":"shop"},
            "spec":{"nodeName":"node-1"},"status":{"podIP":"10.0.1.7"}}"#,
    )
    .unwrap();
    agent
        .see("both", |mirror| {
            mirror.workload(&workload("j"))?;
            mirror.addresses.get(SERVICE_NAME).cloned()
        })
        .await;
}

const POLICY: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
    metadata: {name: p, namespace: shop}\n\
    spec:\n  selector: {matchLabels: {app: web}}\n\
    \x20 rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/front]}}]}]\n";

const STRICT: &str = "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
    metadata: {name: default, namespace: karst-system}\nspec: {mtls: {mode: STRICT}}\n";

const STRICT_NAME: &str = "karst-system/istio_converted_static_strict";

/// Waits until the pod `a` lists these policies, and the agent has them.
async fn see_policies(agent: &Agent, expected: &[&str]) {
    let listed = |mirror: &crate::harness::Mirror| {
        let listed = mirror
            .workload(&workload("a"))?
            .authorization_policies
            .clone();
        (listed == expected).then_some(listed)
    };
    agent.see("the list of policies", listed).await;
    let mirror = agent.mirror.lock().unwrap();
    for name in expected {
        assert!(
            mirror.policies.contains_key(*name),
            "{name} came later than its mention"
        );
    }
}

#[tokio::test]
async fn policies_reach_agents_before_the_workloads_that_list_them() {
    let server = Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
    ]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    see_policies(&agent, &[]).await;
    server.write("strict.yaml", STRICT);
    see_policies(&agent, &[STRICT_NAME]).await;
    server.write("policy.yaml", POLICY);
    see_policies(&agent, &[STRICT_NAME, "shop/p"]).await;
    fs::remove_file(server.manifest("strict.yaml")).unwrap();
    see_policies(&agent, &["shop/p"]).await;
    agent
        .see("the policy is gone", |mirror| {
            (!mirror.policies.contains_key(STRICT_NAME)).then_some(())
        })
        .await;
    let mirror = agent.mirror.lock().unwrap();
    assert_eq!(mirror.policies["shop/p"].rules.len(), 1);
}

#[tokio::test]
async fn a_faulty_policy_is_named_and_refuses_all_the_same() {
    let faulty = POLICY.replace("principals", "principal");
    let server = Server::start(&[
        ("namespace.yaml", NAMESPACE_AMBIENT),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
        ("policy.yaml", &faulty),
    ]);
    let event = fault(&server).await;
    assert_eq!(event["object"], "AuthorizationPolicy shop/p");
    assert_eq!(event["field"], "spec.rules[0].from[0].source.principal");
    assert!(!event["hint"].as_str().unwrap().is_empty());
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    see_policies(&agent, &["shop/p"]).await;
    assert!(
        agent.mirror.lock().unwrap().policies["shop/p"]
            .rules
            .is_empty()
    );
    server.write("policy.yaml", POLICY);
    agent
        .see("the corrected policy", |mirror| {
            (mirror.policies.get("shop/p")?.rules.len() == 1).then_some(())
        })
        .await;
}

//! What a well-behaved agent sees.

use karst_api::{
    ADDRESS_TYPE, NODE_POD_TYPE,
    node::DataplaneMode,
    workload::{TunnelProtocol, address},
};
use karst_client::InitialSubscription;

use crate::harness::{
    Agent, NAMESPACE, NAMESPACE_AMBIENT, SERVICE, SERVICE_NAME, Server, eventually, pod, workload,
};

fn two_pods(namespace: &str) -> Server {
    Server::start(&[
        ("namespace.yaml", namespace),
        ("service.yaml", SERVICE),
        ("a.yaml", &pod("a", "node-1", "10.0.1.1")),
        ("b.yaml", &pod("b", "node-2", "10.0.2.1")),
    ])
}

#[tokio::test]
async fn initial_state_has_workloads_services_and_the_nodes_own_pods() {
    let server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;

    let mirror = agent.mirror.lock().unwrap();
    let names: Vec<&str> = mirror.addresses.keys().map(String::as_str).collect();
    assert_eq!(names, [&workload("a"), &workload("b"), SERVICE_NAME]);
    let a = mirror.workload(&workload("a")).unwrap();
    assert_eq!(a.tunnel_protocol(), TunnelProtocol::Hbone);
    assert_eq!(a.service_account, "web");
    assert_eq!(a.services[SERVICE_NAME].ports[0].target_port, 8080);
    let Some(address::Type::Service(service)) = &mirror.addresses[SERVICE_NAME].r#type else {
        panic!("it is a service");
    };
    assert_eq!(
        service.vips().unwrap(),
        ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]
    );
    let pods: Vec<&str> = mirror.node_pods.keys().map(String::as_str).collect();
    assert_eq!(pods, ["uid-a"]);
    let own = &mirror.node_pods["uid-a"];
    assert_eq!(own.dataplane_mode(), DataplaneMode::Ambient);
    assert_eq!(own.workload_uid, workload("a"));
    assert_eq!(own.trust_domain, "cluster.local");
}

#[tokio::test]
async fn a_label_added_live_reaches_the_tunnel_only_after_the_report() {
    let server = two_pods(NAMESPACE);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    agent.see_tunnel(&workload("a"), TunnelProtocol::None).await;

    server.write("namespace.yaml", NAMESPACE_AMBIENT);
    agent
        .see("the node is told to enrol the pod", |mirror| {
            let own = mirror.node_pods.get("uid-a")?;
            (own.dataplane_mode() == DataplaneMode::Ambient).then_some(())
        })
        .await;
    agent.see_tunnel(&workload("a"), TunnelProtocol::None).await;

    agent.ads.report_enrolment(vec!["uid-a".to_owned()]);
    agent
        .see_tunnel(&workload("a"), TunnelProtocol::Hbone)
        .await;
    // Nobody has reported the other one, and this node cannot speak for it.
    agent
        .ads
        .report_enrolment(vec!["uid-a".to_owned(), "uid-b".to_owned()]);
    eventually("the second report is in", || {
        server.find_log(|event| event["message"] == "enrolment reported" && event["reported"] == 2)
    })
    .await;
    agent.see_tunnel(&workload("b"), TunnelProtocol::None).await;
    assert!(
        !agent
            .mirror
            .lock()
            .unwrap()
            .history
            .iter()
            .any(|(_, name, there)| name == &workload("b") && !there)
    );
}

#[tokio::test]
async fn taking_the_label_back_takes_the_tunnel_back() {
    let server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    agent
        .see_tunnel(&workload("a"), TunnelProtocol::Hbone)
        .await;
    server.write("namespace.yaml", NAMESPACE);
    agent.see_tunnel(&workload("a"), TunnelProtocol::None).await;
    agent
        .see("the node is told to let the pod go", |mirror| {
            let own = mirror.node_pods.get("uid-a")?;
            (own.dataplane_mode() == DataplaneMode::None).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_restart_of_the_controller_opens_no_window_of_plain_text() {
    let mut server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    agent
        .see_tunnel(&workload("a"), TunnelProtocol::Hbone)
        .await;
    let before = agent.mirror.lock().unwrap().history.len();

    server.restart();
    let mut status = agent.ads.status();
    status.wait_for(|status| status.streams == 2).await.unwrap();
    // A change after the restart shows that the new stream has been served.
    server.write("c.yaml", &pod("c", "node-1", "10.0.1.3"));
    agent
        .see_tunnel(&workload("c"), TunnelProtocol::Hbone)
        .await;

    let mirror = agent.mirror.lock().unwrap();
    let news: Vec<&str> = mirror.history[before..]
        .iter()
        .map(|(_, name, _)| name.as_str())
        .collect();
    assert!(
        news.iter()
            .all(|name| *name == workload("c") || *name == "uid-c"),
        "only the difference was sent: {news:?}"
    );
}

#[tokio::test]
async fn the_report_is_repeated_to_a_new_controller() {
    let mut server = two_pods(NAMESPACE);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    agent.ads.report_enrolment(vec!["uid-a".to_owned()]);
    let reported = |server: &Server| {
        server.find_log(|event| event["message"] == "enrolment reported" && event["known"] == 1)
    };
    eventually("the report is in", || reported(&server)).await;
    server.restart();
    eventually("the report is in again", || reported(&server)).await;
}

#[tokio::test]
async fn a_pod_that_goes_is_removed() {
    let server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    std::fs::remove_file(server.manifest("a.yaml")).unwrap();
    agent
        .see("the pod is gone", |mirror| {
            (!mirror.addresses.contains_key(&workload("a")) && mirror.node_pods.is_empty())
                .then_some(())
        })
        .await;
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .addresses
            .contains_key(&workload("b"))
    );
}

#[tokio::test]
async fn a_rejected_resource_is_recorded_by_name_and_the_others_apply() {
    let server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::start(server.agent("node-1"));
    agent.mirror.lock().unwrap().reject.insert(workload("b"));
    agent.ready().await;

    let event = eventually("the rejection is logged", || {
        server.find_log(|event| event["reason"] == "xds_rejected")
    })
    .await;
    assert_eq!(event["resource"], workload("b"));
    assert_eq!(event["error"], "the test rejects it");
    assert_eq!(event["node"], "node-1");
    assert!(
        server
            .metric("karst_controller_xds_nacks_total{type=\"address\"}")
            .await
            >= 1.0
    );
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .addresses
            .contains_key(&workload("a"))
    );
    assert_eq!(agent.ads.status().borrow().rejected, 1);
    let report = || {
        let types = agent.ads.types();
        let of = types.into_iter().find(|one| one.type_url == ADDRESS_TYPE);
        of.expect("the type was asked for")
    };
    let nack = report().last_nack.expect("something was rejected");
    assert_eq!(nack.resources[0].name, workload("b"));
    assert_eq!(nack.resources[0].reason, "the test rejects it");
    assert!(!nack.over && !nack.nonce.is_empty(), "{nack:?}");
    assert_eq!(report().nacks, 1);

    // The next version is sent and, this time, taken.
    agent.mirror.lock().unwrap().reject.clear();
    server.write("b.yaml", &pod("b", "node-2", "10.0.2.2"));
    agent
        .see("the new version", |mirror| {
            mirror.workload(&workload("b")).cloned()
        })
        .await;
    let report = eventually("the answer is noted", || {
        Some(report()).filter(|report| report.last_nack.as_ref().is_some_and(|nack| nack.over))
    })
    .await;
    assert!(report.last_ack > report.last_nack.map(|nack| nack.at));
    assert!(report.acks >= 1 && report.nacks == 1 && report.synced);
}

async fn on_demand(name: &str, expected: &str) {
    let server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::with(server.agent("node-1"), InitialSubscription::OnDemand);
    agent.ready().await;
    assert!(agent.mirror.lock().unwrap().addresses.is_empty());

    agent.ads.subscribe(ADDRESS_TYPE, [name.to_owned()]);
    agent
        .see("the answer", |mirror| {
            mirror.addresses.get(expected).cloned()
        })
        .await;
    assert_eq!(agent.mirror.lock().unwrap().addresses.len(), 1);
}

#[tokio::test]
async fn on_demand_by_address() {
    on_demand("/10.0.2.1", &workload("b")).await;
}

#[tokio::test]
async fn on_demand_by_virtual_address() {
    on_demand("/10.96.0.10", SERVICE_NAME).await;
}

#[tokio::test]
async fn on_demand_by_uid() {
    on_demand("Kubernetes//Pod/shop/b", &workload("b")).await;
}

#[tokio::test]
async fn on_demand_by_hostname() {
    on_demand(SERVICE_NAME, SERVICE_NAME).await;
}

#[tokio::test]
async fn an_address_that_nobody_has_is_answered_and_followed() {
    let server = two_pods(NAMESPACE_AMBIENT);
    let agent = Agent::with(server.agent("node-1"), InitialSubscription::OnDemand);
    agent.ready().await;
    agent.ads.subscribe(ADDRESS_TYPE, ["/10.0.9.9".to_owned()]);
    agent
        .see("there is nothing", |mirror| {
            let nothing = (ADDRESS_TYPE.to_owned(), "/10.0.9.9".to_owned(), false);
            mirror.history.contains(&nothing).then_some(())
        })
        .await;
    server.write("late.yaml", &pod("late", "node-2", "10.0.9.9"));
    agent
        .see("the late pod", |mirror| {
            mirror.workload(&workload("late")).cloned()
        })
        .await;

    // After the subscription is taken back, changes are no longer told; those of another one are.
    agent
        .ads
        .unsubscribe(ADDRESS_TYPE, &["/10.0.9.9".to_owned()]);
    agent.ads.subscribe(ADDRESS_TYPE, [workload("b")]);
    agent
        .see("the other pod", |mirror| {
            mirror.workload(&workload("b")).cloned()
        })
        .await;
    std::fs::remove_file(server.manifest("late.yaml")).unwrap();
    std::fs::remove_file(server.manifest("b.yaml")).unwrap();
    agent
        .see("the other pod is gone", |mirror| {
            mirror.workload(&workload("b")).is_none().then_some(())
        })
        .await;
    assert!(
        agent
            .mirror
            .lock()
            .unwrap()
            .workload(&workload("late"))
            .is_some()
    );
}

#[tokio::test]
async fn a_pod_without_an_address_is_told_to_its_node_alone() {
    let pending = "apiVersion: v1\nkind: Pod\n\
        metadata: {name: p, namespace: shop, uid: uid-p}\n\
        spec: {nodeName: node-1, containers: [{name: c}]}\n";
    let server = Server::start(&[("namespace.yaml", NAMESPACE_AMBIENT), ("p.yaml", pending)]);
    let agent = Agent::start(server.agent("node-1"));
    agent.ready().await;
    let mirror = agent.mirror.lock().unwrap();
    assert!(mirror.addresses.is_empty());
    assert_eq!(
        mirror.node_pods["uid-p"].dataplane_mode(),
        DataplaneMode::Ambient
    );
    assert!(mirror.node_pods["uid-p"].addresses.is_empty());
    assert_eq!(agent.ads.held(NODE_POD_TYPE), 1);
}

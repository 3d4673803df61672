//! What a service says, and who its endpoints are.

use karst_api::workload::{
    AppProtocol, IpFamilies, NetworkMode,
    load_balancing::{HealthPolicy, Mode, Scope},
};
use serde_json::{Value, json};

use super::support::{Mesh, WEB, object, pod, service};

const IP: &str = "10.0.1.1";

#[test]
fn a_service_says_what_it_is() {
    let mesh = Mesh::new([service(json!({}))]);
    let found = mesh.service(WEB).unwrap();
    assert_eq!(found.hostname, "web.shop.svc.cluster.local");
    assert_eq!(found.vips().unwrap()[0].to_string(), "10.96.0.10");
    assert_eq!(found.ports[0].ports().unwrap(), (80, Some(8080)));
    assert_eq!(found.ports[0].app_protocol(), AppProtocol::Http11);
    assert_eq!(found.load_balancing, None);
    assert!(found.canonical);
    assert_eq!(mesh.0.aliased("/10.96.0.10").next().unwrap().name, WEB);
}

#[test]
fn a_headless_service_has_endpoints_and_no_address() {
    let headless = service(json!({"spec": {"clusterIP": "None", "clusterIPs": ["None"]}}));
    let mesh = Mesh::new([headless, pod("a", IP, json!({}))]);
    assert!(mesh.service(WEB).unwrap().addresses.is_empty());
    assert_eq!(mesh.ports("a"), Some(vec![(80, 8080)]));
}

#[test]
fn a_service_whose_address_is_not_allotted_yet_has_none() {
    let mesh = Mesh::new([service(json!({"spec": {"clusterIP": null}}))]);
    assert!(mesh.service(WEB).unwrap().addresses.is_empty());
}

#[test]
fn a_dual_stack_service_has_both_addresses() {
    let mesh = Mesh::new([service(json!({"spec": {
        "clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]}}))]);
    let found = mesh.service(WEB).unwrap();
    assert_eq!(found.vips().unwrap().len(), 2);
    assert_eq!(found.ip_families(), IpFamilies::Dual);
    assert_eq!(mesh.0.aliased("/fd00:96::10").count(), 1);
}

#[test]
fn families_are_passed_on() {
    let table = [
        (json!(null), IpFamilies::Automatic),
        (json!(["IPv4"]), IpFamilies::Ipv4Only),
        (json!(["IPv6"]), IpFamilies::Ipv6Only),
        (json!(["IPv6", "IPv4"]), IpFamilies::Dual),
    ];
    for (families, expected) in table {
        let mesh = Mesh::new([service(json!({"spec": {"ipFamilies": families}}))]);
        assert_eq!(mesh.service(WEB).unwrap().ip_families(), expected);
    }
}

#[test]
fn an_external_name_is_nothing_to_the_mesh() {
    let alias = json!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
    let mesh = Mesh::new([service(alias), pod("a", IP, json!({}))]);
    assert_eq!(mesh.service(WEB), None);
    assert_eq!(mesh.ports("a"), None);
}

/// Service port and target port of the pod with these ports of the service.
fn check_ports(what: &str, ports: Value, expected: &[(u32, u32)]) {
    let mesh = Mesh::new([
        service(json!({"spec": {"ports": ports}})),
        pod("a", IP, json!({})),
    ]);
    assert_eq!(mesh.ports("a").as_deref(), Some(expected), "{what}");
}

#[test]
fn target_ports_are_resolved_for_each_pod() {
    check_ports(
        "number",
        json!([{"port": 80, "targetPort": 8080}]),
        &[(80, 8080)],
    );
    check_ports("none", json!([{"port": 80}]), &[(80, 80)]);
    check_ports("zero", json!([{"port": 80, "targetPort": 0}]), &[(80, 80)]);
    check_ports(
        "name",
        json!([{"port": 80, "targetPort": "http"}]),
        &[(80, 8080)],
    );
    check_ports(
        "a name the pod lacks",
        json!([{"port": 80, "targetPort": "http"}, {"port": 81, "targetPort": "admin"}]),
        &[(80, 8080)],
    );
    check_ports(
        "a name of a UDP port",
        json!([{"port": 53, "targetPort": "dns"}]),
        &[],
    );
    check_ports(
        "UDP is left out",
        json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]),
        &[(53, 53)],
    );
    check_ports("no ports at all", json!([]), &[]);
}

#[test]
fn a_named_target_port_is_zero_in_the_service() {
    let mesh = Mesh::new([service(
        json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}}),
    )]);
    assert_eq!(
        mesh.service(WEB).unwrap().ports[0].ports().unwrap(),
        (80, None)
    );
}

#[test]
fn a_name_means_another_port_in_another_pod() {
    let other = json!({"spec": {"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9000}]}]}});
    let mesh = Mesh::new([
        service(json!({"spec": {"ports": [{"port": 80, "targetPort": "http"}]}})),
        pod("a", IP, json!({})),
        pod("b", "10.0.1.2", other),
    ]);
    assert_eq!(mesh.ports("a"), Some(vec![(80, 8080)]));
    assert_eq!(mesh.ports("b"), Some(vec![(80, 9000)]));
}

#[test]
fn restartable_init_containers_have_ports_and_others_do_not() {
    let init = |policy: Value| {
        json!({"spec": {"initContainers": [
        {"name": "i", "restartPolicy": policy, "ports": [{"name": "admin", "containerPort": 9901}]}]}})
    };
    let admin = service(json!({"spec": {"ports": [{"port": 80, "targetPort": "admin"}]}}));
    let mesh = Mesh::new([admin.clone(), pod("a", IP, init(json!("Always")))]);
    assert_eq!(mesh.ports("a"), Some(vec![(80, 9901)]));
    let mesh = Mesh::new([admin, pod("a", IP, init(json!(null)))]);
    assert_eq!(mesh.ports("a"), Some(vec![]));
}

#[test]
fn selectors_match_all_labels_in_their_own_namespace() {
    let table = [
        ("equal", json!({"app": "web"}), true),
        ("another value", json!({"app": "db"}), false),
        (
            "more than the pod has",
            json!({"app": "web", "tier": "front"}),
            false,
        ),
        ("empty", json!({"app": null}), false),
    ];
    for (what, selector, expected) in table {
        let mesh = Mesh::new([
            service(json!({"spec": {"selector": selector}})),
            pod("a", IP, json!({})),
        ]);
        assert_eq!(mesh.ports("a").is_some(), expected, "{what}");
    }
    let elsewhere = json!({"metadata": {"namespace": "other"}});
    let mesh = Mesh::new([service(elsewhere), pod("a", IP, json!({}))]);
    assert!(
        mesh.workload("a").unwrap().services.is_empty(),
        "another namespace"
    );
}

#[test]
fn a_host_network_pod_is_an_endpoint() {
    let mesh = Mesh::new([
        service(json!({})),
        pod("a", IP, json!({"spec": {"hostNetwork": true}})),
    ]);
    assert_eq!(mesh.ports("a"), Some(vec![(80, 8080)]));
    assert_eq!(
        mesh.workload("a").unwrap().network_mode(),
        NetworkMode::HostNetwork
    );
}

#[test]
fn preferences_become_load_balancing() {
    let close = vec![Scope::Network, Scope::Region, Scope::Zone];
    let node = vec![
        Scope::Network,
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
    ];
    let healthy = HealthPolicy::OnlyHealthy;
    let table = [
        (
            json!({"internalTrafficPolicy": "Local"}),
            vec![Scope::Node],
            Mode::Strict,
            healthy,
        ),
        (
            json!({"trafficDistribution": "PreferClose"}),
            close.clone(),
            Mode::Failover,
            healthy,
        ),
        (
            json!({"trafficDistribution": "PreferSameZone"}),
            close,
            Mode::Failover,
            healthy,
        ),
        (
            json!({"trafficDistribution": "PreferSameNode"}),
            node,
            Mode::Failover,
            healthy,
        ),
        (
            json!({"internalTrafficPolicy": "Local", "trafficDistribution": "PreferClose"}),
            vec![Scope::Node],
            Mode::Strict,
            healthy,
        ),
        (
            json!({"publishNotReadyAddresses": true}),
            vec![],
            Mode::UnspecifiedMode,
            HealthPolicy::AllowAll,
        ),
    ];
    for (spec, scopes, mode, health) in table {
        let mesh = Mesh::new([service(json!({"spec": spec.clone()}))]);
        let found = mesh.service(WEB).unwrap().load_balancing.unwrap();
        assert_eq!(
            found.routing_preference().collect::<Vec<_>>(),
            scopes,
            "{spec}"
        );
        assert_eq!(found.mode(), mode, "{spec}");
        assert_eq!(found.health_policy(), health, "{spec}");
    }
    let mesh = Mesh::new([service(
        json!({"spec": {"internalTrafficPolicy": "Cluster"}}),
    )]);
    assert_eq!(mesh.service(WEB).unwrap().load_balancing, None);
}

#[test]
fn what_the_mesh_does_not_keep_is_a_finding() {
    let table = [
        (
            json!({"sessionAffinity": "ClientIP"}),
            "spec.sessionAffinity",
        ),
        (
            json!({"trafficDistribution": "Nearby"}),
            "spec.trafficDistribution",
        ),
    ];
    for (spec, field) in table {
        let found = object(service(json!({"spec": spec}))).findings;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].field, field);
    }
    assert_eq!(
        object(service(json!({"spec": {"sessionAffinity": "None"}}))).findings,
        []
    );
}

#[test]
fn application_protocols_come_from_the_field_or_the_name() {
    let table = [
        (json!({"name": "http"}), AppProtocol::Http11),
        (json!({"name": "http-admin"}), AppProtocol::Http11),
        (json!({"name": "http2-x"}), AppProtocol::Http2),
        (json!({"name": "grpc-api"}), AppProtocol::Grpc),
        (json!({"name": "tcp-db"}), AppProtocol::Tcp),
        (json!({"name": "https"}), AppProtocol::Tls),
        (json!({"name": "mysql"}), AppProtocol::Unknown),
        (json!({"name": null}), AppProtocol::Unknown),
        (
            json!({"name": "http", "appProtocol": "grpc"}),
            AppProtocol::Grpc,
        ),
        (
            json!({"appProtocol": "kubernetes.io/h2c"}),
            AppProtocol::Http2,
        ),
        (
            json!({"appProtocol": "kubernetes.io/ws"}),
            AppProtocol::Http11,
        ),
    ];
    for (over, expected) in table {
        let mut port = json!({"port": 80});
        port.as_object_mut()
            .unwrap()
            .extend(over.as_object().unwrap().clone());
        let mesh = Mesh::new([service(json!({"spec": {"ports": [port]}}))]);
        assert_eq!(
            mesh.service(WEB).unwrap().ports[0].app_protocol(),
            expected,
            "{over}"
        );
    }
}

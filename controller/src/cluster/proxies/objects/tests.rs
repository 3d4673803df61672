use karst_core::{GatewayName, ProxyPort};

use super::*;
use crate::cluster::proxies::ProxySettings;

pub fn proxies() -> Proxies {
    Proxies {
        image: "karst.dev/waypoint:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        pull_secrets: Vec::new(),
        service_type: ServiceType::LoadBalancer,
        controller: "karst-controller.karst-system.svc:15012".to_owned(),
        audience: "karst-ca".to_owned(),
        trust_domain: "cluster.local".to_owned(),
        cluster_id: "Kubernetes".to_owned(),
        settings: ProxySettings::default(),
    }
}

pub fn wanted(class: ProxyClass, ports: &[u16]) -> ProxyWanted {
    let port = |port: &u16| ProxyPort {
        name: format!("port-{port}"),
        port: *port,
    };
    ProxyWanted {
        gateway: GatewayName::new("shop", "front"),
        uid: "uid-front".to_owned(),
        generation: 1,
        class,
        service_account: "front".to_owned(),
        ports: ports.iter().map(port).collect(),
        labels: BTreeMap::new(),
        annotations: BTreeMap::new(),
        addresses: Vec::new(),
    }
}

fn part(wanted: &ProxyWanted, proxies: &Proxies, part: Part) -> Value {
    let mut all = of(wanted, proxies).into_iter();
    all.find(|made| made.part == part).unwrap().object
}

#[test]
fn everything_is_the_gateways_and_says_so() {
    let mut waypoint = wanted(ProxyClass::Waypoint, &[15008]);
    waypoint.labels = BTreeMap::from([
        ("team".to_owned(), "a".to_owned()),
        (GATEWAY_LABEL.to_owned(), "somebody-else".to_owned()),
    ]);
    waypoint.annotations = BTreeMap::from([("note".to_owned(), "b".to_owned())]);
    let all = of(&waypoint, &proxies());
    let parts: Vec<Part> = all.iter().map(|made| made.part).collect();
    assert_eq!(parts, Part::ALL);
    for Made { object, .. } in all {
        let metadata = &object["metadata"];
        assert_eq!(metadata["name"], "front");
        assert_eq!(metadata["namespace"], "shop");
        for (label, value) in [
            (GATEWAY_LABEL, "front"),
            (CLASS_LABEL, "karst-waypoint"),
            ("app.kubernetes.io/managed-by", "karst-controller"),
            ("team", "a"),
        ] {
            assert_eq!(metadata["labels"][label], value, "{object}");
        }
        assert_eq!(metadata["annotations"]["note"], "b");
        let owner = &metadata["ownerReferences"][0];
        assert_eq!(
            (&owner["kind"], &owner["uid"]),
            (&json!("Gateway"), &json!("uid-front"))
        );
    }
}

#[test]
fn a_pod_has_no_privileges_and_one_token() {
    let deployment = part(
        &wanted(ProxyClass::Gateway, &[80, 443]),
        &proxies(),
        Part::Deployment,
    );
    assert!(
        deployment["spec"].get("replicas").is_none(),
        "that is the autoscaler's"
    );
    let template = &deployment["spec"]["template"];
    assert_eq!(
        template["metadata"]["labels"]["karst.dev/dataplane-mode"],
        "none"
    );
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], "front");
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let sysctl = &pod["securityContext"]["sysctls"][0]["name"];
    assert_eq!(sysctl, "net.ipv4.ip_unprivileged_port_start");
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "karst.dev/waypoint:1");
    let security = &container["securityContext"];
    assert_eq!(security["readOnlyRootFilesystem"], true);
    assert_eq!(security["allowPrivilegeEscalation"], false);
    assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
    let token = &pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "karst-ca");
    assert_eq!(pod["volumes"][1]["configMap"]["name"], "karst-ca-root-cert");
    let env = container["env"].to_string();
    for name in [
        "KARST_GATEWAY_NAME",
        "KARST_CONTROLLER",
        "KARST_TOKEN",
        "KARST_ROOT_CERT",
        "KARST_ZONE",
    ] {
        assert!(env.contains(name), "{name}");
    }
}

#[test]
fn only_low_ports_need_a_sysctl() {
    let waypoint = part(
        &wanted(ProxyClass::Waypoint, &[15008]),
        &proxies(),
        Part::Deployment,
    );
    let security = &waypoint["spec"]["template"]["spec"]["securityContext"];
    assert!(security.get("sysctls").is_none());
}

#[test]
fn a_waypoint_is_reached_inside_and_a_gateway_as_it_says() {
    let kind = |wanted: &ProxyWanted| {
        let service = part(wanted, &proxies(), Part::Service);
        service["spec"]["type"].as_str().unwrap().to_owned()
    };
    let annotated = |class: ProxyClass, value: &str| {
        let mut wanted = wanted(class, &[80]);
        wanted
            .annotations
            .insert(SERVICE_TYPE.to_owned(), value.to_owned());
        wanted
    };
    assert_eq!(kind(&wanted(ProxyClass::Gateway, &[80])), "LoadBalancer");
    assert_eq!(
        kind(&annotated(ProxyClass::Gateway, "NodePort")),
        "NodePort"
    );
    assert_eq!(
        kind(&annotated(ProxyClass::Gateway, "ExternalName")),
        "LoadBalancer"
    );
    assert_eq!(
        kind(&annotated(ProxyClass::Waypoint, "NodePort")),
        "ClusterIP"
    );
}

#[test]
fn a_service_has_the_gateways_ports_or_one_that_holds_its_address() {
    let mut gateway = wanted(ProxyClass::Gateway, &[80, 443]);
    gateway.addresses = vec!["example.org".to_owned(), "192.0.2.7".to_owned()];
    let service = part(&gateway, &proxies(), Part::Service);
    let ports = service["spec"]["ports"].as_array().unwrap();
    let numbers: Vec<&Value> = ports.iter().map(|port| &port["targetPort"]).collect();
    assert_eq!(numbers, [&json!(80), &json!(443)]);
    assert_eq!(service["spec"]["loadBalancerIP"], "192.0.2.7");
    let none = part(&wanted(ProxyClass::Gateway, &[]), &proxies(), Part::Service);
    assert_eq!(none["spec"]["ports"][0]["port"], READINESS_PORT);
}

#[test]
fn settings_reach_the_pods() {
    let mut proxies = proxies();
    proxies.pull_secrets = vec!["s".to_owned()];
    proxies.settings = ProxySettings::parse(
        r#"{"minReplicas": 3, "maxReplicas": 4, "cpuUtilization": 50, "logLevel": "debug", "nodeSelector": {"a": "b"},
            "tolerations": [{"operator": "Exists"}], "priorityClassName": "high", "resources": {"requests": {"cpu": "1"}}}"#,
    )
    .unwrap();
    let wanted = wanted(ProxyClass::Waypoint, &[15008]);
    let deployment = part(&wanted, &proxies, Part::Deployment);
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "s"}]));
    assert_eq!(pod["nodeSelector"], json!({"a": "b"}));
    assert_eq!(pod["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(pod["priorityClassName"], "high");
    assert_eq!(
        pod["containers"][0]["resources"],
        json!({"requests": {"cpu": "1"}})
    );
    let autoscaler = part(&wanted, &proxies, Part::Autoscaler);
    let spec = &autoscaler["spec"];
    assert_eq!(
        (&spec["minReplicas"], &spec["maxReplicas"]),
        (&json!(3), &json!(4))
    );
    assert_eq!(
        spec["metrics"][0]["resource"]["target"]["averageUtilization"],
        50
    );
}

#[test]
fn a_change_of_what_is_wanted_shows() {
    let applied = |object: &Value| object["metadata"]["annotations"][APPLIED].clone();
    let first = wanted(ProxyClass::Gateway, &[80]);
    let mut second = first.clone();
    second.labels.insert("team".to_owned(), "a".to_owned());
    for (a, b) in of(&first, &proxies()).iter().zip(of(&second, &proxies())) {
        assert_ne!(applied(&a.object), applied(&b.object), "{:?}", a.part);
    }
    let again = of(&first, &proxies());
    assert_eq!(again, of(&first, &proxies()));
}

/// The fields that we write are fields of the types.
#[test]
fn objects_are_of_their_types() {
    use k8s_openapi::api::{
        apps::v1::Deployment,
        autoscaling::v2::HorizontalPodAutoscaler,
        core::v1::{Service, ServiceAccount},
        policy::v1::PodDisruptionBudget,
    };
    fn typed<T: serde::de::DeserializeOwned + serde::Serialize>(object: &Value) {
        let typed: T = serde_json::from_value(object.clone()).unwrap();
        let back = serde_json::to_value(typed).unwrap();
        lost(object, &back, "");
    }
    fn lost(object: &Value, typed: &Value, path: &str) {
        match object {
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = format!("{path}.{name}");
                    let empty = value.as_object().is_some_and(Map::is_empty);
                    assert!(empty || !typed[name].is_null(), "there is no field {path}");
                    lost(value, &typed[name], &path);
                }
            }
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    lost(item, &typed[at], &format!("{path}[{at}]"));
                }
            }
            _ => {}
        }
    }
    let mut gateway = wanted(ProxyClass::Gateway, &[80]);
    gateway.addresses = vec!["192.0.2.7".to_owned()];
    for Made { part, object } in of(&gateway, &proxies()) {
        match part {
            Part::ServiceAccount => typed::<ServiceAccount>(&object),
            Part::Service => typed::<Service>(&object),
            Part::DisruptionBudget => typed::<PodDisruptionBudget>(&object),
            Part::Deployment => typed::<Deployment>(&object),
            Part::Autoscaler => typed::<HorizontalPodAutoscaler>(&object),
        }
    }
}

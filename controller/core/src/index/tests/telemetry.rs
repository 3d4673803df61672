//! Telemetry: what agents and proxies are told to report, and what is said of the objects.

use karst_api::telemetry as wire;
use karst_api::waypoint::Backend;
use serde_json::{Value, json};

use super::{
    support::{Mesh, merged, namespace, pod, service},
    support_l7::{gateway, key, short},
};
use crate::{ExtensionProviders, Kind, ProxyKind};

const COLLECTOR: &str = "obs/otel.obs.svc.cluster.local/4317";

pub(super) fn telemetry(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": {"name": name, "namespace": namespace, "generation": 3,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec})
}

pub(super) fn off(mode: &str) -> Value {
    json!({"accessLogging": [{"match": {"mode": mode}, "disabled": true}]})
}

fn filter(expression: &str) -> Value {
    json!({"accessLogging": [{"filter": {"expression": expression}}]})
}

pub(super) fn target(kind: &str, name: &str, spec: Value) -> Value {
    let group = match kind {
        "Service" => "",
        _ => "gateway.networking.k8s.io",
    };
    merged(
        json!({"targetRefs": [{"group": group, "kind": kind, "name": name}]}),
        spec,
    )
}

pub(super) fn collector() -> Value {
    service(json!({"metadata": {"name": "otel", "namespace": "obs"},
        "spec": {"clusterIP": "10.96.0.88", "selector": {"app": "otel"},
            "ports": [{"name": "grpc", "port": 4317}]}}))
}

pub(super) fn config(mesh: &mut Mesh, config: Value) {
    let (providers, findings) = ExtensionProviders::read(&config).unwrap();
    assert_eq!(findings.faults, Vec::<String>::new());
    mesh.0.set_extension_providers(providers);
}

pub(super) fn otel(name: &str) -> Value {
    json!({"name": name, "opentelemetry": {"service": "otel.obs.svc.cluster.local", "port": 4317}})
}

#[test]
fn the_example_of_the_readme_is_taken_whole() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(path).unwrap();
    let examples = text.split("```yaml\n").skip(1);
    let mut examples = examples.filter_map(|rest| rest.split("```").next());
    let example = examples.find(|text| text.contains("kind: Telemetry"));
    let example = crate::documents::yaml(example.unwrap()).unwrap();
    let mut mesh = mesh([]);
    mesh.apply(example);
    let mut key = key(Kind::Telemetry, "mesh");
    key.namespace = "karst-system".to_owned();
    assert_eq!(mesh.said(&key), ["Accepted=True/Accepted"]);
    let told = of_waypoint(&mesh);
    assert!(told.log_filter.contains("response.code >= 400"));
    assert_eq!(told.tracing.unwrap().sampling, 50_000);
}

/// A mesh with a pod, and the waypoint of its Service.
fn mesh(objects: impl IntoIterator<Item = Value>) -> Mesh {
    let first = [pod("web-1", "10.0.0.1", json!({})), collector()];
    let mut mesh = Mesh::bound(first.into_iter().chain(objects));
    config(&mut mesh, json!({"extensionProviders": [otel("otel")]}));
    mesh
}

fn of_pod(mesh: &Mesh) -> (wire::Reporting, wire::Reporting) {
    let told = mesh.node_pod("node-1", "web-1").unwrap().telemetry;
    let told = told.unwrap_or_default();
    (
        told.client.unwrap_or_default(),
        told.server.unwrap_or_default(),
    )
}

fn of_waypoint(mesh: &Mesh) -> wire::Reporting {
    mesh.frontend().unwrap().telemetry.unwrap_or_default()
}

fn said(mesh: &Mesh, name: &str) -> (Vec<String>, String) {
    let conditions = mesh.conditions(&key(Kind::Telemetry, name));
    let messages: Vec<_> = conditions.iter().map(|it| it.message.as_str()).collect();
    (conditions.iter().map(short).collect(), messages.join(" / "))
}

#[test]
fn the_whole_mesh_can_be_silent() {
    let mut mesh = mesh([]);
    assert_eq!(mesh.node_pod("node-1", "web-1").unwrap().telemetry, None);
    assert_eq!(mesh.frontend().unwrap().telemetry, None);
    let silent = telemetry("karst-system", "mesh", off("CLIENT_AND_SERVER"));
    let changes = mesh.apply(silent.clone());
    let uid = "uid-web-1".to_owned();
    assert!(changes.node_pods.contains(&("node-1".to_owned(), uid)));
    let (client, server) = of_pod(&mesh);
    assert!(client.log_disabled && server.log_disabled);
    assert!(of_waypoint(&mesh).log_disabled);
    mesh.delete(silent);
    assert_eq!(mesh.node_pod("node-1", "web-1").unwrap().telemetry, None);
    assert_eq!(mesh.frontend().unwrap().telemetry, None);
}

#[test]
fn modes_are_sides() {
    let mesh = mesh([telemetry("karst-system", "mesh", off("CLIENT"))]);
    let (client, server) = of_pod(&mesh);
    assert!(client.log_disabled && !server.log_disabled);
    // A waypoint stands for the servers.
    assert!(!of_waypoint(&mesh).log_disabled);
}

#[test]
fn the_narrowest_level_counts_by_section() {
    let traced =
        json!({"tracing": [{"providers": [{"name": "otel"}], "randomSamplingPercentage": 20}]});
    let mut mesh = mesh([
        telemetry("karst-system", "mesh", merged(off("SERVER"), traced)),
        telemetry("shop", "shop", filter("response.code >= 400")),
        telemetry("other", "other", off("SERVER")),
    ]);
    let tracing = |reporting: &wire::Reporting| {
        let tracing = reporting.tracing.as_ref().unwrap();
        (tracing.collector.clone(), tracing.sampling)
    };
    let (_, server) = of_pod(&mesh);
    assert_eq!(server.log_filter, "response.code >= 400");
    assert!(!server.log_disabled);
    // The log is the namespace's, the spans are the mesh's.
    assert_eq!(tracing(&server), (COLLECTOR.to_owned(), 200_000));
    assert_eq!(of_waypoint(&mesh), server);

    let selected = merged(
        off("SERVER"),
        json!({"selector": {"matchLabels": {"app": "web"}}}),
    );
    mesh.apply(telemetry("shop", "some", selected));
    assert!(of_pod(&mesh).1.log_disabled);
    assert!(!of_waypoint(&mesh).log_disabled, "selectors are for pods");

    mesh.apply(telemetry(
        "shop",
        "gateway",
        target("Gateway", "wp", filter("true")),
    ));
    assert_eq!(of_waypoint(&mesh).log_filter, "true");
    let half = json!({"tracing": [{"randomSamplingPercentage": 50}]});
    mesh.apply(telemetry("shop", "service", target("Service", "web", half)));
    let told = of_waypoint(&mesh);
    // Each field of tracing is that of the narrowest level which has it.
    assert_eq!(tracing(&told), (COLLECTOR.to_owned(), 500_000));
    assert_eq!(told.log_filter, "true");
    assert!(of_pod(&mesh).1.log_disabled, "targets are not for pods");

    let none = json!({"tracing": [{"disableSpanReporting": true}]});
    mesh.apply(telemetry("shop", "service", target("Service", "web", none)));
    assert_eq!(of_waypoint(&mesh).tracing, None);
}

#[test]
fn a_waypoint_gets_the_backend_of_its_collector() {
    let traced = json!({"tracing": [{"providers": [{"name": "otel"}]}]});
    let mut mesh = mesh([telemetry("karst-system", "mesh", traced)]);
    let backend: Backend = mesh.resource(ProxyKind::Backend, COLLECTOR).unwrap();
    assert_eq!(backend.port, 4317);
    let sampling = |mesh: &Mesh| of_waypoint(mesh).tracing.map(|tracing| tracing.sampling);
    assert_eq!(sampling(&mesh), Some(10_000), "one percent by default");
    let spans = |mesh: &Mesh| of_pod(mesh).0.tracing.is_some();
    assert!(spans(&mesh));
    // Without its Service there is nowhere to send to, until it comes back.
    mesh.delete(collector());
    assert_eq!(sampling(&mesh), None);
    assert!(!spans(&mesh));
    mesh.apply(collector());
    assert!(spans(&mesh) && sampling(&mesh).is_some());
    // Likewise without the provider.
    config(&mut mesh, json!({"extensionProviders": [otel("other")]}));
    assert!(!spans(&mesh));
    assert_eq!(sampling(&mesh), None);
    config(&mut mesh, json!({"extensionProviders": [otel("otel")]}));
    assert!(spans(&mesh));
}

#[test]
fn a_default_provider_counts_where_none_is_named() {
    let traced = json!({"tracing": [{"randomSamplingPercentage": 100}]});
    let mut mesh = mesh([telemetry("karst-system", "mesh", traced)]);
    assert_eq!(of_waypoint(&mesh).tracing, None);
    let default = json!({"extensionProviders": [otel("otel")],
        "defaultProviders": {"tracing": ["otel"]}});
    config(&mut mesh, default);
    let tracing = of_waypoint(&mesh).tracing.unwrap();
    assert_eq!(
        (tracing.provider.as_str(), tracing.sampling),
        ("otel", 1_000_000)
    );
}

#[test]
fn sampling_of_the_log_is_an_annotation() {
    let mut sampled = telemetry("shop", "t", json!({}));
    sampled["metadata"]["annotations"] = json!({"karst.dev/access-log-sampling": "12.5"});
    let mut mesh = mesh([sampled.clone()]);
    assert_eq!(of_pod(&mesh).0.log_sampling, Some(125_000));
    assert_eq!(of_waypoint(&mesh).log_sampling, Some(125_000));
    sampled["metadata"]["annotations"] = json!({"karst.dev/access-log-sampling": "200"});
    mesh.apply(sampled);
    // The last version without a mistake stays.
    assert_eq!(of_pod(&mesh).0.log_sampling, Some(125_000));
    let (conditions, message) = said(&mesh, "t");
    assert_eq!(conditions, ["Accepted=False/Invalid"]);
    assert!(message.contains("stays in force"), "{message}");
}

#[test]
fn tags_are_told() {
    let tags = json!({"tracing": [{"providers": [{"name": "otel"}], "customTags": {
        "zone": {"literal": {"value": "a"}},
        "tenant": {"header": {"name": "X-Tenant", "defaultValue": "none"}},
        "home": {"environment": {"name": "HOME"}}}}]});
    let mesh = mesh([telemetry("shop", "t", tags)]);
    let tags = of_waypoint(&mesh).tracing.unwrap().tags;
    let names: Vec<&str> = tags.iter().map(|tag| tag.name.as_str()).collect();
    assert_eq!(names, ["tenant", "zone"]);
    let header = wire::HeaderTag {
        name: "x-tenant".to_owned(),
        default_value: "none".to_owned(),
    };
    assert_eq!(tags[0].kind, Some(wire::span_tag::Kind::Header(header)));
    let (conditions, message) = said(&mesh, "t");
    assert_eq!(
        conditions[1],
        "karst.dev/FullyEnforced=False/UnsupportedValue"
    );
    assert!(message.contains("environment"), "{message}");
}

#[test]
fn the_status_says_what_is_not_as_written() {
    const ACCEPTED: &str = "Accepted=True/Accepted";
    const PARTLY: &str = "karst.dev/FullyEnforced=False/UnsupportedValue";
    let mut mesh = mesh([]);
    let mut check = |spec: Value, expected: &[&str], words: &[&str]| {
        let object = telemetry("shop", "t", spec);
        mesh.delete(object.clone());
        mesh.apply(object.clone());
        let (conditions, message) = said(&mesh, "t");
        assert_eq!(conditions, expected, "{object}: {message}");
        for word in words {
            assert!(message.contains(word), "{object}: {message}");
        }
        of_waypoint(&mesh)
    };
    check(json!({}), &[ACCEPTED], &["in namespace shop"]);
    check(off("SERVER"), &[ACCEPTED], &[]);
    let told = check(
        filter("response.cod == 1"),
        &[ACCEPTED, PARTLY],
        &["response.cod", "Everything is logged"],
    );
    assert_eq!(told, wire::Reporting::default());
    check(
        json!({"metrics": [{"overrides": []}]}),
        &[ACCEPTED, PARTLY],
        &["spec.metrics"],
    );
    let told = check(
        json!({"accessLogging": [{"providers": [{"name": "kafka"}], "disabled": true}]}),
        &[ACCEPTED, PARTLY],
        &["kafka"],
    );
    assert!(!told.log_disabled, "of others nothing is switched off");
    let told = check(
        json!({"accessLogging": [{"providers": [{"name": "envoy"}], "disabled": true}]}),
        &[ACCEPTED],
        &[],
    );
    assert!(told.log_disabled);
    let told = check(
        json!({"tracing": [{"providers": [{"name": "nobody"}]}]}),
        &[ACCEPTED, PARTLY],
        &["nobody", "There are no spans"],
    );
    assert_eq!(told.tracing, None);
    let invalid = &["Accepted=False/Invalid"];
    check(json!({"logging": []}), invalid, &["spec.logging"]);
    check(off("INBOUND"), invalid, &["mode"]);
    check(
        json!({"tracing": [{"providers": [{"name": "otel"}], "randomSamplingPercentage": 101}]}),
        invalid,
        &["randomSamplingPercentage"],
    );
    let bound = [ACCEPTED, "karst.dev/WaypointBound=True/WaypointBound"];
    check(target("Service", "web", off("SERVER")), &bound, &[]);
    check(
        target("Service", "gone", off("SERVER")),
        &["Accepted=False/TargetNotFound"],
        &["gone"],
    );
}

#[test]
fn of_two_for_the_same_the_older_counts() {
    let mut younger = telemetry("shop", "a", off("SERVER"));
    younger["metadata"]["creationTimestamp"] = json!("2026-01-03T00:00:00Z");
    let mut mesh = mesh([younger, telemetry("shop", "b", filter("true"))]);
    assert_eq!(of_waypoint(&mesh).log_filter, "true");
    let (conditions, message) = said(&mesh, "a");
    assert_eq!(conditions, ["Accepted=False/Conflicted"]);
    assert!(message.contains("shop/b"), "{message}");
    mesh.delete(telemetry("shop", "b", json!({})));
    assert!(of_waypoint(&mesh).log_disabled);
    assert_eq!(said(&mesh, "a").0, ["Accepted=True/Accepted"]);
}

fn younger(mut object: Value) -> Value {
    object["metadata"]["creationTimestamp"] = json!("2026-01-03T00:00:00Z");
    object
}

#[test]
fn of_two_for_one_target_the_younger_is_told_so() {
    let young = younger(telemetry(
        "shop",
        "a",
        target("Service", "web", off("SERVER")),
    ));
    let old = telemetry("shop", "b", target("Service", "web", filter("true")));
    let mut mesh = mesh([young.clone(), old.clone()]);
    assert_eq!(of_waypoint(&mesh).log_filter, "true");
    let (conditions, message) = said(&mesh, "a");
    assert_eq!(conditions[0], "Accepted=False/Conflicted", "{message}");
    assert!(message.contains("shop/b"), "{message}");
    assert_eq!(said(&mesh, "b").0[0], "Accepted=True/Accepted");
    // One of its targets is its own.
    let mut both = young;
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "wp"});
    let targets = both["spec"]["targetRefs"].as_array_mut().unwrap();
    targets.push(gateway);
    mesh.apply(both);
    let (conditions, message) = said(&mesh, "a");
    assert_eq!(conditions[0], "Accepted=True/Accepted");
    assert!(conditions[2].starts_with("karst.dev/FullyEnforced=False"));
    assert!(
        message.contains("shop/b is older and for Service web"),
        "{message}"
    );
    mesh.delete(old);
    assert_eq!(said(&mesh, "a").0.len(), 2);
    assert!(of_waypoint(&mesh).log_disabled);
}

#[test]
fn of_two_selectors_the_younger_is_told_what_it_loses() {
    let selecting =
        |labels: Value| merged(off("SERVER"), json!({"selector": {"matchLabels": labels}}));
    let old = telemetry("shop", "b", selecting(json!({"app": "web"})));
    let narrow = selecting(json!({"app": "web", "tier": "front"}));
    let mut mesh = mesh([old, younger(telemetry("shop", "a", narrow))]);
    let (conditions, message) = said(&mesh, "a");
    assert_eq!(conditions, ["Accepted=False/Conflicted"]);
    assert!(message.contains("shop/b"), "{message}");
    let crossing = selecting(json!({"tier": "front"}));
    mesh.apply(younger(telemetry("shop", "a", crossing)));
    let (conditions, message) = said(&mesh, "a");
    assert_eq!(conditions, ["Accepted=True/Accepted"]);
    assert!(
        message.contains("but for those that an older Telemetry selects too: shop/b"),
        "{message}"
    );
    let elsewhere = selecting(json!({"app": "api"}));
    mesh.apply(younger(telemetry("shop", "a", elsewhere)));
    assert!(!said(&mesh, "a").1.contains("shop/b"));
}

#[test]
fn one_whose_pods_or_targets_are_not_known_is_for_nobody() {
    let mut mesh = mesh([]);
    for whom in [
        json!({"selector": {"matchLabels": {"app": 5}}}),
        json!({"selector": {"matchExpressions": []}}),
        json!({"selector": "app=web"}),
        json!({"targetRef": {"kind": "Service"}}),
        json!({"targetRefs": "web"}),
    ] {
        let object = telemetry("shop", "t", merged(off("CLIENT_AND_SERVER"), whom.clone()));
        mesh.apply(object.clone());
        let (conditions, message) = said(&mesh, "t");
        assert_eq!(conditions, ["Accepted=False/Invalid"], "{whom}");
        assert!(message.contains("has no effect"), "{whom}: {message}");
        assert_eq!(of_waypoint(&mesh), wire::Reporting::default(), "{whom}");
        let (client, server) = of_pod(&mesh);
        assert!(!client.log_disabled && !server.log_disabled, "{whom}");
        mesh.delete(object);
    }
}

#[test]
fn mistakes_log_more_and_trace_less() {
    let traced = json!({"providers": [{"name": "otel"}], "randomSamplingPercentage": 100});
    let above = merged(off("SERVER"), json!({"tracing": [traced]}));
    let mut mesh = mesh([telemetry("karst-system", "mesh", above)]);
    let mut told = |spec: Value| {
        let object = telemetry("shop", "t", spec);
        mesh.apply(object.clone());
        assert_eq!(said(&mesh, "t").0[0], "Accepted=False/Invalid", "{object}");
        let told = of_pod(&mesh);
        mesh.delete(object);
        told
    };
    for entry in [
        json!({"match": {"mode": "INBOUND"}, "disabled": true}),
        json!({"match": {"metric": "ALL_METRICS"}, "disabled": true}),
        json!({"providers": [{"named": "karst"}], "disabled": true}),
        json!({"disabled": "true"}),
    ] {
        let (client, server) = told(json!({ "accessLogging": [entry] }));
        assert!(!client.log_disabled && !server.log_disabled, "{entry}");
    }
    let none = |reporting: &wire::Reporting| {
        let tracing = reporting.tracing.as_ref();
        tracing.is_none_or(|tracing| tracing.sampling == 0)
    };
    for entry in [
        json!({"match": {"mode": "INBOUND"}}),
        json!({"disableSpanReporting": "true"}),
        json!({"randomSamplingPercentage": "5"}),
        json!({"providers": [{"nam": "other"}]}),
        json!({"providers": "otel"}),
    ] {
        let (client, server) = told(json!({ "tracing": [entry] }));
        assert!(none(&client) && none(&server), "{entry}");
    }
}

#[test]
fn what_has_no_effect_is_told_by_its_field() {
    let mut mesh = mesh([]);
    let mut message = |spec: Value| {
        mesh.apply(telemetry("shop", "t", spec));
        let message = said(&mesh, "t").1;
        mesh.delete(telemetry("shop", "t", json!({})));
        message
    };
    let entry = |mode: &str| json!({"match": {"mode": mode}});
    let text =
        message(json!({"accessLogging": [entry("SERVER"), entry("CLIENT"), entry("SERVER")]}));
    assert!(
        text.contains("spec.accessLogging[0] has no effect"),
        "{text}"
    );
    assert!(!text.contains("accessLogging[1]"), "{text}");
    let provider = json!([{"name": "otel"}]);
    let traced = |mode: &str| merged(entry(mode), json!({ "providers": provider }));
    let text = message(json!({"tracing": [traced("SERVER"), traced("CLIENT_AND_SERVER")]}));
    assert!(text.contains("spec.tracing[0] has no effect"), "{text}");
    let text = message(json!({"tracing": [{"providers": [{"name": "otel", "port": 1}]}]}));
    assert!(text.contains("spec.tracing[0].providers[0].port"), "{text}");
    let literal = json!({"tag": {"literal": {"value": "a", "from": "b"}}});
    let text = message(json!({"tracing": [{"providers": provider, "customTags": literal}]}));
    assert!(text.contains("customTags[\"tag\"].literal.from"), "{text}");
    let header = json!({"tag": {"header": {"name": 5}}});
    let text = message(json!({"tracing": [{"providers": provider, "customTags": header}]}));
    assert!(text.contains("header.name"), "{text}");
    let many: Vec<Value> = (0..17).map(|n| json!({"name": format!("p{n}")})).collect();
    let text = message(json!({"tracing": [{"providers": many}]}));
    assert!(text.contains("providers has 17 entries"), "{text}");
}

#[test]
fn tracing_without_a_provider_anywhere_is_told() {
    const NONE: &str = "defaultProviders.tracing. There are no spans";
    let sampled = |percent: u32| json!({"tracing": [{"randomSamplingPercentage": percent}]});
    let mut mesh = mesh([telemetry("shop", "t", sampled(5))]);
    let text = said(&mesh, "t").1;
    assert!(text.contains(NONE), "{text}");
    // The mesh's names one.
    let traced = json!({"tracing": [{"providers": [{"name": "otel"}]}]});
    let above = telemetry("karst-system", "mesh", traced);
    mesh.apply(above.clone());
    assert!(!said(&mesh, "t").1.contains(NONE));
    assert!(of_waypoint(&mesh).tracing.is_some());
    mesh.delete(above);
    assert!(said(&mesh, "t").1.contains(NONE));
    let default = json!({"extensionProviders": [otel("otel")],
        "defaultProviders": {"tracing": ["otel"]}});
    config(&mut mesh, default);
    assert!(!said(&mesh, "t").1.contains(NONE));
    // The default cannot be used either.
    mesh.delete(collector());
    let text = said(&mesh, "t").1;
    assert!(text.contains("There are no spans"), "{text}");
}

#[test]
fn a_service_with_a_telemetry_needs_its_waypoint() {
    let plain = service(json!({"spec": {"ports": [
        {"name": "tcp-db", "port": 80, "targetPort": 8080, "appProtocol": "tcp"}]}}));
    let mut mesh = mesh([plain]);
    assert!(mesh.frontend().is_none(), "it has nothing to do there");
    let object = telemetry("shop", "t", target("Service", "web", off("SERVER")));
    mesh.apply(object.clone());
    let frontend = mesh.frontend().expect("it reports");
    assert!(frontend.telemetry.is_some_and(|told| told.log_disabled));
    assert!(
        mesh.service("shop/web.shop.svc.cluster.local")
            .unwrap()
            .waypoint
            .is_some()
    );
    mesh.delete(object);
    assert!(mesh.frontend().is_none());
}

#[test]
fn a_waypoint_gets_the_collectors_of_all_namespaces_that_it_serves() {
    let open = gateway(
        json!({"metadata": {"labels": {"karst.dev/waypoint-for": "workload"}},
        "spec": {"listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE",
            "allowedRoutes": {"namespaces": {"from": "All"}}}]}}),
    );
    let theirs = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "client",
        "labels": {"karst.dev/dataplane-mode": "ambient", "karst.dev/use-waypoint": "wp",
            "karst.dev/use-waypoint-namespace": "shop"}}});
    let pod = |name: &str, ip: &str| {
        let over = json!({"metadata": {"namespace": "client"}});
        super::support::pod(name, ip, over)
    };
    let traced = json!({"tracing": [{"providers": [{"name": "otel"}]}]});
    let traced = telemetry("client", "t", traced);
    let mut mesh = mesh([open, theirs, pod("c-1", "10.0.0.7")]);
    let has_collector = |mesh: &Mesh| {
        mesh.resources(ProxyKind::Backend)
            .contains(&COLLECTOR.to_owned())
    };
    assert!(!has_collector(&mesh));
    mesh.apply(traced.clone());
    assert!(has_collector(&mesh), "the Telemetry came after the pod");
    mesh.apply(pod("c-2", "10.0.0.8"));
    mesh.delete(pod("c-1", "10.0.0.7"));
    assert!(has_collector(&mesh));
    mesh.delete(pod("c-2", "10.0.0.8"));
    assert!(!has_collector(&mesh), "nobody is left");
    mesh.apply(pod("c-1", "10.0.0.7"));
    assert!(has_collector(&mesh), "the pod came after the Telemetry");
    mesh.delete(traced);
    assert!(!has_collector(&mesh));
}

#[test]
fn pods_outside_the_mesh_are_told_nothing() {
    let mut mesh = mesh([telemetry("karst-system", "mesh", off("CLIENT"))]);
    mesh.apply(namespace(None));
    let told = mesh.node_pod("node-1", "web-1").unwrap();
    assert_eq!(told.telemetry, None);
}

#[test]
fn collectors_are_read_from_the_mesh_configuration() {
    let check = |provider: Value, problem: Option<&str>| {
        let config = json!({"extensionProviders": [provider]});
        let (providers, findings) = ExtensionProviders::read(&config).unwrap();
        match problem {
            None => {
                assert_eq!(findings.faults, Vec::<String>::new());
                assert!(providers.collector("p").is_ok());
            }
            Some(problem) => {
                assert!(findings.faults[0].contains(problem), "{findings:?}");
                assert!(providers.collector("p").is_err());
            }
        }
        assert!(providers.get("p").is_err(), "it is no authorizer");
    };
    check(otel("p"), None);
    let with = |over: Value| merged(otel("p"), json!({ "opentelemetry": over }));
    check(with(json!({"port": null})), Some("port is missing"));
    check(with(json!({"http": {"path": "/v1/traces"}})), Some("http"));
    check(with(json!({"unknown": 1})), Some("unknown"));
    check(
        merged(otel("p"), json!({"zipkin": {}})),
        Some("exactly one kind"),
    );
}

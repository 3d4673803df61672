//! Telemetry: what agents and proxies are told to report, and what is said of the objects.

use karst_api::telemetry as wire;
use karst_api::waypoint::Backend;
use serde_json::{Value, json};

use super::{
    support::{Mesh, merged, namespace, pod, service},
    support_l7::{key, short},
};
use crate::{ExtensionProviders, Kind, ProxyKind};

const COLLECTOR: &str = "obs/otel.obs.svc.cluster.local/4317";

fn telemetry(namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "telemetry.istio.io/v1", "kind": "Telemetry",
        "metadata": {"name": name, "namespace": namespace, "generation": 3,
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": spec})
}

fn off(mode: &str) -> Value {
    json!({"accessLogging": [{"match": {"mode": mode}, "disabled": true}]})
}

fn filter(expression: &str) -> Value {
    json!({"accessLogging": [{"filter": {"expression": expression}}]})
}

fn target(kind: &str, name: &str, spec: Value) -> Value {
    let group = match kind {
        "Service" => "",
        _ => "gateway.networking.k8s.io",
    };
    merged(
        json!({"targetRefs": [{"group": group, "kind": kind, "name": name}]}),
        spec,
    )
}

fn collector() -> Value {
    service(json!({"metadata": {"name": "otel", "namespace": "obs"},
        "spec": {"clusterIP": "10.96.0.88", "selector": {"app": "otel"},
            "ports": [{"name": "grpc", "port": 4317}]}}))
}

fn config(mesh: &mut Mesh, config: Value) {
    let (providers, findings) = ExtensionProviders::read(&config).unwrap();
    assert_eq!(findings.faults, Vec::<String>::new());
    mesh.0.set_extension_providers(providers);
}

fn otel(name: &str) -> Value {
    json!({"name": name, "opentelemetry": {"service": "otel.obs.svc.cluster.local", "port": 4317}})
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
        json!({"tracing": [{"randomSamplingPercentage": 101}]}),
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

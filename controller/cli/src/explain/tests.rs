//! What is told, against what the agents and proxies decide.

use std::path::PathBuf;

use clap::Parser;
use serde_json::{Value, json};

use super::{Explanation, explain};
use crate::args::{Cli, Command, Objects};
use crate::source::{Document, Input, cluster, offline};
use crate::testing::ApiServer;

fn shop() -> Input {
    let files = vec![PathBuf::from(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/testdata/shop.yaml"
    ))];
    let args = Objects {
        files,
        ..Objects::default()
    };
    offline(&args).expect("reads").expect("some")
}

pub(super) fn without_policies() -> Input {
    let mut input = shop();
    let is_policy = |one: &Document| {
        one.value["apiVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("security"))
    };
    input.documents.retain(|one| !is_policy(one));
    input
}

fn ask(input: &Input, args: &[&str]) -> Explanation {
    let args = ["karst", "explain"].iter().chain(args);
    match Cli::try_parse_from(args).expect("parses").command {
        Command::Explain(args) => explain(&args, input).expect("explains"),
        other => panic!("not explain: {other:?}"),
    }
}

pub(super) fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Document {
    Document {
        value: json!({
            "apiVersion": "security.istio.io/v1", "kind": kind,
            "metadata": {"namespace": namespace, "name": name}, "spec": spec,
        }),
        place: None,
    }
}

fn policy(name: &str, action: &str, rules: Value) -> Document {
    object(
        "AuthorizationPolicy",
        "shop",
        name,
        json!({"action": action, "rules": rules}),
    )
}

/// What follows from what is told of each policy.
fn by_the_policies(hop: &super::Hop) -> bool {
    let of = |action: &'static str| {
        let policies = hop.policies.iter();
        policies.filter(move |one| !one.dry_run && one.action.as_deref() == Some(action))
    };
    !of("DENY").any(|one| one.matches)
        && (of("ALLOW").count() == 0 || of("ALLOW").any(|one| one.matches))
}

const CLIENTS: [&str; 5] = [
    "shop/cart",
    "shop/web",
    "plain/batch",
    "outside",
    "10.1.0.2",
];

#[test]
fn what_is_told_of_policies_comes_to_the_verdict() {
    let rules = [
        json!([]),
        json!([{}]),
        json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]),
        json!([{"from": [{"source": {"notPrincipals": ["*/sa/cart"]}}]}]),
        json!([{"from": [{"source": {"serviceAccounts": ["web"]}}, {"source": {"ipBlocks": ["192.0.2.0/24"]}}]}]),
        json!([{"to": [{"operation": {"ports": ["5432"]}}]}, {"from": [{"source": {"ipBlocks": ["10.1.0.1"]}}]}]),
        json!([{"when": [{"key": "source.principal", "notValues": ["cluster.local/ns/shop/*"]}]}]),
        json!([{"to": [{"operation": {"methods": ["GET"]}}]}]),
    ];
    let (mut allowed, mut denied) = (0, 0);
    for (first, one) in rules.iter().enumerate() {
        for (second, other) in rules.iter().enumerate() {
            let mut input = without_policies();
            input.documents.push(policy(
                "a",
                if first % 2 == 0 { "ALLOW" } else { "DENY" },
                one.clone(),
            ));
            input.documents.push(policy("b", "ALLOW", other.clone()));
            for client in CLIENTS {
                for port in ["5432", "5433"] {
                    let told = ask(&input, &[client, &format!("shop/db:{port}")]);
                    let [hop] = &told.hops[..] else {
                        panic!("{told:?}")
                    };
                    assert_eq!(
                        by_the_policies(hop),
                        hop.allowed,
                        "{client} {port} {first} {second}: {hop:#?}"
                    );
                    assert_eq!(told.allowed, hop.allowed);
                    for rule in hop.policies.iter().flat_map(|one| &one.rules) {
                        assert_eq!(rule.unmet.is_empty(), rule.matches, "{rule:?}");
                    }
                    *(if told.allowed {
                        &mut allowed
                    } else {
                        &mut denied
                    }) += 1;
                }
            }
        }
    }
    assert!(
        allowed > 100 && denied > 100,
        "{allowed} allowed, {denied} denied"
    );
}

#[test]
fn what_is_told_of_requests_comes_to_the_verdict() {
    let rules = [
        json!([]),
        json!([{"to": [{"operation": {"methods": ["GET"], "paths": ["/api/*"]}}]}]),
        json!([{"to": [{"operation": {"notPaths": ["/admin/{**}"]}}]}]),
        json!([{"when": [{"key": "request.headers[x-team]", "values": ["red"]}]}]),
        json!([{"from": [{"source": {"requestPrincipals": ["*"]}}]}]),
        json!([{"to": [{"operation": {"hosts": ["web.shop.*"]}}], "from": [{"source": {"serviceAccounts": ["shop/cart"]}}]}]),
    ];
    let targets = json!([{"kind": "Service", "group": "", "name": "web"}]);
    let (mut allowed, mut denied) = (0, 0);
    for one in &rules {
        for action in ["ALLOW", "DENY"] {
            let mut input = without_policies();
            let spec = json!({"action": action, "targetRefs": targets, "rules": one});
            input
                .documents
                .push(object("AuthorizationPolicy", "shop", "a", spec));
            for client in ["shop/cart", "shop/db"] {
                for (path, team) in [
                    ("/api/x", "red"),
                    ("/admin/x", "blue"),
                    ("/api/../admin/x", "red"),
                ] {
                    let told = ask(
                        &input,
                        &[
                            client,
                            "svc/web.shop:80",
                            "--path",
                            path,
                            "--header",
                            &format!("X-Team: {team}"),
                        ],
                    );
                    let hop = &told.hops[0];
                    assert_eq!(hop.by, "waypoint");
                    assert_eq!(
                        by_the_policies(hop),
                        hop.allowed,
                        "{client} {path} {action} {one}: {hop:#?}"
                    );
                    // What passes goes on to the pod, and what does not ends there.
                    assert_eq!(told.hops.len(), if hop.allowed { 2 } else { 1 });
                    *(if hop.allowed {
                        &mut allowed
                    } else {
                        &mut denied
                    }) += 1;
                }
            }
        }
    }
    assert!(
        allowed > 20 && denied > 20,
        "{allowed} allowed, {denied} denied"
    );
}

#[test]
fn the_mode_that_is_told_is_the_one_that_holds() {
    let modes = [
        None,
        Some("STRICT"),
        Some("PERMISSIVE"),
        Some("DISABLE"),
        Some("UNSET"),
    ];
    let ports = [
        json!({}),
        json!({"5432": {"mode": "STRICT"}}),
        json!({"5432": {"mode": "PERMISSIVE"}}),
    ];
    let mut cases = 0;
    for mesh in modes {
        for namespace in modes {
            for pod in modes {
                for except in &ports {
                    let mut input = without_policies();
                    let mut add = |namespace: &str, name: &str, spec: Value| {
                        input
                            .documents
                            .push(object("PeerAuthentication", namespace, name, spec));
                    };
                    if let Some(mode) = mesh {
                        add("karst-system", "mesh", json!({"mtls": {"mode": mode}}));
                    }
                    if let Some(mode) = namespace {
                        add("shop", "all", json!({"mtls": {"mode": mode}}));
                    }
                    if let Some(mode) = pod {
                        let selector = json!({"matchLabels": {"app": "db"}});
                        add(
                            "shop",
                            "pod",
                            json!({"selector": selector, "mtls": {"mode": mode}, "portLevelMtls": except}),
                        );
                    }
                    for port in [5432, 5433] {
                        let told = ask(&input, &["outside", &format!("shop/db:{port}")]);
                        let mtls = told.hops[0].mtls.as_ref().expect("mode");
                        assert_eq!(
                            mtls.mode == "STRICT",
                            !told.allowed,
                            "{mesh:?} {namespace:?} {pod:?} {except} {port}: {told:#?}"
                        );
                        cases += 1;
                    }
                }
            }
        }
    }
    assert_eq!(cases, 5 * 5 * 5 * 3 * 2);
}

#[test]
fn policies_on_trial_refuse_nothing_and_are_told() {
    let mut input = without_policies();
    let mut trial = policy("trial", "DENY", json!([{}]));
    trial.value["metadata"]["annotations"] = json!({"istio.io/dry-run": "true"});
    input.documents.push(trial);
    let told = ask(&input, &["shop/cart", "shop/db:5432"]);
    assert!(told.allowed);
    assert_eq!(
        told.hops[0].dry_run,
        ["shop/trial, rule 0 would refuse it, and only watches"]
    );
}

#[test]
fn nothing_passes_by_a_waypoint_that_cannot_take_it() {
    let mut input = shop();
    input
        .documents
        .retain(|one| one.value["metadata"]["name"] != "waypoint-1");
    let told = ask(&input, &["shop/cart", "svc/web.shop:80"]);
    assert_eq!(
        (told.allowed, told.hops[0].reason),
        (false, Some("waypoint_no_endpoints"))
    );
    let told = ask(&shop(), &["outside", "shop/web:8080"]);
    assert_eq!(
        (told.allowed, told.hops[0].reason),
        (false, Some("waypoint_required"))
    );
}

fn gateway(input: &mut Input, protocol: &str) {
    for text in [
        "{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: karst}, spec: {controllerName: karst.dev/gateway-controller}}".to_owned(),
        format!("{{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {{name: front, namespace: shop}}, spec: {{gatewayClassName: karst, listeners: [{{name: web, port: 80, {protocol}}}]}}}}"),
        "{apiVersion: v1, kind: Service, metadata: {name: front, namespace: shop}, spec: {clusterIP: 10.96.0.30, clusterIPs: [10.96.0.30], ports: [{name: web, port: 80}]}}".to_owned(),
        "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: front, namespace: shop}, spec: {parentRefs: [{name: front}], rules: [{matches: [{path: {value: /db}}], backendRefs: [{name: db, port: 5432}]}]}}".to_owned(),
    ] {
        let value = karst_core::documents::yaml(&text).expect("yaml");
        input.documents.push(Document { value, place: None });
    }
}

#[test]
fn a_gateway_decides_first_and_the_pod_behind_it_too() {
    let mut input = without_policies();
    gateway(&mut input, "protocol: HTTP");
    let args = |path: &'static str| ["outside", "svc/front.shop:80", "--path", path];
    let told = ask(&input, &args("/db/x"));
    assert!(told.allowed, "{told:#?}");
    let places: Vec<&str> = told.hops.iter().map(|hop| hop.by).collect();
    assert_eq!(places, ["gateway", "node_agent"]);
    let behind = told.hops[1]
        .identity
        .as_ref()
        .map(|id| id.principal().to_owned());
    assert_eq!(behind.as_deref(), Some("cluster.local/ns/shop/sa/front"));
    let told = ask(&input, &args("/x"));
    assert_eq!(
        (told.allowed, told.hops[0].reason),
        (false, Some("no_route"))
    );
    input.documents.push(policy(
        "nobody",
        "DENY",
        json!([{"from": [{"source": {"serviceAccounts": ["front"]}}]}]),
    ));
    let told = ask(&input, &args("/db/x"));
    assert_eq!(
        (told.allowed, told.hops[1].policy.as_deref()),
        (false, Some("shop/nobody"))
    );
}

#[test]
fn of_a_listener_without_its_certificate_nothing_is_said() {
    let mut input = without_policies();
    gateway(
        &mut input,
        "protocol: HTTPS, tls: {certificateRefs: [{name: nowhere}]}",
    );
    let args =
        Cli::try_parse_from(["karst", "explain", "outside", "svc/front.shop:80"]).expect("parses");
    let Command::Explain(args) = args.command else {
        panic!("not explain")
    };
    match explain(&args, &input) {
        Err(failure) => assert_eq!(failure.reason, "listener_unknown"),
        Ok(told) => assert!(
            told.hops[0].by == "gateway" && told.hops[0].at == "shop/front",
            "{told:#?}"
        ),
    }
}

#[test]
fn pods_alike_are_told_of_once() {
    let mut input = shop();
    let db = input
        .documents
        .iter()
        .find(|one| one.value["metadata"]["name"] == "db" && one.value["kind"] == "Pod");
    let mut other = db.expect("db").clone();
    other.value["metadata"]["name"] = json!("db-2");
    other.value["metadata"]["uid"] = json!("u-db-2");
    other.value["status"]["podIP"] = json!("10.1.0.33");
    other.value["status"]["podIPs"] = json!([{"ip": "10.1.0.33"}]);
    input.documents.push(other);
    let told = ask(&input, &["shop/cart", "svc/db.shop:5432"]);
    assert_eq!(told.hops.len(), 1);
    assert_eq!(told.hops[0].alike.len(), 1);
}

#[tokio::test]
async fn a_cluster_says_the_same_as_its_manifests() {
    let (server, client) = ApiServer::start().await;
    for document in &shop().documents {
        let value = &document.value;
        let text = |pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let group = match text("/apiVersion") {
            "v1" => "/api/v1".to_owned(),
            other => format!("/apis/{other}"),
        };
        let plural = match text("/kind") {
            "GatewayClass" => "gatewayclasses".to_owned(),
            "AuthorizationPolicy" => "authorizationpolicies".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        let place = match text("/metadata/namespace") {
            "" => String::new(),
            namespace => format!("/namespaces/{namespace}"),
        };
        server.put(
            &format!("{group}{place}/{plural}/{}", text("/metadata/name")),
            value.clone(),
        );
    }
    let input = cluster(&Objects::default(), &client).await.expect("reads");
    assert!(server.writes().is_empty(), "{:?}", server.writes());
    for args in [
        &["shop/cart", "svc/web.shop:80", "--path", "/api/x"][..],
        &["shop/cart", "svc/web.shop:80", "--method", "POST"],
        &["plain/batch", "svc/db.shop:5432"],
    ] {
        let (of_cluster, of_files) = (ask(&input, args), ask(&shop(), args));
        assert_eq!(of_cluster.verdict, of_files.verdict);
        assert_eq!(of_cluster.hops, of_files.hops);
    }
}

fn entry(spec: Value) -> Document {
    Document {
        value: json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"namespace": "shop", "name": "api"}, "spec": spec,
        }),
        place: None,
    }
}

/// A shop whose pods have that egress mode.
fn with_egress(mode: &str) -> Input {
    let mut input = shop();
    let shop = input
        .documents
        .iter_mut()
        .find(|one| one.value["kind"] == "Namespace" && one.value["metadata"]["name"] == "shop");
    shop.expect("shop").value["metadata"]["labels"]["karst.dev/egress"] = json!(mode);
    input
}

#[test]
fn what_is_outside_is_for_the_egress_mode_and_service_entries() {
    let spec = |over: Value| {
        let mut spec = json!({"hosts": ["api.example.com"], "addresses": ["198.51.100.0/24"],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]});
        let fields = over.as_object().expect("fields").clone();
        spec.as_object_mut().expect("fields").extend(fields);
        entry(spec)
    };
    let outside = &["shop/cart", "198.51.100.7:443"];
    let cases = [
        ("ALLOW_ANY", None, true),
        ("REGISTRY_ONLY", None, false),
        // A mistake closes.
        ("registry_only", None, false),
        ("REGISTRY_ONLY", Some(json!({})), true),
        (
            "REGISTRY_ONLY",
            Some(json!({"addresses": ["198.51.100.8"]})),
            false,
        ),
        (
            "REGISTRY_ONLY",
            Some(json!({"ports": [{"number": 8443, "name": "tls", "protocol": "TLS"}]})),
            false,
        ),
        ("REGISTRY_ONLY", Some(json!({"exportTo": ["."]})), true),
    ];
    for (mode, over, allowed) in cases {
        let mut input = with_egress(mode);
        input.documents.extend(over.clone().map(spec));
        let told = ask(&input, outside);
        let [hop] = &told.hops[..] else {
            panic!("{told:#?}")
        };
        assert_eq!(told.allowed, allowed, "{mode} {over:?}: {told:#?}");
        assert_eq!(hop.by, "client_agent");
        assert_eq!(hop.reason, (!allowed).then_some("egress_denied"));
        let named = hop.because.contains("ServiceEntry shop/api ");
        assert_eq!(named, allowed && over.is_some(), "{}", hop.because);
    }
    // Nobody holds back a client without an agent.
    let told = ask(&with_egress("REGISTRY_ONLY"), &["plain/batch", outside[1]]);
    assert!(told.allowed && told.hops.is_empty(), "{told:#?}");
}

#[test]
fn an_entry_is_for_those_it_is_exported_to() {
    for (export, allowed) in [(".", false), ("*", true)] {
        let mut input = with_egress("REGISTRY_ONLY");
        let mut of_other = entry(
            json!({"hosts": ["api.example.com"], "addresses": ["198.51.100.7"],
            "exportTo": [export],
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]}),
        );
        of_other.value["metadata"]["namespace"] = json!("plain");
        input.documents.push(of_other);
        let told = ask(&input, &["shop/cart", "198.51.100.7:443"]);
        assert_eq!(told.allowed, allowed, "{export}: {told:#?}");
    }
}

#[test]
fn endpoints_of_an_entry_are_gone_to_as_the_mesh_would() {
    let with = |endpoints: Value| {
        let mut input = with_egress("REGISTRY_ONLY");
        input
            .documents
            .push(entry(json!({"hosts": ["api.example.com"],
            "addresses": ["198.51.100.7"], "resolution": "STATIC", "endpoints": endpoints,
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]})));
        ask(&input, &["shop/cart", "198.51.100.7:443"])
    };
    let told = with(json!([{"address": "203.0.113.1"}, {"address": "203.0.113.2"}]));
    assert!(told.allowed, "{told:#?}");
    for address in ["203.0.113.1:443", "203.0.113.2:443"] {
        assert!(
            told.way.iter().any(|way| way.contains(address)),
            "{told:#?}"
        );
    }
}

/// A shop that has a provider `authz`, unless its configuration is another, and a CUSTOM policy that asks `asked`.
fn with_custom(config: Option<&str>, asked: &str) -> Input {
    let mut input = without_policies();
    let documents = [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "authz", "namespace": "shop"},
            "spec": {"clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "selector": {"app": "db"},
                "ports": [{"name": "grpc", "port": 9000}]}}),
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "shop", "name": "ask"},
            "spec": {"action": "CUSTOM", "provider": {"name": asked},
                "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rules": [{"to": [{"operation": {"paths": ["/admin/*"]}}]}]}}),
    ];
    let map = config.map(|config| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "karst-mesh-config", "namespace": "karst-system"}, "data": {"mesh": config}})
    });
    let documents = documents.into_iter().chain(map);
    let documents = documents.map(|value| Document { value, place: None });
    input.documents.extend(documents);
    input
}

const MESH: &str = "extensionProviders:
- name: authz
  envoyExtAuthzGrpc: {service: authz.shop.svc.cluster.local, port: 9000}
";

#[test]
fn whom_custom_policies_ask_is_said_and_not_answered() {
    let args = |path| ["shop/cart", "svc/web.shop:80", "--path", path];
    let mut input = with_custom(Some(MESH), "authz");
    let told = ask(&input, &args("/admin/x"));
    let asks = told.hops[0].asks.as_ref().expect("asks");
    assert_eq!((&*asks.provider, asks.answer), ("authz", "unknown"));
    assert_eq!(asks.policies, ["shop/ask"]);
    assert!(told.allowed, "{told:#?}");
    assert!(told.verdict.starts_with("ALLOWED IF provider authz allows"));
    assert!(super::words::text(&told).contains("its answer is not known here"));
    // Where no rule matches nobody is asked.
    let told = ask(&input, &args("/x"));
    assert!(told.hops[0].asks.is_none() && told.allowed, "{told:#?}");
    assert!(told.verdict.starts_with("ALLOWED: "), "{}", told.verdict);
    // What a DENY policy refuses, no provider lets in.
    let mut deny = policy("deny", "DENY", json!([{}]));
    deny.value["spec"]["targetRefs"] = json!([{"group": "", "kind": "Service", "name": "web"}]);
    input.documents.push(deny);
    let told = ask(&input, &args("/admin/x"));
    assert!(!told.allowed && told.hops[0].asks.is_some(), "{told:#?}");
    assert_eq!(told.hops[0].policy.as_deref(), Some("shop/deny"));
}

#[test]
fn where_no_provider_can_be_asked_it_is_refused() {
    let args = |path| ["shop/cart", "svc/web.shop:80", "--path", path];
    for (config, asked) in [(Some(MESH), "other"), (None, "authz"), (Some(""), "authz")] {
        let input = with_custom(config, asked);
        let told = ask(&input, &args("/admin/x"));
        let hop = &told.hops[0];
        assert!(!told.allowed && hop.asks.is_none(), "{told:#?}");
        assert_eq!(hop.reason, Some("custom_provider_invalid"));
        let no_config = hop.because.contains("--mesh-config");
        assert_eq!(no_config, config.is_none(), "{}", hop.because);
        assert!(ask(&input, &args("/x")).allowed);
    }
    // The same without the ConfigMap, with a file.
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), MESH).expect("writes");
    let path = file.path().to_str().expect("text");
    let args = [&args("/admin/x")[..], &["--mesh-config", path]].concat();
    let told = ask(&with_custom(None, "authz"), &args);
    assert!(told.allowed && told.hops[0].asks.is_some(), "{told:#?}");
}

//! Each code by a mistake and by its twin without it, and rules that are said never to decide.

use std::collections::BTreeSet;
use std::path::PathBuf;

use karst_bpf_common::policy::{Attributes, Identity};
use serde_json::{Value, json};

use super::context::Reach;
use super::finding::{self, Finding};
use super::plaintext::Metrics;
use super::schema::Schemas;
use super::{analyze, codes};
use crate::args::Objects;
use crate::explain::World;
use crate::source::{Document, Input, offline};

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

fn document(text: &str) -> Document {
    Document {
        value: karst_core::documents::yaml(text).expect("yaml"),
        place: None,
    }
}

fn found_of(input: &Input, reach: Reach, metrics: &Metrics) -> Vec<Finding> {
    analyze(input, reach, Schemas::of_chart().expect("chart"), metrics)
}

/// What is found in the shop with these objects besides, in place of those of the same name.
fn found(objects: &[&str]) -> Vec<Finding> {
    let mut input = shop();
    let name = |value: &Value| {
        let of = |field: &str| {
            value
                .pointer(field)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        (of("/kind"), of("/metadata/namespace"), of("/metadata/name"))
    };
    for object in objects {
        let object = document(object);
        input
            .documents
            .retain(|one| name(&one.value) != name(&object.value));
        input.documents.push(object);
    }
    let mut findings = found_of(&input, Reach::Manifests, &Metrics::default());
    findings.retain(|one| one.code != &codes::NO_SCHEMA);
    findings
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {{namespace: {namespace}, name: {name}}}, spec: {spec}}}"
    )
}

fn route(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: {kind}, metadata: {{namespace: shop, name: {name}}}, spec: {spec}}}"
    )
}

fn service(name: &str, labels: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{namespace: shop, name: {name}, labels: {labels}}}, spec: {{clusterIP: 10.96.0.20, clusterIPs: [10.96.0.20], selector: {{app: web}}, ports: [{{name: http, port: 80}}]}}}}"
    )
}

fn peer(name: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {{namespace: shop, name: {name}}}, spec: {spec}}}"
    )
}

/// A code, objects with the mistake, where it is said to be, and the same objects without.
struct Case {
    code: &'static codes::Code,
    bad: Vec<String>,
    field: &'static str,
    good: Vec<String>,
}

fn case(code: &'static codes::Code, field: &'static str, bad: &[String], good: &[String]) -> Case {
    Case {
        code,
        bad: bad.to_vec(),
        field,
        good: good.to_vec(),
    }
}

fn telemetry(name: &str, created: &str, selector: &str) -> String {
    format!(
        "{{apiVersion: telemetry.istio.io/v1, kind: Telemetry, metadata: {{namespace: shop, name: {name}, \
         creationTimestamp: '{created}'}}, spec: {{{selector}accessLogging: [{{disabled: true}}]}}}}"
    )
}

const WEB: &str = "parentRefs: [{kind: Service, group: '', name: web}]";

fn cases() -> Vec<Case> {
    let web = |rules: &str| format!("{{{WEB}, rules: {rules}}}");
    let at = |path: &str| {
        format!(
            "[{{matches: [{{path: {{value: {path}}}}}], backendRefs: [{{name: web, port: 80}}]}}]"
        )
    };
    let to = |backend: &str| web(&format!("[{{backendRefs: [{{{backend}}}]}}]"));
    let one = |text: String| [text];
    vec![
        case(&codes::OBJECT_INVALID, "spec.ports[0].port",
            &one("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: x}, spec: {ports: [{port: eighty}]}}".to_owned()),
            &one("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: x}, spec: {ports: [{port: 80}]}}".to_owned())),
        case(&codes::OBJECT_INVALID, "spec.rules[0].to[0].operation.ports[0]",
            &one(policy("shop", "x", "{rules: [{to: [{operation: {ports: [http]}}]}]}")),
            &one(policy("shop", "x", "{rules: [{to: [{operation: {ports: ['80']}}]}]}"))),
        case(&codes::UNKNOWN_FIELD, "spec.rules[0].from[0].source.namespace",
            &one(policy("shop", "x", "{rules: [{from: [{source: {namespace: [shop]}}]}]}")),
            &one(policy("shop", "x", "{rules: [{from: [{source: {namespaces: [shop]}}]}]}"))),
        case(&codes::UNKNOWN_FIELD, "spec.mtls.modus",
            &one(peer("default", "{mtls: {modus: STRICT}}")),
            &one(peer("default", "{mtls: {mode: STRICT}}"))),
        case(&codes::LABEL_UNKNOWN, "metadata.labels[\"karst.dev/use-waypoints\"]",
            &one(service("x", "{karst.dev/use-waypoints: waypoint}")),
            &one(service("x", "{karst.dev/use-waypoint: waypoint}"))),
        case(&codes::LABEL_UNKNOWN, "metadata.labels[\"karst.dev/waypoint-enforcement\"]",
            &one(service("x", "{karst.dev/waypoint-enforcement: 'off'}")),
            &one(service("x", "{karst.dev/waypoint-enforcement: disabled}"))),
        case(&codes::RULE_SHADOWED, "spec.rules[0]",
            &one(policy("shop", "x", "{rules: [{from: [{source: {namespaces: [shop]}}]}, {}]}")),
            &one(policy("shop", "x", "{rules: [{from: [{source: {namespaces: [shop]}}]}, {to: [{operation: {ports: ['1']}}]}]}"))),
        // One of the mesh covers one of a namespace, but not the other way round.
        case(&codes::RULE_SHADOWED, "spec.rules[0]",
            &[policy("karst-system", "x", "{action: DENY, rules: [{from: [{source: {namespaces: ['*']}}]}]}"),
                policy("shop", "w", "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}")],
            &[policy("karst-system", "x", "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}"),
                policy("shop", "w", "{action: DENY, rules: [{from: [{source: {namespaces: ['*']}}]}]}")]),
        // A policy for some pods covers none for all.
        case(&codes::RULE_SHADOWED, "spec.rules[0]",
            &[policy("shop", "x", "{rules: [{}]}"), policy("shop", "w", "{selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ['1']}}]}]}")],
            &[policy("shop", "x", "{selector: {matchLabels: {app: cart}}, rules: [{}]}"), policy("shop", "w", "{selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ['1']}}]}]}")]),
        case(&codes::RULE_DUPLICATE, "spec.rules[1]",
            &one(policy("shop", "x", "{rules: [{from: [{source: {namespaces: [shop]}}]}, {from: [{source: {namespaces: [shop]}}]}]}")),
            &one(policy("shop", "x", "{rules: [{from: [{source: {namespaces: [shop]}}]}, {from: [{source: {namespaces: [plain]}}]}]}"))),
        case(&codes::ALLOW_MOOT, "spec.rules[0]",
            &[policy("shop", "x", "{action: DENY, rules: [{}]}"), policy("shop", "w", "{rules: [{from: [{source: {namespaces: [shop]}}]}]}")],
            &[policy("plain", "x", "{action: DENY, rules: [{}]}"), policy("shop", "w", "{rules: [{from: [{source: {namespaces: [shop]}}]}]}")]),
        case(&codes::ALLOW_NOTHING, "spec.rules", &one(policy("plain", "x", "{}")), &one(policy("plain", "x", "{rules: [{}]}"))),
        case(&codes::SELECTOR_MATCHES_NOTHING, "spec.selector.matchLabels",
            &one(policy("shop", "x", "{selector: {matchLabels: {app: wep}}, rules: [{}]}")),
            &one(policy("shop", "x", "{selector: {matchLabels: {app: web}}, rules: [{}]}"))),
        case(&codes::TARGET_NOT_FOUND, "spec.targetRefs",
            &one(policy("shop", "x", "{targetRefs: [{kind: Service, group: '', name: wep}], rules: [{}]}")),
            &one(policy("shop", "x", "{action: DENY, targetRefs: [{kind: Service, group: '', name: web}], rules: [{to: [{operation: {methods: [PUT]}}]}]}"))),
        case(&codes::L7_WITHOUT_WAYPOINT, "spec.rules[0].to[0].operation.methods",
            &one(policy("plain", "x", "{rules: [{to: [{operation: {methods: [GET]}}]}]}")),
            &one(policy("plain", "x", "{rules: [{to: [{operation: {ports: ['80']}}]}]}"))),
        case(&codes::L7_WITHOUT_WAYPOINT, "spec.targetRefs",
            &one(policy("shop", "x", "{targetRefs: [{kind: Service, group: '', name: db}], rules: [{to: [{operation: {methods: [GET]}}]}]}")),
            &one(policy("shop", "x", "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{to: [{operation: {methods: [PUT]}}]}]}"))),
        case(&codes::NOT_FULLY_ENFORCED, "spec.rules[0].from[0].source.trustDomains",
            &one(policy("plain", "x", "{action: DENY, rules: [{from: [{source: {trustDomains: [td]}}]}]}")),
            &one(policy("plain", "x", "{action: DENY, rules: [{from: [{source: {principals: ['td/*']}}]}]}"))),
        case(&codes::DRY_RUN, "",
            &one("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: plain, name: x, annotations: {istio.io/dry-run: 'true'}}, spec: {rules: [{}]}}".to_owned()),
            &one("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: plain, name: x, annotations: {istio.io/dry-run: 'false'}}, spec: {rules: [{}]}}".to_owned())),
        case(&codes::POLICY_UNSUPPORTED, "",
            &one(policy("plain", "x", "{action: AUDIT, rules: [{}]}")),
            &one(policy("plain", "x", "{action: DENY, rules: [{from: [{source: {namespaces: [plain]}}]}]}"))),
        case(&codes::UNKNOWN_PEER, "spec.rules[0].from[0].source.notNamespaces[0]",
            &one(policy("plain", "x", "{rules: [{from: [{source: {notNamespaces: [nowhere]}}]}]}")),
            &one(policy("plain", "x", "{rules: [{from: [{source: {notNamespaces: [shop]}}]}]}"))),
        case(&codes::UNKNOWN_PEER, "spec.rules[0].when[0].values[0]",
            &one(policy("plain", "x", "{rules: [{when: [{key: source.principal, values: [cluster.local/ns/shop/sa/wep]}]}]}")),
            &one(policy("plain", "x", "{rules: [{when: [{key: source.principal, values: [cluster.local/ns/shop/sa/web, other/ns/a/sa/b, 'cluster.local/ns/no*']}]}]}"))),
        case(&codes::TELEMETRY_CONFLICT, "",
            &[telemetry("first", "2026-01-01T00:00:00Z", ""), telemetry("second", "2026-01-02T00:00:00Z", "")],
            &[telemetry("first", "2026-01-01T00:00:00Z", ""), telemetry("second", "2026-01-02T00:00:00Z", "selector: {matchLabels: {app: web}}, ")]),
        case(&codes::PEER_AUTHENTICATION_CONFLICT, "", &one(peer("second", "{mtls: {mode: PERMISSIVE}}")),
            &one(peer("second", "{selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}"))),
        case(&codes::WAYPOINT_MISSING, "metadata.labels[\"karst.dev/use-waypoint\"]",
            &one(service("x", "{karst.dev/use-waypoint: nowhere}")),
            &one(service("x", "{karst.dev/use-waypoint: none}"))),
        case(&codes::WAYPOINT_NOT_READY, "metadata.labels[\"karst.dev/use-waypoint\"]",
            &one("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: waypoint}, spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], selector: {app: nobody}, ports: [{name: hbone, port: 15008}]}}".to_owned()),
            &one("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: waypoint}, spec: {clusterIP: 10.96.0.3, clusterIPs: [10.96.0.3], selector: {gateway.networking.k8s.io/gateway-name: waypoint}, ports: [{name: hbone, port: 15008}]}}".to_owned())),
        case(&codes::NOT_IN_FORCE, "spec.parentRefs",
            &[service("x", "{}"), route("HTTPRoute", "r", "{parentRefs: [{kind: Service, group: '', name: x}], rules: [{backendRefs: [{name: web, port: 80}]}]}")],
            &[service("x", "{karst.dev/use-waypoint: waypoint}"), route("HTTPRoute", "r", "{parentRefs: [{kind: Service, group: '', name: x}], rules: [{backendRefs: [{name: web, port: 80}]}]}")]),
        case(&codes::ROUTE_CONFLICT, "spec.parentRefs",
            &[route("HTTPRoute", "a", &web(&at("/a"))), route("TCPRoute", "b", &to("name: web, port: 80"))],
            &[route("HTTPRoute", "a", &web(&at("/a")))]),
        case(&codes::ROUTE_DUPLICATE, "spec.rules[0].matches[0]",
            &[route("HTTPRoute", "a", &web(&at("/a"))), route("HTTPRoute", "b", &web("[{matches: [{path: {type: PathPrefix, value: /a}}], backendRefs: [{name: web, port: 80}]}]"))],
            &[route("HTTPRoute", "a", &web(&at("/a"))), route("HTTPRoute", "b", &web("[{matches: [{path: {type: Exact, value: /a}}], backendRefs: [{name: web, port: 80}]}]"))]),
        case(&codes::BACKEND_NOT_FOUND, "spec.rules[0].backendRefs[0]",
            &one(route("HTTPRoute", "a", &to("name: web, port: 81"))), &one(route("HTTPRoute", "a", &to("name: web, port: 80")))),
        case(&codes::REFERENCE_NOT_PERMITTED, "spec.rules[0].backendRefs[0]",
            &one(route("HTTPRoute", "a", &to("name: web, namespace: plain, port: 80"))),
            &[route("HTTPRoute", "a", &to("name: web, namespace: plain, port: 80")),
                "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {namespace: plain, name: g}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}}".to_owned(),
                "{apiVersion: v1, kind: Service, metadata: {namespace: plain, name: web}, spec: {clusterIP: 10.96.0.21, clusterIPs: [10.96.0.21], ports: [{name: http, port: 80}]}}".to_owned()]),
        case(&codes::REFERENCE_UNUSABLE, "spec.rules[0].backendRefs[0]",
            &one(route("HTTPRoute", "a", &to("kind: Bucket, group: example.com, name: web"))),
            &one(route("HTTPRoute", "a", &to("kind: Service, group: '', name: web, port: 80")))),
        case(&codes::PARENT_NOT_FOUND, "spec.parentRefs",
            &one(route("HTTPRoute", "a", "{parentRefs: [{kind: Service, group: '', name: wep}]}")),
            &one(route("HTTPRoute", "a", &web("[]")))),
        case(&codes::NOT_ACCEPTED, "spec",
            &one("{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: karst-waypoint}, spec: {controllerName: karst.dev/waypoint-controller, parametersRef: {group: a, kind: B, name: c}}}".to_owned()),
            &one("{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: karst-waypoint}, spec: {controllerName: karst.dev/waypoint-controller}}".to_owned())),
        case(&codes::FIELD_LEFT_OUT, "spec.rules[0].filters[0].type",
            &one(route("HTTPRoute", "a", &web("[{filters: [{type: ExtensionRef, extensionRef: {group: a, kind: B, name: c}}]}]"))),
            &one(route("HTTPRoute", "a", &web("[{backendRefs: [{name: web, port: 80}]}]")))),
    ]
}

#[test]
fn each_code_has_a_mistake_and_a_twin_without() {
    assert!(found(&[]).is_empty(), "the shop is well: {:?}", found(&[]));
    let mut wrong = Vec::new();
    for Case {
        code,
        bad,
        field,
        good,
    } in cases()
    {
        let texts = |all: &[String]| -> Vec<Finding> {
            found(&all.iter().map(String::as_str).collect::<Vec<_>>())
        };
        let (with, without) = (texts(&bad), texts(&good));
        let said = |all: &[Finding]| -> Vec<String> {
            all.iter()
                .map(|one| {
                    format!(
                        "{} {} {:?} {}",
                        one.code.code, one.object, one.field, one.message
                    )
                })
                .collect()
        };
        if !with
            .iter()
            .any(|one| one.code == code && one.field == field)
        {
            wrong.push(format!(
                "{} {field:?} is not found: {:#?}",
                code.code,
                said(&with)
            ));
        }
        if without.iter().any(|one| one.code == code) {
            wrong.push(format!(
                "{} is found in the twin: {:#?}",
                code.code,
                said(&without)
            ));
        }
        for one in with.iter().chain(&without) {
            assert!(!one.message.is_empty() && !one.object.is_empty());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_code_is_untested() {
    let mut tested: BTreeSet<&str> = cases().iter().map(|case| case.code.code).collect();
    // These have tests of their own below.
    let own = [
        &codes::NO_SCHEMA,
        &codes::NOT_COMPARED,
        &codes::STRICT_PLAINTEXT,
        &codes::PERMISSIVE_PLAINTEXT,
        &codes::METRICS_UNREAD,
    ];
    tested.extend(own.iter().map(|one| one.code));
    let all: BTreeSet<&str> = codes::ALL.iter().map(|one| one.code).collect();
    assert_eq!(tested, all);
}

#[test]
fn kinds_without_a_definition_are_told_until_there_is_one() {
    let of = |input: &Input| -> Vec<String> {
        let all = found_of(input, Reach::Manifests, &Metrics::default());
        all.into_iter()
            .filter(|one| one.code == &codes::NO_SCHEMA)
            .map(|one| one.object)
            .collect()
    };
    let mut input = shop();
    assert_eq!(
        of(&input),
        ["Gateway shop/waypoint", "GatewayClass karst-waypoint"]
    );
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"listeners": {}}}}});
    input.documents.push(Document {
        value: json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
            "spec": {"group": "gateway.networking.k8s.io", "names": {"kind": "Gateway"},
                "versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]},
        }),
        place: None,
    });
    assert_eq!(of(&input), ["GatewayClass karst-waypoint"]);
    let all = found_of(&input, Reach::Manifests, &Metrics::default());
    let unknown: Vec<&str> = all
        .iter()
        .filter(|one| one.code == &codes::UNKNOWN_FIELD)
        .map(|one| one.field.as_str())
        .collect();
    assert_eq!(unknown, ["spec.gatewayClassName"]);
}

#[test]
fn too_many_rules_are_not_compared_and_that_is_told() {
    let rules = |many: usize| {
        let rules: Vec<String> = (0..many)
            .map(|port| format!("{{to: [{{operation: {{ports: ['{}']}}}}]}}", port + 1))
            .collect();
        (0..5)
            .map(|part| {
                let of = rules
                    .iter()
                    .skip(part * rules.len() / 5)
                    .take(rules.len() / 5)
                    .cloned()
                    .collect::<Vec<_>>();
                policy(
                    "plain",
                    &format!("p{part}"),
                    &format!("{{rules: [{}]}}", of.join(",")),
                )
            })
            .collect::<Vec<_>>()
    };
    let told = |many: usize| {
        let texts = rules(many);
        let all = found(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        all.iter().any(|one| one.code == &codes::NOT_COMPARED)
    };
    assert!(!told(50));
    assert!(told(2_005));
}

const SCRAPE: &str = "\
# TYPE istio_tcp_connections_opened counter
istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"unknown\",source_workload_namespace=\"unknown\",destination_workload=\"web\",destination_workload_namespace=\"NS\",connection_security_policy=\"unknown\"} 3
istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"cart\",source_workload_namespace=\"shop\",destination_workload=\"web\",destination_workload_namespace=\"NS\",connection_security_policy=\"mutual_tls\"} 7
istio_tcp_connections_opened_total{reporter=\"destination\",source_workload=\"cart\",source_workload_namespace=\"shop\",destination_workload=\"web\",destination_workload_namespace=\"NS\",connection_security_policy=\"same_node\"} 5
istio_tcp_connections_failed_total{reporter=\"destination\",source_workload=\"ba\\\"tch\",source_workload_namespace=\"plain\",destination_workload=\"web\",destination_workload_namespace=\"NS\",connection_security_policy=\"unknown\"} 2
istio_tcp_connections_opened_total{reporter=\"source\",destination_workload=\"web\",destination_workload_namespace=\"NS\",connection_security_policy=\"unknown\"} 9
";

#[test]
fn clients_in_plain_text_are_told_by_the_mode() {
    let all = |input: &Input, text: &str| {
        let metrics = Metrics {
            scrapes: vec![text.replace("NS", "shop")],
            unread: vec![("agent-1".to_owned(), "no".to_owned())],
        };
        let mut all = found_of(input, Reach::Cluster, &metrics);
        all.retain(|one| one.code.code.starts_with("KARST030"));
        all
    };
    let mut input = shop();
    let strict = all(&input, SCRAPE);
    let codes: Vec<&str> = strict.iter().map(|one| one.code.code).collect();
    assert_eq!(
        codes,
        [codes::STRICT_PLAINTEXT.code, codes::METRICS_UNREAD.code]
    );
    assert!(
        strict[0].message.contains("and 5 connections")
            && strict[0].message.contains("plain/ba\"tch"),
        "{}",
        strict[0].message
    );
    input
        .documents
        .retain(|one| one.value["kind"] != "PeerAuthentication");
    let permissive: Vec<&str> = all(&input, SCRAPE)
        .iter()
        .map(|one| one.code.code)
        .collect();
    assert_eq!(
        permissive,
        [codes::METRICS_UNREAD.code, codes::PERMISSIVE_PLAINTEXT.code]
    );
    let none = all(&input, &SCRAPE.replace("\"unknown\"}", "\"mutual_tls\"}"));
    assert_eq!(none.len(), 1, "only what could not be read");
}

#[test]
fn manifests_of_policies_alone_say_nothing_about_what_is_elsewhere() {
    let input = Input {
        documents: vec![
            document(&policy(
                "shop",
                "x",
                "{selector: {matchLabels: {app: x}}, rules: [{from: [{source: {namespaces: [a], serviceAccounts: [b/c]}}]}]}",
            )),
            document(&policy(
                "shop",
                "w",
                "{targetRefs: [{kind: Service, group: '', name: x}], rules: [{}]}",
            )),
        ],
        config: karst_core::MeshConfig::default(),
    };
    let codes = |reach| -> BTreeSet<&str> {
        let all = found_of(&input, reach, &Metrics::default());
        all.iter().map(|one| one.code.name).collect()
    };
    // Accounts and namespaces together are no mistake of Istio's: they exclude each other.
    let offline = codes(Reach::Manifests);
    for name in ["SelectorMatchesNothing", "UnknownPeer", "TargetNotFound"] {
        assert!(!offline.contains(name), "{offline:?}");
        assert!(codes(Reach::Cluster).contains(name), "{name}");
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }

    fn some(&mut self, of: &[&str]) -> Vec<String> {
        (0..=self.below(2))
            .map(|_| of[self.below(of.len())].to_owned())
            .collect()
    }

    fn rule(&mut self) -> Value {
        let mut rule = json!({});
        if self.below(3) > 0 {
            let mut source = json!({});
            match self.below(5) {
                0 => source["namespaces"] = json!(self.some(&["shop", "plain", "sh*", "*n", "*"])),
                1 => source["notNamespaces"] = json!(self.some(&["shop", "plain", "sh*"])),
                2 => {
                    source["principals"] = json!(self.some(&[
                        "cluster.local/ns/shop/sa/cart",
                        "*/sa/web",
                        "cluster.local/*",
                        "*"
                    ]))
                }
                3 => {
                    source["serviceAccounts"] =
                        json!(self.some(&["shop/cart", "web", "plain/default"]))
                }
                _ => {
                    source["ipBlocks"] =
                        json!(self.some(&["10.0.0.0/8", "10.1.0.0/24", "10.1.0.1"]))
                }
            }
            if self.below(4) == 0 {
                source["notIpBlocks"] = json!(self.some(&["10.1.0.1", "10.1.0.0/24"]));
            }
            rule["from"] = json!([{"source": source}]);
        }
        if self.below(3) == 0 {
            let field = if self.below(3) == 0 {
                "notPorts"
            } else {
                "ports"
            };
            rule["to"] = json!([{"operation": {field: self.some(&["80", "81"])}}]);
        }
        if self.below(5) == 0 {
            rule["when"] =
                json!([{"key": "source.namespace", "values": self.some(&["shop", "s*"])}]);
        }
        rule
    }

    fn policies(&mut self) -> Vec<Document> {
        (0..=self.below(3))
            .map(|number| {
                let action = if self.below(3) == 0 { "DENY" } else { "ALLOW" };
                let rules: Vec<Value> = (0..=self.below(3)).map(|_| self.rule()).collect();
                let namespace = if self.below(4) == 0 { "karst-system" } else { "shop" };
                let mut spec = json!({"action": action, "rules": rules});
                if self.below(3) == 0 {
                    spec["selector"] = json!({"matchLabels": {"app": "web"}});
                }
                Document {
                    value: json!({
                        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
                        "metadata": {"namespace": namespace, "name": format!("p{number}")}, "spec": spec,
                    }),
                    place: None,
                }
            })
            .collect()
    }
}

/// What the agent of shop/web says to every client on every port.
fn verdicts(input: &Input) -> Vec<bool> {
    let world = World::new(input.read().index);
    let workload = world.workload_of_pod("shop", "web").expect("workload");
    let effective = world.state.policies.effective(&workload);
    let mut verdicts = Vec::new();
    for (namespace, account) in [
        ("shop", "cart"),
        ("shop", "web"),
        ("plain", "default"),
        ("other", "web"),
        ("", ""),
    ] {
        let principal = format!("cluster.local/ns/{namespace}/sa/{account}");
        let identity = Identity {
            principal: &principal,
            namespace,
            service_account: account,
        };
        for address in ["10.1.0.1", "10.1.0.7", "10.2.0.1", "11.0.0.1"] {
            for port in [80, 81, 82] {
                verdicts.push(
                    effective
                        .decide(&Attributes {
                            source: (!namespace.is_empty()).then_some(identity),
                            source_ip: address.parse::<std::net::IpAddr>().expect("address").into(),
                            destination_ip: "10.1.0.2"
                                .parse::<std::net::IpAddr>()
                                .expect("address")
                                .into(),
                            destination_port: port,
                        })
                        .is_ok(),
                );
            }
        }
    }
    verdicts
}

/// The real matcher decides the same without the rules that are said never to decide.
#[test]
fn rules_that_never_decide_can_be_removed() {
    let mut base = shop();
    base.documents.retain(|one| {
        !one.value["apiVersion"]
            .as_str()
            .is_some_and(|version| version.starts_with("security"))
    });
    let (mut removed, mut refused) = (0, 0);
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut input = Input {
            documents: base.documents.clone(),
            config: base.config.clone(),
        };
        input.documents.extend(random.policies());
        let before = verdicts(&input);
        refused += before.iter().filter(|allowed| !**allowed).count();
        let read = input.read();
        let context = super::context::Context::new(&input, &read, Reach::Manifests);
        let mut findings = Vec::new();
        super::rules::all(&context, &mut findings);
        let mut without = Input {
            documents: input.documents.clone(),
            config: input.config.clone(),
        };
        for document in &mut without.documents {
            let Some(name) = document
                .value
                .pointer("/metadata/name")
                .and_then(Value::as_str)
            else {
                continue;
            };
            let namespace = document.value["metadata"]["namespace"]
                .as_str()
                .unwrap_or_default();
            let object = format!("AuthorizationPolicy {namespace}/{name}");
            if document.value["kind"] != "AuthorizationPolicy" {
                continue;
            }
            let gone: Vec<&str> = findings
                .iter()
                .filter(|one| one.object == object)
                .map(|one| one.field.as_str())
                .collect();
            removed += gone.len();
            if let Some(rules) = document
                .value
                .pointer_mut("/spec/rules")
                .and_then(Value::as_array_mut)
            {
                let mut index = 0;
                rules.retain(|_| {
                    index += 1;
                    !gone.contains(&format!("spec.rules[{}]", index - 1).as_str())
                });
            }
        }
        assert_eq!(
            verdicts(&without),
            before,
            "seed {seed}: {findings:#?}\n{:#?}",
            input
                .documents
                .iter()
                .skip(base.documents.len())
                .collect::<Vec<_>>()
        );
    }
    assert!(
        removed > 100 && refused > 1_000,
        "{removed} rules removed, {refused} connections refused"
    );
}

#[test]
fn findings_are_in_order_and_said_once() {
    let mut all = found(&[
        &policy("plain", "x", "{}"),
        &service("x", "{karst.dev/use-waypoint: nowhere}"),
    ]);
    let more = all.clone();
    all.extend(more);
    finding::tidy(&mut all);
    let codes: Vec<&str> = all.iter().map(|one| one.code.code).collect();
    assert_eq!(codes, ["KARST0401", "KARST0204"]);
}

fn codes_of(objects: &[&str], kind: &str) -> BTreeSet<&'static str> {
    let found = found(objects);
    let of_kind = found.iter().filter(|one| one.object.starts_with(kind));
    of_kind.map(|one| one.code.name).collect()
}

#[test]
fn the_label_for_egress_is_one_of_ours() {
    for (value, expected) in [
        ("REGISTRY_ONLY", vec![]),
        ("ALLOW_ANY", vec![]),
        ("registry_only", vec!["LabelUnknown"]),
    ] {
        let namespace = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: other, labels: {{karst.dev/egress: {value}}}}}}}"
        );
        let codes = codes_of(&[&namespace], "Namespace");
        assert_eq!(codes.into_iter().collect::<Vec<_>>(), expected, "{value}");
    }
}

#[test]
fn entries_that_lose_or_are_wrong_are_found() {
    let entry = |name: &str, addresses: &str| {
        format!(
            "{{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {{namespace: shop, name: {name}}}, \
             spec: {{hosts: [api.example.com], addresses: [{addresses}], ports: [{{number: 443, name: tls, protocol: TLS}}]}}}}"
        )
    };
    let one = entry("a", "198.51.100.7");
    assert_eq!(codes_of(&[&one], "ServiceEntry"), BTreeSet::new());
    let both = codes_of(&[&one, &entry("b", "198.51.100.8")], "ServiceEntry");
    assert!(both.contains("Conflict"), "{both:?}");
    let wrong = codes_of(&[&entry("a", "nonsense")], "ServiceEntry");
    assert!(wrong.contains("ObjectInvalid"), "{wrong:?}");
}

#[test]
fn request_authentications_for_nothing_are_found() {
    let of = |spec: &str| {
        let object = format!(
            "{{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {{namespace: shop, name: jwt}}, \
             spec: {spec}}}"
        );
        codes_of(&[&object], "RequestAuthentication")
    };
    let rules = "jwtRules: [{issuer: a, jwksUri: 'https://example.com/keys'}]";
    let to = |name: &str| {
        of(&format!(
            "{{targetRefs: [{{group: '', kind: Service, name: {name}}}], {rules}}}"
        ))
    };
    assert_eq!(to("web"), BTreeSet::new());
    assert!(to("nothing").contains("TargetNotFound"));
    let selected = of(&format!(
        "{{selector: {{matchLabels: {{app: web}}}}, {rules}}}"
    ));
    assert!(!selected.is_empty(), "nobody enforces it");
}

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::{
    GATEWAY_CLASSES, KARST, KARST_CRDS, Release, for_kubectl, gateway_classes_for_kubectl, manifest,
};
use crate::{Error, values, yaml};

fn render(overrides: Value) -> Vec<Value> {
    let values = KARST.values_with(vec![overrides]).expect("values");
    let rendered = KARST.render(&Release::by_karst("karst-system"), &values);
    let rendered = rendered.expect("renders");
    rendered.into_iter().flat_map(|file| file.objects).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|o| o["kind"] == kind && o["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}

#[test]
fn every_file_of_the_charts_is_embedded() {
    for chart in [KARST, KARST_CRDS] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("charts")
            .join(chart.name)
            .join("templates");
        let there: BTreeSet<String> = std::fs::read_dir(&folder)
            .expect("templates")
            .map(|entry| {
                entry
                    .expect("entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            // Helm prints it after an installation; it yields no object.
            .filter(|name| name != "NOTES.txt")
            .collect();
        let embedded = chart.templates.iter().map(|(name, _)| (*name).to_owned());
        assert_eq!(embedded.collect::<BTreeSet<_>>(), there, "{}", chart.name);
    }
}

#[test]
fn charts_have_the_version_of_the_workspace() {
    for chart in [KARST, KARST_CRDS] {
        assert_eq!(chart.version(), env!("CARGO_PKG_VERSION"));
        let metadata = yaml::read(chart.metadata).expect("Chart.yaml");
        assert_eq!(metadata["appVersion"], env!("CARGO_PKG_VERSION"));
        assert_eq!(metadata["name"], chart.name);
    }
}

/// Every value is described, and every map says whether other keys may be in it.
fn described(schema: &Value, path: &str, problems: &mut Vec<String>) {
    if !path.is_empty() && schema["description"].as_str().is_none_or(str::is_empty) {
        problems.push(format!("{path} is not described"));
    }
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        described(schema, &format!("{path}.{name}"), problems);
    }
    if schema["properties"].is_object() && schema["additionalProperties"] != json!(false) {
        problems.push(format!("{path} takes unknown keys"));
    }
}

#[test]
fn every_value_is_described_and_has_a_default() {
    let schema: Value = serde_json::from_str(KARST.schema).expect("schema");
    let mut problems = Vec::new();
    described(&schema, "", &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    // Unknown keys are refused, so what the schema knows and the defaults have is the same set.
    fn keys(schema: &Value, values: &Value, path: &str) {
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            assert!(values.get(name).is_some(), "{path}.{name} has no default");
            keys(schema, &values[name], &format!("{path}.{name}"));
        }
    }
    keys(&schema, &yaml::read(KARST.values).expect("values.yaml"), "");
}

#[test]
fn wrong_values_are_refused_with_their_paths() {
    let wrong =
        json!({"contoller": {}, "agent": {"workers": 0}, "image": {"pullPolicy": "Sometimes"}});
    let Err(Error::Values(problems)) = KARST.values_with(vec![wrong]) else {
        panic!("accepted");
    };
    assert_eq!(problems.len(), 3, "{problems:?}");
    let text = problems.join("\n");
    for words in [
        "contoller: there is no such value",
        "agent.workers: minimum 1",
        "image.pullPolicy",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn every_object_is_labelled_and_named_once() {
    let objects = render(json!({"namespace": {"create": true}}));
    let mut seen = BTreeSet::new();
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels["app.kubernetes.io/part-of"], "karst", "{object}");
        assert_eq!(labels["app.kubernetes.io/managed-by"], "karst", "{object}");
        assert_eq!(
            labels["app.kubernetes.io/version"],
            env!("CARGO_PKG_VERSION")
        );
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert!(seen.insert(name.clone()), "{name} twice");
    }
    assert_eq!(objects.len(), 30, "{seen:?}");
}

#[test]
fn the_controller_gets_the_providers_as_they_are_written() {
    let providers = json!([{"name": "a", "envoyExtAuthzHttp": {
        "service": "auth.sec.svc.cluster.local", "port": 80, "timeout": "0.5s",
        "includeAdditionalHeadersInCheck": {"x-a": "b: c"}}}]);
    let objects = render(json!({"meshConfig": {"extensionProviders": providers}}));
    let mut objects = objects.iter();
    let map = objects.find(|object| object["metadata"]["name"] == "karst-mesh-config");
    let text = map.expect("there")["data"]["mesh"].as_str().expect("text");
    let mesh = yaml::read(text).expect("YAML");
    assert_eq!(mesh["extensionProviders"], providers);
}

#[test]
fn parts_can_be_left_out() {
    let off = json!({"enabled": false});
    let objects = render(json!({"networkPolicy": off, "admissionPolicy": off}));
    for kind in ["Namespace", "NetworkPolicy", "ValidatingAdmissionPolicy"] {
        assert!(objects.iter().all(|o| o["kind"] != kind), "{kind}");
    }
}

#[test]
fn only_karsts_own_namespace_is_installed_into() {
    let values = KARST.values_with(Vec::new()).expect("values");
    let error = KARST.render(&Release::by_karst("elsewhere"), &values);
    let error = error.expect_err("refused").to_string();
    assert!(error.contains("karst-system"), "{error}");
}

#[test]
fn values_reach_the_agent() {
    let set = values::parse_set(
        "agent.cgroupPath=/sys/fs/cgroup/unified/n1,agent.workers=4,agent.extraCapabilities={DAC_OVERRIDE},\
         image.registry=localhost:5000/k,image.tag=dev,image.pullSecrets={s}",
    );
    let objects = render(set.expect("set"));
    let pod = &find(&objects, "DaemonSet", "karst-node-agent")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!(container["image"], "localhost:5000/k/node-agent:dev");
    let env = container["env"].as_array().expect("env");
    assert!(
        env.contains(&json!({"name": "KARST_NODE_CGROUP", "value": "/sys/fs/cgroup/unified/n1"}))
    );
    assert!(env.contains(&json!({"name": "KARST_WORKERS", "value": "4"})));
    let added = container["securityContext"]["capabilities"]["add"]
        .as_array()
        .expect("add");
    assert!(added.contains(&json!("DAC_OVERRIDE")));
    assert_eq!(pod["imagePullSecrets"], json!([{"name": "s"}]));
    let mount = |name: &str| {
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        mounts.iter().find(|m| m["name"] == name).expect("mount")["mountPath"].clone()
    };
    assert_eq!(mount("cgroup"), "/sys/fs/cgroup/unified/n1");
}

#[test]
fn the_agent_is_not_privileged_and_has_no_access_to_the_api() {
    let objects = render(Value::Null);
    let pod = &find(&objects, "DaemonSet", "karst-node-agent")["spec"]["template"]["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["privileged"], false);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert_eq!(
        container["securityContext"]["capabilities"]["drop"],
        json!(["ALL"])
    );
    assert!(
        container.get("ports").is_none(),
        "each would be a host port"
    );
    for object in objects.iter().filter(|o| o.get("subjects").is_some()) {
        for subject in object["subjects"].as_array().expect("subjects") {
            assert_ne!(subject["name"], "karst-node-agent", "{object}");
        }
    }
}

#[test]
fn no_role_has_a_wildcard_or_may_delete_but_proxies() {
    const PROXIES: [&str; 5] = [
        "deployments",
        "horizontalpodautoscalers",
        "poddisruptionbudgets",
        "serviceaccounts",
        "services",
    ];
    let objects = render(Value::Null);
    let roles = objects.iter().filter(|o| o.get("rules").is_some());
    for rule in roles.flat_map(|role| role["rules"].as_array().expect("rules")) {
        let text = rule.to_string();
        for word in ["\"*\"", "escalate", "impersonate", "bind"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
        if text.contains("delete") {
            let resources = rule["resources"].as_array().expect("resources");
            let known = |one: &Value| PROXIES.contains(&one.as_str().unwrap_or_default());
            assert!(resources.iter().all(known), "{text}");
        }
    }
    // What may be deleted is what the policy is about.
    let policy = find(
        &objects,
        "ValidatingAdmissionPolicy",
        "karst-controller-proxies",
    );
    let rules = policy["spec"]["matchConstraints"]["resourceRules"].to_string();
    for resource in PROXIES {
        assert!(rules.contains(resource), "{resource} in {rules}");
    }
    assert!(rules.contains("DELETE"), "{rules}");
}

#[test]
fn what_the_controller_runs_is_the_image_that_it_is_told_of() {
    let set = json!({"image": {"registry": "localhost:5000/k", "tag": "dev", "pullSecrets": ["s"]},
                     "proxy": {"minReplicas": 1}, "gateways": {"serviceType": "NodePort"}});
    let objects = render(set);
    let controller = find(&objects, "Deployment", "karst-controller");
    let args = controller["spec"]["template"]["spec"]["containers"][0]["args"].to_string();
    let image = "localhost:5000/k/waypoint:dev";
    for wanted in [
        &format!("--proxy-image={image}"),
        "--proxy-pull-secret=s",
        "--gateway-service-type=NodePort",
        r#"\"minReplicas\":1"#,
    ] {
        assert!(args.contains(wanted), "{wanted} in {args}");
    }
    let policy = find(
        &objects,
        "ValidatingAdmissionPolicy",
        "karst-controller-deployments",
    );
    let text = policy["spec"]["validations"].to_string();
    assert!(text.contains(&format!("== '{image}'")), "{text}");
}

#[test]
fn gateway_classes_are_there_where_the_gateway_api_is() {
    let values = KARST.values_with(Vec::new()).expect("values");
    let classes = |api_versions: &[&str]| {
        let release = Release {
            api_versions: api_versions.iter().map(ToString::to_string).collect(),
            ..Release::by_karst("karst-system")
        };
        let files = KARST.render(&release, &values).expect("renders");
        let objects = files.into_iter().flat_map(|file| file.objects);
        let classes = objects.filter(|object| object["kind"] == "GatewayClass");
        classes
            .map(|class| {
                format!(
                    "{} {}",
                    class["metadata"]["name"], class["spec"]["controllerName"]
                )
            })
            .collect::<Vec<_>>()
    };
    assert!(classes(&["gateway.networking.k8s.io/v1beta1/GatewayClass"]).is_empty());
    assert_eq!(
        classes(&[GATEWAY_CLASSES]),
        [
            r#""karst" "karst.dev/gateway-controller""#,
            r#""karst-waypoint" "karst.dev/waypoint-controller""#
        ]
    );
}

#[test]
fn definitions_have_schemas_and_a_status() {
    let values = KARST_CRDS.values_with(Vec::new()).expect("values");
    let files = KARST_CRDS.render(&Release::by_karst("karst-system"), &values);
    let objects: Vec<Value> = files
        .expect("renders")
        .into_iter()
        .flat_map(|file| file.objects)
        .collect();
    assert_eq!(objects.len(), 6);
    for definition in &objects {
        assert_eq!(definition["kind"], "CustomResourceDefinition");
        let spec = &definition["spec"];
        let name = format!(
            "{}.{}",
            spec["names"]["plural"].as_str().expect("plural"),
            spec["group"].as_str().expect("group")
        );
        assert_eq!(definition["metadata"]["name"], name);
        let stored = spec["versions"].as_array().expect("versions").iter();
        assert_eq!(
            stored.filter(|version| version["storage"] == true).count(),
            1
        );
        for version in spec["versions"].as_array().expect("versions") {
            assert!(version["subresources"]["status"].is_object(), "{name}");
            let schema = &version["schema"]["openAPIV3Schema"];
            undescribed(schema, &name);
        }
    }
}

#[test]
fn definitions_of_istios_kinds_can_be_left_to_others() {
    let left_out = json!({"istio": {"definitions": false}});
    let values = KARST_CRDS.values_with(vec![left_out]).expect("values");
    let files = KARST_CRDS.render(&Release::by_karst("karst-system"), &values);
    let files = files.expect("renders");
    let objects: Vec<&Value> = files.iter().flat_map(|file| &file.objects).collect();
    assert_eq!(objects.len(), 1);
    assert_eq!(objects[0]["spec"]["group"], "karst.dev");
    assert!(
        KARST_CRDS
            .values_with(vec![json!({"istio": {}, "x": 1})])
            .is_err()
    );
}

/// Fails at a field that `kubectl explain` would say nothing of.
fn undescribed(schema: &Value, path: &str) {
    let described = schema["description"]
        .as_str()
        .is_some_and(|text| text.ends_with('.'));
    assert!(
        described || path.ends_with(".metadata"),
        "{path} is not described"
    );
    for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
        undescribed(schema, &format!("{path}.{name}"));
    }
    if let Some(items) = schema.get("items") {
        undescribed(items, &format!("{path}[]"));
    }
}

#[test]
fn a_manifest_names_the_file_of_each_part() {
    let values = KARST.values_with(Vec::new()).expect("values");
    let rendered = KARST
        .render(&Release::by_karst("karst-system"), &values)
        .expect("renders");
    let text = manifest(&rendered);
    assert!(text.starts_with("---\n# Source: karst/templates/admission-proxies.yaml\n"));
    let objects: usize = rendered.iter().map(|file| file.objects.len()).sum();
    assert_eq!(yaml::read_all(&text).expect("YAML").len(), objects);
}

#[test]
fn the_checked_in_manifests_are_the_charts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests");
    let check = |name: &str, expected: Result<String, Error>| {
        let text = std::fs::read_to_string(folder.join(name)).expect(name);
        assert_eq!(
            text,
            expected.expect("renders"),
            "run `cargo xtask codegen`"
        );
        yaml::read_all(&text).expect("YAML")
    };
    let objects = check("karst.yaml", for_kubectl());
    let kinds: Vec<&str> = objects.iter().filter_map(|o| o["kind"].as_str()).collect();
    assert_eq!(kinds[5..7], ["CustomResourceDefinition", "Namespace"]);
    assert!(
        !kinds.contains(&"GatewayClass"),
        "they need the Gateway API"
    );
    let classes = check("gateway-classes.yaml", gateway_classes_for_kubectl());
    assert_eq!(classes.len(), 2);
}

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};

use super::{Chart, KARST, KARST_CRDS, Release, for_kubectl, manifest};
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
    assert_eq!(objects.len(), 19, "{seen:?}");
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
fn no_role_has_a_wildcard_or_may_delete() {
    for role in render(Value::Null)
        .iter()
        .filter(|o| o.get("rules").is_some())
    {
        let text = role["rules"].to_string();
        for word in ["\"*\"", "delete", "escalate", "impersonate", "bind"] {
            assert!(!text.contains(word), "{word} in {text}");
        }
    }
}

#[test]
fn a_manifest_names_the_file_of_each_part() {
    let values = KARST.values_with(Vec::new()).expect("values");
    let rendered = KARST
        .render(&Release::by_karst("karst-system"), &values)
        .expect("renders");
    let text = manifest(&rendered);
    assert!(text.starts_with("---\n# Source: karst/templates/admission.yaml\n"));
    let objects: usize = rendered.iter().map(|file| file.objects.len()).sum();
    assert_eq!(yaml::read_all(&text).expect("YAML").len(), objects);
}

#[test]
fn a_chart_without_templates_renders_nothing() {
    let chart: Chart = KARST_CRDS;
    let values = chart.values_with(Vec::new()).expect("values");
    assert!(
        chart
            .render(&Release::by_karst("karst-system"), &values)
            .expect("renders")
            .is_empty()
    );
}

#[test]
fn the_checked_in_manifest_is_the_chart() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/karst.yaml");
    let text = std::fs::read_to_string(file).expect("manifests/karst.yaml");
    assert_eq!(
        text,
        for_kubectl().expect("renders"),
        "run `cargo xtask codegen`"
    );
    let objects = yaml::read_all(&text).expect("YAML");
    assert_eq!(objects[0]["kind"], "Namespace");
}

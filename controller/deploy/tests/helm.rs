//! The embedded renderer against the real Helm: the same chart and values give the same objects.
//!
//! Helm is what `cargo xtask setup` installs into `target/tools`, or the one on `PATH`.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use karst_deploy::chart::{Chart, GATEWAY_CLASSES, KARST, KARST_CRDS, Release};
use karst_deploy::{values, yaml};
use serde_json::Value;

fn helm(args: &[&str]) -> Output {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/bin/helm");
    let program = if own.is_file() {
        own
    } else {
        PathBuf::from("helm")
    };
    Command::new(program)
        .args(args)
        // Nothing of the user's own configuration.
        .env("HELM_CONFIG_HOME", "/nonexistent")
        .env_remove("KUBECONFIG")
        .output()
        .expect("helm runs; `cargo xtask setup` installs it")
}

fn chart(name: &str) -> String {
    format!("{}/charts/{name}", env!("CARGO_MANIFEST_DIR"))
}

fn by_name(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let name = |object: &Value| format!("{} {}", object["kind"], object["metadata"]["name"]);
    objects
        .into_iter()
        .map(|object| (name(&object), object))
        .collect()
}

/// Renders with both and compares.
fn check(sets: &[&str]) {
    check_chart(&KARST, sets, &[]);
}

fn check_chart(chart_of: &Chart, sets: &[&str], api_versions: &[&str]) {
    let folder = chart(chart_of.name);
    let mut args = vec!["template", "karst", &folder, "--namespace", "karst-system"];
    for set in sets {
        args.extend(["--set", set]);
    }
    for version in api_versions {
        args.extend(["--api-versions", version]);
    }
    let output = helm(&args);
    assert!(
        output.status.success(),
        "{sets:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let theirs = yaml::read_all(&String::from_utf8_lossy(&output.stdout)).expect("Helm's YAML");

    let overrides = sets.iter().map(|set| values::parse_set(set).expect("set"));
    let values = chart_of.values_with(overrides.collect()).expect("values");
    let release = Release {
        service: "Helm".to_owned(),
        api_versions: api_versions.iter().map(ToString::to_string).collect(),
        ..Release::by_karst("karst-system")
    };
    let ours = chart_of.render(&release, &values).expect("renders");
    let ours = by_name(ours.into_iter().flat_map(|file| file.objects).collect());
    let theirs = by_name(theirs);
    assert_eq!(
        ours.keys().collect::<Vec<_>>(),
        theirs.keys().collect::<Vec<_>>(),
        "{sets:?}"
    );
    for (name, object) in &ours {
        assert_eq!(object, &theirs[name], "{name} with {sets:?}");
    }
}

#[test]
fn helm_renders_the_same_objects() {
    check(&[]);
    check(&["namespace.create=true"]);
    check(&[
        "networkPolicy.enabled=false",
        "admissionPolicy.enabled=false",
    ]);
    check(&[
        "image.registry=localhost:5000/k",
        "image.tag=dev",
        "image.pullSecrets={a,b}",
    ]);
    check(&[
        "agent.cgroupPath=/sys/fs/cgroup/unified,agent.kubepodsCgroup=/sys/fs/cgroup/unified/kubepods",
        "agent.extraCapabilities={DAC_OVERRIDE},agent.appArmorProfile=,agent.seLinuxType=",
        "agent.maxSurge=25%,agent.maxPods=65536,agent.workers=4",
        r"agent.nodeSelector.example\.com/mesh=yes",
        "agent.priorityClassName=",
        "controller.priorityClassName=,controller.replicas=3",
        "mesh.trustDomain=example.org",
        "proxy.minReplicas=1,proxy.maxReplicas=3,proxy.logLevel=debug,gateways.serviceType=ClusterIP",
        r"proxy.nodeSelector.example\.com/edge=yes,proxy.priorityClassName=high",
    ]);
    check_chart(&KARST, &[], &[GATEWAY_CLASSES]);
    check(&[
        "monitoring.dashboards.enabled=false,monitoring.alerts.enabled=false,agent.metrics=loopback",
    ]);
    check_chart(
        &KARST,
        &["monitoring.operator.enabled=true,monitoring.operator.labels.release=prometheus"],
        &[
            "monitoring.coreos.com/v1/PrometheusRule",
            "monitoring.coreos.com/v1/PodMonitor",
        ],
    );
    check_chart(&KARST_CRDS, &[], &[]);
    check_chart(&KARST_CRDS, &["istio.definitions=false"], &[]);
}

#[test]
fn helm_refuses_the_same_values() {
    for set in [
        "agent.workers=0",
        "agent.wrokers=1",
        "image.pullPolicy=Sometimes",
        "controller.replicas=two",
        "image.registry=",
    ] {
        let output = helm(&[
            "template",
            "karst",
            &chart("karst"),
            "-n",
            "karst-system",
            "--set",
            set,
        ]);
        assert!(!output.status.success(), "Helm takes {set}");
        let values = values::parse_set(set).expect("set");
        assert!(KARST.values_with(vec![values]).is_err(), "we take {set}");
    }
}

#[test]
fn charts_pass_helms_own_check() {
    for name in [KARST.name, KARST_CRDS.name] {
        let output = helm(&[
            "lint",
            &chart(name),
            "--namespace",
            "karst-system",
            "--strict",
        ]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{name}: {text}");
    }
}

//! Dashboards and alert rules of the chart: promtool takes the rules, each alert fires when it should and only then,
//! and every metric that is asked for exists.
//!
//! promtool is Debian's, of the package `prometheus`, which `cargo xtask setup` installs.

#![expect(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use karst_deploy::chart::{KARST, Release};
use karst_deploy::yaml;
use serde_json::{Value, json};

fn render(values: Value, api_versions: &[&str]) -> Vec<Value> {
    let values = KARST.values_with(vec![values]).expect("values");
    let release = Release {
        api_versions: api_versions.iter().map(ToString::to_string).collect(),
        ..Release::by_karst("karst-system")
    };
    let rendered = KARST.render(&release, &values).expect("renders");
    rendered.into_iter().flat_map(|file| file.objects).collect()
}

fn config_map(objects: &[Value], name: &str) -> Option<Value> {
    let found = objects
        .iter()
        .find(|object| object["kind"] == "ConfigMap" && object["metadata"]["name"] == name);
    found.map(|object| object["data"].clone())
}

fn rules() -> String {
    let data = config_map(&render(Value::Null, &[]), "karst-alerts").expect("rules");
    data["karst.rules.yaml"]
        .as_str()
        .expect("a text")
        .to_owned()
}

fn dashboards() -> Vec<Value> {
    let names = ["traffic", "data-plane", "control-plane"];
    let objects = render(Value::Null, &[]);
    names
        .iter()
        .map(|name| {
            let data = config_map(&objects, &format!("karst-dashboard-{name}")).expect("there");
            let text = data[format!("karst-{name}.json")].as_str().expect("a text");
            serde_json::from_str(text).expect("JSON")
        })
        .collect()
}

/// Runs promtool in a folder that has the rules and their tests.
fn promtool(args: &[&str]) -> (bool, String) {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("karst.rules.yaml"), rules()).expect("written");
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/alerts.yaml");
    fs::copy(tests, folder.path().join("alerts.yaml")).expect("copied");
    let output = Command::new("promtool")
        .args(args)
        .current_dir(folder.path())
        .output()
        .expect("promtool runs; `cargo xtask setup` installs it");
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    )
}

/// Names of the alerts.
fn alerts() -> BTreeSet<String> {
    let rules = yaml::read(&rules()).expect("YAML");
    let rules = rules["groups"][0]["rules"]
        .as_array()
        .expect("a list")
        .clone();
    let name = |rule: &Value| rule["alert"].as_str().expect("a name").to_owned();
    let names: BTreeSet<_> = rules.iter().map(name).collect();
    assert_eq!(names.len(), rules.len(), "each once");
    names
}

#[test]
fn promtool_takes_the_rules() {
    let (good, text) = promtool(&["check", "rules", "--lint-fatal", "karst.rules.yaml"]);
    assert!(good, "{text}");
    assert!(
        text.contains(&format!("{} rules found", alerts().len())),
        "{text}"
    );
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() {
    let (good, text) = promtool(&["test", "rules", "alerts.yaml"]);
    assert!(good, "{text}");
}

#[test]
fn every_alert_is_tested_both_ways() {
    let tests = yaml::read(include_str!("alerts.yaml")).expect("YAML");
    let tests = tests["tests"].as_array().expect("a list");
    let expected: BTreeSet<String> = alerts()
        .iter()
        .flat_map(|name| [format!("{name} fires"), format!("{name} does not fire")])
        .collect();
    let mut there = BTreeSet::new();
    for test in tests {
        let name = test["name"].as_str().expect("a name").to_owned();
        let checks = test["promql_expr_test"].as_array().expect("a list");
        let samples = |check: &Value| check["exp_samples"].as_array().map_or(0, Vec::len);
        let fires = checks.iter().map(samples).sum::<usize>();
        assert_eq!(fires, usize::from(!name.ends_with("not fire")), "{name}");
        assert!(there.insert(name.clone()), "{name} twice");
    }
    assert_eq!(there, expected);
}

/// Names in an expression that look like metrics of ours, Istio's or a process's.
fn metrics(expression: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    // What is in quotes is a value of a label.
    let outside: String = expression
        .split('"')
        .step_by(2)
        .collect::<Vec<_>>()
        .join(" ");
    outside
        .split(|c| !is_name(c))
        .filter(|word| {
            ["karst_", "istio_", "process_"]
                .iter()
                .any(|p| word.starts_with(p))
        })
        .map(ToOwned::to_owned)
        .collect()
}

/// The metrics that ARCHITECTURE.md has in its table.
fn documented() -> BTreeSet<String> {
    let document = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ARCHITECTURE.md");
    let document = fs::read_to_string(document).expect("the document");
    let table = document
        .split("| Metric | Says |")
        .nth(1)
        .expect("the table");
    let rows = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| {
        let first = row.split('|').nth(1).unwrap_or_default();
        first
            .split('`')
            .skip(1)
            .step_by(2)
            .map(ToOwned::to_owned)
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_metric_that_is_asked_for_is_documented() {
    let mut asked = BTreeSet::new();
    for dashboard in dashboards() {
        let panels = dashboard["panels"].as_array().expect("panels").clone();
        for target in panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().expect("targets"))
        {
            asked.extend(metrics(target["expr"].as_str().expect("an expression")));
        }
        let variables = dashboard["templating"]["list"]
            .as_array()
            .expect("a list")
            .clone();
        for query in variables
            .iter()
            .filter_map(|v| v["query"]["query"].as_str())
        {
            asked.extend(metrics(query));
        }
    }
    let rules = yaml::read(&rules()).expect("YAML");
    for rule in rules["groups"][0]["rules"].as_array().expect("a list") {
        asked.extend(metrics(rule["expr"].as_str().expect("an expression")));
    }
    assert!(asked.len() > 50, "{asked:?}");
    let documented = documented();
    assert!(documented.len() > 50, "{documented:?}");
    let is_known = |name: &String| {
        let whole = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| name.strip_suffix(end));
        documented.contains(name) || whole.is_some_and(|name| documented.contains(name))
    };
    let unknown: Vec<_> = asked.iter().filter(|name| !is_known(name)).collect();
    assert!(unknown.is_empty(), "not in ARCHITECTURE.md: {unknown:?}");
}

#[test]
fn promtool_takes_the_expressions_of_dashboards() {
    let mut expressions = Vec::new();
    for dashboard in dashboards() {
        for panel in dashboard["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                let expression = target["expr"].as_str().expect("an expression");
                // What Grafana puts in.
                let filled = expression
                    .replace("$__rate_interval", "5m")
                    .replace("$namespace", ".*");
                assert!(!filled.contains('$'), "{filled}");
                expressions.push(json!({"record": "a:b:c", "expr": filled, "labels": {"n": expressions.len().to_string()}}));
            }
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("rules.yaml");
    // JSON is YAML.
    let rules = json!({"groups": [{"name": "dashboards", "rules": expressions}]});
    fs::write(&file, rules.to_string()).expect("written");
    let output = Command::new("promtool")
        .args(["check", "rules"])
        .arg(&file)
        .output()
        .expect("promtool runs; `cargo xtask setup` installs it");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
}

#[test]
fn dashboards_have_their_own_names_and_panels_do_not_overlap() {
    let mut uids = BTreeSet::new();
    for dashboard in dashboards() {
        assert!(uids.insert(dashboard["uid"].to_string()));
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().expect("panels") {
            let at = |key: &str| panel["gridPos"][key].as_u64().expect("a number");
            for x in at("x")..at("x") + at("w") {
                for y in at("y")..at("y") + at("h") {
                    assert!(x < 24 && taken.insert((x, y)), "{}", panel["title"]);
                }
            }
        }
    }
    assert_eq!(uids.len(), 3);
}

#[test]
fn the_operators_objects_are_there_when_asked_for_and_possible() {
    let kinds = |values, api: &[&str]| -> Vec<String> {
        let objects = render(values, api);
        let theirs = objects
            .iter()
            .filter(|o| o["apiVersion"] == "monitoring.coreos.com/v1");
        theirs
            .map(|o| o["kind"].as_str().expect("a kind").to_owned())
            .collect()
    };
    let rule = "monitoring.coreos.com/v1/PrometheusRule";
    let monitor = "monitoring.coreos.com/v1/PodMonitor";
    let on =
        json!({"monitoring": {"operator": {"enabled": true, "labels": {"release": "prometheus"}}}});
    assert_eq!(kinds(on.clone(), &[]), <[String; 0]>::default());
    assert_eq!(
        kinds(Value::Null, &[rule, monitor]),
        <[String; 0]>::default()
    );
    assert_eq!(kinds(on.clone(), &[rule]), ["PrometheusRule"]);
    assert_eq!(
        kinds(on.clone(), &[rule, monitor]),
        ["PrometheusRule", "PodMonitor", "PodMonitor"]
    );
    let objects = render(on, &[rule, monitor]);
    let rule = objects
        .iter()
        .find(|o| o["kind"] == "PrometheusRule")
        .expect("there");
    assert_eq!(rule["metadata"]["labels"]["release"], "prometheus");
    assert_eq!(
        rule["spec"],
        yaml::read(&rules()).expect("YAML"),
        "the same rules"
    );
    let off =
        json!({"monitoring": {"dashboards": {"enabled": false}, "alerts": {"enabled": false}}});
    let left = render(off, &[]);
    for name in [
        "karst-alerts",
        "karst-dashboard-traffic",
        "karst-dashboard-data-plane",
    ] {
        assert!(config_map(&left, name).is_none(), "{name}");
    }
}

#[test]
fn agents_are_scraped_where_values_say() {
    let agent = |values| {
        let objects = render(values, &[]);
        let found = objects.into_iter().find(|o| o["kind"] == "DaemonSet");
        found.expect("there")["spec"]["template"].clone()
    };
    let node = agent(Value::Null);
    assert_eq!(
        node["metadata"]["annotations"]["prometheus.io/port"],
        "15020"
    );
    assert!(
        node.to_string()
            .contains("127.0.0.1:15020,$(KARST_NODE_ADDRESS):15020")
    );
    let loopback = agent(json!({"agent": {"metrics": "loopback"}}));
    assert!(loopback["metadata"].get("annotations").is_none());
    assert!(!loopback.to_string().contains("KARST_METRICS_LISTEN"));
}

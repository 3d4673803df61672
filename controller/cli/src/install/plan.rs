//! What is to be installed: values from everywhere, and the objects that they make.

use karst_deploy::chart::{ISTIO_OF_OTHERS, KARST, KARST_CRDS, Release, manifest};
use karst_deploy::{Error, values, yaml};
use serde_json::{Value, json};

use crate::args::ValueArgs;
use crate::cluster::SYSTEM_NAMESPACE;
use crate::cluster::kinds::{Item, ordered};
use crate::failure::{Failure, Kind};

/// Objects to apply.
#[derive(Debug)]
pub struct Plan {
    /// In order.
    pub items: Vec<Item>,
    /// As text.
    pub manifest: String,
    /// What was given beyond the chart's own values.
    pub overrides: Value,
}

impl Plan {
    /// Renders the charts with `overrides` laid upon the values in order, for a cluster of which nothing
    /// is known but that it is Kubernetes.
    ///
    /// # Errors
    /// Every mistake in the values.
    pub fn new(overrides: Vec<Value>) -> Result<Self, Failure> {
        Self::for_cluster(overrides, Vec::new())
    }

    /// The same, for a cluster that serves these APIs besides Kubernetes' own.
    ///
    /// # Errors
    /// Every mistake in the values.
    pub fn for_cluster(overrides: Vec<Value>, served: Vec<String>) -> Result<Self, Failure> {
        let mut all = json!({});
        for over in overrides {
            // A null that takes a default away is kept, to be recorded and to do so again.
            values::merge_keeping_null(&mut all, over);
        }
        // `karst install` makes the namespace, as there is no one else to do it.
        let own = json!({"namespace": {"create": true}});
        let values = KARST
            .values_with(vec![own, all.clone()])
            .map_err(|error| chart_failure(&error))?;
        if values["monitoring"]["operator"]["enabled"] == true {
            // Its kinds are not among those that this command reads back, holds to their types and removes.
            return Err(Failure::usage(
                "monitoring.operator.enabled is for Helm; apply the rules of ConfigMap karst-alerts as a PrometheusRule by hand",
            ));
        }
        let has_istio = served.iter().any(|one| one == ISTIO_OF_OTHERS);
        let definitions = json!({"istio": {"definitions": !has_istio}});
        let release = Release {
            api_versions: served,
            ..Release::by_karst(SYSTEM_NAMESPACE)
        };
        let definitions = KARST_CRDS
            .values_with(vec![definitions])
            .and_then(|values| KARST_CRDS.render(&release, &values));
        let mut rendered = definitions.map_err(|error| chart_failure(&error))?;
        let others = KARST.render(&release, &values);
        rendered.extend(others.map_err(|error| chart_failure(&error))?);
        let objects = rendered.iter().flat_map(|file| file.objects.clone());
        Ok(Self {
            items: ordered(objects.collect())?,
            manifest: manifest(&rendered),
            overrides: all,
        })
    }
}

fn chart_failure(error: &Error) -> Failure {
    Failure {
        kind: Kind::Usage,
        reason: error.reason().to_owned(),
        message: error.to_string(),
    }
}

/// The values of the command line: files in order, then `--set` in order, then the image flags.
///
/// # Errors
/// A file that cannot be read, or an argument that is no assignment.
pub fn overrides(args: &ValueArgs) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for file in &args.files {
        let wrong = |why: String| Failure::usage(format!("{}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|e| wrong(e.to_string()))?;
        match yaml::read(&text).map_err(wrong)? {
            Value::Null => {}
            values @ Value::Object(_) => all.push(values),
            _ => return Err(wrong("the values are not a map".to_owned())),
        }
    }
    for set in &args.set {
        all.push(values::parse_set(set).map_err(Failure::usage)?);
    }
    for (key, value) in [("registry", &args.image_registry), ("tag", &args.image_tag)] {
        all.extend(value.as_ref().map(|value| json!({"image": {key: value}})));
    }
    Ok(all)
}

/// Whether version `a` is newer than `b`; what comes after a hyphen or plus does not count.
pub fn is_newer(a: &str, b: &str) -> bool {
    let numbers = |version: &str| -> Vec<u64> {
        let core = version.split(['-', '+']).next().unwrap_or_default();
        core.split('.')
            .map(|part| part.parse().unwrap_or(0))
            .collect()
    };
    numbers(a) > numbers(b)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use karst_deploy::chart::{GATEWAY_CLASSES, ISTIO_OF_OTHERS};

    use super::{Plan, is_newer, overrides};
    use crate::args::ValueArgs;
    use crate::cluster::kinds::Item;
    use crate::failure::Kind;

    #[test]
    fn every_object_of_the_chart_is_of_its_type() {
        // `ordered` reads each as its type and refuses fields that the type does not have.
        let plan = Plan::new(Vec::new()).expect("plan");
        assert_eq!(plan.items.len(), 36);
        let first = plan.items.iter().map(Item::shown).take(7);
        assert_eq!(
            first.collect::<Vec<_>>(),
            [
                "CustomResourceDefinition authorizationpolicies.security.istio.io",
                "CustomResourceDefinition backendtrafficpolicies.karst.dev",
                "CustomResourceDefinition peerauthentications.security.istio.io",
                "CustomResourceDefinition requestauthentications.security.istio.io",
                "CustomResourceDefinition serviceentries.networking.istio.io",
                "CustomResourceDefinition telemetries.telemetry.istio.io",
                "Namespace karst-system"
            ]
        );
        let last = plan.items.last().expect("items").shown();
        assert_eq!(last, "DaemonSet karst-system/karst-node-agent");
        let with_classes = Plan::for_cluster(Vec::new(), vec![GATEWAY_CLASSES.to_owned()]);
        let items = with_classes.expect("plan").items;
        assert_eq!(items.len(), 38);
        assert_eq!(items[37].shown(), "GatewayClass karst-waypoint");
        let with_istio = Plan::for_cluster(Vec::new(), vec![ISTIO_OF_OTHERS.to_owned()]);
        let items = with_istio.expect("plan").items;
        assert_eq!(items.len(), 31, "definitions of others are left alone");
    }

    #[test]
    fn objects_of_the_prometheus_operator_are_helms() {
        let on = json!({"monitoring": {"operator": {"enabled": true}}});
        let refused = Plan::new(vec![on]).expect_err("refused");
        assert!(refused.message.contains("monitoring.operator.enabled"));
    }

    #[test]
    fn later_values_win() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        write!(
            file,
            "image: {{tag: a, registry: r}}\nagent: {{workers: 3}}\n"
        )
        .expect("write");
        let args = ValueArgs {
            files: vec![file.path().to_owned()],
            set: vec!["image.tag=b".to_owned(), "agent.workers=4".to_owned()],
            image_tag: Some("c".to_owned()),
            ..ValueArgs::default()
        };
        let plan = Plan::new(overrides(&args).expect("overrides")).expect("plan");
        assert_eq!(
            plan.overrides,
            json!({"image": {"tag": "c", "registry": "r"}, "agent": {"workers": 4}})
        );
        assert!(plan.manifest.contains("image: \"r/node-agent:c\""));
    }

    #[test]
    fn a_default_that_was_taken_away_stays_away() {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        writeln!(file, "agent: {{resources: {{limits: null}}}}").expect("write");
        let by_flag = ValueArgs {
            set: vec!["agent.resources.limits=null".to_owned()],
            ..ValueArgs::default()
        };
        let by_file = ValueArgs {
            files: vec![file.path().to_owned()],
            ..ValueArgs::default()
        };
        let with_default = Plan::new(Vec::new()).expect("plan").manifest;
        for args in [by_flag, by_file] {
            let given = || overrides(&args).expect("overrides");
            let first = Plan::new(given()).expect("plan");
            assert_ne!(first.manifest, with_default);
            // The same again, and then without saying it again.
            let mut values = given();
            values.insert(0, first.overrides.clone());
            let second = Plan::new(values).expect("plan");
            let third = Plan::new(vec![second.overrides.clone()]).expect("plan");
            for later in [second, third] {
                assert_eq!(later.manifest, first.manifest);
                assert_eq!(later.overrides, first.overrides);
            }
        }
    }

    #[test]
    fn wrong_values_are_wrong_usage() {
        let failure = Plan::new(vec![json!({"nope": 1})]).expect_err("refused");
        assert_eq!(
            (failure.kind, failure.reason.as_str()),
            (Kind::Usage, "values_invalid")
        );
        let args = ValueArgs {
            files: vec!["/does/not/exist".into()],
            ..ValueArgs::default()
        };
        assert_eq!(overrides(&args).expect_err("refused").kind, Kind::Usage);
    }

    #[test]
    fn versions_compare_by_number() {
        assert!(is_newer("0.10.0", "0.9.9"));
        assert!(!is_newer("0.1.0-rc.1", "0.1.0"));
        assert!(!is_newer("0.1.0", "0.1.0"));
    }
}

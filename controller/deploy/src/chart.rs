//! The embedded charts and their rendering.

use serde_json::{Map, Value, json};

use crate::template::{self, Defines};
use crate::{Error, schema, values, yaml};

/// A chart's files, as they are in the repository.
#[derive(Debug, Clone, Copy)]
pub struct Chart {
    /// Its name.
    pub name: &'static str,
    /// `Chart.yaml`.
    pub metadata: &'static str,
    /// `values.yaml`.
    pub values: &'static str,
    /// `values.schema.json`.
    pub schema: &'static str,
    /// Name and text of each file in `templates/`.
    pub templates: &'static [(&'static str, &'static str)],
}

macro_rules! templates {
    ($chart:literal: $($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../charts/", $chart, "/templates/", $name)))),*]
    };
}

/// The mesh: controller, node agents, and what they may do.
pub const KARST: Chart = Chart {
    name: "karst",
    metadata: include_str!("../charts/karst/Chart.yaml"),
    values: include_str!("../charts/karst/values.yaml"),
    schema: include_str!("../charts/karst/values.schema.json"),
    templates: templates!["karst":
        "_alerts.tpl",
        "_helpers.tpl",
        "admission-proxies.yaml",
        "admission.yaml",
        "alerts.yaml",
        "controller-rbac.yaml",
        "controller.yaml",
        "dashboard-control-plane.yaml",
        "dashboard-data-plane.yaml",
        "dashboard-traffic.yaml",
        "gatewayclasses.yaml",
        "namespace.yaml",
        "networkpolicy.yaml",
        "node-agent.yaml",
        "serviceaccounts.yaml",
    ],
};

/// Custom resource definitions. They are installed before the chart `karst`.
pub const KARST_CRDS: Chart = Chart {
    name: "karst-crds",
    metadata: include_str!("../charts/karst-crds/Chart.yaml"),
    values: include_str!("../charts/karst-crds/values.yaml"),
    schema: include_str!("../charts/karst-crds/values.schema.json"),
    templates: templates!["karst-crds":
        "_helpers.tpl",
        "authorizationpolicies.yaml",
        "backendtrafficpolicies.yaml",
        "peerauthentications.yaml",
        "requestauthentications.yaml",
        "serviceentries.yaml",
        "telemetries.yaml",
    ],
};

/// The API whose presence decides whether the chart `karst` has GatewayClasses, as Helm writes it.
pub const GATEWAY_CLASSES: &str = "gateway.networking.k8s.io/v1/GatewayClass";

/// Among what a cluster serves: that definitions of Istio's policies are there which are not Karst's, so
/// that the chart `karst-crds` must not have them.
pub const ISTIO_OF_OTHERS: &str = "security.istio.io of others";

/// What a chart is rendered as.
#[derive(Debug, Clone)]
pub struct Release {
    /// Name of the release.
    pub name: String,
    /// Namespace to install into.
    pub namespace: String,
    /// Who installs: the value of `app.kubernetes.io/managed-by`.
    pub service: String,
    /// What the cluster serves besides Kubernetes' own kinds, as GROUP/VERSION/KIND; of interest is
    /// [`GATEWAY_CLASSES`].
    pub api_versions: Vec<String>,
}

impl Release {
    /// What `karst install` renders.
    pub fn by_karst(namespace: &str) -> Self {
        Self {
            name: "karst".to_owned(),
            namespace: namespace.to_owned(),
            service: "karst".to_owned(),
            api_versions: Vec::new(),
        }
    }
}

/// A rendered file.
#[derive(Debug, Clone, PartialEq)]
pub struct Rendered {
    /// `CHART/templates/FILE`, as Helm names it.
    pub source: String,
    /// The text.
    pub text: String,
    /// The objects in it.
    pub objects: Vec<Value>,
}

impl Chart {
    /// The chart's version, which is Karst's.
    pub fn version(&self) -> String {
        let metadata = yaml::read(self.metadata).unwrap_or_default();
        let version = metadata.get("version").and_then(Value::as_str);
        version.unwrap_or_default().to_owned()
    }

    /// The chart's own values with `overrides` laid upon them in order, checked against the schema.
    ///
    /// # Errors
    /// [`Error::Values`] with every mistake.
    pub fn values_with(&self, overrides: Vec<Value>) -> Result<Value, Error> {
        let mut values = self.read("values.yaml", self.values)?;
        for over in overrides {
            match over {
                Value::Null => {}
                Value::Object(_) => values::merge(&mut values, over),
                _ => return Err(Error::Values(vec!["the values are not a map".to_owned()])),
            }
        }
        let schema: Value = serde_json::from_str(self.schema)
            .map_err(|error| self.wrong("values.schema.json", error.to_string()))?;
        let problems = schema::problems(&schema, &values);
        if problems.is_empty() {
            Ok(values)
        } else {
            Err(Error::Values(problems))
        }
    }

    /// Renders every template that yields an object.
    ///
    /// # Errors
    /// [`Error::Template`] with file and line.
    pub fn render(&self, release: &Release, values: &Value) -> Result<Vec<Rendered>, Error> {
        let metadata = self.read("Chart.yaml", self.metadata)?;
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let data = json!({
            "Values": values,
            "Release": {"Name": release.name, "Namespace": release.namespace, "Service": release.service},
            "Chart": {"Name": text("name"), "Version": text("version"), "AppVersion": text("appVersion")},
            "Capabilities": {"APIVersions": release.api_versions},
            "Template": Value::Object(Map::new()),
        });
        let mut defines = Defines::new();
        let mut bodies = Vec::new();
        for (name, text) in self.templates {
            let (nodes, defined) = template::parse(text).map_err(|e| self.wrong(name, e))?;
            defines.extend(defined);
            if !name.starts_with('_') {
                bodies.push((name, nodes));
            }
        }
        let mut rendered = Vec::new();
        for (name, nodes) in bodies {
            let text =
                template::render(&nodes, &defines, &data).map_err(|e| self.wrong(name, e))?;
            let objects = yaml::read_all(&text).map_err(|e| self.wrong(name, e))?;
            if !objects.is_empty() {
                rendered.push(Rendered {
                    source: format!("{}/templates/{name}", self.name),
                    text,
                    objects,
                });
            }
        }
        Ok(rendered)
    }

    fn read(&self, file: &str, text: &str) -> Result<Value, Error> {
        yaml::read(text).map_err(|error| self.wrong(file, error))
    }

    fn wrong(&self, file: &str, problem: String) -> Error {
        Error::Template {
            file: format!("{}/{file}", self.name),
            problem,
        }
    }
}

/// The rendered files as one text, as `helm template` prints it.
pub fn manifest(rendered: &[Rendered]) -> String {
    let mut out = String::new();
    for file in rendered {
        out.push_str("---\n# Source: ");
        out.push_str(&file.source);
        out.push('\n');
        out.push_str(file.text.trim_start_matches("---\n").trim());
        out.push('\n');
    }
    out
}

/// The head of [`for_kubectl`].
const HEADER: &str = "\
# Karst for `kubectl apply --server-side -f`: the charts karst-crds and karst with their own values.
# Generated by `cargo xtask codegen` from controller/deploy/charts. Do not edit.
";

/// The head of [`gateway_classes_for_kubectl`].
const CLASSES_HEADER: &str = "\
# Karst's GatewayClasses for `kubectl apply --server-side -f`, where the Gateway API is installed.
# Generated by `cargo xtask codegen` from controller/deploy/charts/karst. Do not edit.
";

/// The charts with their own values as one file, namespace included, for people who use neither Helm
/// nor the command line. The GatewayClasses are in [`gateway_classes_for_kubectl`]: kubectl cannot
/// leave them out where the Gateway API is not installed.
///
/// # Errors
/// A fault of a chart.
pub fn for_kubectl() -> Result<String, Error> {
    let mut files = KARST_CRDS.render(&by_kubectl(&[]), &KARST_CRDS.values_with(Vec::new())?)?;
    let mut others = render_for_kubectl(&[])?;
    // `kubectl apply` goes from top to bottom: what the others are in comes first.
    others.sort_by_key(|file| !file.source.ends_with("/namespace.yaml"));
    files.extend(others);
    Ok(format!("{HEADER}{}", manifest(&files)))
}

/// The GatewayClasses as a file of their own.
///
/// # Errors
/// A fault of the chart.
pub fn gateway_classes_for_kubectl() -> Result<String, Error> {
    let mut files = render_for_kubectl(&[GATEWAY_CLASSES])?;
    files.retain(|file| file.source.ends_with("/gatewayclasses.yaml"));
    Ok(format!("{CLASSES_HEADER}{}", manifest(&files)))
}

fn by_kubectl(api_versions: &[&str]) -> Release {
    Release {
        service: "kubectl".to_owned(),
        api_versions: api_versions.iter().map(ToString::to_string).collect(),
        ..Release::by_karst("karst-system")
    }
}

fn render_for_kubectl(api_versions: &[&str]) -> Result<Vec<Rendered>, Error> {
    let own = json!({"namespace": {"create": true}});
    KARST.render(&by_kubectl(api_versions), &KARST.values_with(vec![own])?)
}

#[cfg(test)]
mod tests;

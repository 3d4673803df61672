//! The cluster's part: the objects of the mesh, Karst's own, their logs and metrics, and two reports.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Api, ListParams, LogParams};
use kube::{Client, ResourceExt};
use serde_json::{Map, Value, json};

use super::archive::Archive;
use crate::args::{Analyze, BugReport, Check, Form, Kubernetes, Objects, Output, Threshold};
use crate::cluster::{self, PART_OF, SYSTEM_NAMESPACE, failure, kinds, nodes};
use crate::failure::{Failure, Kind};
use crate::inspect::remote;
use crate::install::rollout;
use crate::style::progress;
use crate::{analyze, check, source};

/// Bytes of one log, its last ones: a day of a busy access log is more than anybody reads.
const MAX_LOG_BYTES: i64 = 16 << 20;

/// Pods of Karst whose logs and metrics are taken: those of 1,000 nodes and some gateways.
const MAX_PODS: usize = 1_200;

/// Nodes whose state is asked for, each by some calls of a second or less.
const MAX_NODES: usize = 100;

/// What is asked of a node.
const INSPECTED: [&str; 12] = [
    "prog",
    "link",
    "map",
    "pod",
    "xds",
    "cert",
    "tunnel",
    "connection",
    "policy",
    "service",
    "endpoint",
    "workload",
];

/// Events of Karst's own namespace.
const MAX_EVENTS: u32 = 1_000;

/// Ports with metrics, of the controller and of all others.
const METRICS: [(&str, u16); 2] = [("karst-controller", 15014), ("", 15020)];

/// Whether there is a cluster that answers.
///
/// # Errors
/// There is none.
pub fn reach(args: &Kubernetes) -> Result<(), Failure> {
    cluster::run(async {
        let client = cluster::client(args).await?;
        cluster::get(&client, "/version").await.map(drop)
    })
}

/// Everything of it.
///
/// # Errors
/// The archive cannot be written.
pub fn gather(archive: &mut Archive, args: &BugReport) -> Result<(), Failure> {
    cluster::run(async {
        let client = cluster::client(&args.kubernetes).await?;
        progress("cluster: version and nodes");
        facts(archive, &client).await?;
        progress("cluster: the objects of the mesh");
        objects(archive, args, &client).await?;
        progress("cluster: Karst's own objects");
        own(archive, &client).await?;
        progress("cluster: Karst's pods");
        pods(archive, args, &client).await
    })?;
    agents(archive, args)?;
    progress("cluster: karst check and karst analyze");
    reports(archive, args)
}

/// What kernel and agent hold on each node, as `karst inspect` in the agent's container tells it.
fn agents(archive: &mut Archive, args: &BugReport) -> Result<(), Failure> {
    let pods = cluster::run(async {
        let client = cluster::client(&args.kubernetes).await?;
        rollout::pods(&client, rollout::AGENT).await
    });
    let pods = match pods {
        Ok(pods) => pods,
        Err(failure) => {
            archive.missing("nodes", &failure.message);
            return Ok(());
        }
    };
    let names = pods
        .iter()
        .filter_map(|pod| pod.spec.as_ref()?.node_name.clone());
    let names: BTreeSet<String> = names.collect();
    if names.len() > MAX_NODES {
        let why = format!("there are {}, of which {MAX_NODES} are here", names.len());
        archive.missing("nodes", &why);
    }
    for name in names.into_iter().take(MAX_NODES) {
        progress(&format!("node {name}: kernel and agent"));
        let node = remote::Node::new(args.kubernetes.clone(), name.clone());
        for object in INSPECTED {
            let place = format!("nodes/{name}/{object}.json");
            let words = ["inspect", "--json", object].map(str::to_owned);
            let found = node.output(&words).and_then(|output| {
                serde_json::from_str::<Value>(&output.out)
                    .map_err(|_| Failure::failed("no_json", output.err.trim().to_owned()))
            });
            let is_lost = matches!(&found, Err(failure) if failure.reason != "no_json");
            add(archive, &place, found)?;
            if is_lost {
                // Nobody there runs commands, so the others are not tried.
                break;
            }
        }
    }
    Ok(())
}

async fn facts(archive: &mut Archive, client: &Client) -> Result<(), Failure> {
    match cluster::get(client, "/version").await {
        Ok(answer) => archive.text("cluster/version.json", &answer.text)?,
        Err(failure) => archive.missing("cluster/version.json", &failure.message),
    }
    let list = nodes::list(client).await;
    let list = list.map(|list| {
        list.iter()
            .filter_map(|node| serde_json::to_value(node).ok())
            .collect()
    });
    add(archive, "cluster/nodes.json", list.map(Value::Array))
}

async fn objects(archive: &mut Archive, args: &BugReport, client: &Client) -> Result<(), Failure> {
    let objects = Objects {
        kubernetes: args.kubernetes.clone(),
        ..Objects::default()
    };
    let input = match source::cluster(&objects, client).await {
        Ok(input) => input,
        Err(failure) => {
            archive.missing("objects", &failure.message);
            return Ok(());
        }
    };
    let mut by_kind: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for document in input.documents {
        let kind = document.value["kind"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        by_kind.entry(kind).or_default().push(fit(document.value));
    }
    for (kind, list) in by_kind {
        archive.json(&format!("objects/{kind}.json"), &Value::Array(list))?;
    }
    Ok(())
}

/// An object without what is the users' own business and says nothing of the mesh.
fn fit(mut value: Value) -> Value {
    let namespace = value["metadata"]["namespace"].as_str().map(str::to_owned);
    if let Some(annotations) = value["metadata"]["annotations"].as_object_mut() {
        // It repeats the whole object.
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    match value["kind"].as_str() {
        // Applications keep what they like in theirs.
        Some("ConfigMap") if namespace.as_deref() != Some(SYSTEM_NAMESPACE) => {
            for part in ["data", "binaryData"] {
                if let Some(data) = value[part].as_object_mut() {
                    data.values_mut()
                        .for_each(|value| *value = "[left out]".into());
                }
            }
        }
        Some("Pod") => {
            for list in ["containers", "initContainers", "ephemeralContainers"] {
                for container in value["spec"][list].as_array_mut().into_iter().flatten() {
                    reduce(container);
                }
            }
        }
        _ => {}
    }
    value
}

/// What the mesh sees of a container, and what tells why it does not run.
fn reduce(container: &mut Value) {
    const KEPT: [&str; 8] = [
        "name",
        "image",
        "ports",
        "resources",
        "readinessProbe",
        "livenessProbe",
        "startupProbe",
        "restartPolicy",
    ];
    let Some(fields) = container.as_object_mut() else {
        return;
    };
    let kept = KEPT
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), fields.remove(*name)?)));
    *fields = kept.collect::<Map<_, _>>();
    for probe in ["readinessProbe", "livenessProbe", "startupProbe"] {
        // Commands and headers may hold passwords.
        let handler = fields.get_mut(probe).and_then(Value::as_object_mut);
        if let Some(handler) = handler {
            if let Some(exec) = handler.get_mut("exec") {
                *exec = json!({});
            }
            if let Some(http) = handler.get_mut("httpGet").and_then(Value::as_object_mut) {
                http.remove("httpHeaders");
            }
        }
    }
}

/// Objects that Karst is made of, and what happened in its namespace.
async fn own(archive: &mut Archive, client: &Client) -> Result<(), Failure> {
    let mut all = Vec::new();
    for kind in kinds::all() {
        let api = kinds::api(client, &kind, None);
        let list = api.list(&ListParams::default().labels(PART_OF)).await;
        match list {
            Ok(list) => all.extend(list.items.into_iter().map(|mut item| {
                item.metadata.managed_fields = None;
                // The definitions are those of this version's chart; their names are enough.
                if kind.resource.kind == "CustomResourceDefinition" {
                    item.data = json!({});
                }
                let mut value = serde_json::to_value(&item).unwrap_or_default();
                value["kind"] = kind.resource.kind.as_str().into();
                fit(value)
            })),
            Err(error) if cluster::is_not_found(&error) => {}
            Err(error) => {
                let what = format!("karst/{}", kind.resource.kind);
                archive.missing(&what, &failure("listing", &error).message);
            }
        }
    }
    archive.json("karst/objects.json", &Value::Array(all))?;
    let events: Api<Event> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let events = events.list(&ListParams::default().limit(MAX_EVENTS)).await;
    let events = events.map_err(|error| failure("listing events", &error));
    let events = events.map(|list| serde_json::to_value(list.items).unwrap_or_default());
    add(archive, "karst/events.json", events)
}

/// Karst's pods, gateways and waypoints among them: what they are, what they logged, and their metrics.
async fn pods(archive: &mut Archive, args: &BugReport, client: &Client) -> Result<(), Failure> {
    let api: Api<Pod> = Api::all(client.clone());
    let pods = match api.list(&ListParams::default().labels(PART_OF)).await {
        Ok(list) => list.items,
        Err(error) => {
            let what = failure("listing Karst's pods", &error);
            archive.missing("pods", &what.message);
            return Ok(());
        }
    };
    if pods.len() > MAX_PODS {
        let why = format!("there are {}, of which {MAX_PODS} are here", pods.len());
        archive.missing("pods", &why);
    }
    for pod in pods.iter().take(MAX_PODS) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let folder = format!("pods/{namespace}/{name}");
        let mut value = serde_json::to_value(pod).unwrap_or_default();
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        archive.json(&format!("{folder}/pod.json"), &value)?;
        if !args.no_logs {
            logs(archive, args, client, pod, &folder).await?;
        }
        let app = pod.labels().get("app.kubernetes.io/name");
        let is_of = |(of, _): &&(&str, u16)| of.is_empty() || app.is_some_and(|app| app == of);
        let Some((_, port)) = METRICS.iter().find(is_of) else {
            continue;
        };
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/metrics");
        let file = format!("{folder}/metrics.txt");
        match cluster::get(client, &path).await {
            Ok(answer) if answer.status.is_success() => archive.text(&file, &answer.text)?,
            Ok(answer) => {
                archive.missing(&file, &format!("the API server answered {}", answer.status))
            }
            Err(failure) => archive.missing(&file, &failure.message),
        }
    }
    Ok(())
}

async fn logs(
    archive: &mut Archive,
    args: &BugReport,
    client: &Client,
    pod: &Pod,
    folder: &str,
) -> Result<(), Failure> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let status = pod.status.as_ref();
    let statuses =
        status.map(|status| [&status.init_container_statuses, &status.container_statuses]);
    for container in statuses.into_iter().flatten().flatten().flatten() {
        for previous in [false, true] {
            if previous && container.restart_count == 0 {
                continue;
            }
            let params = LogParams {
                container: Some(container.name.clone()),
                previous,
                // What a former one said last is wanted, however long ago it was.
                since_seconds: (!previous)
                    .then(|| i64::try_from(args.since * 60).unwrap_or(i64::MAX)),
                limit_bytes: Some(MAX_LOG_BYTES),
                timestamps: true,
                ..LogParams::default()
            };
            let former = if previous { ".previous" } else { "" };
            let file = format!("{folder}/{}{former}.log", container.name);
            match api.logs(&pod.name_any(), &params).await {
                Ok(text) => archive.text(&file, &text)?,
                Err(error) => archive.missing(&file, &failure("reading the log", &error).message),
            }
        }
    }
    Ok(())
}

fn reports(archive: &mut Archive, args: &BugReport) -> Result<(), Failure> {
    let checked = check::run(&Check {
        no_nodes: false,
        pre: false,
        output: Form::Json,
        kubernetes: args.kubernetes.clone(),
    });
    report(archive, "check.json", checked)?;
    let analyzed = analyze::run(&Analyze {
        namespace: None,
        all_namespaces: true,
        failure_threshold: Threshold::Error,
        output_threshold: Threshold::Info,
        list: false,
        metrics: Vec::new(),
        objects: Objects {
            kubernetes: args.kubernetes.clone(),
            ..Objects::default()
        },
        output: Output {
            json: false,
            pretty: true,
        },
    });
    report(archive, "analyze.json", analyzed)
}

/// The text of a report, also of one that found something.
fn report(
    archive: &mut Archive,
    name: &str,
    outcome: Result<String, Failure>,
) -> Result<(), Failure> {
    let text = match outcome {
        Ok(text) => text,
        Err(failure) if matches!(failure.kind, Kind::Unhealthy | Kind::Findings) => failure.message,
        Err(failure) => {
            archive.missing(name, &failure.message);
            return Ok(());
        }
    };
    match serde_json::from_str(&text) {
        Ok(value) => archive.json(name, &value),
        Err(_) => archive.text(name, &text),
    }
}

fn add(archive: &mut Archive, name: &str, found: Result<Value, Failure>) -> Result<(), Failure> {
    match found {
        Ok(value) => archive.json(name, &value),
        Err(failure) => {
            archive.missing(name, &failure.message);
            Ok(())
        }
    }
}

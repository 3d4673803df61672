//! What must hold before Karst is installed: API server, nodes, what the caller may do.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::api::PostParams;
use kube::{Api, Client};

use super::Finding;
use crate::cluster::{SYSTEM_NAMESPACE, failure, kinds, nodes};
use crate::failure::Failure;
use crate::install::{Plan, Record, rollout};

/// Oldest Kubernetes minor version (of 1) that Karst's objects are written for.
const OLDEST_KUBERNETES: u32 = 33;

/// Oldest kernel: `bpf_get_netns_cookie` in cgroup programs and links for all hooks that are used.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Architectures that images are made for and tests run on.
const ARCHITECTURES: [&str; 1] = ["amd64"];

/// The API server answers, and is not too old.
pub async fn api_server(client: &Client) -> Result<Finding, Failure> {
    let version = client
        .apiserver_version()
        .await
        .map_err(|e| failure("asking the API server for its version", &e))?;
    Ok(version_finding(&version.git_version, &version.minor))
}

fn version_finding(git_version: &str, minor: &str) -> Finding {
    const ID: &str = "kubernetes.version";
    let digits: String = minor.chars().take_while(char::is_ascii_digit).collect();
    match digits.parse::<u32>() {
        Ok(minor) if minor >= OLDEST_KUBERNETES => {
            Finding::ok(ID, format!("the API server is {git_version}"))
        }
        Ok(_) => Finding::failed(
            ID,
            format!("the API server is {git_version}"),
            format!("Karst needs Kubernetes 1.{OLDEST_KUBERNETES} or newer"),
        ),
        Err(_) => Finding::warning(
            ID,
            format!("the API server's version {git_version:?} cannot be read"),
            format!("make sure that it is 1.{OLDEST_KUBERNETES} or newer"),
        ),
    }
}

/// Kernel, architecture and state of every Linux node that agents run on.
pub async fn nodes(client: &Client) -> Vec<Finding> {
    let nodes = match nodes::list(client).await {
        Ok(nodes) => nodes,
        Err(failure) => return vec![Finding::unknown("nodes", &failure)],
    };
    match agent_selector(client).await {
        Ok(selector) => node_findings(&nodes, &selector),
        Err(failure) => {
            // Without it, every node is one that an agent may run on.
            let mut findings = vec![Finding::unknown("nodes.selector", &failure)];
            findings.extend(node_findings(&nodes, &BTreeMap::new()));
            findings
        }
    }
}

/// The `nodeSelector` of the agents: as they are, or else as they would be installed again.
async fn agent_selector(client: &Client) -> Result<BTreeMap<String, String>, Failure> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let there = api.get_opt(rollout::AGENT.name()).await;
    let there = there.map_err(|e| failure("reading the agents' DaemonSet", &e))?;
    if let Some(there) = there {
        let spec = there.spec.and_then(|spec| spec.template.spec);
        return Ok(spec.and_then(|spec| spec.node_selector).unwrap_or_default());
    }
    let Some(record) = Record::read(client).await? else {
        return Ok(BTreeMap::new());
    };
    let plan = Plan::new(vec![record.values])?;
    let mut items = plan.items.iter();
    let selector = items
        .find(|item| item.kind.resource.kind == "DaemonSet")
        .and_then(|item| item.object.pointer("/spec/template/spec/nodeSelector"));
    let selector = selector.cloned().unwrap_or_default();
    Ok(serde_json::from_value(selector).unwrap_or_default())
}

fn node_findings(nodes: &[Node], selector: &BTreeMap<String, String>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut good, mut excluded) = (Vec::new(), Vec::new());
    for node in nodes {
        let name = nodes::name(node);
        if !nodes::is_selected(node, selector) {
            excluded.push(name.to_owned());
            continue;
        }
        let status = node.status.as_ref();
        let Some(info) = status.and_then(|status| status.node_info.as_ref()) else {
            findings.push(Finding::warning(
                "nodes.unknown",
                format!("node {name} has not said what it is"),
                "wait until its kubelet runs",
            ));
            continue;
        };
        if info.operating_system != "linux" {
            continue;
        }
        let before = findings.len();
        if kernel(&info.kernel_version).is_none_or(|version| version < OLDEST_KERNEL) {
            findings.push(Finding::failed(
                "nodes.kernel",
                format!("node {name} runs Linux {}", info.kernel_version),
                format!(
                    "Karst needs {}.{} or newer with BTF; upgrade it, or keep agents off it by agent.nodeSelector",
                    OLDEST_KERNEL.0, OLDEST_KERNEL.1
                ),
            ));
        }
        if !ARCHITECTURES.contains(&info.architecture.as_str()) {
            findings.push(Finding::warning(
                "nodes.architecture",
                format!("node {name} is {}", info.architecture),
                "Karst is tested on amd64 only, and needs images for this architecture",
            ));
        }
        if !nodes::is_ready(node) {
            findings.push(Finding::warning(
                "nodes.ready",
                format!("node {name} is not ready"),
                format!(
                    "its pods cannot join the mesh before it is; see `kubectl describe node {name}`"
                ),
            ));
        }
        if findings.len() == before {
            good.push(format!(
                "{name} (Linux {}, kubelet {}, {})",
                info.kernel_version, info.kubelet_version, info.container_runtime_version
            ));
        }
    }
    if !good.is_empty() {
        findings.push(Finding::ok("nodes.linux", summary(&good)));
    }
    if !excluded.is_empty() {
        findings.push(Finding::ok(
            "nodes.excluded",
            format!("agent.nodeSelector keeps agents off {}", summary(&excluded)),
        ));
    }
    if nodes.is_empty() {
        findings.push(Finding::warning(
            "nodes.none",
            "the cluster has no nodes",
            "agents start when nodes join",
        ));
    }
    findings
}

/// The first few of a list, and how many more there are.
fn summary(names: &[String]) -> String {
    /// Enough to see what they have in common.
    const SHOWN: usize = 3;
    let mut text = names
        .iter()
        .take(SHOWN)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}

/// Major and minor number of a kernel's version.
fn kernel(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the caller may do what an installation does.
pub async fn permissions(client: &Client) -> Vec<Finding> {
    const ID: &str = "access";
    let mut refused = Vec::new();
    for kind in kinds::all() {
        for verb in ["get", "list", "create", "patch", "delete"] {
            let attributes = ResourceAttributes {
                group: Some(kind.resource.group.clone()),
                resource: Some(kind.resource.plural.clone()),
                namespace: kind.namespaced.then(|| SYSTEM_NAMESPACE.to_owned()),
                verb: Some(verb.to_owned()),
                ..ResourceAttributes::default()
            };
            match may(client, attributes).await {
                Ok(true) => {}
                Ok(false) => refused.push(format!("{verb} {}", kind.resource.plural)),
                Err(failure) => return vec![Finding::unknown(ID, &failure)],
            }
        }
    }
    if refused.is_empty() {
        return vec![Finding::ok(
            ID,
            "you may install, upgrade and uninstall Karst",
        )];
    }
    vec![Finding::warning(
        ID,
        format!("you may not: {}", refused.join(", ")),
        "installing, upgrading and uninstalling need a cluster administrator",
    )]
}

async fn may(client: &Client, attributes: ResourceAttributes) -> Result<bool, Failure> {
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = api.create(&PostParams::default(), &review).await;
    let answer = answer.map_err(|e| failure("asking what you may do", &e))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// The namespace is free to install into.
pub async fn namespace(client: &Client) -> Vec<Finding> {
    const ID: &str = "namespace";
    let api: Api<Namespace> = Api::all(client.clone());
    let found = api.get_opt(SYSTEM_NAMESPACE).await;
    vec![match found {
        Err(error) => Finding::unknown(ID, &failure("reading the namespace", &error)),
        Ok(None) => Finding::ok(ID, format!("{SYSTEM_NAMESPACE} is not there yet")),
        Ok(Some(there)) if there.metadata.deletion_timestamp.is_some() => Finding::failed(
            ID,
            format!("{SYSTEM_NAMESPACE} is being deleted"),
            "wait until it is gone; its status.conditions say what holds it",
        ),
        Ok(Some(_)) => Finding::ok(ID, format!("{SYSTEM_NAMESPACE} is there already")),
    }]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;

    use super::{agent_selector, kernel, node_findings, version_finding};
    use crate::check::Level;
    use crate::testing::ApiServer;

    #[test]
    fn old_clusters_fail() {
        assert_eq!(version_finding("v1.35.4", "35").level, Level::Ok);
        assert_eq!(version_finding("v1.33.1-gke", "33+").level, Level::Ok);
        assert_eq!(version_finding("v1.29.0", "29").level, Level::Failed);
        assert_eq!(version_finding("?", "").level, Level::Warning);
    }

    #[test]
    fn kernels_are_compared_by_number() {
        assert_eq!(kernel("6.18.2-cloud-amd64"), Some((6, 18)));
        assert_eq!(kernel("5.4"), Some((5, 4)));
        assert_eq!(kernel("linux"), None);
    }

    fn node(name: &str, kernel: &str, arch: &str, os: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "status": {
                "conditions": [{"type": "Ready", "status": ready}],
                "nodeInfo": {"kernelVersion": kernel, "architecture": arch, "operatingSystem": os,
                    "bootID": "", "containerRuntimeVersion": "containerd://2", "kubeProxyVersion": "", "kubeletVersion": "v1.35.4",
                    "machineID": "", "osImage": "", "systemUUID": ""},
            },
        }))
        .expect("node")
    }

    #[test]
    fn each_node_is_looked_at() {
        let nodes = [
            node("good", "6.18.0", "amd64", "linux", "True"),
            node("old", "5.4.0", "amd64", "linux", "True"),
            node("arm", "6.1.0", "arm64", "linux", "True"),
            node("down", "6.1.0", "amd64", "linux", "False"),
            node("win", "10.0", "amd64", "windows", "True"),
        ];
        let findings = node_findings(&nodes, &BTreeMap::new());
        let found = |id: &str| {
            findings
                .iter()
                .find(|f| f.id == id)
                .map(|f| (f.level, f.message.clone()))
        };
        assert_eq!(found("nodes.kernel").expect("kernel").0, Level::Failed);
        assert!(found("nodes.architecture").expect("arch").1.contains("arm"));
        assert!(found("nodes.ready").expect("ready").1.contains("down"));
        let good = found("nodes.linux").expect("good").1;
        assert!(good.contains("good") && !good.contains("win"), "{good}");
        assert_eq!(findings.len(), 4);
    }

    #[test]
    fn nodes_that_agents_are_kept_off_are_named_and_not_judged() {
        let mut nodes = [
            node("good", "6.18.0", "amd64", "linux", "True"),
            node("old", "5.4.0", "arm64", "linux", "False"),
        ];
        nodes[0].metadata.labels = Some(selector());
        let findings = node_findings(&nodes, &selector());
        assert!(
            findings.iter().all(|f| f.level == Level::Ok),
            "{findings:?}"
        );
        assert!(
            findings
                .iter()
                .any(|f| f.id == "nodes.excluded" && f.message.ends_with("old"))
        );
    }

    fn selector() -> BTreeMap<String, String> {
        BTreeMap::from([("mesh".to_owned(), "yes".to_owned())])
    }

    #[tokio::test]
    async fn the_selector_is_the_agents_own_or_the_recorded_one() {
        const SYSTEM: &str = "namespaces/karst-system";
        let (server, client) = ApiServer::start().await;
        assert!(agent_selector(&client).await.expect("none").is_empty());
        let recorded =
            json!({"agent": {"nodeSelector": {"mesh": "yes", "kubernetes.io/os": null}}});
        server.put(
            &format!("/api/v1/{SYSTEM}/configmaps/karst-install"),
            json!({"data": {"version": "0.1.0", "values.json": recorded.to_string()}}),
        );
        assert_eq!(agent_selector(&client).await.expect("recorded"), selector());
        let spec = json!({"containers": [], "nodeSelector": {"own": "1"}});
        server.put(
            &format!("/apis/apps/v1/{SYSTEM}/daemonsets/karst-node-agent"),
            json!({"spec": {"selector": {}, "template": {"spec": spec}}}),
        );
        let own = BTreeMap::from([("own".to_owned(), "1".to_owned())]);
        assert_eq!(agent_selector(&client).await.expect("own"), own);
    }
}

//! Has every node cleaned by its own agent.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::cluster::{
    FIELD_MANAGER, PART_OF, SYSTEM_NAMESPACE, failure, is_not_found, is_ours, nodes,
};
use crate::failure::Failure;
use crate::install::rollout::{self, Nodes};
use crate::style::progress;

/// First argument of an agent that only cleans.
const CLEANUP: &str = "cleanup";

/// Where an agent that cleans says that it is done.
const READINESS_PORT: u16 = 15021;

/// Between two looks.
const POLL: Duration = Duration::from_secs(1);

/// Turns the agents into ones that clean their nodes, and waits until each is done.
///
/// # Errors
/// A node is not done in time.
pub async fn clean(client: &Client, limit: Duration) -> Result<(), Failure> {
    let name = rollout::AGENT.name();
    let shown = format!("DaemonSet {SYSTEM_NAMESPACE}/{name}");
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let object = match api.get_opt(name).await {
        Err(error) if is_not_found(&error) => None,
        other => other.map_err(|e| failure(&format!("reading {shown}"), &e))?,
    };
    let Some(object) = object else { return Ok(()) };
    if let Some(patch) = cleanup_patch(&object) {
        progress("every node's agent takes its pods out of the mesh and cleans up");
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        api.patch(name, &params, &Patch::Merge(&patch))
            .await
            .map_err(|e| failure(&format!("turning {shown} to cleaning"), &e))?;
    }
    rollout::wait(client, rollout::AGENT, Nodes::All, limit)
        .await
        .map(drop)
        .map_err(|failure| {
            Failure::failed(
                "nodes_not_cleaned",
                format!(
                    "{}\n  these nodes still hold pods in the mesh; --force goes on without them",
                    failure.message
                ),
            )
        })
}

/// Whether the agents were turned into ones that clean.
pub fn is_cleaning(object: &DaemonSet) -> bool {
    let spec = object.spec.as_ref();
    let spec = spec.and_then(|spec| spec.template.spec.as_ref());
    let agent = spec.and_then(|spec| spec.containers.first());
    let args = agent.and_then(|agent| agent.args.as_ref());
    args.is_some_and(|args| args.first().is_some_and(|first| first == CLEANUP))
}

/// What turns the agents into ones that clean; nothing when they are already.
///
/// The old agent must be gone before the new one cleans, so no surge. And every node at once: from
/// here on none has an agent that serves.
fn cleanup_patch(object: &DaemonSet) -> Option<Value> {
    if is_cleaning(object) {
        return None;
    }
    let spec = object.spec.as_ref()?.template.spec.as_ref()?;
    let mut containers = spec.containers.clone();
    let agent = containers.first_mut()?;
    let args = agent.args.get_or_insert_default();
    args.insert(0, CLEANUP.to_owned());
    let mut containers = serde_json::to_value(&containers).ok()?;
    let probe = json!({
        "httpGet": {"host": "127.0.0.1", "port": READINESS_PORT, "path": "/healthz/ready", "scheme": "HTTP"},
        "periodSeconds": 1,
        "timeoutSeconds": 1,
        "successThreshold": 1,
        "failureThreshold": 3,
    });
    containers
        .pointer_mut("/0")?
        .as_object_mut()?
        .insert("readinessProbe".to_owned(), probe);
    Some(json!({
        "spec": {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": "100%"}},
            "template": {"spec": {"containers": containers}},
        },
    }))
}

/// Waits until no pod of Karst is left: a controller that is ending could still write. With
/// [`Nodes::Ready`], pods of other nodes, which nobody can end, are not waited for.
///
/// # Errors
/// Some do not go in time.
pub async fn wait_until_pods_are_gone(
    client: &Client,
    awaited: Nodes,
    limit: Duration,
) -> Result<(), Failure> {
    let api: Api<Pod> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let params = ListParams::default().labels(PART_OF);
    let deadline = Instant::now() + limit;
    let mut said = false;
    loop {
        let list = api.list(&params).await;
        let list = list.map_err(|e| failure("listing Karst's pods", &e))?;
        let alive: Option<Vec<String>> = match awaited {
            Nodes::All => None,
            Nodes::Ready => Some(ready_nodes(client).await?),
        };
        let names: Vec<_> = list
            .items
            .into_iter()
            .filter(|pod| is_ours(&pod.metadata) && can_end(pod, alive.as_deref()))
            .filter_map(|pod| pod.metadata.name)
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::failed(
                "deletion_timeout",
                format!(
                    "these pods of {SYSTEM_NAMESPACE} do not end: {}",
                    names.join(", ")
                ),
            ));
        }
        if !said {
            progress("waiting for Karst's pods to end");
            said = true;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn ready_nodes(client: &Client) -> Result<Vec<String>, Failure> {
    let list = nodes::list(client).await?;
    let ready = list.iter().filter(|node| nodes::is_ready(node));
    Ok(ready.map(|node| nodes::name(node).to_owned()).collect())
}

/// Whether somebody can end the pod, if that matters: the kubelet of its node, or, while it has none,
/// nobody is needed.
fn can_end(pod: &Pod, alive: Option<&[String]>) -> bool {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref());
    match (node, alive) {
        (Some(node), Some(alive)) => alive.contains(node),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::apps::v1::DaemonSet;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::{can_end, cleanup_patch};

    fn agent(args: &[&str]) -> DaemonSet {
        serde_json::from_value(json!({
            "spec": {"selector": {}, "template": {"spec": {"containers": [
                {"name": "a", "image": "i", "args": args, "readinessProbe": {"exec": {"command": ["x"]}},
                 "env": [{"name": "E", "value": "v"}]},
            ]}}},
        }))
        .expect("daemon set")
    }

    #[test]
    fn the_agent_keeps_its_arguments_and_cleans() {
        let patch = cleanup_patch(&agent(&["--a=1"])).expect("patch");
        let container = &patch["spec"]["template"]["spec"]["containers"][0];
        assert_eq!(container["args"], json!(["cleanup", "--a=1"]));
        assert_eq!(container["env"][0]["value"], "v");
        assert_eq!(
            container["readinessProbe"]["httpGet"]["path"],
            "/healthz/ready"
        );
        assert!(container["readinessProbe"].get("exec").is_none());
        assert_eq!(
            patch["spec"]["updateStrategy"]["rollingUpdate"]["maxSurge"],
            0
        );
    }

    #[test]
    fn nobody_waits_for_pods_of_dead_nodes_when_forced() {
        let pod = |spec| -> Pod { serde_json::from_value(json!({"spec": spec})).expect("pod") };
        let on_node = pod(json!({"nodeName": "dead", "containers": []}));
        let nowhere = pod(json!({"containers": []}));
        let alive = ["alive".to_owned()];
        assert!(can_end(&on_node, None) && can_end(&nowhere, None));
        assert!(!can_end(&on_node, Some(&alive)) && can_end(&nowhere, Some(&alive)));
        assert!(can_end(&on_node, Some(&["dead".to_owned()])));
    }

    #[test]
    fn an_agent_that_cleans_already_is_left_alone() {
        assert!(cleanup_patch(&agent(&["cleanup", "--a=1"])).is_none());
    }
}

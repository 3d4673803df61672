//! Pods that should be in the mesh, against those that are.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use karst_core::has_sidecar;
use kube::api::ListParams;
use kube::{Api, Client};

use super::Finding;
use crate::cluster::failure;
use crate::failure::Failure;

/// Labels that put a pod into the mesh, ours before Istio's.
const MODES: [&str; 2] = ["karst.dev/dataplane-mode", "istio.io/dataplane-mode"];

/// The annotation that the controller writes on enrolled pods.
const ENROLLED: &str = "karst.dev/enrolled";

/// Most pods that are named.
const SHOWN: usize = 5;

/// Compares.
pub async fn all(client: &Client) -> Vec<Finding> {
    const ID: &str = "mesh.pods";
    match read(client).await {
        Ok((namespaces, pods)) => vec![finding(&namespaces, &pods)],
        Err(failure) => vec![Finding::unknown(ID, &failure)],
    }
}

async fn read(client: &Client) -> Result<(Vec<Namespace>, Vec<Pod>), Failure> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespaces = namespaces.list(&ListParams::default()).await;
    let namespaces = namespaces.map_err(|e| failure("listing namespaces", &e))?;
    let pods: Api<Pod> = Api::all(client.clone());
    let running = ListParams::default().fields("status.phase=Running");
    let pods = pods
        .list(&running)
        .await
        .map_err(|e| failure("listing pods", &e))?;
    Ok((namespaces.items, pods.items))
}

fn mode(labels: Option<&BTreeMap<String, String>>) -> Option<&str> {
    let labels = labels?;
    MODES
        .iter()
        .find_map(|label| labels.get(*label))
        .map(String::as_str)
}

/// Whether the pod's labels, or its namespace's, put it into the mesh and nothing keeps it out.
fn wanted(pod: &Pod, namespaces: &BTreeMap<&str, Option<&str>>) -> bool {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let own = mode(pod.metadata.labels.as_ref());
    let inherited = namespaces.get(namespace).copied().flatten();
    let spec = pod.spec.as_ref();
    let host = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    own.or(inherited) == Some("ambient")
        && !host
        // Such a pod is in another mesh already.
        && !has_sidecar(pod)
        && pod.metadata.deletion_timestamp.is_none()
}

fn finding(namespaces: &[Namespace], pods: &[Pod]) -> Finding {
    const ID: &str = "mesh.pods";
    let modes: BTreeMap<&str, Option<&str>> = namespaces
        .iter()
        .filter_map(|ns| {
            Some((
                ns.metadata.name.as_deref()?,
                mode(ns.metadata.labels.as_ref()),
            ))
        })
        .collect();
    let enrolled = |pod: &&Pod| {
        let annotations = pod.metadata.annotations.as_ref();
        annotations.is_some_and(|all| all.get(ENROLLED).is_some_and(|value| value == "true"))
    };
    let (inside, outside): (Vec<&Pod>, Vec<&Pod>) = pods
        .iter()
        .filter(|pod| wanted(pod, &modes))
        .partition(enrolled);
    if outside.is_empty() {
        return Finding::ok(
            ID,
            format!("{} pods are in the mesh, none is missing", inside.len()),
        );
    }
    let names: Vec<_> = outside.iter().take(SHOWN).map(|pod| name(pod)).collect();
    Finding::warning(
        ID,
        format!(
            "{} of {} pods that should be in the mesh are not: {}{}",
            outside.len(),
            outside.len() + inside.len(),
            names.join(", "),
            if outside.len() > SHOWN { ", ..." } else { "" }
        ),
        "new pods join within seconds; for the others see the log of the agent on their node",
    )
}

fn name(pod: &Pod) -> String {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("?");
    format!(
        "{namespace}/{}",
        pod.metadata.name.as_deref().unwrap_or("?")
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, Pod};
    use serde_json::{Value, json};

    use super::finding;
    use crate::check::Level;

    fn pod(name: &str, labels: Value, annotations: Value, host: bool, container: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "a", "labels": labels, "annotations": annotations},
            "spec": {"hostNetwork": host, "containers": [{"name": container}]},
        }))
        .expect("pod")
    }

    #[test]
    fn pods_that_should_be_in_the_mesh_are_counted() {
        let namespace: Namespace = serde_json::from_value(json!({
            "metadata": {"name": "a", "labels": {"karst.dev/dataplane-mode": "ambient"}},
        }))
        .expect("namespace");
        let namespaces = [namespace];
        let enrolled = json!({"karst.dev/enrolled": "true"});
        let mut pods = vec![
            pod("in", json!({}), enrolled, false, "c"),
            pod(
                "out",
                json!({"karst.dev/dataplane-mode": "none"}),
                json!({}),
                false,
                "c",
            ),
            pod("host", json!({}), json!({}), true, "c"),
            pod("sidecar", json!({}), json!({}), false, "istio-proxy"),
        ];
        assert_eq!(finding(&namespaces, &pods).level, Level::Ok);
        for (restart, level) in [("Always", Level::Ok), ("Never", Level::Warning)] {
            let mut beside = pod("init", json!({}), json!({}), false, "c");
            let init = json!([{"name": "istio-proxy", "restartPolicy": restart}]);
            let spec = beside.spec.as_mut().expect("spec");
            spec.init_containers = serde_json::from_value(init).expect("containers");
            assert_eq!(finding(&namespaces, &[beside]).level, level, "{restart}");
        }
        pods.push(pod("late", json!({}), json!({}), false, "c"));
        let found = finding(&namespaces, &pods);
        assert_eq!(found.level, Level::Warning);
        assert!(
            found.message.contains("1 of 2") && found.message.contains("a/late"),
            "{}",
            found.message
        );
    }
}

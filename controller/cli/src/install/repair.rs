//! What applying the chart alone does not mend.
//!
//! An uninstallation that did not come to its end had turned the agents' DaemonSet into one that cleans, by
//! writing fields that applying the chart would leave as they are, beside its own: the server refuses the
//! mixture. So the DaemonSet is made anew.
//!
//! Pods that are older than their account have tokens of one that was deleted, which the API server refuses
//! though an account of the same name is there again. So they are made anew.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::rollout::{self, Workload};
use crate::cluster::kinds::Item;
use crate::cluster::removal::delete_and_wait;
use crate::cluster::{SYSTEM_NAMESPACE, failure, nodes};
use crate::failure::Failure;
use crate::style::progress;
use crate::uninstall::nodes::is_cleaning;

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);

/// Who restarts pods, in the objects' record of who wrote what.
const REPAIR_MANAGER: &str = "karst-repair";

/// The agents' DaemonSet, if it is one that cleans.
///
/// # Errors
/// The server does not answer.
pub async fn cleaning(client: &Client, item: &Item) -> Result<Option<DaemonSet>, Failure> {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let there = api.get_opt(&item.name).await;
    let there = there.map_err(|e| failure(&format!("reading {}", item.shown()), &e))?;
    Ok(there.filter(is_cleaning))
}

/// Makes pods of a workload anew that have tokens of an account that was deleted. Other objects have no pods.
///
/// # Errors
/// The server does not answer, or refuses.
pub async fn renew_tokens(client: &Client, item: &Item) -> Result<(), Failure> {
    let Some(workload) = Workload::of(&item.kind.resource.kind, &item.name) else {
        return Ok(());
    };
    let account = item
        .object
        .pointer("/spec/template/spec/serviceAccountName");
    let Some(name) = account.and_then(Value::as_str) else {
        return Ok(());
    };
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let account = api.get(name).await;
    let account = account.map_err(|e| failure(&format!("reading ServiceAccount {name}"), &e))?;
    let made = |object: &ObjectMeta| object.creation_timestamp.as_ref().map(|time| time.0);
    let Some(since) = made(&account.metadata) else {
        return Ok(());
    };
    let pods = rollout::pods(client, workload).await?;
    // One that ends already needs nothing.
    let is_older = |pod: &ObjectMeta| {
        pod.deletion_timestamp.is_none() && made(pod).is_some_and(|made| made < since)
    };
    if !pods.iter().any(|pod| is_older(&pod.metadata)) {
        return Ok(());
    }
    progress(&format!(
        "pods of {} are older than their account; they are made anew",
        item.shown()
    ));
    let now = Timestamp::now().to_string();
    let annotations = json!({"kubectl.kubernetes.io/restartedAt": now});
    let patch = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    // As another manager, so that the next installation leaves it as it is.
    let params = PatchParams {
        field_manager: Some(REPAIR_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = item.api(client);
    let patched = api.patch(&item.name, &params, &Patch::Merge(&patch)).await;
    patched.map_err(|e| failure(&format!("restarting {}", item.shown()), &e))?;
    Ok(())
}

/// Deletes agents that clean, and waits until they and what they owned are gone.
///
/// # Errors
/// The server refuses, or they do not go in time.
pub async fn remove_cleaning(client: &Client, item: &Item, limit: Duration) -> Result<(), Failure> {
    let Some(object) = cleaning(client, item).await? else {
        return Ok(());
    };
    progress("the agents still clean, for an uninstallation that did not end; they are made anew");
    delete_and_wait(client, &item.kind, &object.metadata, limit).await?;
    let deadline = Instant::now() + limit;
    loop {
        let left = left(client, &object.metadata).await?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::failed(
                "deletion_timeout",
                format!(
                    "{} is deleted, and of what it owned this does not go: {}",
                    item.shown(),
                    left.join(", ")
                ),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What the deleted DaemonSet owned and is there yet: an agent that cleans would undo what a new one
/// does, and a new DaemonSet would take a revision of the same name for its own. Pods of nodes that
/// are away do not count, as they go when the node is back.
async fn left(client: &Client, owner: &ObjectMeta) -> Result<Vec<String>, Failure> {
    let owned = |object: &ObjectMeta| {
        let owners = object.owner_references.iter().flatten();
        owners
            .into_iter()
            .any(|it| Some(&it.uid) == owner.uid.as_ref())
    };
    let mut left = Vec::new();
    let pods = rollout::pods(client, rollout::AGENT).await?;
    let pods: Vec<_> = pods.iter().filter(|pod| owned(&pod.metadata)).collect();
    if !pods.is_empty() {
        let nodes = nodes::list(client).await?;
        let away = |name: &str| {
            let node = nodes.iter().find(|node| nodes::name(node) == name);
            node.is_none_or(|node| !nodes::is_ready(node))
        };
        for pod in pods {
            let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref());
            if !node.is_some_and(away) {
                let name = pod.metadata.name.as_deref().unwrap_or("?");
                left.push(format!("pod {name} on {}", node.unwrap_or("no node")));
            }
        }
    }
    let api: Api<ControllerRevision> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let revisions = api.list_metadata(&ListParams::default()).await;
    let revisions = revisions.map_err(|e| failure("listing controllerrevisions", &e))?;
    for revision in revisions.items.iter().filter(|it| owned(&it.metadata)) {
        let name = revision.metadata.name.as_deref().unwrap_or("?");
        left.push(format!("ControllerRevision {name}"));
    }
    Ok(left)
}

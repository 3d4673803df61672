//! What an uninstallation that did not come to its end left of the agents.
//!
//! It had turned their DaemonSet into one that cleans, by writing fields that applying the chart would
//! leave as they are, beside its own: the server refuses the mixture. So the DaemonSet is made anew.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, ListParams};

use super::rollout;
use crate::cluster::kinds::Item;
use crate::cluster::removal::delete_and_wait;
use crate::cluster::{SYSTEM_NAMESPACE, failure, nodes};
use crate::failure::Failure;
use crate::style::progress;
use crate::uninstall::nodes::is_cleaning;

/// Between two looks.
const POLL: Duration = Duration::from_millis(500);

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

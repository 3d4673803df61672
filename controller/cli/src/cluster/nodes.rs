//! What is asked of nodes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, ListParams};

use super::failure;
use crate::failure::Failure;

/// All nodes.
///
/// # Errors
/// The server does not answer.
pub async fn list(client: &Client) -> Result<Vec<Node>, Failure> {
    let api: Api<Node> = Api::all(client.clone());
    let list = api.list(&ListParams::default()).await;
    Ok(list.map_err(|e| failure("listing nodes", &e))?.items)
}

/// A node's name.
pub fn name(node: &Node) -> &str {
    node.metadata.name.as_deref().unwrap_or("?")
}

/// Whether the node's kubelet says that it can run pods, and has said so lately.
pub fn is_ready(node: &Node) -> bool {
    let status = node.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Whether the node has every label of a `nodeSelector`.
pub fn is_selected(node: &Node, selector: &BTreeMap<String, String>) -> bool {
    let labels = node.metadata.labels.as_ref();
    let has = |key: &String| labels.and_then(|labels| labels.get(key));
    selector.iter().all(|(key, value)| has(key) == Some(value))
}

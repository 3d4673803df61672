//! Metrics of Karst's own pods, through the API server's proxy.

use kube::Client;

use super::{SYSTEM_NAMESPACE, get};
use crate::failure::Failure;
use crate::install::rollout::{self, Workload};

/// What each ready pod of a workload tells at a port, by the pod's name, or why that is not known.
///
/// # Errors
/// The pods cannot be listed.
pub async fn metrics(
    client: &Client,
    workload: Workload,
    port: u16,
) -> Result<Vec<(String, Result<String, String>)>, Failure> {
    let mut all = Vec::new();
    for pod in rollout::pods(client, workload).await? {
        let is_ready = rollout::is_ready(&pod);
        let Some(name) = pod.metadata.name.filter(|_| is_ready) else {
            continue;
        };
        let path =
            format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{name}:{port}/proxy/metrics");
        let told = match get(client, &path).await {
            Ok(answer) if answer.status.is_success() => Ok(answer.text),
            Ok(answer) => Err(format!("the API server answered {}", answer.status)),
            Err(failure) => Err(failure.message),
        };
        all.push((name, told));
    }
    Ok(all)
}

//! Removes what the controller wrote beside the chart's objects: proxies of Gateways, root bundles,
//! reports, the lease, and annotations on pods.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::{FIELD_MANAGER, SYSTEM_NAMESPACE, failure, is_not_found};
use crate::failure::Failure;
use crate::style::{self, GOOD};

/// The root bundle that the controller keeps in every namespace.
pub const ROOT_BUNDLE: &str = "karst-ca-root-cert";

/// The controller's lease.
pub const LEASE: &str = "karst-controller-leader";

/// Label of the reports of which pods are enrolled.
const REPORT: &str = "karst.dev/node-enrolment";

/// Labels of what runs for a Gateway.
const PROXIES: &str =
    "app.kubernetes.io/managed-by=karst-controller,gateway.networking.k8s.io/gateway-name";

/// The annotation of enrolled pods.
pub const ENROLLED: &str = "karst.dev/enrolled";

/// Pods looked at with one request.
const PAGE: u32 = 500;

/// Removes all of it; says how many objects were removed or changed.
///
/// # Errors
/// The server refuses.
pub async fn remove(client: &Client) -> Result<usize, Failure> {
    let mut removed = 0;
    // What makes others before what is made.
    removed += remove_proxies::<HorizontalPodAutoscaler>(client).await?;
    removed += remove_proxies::<Deployment>(client).await?;
    removed += remove_proxies::<PodDisruptionBudget>(client).await?;
    removed += remove_proxies::<Service>(client).await?;
    removed += remove_proxies::<ServiceAccount>(client).await?;
    let everywhere: Api<ConfigMap> = Api::all(client.clone());
    let by_name = ListParams::default().fields(&format!("metadata.name={ROOT_BUNDLE}"));
    removed += remove_maps(client, &everywhere, &by_name).await?;
    let own: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    removed += remove_maps(client, &own, &ListParams::default().labels(REPORT)).await?;
    removed += remove_lease(client).await?;
    removed += remove_annotations(client).await?;
    Ok(removed)
}

/// Removes objects of a kind that the controller made for Gateways, in whatever namespace.
async fn remove_proxies<K>(client: &Client) -> Result<usize, Failure>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
{
    let kind = K::kind(&());
    let everywhere: Api<K> = Api::all(client.clone());
    let found = everywhere
        .list_metadata(&ListParams::default().labels(PROXIES))
        .await;
    let found = found.map_err(|e| failure(&format!("listing {}", K::plural(&())), &e))?;
    let mut removed = 0;
    for object in found {
        let name = object.metadata.name.unwrap_or_default();
        let namespace = object.metadata.namespace.unwrap_or_default();
        let shown = format!("{kind} {namespace}/{name}");
        let api: Api<K> = Api::namespaced(client.clone(), &namespace);
        match api.delete(&name, &DeleteParams::background()).await {
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(failure(&format!("deleting {shown}"), &error)),
            Ok(_) => {
                style::result(GOOD, "removed", &shown);
                removed += 1;
            }
        }
    }
    Ok(removed)
}

async fn remove_maps(
    client: &Client,
    api: &Api<ConfigMap>,
    params: &ListParams,
) -> Result<usize, Failure> {
    let found = api.list_metadata(params).await;
    let found = found.map_err(|e| failure("listing ConfigMaps", &e))?;
    let mut removed = 0;
    for map in found {
        let name = map.metadata.name.unwrap_or_default();
        let namespace = map.metadata.namespace.unwrap_or_default();
        let shown = format!("ConfigMap {namespace}/{name}");
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
        match api.delete(&name, &DeleteParams::default()).await {
            Err(error) if is_not_found(&error) => {}
            Err(error) => return Err(failure(&format!("deleting {shown}"), &error)),
            Ok(_) => {
                style::result(GOOD, "removed", &shown);
                removed += 1;
            }
        }
    }
    Ok(removed)
}

async fn remove_lease(client: &Client) -> Result<usize, Failure> {
    let api: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let shown = format!("Lease {SYSTEM_NAMESPACE}/{LEASE}");
    match api.delete(LEASE, &DeleteParams::default()).await {
        Err(error) if is_not_found(&error) => Ok(0),
        Err(error) => Err(failure(&format!("deleting {shown}"), &error)),
        Ok(_) => {
            style::result(GOOD, "removed", &shown);
            Ok(1)
        }
    }
}

async fn remove_annotations(client: &Client) -> Result<usize, Failure> {
    let everywhere: Api<Pod> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut removed = 0;
    loop {
        let page = everywhere.list_metadata(&params).await;
        let page = page.map_err(|e| failure("listing pods", &e))?;
        for pod in page.items {
            let annotated = pod
                .metadata
                .annotations
                .is_some_and(|all| all.contains_key(ENROLLED));
            if !annotated {
                continue;
            }
            let name = pod.metadata.name.unwrap_or_default();
            let namespace = pod.metadata.namespace.unwrap_or_default();
            let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            let patch = json!({"metadata": {"annotations": {ENROLLED: null}}});
            let params = PatchParams {
                field_manager: Some(FIELD_MANAGER.to_owned()),
                ..PatchParams::default()
            };
            match api
                .patch_metadata(&name, &params, &Patch::Merge(&patch))
                .await
            {
                Err(error) if is_not_found(&error) => {}
                Err(error) => {
                    let doing =
                        format!("removing annotation {ENROLLED} from Pod {namespace}/{name}");
                    return Err(failure(&doing, &error));
                }
                Ok(_) => removed += 1,
            }
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(removed),
        }
    }
}

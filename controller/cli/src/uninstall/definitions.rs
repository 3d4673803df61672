//! Karst's custom resource definitions: what users have written under them is theirs, so a definition
//! goes only when there is nothing left of its kind.

use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};

use crate::cluster::kinds::Kind;
use crate::cluster::removal::delete_and_wait;
use crate::cluster::{PART_OF, failure, is_not_found, is_ours};
use crate::failure::Failure;
use crate::style::{self, GOOD, WARN};

/// Deletes those of whose kind there is no object; says how many.
///
/// # Errors
/// The server refuses, or one does not go in time.
pub async fn remove(client: &Client, kind: &Kind, limit: Duration) -> Result<usize, Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let found = api.list(&ListParams::default().labels(PART_OF)).await;
    let found = found.map_err(|e| failure("listing customresourcedefinitions", &e))?;
    let mut removed = 0;
    for definition in found.into_iter().filter(|one| is_ours(&one.metadata)) {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let shown = format!("CustomResourceDefinition {name}");
        if has_objects(client, &definition).await? {
            let all = &definition.spec.names.plural;
            style::result(
                WARN,
                "kept",
                &format!("{shown}: there are {all}, which would go with it"),
            );
            continue;
        }
        delete_and_wait(client, kind, &definition.metadata, limit).await?;
        style::result(GOOD, "removed", &shown);
        removed += 1;
    }
    Ok(removed)
}

async fn has_objects(
    client: &Client,
    definition: &CustomResourceDefinition,
) -> Result<bool, Failure> {
    let spec = &definition.spec;
    let Some(version) = spec.versions.iter().find(|version| version.served) else {
        // Nobody can see what there is of it.
        return Ok(true);
    };
    let gvk = GroupVersionKind::gvk(&spec.group, &version.name, &spec.names.kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &spec.names.plural);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    match api.list_metadata(&ListParams::default().limit(1)).await {
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(failure(&format!("listing {}", spec.names.plural), &error)),
        Ok(found) => Ok(!found.items.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Duration, remove};
    use crate::cluster::kinds;
    use crate::install::Plan;
    use crate::testing::ApiServer;

    #[tokio::test]
    async fn a_definition_stays_as_long_as_there_are_objects() {
        let (server, client) = ApiServer::start().await;
        let plan = Plan::new(Vec::new()).expect("plan");
        let mut items = plan.items.iter();
        let item = items.find(|item| item.name == "backendtrafficpolicies.karst.dev");
        let item = item.expect("definition");
        let path = format!("{}/{}", item.api(&client).resource_url(), item.name);
        server.put(&path, item.object.clone());
        let policy = "/apis/karst.dev/v1alpha1/namespaces/shop/backendtrafficpolicies/web";
        server.put(
            policy,
            json!({"apiVersion": "karst.dev/v1alpha1", "kind": "BackendTrafficPolicy"}),
        );
        let kind = kinds::all().remove(0);
        let limit = Duration::from_secs(5);
        assert_eq!(remove(&client, &kind, limit).await.expect("listed"), 0);
        assert!(server.writes().is_empty());
        // It is seen once more, and then it is gone.
        server.put(
            policy,
            json!({"metadata": {"deletionTimestamp": "2026-11-22T01:00:00Z"}}),
        );
        assert_eq!(remove(&client, &kind, limit).await.expect("listed"), 0);
        assert_eq!(remove(&client, &kind, limit).await.expect("removed"), 1);
        assert_eq!(server.writes(), [format!("DELETE {path}")]);
    }
}

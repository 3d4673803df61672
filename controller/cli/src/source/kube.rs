//! The objects of a cluster, in pages.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use karst_core::Kind;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client};
use serde_json::{Map, Value};

use super::Document;
use crate::cluster::{SYSTEM_NAMESPACE, failure, is_not_found};
use crate::failure::Failure;

/// Objects in one answer.
const PAGE: u32 = 500;

/// Objects of one kind: more than any cluster has, so that a server that never ends does not fill the memory.
const MAX_OBJECTS: usize = 1_000_000;

/// The ConfigMap that each namespace has of ours.
const OTHER_CONFIG_MAPS: &str = "metadata.name!=karst-ca-root-cert";

/// All objects that the mesh is made of.
pub async fn objects(client: &Client) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for kind in super::kinds() {
        for version in kind.versions() {
            let gvk = GroupVersionKind::gvk(kind.group(), version, kind.name());
            let resource = ApiResource::from_gvk(&gvk);
            if let Some(found) = list(client, kind, &resource).await? {
                documents.extend(found);
                break;
            }
        }
    }
    Ok(documents)
}

/// The objects of a kind; `None` where the version is not served.
async fn list(
    client: &Client,
    kind: Kind,
    resource: &ApiResource,
) -> Result<Option<Vec<Document>>, Failure> {
    let api: Api<DynamicObject> = Api::all_with(client.clone(), resource);
    let mut params = ListParams::default().limit(PAGE);
    if kind == Kind::ConfigMap {
        params = params.fields(OTHER_CONFIG_MAPS);
    }
    let mut documents = Vec::new();
    loop {
        let doing = || format!("listing {}", resource.plural);
        let page = match api.list(&params).await {
            Err(error) if is_not_found(&error) && documents.is_empty() => return Ok(None),
            page => page.map_err(|error| failure(&doing(), &error))?,
        };
        documents.extend(page.items.into_iter().map(|raw| Document {
            value: value(resource, raw),
            place: None,
        }));
        if documents.len() > MAX_OBJECTS {
            let message = format!("{}: there are more than {MAX_OBJECTS}", doing());
            return Err(Failure::failed("too_many_objects", message));
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(Some(documents)),
        }
    }
}

/// The object as a document, without what nobody reads.
fn value(resource: &ApiResource, raw: DynamicObject) -> Value {
    let mut metadata = raw.metadata;
    metadata.managed_fields = None;
    let mut document = match raw.data {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    document.insert(
        "apiVersion".to_owned(),
        resource.api_version.as_str().into(),
    );
    document.insert("kind".to_owned(), resource.kind.as_str().into());
    // Metadata is text and lists of text, which always have a JSON form.
    document.insert(
        "metadata".to_owned(),
        serde_json::to_value(metadata).unwrap_or_default(),
    );
    Value::Object(document)
}

/// What the cluster's controller was started with, by the name of the option; nothing where there is none.
///
/// # Errors
/// The cluster does not say.
pub async fn settings(client: &Client) -> Result<BTreeMap<String, String>, Failure> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let found = api.get_opt("karst-controller").await;
    let found = found.map_err(|error| failure("reading Deployment karst-controller", &error))?;
    let spec = found.and_then(|found| found.spec?.template.spec);
    let containers = spec.map(|spec| spec.containers).unwrap_or_default();
    let mut settings = BTreeMap::new();
    for container in containers {
        for variable in container.env.into_iter().flatten() {
            if let (Some(name), Some(value)) =
                (variable.name.strip_prefix("KARST_"), variable.value)
            {
                settings.insert(name.to_ascii_lowercase().replace('_', "-"), value);
            }
        }
        // An option wins over its variable.
        for argument in [container.command, container.args]
            .into_iter()
            .flatten()
            .flatten()
        {
            let named = argument
                .strip_prefix("--")
                .and_then(|rest| rest.split_once('='));
            settings.extend(named.map(|(name, value)| (name.to_owned(), value.to_owned())));
        }
    }
    Ok(settings)
}

/// The cluster's definitions of the kinds that the mesh reads, as documents.
///
/// # Errors
/// The cluster does not say.
pub async fn custom_definitions(client: &Client) -> Result<Vec<Value>, Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut definitions = Vec::new();
    let groups = [
        "gateway.networking.k8s.io",
        "security.istio.io",
        "karst.dev",
    ];
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await;
        let page = page.map_err(|error| failure("listing custom resource definitions", &error))?;
        let ours = page
            .items
            .iter()
            .filter(|one| groups.contains(&one.spec.group.as_str()));
        definitions.extend(ours.filter_map(|one| serde_json::to_value(one).ok()));
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(definitions),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{objects, settings};
    use crate::testing::ApiServer;

    #[tokio::test]
    async fn objects_are_listed_and_nothing_is_written() {
        let (server, client) = ApiServer::start().await;
        server.put(
            "/api/v1/namespaces/a",
            json!({"metadata": {"labels": {"x": "y"}}}),
        );
        server.put(
            "/api/v1/namespaces/a/secrets/key",
            json!({"type": "kubernetes.io/tls"}),
        );
        server.put(
            "/apis/security.istio.io/v1/namespaces/a/authorizationpolicies/p",
            json!({"spec": {"rules": [{}]}}),
        );
        let documents = objects(&client).await.expect("lists");
        let kinds: Vec<_> = documents
            .iter()
            .map(|one| one.value["kind"].as_str())
            .collect();
        assert_eq!(kinds, [Some("Namespace"), Some("AuthorizationPolicy")]);
        assert_eq!(documents[1].value["apiVersion"], "security.istio.io/v1");
        assert!(server.writes().is_empty());
    }

    #[tokio::test]
    async fn the_controllers_options_are_read() {
        let (server, client) = ApiServer::start().await;
        assert!(settings(&client).await.expect("none").is_empty());
        let template = json!({"spec": {"containers": [{
            "name": "c", "args": ["--trust-domain=td", "--x"],
            "env": [{"name": "KARST_ROOT_NAMESPACE", "value": "root"}, {"name": "KARST_TRUST_DOMAIN", "value": "no"}],
        }]}});
        let spec = json!({"selector": {}, "template": template});
        let path = "/apis/apps/v1/namespaces/karst-system/deployments/karst-controller";
        server.put(path, json!({"spec": spec}));
        let found = settings(&client).await.expect("some");
        assert_eq!(found.get("trust-domain").map(String::as_str), Some("td"));
        assert_eq!(
            found.get("root-namespace").map(String::as_str),
            Some("root")
        );
    }
}

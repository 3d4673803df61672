//! The kinds of objects that Karst is made of, in the order in which they are applied.

use k8s_openapi::api::{
    admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
    apps::v1::{DaemonSet, Deployment},
    core::v1::{ConfigMap, Namespace, Service, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding},
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use karst_deploy::chart::{GATEWAY_CLASSES, ISTIO_OF_OTHERS};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, Resource};
use serde_json::Value;

use super::{failure, is_not_found, is_ours};
use crate::failure::Failure;

/// A kind of object.
#[derive(Clone, Debug)]
pub struct Kind {
    /// Group, version, kind and plural.
    pub resource: ApiResource,
    /// Whether its objects are in namespaces.
    pub namespaced: bool,
    /// Whether an object of this kind that the chart no longer has is removed. Not where the
    /// controller makes objects of the kind, which the chart does not know.
    pub prunable: bool,
    /// Whether every cluster has the kind.
    pub presence: Presence,
    /// Reads an object as its type and writes it again.
    parse: fn(Value) -> Result<Value, serde_json::Error>,
}

/// Whether every cluster has a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is Kubernetes' own.
    Always,
    /// Only where somebody has installed its definition.
    WhereDefined,
}

fn kind<K>(namespaced: bool) -> Kind
where
    K: Resource<DynamicType = ()> + serde::de::DeserializeOwned + serde::Serialize,
{
    Kind {
        resource: ApiResource::erase::<K>(&()),
        namespaced,
        prunable: true,
        presence: Presence::Always,
        parse: |value| serde_json::to_value(serde_json::from_value::<K>(value)?),
    }
}

/// Of the Gateway API, for which Kubernetes has no types: the server alone checks its objects.
fn gateway_class() -> Kind {
    let gvk = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "GatewayClass");
    Kind {
        resource: ApiResource::from_gvk(&gvk),
        namespaced: false,
        prunable: true,
        presence: Presence::WhereDefined,
        parse: Ok,
    }
}

/// What the cluster serves of what the chart has only where it is served, as Helm names it.
///
/// # Errors
/// The server does not answer.
pub async fn served(client: &Client) -> Result<Vec<String>, Failure> {
    let kind = gateway_class();
    let found = client
        .list_api_group_resources(&kind.resource.api_version)
        .await;
    let resources = match found {
        Err(error) if is_not_found(&error) => Vec::new(),
        other => {
            let doing = format!("asking what {} has", kind.resource.api_version);
            other.map_err(|e| failure(&doing, &e))?.resources
        }
    };
    let has_classes = resources.iter().any(|one| one.kind == kind.resource.kind);
    let classes = has_classes.then(|| GATEWAY_CLASSES.to_owned());
    let istio = has_foreign_istio(client).await?;
    let istio = istio.then(|| ISTIO_OF_OTHERS.to_owned());
    Ok(classes.into_iter().chain(istio).collect())
}

/// Definitions of Istio's kinds, which the chart has unless somebody else has brought them.
const ISTIO_KINDS: [&str; 4] = [
    "authorizationpolicies.security.istio.io",
    "peerauthentications.security.istio.io",
    "requestauthentications.security.istio.io",
    "serviceentries.networking.istio.io",
];

async fn has_foreign_istio(client: &Client) -> Result<bool, Failure> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for name in ISTIO_KINDS {
        let found = api.get_metadata_opt(name).await;
        let doing = || format!("reading CustomResourceDefinition {name}");
        let found = found.map_err(|error| failure(&doing(), &error))?;
        if found.is_some_and(|found| !is_ours(&found.metadata)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Every kind: what others need comes first.
pub fn all() -> Vec<Kind> {
    vec![
        // With a definition go all objects of its kind, so none is removed in passing.
        Kind {
            prunable: false,
            ..kind::<CustomResourceDefinition>(false)
        },
        Kind {
            prunable: false,
            ..kind::<Namespace>(false)
        },
        kind::<ServiceAccount>(true),
        kind::<ClusterRole>(false),
        kind::<ClusterRoleBinding>(false),
        kind::<Role>(true),
        kind::<RoleBinding>(true),
        Kind {
            prunable: false,
            ..kind::<ConfigMap>(true)
        },
        kind::<NetworkPolicy>(true),
        kind::<ValidatingAdmissionPolicy>(false),
        kind::<ValidatingAdmissionPolicyBinding>(false),
        kind::<Service>(true),
        kind::<PodDisruptionBudget>(true),
        kind::<Deployment>(true),
        kind::<DaemonSet>(true),
        gateway_class(),
    ]
}

/// An object to apply.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace, if it has one.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
    /// All of it.
    pub object: Value,
}

impl Item {
    /// `Kind namespace/name`, for messages.
    pub fn shown(&self) -> String {
        shown(&self.kind, self.namespace.as_deref(), &self.name)
    }

    /// Where it is.
    pub fn api(&self, client: &Client) -> Api<DynamicObject> {
        api(client, &self.kind, self.namespace.as_deref())
    }
}

/// `Kind namespace/name`.
pub fn shown(kind: &Kind, namespace: Option<&str>, name: &str) -> String {
    match namespace {
        Some(namespace) => format!("{} {namespace}/{name}", kind.resource.kind),
        None => format!("{} {name}", kind.resource.kind),
    }
}

/// The API of a kind, in a namespace or everywhere.
pub fn api(client: &Client, kind: &Kind, namespace: Option<&str>) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) if kind.namespaced => {
            Api::namespaced_with(client.clone(), namespace, &kind.resource)
        }
        _ => Api::all_with(client.clone(), &kind.resource),
    }
}

/// Sorts objects into the order of [`all`], checking each against its type.
///
/// # Errors
/// An object of an unknown kind, without a name, or with a field of the wrong type.
pub fn ordered(objects: Vec<Value>) -> Result<Vec<Item>, Failure> {
    let kinds = all();
    let mut items = Vec::new();
    for object in objects {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let (version, name) = (text("/apiVersion"), text("/kind"));
        let rank = kinds.iter().position(|kind| {
            Some(kind.resource.kind.as_str()) == name
                && Some(kind.resource.api_version.as_str()) == version
        });
        let wrong = |why: &str| {
            let what = text("/metadata/name").unwrap_or("without a name");
            let kind = name.unwrap_or("an object");
            Failure::failed("manifest_invalid", format!("{kind} {what}: {why}"))
        };
        let (rank, kind) = rank
            .and_then(|rank| kinds.get(rank).map(|kind| (rank, kind.clone())))
            .ok_or_else(|| wrong("Karst is not made of such objects"))?;
        let typed = (kind.parse)(object.clone()).map_err(|e| wrong(&e.to_string()))?;
        if let Some(field) = lost(&object, &typed, "") {
            return Err(wrong(&format!("there is no field {field}")));
        }
        let item = Item {
            namespace: text("/metadata/namespace").map(str::to_owned),
            name: text("/metadata/name")
                .ok_or_else(|| wrong("metadata.name is missing"))?
                .to_owned(),
            kind,
            object,
        };
        if item.kind.namespaced != item.namespace.is_some() {
            return Err(Failure::failed(
                "manifest_invalid",
                format!(
                    "{}: metadata.namespace is missing or too much",
                    item.shown()
                ),
            ));
        }
        items.push((rank, item));
    }
    items.sort_by_key(|(rank, _)| *rank);
    Ok(items.into_iter().map(|(_, item)| item).collect())
}

/// The first field of `object` that its type does not know.
fn lost(object: &Value, typed: &Value, path: &str) -> Option<String> {
    match (object, typed) {
        (Value::Object(fields), Value::Object(known)) => fields.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match known.get(name) {
                Some(typed) => lost(value, typed, &path),
                None if value.is_null() => None,
                None => Some(path),
            }
        }),
        (Value::Array(items), Value::Array(known)) => items
            .iter()
            .zip(known)
            .enumerate()
            .find_map(|(index, (item, typed))| lost(item, typed, &format!("{path}[{index}]"))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::ordered;

    #[test]
    fn objects_come_after_what_they_need() {
        let object = |version: &str, kind: &str, namespace: Option<&str>| json!({"apiVersion": version, "kind": kind, "metadata": {"name": "x", "namespace": namespace}});
        let workload = |kind: &str| {
            json!({"apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "x", "namespace": "n"},
                   "spec": {"selector": {}, "template": {}}})
        };
        let items = ordered(vec![
            workload("DaemonSet"),
            object("v1", "ServiceAccount", Some("n")),
            workload("Deployment"),
            object("v1", "Namespace", None),
        ])
        .expect("ordered");
        let kinds: Vec<_> = items
            .iter()
            .map(|item| item.kind.resource.kind.as_str())
            .collect();
        assert_eq!(
            kinds,
            ["Namespace", "ServiceAccount", "Deployment", "DaemonSet"]
        );
    }

    #[test]
    fn wrong_objects_are_named() {
        let check = |object, words: &str| {
            let failure = ordered(vec![object]).expect_err("refused");
            assert!(failure.message.contains(words), "{}", failure.message);
        };
        check(
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}),
            "Pod p",
        );
        check(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"},
                   "spec": {"ports": [{"port": "x"}]}}),
            "Service s: invalid type",
        );
        check(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"},
                   "spec": {"ports": [{"port": 1, "tagretPort": 2}]}}),
            "there is no field .spec.ports[0].tagretPort",
        );
        check(
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}),
            "metadata.namespace",
        );
    }

    #[tokio::test]
    async fn istios_own_definitions_are_seen() {
        let (server, client) = crate::testing::ApiServer::start().await;
        let has = |found: &[String]| found.iter().any(|one| one == super::ISTIO_OF_OTHERS);
        assert!(!has(&super::served(&client).await.expect("asked")));
        let plan = crate::install::Plan::new(Vec::new()).expect("plan");
        let mut items = plan.items.iter();
        let item = items.find(|item| item.name == super::ISTIO_KINDS[1]);
        let item = item.expect("definition");
        let path = format!("{}/{}", item.api(&client).resource_url(), item.name);
        server.put(&path, item.object.clone());
        assert!(
            !has(&super::served(&client).await.expect("asked")),
            "it is ours"
        );
        let mut theirs = item.object.clone();
        theirs["metadata"]["labels"] = serde_json::json!({"app.kubernetes.io/part-of": "istio"});
        server.put(&path, theirs);
        assert!(has(&super::served(&client).await.expect("asked")));
    }
}

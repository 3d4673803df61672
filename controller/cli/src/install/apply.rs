//! One object to the cluster.

use std::time::{Duration, Instant};

use anstyle::Style;
use k8s_openapi::api::core::v1::Namespace;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::kinds::Item;
use crate::cluster::{FIELD_MANAGER, MANAGED_BY, SYSTEM_NAMESPACE, failure, is_not_found};
use crate::failure::Failure;
use crate::style::{DIM, GOOD, WARN, progress};

/// Between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(500);

/// What applying did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was not there.
    Created,
    /// It was different.
    Changed,
    /// It was as it should be; nothing was written.
    Unchanged,
}

impl Outcome {
    /// One word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
        }
    }

    /// Its colour.
    pub fn style(self) -> Style {
        match self {
            Self::Created => GOOD,
            Self::Changed => WARN,
            Self::Unchanged => DIM,
        }
    }
}

/// Whether to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Yes.
    Write,
    /// Only let the server check it.
    Try,
}

/// Server-side applies an object, taking over fields that others set: they are the chart's.
///
/// # Errors
/// The server refuses it; the object is named.
pub async fn apply(client: &Client, item: &Item, mode: Mode) -> Result<Outcome, Failure> {
    let doing = format!("applying {}", item.shown());
    let failed = |error: &kube::Error| failure(&doing, error);
    let api = item.api(client);
    let before = match api.get_opt(&item.name).await {
        Ok(before) => before,
        Err(error) => return Err(failed(&error)),
    };
    let mut params = PatchParams::apply(FIELD_MANAGER).force();
    params.dry_run = mode == Mode::Try;
    let patch = Patch::Apply(&item.object);
    let after = match api.patch(&item.name, &params, &patch).await {
        Err(error) if before.is_some() && mode == Mode::Write && is_immutable(&error) => {
            // A binding's role cannot be changed, only made anew.
            api.delete(&item.name, &DeleteParams::foreground())
                .await
                .map_err(|e| failed(&e))?;
            api.patch(&item.name, &params, &patch)
                .await
                .map_err(|e| failed(&e))?
        }
        other => other.map_err(|e| failed(&e))?,
    };
    Ok(outcome(before.as_ref(), &after, mode))
}

fn outcome(before: Option<&DynamicObject>, after: &DynamicObject, mode: Mode) -> Outcome {
    let Some(before) = before else {
        return Outcome::Created;
    };
    let same = match mode {
        Mode::Write => before.metadata.resource_version == after.metadata.resource_version,
        // A trial has no version of its own; what it would make is compared.
        Mode::Try => {
            let content = |object: &DynamicObject| {
                let mut object = object.clone();
                object.metadata.managed_fields = None;
                object.metadata.resource_version = None;
                object.metadata.generation = None;
                serde_json::to_value(object).unwrap_or_default()
            };
            content(before) == content(after)
        }
    };
    if same {
        Outcome::Unchanged
    } else {
        Outcome::Changed
    }
}

/// Whether the refusal is because a field cannot change, in a kind that can be made anew unnoticed.
fn is_immutable(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else {
        return false;
    };
    let kind = status.details.as_ref().map(|details| details.kind.as_str());
    status.code == 422 && matches!(kind, Some("ClusterRoleBinding" | "RoleBinding"))
}

/// Refuses to take over objects that Helm manages: the next `helm upgrade` would fight back.
///
/// # Errors
/// One is Helm's, or the server does not answer.
pub async fn refuse_foreign(client: &Client, items: &[Item]) -> Result<(), Failure> {
    for item in items {
        let there = item.api(client).get_metadata_opt(&item.name).await;
        let there = there.map_err(|e| failure(&format!("reading {}", item.shown()), &e))?;
        let labels = there.and_then(|object| object.metadata.labels);
        if labels.is_some_and(|labels| labels.get(MANAGED_BY).is_some_and(|by| by == "Helm")) {
            return Err(Failure::failed(
                "managed_by_helm",
                format!(
                    "{} was installed by Helm; use `helm upgrade`, or `helm uninstall` first",
                    item.shown()
                ),
            ));
        }
    }
    Ok(())
}

/// Whether Karst's namespace is there.
///
/// # Errors
/// The server does not answer.
pub async fn namespace_exists(client: &Client) -> Result<bool, Failure> {
    Ok(namespace(client).await?.is_some())
}

async fn namespace(client: &Client) -> Result<Option<Namespace>, Failure> {
    let api: Api<Namespace> = Api::all(client.clone());
    match api.get_opt(SYSTEM_NAMESPACE).await {
        Err(error) if is_not_found(&error) => Ok(None),
        other => other.map_err(|e| failure(&format!("reading Namespace {SYSTEM_NAMESPACE}"), &e)),
    }
}

/// Waits while an earlier uninstallation is still deleting the namespace.
///
/// # Errors
/// It does not end in time.
pub async fn wait_until_not_ending(client: &Client, limit: Duration) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let mut said = false;
    loop {
        let ending = namespace(client)
            .await?
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some());
        if !ending {
            return Ok(());
        }
        if !said {
            progress("waiting for the namespace karst-system to be gone");
            said = true;
        }
        if Instant::now() >= deadline {
            return Err(Failure::failed(
                "namespace_ending",
                format!(
                    "Namespace {SYSTEM_NAMESPACE} is being deleted and does not go; \
                     see status.conditions in `kubectl get namespace {SYSTEM_NAMESPACE} -o yaml`"
                ),
            ));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// The object as it would be in another namespace, for a trial.
pub fn in_namespace(item: &Item, namespace: &str) -> Item {
    let mut item = with_metadata(item, "namespace", namespace);
    item.namespace = Some(namespace.to_owned());
    item
}

/// The object under a name that nothing has, for a trial of one that is to be made anew.
pub fn as_new(item: &Item) -> Item {
    let name = format!("{}-trial", item.name);
    let mut item = with_metadata(item, "name", &name);
    item.name = name;
    item
}

fn with_metadata(item: &Item, field: &str, value: &str) -> Item {
    let mut item = item.clone();
    let metadata = item.object.get_mut("metadata");
    if let Some(metadata) = metadata.and_then(Value::as_object_mut) {
        metadata.insert(field.to_owned(), json!(value));
    }
    item
}

#[cfg(test)]
mod tests {
    use kube::api::DynamicObject;
    use serde_json::json;

    use super::{Mode, Outcome, outcome};

    fn object(version: &str, data: &str) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "x", "resourceVersion": version, "managedFields": []},
            "data": {"k": data},
        }))
        .expect("object")
    }

    #[test]
    fn what_was_written_shows_in_the_version() {
        let check = |before: Option<&DynamicObject>, after: &DynamicObject, expected| {
            assert_eq!(outcome(before, after, Mode::Write), expected);
        };
        check(None, &object("1", "a"), Outcome::Created);
        check(
            Some(&object("1", "a")),
            &object("1", "a"),
            Outcome::Unchanged,
        );
        check(Some(&object("1", "a")), &object("2", "b"), Outcome::Changed);
    }

    #[test]
    fn a_trial_is_compared_by_content() {
        let before = object("1", "a");
        let same = outcome(Some(&before), &object("", "a"), Mode::Try);
        assert_eq!(same, Outcome::Unchanged);
        let other = outcome(Some(&before), &object("1", "b"), Mode::Try);
        assert_eq!(other, Outcome::Changed);
    }
}

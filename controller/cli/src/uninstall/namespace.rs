//! Removes Karst's own namespace, and only when nothing of others would go with it.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams};

use crate::cluster::kinds::{self, Kind};
use crate::cluster::removal::delete_and_wait;
use crate::cluster::{SYSTEM_NAMESPACE, failure, is_not_found, is_ours};
use crate::failure::Failure;
use crate::style::{self, GOOD, progress};

/// Most objects of one kind that are asked for: they are only named, and Karst's own, which are a few of any
/// kind and still ending, come among them.
const PAGE: u32 = 50;

/// Most objects that are named.
const MAX_NAMED: usize = 10;

/// Longest wait for one answer about kinds and what there is of them. A server of somebody's own behind
/// the API server may be away, and would be asked again for minutes.
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Resources that come and go by themselves, as group and plural.
const MOVING: [(&str, &str); 4] = [
    ("", "events"),
    ("events.k8s.io", "events"),
    ("", "endpoints"),
    ("discovery.k8s.io", "endpointslices"),
];

/// What Kubernetes itself puts into every namespace, as group, plural and name.
const INBORN: [(&str, &str, &str); 2] = [
    ("", "serviceaccounts", "default"),
    ("", "configmaps", "kube-root-ca.crt"),
];

/// Deletes the namespace and waits until it is gone, if it is Karst's own making and nothing of others
/// is in it; says how many objects were removed.
///
/// # Errors
/// The server refuses, or the namespace does not go in time.
pub async fn delete(client: &Client, kind: &Kind, limit: Duration) -> Result<usize, Failure> {
    let shown = kinds::shown(kind, None, SYSTEM_NAMESPACE);
    // By its name: others may have put the label on namespaces of theirs.
    let api = kinds::api(client, kind, None);
    let there = api.get_metadata_opt(SYSTEM_NAMESPACE).await;
    let there = there.map_err(|e| failure(&format!("reading {shown}"), &e))?;
    let Some(there) = there else { return Ok(0) };
    if !is_ours(&there.metadata) {
        progress(&format!(
            "{shown} stays, its labels do not say that Karst made it"
        ));
        return Ok(0);
    }
    let ending = there.metadata.deletion_timestamp.is_some();
    if !ending {
        let left = left(client).await?;
        if !left.is_empty() {
            progress(&format!(
                "{shown} stays, it holds what is not Karst's: {}",
                named(&left)
            ));
            return Ok(0);
        }
    }
    delete_and_wait(client, kind, &there.metadata, limit).await?;
    style::result(GOOD, "removed", &shown);
    Ok(usize::from(!ending))
}

/// The first few of what is left.
fn named(left: &[String]) -> String {
    let mut text = left
        .iter()
        .take(MAX_NAMED)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if left.len() > MAX_NAMED {
        text.push_str(" and more");
    }
    text
}

/// Objects of every kind in the namespace that are not Karst's. What cannot be looked at counts as one:
/// nobody knows what would go with the namespace.
async fn left(client: &Client) -> Result<Vec<String>, Failure> {
    let (kinds, mut left) = namespaced_kinds(client).await?;
    let params = ListParams::default().limit(PAGE);
    for kind in kinds {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), SYSTEM_NAMESPACE, &kind);
        let doing = format!("listing {}", kind.plural);
        let list = match look(&doing, api.list_metadata(&params)).await {
            Err(unseen) => {
                left.push(unseen);
                continue;
            }
            Ok(list) => list,
        };
        for object in list.into_iter().flatten() {
            let ours = is_ours(&object.metadata);
            let name = object.metadata.name.unwrap_or_default();
            if !ours
                && !INBORN.contains(&(kind.group.as_str(), kind.plural.as_str(), name.as_str()))
            {
                left.push(format!("{} {name}", kind.kind));
            }
        }
    }
    Ok(left)
}

/// The answer to one question; none when the kind is gone since it was found. No answer is an error in
/// the words of something that is left.
async fn look<T>(
    doing: &str,
    question: impl Future<Output = kube::Result<T>>,
) -> Result<Option<T>, String> {
    let why = match tokio::time::timeout(LOOK_LIMIT, question).await {
        Ok(Ok(answer)) => return Ok(Some(answer)),
        Ok(Err(error)) if is_not_found(&error) => return Ok(None),
        Ok(Err(error)) => failure(doing, &error).message,
        Err(_) => format!("{doing}: no answer within {} s", LOOK_LIMIT.as_secs()),
    };
    Err(format!("what nobody can see ({why})"))
}

/// The kinds of objects that a namespace can hold, and what could not be asked for its kinds.
async fn namespaced_kinds(client: &Client) -> Result<(Vec<ApiResource>, Vec<String>), Failure> {
    let groups = client.list_api_groups().await;
    let groups = groups.map_err(|e| failure("listing groups of kinds", &e))?;
    let core = client.list_core_api_resources("v1").await;
    let core = core.map_err(|e| failure("listing the kinds of v1", &e))?;
    let (mut kinds, mut unseen) = (Vec::new(), Vec::new());
    add(&mut kinds, "", "v1", &core.resources);
    for group in groups.groups {
        // A kind may be in one of the other versions only.
        let others = group.versions.iter();
        let others = others.filter(|version| Some(*version) != group.preferred_version.as_ref());
        for version in group.preferred_version.iter().chain(others) {
            let doing = format!("listing the kinds of {}", version.group_version);
            let resources = client.list_api_group_resources(&version.group_version);
            match look(&doing, resources).await {
                Err(why) => unseen.push(why),
                Ok(None) => {}
                Ok(Some(list)) => add(&mut kinds, &group.name, &version.version, &list.resources),
            }
        }
    }
    Ok((kinds, unseen))
}

/// Adds the resources that go with a namespace and that no earlier version had.
fn add(kinds: &mut Vec<ApiResource>, group: &str, version: &str, resources: &[APIResource]) {
    for resource in resources {
        let can = |verb: &str| resource.verbs.iter().any(|there| there == verb);
        let known = kinds
            .iter()
            .any(|kind| kind.group == group && kind.plural == resource.name);
        // Subresources are no objects, and what cannot be deleted is a view of something else.
        if known
            || !resource.namespaced
            || resource.name.contains('/')
            || !(can("list") && can("delete"))
            || MOVING.contains(&(group, resource.name.as_str()))
        {
            continue;
        }
        let gvk = GroupVersionKind::gvk(group, version, &resource.kind);
        kinds.push(ApiResource::from_gvk_with_plural(&gvk, &resource.name));
    }
}

#[cfg(test)]
mod tests;

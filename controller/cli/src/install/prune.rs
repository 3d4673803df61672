//! Removes what an older version installed and this one has no more.

use kube::Client;
use kube::api::{DeleteParams, ListParams};

use crate::cluster::kinds::{self, Item, Presence};
use crate::cluster::{MANAGED_BY, PART_OF, SYSTEM_NAMESPACE, failure, is_not_found};
use crate::failure::Failure;
use crate::style::{self, WARN};

/// Deletes objects that this command installed and that are not among `wanted`; says how many.
///
/// # Errors
/// The server refuses a list or a deletion.
pub async fn prune(client: &Client, wanted: &[Item], record: &Item) -> Result<usize, Failure> {
    let selector = format!("{PART_OF},{MANAGED_BY}=karst");
    let params = ListParams::default().labels(&selector);
    let mut removed = 0;
    // What others need goes last.
    for kind in kinds::all().into_iter().rev().filter(|kind| kind.prunable) {
        let api = kinds::api(client, &kind, kind.namespaced.then_some(SYSTEM_NAMESPACE));
        let doing = format!("listing {}", kind.resource.plural);
        let found = match api.list(&params).await {
            Err(error) if kind.presence == Presence::WhereDefined && is_not_found(&error) => {
                continue;
            }
            other => other.map_err(|e| failure(&doing, &e))?,
        };
        for object in found {
            let name = object.metadata.name.unwrap_or_default();
            let stays = wanted
                .iter()
                .chain([record])
                .any(|item| item.kind.resource.kind == kind.resource.kind && item.name == name);
            if stays {
                continue;
            }
            let shown = kinds::shown(&kind, object.metadata.namespace.as_deref(), &name);
            match api.delete(&name, &DeleteParams::background()).await {
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(failure(&format!("deleting {shown}"), &error)),
                Ok(_) => {
                    style::result(WARN, "removed", &shown);
                    removed += 1;
                }
            }
        }
    }
    Ok(removed)
}

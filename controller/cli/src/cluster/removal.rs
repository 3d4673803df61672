//! Deletes one object, and waits until it is gone.

use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{DeleteParams, Preconditions};

use super::kinds::{self, Kind};
use super::{failure, is_not_found};
use crate::failure::Failure;

/// Between two looks at what is being deleted.
const POLL: Duration = Duration::from_millis(500);

/// Deletes the very object that `seen` was read from, and waits until it is gone; what it owns follows.
/// One of the same name that was made meanwhile is another object and stays.
///
/// # Errors
/// The server refuses, or the object does not go in time.
pub async fn delete_and_wait(
    client: &Client,
    kind: &Kind,
    seen: &ObjectMeta,
    limit: Duration,
) -> Result<(), Failure> {
    let namespace = seen.namespace.as_deref();
    let name = seen.name.as_deref().unwrap_or_default();
    let shown = kinds::shown(kind, namespace, name);
    let api = kinds::api(client, kind, namespace);
    if seen.deletion_timestamp.is_none() {
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: seen.uid.clone(),
            resource_version: None,
        });
        match api.delete(name, &params).await {
            Err(error) if is_not_found(&error) => return Ok(()),
            Err(error) => return Err(failure(&format!("deleting {shown}"), &error)),
            Ok(_) => {}
        }
    }
    let deadline = Instant::now() + limit;
    loop {
        let there = api.get_metadata_opt(name).await;
        let there = there.map_err(|e| failure(&format!("reading {shown}"), &e))?;
        let Some(there) = there.filter(|there| there.metadata.uid == seen.uid) else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(stuck(&shown, there.metadata.finalizers.as_deref()));
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Something is not gone in time.
pub fn stuck(shown: &str, finalizers: Option<&[String]>) -> Failure {
    let why = match finalizers.unwrap_or_default() {
        [] => "its status.conditions may say why".to_owned(),
        finalizers => format!("metadata.finalizers: {}", finalizers.join(", ")),
    };
    Failure::failed(
        "deletion_timeout",
        format!("{shown} is being deleted and does not go ({why})"),
    )
}

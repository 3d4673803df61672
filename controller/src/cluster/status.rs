//! The status of Gateway API objects and policies: what the index says of them, written by the leader only.
//!
//! An object is written when what it should say is not what it says, as the source has last seen it, so a
//! status that somebody else changes comes back. What others have written beside ours stays; see [`merge`].

mod merge;

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use karst_core::{Condition, ConditionStatus, Kind, ObjectKey, ObjectStatus, StatusContent};
use kube::{
    Api,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use serde_json::json;
use tracing::{debug, warn};

use super::{
    CallError, Cluster, FIELD_MANAGER,
    facts::{Facts, Seen},
    work::{self, Verdict},
};
use crate::{feed::Feed, metrics::Outcome, store::Store};

/// The condition that says whether an object is in force.
const PROGRAMMED: &str = "Programmed";

/// Keeps statuses right, for ever. Dropped when this replica leads no more.
pub async fn write(cluster: Cluster, store: Arc<Store>, facts: Arc<Facts>) {
    let feed = Arc::new(Feed::default());
    store.statuses.join(&feed);
    facts.statuses.join(&feed);
    // Whoever led before may have left anything.
    feed.add(facts.all_seen());
    work::drive(&feed, |key| {
        let (cluster, store, facts) = (cluster.clone(), store.clone(), facts.clone());
        async move { bring(&cluster, &store, &facts, &key).await }
    })
    .await;
}

/// Brings the status of one object to what it should be.
async fn bring(cluster: &Cluster, store: &Store, facts: &Facts, key: &ObjectKey) -> Verdict {
    let count = |result: &'static str| {
        let writes = &cluster.metrics().status_writes;
        writes.get_or_create(&Outcome { result }).inc();
    };
    // It is gone, or has not been seen yet and comes again.
    let Some(seen) = facts.seen(key) else {
        return Verdict::Done;
    };
    let Some(wanted) = wanted(store, key) else {
        return Verdict::Done;
    };
    let now = Timestamp::now();
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let Some(patch) = merge::patch(&seen.status, &wanted, &now.to_string()) else {
        return Verdict::Done;
    };
    match put(cluster, key, &seen, &patch).await {
        Ok(()) => {
            debug!(object = %key, "status written");
            count("written");
            Verdict::Done
        }
        Err(CallError::NotFound(_)) => Verdict::Done,
        // Somebody was faster; what they wrote is on its way here.
        Err(CallError::Conflict(_)) => {
            count("conflict");
            Verdict::Again
        }
        Err(error) => {
            let reason = error.reason();
            warn!(reason, object = %key, %error, "status not written");
            count("failed");
            match error {
                CallError::Invalid(_) => Verdict::Done,
                _ => Verdict::Again,
            }
        }
    }
}

async fn put(
    cluster: &Cluster,
    key: &ObjectKey,
    seen: &Seen,
    status: &serde_json::Value,
) -> Result<(), CallError> {
    let resource = seen.resource.as_ref();
    let api: Api<DynamicObject> = match key.namespace.as_str() {
        "" => Api::all_with(cluster.client(), resource),
        namespace => Api::namespaced_with(cluster.client(), namespace, resource),
    };
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    // With the version, nothing is lost that others write at the same time.
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": seen.version},
        "status": status,
    }));
    let call = api.patch_status(&key.name, &params, &patch);
    cluster.call("patch", call).await?;
    Ok(())
}

/// What an object should say; `None` if it is not ours to say anything.
fn wanted(store: &Store, key: &ObjectKey) -> Option<ObjectStatus> {
    let status = store.index().status(key);
    let mut status = match status {
        Some(status) => status,
        // Of routes and policies, what we have said before must go.
        None => ObjectStatus {
            generation: 0,
            content: match key.kind {
                Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => {
                    StatusContent::Parents(Vec::new())
                }
                Kind::AuthorizationPolicy
                | Kind::PeerAuthentication
                | Kind::RequestAuthentication
                | Kind::Telemetry
                | Kind::ServiceEntry => StatusContent::Conditions(Vec::new()),
                Kind::BackendTlsPolicy | Kind::BackendTrafficPolicy => {
                    StatusContent::Ancestors(Vec::new())
                }
                _ => return None,
            },
        },
    };
    if let Some(problem) = store.problem(key) {
        for conditions in status_conditions(&mut status.content) {
            not_in_force(conditions, &problem);
        }
    }
    Some(status)
}

fn status_conditions(content: &mut StatusContent) -> Vec<&mut Vec<Condition>> {
    match content {
        StatusContent::Object { conditions, .. } | StatusContent::Conditions(conditions) => {
            vec![conditions]
        }
        StatusContent::Parents(all) => all.iter_mut().map(|one| &mut one.conditions).collect(),
        StatusContent::Ancestors(all) => all.iter_mut().map(|one| &mut one.conditions).collect(),
    }
}

/// What is wanted is not in force, whatever the index thinks: it does not know of what failed later.
fn not_in_force(conditions: &mut Vec<Condition>, problem: &str) {
    let failed = Condition::no(PROGRAMMED, "Invalid", problem);
    match conditions.iter_mut().find(|one| one.kind == PROGRAMMED) {
        // It says why already.
        Some(there) if there.status == ConditionStatus::False => {}
        Some(there) => *there = failed,
        None => conditions.push(failed),
    }
}

#[cfg(test)]
mod tests;

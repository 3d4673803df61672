//! What runs for Gateways: the leader makes a ServiceAccount, a Deployment, a Service, an autoscaler and
//! a disruption budget for each Gateway of our classes, keeps them as they should be, and removes what is
//! not wanted any more.
//!
//! Everything has the Gateway as its owner, so that it goes with it by itself. An object that somebody
//! else has made under the same name is never taken over: the Gateway's status says so instead.

mod objects;
mod seen;
mod settings;

use std::sync::Arc;

use karst_core::{GatewayName, Kind, ObjectKey, ProxyWanted};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{ApiResource, DynamicObject},
};
use tracing::{debug, info, warn};

pub use self::settings::{Proxies, ProxySettings, ServiceType};
use self::{
    objects::{Made, Part},
    seen::Seen,
};
use super::{
    CallError, Cluster, FIELD_MANAGER,
    facts::Facts,
    work::{self, Verdict},
};
use crate::{feed::Feed, metrics::Outcome, store::Store};

/// The label that names the Gateway that something runs for.
pub const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// The label that names the Gateway's class.
const CLASS_LABEL: &str = "gateway.networking.k8s.io/gateway-class-name";

/// The label that says who made an object.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Namespaces in which nothing is made: whoever may make a Gateway there must not get one of the mesh's
/// own accounts by it.
const NOT_HERE: [&str; 2] = karst_api::OUTSIDE_NAMESPACES;

/// Why the proxies of a Gateway are not as they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Failure {
    #[error("no proxies are made in the namespace {0}; use another one")]
    Namespace(String),
    #[error(
        "there is a {0} of that name that Karst did not make; remove it, or give the Gateway another name"
    )]
    NameTaken(&'static str),
    #[error("{0}: {1}")]
    Call(&'static str, CallError),
}

impl Failure {
    /// Stable label for logs.
    fn reason(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "proxy_namespace_reserved",
            Self::NameTaken(_) => "proxy_name_taken",
            Self::Call(_, error) => error.reason(),
        }
    }

    fn verdict(&self) -> Verdict {
        match self {
            Self::Namespace(_) | Self::Call(_, CallError::Invalid(_)) => Verdict::Done,
            _ => Verdict::Again,
        }
    }
}

/// What a writer needs; cheap to clone.
#[derive(Clone)]
struct Writer {
    cluster: Cluster,
    store: Arc<Store>,
    facts: Arc<Facts>,
    proxies: Arc<Proxies>,
    seen: Arc<Seen>,
}

/// Keeps proxies as they should be, for ever. Dropped when this replica leads no more.
pub async fn write(cluster: Cluster, store: Arc<Store>, facts: Arc<Facts>, proxies: Arc<Proxies>) {
    let feed = Arc::new(Feed::default());
    store.wanted.join(&feed);
    let seen = Arc::new(Seen::default());
    // Nothing is written before it is known what there is.
    let following = seen::follow(&cluster, &seen, &feed);
    let writer = Writer {
        cluster: cluster.clone(),
        store,
        facts: facts.clone(),
        proxies,
        seen: seen.clone(),
    };
    let writing = async {
        seen.complete().await;
        feed.add(facts.all_seen().into_iter().filter_map(|key| gateway(&key)));
        let job = |gateway: GatewayName| {
            let writer = writer.clone();
            async move { writer.bring(&gateway).await }
        };
        work::drive(&feed, job).await;
    };
    tokio::select! {
        () = following => {}
        () = writing => {}
    }
}

fn gateway(key: &ObjectKey) -> Option<GatewayName> {
    (key.kind == Kind::Gateway).then(|| GatewayName::new(&key.namespace, &key.name))
}

impl Writer {
    /// Brings what runs for a Gateway to what should.
    async fn bring(&self, gateway: &GatewayName) -> Verdict {
        let wanted = self.store.index().proxy_wanted(gateway);
        let result = match &wanted {
            Some(wanted) => self.make(wanted).await,
            None => self.remove_all(gateway).await,
        };
        let Err(failure) = result else {
            self.store.set_unmade(gateway, None);
            return Verdict::Done;
        };
        let reason = failure.reason();
        let problem = failure.to_string();
        if wanted.is_some() {
            // Once for each problem, however often it is tried.
            let key = ObjectKey {
                kind: Kind::Gateway,
                namespace: gateway.namespace.clone(),
                name: gateway.name.clone(),
            };
            if self.store.problem(&key).as_ref() == Some(&problem) {
                debug!(reason, %gateway, problem, "proxies still not made");
            } else {
                warn!(reason, %gateway, problem, "proxies not made");
            }
            self.store.set_unmade(gateway, Some(problem));
        } else {
            warn!(reason, %gateway, problem, "proxies not removed");
        }
        self.count("failed");
        failure.verdict()
    }

    async fn make(&self, wanted: &ProxyWanted) -> Result<(), Failure> {
        let gateway = &wanted.gateway;
        if NOT_HERE.contains(&gateway.namespace.as_str()) {
            return Err(Failure::Namespace(gateway.namespace.clone()));
        }
        let made = objects::of(wanted, &self.proxies);
        for object in &made {
            self.put(gateway, object).await?;
        }
        // A Gateway's own objects all have its name; what else says that it is its, is not.
        for part in Part::ALL {
            for (name, uid) in self.seen.others(part, gateway, &gateway.name) {
                self.delete(part, gateway, &name, &uid).await?;
            }
        }
        Ok(())
    }

    async fn put(&self, gateway: &GatewayName, object: &Made) -> Result<(), Failure> {
        let part = object.part;
        let failed = |error| Failure::Call(part.kind(), error);
        if self.seen.is_right(gateway, object) {
            return Ok(());
        }
        let api = self.api(part, gateway);
        if !self.seen.has(part, gateway) {
            let there = api.get_metadata_opt(&gateway.name);
            let there = self.cluster.call("get", there).await.map_err(failed)?;
            let labels = there.map(|there| there.metadata.labels.unwrap_or_default());
            // What is ours and not seen is on its way here.
            if labels.is_some_and(|labels| {
                labels.get(MANAGED_BY).map(String::as_str) != Some(FIELD_MANAGER)
            }) {
                return Err(Failure::NameTaken(part.kind()));
            }
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&object.object);
        let put = api.patch(&gateway.name, &params, &patch);
        self.cluster.call("patch", put).await.map_err(failed)?;
        self.count("written");
        info!(kind = part.kind(), %gateway, "written for a Gateway");
        Ok(())
    }

    /// Removes what runs for a Gateway that is there and not ours any more. What was for one that is gone
    /// goes by itself: a Gateway that we merely do not see must not cost anybody their traffic.
    async fn remove_all(&self, gateway: &GatewayName) -> Result<(), Failure> {
        let key = ObjectKey {
            kind: Kind::Gateway,
            namespace: gateway.namespace.clone(),
            name: gateway.name.clone(),
        };
        if self.facts.seen(&key).is_none() {
            return Ok(());
        }
        for part in Part::ALL.into_iter().rev() {
            for (name, uid) in self.seen.all(part, gateway) {
                self.delete(part, gateway, &name, &uid).await?;
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        part: Part,
        gateway: &GatewayName,
        name: &str,
        uid: &str,
    ) -> Result<(), Failure> {
        let params = DeleteParams::background().preconditions(Preconditions {
            uid: Some(uid.to_owned()),
            resource_version: None,
        });
        let api = self.api(part, gateway);
        match self.cluster.call("delete", api.delete(name, &params)).await {
            Ok(_) => {
                self.count("deleted");
                info!(kind = part.kind(), %gateway, name, "removed, as no Gateway wants it");
                Ok(())
            }
            // It is gone, or another one has its name.
            Err(CallError::NotFound(_) | CallError::Conflict(_)) => Ok(()),
            Err(error) => Err(Failure::Call(part.kind(), error)),
        }
    }

    fn api(&self, part: Part, gateway: &GatewayName) -> Api<DynamicObject> {
        let resource: ApiResource = part.resource();
        Api::namespaced_with(self.cluster.client(), &gateway.namespace, &resource)
    }

    fn count(&self, result: &'static str) {
        let writes = &self.cluster.metrics().proxy_writes;
        writes.get_or_create(&Outcome { result }).inc();
    }
}

#[cfg(test)]
mod tests;

//! Takes resources from the controller and gives each to whom it concerns.

use std::sync::Arc;

use karst_api::convert::FieldError;
use karst_api::node::{DataplaneMode, NodePod as NodePodProto};
use karst_api::security::Authorization;
use karst_api::workload::{Address, address};
use karst_api::{ADDRESS_TYPE, AUTHORIZATION_TYPE, NODE_POD_TYPE};
use karst_client::{Resource, ResourceHandler};
use karst_identity::SpiffeId;
use tokio::sync::mpsc;

use crate::egress::Egress;
use crate::enrol::task::{Event, WorkerSet};
use crate::enrol::{Mode, NodePod};
use crate::state::policy::{Policy, PolicyTable};
use crate::state::store::{Change, Store};
use crate::state::{MeshState, convert};
use crate::worker::Command;

/// The handler of the control-plane session.
pub struct Handler {
    store: Store,
    state: Arc<MeshState>,
    network: String,
    trust_domain: String,
    root_namespace: String,
    policies: PolicyTable,
    enrolment: mpsc::UnboundedSender<Event>,
    workers: WorkerSet,
}

impl Handler {
    /// A handler that writes to `store` (over `state`), the enrolment and the workers.
    pub fn new(
        (store, state): (Store, Arc<MeshState>),
        (network, trust_domain, root_namespace): (String, String, String),
        enrolment: mpsc::UnboundedSender<Event>,
        workers: WorkerSet,
    ) -> Self {
        let policies = PolicyTable::new();
        Self {
            store,
            state,
            network,
            trust_domain,
            root_namespace,
            policies,
            enrolment,
            workers,
        }
    }

    fn addresses(&mut self, updates: Vec<Resource>, removed: Vec<String>) -> Vec<(String, String)> {
        let mut changes = Vec::with_capacity(updates.len() + removed.len());
        let errors = each(updates, |resource| {
            changes.push(self.address(resource)?);
            Ok(())
        });
        changes.extend(
            removed
                .into_iter()
                .map(|name| Change::Removed(Arc::from(name))),
        );
        let effect = self.store.apply(changes);
        if !effect.retired.is_empty() {
            self.workers.broadcast(|| Command::Retain);
        }
        if effect.policies_changed {
            self.workers.broadcast(|| Command::Recheck);
        }
        if effect.outside_changed {
            self.workers.broadcast(|| Command::RecheckEgress);
        }
        errors
    }

    fn address(&self, resource: &Resource) -> Result<Change, FieldError> {
        let address: Address = resource.unpack(ADDRESS_TYPE)?;
        match address.r#type {
            Some(address::Type::Workload(workload)) => {
                let workload = convert::workload(&workload, &self.network)?;
                same_name(resource, &workload.uid)?;
                Ok(Change::Workload(workload))
            }
            Some(address::Type::Service(service)) => {
                let service = convert::service(&service, &self.network)?;
                same_name(resource, &service.key)?;
                Ok(Change::Service(service))
            }
            None => Err(FieldError::new("type", "is neither workload nor service")),
        }
    }

    fn authorizations(
        &mut self,
        updates: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<(String, String)> {
        for name in removed {
            self.policies.remove(name.as_str());
        }
        let mut policies = std::mem::take(&mut self.policies);
        let root = self.root_namespace.as_str();
        let errors = each(updates, |resource| {
            // By the resource's name, which is what a removal will name, and workloads too.
            let name: Arc<str> = Arc::from(resource.name.as_str());
            let (policy, error) = match resource.unpack::<Authorization>(AUTHORIZATION_TYPE) {
                Ok(authorization) => convert::policy(&name, &authorization, root),
                Err(error) => (Policy::unreadable(&name, root), Some(error)),
            };
            // The last good one stays; a bad one without a predecessor refuses what it is for.
            if error.is_none() || !policies.contains_key(&name) {
                policies.insert(name, Arc::new(policy));
            }
            error.map_or(Ok(()), Err)
        });
        self.policies = policies;
        self.state.publish_policies(&self.policies);
        self.workers.broadcast(|| Command::Recheck);
        errors
    }

    fn node_pods(&mut self, updates: Vec<Resource>, removed: Vec<String>) -> Vec<(String, String)> {
        let mut changes = Vec::with_capacity(updates.len() + removed.len());
        let mut reporting = Vec::with_capacity(changes.capacity());
        let errors = each(updates, |resource| {
            let pod: NodePodProto = resource.unpack(NODE_POD_TYPE)?;
            let uid: Arc<str> = Arc::from(pod.pod_uid.as_str());
            changes.push((Arc::clone(&uid), Some(self.node_pod(&pod)?)));
            reporting.push((uid, pod.telemetry));
            Ok(())
        });
        changes.extend(removed.into_iter().map(|uid| (Arc::from(uid), None)));
        let gone = changes.iter().filter(|(_, pod)| pod.is_none());
        reporting.extend(gone.map(|(uid, _)| (Arc::clone(uid), None)));
        let reporting = reporting.iter();
        let reporting = reporting.map(|(uid, told)| (Arc::clone(uid), told.as_ref()));
        self.state.reporting.update(reporting);
        // The receiver ends with the process.
        let _ = self.enrolment.send(Event::NodePods(changes));
        errors
    }

    fn node_pod(&self, pod: &NodePodProto) -> Result<NodePod, FieldError> {
        let invalid = |error: karst_identity::IdentityError| {
            FieldError::new("service_account", error.to_string())
        };
        if pod.trust_domain != self.trust_domain {
            let problem = format!(
                "is {:?}, this node's is {:?}",
                pod.trust_domain, self.trust_domain
            );
            return Err(FieldError::new("trust_domain", problem));
        }
        let mode = match pod.dataplane_mode() {
            DataplaneMode::None => Mode::None,
            DataplaneMode::Ambient => Mode::Ambient,
        };
        Ok(NodePod {
            namespace: Arc::from(pod.namespace.as_str()),
            name: Arc::from(pod.name.as_str()),
            workload_uid: Arc::from(pod.workload_uid.as_str()),
            identity: SpiffeId::new(&pod.trust_domain, &pod.namespace, &pod.service_account)
                .map_err(invalid)?,
            addresses: pod.ip_addresses()?,
            mode,
            waypoints: Arc::new(convert::waypoints(&pod.waypoints)?),
            egress: Egress::from_wire(pod.egress_mode),
        })
    }
}

impl ResourceHandler for Handler {
    fn apply(
        &mut self,
        type_url: &str,
        updates: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<(String, String)> {
        match type_url {
            ADDRESS_TYPE => self.addresses(updates, removed),
            AUTHORIZATION_TYPE => self.authorizations(updates, removed),
            NODE_POD_TYPE => self.node_pods(updates, removed),
            other => updates
                .into_iter()
                .map(|r| (r.name, format!("type {other:?} was not asked for")))
                .collect(),
        }
    }
}

/// Runs `apply` on each resource; returns the name and error of those that failed.
fn each(
    resources: Vec<Resource>,
    mut apply: impl FnMut(&Resource) -> Result<(), FieldError>,
) -> Vec<(String, String)> {
    resources
        .into_iter()
        .filter_map(|r| apply(&r).err().map(|error| (r.name, error.to_string())))
        .collect()
}

/// A resource is removed by its name: one under another name could never go.
fn same_name(resource: &Resource, name: &str) -> Result<(), FieldError> {
    if resource.name == name {
        return Ok(());
    }
    Err(FieldError::new(
        "name",
        format!("is {:?}, but the resource is {name:?}", resource.name),
    ))
}

#[cfg(test)]
#[path = "xds_tests.rs"]
mod tests;

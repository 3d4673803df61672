//! What this node knows of the mesh: workloads, services, policies.
//!
//! One writer (the control-plane client) replaces immutable entries; every
//! connection reads without a lock and never waits for the control plane. When
//! the control plane is gone, the last state stays.
//!
//! Start with [`MeshState::lookup`] for what a connection asks and
//! [`store::Store::apply`] for what a push does.

pub mod authorization;
pub mod claims;
pub mod convert;
pub mod endpoint;
pub mod intern;
pub mod outside;
pub mod policy;
pub mod service;
pub mod sharded;
pub mod store;
pub mod waypoint;
pub mod workload;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use crate::observe::PodReporting;

use outside::OutsideTable;
use policy::{Policies, PolicyTable};
use service::Service;
use sharded::ShardedMap;
use workload::Workload;

/// How long a connection waits for the first full state after the agent's
/// start, or for its own pod's workload, before it is refused with
/// `state_not_ready`.
pub const READY_WAIT: Duration = Duration::from_secs(5);

/// What an address belongs to.
#[derive(Clone, Debug)]
pub enum Address {
    /// A workload's own address.
    Workload(Arc<Workload>),
    /// A virtual address of a service.
    Service(Arc<Service>),
}

/// The mesh state as connections read it.
#[derive(Debug)]
pub struct MeshState {
    workloads: ShardedMap<Arc<str>, Arc<Workload>>,
    services: ShardedMap<Arc<str>, Arc<Service>>,
    addresses: ShardedMap<IpAddr, Address>,
    /// Addresses of nodes, as far as workloads use them too.
    node_addresses: ShardedMap<IpAddr, ()>,
    outside: ArcSwap<OutsideTable>,
    /// Authorization policies.
    pub policies: Policies,
    /// What is reported of this node's pods.
    pub reporting: PodReporting,
    ready: watch::Sender<bool>,
    /// Counts published batches.
    published: watch::Sender<u64>,
}

impl Default for MeshState {
    fn default() -> Self {
        Self {
            workloads: ShardedMap::default(),
            services: ShardedMap::default(),
            addresses: ShardedMap::default(),
            node_addresses: ShardedMap::default(),
            outside: ArcSwap::default(),
            policies: Policies::default(),
            reporting: PodReporting::default(),
            ready: watch::Sender::new(false),
            published: watch::Sender::new(0),
        }
    }
}

impl MeshState {
    /// What `ip` belongs to; `None` for an address outside the mesh.
    pub fn lookup(&self, ip: IpAddr) -> Option<Address> {
        self.addresses.get(&ip.to_canonical())
    }

    /// The service for hosts outside that `ip` and `port` are of, for pods of `namespace`. What
    /// [`Self::lookup`] finds counts before it.
    pub fn outside(&self, ip: IpAddr, port: u16, namespace: &str) -> Option<Arc<Service>> {
        let table = self.outside.load();
        table.find(ip, port, namespace).cloned()
    }

    /// All services for hosts outside.
    pub fn outside_table(&self) -> Arc<OutsideTable> {
        self.outside.load_full()
    }

    /// Whether workloads of the mesh use `ip` that share it with their node.
    pub fn is_node_address(&self, ip: IpAddr) -> bool {
        self.node_addresses.get(&ip.to_canonical()).is_some()
    }

    /// The workload that owns `ip`.
    pub fn workload_at(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        match self.lookup(ip) {
            Some(Address::Workload(workload)) => Some(workload),
            _ => None,
        }
    }

    /// The workload of this uid.
    pub fn workload(&self, uid: &str) -> Option<Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The service of this key, `namespace/hostname`.
    pub fn service(&self, key: &str) -> Option<Arc<Service>> {
        self.services.get(key)
    }

    /// All workloads, for the admin socket.
    pub fn all_workloads(&self) -> Vec<Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, for the admin socket.
    pub fn all_services(&self) -> Vec<Arc<Service>> {
        self.services.values()
    }

    /// (workloads, services) held.
    pub fn counts(&self) -> (usize, usize) {
        (self.workloads.len(), self.services.len())
    }

    /// Says that the first full state has been applied.
    pub fn set_ready(&self) {
        self.ready
            .send_if_modified(|ready| !std::mem::replace(ready, true));
    }

    /// Whether the first full state has been applied.
    pub fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Waits up to [`READY_WAIT`] for the first full state; says whether it is there.
    pub async fn wait_ready(&self) -> bool {
        self.ready_within(READY_WAIT).await
    }

    async fn ready_within(&self, limit: Duration) -> bool {
        if self.is_ready() {
            return true;
        }
        let mut receiver = self.ready.subscribe();
        let ready = receiver.wait_for(|ready| *ready);
        matches!(tokio::time::timeout(limit, ready).await, Ok(Ok(_)))
    }

    /// The workload of this uid; waits up to [`READY_WAIT`] for it to arrive,
    /// because a new pod may be connected to before the control plane has told
    /// its own node of it.
    pub async fn wait_for_workload(&self, uid: &str) -> Option<Arc<Workload>> {
        self.workload_within(uid, READY_WAIT).await
    }

    async fn workload_within(&self, uid: &str, limit: Duration) -> Option<Arc<Workload>> {
        self.wait_until(limit, || self.workload(uid)).await
    }

    /// Waits up to [`READY_WAIT`] until `find` finds something in what has been published.
    pub async fn wait_for<T>(&self, find: impl FnMut() -> Option<T>) -> Option<T> {
        self.wait_until(READY_WAIT, find).await
    }

    async fn wait_until<T>(
        &self,
        limit: Duration,
        mut find: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(found) = find() {
            return Some(found);
        }
        let mut published = self.published.subscribe();
        let arrives = async {
            loop {
                if let Some(found) = find() {
                    return Some(found);
                }
                published.changed().await.ok()?;
            }
        };
        tokio::time::timeout(limit, arrives).await.ok().flatten()
    }

    /// Puts `policies` in the place of those before.
    pub fn publish_policies(&self, policies: &PolicyTable) {
        self.policies.publish(policies);
        self.note_published();
    }

    /// Moves with every batch that is published.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// Tells those who wait that a batch has been published.
    fn note_published(&self) {
        self.published.send_modify(|n| *n = n.wrapping_add(1));
    }
}

#[cfg(test)]
mod tests;

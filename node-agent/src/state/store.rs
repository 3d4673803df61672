//! The writer's side of the mesh state: takes what the control plane sends and
//! keeps the maps that connections read up to date.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use karst_api::node::is_endpoint_uid;

use super::claims::Claims;
use super::endpoint::EndpointStats;
use super::intern::Interner;
use super::outside::OutsideTable;
use super::service::{Service, ServiceSpec};
use super::workload::{Locality, Workload};
use super::{Address, MeshState};

/// One change of the address state.
#[derive(Debug)]
pub enum Change {
    /// A workload is new or differs.
    Workload(Workload),
    /// A service is new or differs.
    Service(ServiceSpec),
    /// The resource of this name (workload uid or service key) is gone.
    Removed(Arc<str>),
}

/// What a batch of changes means for live tunnels and metrics.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Workload uids that are gone, or whose identity or addresses changed:
    /// pooled tunnels to them must not be used any more.
    pub retired: Vec<Arc<str>>,
    /// Other policies may apply to a workload of this node than before.
    pub policies_changed: bool,
    /// Other hosts outside are known than before.
    pub outside_changed: bool,
}

/// Owns the canonical state; the only writer of a [`MeshState`].
#[derive(Debug)]
pub struct Store {
    shared: Arc<MeshState>,
    interner: Interner,
    local: Locality,
    workloads: HashMap<Arc<str>, Arc<Workload>>,
    services: HashMap<Arc<str>, ServiceSpec>,
    /// Service key -> uids of its workloads; also for services not known yet.
    members: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Address -> uids that claim it, the newest last. More than one while a
    /// pod's address goes over to another pod.
    owners: Claims,
    /// VIP -> keys of services that claim it, the newest last.
    vip_owners: Claims,
    /// Address of a node -> uids of workloads that use it too.
    node_owners: Claims,
}

impl Store {
    /// An empty store that writes to `shared`. `local` is what is known of this
    /// node at start: network, node name and cluster.
    pub fn new(shared: Arc<MeshState>, local: Locality) -> Self {
        Self {
            shared,
            interner: Interner::default(),
            local,
            workloads: HashMap::new(),
            services: HashMap::new(),
            members: HashMap::new(),
            owners: Claims::default(),
            vip_owners: Claims::default(),
            node_owners: Claims::default(),
        }
    }

    /// Applies a batch and publishes the result. Services are assembled once a
    /// batch, however many of their workloads changed.
    pub fn apply(&mut self, changes: Vec<Change>) -> Effect {
        let mut effect = Effect::default();
        let mut batch = Batch::default();
        for change in changes {
            match change {
                Change::Workload(workload) => self.put_workload(workload, &mut batch, &mut effect),
                Change::Service(spec) => self.put_service(spec, &mut batch),
                Change::Removed(name) => {
                    self.remove_workload(&name, &mut batch, &mut effect);
                    self.remove_service(&name, &mut batch);
                }
            }
        }
        effect.outside_changed = self.publish(batch);
        effect
    }

    fn put_workload(&mut self, mut workload: Workload, batch: &mut Batch, effect: &mut Effect) {
        self.interner.share(&mut workload);
        let uid = Arc::clone(&workload.uid);
        let old = self.workloads.get(&uid).cloned();
        workload.stats = old
            .as_ref()
            .map_or_else(Arc::<EndpointStats>::default, |w| w.stats.clone());
        if let Some(old) = &old {
            let moved = old.identity != workload.identity || old.addresses != workload.addresses;
            if moved {
                effect.retired.push(Arc::clone(&uid));
            }
            self.unlink(old, batch);
        }
        let node = &workload.locality.node;
        // An endpoint outside has no node, and no policies either.
        let is_here = !is_endpoint_uid(&uid) && (node.is_empty() || *node == self.local.node);
        effect.policies_changed |= is_here
            && old.is_none_or(|old| {
                old.namespace != workload.namespace
                    || old.authorization_policies != workload.authorization_policies
            });
        if workload.locality.node == self.local.node && !workload.locality.node.is_empty() {
            self.learn_locality(&workload.locality, batch);
        }
        for membership in workload.services.iter() {
            let members = self
                .members
                .entry(Arc::clone(&membership.service))
                .or_default();
            members.insert(Arc::clone(&uid));
            batch.services.insert(Arc::clone(&membership.service));
        }
        if workload.locality.network == self.local.network && !is_endpoint_uid(&uid) {
            let owners = match workload.host_network {
                true => &mut self.node_owners,
                false => &mut self.owners,
            };
            for address in &workload.addresses {
                owners.add(*address, &uid);
                batch.addresses.insert(*address);
            }
        }
        batch.workloads.insert(Arc::clone(&uid));
        self.workloads.insert(uid, Arc::new(workload));
    }

    fn remove_workload(&mut self, uid: &Arc<str>, batch: &mut Batch, effect: &mut Effect) {
        let Some(old) = self.workloads.remove(uid) else {
            return;
        };
        self.unlink(&old, batch);
        batch.workloads.insert(Arc::clone(uid));
        effect.retired.push(Arc::clone(uid));
    }

    /// Takes a workload out of the indices, before removal or replacement.
    fn unlink(&mut self, workload: &Workload, batch: &mut Batch) {
        for membership in workload.services.iter() {
            if let Some(members) = self.members.get_mut(&membership.service) {
                members.remove(&workload.uid);
                if members.is_empty() {
                    self.members.remove(&membership.service);
                }
            }
            batch.services.insert(Arc::clone(&membership.service));
        }
        for address in &workload.addresses {
            self.owners.remove(*address, &workload.uid);
            self.node_owners.remove(*address, &workload.uid);
            batch.addresses.insert(*address);
        }
    }

    fn put_service(&mut self, spec: ServiceSpec, batch: &mut Batch) {
        let key = Arc::clone(&spec.key);
        self.remove_service(&key, batch);
        let is_inside = spec.outside.is_none();
        batch.outside_changed |= !is_inside;
        for vip in spec.vips.iter().filter(|_| is_inside) {
            self.vip_owners.add(*vip, &key);
            batch.addresses.insert(*vip);
        }
        self.services.insert(key, spec);
    }

    fn remove_service(&mut self, key: &Arc<str>, batch: &mut Batch) {
        batch.services.insert(Arc::clone(key));
        let Some(old) = self.services.remove(key) else {
            return;
        };
        batch.outside_changed |= old.outside.is_some();
        for vip in &old.vips {
            self.vip_owners.remove(*vip, key);
            batch.addresses.insert(*vip);
        }
    }

    /// Region and zone of this node come with the first workload on it; every
    /// service that ranks by locality is assembled again then.
    fn learn_locality(&mut self, locality: &Locality, batch: &mut Batch) {
        if self.local == *locality {
            return;
        }
        self.local = locality.clone();
        let ranked = self
            .services
            .values()
            .filter(|s| !s.routing_preference.is_empty());
        batch.services.extend(ranked.map(|s| Arc::clone(&s.key)));
    }

    /// Publishes what a batch touched; says whether other hosts outside are known than before.
    fn publish(&self, mut batch: Batch) -> bool {
        let workload = |uid: &Arc<str>| self.workloads.get(uid).cloned();
        let mut assembled = HashMap::new();
        for key in std::mem::take(&mut batch.services) {
            let service = self
                .services
                .get(&key)
                .map(|spec| Arc::new(self.assemble(spec)));
            assembled.insert(key, service);
        }
        // Addresses of services that were assembled again point at the new one.
        let mut addresses = std::mem::take(&mut batch.addresses);
        for service in assembled.values().flatten() {
            addresses.extend(service.spec.vips.iter().copied());
        }
        self.shared.workloads.write(
            batch
                .workloads
                .iter()
                .map(|uid| (uid.clone(), workload(uid))),
        );
        let is_outside = |service: &Arc<Service>| service.spec.outside.is_some();
        batch.outside_changed |= assembled.values().flatten().any(is_outside);
        self.shared.services.write(assembled);
        let of_nodes = addresses.iter().map(|ip| {
            let is_used = self.node_owners.contains(*ip);
            (*ip, is_used.then_some(()))
        });
        self.shared.node_addresses.write(of_nodes);
        let resolved: Vec<_> = addresses
            .into_iter()
            .map(|ip| (ip, self.resolve(ip)))
            .collect();
        self.shared.addresses.write(resolved);
        if batch.outside_changed {
            self.publish_outside();
        }
        self.shared.note_published();
        batch.outside_changed
    }

    fn publish_outside(&self) {
        let keys = self.services.values();
        let keys = keys.filter(|spec| spec.outside.is_some());
        let services = keys.filter_map(|spec| self.shared.services.get(&spec.key));
        let table = OutsideTable::new(services);
        let (held, left_out) = table.counts();
        if left_out > 0 {
            tracing::warn!(
                held,
                left_out,
                "more addresses of hosts outside than are kept: the newest are not known"
            );
        }
        self.shared.outside.store(Arc::new(table));
    }

    fn assemble(&self, spec: &ServiceSpec) -> Service {
        let members = self.members.get(&spec.key);
        let members: Vec<_> = members
            .into_iter()
            .flatten()
            .filter_map(|uid| self.workloads.get(uid).cloned())
            .collect();
        Service::assemble(spec.clone(), &members, &self.local)
    }

    /// A workload wins over a service, as on every node of the mesh.
    fn resolve(&self, ip: IpAddr) -> Option<Address> {
        if let Some(uid) = self.owners.newest(ip) {
            return self.workloads.get(uid).cloned().map(Address::Workload);
        }
        let key = self.vip_owners.newest(ip)?;
        self.shared.services.get(key).map(Address::Service)
    }

    /// Names held now, for `initial_resource_versions` checks and full resyncs.
    pub fn names(&self) -> HashSet<Arc<str>> {
        self.workloads
            .keys()
            .chain(self.services.keys())
            .cloned()
            .collect()
    }
}

/// What a batch touched.
#[derive(Debug, Default)]
struct Batch {
    workloads: HashSet<Arc<str>>,
    services: HashSet<Arc<str>>,
    addresses: HashSet<IpAddr>,
    outside_changed: bool,
}

//! ServiceEntries: hosts outside of the cluster that are made known to the mesh.
//!
//! An entry becomes one `istio.workload.Service` under the name of its first host, with a workload for
//! each endpoint. What it says stands for itself, and is rendered when it changes; whether it is taken
//! follows from the others, because the oldest counts where two have one name: that is worked out once
//! for all that came together.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use karst_api::{
    convert::{address_bytes, whole},
    node::{
        MAX_OUTSIDE_ADDRESSES, MAX_OUTSIDE_ENDPOINTS, MAX_SERVICES_OF_ADDRESS, OutsideService,
        endpoint_uid, is_endpoint_uid,
    },
    workload::{
        self, LoadBalancing, Locality, NetworkAddress, Port, PortList, TunnelProtocol, Workload,
        WorkloadType, address::Type, load_balancing::Mode, service::Visibility,
    },
};

use super::{Changes, Index, NsName};
use crate::{
    object::{
        Kind, Metadata, ObjectKey,
        policy::listed,
        service_entry::{AddressBlock, Audience, EntryEndpoint, Resolution, ServiceEntry},
    },
    resource::Rendered,
    status::{Condition, ObjectStatus, StatusContent},
};

const ACCEPTED: &str = "Accepted";
const FULLY_ENFORCED: &str = "karst.dev/FullyEnforced";

/// All ServiceEntries, and what is made of them.
#[derive(Debug, Default)]
pub(super) struct ServiceEntries {
    all: BTreeMap<NsName, Held>,
    /// Names of the resources that are theirs.
    rendered: HashSet<String>,
    statuses: BTreeMap<ObjectKey, ObjectStatus>,
    /// Aliases of their single addresses: who else has one is said in the status.
    aliases: HashSet<String>,
    dirty: bool,
}

impl ServiceEntries {
    #[cfg(test)]
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// An address resource has these aliases, or had them.
    pub(super) fn aliases_changed<'a>(&mut self, aliases: impl IntoIterator<Item = &'a String>) {
        let mut aliases = aliases.into_iter();
        self.dirty = self.dirty || aliases.any(|alias| self.aliases.contains(alias));
    }
}

#[derive(Debug, PartialEq)]
struct Held {
    meta: Metadata,
    entry: ServiceEntry,
    /// What it becomes if it is taken, the service first.
    resources: Vec<Arc<Rendered>>,
}

/// An entry that has been taken, as later ones see it.
struct Taken<'a> {
    key: &'a NsName,
    entry: &'a ServiceEntry,
    /// In order.
    ports: Vec<u16>,
}

/// How much the entries that have been taken have together.
#[derive(Default)]
struct Sum {
    addresses: usize,
    endpoints: usize,
}

/// What comes of all entries together.
#[derive(Default)]
struct Judged {
    wanted: BTreeMap<String, Arc<Rendered>>,
    statuses: BTreeMap<ObjectKey, ObjectStatus>,
    /// Aliases of the services; endpoints' own addresses are not looked for.
    aliases: HashSet<String>,
}

impl Index {
    /// Stores a ServiceEntry or forgets it.
    pub(super) fn set_service_entry(
        &mut self,
        key: NsName,
        entry: Option<(Metadata, ServiceEntry)>,
    ) {
        let now = entry.map(|(meta, entry)| Held {
            resources: self.entry_resources(&key, &meta, &entry),
            meta,
            entry,
        });
        let former = self.entries.all.remove(&key);
        self.entries.dirty |= former != now;
        if let Some(now) = now {
            self.entries.all.insert(key, now);
        }
    }

    /// A pod uses other addresses of its node than before: who else has one is said in the status.
    pub(super) fn node_ips_changed(&mut self, before: &[IpAddr], now: &[IpAddr]) {
        if before != now {
            let both = before.iter().chain(now);
            let aliases: Vec<String> = both.map(|ip| self.alias(*ip)).collect();
            self.entries.aliases_changed(&aliases);
        }
    }

    /// Number of ServiceEntries.
    pub(super) fn entry_count(&self) -> usize {
        self.entries.all.len()
    }

    /// The status that a ServiceEntry should have.
    pub(super) fn entry_status(&self, key: &ObjectKey) -> Option<&ObjectStatus> {
        self.entries.statuses.get(key)
    }

    /// Works out which entries are taken, if that may have changed.
    pub(super) fn flush_entries(&mut self, changes: &mut Changes) {
        if !std::mem::take(&mut self.entries.dirty) {
            return;
        }
        let all = std::mem::take(&mut self.entries.all);
        let Judged {
            wanted,
            statuses,
            aliases,
        } = self.judge(&all);
        self.entries.aliases = aliases;
        let gone: Vec<String> = self
            .entries
            .rendered
            .iter()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        self.entries.rendered = wanted.keys().cloned().collect();
        for name in gone {
            self.put_address(name, None, changes);
        }
        for (name, rendered) in wanted {
            let former = self.addresses.get(&name);
            if former.is_none_or(|former| former.version != rendered.version) {
                self.put_address(name, Some(Rendered::clone(&rendered)), changes);
            }
        }
        let former = std::mem::take(&mut self.entries.statuses);
        let differs = |key: &&ObjectKey| former.get(*key) != statuses.get(*key);
        let touched = former.keys().chain(statuses.keys()).filter(differs);
        changes.statuses.extend(touched.cloned());
        self.entries.statuses = statuses;
        self.entries.all = all;
        // Putting what is theirs concerns nobody else.
        self.entries.dirty = false;
    }

    fn judge(&self, all: &BTreeMap<NsName, Held>) -> Judged {
        let mut by_age: Vec<(&NsName, &Held)> = all.iter().collect();
        by_age.sort_by_key(|(key, held)| (held.meta.created, *key));
        let mut judged = Judged::default();
        let mut names: HashMap<&str, &NsName> = HashMap::new();
        let mut blocks: HashMap<AddressBlock, Vec<usize>> = HashMap::new();
        let mut taken: Vec<Taken<'_>> = Vec::new();
        let mut sum = Sum::default();
        for (key, held) in by_age {
            let refused = self.refusal(key, held, &names, &sum);
            let mut conditions = Vec::new();
            if let Some(refused) = refused {
                conditions.push(refused);
            } else {
                let entry = &held.entry;
                conditions.push(Condition::yes(ACCEPTED, "Accepted", summary(entry)));
                let mut narrowed = entry.narrowed.clone();
                let mut conflicts = self.cluster_conflicts(held);
                let mut ports: Vec<u16> = entry.ports.iter().map(|port| port.number).collect();
                ports.sort_unstable();
                // Whatever blocks two entries share, they are compared once.
                let mut compared: HashMap<usize, Option<u16>> = HashMap::new();
                for block in &entry.blocks {
                    let earlier = blocks.entry(*block).or_default();
                    let rival = earlier.iter().find_map(|at| {
                        let older = taken.get(*at)?;
                        let shared = compared.entry(*at);
                        let port = *shared.or_insert_with(|| conflict(older, entry, &ports));
                        Some((older.key, port?))
                    });
                    if let Some((rival, port)) = rival {
                        conflicts.push(format!(
                            "{}, port {port}, is also that of ServiceEntry {}/{}, which is older and counts",
                            shown(block),
                            rival.namespace,
                            rival.name
                        ));
                    }
                    match earlier.len() < MAX_SERVICES_OF_ADDRESS {
                        true => earlier.push(taken.len()),
                        false => narrowed.push(format!(
                            "{} is left out, as {MAX_SERVICES_OF_ADDRESS} older entries have it",
                            shown(block)
                        )),
                    }
                }
                sum.addresses += entry.blocks.len();
                sum.endpoints += endpoints(entry);
                taken.push(Taken { key, entry, ports });
                for rendered in &held.resources {
                    let name = rendered.name.clone();
                    judged.wanted.insert(name, Arc::clone(rendered));
                }
                if let Some(service) = held.resources.first() {
                    names.insert(&service.name, key);
                    judged.aliases.extend(service.aliases.iter().cloned());
                }
                if !conflicts.is_empty() {
                    let message = listed(&conflicts, "; ");
                    conditions.push(Condition::no(FULLY_ENFORCED, "Conflicted", message));
                } else if !narrowed.is_empty() {
                    let message = listed(&narrowed, "; ");
                    conditions.push(Condition::no(FULLY_ENFORCED, "UnsupportedValue", message));
                }
            }
            let object = ObjectKey {
                kind: Kind::ServiceEntry,
                namespace: key.namespace.clone(),
                name: key.name.clone(),
            };
            let status = ObjectStatus {
                generation: held.meta.generation,
                content: StatusContent::Conditions(conditions),
            };
            judged.statuses.insert(object, status);
        }
        judged
    }

    /// Why an entry has no effect, if it has none.
    fn refusal(
        &self,
        key: &NsName,
        held: &Held,
        names: &HashMap<&str, &NsName>,
        sum: &Sum,
    ) -> Option<Condition> {
        let entry = &held.entry;
        let no = |reason, message: String| Some(Condition::no(ACCEPTED, reason, message));
        if !entry.faults.is_empty() {
            let faults = listed(&entry.faults, "; ");
            return no("Invalid", format!("{faults}. It has no effect"));
        }
        if !entry.unsupported.is_empty() {
            let fields = listed(&entry.unsupported, ", ");
            let message =
                format!("The mesh does not support {fields} as written. It has no effect");
            return no("UnsupportedValue", message);
        }
        let cluster = format!(".svc.{}", self.config.cluster_domain);
        if let Some(host) = entry.hosts.iter().find(|host| host.ends_with(&cluster)) {
            let message = format!(
                "{host} is a name of the cluster's own Services, which count. It has no effect"
            );
            return no("Conflicted", message);
        }
        let name = held.resources.first().map(|service| service.name.as_str());
        if let Some(other) = name.and_then(|name| names.get(name)) {
            let host = entry.hosts.first().map_or("", String::as_str);
            let message = format!(
                "ServiceEntry {}/{} is older and begins with the host {host} too, so this one has no effect",
                other.namespace, other.name
            );
            return no("Conflicted", message);
        }
        for (what, all, limit) in [
            (
                "addresses",
                sum.addresses + entry.blocks.len(),
                MAX_OUTSIDE_ADDRESSES,
            ),
            (
                "endpoints",
                sum.endpoints + endpoints(entry),
                MAX_OUTSIDE_ENDPOINTS,
            ),
        ] {
            if all > limit {
                let message = format!(
                    "Older entries leave no room for its {what} among {limit}. {}/{} has no effect",
                    key.namespace, key.name
                );
                return no("TooMany", message);
            }
        }
        None
    }

    /// Addresses of an entry that the cluster has itself.
    fn cluster_conflicts(&self, held: &Held) -> Vec<String> {
        let own = |name: &String| self.entries.rendered.contains(name) || is_endpoint_uid(name);
        let aliases = held.resources.first().map(|service| &service.aliases);
        let mut conflicts = Vec::new();
        for (ip, length) in &held.entry.blocks {
            if *length == whole(*ip) && self.relations.is_node_ip(*ip) {
                conflicts.push(format!("{ip} is that of a node, which counts"));
            }
        }
        for alias in aliases.into_iter().flatten() {
            let names = self.aliases.get(alias).into_iter().flatten();
            if let Some(name) = names.filter(|name| !own(name)).min() {
                let address = alias.rsplit('/').next().unwrap_or(alias);
                conflicts.push(format!("{address} is that of {name}, which counts"));
            }
        }
        conflicts
    }

    fn entry_resources(
        &self,
        key: &NsName,
        meta: &Metadata,
        entry: &ServiceEntry,
    ) -> Vec<Arc<Rendered>> {
        let Some(host) = entry.hosts.first().filter(|_| entry.is_usable()) else {
            return Vec::new();
        };
        let service = self.entry_service(key, meta, entry, host);
        let name = service.resource_name();
        let mut resources = vec![self.address_resource(name.clone(), Type::Service(service))];
        if let Resolution::Endpoints(endpoints) = &entry.resolution {
            for endpoint in endpoints {
                let workload = self.entry_endpoint(key, entry, endpoint, &name);
                let uid = workload.uid.clone();
                resources.push(self.address_resource(uid, Type::Workload(workload)));
            }
        }
        resources.into_iter().map(Arc::new).collect()
    }

    fn entry_service(
        &self,
        key: &NsName,
        meta: &Metadata,
        entry: &ServiceEntry,
        host: &str,
    ) -> workload::Service {
        let mode = match entry.resolution {
            Resolution::AsAsked => Mode::Passthrough,
            Resolution::Endpoints(_) => Mode::UnspecifiedMode,
        };
        let load_balancing = LoadBalancing {
            mode: mode.into(),
            ..LoadBalancing::default()
        };
        let (visibility, namespaces) = match &entry.audience {
            Audience::All => (Visibility::Public, Vec::new()),
            Audience::Namespaces(some) => (Visibility::Namespace, some.iter().cloned().collect()),
        };
        let more = OutsideService {
            namespaces,
            created: meta.created,
            entry: key.name.clone(),
        };
        workload::Service {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            hostname: host.to_owned(),
            addresses: entry
                .blocks
                .iter()
                .map(|block| self.wire_block(block))
                .collect(),
            ports: entry
                .ports
                .iter()
                .map(|port| Port {
                    service_port: port.number.into(),
                    target_port: port.target.into(),
                    app_protocol: port.app_protocol.into(),
                })
                .collect(),
            load_balancing: (load_balancing != LoadBalancing::default()).then_some(load_balancing),
            visibility: visibility.into(),
            extensions: vec![more.to_extension()],
            ..workload::Service::default()
        }
    }

    fn wire_block(&self, (ip, length): &AddressBlock) -> NetworkAddress {
        NetworkAddress {
            network: self.config.network.clone(),
            address: address_bytes(*ip),
            length: (*length != whole(*ip)).then_some((*length).into()),
        }
    }

    fn entry_endpoint(
        &self,
        key: &NsName,
        entry: &ServiceEntry,
        endpoint: &EntryEndpoint,
        service: &str,
    ) -> Workload {
        let ports = entry.ports.iter().map(|port| Port {
            service_port: port.number.into(),
            target_port: endpoint
                .ports
                .get(&port.name)
                .copied()
                .unwrap_or(port.target)
                .into(),
            app_protocol: port.app_protocol.into(),
        });
        let mut parts = endpoint.locality.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let locality = Locality {
            region: part(),
            zone: part(),
            subzone: part(),
        };
        Workload {
            uid: endpoint_uid(
                &self.config.cluster_id,
                &key.namespace,
                &key.name,
                endpoint.ip,
            ),
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            addresses: vec![address_bytes(endpoint.ip)],
            network: self.config.network.clone(),
            tunnel_protocol: TunnelProtocol::None.into(),
            canonical_name: key.name.clone(),
            canonical_revision: "latest".to_owned(),
            workload_type: WorkloadType::Pod.into(),
            workload_name: key.name.clone(),
            services: BTreeMap::from([(
                service.to_owned(),
                PortList {
                    ports: ports.collect(),
                },
            )]),
            cluster_id: self.config.cluster_id.clone(),
            locality: (locality != Locality::default()).then_some(locality),
            ..Workload::default()
        }
    }
}

fn shown((ip, length): &AddressBlock) -> String {
    match *length == whole(*ip) {
        true => ip.to_string(),
        false => format!("{ip}/{length}"),
    }
}

/// The first port that an older entry has too, for some of the same pods. Both lists are in order.
fn conflict(older: &Taken<'_>, entry: &ServiceEntry, ports: &[u16]) -> Option<u16> {
    #[cfg(test)]
    COMPARED.with(|compared| compared.set(compared.get() + 1));
    if !older.entry.audience.overlaps(&entry.audience) {
        return None;
    }
    let mut ports = ports.iter().copied();
    ports.find(|port| older.ports.binary_search(port).is_ok())
}

#[cfg(test)]
thread_local! {
    /// How often two entries have been compared.
    pub(super) static COMPARED: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

fn endpoints(entry: &ServiceEntry) -> usize {
    match &entry.resolution {
        Resolution::AsAsked => 0,
        Resolution::Endpoints(endpoints) => endpoints.len(),
    }
}

fn summary(entry: &ServiceEntry) -> String {
    let whom = match &entry.audience {
        Audience::All => "all namespaces".to_owned(),
        Audience::Namespaces(some) if some.is_empty() => "no namespace".to_owned(),
        Audience::Namespaces(some) => {
            let some: Vec<String> = some.iter().cloned().collect();
            format!("namespaces {}", listed(&some, ", "))
        }
    };
    let how = match &entry.resolution {
        Resolution::AsAsked => format!("{} addresses", entry.blocks.len()),
        Resolution::Endpoints(endpoints) => format!("{} endpoints", endpoints.len()),
    };
    format!("Pods of {whom} may connect to {how}")
}

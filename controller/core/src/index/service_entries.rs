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
    convert::address_bytes,
    node::{MAX_OUTSIDE_ADDRESSES, MAX_SERVICES_OF_ADDRESS, OutsideService},
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
        let (wanted, statuses) = self.judge(&all);
        let aliases = wanted
            .values()
            .flat_map(|rendered| rendered.aliases.clone());
        self.entries.aliases = aliases.collect();
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

    fn judge(
        &self,
        all: &BTreeMap<NsName, Held>,
    ) -> (
        BTreeMap<String, Arc<Rendered>>,
        BTreeMap<ObjectKey, ObjectStatus>,
    ) {
        let mut by_age: Vec<(&NsName, &Held)> = all.iter().collect();
        by_age.sort_by_key(|(key, held)| (held.meta.created, *key));
        let mut wanted = BTreeMap::new();
        let mut statuses = BTreeMap::new();
        let mut names: HashMap<&str, &NsName> = HashMap::new();
        let mut blocks: HashMap<AddressBlock, Vec<usize>> = HashMap::new();
        let mut taken: Vec<Taken<'_>> = Vec::new();
        let mut addresses = 0;
        for (key, held) in by_age {
            let refused = self.refusal(key, held, &names, addresses);
            let mut conditions = Vec::new();
            if let Some(refused) = refused {
                conditions.push(refused);
            } else {
                let entry = &held.entry;
                conditions.push(Condition::yes(ACCEPTED, "Accepted", summary(entry)));
                let mut narrowed = entry.narrowed.clone();
                let mut conflicts = self.cluster_conflicts(held);
                for block in &entry.blocks {
                    let earlier = blocks.entry(*block).or_default();
                    let rival = earlier
                        .iter()
                        .find_map(|at| conflict(taken.get(*at)?, entry));
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
                addresses += entry.blocks.len();
                taken.push(Taken { key, entry });
                for rendered in &held.resources {
                    wanted.insert(rendered.name.clone(), Arc::clone(rendered));
                }
                if let Some(service) = held.resources.first() {
                    names.insert(&service.name, key);
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
            statuses.insert(object, status);
        }
        (wanted, statuses)
    }

    /// Why an entry has no effect, if it has none.
    fn refusal(
        &self,
        key: &NsName,
        held: &Held,
        names: &HashMap<&str, &NsName>,
        addresses: usize,
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
        if addresses + entry.blocks.len() > MAX_OUTSIDE_ADDRESSES {
            let message = format!(
                "Older entries leave no room for its addresses among {MAX_OUTSIDE_ADDRESSES}. {}/{} has no effect",
                key.namespace, key.name
            );
            return no("TooMany", message);
        }
        None
    }

    /// Addresses of an entry that the cluster has itself.
    fn cluster_conflicts(&self, held: &Held) -> Vec<String> {
        let own = |name: &String| self.entries.rendered.contains(name) || is_endpoint(name);
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
            uid: format!(
                "{}/{ENDPOINT}/{}/{}/{}",
                self.config.cluster_id, key.namespace, key.name, endpoint.ip
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

/// In the uid of an endpoint, after the cluster.
const ENDPOINT: &str = "networking.istio.io/ServiceEntry";

fn is_endpoint(name: &str) -> bool {
    let rest = name.split_once('/').map(|(_, rest)| rest);
    rest.is_some_and(|rest| rest.starts_with(ENDPOINT))
}

fn whole(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn shown((ip, length): &AddressBlock) -> String {
    match *length == whole(*ip) {
        true => ip.to_string(),
        false => format!("{ip}/{length}"),
    }
}

/// An older entry that has one of the ports for some of the same pods, and the port.
fn conflict<'a>(older: &Taken<'a>, entry: &ServiceEntry) -> Option<(&'a NsName, u16)> {
    if !older.entry.audience.overlaps(&entry.audience) {
        return None;
    }
    let has = |number| older.entry.ports.iter().any(|other| other.number == number);
    let mut ports = entry.ports.iter().map(|port| port.number);
    ports
        .find(|number| has(*number))
        .map(|port| (older.key, port))
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

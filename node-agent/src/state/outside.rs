//! Hosts outside of the cluster that have been made known by a ServiceEntry, and how one is found
//! by its address.
//!
//! They are kept apart from what the cluster has itself, which counts before them: an entry can
//! never take an address away from a pod or a Service. An address is looked for in the longest
//! block first; of several services of one block the oldest that is for the pod's namespace and
//! has the port counts.

use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;
use karst_api::convert::network;
use karst_api::node::{MAX_OUTSIDE_ADDRESSES, MAX_SERVICES_OF_ADDRESS};
use serde::Serialize;

use super::service::Service;

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    network: IpAddr,
    length: u8,
}

impl Block {
    /// The block of that length in which `ip` is; `None` if there is no such length.
    pub fn around(ip: IpAddr, length: u8) -> Option<Self> {
        let network = network(ip.to_canonical(), length)?;
        Some(Self { network, length })
    }
}

impl Serialize for Block {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.network, self.length))
    }
}

/// Whose pods a service is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Audience {
    /// Everybody's.
    All,
    /// Those of these namespaces.
    Namespaces(Vec<Arc<str>>),
}

impl Audience {
    fn has(&self, namespace: &str) -> bool {
        match self {
            Self::All => true,
            Self::Namespaces(all) => all.iter().any(|one| &**one == namespace),
        }
    }
}

/// What a service for hosts outside has besides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outside {
    /// Whose pods it is for.
    pub audience: Audience,
    /// Its addresses.
    pub blocks: Vec<Block>,
    /// Seconds since 1970.
    pub created: i64,
    /// Name of the ServiceEntry; empty if it comes from elsewhere.
    pub entry: Arc<str>,
}

/// All services for hosts outside, as connections look for them.
#[derive(Debug, Default)]
pub struct OutsideTable {
    blocks: HashMap<Block, Vec<Arc<Service>>>,
    /// Lengths of IPv4 blocks that there are, the longest first; at most 33.
    lengths_v4: Vec<u8>,
    /// The same of IPv6; at most 129.
    lengths_v6: Vec<u8>,
    /// Addresses and blocks that found no place.
    left_out: usize,
}

impl OutsideTable {
    /// The table of these services; those that are none of hosts outside are left out.
    pub fn new(services: impl IntoIterator<Item = Arc<Service>>) -> Self {
        let mut all: Vec<Arc<Service>> = services.into_iter().collect();
        all.sort_by(|a, b| age(a).cmp(&age(b)));
        let mut table = Self::default();
        let mut count = 0;
        for service in &all {
            let Some(outside) = &service.spec.outside else {
                continue;
            };
            for block in &outside.blocks {
                let there = table.blocks.entry(*block).or_default();
                if count >= MAX_OUTSIDE_ADDRESSES || there.len() >= MAX_SERVICES_OF_ADDRESS {
                    table.left_out += 1;
                } else {
                    count += 1;
                    there.push(Arc::clone(service));
                }
            }
        }
        table.blocks.retain(|_, services| !services.is_empty());
        for block in table.blocks.keys() {
            let lengths = match block.network {
                IpAddr::V4(_) => &mut table.lengths_v4,
                IpAddr::V6(_) => &mut table.lengths_v6,
            };
            if !lengths.contains(&block.length) {
                lengths.push(block.length);
            }
        }
        for lengths in [&mut table.lengths_v4, &mut table.lengths_v6] {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
        }
        table
    }

    /// The service that `ip` and `port` are of, for pods of `namespace`.
    pub fn find(&self, ip: IpAddr, port: u16, namespace: &str) -> Option<&Arc<Service>> {
        let ip = ip.to_canonical();
        let lengths = match ip {
            IpAddr::V4(_) => &self.lengths_v4,
            IpAddr::V6(_) => &self.lengths_v6,
        };
        lengths.iter().find_map(|length| {
            let block = Block::around(ip, *length)?;
            first(self.blocks.get(&block)?, port, namespace)
        })
    }

    /// (addresses and blocks in the table, those beyond its limits).
    pub fn counts(&self) -> (usize, usize) {
        let held = self.blocks.values().map(Vec::len).sum();
        (held, self.left_out)
    }
}

/// The order in which services count. It is the controller's, which says in an entry's status
/// which others come before it.
fn age(service: &Service) -> (i64, &str, &str, &str) {
    let spec = &service.spec;
    let outside = spec.outside.as_ref();
    let (created, entry) = outside.map_or((0, ""), |it| (it.created, &*it.entry));
    (created, &spec.namespace, entry, &spec.key)
}

fn is_for(service: &Service, namespace: &str) -> bool {
    let outside = service.spec.outside.as_ref();
    outside.is_some_and(|outside| outside.audience.has(namespace))
}

fn first<'a>(services: &'a [Arc<Service>], port: u16, namespace: &str) -> Option<&'a Arc<Service>> {
    let mut services = services.iter();
    services.find(|service| service.ports.contains_key(&port) && is_for(service, namespace))
}

#[cfg(test)]
#[path = "outside_tests.rs"]
mod tests;
